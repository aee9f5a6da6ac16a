"""Whether weights are numbers, and whether answering has left them alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.engine.ledger import own_state
from cl_zoo.errors import PluginFault
from cl_zoo.nn.still import standing_still


def unsound(tensors: Mapping[str, Tensor]) -> str:
    """The first tensor with a value that is not finite: `keys is nan in 3 of 16 values, and 2 more tensors`; empty where there is none.

    The device is waited for once where all are finite.
    """
    floating = {name: t.detach() for name, t in tensors.items() if t.is_floating_point() and not t.is_meta}
    if math.isfinite(float(get_total_norm(list(floating.values())))):
        return ""
    bad = {name: t for name, t in floating.items() if not bool(t.isfinite().all())}
    if not bad:  # the norm alone was too large
        return ""
    name, tensor = next(iter(bad.items()))
    what = "nan" if bool(tensor.isnan().any()) else "inf"
    count = int((~tensor.isfinite()).sum())
    more = len(bad) - 1
    others = f", and {more} more tensor{'s' if more > 1 else ''}" if more else ""
    return f"{name} is {what} in {count:,} of {tensor.numel():,} values{others}"


def weights(model: nn.Module, backbone: Backbone) -> dict[str, Tensor]:
    """The parameters of a model that are not the frozen backbone's; a buffer may hold an infinity on purpose."""
    return {name: t for name, t in own_state(model, backbone).items() if isinstance(t, nn.Parameter)}


def check_weights(model: nn.Module, backbone: Backbone, who: str) -> None:
    """Whether all weights are numbers.

    Args:
        who: the hook that has just been called, or what else has just happened.

    Raises:
        PluginFault: some are not.
    """
    if bad := unsound(weights(model, backbone)):
        raise PluginFault(
            f"behind {who} the weight {bad}", "keep divisions, roots and logarithms away from zero"
        )


def numbers(hook: str, measured: Mapping[str, Any]) -> dict[str, float]:
    """Measurements as numbers, of 0-dim tensors too.

    Raises:
        PluginFault: one is not finite; JSON has no word for it.
    """
    read = {name: float(value) for name, value in measured.items()}
    for name, value in read.items():
        if not math.isfinite(value):
            raise PluginFault(
                f"{hook} measured {name!r} as {value}",
                "return finite numbers, and leave out what there is not",
            )
    return read


def same(one: Tensor, other: Tensor) -> bool:
    """Equal values in equal places; what is no number is like itself here."""
    if torch.equal(one, other):
        return True
    if one.shape != other.shape or not one.is_floating_point():
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


@contextmanager
def unchanged(model: nn.Module, backbone: Backbone) -> Iterator[None]:
    """Answering must not teach: weights are checked, experts, mixes, modes and `requires_grad` put back.

    Raises:
        PluginFault: a weight was changed, added or removed.
    """
    before = model.state_dict(keep_vars=True)
    # Writing through `.data` leaves the version as it is, so the method's own, small tensors are compared by value too.
    marks = {name: (id(tensor), tensor._version) for name, tensor in before.items()}
    # On the CPU: what the engine checks is no memory that the method costs.
    values = {
        name: tensor.detach().to("cpu", copy=True) for name, tensor in own_state(model, backbone).items()
    }
    with standing_still(model):
        yield
    after = model.state_dict(keep_vars=True)
    for name in sorted(before.keys() | after.keys()):
        kept = name in after and marks.get(name) == (id(after[name]), after[name]._version)
        if not kept or (name in values and not same(values[name], after[name].detach().cpu())):
            raise PluginFault(
                f"answering changed {name}",
                "build_inference_model must leave the model's weights as they are",
            )
