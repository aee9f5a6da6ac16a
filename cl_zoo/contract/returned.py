"""What a plugin hands back, looked at where it comes in: a first mistake ends in one sentence, and not deep inside torch.

Raises `PluginFault` throughout, with what was returned and what to return instead; the guard around the call says by whom.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from cl_zoo.errors import PluginFault
from cl_zoo.tasks import Sample

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_zoo.batches import Batch

DOES = {"build_model": "learns", "build_inference_model": "answers, the model itself where it does"}
"""What the modules that hooks return are for."""


def module(hook: str, built: Any, *, forward: bool = True) -> nn.Module:
    """What learns or answers: an `nn.Module` with a forward, unless nobody is going to call it, and a `generate`."""
    from torch import nn

    if built is None:
        raise PluginFault(f"{hook} returned nothing", f"return the module that {DOES[hook]}")
    if not isinstance(built, nn.Module):
        raise PluginFault(
            f"{hook} returned {_kind(built)}",
            "return an nn.Module with forward and generate, as cl_zoo.nn.Around(bank) is one",
        )
    bare = getattr(built.forward, "__func__", None) is nn.Module.forward
    lacks = ["forward"] * (forward and bare) + ["generate"] * (not callable(getattr(built, "generate", None)))
    if lacks:
        raise PluginFault(
            f"{hook} returned {_kind(built)} without {' and '.join(lacks)}",
            "derive it from cl_zoo.nn.Around, whose forward and generate take batch.inputs",
        )
    return built


def named(hook: str, result: Any) -> Mapping[str, Any]:
    """Terms or measurements by name."""
    if not isinstance(result, Mapping):
        raise PluginFault(
            f"{hook} returned {_kind(result)}", "return a mapping from names to values, or nothing"
        )
    for name in result:
        if not isinstance(name, str):
            raise PluginFault(f"{hook} returned the name {name!r}, {_kind(name)}", "name each by a text")
    return result


def measurements(hook: str, result: Any) -> Mapping[str, Any]:
    """What was measured: a number, or a tensor with one element, for each name."""
    found = named(hook, result)
    for name, value in found.items():
        size = getattr(value, "numel", None)
        if not isinstance(value, Real) and (size is None or size() != 1):
            raise PluginFault(
                f"{hook} measured {name!r} as {_kind(value)}",
                "return a number or a tensor with one element, a name for each",
            )
    return found


def terms(batch: Batch, hook: str, result: Any) -> Mapping[str, Any]:
    """Terms of the objective: tensors of a shape that says how they are averaged."""
    found = named(hook, result)
    for name, value in found.items():
        term(name, value, batch)
    return found


def term(name: str, value: Any, batch: Batch) -> Tensor:
    """One term: a scalar, (batch,) per sample or (batch, K) per answer token."""
    from torch import Tensor

    if not isinstance(value, Tensor):
        raise PluginFault(f"loss: the term {name!r} is {_kind(value)}", "return a tensor")
    shapes = [(), (len(batch),), *([] if batch.targets is None else [tuple(batch.targets.shape)])]
    if tuple(value.shape) not in shapes:
        raise PluginFault(
            f"loss: the term {name!r} has shape {tuple(value.shape)}",
            "return a scalar, (batch,) or (batch, K) like batch.targets",
        )
    return value


def samples(hook: str, found: Any) -> list[Sample]:
    """What is rehearsed: samples as they stand in `batch.samples`."""
    given = list(found) if isinstance(found, Iterable) else [found]
    for one in given:
        if not isinstance(one, Sample) or not isinstance(found, Iterable):
            raise PluginFault(
                f"{hook} returned {_kind(found)}{f' with {_kind(one)} in it' if one is not found else ''}",
                "return a list of cl_zoo.Sample, as in batch.samples",
            )
    return given


def parts(found: Any) -> Mapping[str, Iterable[str]]:
    """Names of parameters by part."""
    if not isinstance(found, Mapping) or any(
        isinstance(names, str) or not isinstance(names, Iterable) for names in found.values()
    ):
        raise PluginFault(
            f"parts returned {_kind(found)}",
            "return a mapping from a part to a list of names of model.named_parameters()",
        )
    return found


def state(kept: Any) -> Mapping[str, Any]:
    """What a plugin keeps."""
    if not isinstance(kept, Mapping):
        raise PluginFault(
            f"state_dict returned {_kind(kept)}", "return a mapping, which load_state_dict then gets"
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
