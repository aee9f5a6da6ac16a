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
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

from cl_zoo.contract import returned
from cl_zoo.contract.classes import check_hook, check_making, check_options
from cl_zoo.contract.hookspecs import PROJECT, HookSpecs
from cl_zoo.contract.options import filled, kind_of
from cl_zoo.errors import ClZooError, PluginError, first_line, nearest
from cl_zoo.names import METHODS, Choice, Options, installed, load
from cl_zoo.tasks import source_hash

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.batches import Batch
    from cl_zoo.recipe.recipe import Recipe
    from cl_zoo.tasks import Sample, Task

PROTOCOLS = ("sequential", "joint", "none")
ONLY_ONE = ("build_model", "build_inference_model")
NOT_FOR_PROBES = ("build_model", "rehearse", "loss", "build_inference_model")
ONLY_FOR_PROBES = ("after_answers",)
HOOKS = tuple(name for name in vars(HookSpecs) if not name.startswith("_"))


def load_class(name: str) -> type[Any]:
    """The class of a method.

    Raises:
        PluginError: it is no class, or breaks a rule of the contract that can be seen without an instance.
    """
    plugin = load(METHODS, name)
    if not inspect.isclass(plugin):
        raise PluginError(f"{name}: its entry point gives a {type(plugin).__name__}; it must name a class")
    protocol = getattr(plugin, "protocol", "sequential")
    if protocol not in PROTOCOLS:
        raise PluginError(f"{name}: protocol is {protocol!r}{nearest(str(protocol), PROTOCOLS)}")
    for hook in HOOKS:
        function = getattr(plugin, hook, None)
        if function is not None:
            check_hook(name, hook, function)
    if hasattr(plugin, "state_dict") != hasattr(plugin, "load_state_dict"):
        raise PluginError(
            f"{name}: has only one of state_dict and load_state_dict; define both, or an interrupted run cannot go on"
        )
    check_options(name, kind_of(plugin), getattr(plugin, "answering", ()))
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
    try:
        return plugin(*given)
    except ClZooError:
        raise
    except Exception as error:
        raise PluginError(
            f"{choice.name}: making the plugin failed with {type(error).__name__}: {first_line(error)}; repair its __init__"
        ) from error


def every_method() -> list[str]:
    """Names of all installed methods that are no probes; one that cannot be imported is among them, and says so when it runs."""
    found = []
    for one in installed(METHODS):
        try:
            measures = getattr(load_class(one.name), "probe", False)
        except ClZooError:
            measures = False
        if not measures:
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
        for choice in self.choices:
            if choice.name in self.instances:
                raise PluginError(f"{choice.name} stands twice in the stack; name it once")
            self.instances[choice.name] = make(choice, self._defaults[choice.name])
        for name in reversed(self.instances):  # pluggy calls the last one registered first
            _register(self.manager, name, self.instances[name])
        self._check_composition()

    @property
    def method(self) -> Any:
        """The first plugin of the stack."""
        return next(iter(self.instances.values()))

    @property
    def protocol(self) -> str:
        return str(getattr(self.method, "protocol", "sequential"))

    def build_model(self, backbone: Backbone, recipe: Recipe) -> nn.Module | None:
        return self._built("build_model", backbone=backbone, recipe=recipe)

    def before_task(self, model: nn.Module, task: Task) -> None:
        self._call("before_task", model=model, task=task)

    def rehearse(self, task: Task) -> list[Sample]:
        owner = " and ".join(self._implementing("rehearse"))
        return [
            sample for found in self._call("rehearse", task=task) for sample in returned.samples(owner, found)
        ]

    def loss(self, model: nn.Module, batch: Batch, outputs: Any, task: Task) -> dict[str, Tensor]:
        return self._named("loss", model=model, batch=batch, outputs=outputs, task=task)

    def after_task(
        self,
        model: nn.Module,
        task: Task,
        batches: Sequence[Batch],
        parts: Mapping[str, Sequence[str]],
        backbone: Backbone,
    ) -> dict[str, float | Tensor]:
        arguments = {"model": model, "task": task, "batches": batches, "parts": parts, "backbone": backbone}
        return self._named("after_task", **arguments)

    def after_answers(self, task: Task, place: int, answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        return self._named("after_answers", task=task, place=place, answers=answers)

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
        return {
            owner: returned.parts(owner, plugin.parts(model))
            for owner, plugin in self.instances.items()
            if hasattr(plugin, "parts")
        }

    def state_dict(self, *, probes: bool = True) -> dict[str, Mapping[str, Any]]:
        """State of every plugin that has one, by its name in the stack; without probes, what learning on needs."""
        return {
            name: returned.state(name, plugin.state_dict())
            for name, plugin in self.instances.items()
            if hasattr(plugin, "state_dict") and (probes or name not in self.probes)
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        for name, plugin in self.instances.items():
            if hasattr(plugin, "load_state_dict"):
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
        return any(self._implementing(hook) for hook in ONLY_FOR_PROBES)

    @property
    def probes(self) -> set[str]:
        """Names of the plugins that only measure."""
        return {choice.name for choice in self.choices if choice.probe}

    def _filled(self, choice: Choice) -> dict[str, Any]:
        kind = type(self.instances[choice.name])
        return filled(kind, choice, self._defaults[choice.name]).model_dump(mode="json")

    def _implementing(self, hook: str) -> list[str]:
        """Who implements a hook, under whatever name its function has."""
        return sorted(impl.plugin_name for impl in getattr(self.manager.hook, hook).get_hookimpls())

    def _check_composition(self) -> None:
        for hook in ONLY_ONE:
            owners = self._implementing(hook)
            if len(owners) > 1:
                raise PluginError(f"{' and '.join(owners)} both implement {hook}; a run can follow only one")
        for choice in self.choices:
            plugin = self.instances[choice.name]
            for hook in NOT_FOR_PROBES if choice.probe else ():
                if choice.name in self._implementing(hook):
                    raise PluginError(
                        f"{choice.name} implements {hook}, so it is no probe; put it into the stack with --with"
                    )
            if getattr(plugin, "probe", False) and not choice.probe:
                raise PluginError(f"{choice.name} only measures; put it into the stack with --probe")
            for hook in () if choice.probe else ONLY_FOR_PROBES:
                if choice.name in self._implementing(hook):
                    raise PluginError(
                        f"{choice.name} implements {hook}, which only a probe may; put it into the stack with --probe"
                    )
            protocol = getattr(plugin, "protocol", "sequential")
            if plugin is not self.method and protocol not in ("sequential", self.protocol):
                raise PluginError(
                    f"{choice.name} has protocol {protocol!r} and cannot go with {self.choices[0].name}; run it alone"
                )

    def _built(self, hook: str, **arguments: Any) -> nn.Module | None:
        """What the one plugin that implements the hook made, `None` where there is no such plugin; a forgotten `return` is no choice."""
        made: nn.Module | None = self._call(hook, **arguments)
        if made is None and (owners := self._implementing(hook)):
            learns_or_answers = (
                "learns" if hook == "build_model" else "answers, the model itself where it does"
            )
            raise PluginError(
                f"{owners[0]}: {hook} returned nothing; return the module that {learns_or_answers}"
            )
        return made

    def _call(self, hook: str, **arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return getattr(self.manager.hook, hook)(**arguments)
        finally:
            self.seconds[hook] += time.perf_counter() - started

    def _named(self, hook: str, **arguments: Any) -> dict[str, Any]:
        """Join the mappings of all plugins; an equal name from two of them is an error that names both.

        After a task probes come first: they measure what was trained before a method fuses, prunes or merges it.
        """
        started = time.perf_counter()
        joined: dict[str, Any] = {}
        owner: dict[str, str] = {"task": "the engine"} if hook == "loss" else {}
        measuring_first = sorted(self.instances, key=lambda name: name not in self.probes)
        for name in measuring_first if hook == "after_task" else self.instances:
            others = [plugin for other, plugin in self.instances.items() if other != name]
            for result in self.manager.subset_hook_caller(hook, others)(**arguments):
                for key, value in returned.named(name, hook, result).items():
                    if hook != "loss":
                        returned.number(name, hook, key, value)
                    if key in owner:
                        raise PluginError(
                            f"{owner[key]} and {name} both return {key!r} from {hook}; rename one"
                        )
                    owner[key], joined[key] = name, value
        self.seconds[hook] += time.perf_counter() - started
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


def source_of(kind: type) -> str:
    """A hash of the module that a class stands in; empty where it has no source."""
    file = inspect.getsourcefile(kind)
    return source_hash(file) if file else ""
