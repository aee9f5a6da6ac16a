"""What a plugin hands back, looked at where it comes in: a first mistake ends in one sentence, and not deep inside torch.

Raises `PluginError` throughout, with the plugin or the hook, what it returned and what to return instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from cl_zoo.errors import PluginError
from cl_zoo.tasks import Sample

if TYPE_CHECKING:
    from torch import nn


def module(hook: str, built: Any, *, forward: bool = True) -> nn.Module:
    """What learns or answers: an `nn.Module` with a forward, unless nobody is going to call it, and a `generate`."""
    from torch import nn

    if not isinstance(built, nn.Module):
        raise PluginError(
            f"{hook} returned {_kind(built)}; return an nn.Module with forward and generate, as cl_zoo.nn.Around(bank) is one"
        )
    bare = getattr(built.forward, "__func__", None) is nn.Module.forward
    lacks = ["forward"] * (forward and bare) + ["generate"] * (not callable(getattr(built, "generate", None)))
    if lacks:
        raise PluginError(
            f"{hook} returned {_kind(built)} without {' and '.join(lacks)}; derive it from cl_zoo.nn.Around, whose forward and generate take batch.inputs"
        )
    return built


def named(owner: str, hook: str, result: Any) -> Mapping[str, Any]:
    """Terms or measurements by name."""
    if not isinstance(result, Mapping):
        raise PluginError(
            f"{owner}: {hook} returned {_kind(result)}; return a mapping from names to values, or nothing"
        )
    return result


def number(owner: str, hook: str, name: str, value: Any) -> None:
    """A measurement: a number or a tensor with one element."""
    size = getattr(value, "numel", None)
    if not isinstance(value, Real) and (size is None or size() != 1):
        raise PluginError(
            f"{owner}: {hook} measured {name!r} as {_kind(value)}; return a number or a tensor with one element, a name for each"
        )


def samples(owner: str, found: Any) -> list[Sample]:
    """What is rehearsed: samples as they stand in `batch.samples`."""
    given = list(found) if isinstance(found, Iterable) else [found]
    for one in given:
        if not isinstance(one, Sample) or not isinstance(found, Iterable):
            raise PluginError(
                f"{owner}: rehearse returned {_kind(found)}{f' with {_kind(one)} in it' if one is not found else ''}; return a list of cl_zoo.Sample, as in batch.samples"
            )
    return given


def parts(owner: str, found: Any) -> Mapping[str, Iterable[str]]:
    """Names of parameters by part."""
    if not isinstance(found, Mapping) or any(isinstance(names, str) for names in found.values()):
        raise PluginError(
            f"{owner}: parts returned {_kind(found)}; return a mapping from a part to a list of names of model.named_parameters()"
        )
    return found


def state(owner: str, kept: Any) -> Mapping[str, Any]:
    """What a plugin keeps."""
    if not isinstance(kept, Mapping):
        raise PluginError(
            f"{owner}: state_dict returned {_kind(kept)}; return a mapping, which load_state_dict then gets"
        )
    return kept


def _kind(value: Any) -> str:
    """`nothing`, `the class Around`, `a list`."""
    if value is None:
        return "nothing"
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
