"""Making plugins and calling their hooks: the typed wrapper around pluggy that holds the rules of composition.

A run is a stack of plugins: one method, any number of others with it, any number of probes. pluggy alone would resolve
in silence what this file refuses: the same term from two plugins, two models in one stack, a misspelt hook, two
distributions with one name, a probe that trains. There is one `Plugins` per run and no state in the module.
"""

from __future__ import annotations

import inspect
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pluggy

from cl_zoo.contract import returned
from cl_zoo.contract.calls import MODULE, Call, not_here
from cl_zoo.contract.classes import (
    ONLY_FOR_PROBES,
    check_class,
    check_composition,
    check_hook,
    check_making,
    check_options,
)
from cl_zoo.contract.hookspecs import PROJECT, HookSpecs
from cl_zoo.contract.options import filled
from cl_zoo.contract.sources import source_of
from cl_zoo.errors import ClZooError, PluginError, RunError, nearest
from cl_zoo.names import METHODS, Choice, Options, installed, load

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.batches import Batch
    from cl_zoo.recipe.recipe import Recipe
    from cl_zoo.tasks import Sample, Task

HOOKS = tuple(name for name in vars(HookSpecs) if not name.startswith("_"))


def load_class(name: str) -> type[Any]:
    """The class of a method.

    Raises:
        PluginError: it is no class, or breaks a rule of the contract that can be seen without an instance.
    """
    plugin = load(METHODS, name)
    if not inspect.isclass(plugin):
        raise PluginError(f"{name}: its entry point gives a {type(plugin).__name__}; it must name a class")
    for hook in HOOKS:
        function = getattr(plugin, hook, None)
        if function is not None:
            check_hook(name, hook, function)
    check_class(name, plugin)
    check_options(name, plugin)
    _register(_manager(), name, plugin)  # `cl-zoo list --check` finds a misspelt hook without an instance
    return plugin


def make(choice: Choice, defaults: Mapping[str, Any] | None = None) -> Any:
    """An instance of the chosen plugin with its options filled.

    Args:
        defaults: options that the recipe gives, weaker than the choice's own.

    Raises:
        PluginError: it cannot be loaded or made.
        OptionError: an option is unknown or out of range.
    """
    plugin = load_class(choice.name)
    options = filled(plugin, choice, defaults or {})
    given = (options,) if hasattr(plugin, "Options") else ()
    check_making(choice.name, plugin, given)
    with Call("__init__", {choice.name: plugin}):
        return plugin(*given)


def every_method() -> list[str]:
    """Names of all installed methods that are no probes; one that cannot be imported is among them, and says so when it runs."""
    found = []
    for one in installed(METHODS):
        with suppress(ClZooError):
            if getattr(load_class(one.name), "probe", False):
                continue
        found.append(one.name)
    return found


class Plugins:
    """The plugins of one run, registered in a manager of their own.

    Args:
        choices: the method first, then what runs with it, then the probes.
        options: what the recipe says of options, by name of the plugin; a choice's own are stronger, plugins that are not in
            the stack are passed over.

    Raises:
        PluginError: one cannot be loaded, or they do not go together.
        OptionError: an option is unknown or out of range.
    """

    def __init__(self, choices: Sequence[Choice], options: Options | None = None) -> None:
        self.choices = tuple(choices)
        self._defaults = {choice.name: (options or {}).get(choice.name, {}) for choice in self.choices}
        self.manager = _manager()
        self.seconds: dict[str, float] = defaultdict(float)
        self.instances: dict[str, Any] = {}
        self._task, self._step, self._terms = "", 0, dict[str, str]()
        for choice in self.choices:
            if choice.name in self.instances:
                raise PluginError(f"{choice.name} stands twice in the stack; name it once")
            self.instances[choice.name] = make(choice, self._defaults[choice.name])
        for name in reversed(self.instances):  # pluggy calls the last one registered first
            _register(self.manager, name, self.instances[name])
        check_composition(self.choices, self.instances, self.implementing)

    @property
    def method(self) -> Any:
        """The first plugin of the stack."""
        return next(iter(self.instances.values()))

    @property
    def protocol(self) -> str:
        return str(getattr(self.method, "protocol", "sequential"))

    def at(self, task: str, step: int = 0) -> None:
        """Say what is going on, for the sentence of a fault: a task in words, and the optimiser step, counted from 1."""
        self._task, self._step = task, step

    def calling(self, hook: str, *others: str, subject: str = "", asks: str = "") -> Call:
        """The guard around what those do who implement a hook, or one of others, see `cl_zoo.contract.calls.Call`."""
        names = {name for one in (hook, *others) for name in self.implementing(one)}
        owners = {name: plugin for name, plugin in self.instances.items() if name in names}
        return Call(hook, owners, self._now, subject=subject, asks=asks)

    def told(self, hook: str, term: str | None = None) -> Call:
        """Adds who and when to a fault that the engine finds: of a further term its owner, else whoever may have done it."""
        owner = self._terms.get(term or "", "")
        owners = {owner: self.instances[owner]} if owner in self.instances else self.instances
        return Call(hook, owners, self._now, catches=False)

    def calling_module(self, *, answers: bool = False) -> Call:
        """The guard around `prepare`, forward and `generate` of what learns, or of what answers."""
        own = answers and self.implementing("build_inference_model")
        hook = "build_inference_model" if own else "build_model"
        return self.calling(hook, subject=f"the module of {hook}", asks=MODULE)

    def build_model(self, backbone: Backbone, recipe: Recipe) -> nn.Module | None:
        return self._built("build_model", backbone=backbone, recipe=recipe)

    def before_task(self, model: nn.Module, task: Task, batches: Sequence[Batch] = ()) -> None:
        list(self._each("before_task", model=model, task=task, batches=batches))

    def rehearse(self, task: Task) -> list[Sample]:
        return [one for _, found in self._each("rehearse", returned.samples, task=task) for one in found]

    def loss(self, model: nn.Module, batch: Batch, outputs: Any, task: Task) -> dict[str, Tensor]:
        read = partial(returned.terms, batch)
        return self._named("loss", read, model=model, batch=batch, outputs=outputs, task=task)

    def before_step(self, model: nn.Module, task: Task) -> None:
        list(self._each("before_step", model=model, task=task))

    def after_step(
        self, model: nn.Module, task: Task, gradients: Mapping[str, Tensor], before: Mapping[str, Tensor]
    ) -> None:
        list(self._each("after_step", model=model, task=task, gradients=gradients, before=before))

    def after_task(
        self,
        model: nn.Module,
        task: Task,
        batches: Sequence[Batch],
        parts: Mapping[str, Sequence[str]],
        backbone: Backbone,
        learn: Callable[[Sequence[Sample], int], None] = not_here,
    ) -> dict[str, float | Tensor]:
        arguments = {"model": model, "task": task, "batches": batches, "parts": parts, "backbone": backbone}
        return self._named("after_task", returned.measurements, **arguments, learn=learn)

    def after_answers(self, task: Task, place: int, answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        return self._named("after_answers", returned.measurements, task=task, place=place, answers=answers)

    def build_inference_model(self, model: nn.Module, tasks_seen: Sequence[Task]) -> nn.Module:
        built = self._built("build_inference_model", model=model, tasks_seen=tasks_seen)
        return model if built is None else built

    def parts(self, model: nn.Module) -> dict[str, list[str]]:
        """What the plugins say about the parts of their parameters, merged."""
        parts: dict[str, list[str]] = defaultdict(list)
        for said in self._said_of_parts(model).values():
            for part, names in said.items():
                parts[part].extend(names)
        return dict(parts)

    def owners(self, model: nn.Module) -> dict[str, str]:
        """Name of the plugin for every parameter that a plugin's `parts` speaks of; all others are the method's."""
        said = self._said_of_parts(model)
        return {name: owner for owner, parts in said.items() for names in parts.values() for name in names}

    def _said_of_parts(self, model: nn.Module) -> dict[str, Mapping[str, Iterable[str]]]:
        said = {}
        for owner, plugin in self.instances.items():
            if hasattr(plugin, "parts"):
                with self._guard("parts", owner):
                    said[owner] = returned.parts(plugin.parts(model))
        return said

    def state_dict(self, *, probes: bool = True) -> dict[str, Mapping[str, Any]]:
        """State of every plugin that has one, by its name in the stack; without probes, what learning on needs."""
        kept = {}
        for name, plugin in self.instances.items():
            if hasattr(plugin, "state_dict") and (probes or name not in self.probes):
                with self._guard("state_dict", name):
                    kept[name] = returned.state(plugin.state_dict())
        return kept

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]], *, some: bool = False) -> None:
        """Give each plugin that has one its state; of some, only those that are named.

        Raises:
            PluginFault: one cannot take it.
            RunError: there is none for it.
        """
        for name, plugin in self.instances.items():
            if hasattr(plugin, "load_state_dict") and (name in state or not some):
                if name not in state:
                    raise RunError(
                        f"{self._now() or 'the state'} holds nothing of {name}; delete the run's folder and run again"
                    )
                with self._guard("load_state_dict", name):
                    plugin.load_state_dict(state[name])

    def sources(self) -> dict[str, str]:
        """A hash of each plugin's source module, by class path; decides a run's identity."""
        kinds = [type(plugin) for plugin in self.instances.values()]
        return {f"{kind.__module__}:{kind.__qualname__}": source_of(kind) for kind in kinds}

    def options(self, *, answering: bool = True) -> list[dict[str, Any]]:
        """Name and complete options of every plugin, defaults included; those that answers alone read can be left out."""
        made = []
        for choice, plugin in zip(self.choices, self.instances.values(), strict=True):
            left_out = () if answering else getattr(plugin, "answering", ())
            given = {name: value for name, value in self._filled(choice).items() if name not in left_out}
            made.append({"name": choice.name, "probe": choice.probe, "options": given})
        return made

    @property
    def watch_answers(self) -> bool:
        """Whether some plugin looks at answers, so that what it keeps is that of one run's answers."""
        return any(self.implementing(hook) for hook in ONLY_FOR_PROBES)

    @property
    def watch_steps(self) -> bool:
        """Whether some plugin looks at optimiser steps, so that gradients and weights are copied for it."""
        return bool(self.implementing("after_step"))

    @property
    def probes(self) -> set[str]:
        """Names of the plugins that only measure."""
        return {choice.name for choice in self.choices if choice.probe}

    def _filled(self, choice: Choice) -> dict[str, Any]:
        kind = type(self.instances[choice.name])
        return filled(kind, choice, self._defaults[choice.name]).model_dump(mode="json")

    def implementing(self, hook: str, taking: str = "") -> list[str]:
        """Who implements a hook, under whatever name its function has; with an argument, only those who take it."""
        found = getattr(self.manager.hook, hook).get_hookimpls()
        return sorted(one.plugin_name for one in found if not taking or taking in one.argnames)

    def _now(self) -> str:
        """What is going on, in words; empty where nobody has said so."""
        return self._task + (f", step {self._step}" if self._step else "")

    def _guard(self, hook: str, name: str) -> Call:
        return Call(hook, {name: self.instances[name]}, self._now)

    def _built(self, hook: str, **arguments: Any) -> nn.Module | None:
        """What the one plugin that implements the hook made, `None` where there is no such plugin; a forgotten `return` is no choice."""
        started = time.perf_counter()
        try:
            with self.calling(hook):
                made: nn.Module | None = getattr(self.manager.hook, hook)(**arguments)
                if self.implementing(hook) and (made is None or made is not arguments.get("model")):
                    returned.module(hook, made, forward=hook == "build_model")
                return made
        finally:
            self.seconds[hook] += time.perf_counter() - started

    def _each(
        self, hook: str, read: Callable[[str, Any], Any] = lambda hook, result: result, **arguments: Any
    ) -> Iterator[tuple[str, Any]]:
        """Name of each plugin that implements the hook, and what it returned as `read` takes it; nothing is skipped.

        After a task probes come first: they measure what was trained before a method fuses, prunes or merges it.
        """
        names = list(self.instances)
        if hook == "after_task":
            names.sort(key=lambda name: name not in self.probes)
        for name in names:
            others = [plugin for other, plugin in self.instances.items() if other != name]
            started = time.perf_counter()
            try:
                with self._guard(hook, name):
                    results = self.manager.subset_hook_caller(hook, others)(**arguments)
                    found = [read(hook, result) for result in results]
            finally:
                self.seconds[hook] += time.perf_counter() - started
            yield from ((name, one) for one in found)

    def _named(
        self, hook: str, read: Callable[[str, Any], Mapping[str, Any]], **arguments: Any
    ) -> dict[str, Any]:
        """Join the mappings of all plugins; an equal name from two of them is an error that names both."""
        joined: dict[str, Any] = {}
        owner: dict[str, str] = {"task": "the engine"} if hook == "loss" else {}
        for name, found in self._each(hook, read, **arguments):
            for key, value in found.items():
                if key in owner:
                    raise PluginError(f"{owner[key]} and {name} both return {key!r} from {hook}; rename one")
                owner[key], joined[key] = name, value
        if hook == "loss":
            self._terms = owner
        return joined


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    return manager


def _register(manager: pluggy.PluginManager, name: str, plugin: Any) -> None:
    """Register a plugin; a hook or an argument that the contract does not know is an error."""
    try:
        manager.register(plugin, name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        hook = re.search(r"hook '(\w+)'", str(error))
        known = nearest(hook.group(1), HOOKS) if hook and hook.group(1) not in HOOKS else ""
        raise PluginError(f"{name}: {' '.join(str(error).split())}{known}") from None
