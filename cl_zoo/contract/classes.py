"""The rules of the contract that can be seen before a hook is called: on a plugin's class, and of a stack.

Each raises a `PluginError` that says what is wrong and how it is put right.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from cl_zoo.contract.ablations import ablations
from cl_zoo.contract.hookspecs import PROJECT, HookSpecs
from cl_zoo.contract.options import kind_of
from cl_zoo.errors import PluginError, first_line, nearest

if TYPE_CHECKING:
    from cl_zoo.names import Choice

PROTOCOLS = ("sequential", "joint", "none")
ONLY_ONE = ("build_model", "build_inference_model")
NOT_FOR_PROBES = ("build_model", "rehearse", "loss", "before_step", "build_inference_model")
ONLY_FOR_PROBES = ("after_answers",)


def check_hook(name: str, hook: str, function: Any) -> None:
    """A hook is marked as one, and takes nothing that it is not given."""
    if not hasattr(function, f"{PROJECT}_impl"):
        raise PluginError(
            f"{name}: {hook} is not decorated with @hookimpl; without it the engine never calls it"
        )
    gives = list(inspect.signature(getattr(HookSpecs, hook)).parameters)[1:]
    parameters = inspect.signature(function).parameters.values()
    takes = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    if takes[:1] and takes[0] in gives:
        raise PluginError(
            f"{name}: {hook} takes {takes[0]!r} first; write def {hook}(self, {', '.join(takes)})"
        )
    if unknown := [argument for argument in takes[1:] if argument not in gives]:
        raise PluginError(
            f"{name}: {hook} takes {unknown[0]!r}, which it is not given{nearest(unknown[0], gives)}"
        )


def check_class(name: str, plugin: type) -> None:
    """Its protocol is one, and what is kept can be taken up."""
    protocol = getattr(plugin, "protocol", "sequential")
    if protocol not in PROTOCOLS:
        raise PluginError(f"{name}: protocol is {protocol!r}{nearest(str(protocol), PROTOCOLS)}")
    if hasattr(plugin, "state_dict") != hasattr(plugin, "load_state_dict"):
        raise PluginError(
            f"{name}: has only one of state_dict and load_state_dict; define both, or an interrupted run cannot go on"
        )


def check_options(name: str, plugin: type) -> None:
    """Options refuse misspelt names and stay as they are; those that answers alone read and those of ablations are among them."""
    options, answering = kind_of(plugin), getattr(plugin, "answering", ())
    if not (inspect.isclass(options) and issubclass(options, BaseModel)):
        raise PluginError(f"{name}: Options is no pydantic model; derive it from pydantic.BaseModel")
    if not options.model_config.get("frozen") or options.model_config.get("extra") != "forbid":
        raise PluginError(
            f'{name}: Options must refuse misspelt names and stay as it is; write class Options(BaseModel, frozen=True, extra="forbid")'
        )
    if not isinstance(answering, tuple | list):
        raise PluginError(f"{name}: answering is {answering!r}; write the names of options as a tuple")
    for option in answering:
        if option not in options.model_fields:
            raise PluginError(
                f"{name}: answering names {option!r}, which is no option of it{nearest(str(option), options.model_fields)}"
            )
    ablations(name, plugin)  # whoever asks for them finds them in order


def check_making(name: str, plugin: type, given: Sequence[Any]) -> None:
    """An instance can be made with the options, where there are any."""
    try:
        inspect.signature(plugin).bind(*given)
    except TypeError as error:
        remedy = (
            "write __init__(self, options), since it has Options"
            if given
            else 'give it a class Options(BaseModel, frozen=True, extra="forbid"), or let __init__ take nothing'
        )
        raise PluginError(f"{name}: its __init__ cannot be called: {first_line(error)}; {remedy}") from None


def check_composition(
    choices: Sequence[Choice], instances: Mapping[str, Any], implementing: Callable[..., Sequence[str]]
) -> None:
    """The plugins of a stack go together.

    Args:
        choices: the method first.
        instances: the plugins by name.
        implementing: names of those that implement a hook, of those alone that take an argument where one is given.
    """
    for hook in ONLY_ONE:
        owners = implementing(hook)
        if len(owners) > 1:
            raise PluginError(f"{' and '.join(owners)} both implement {hook}; a run can follow only one")
    for place, choice in enumerate(choices):
        plugin = instances[choice.name]
        for hook in NOT_FOR_PROBES if choice.probe else ():
            if choice.name in implementing(hook):
                raise PluginError(
                    f"{choice.name} implements {hook}, so it is no probe; put it into the stack with --with"
                )
        if choice.probe and choice.name in implementing("after_task", "learn"):
            raise PluginError(
                f"{choice.name} takes learn in after_task, so it is no probe; put it into the stack with --with"
            )
        if getattr(plugin, "probe", False) and not choice.probe:
            raise PluginError(f"{choice.name} only measures; put it into the stack with --probe")
        for hook in () if choice.probe else ONLY_FOR_PROBES:
            if choice.name in implementing(hook):
                raise PluginError(
                    f"{choice.name} implements {hook}, which only a probe may; put it into the stack with --probe"
                )
        protocol = getattr(plugin, "protocol", "sequential")
        of_method = getattr(instances[choices[0].name], "protocol", "sequential")
        if place and protocol not in ("sequential", of_method):
            raise PluginError(
                f"{choice.name} has protocol {protocol!r} and cannot go with {choices[0].name}; run it alone"
            )
