"""The modes of a model: what is in training, what learns, which experts answer, through which mix and by which route."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cl_zoo.nn.layer import BankLayer
from cl_zoo.nn.mixes import PerSample
from cl_zoo.testing.conformance.moments import Moment

TRAINING = "the train/eval mode of "


def modes(model: nn.Module) -> Moment:
    """All modes of a model by what they are."""
    found: Moment = {}
    for name, module in model.named_modules():  # one walk: this is asked around every hook
        for key, one in module._parameters.items():
            found[f"requires_grad of {name}.{key}"] = None if one is None else one.requires_grad
        found[TRAINING + (f"the model's {name}" if name else "the model")] = module.training
        if isinstance(module, BankLayer):
            answering = () if module._disable_adapters else tuple(module._active_adapter)
            found[f"the active experts of {name}"] = answering
            found[f"the mix of {name}"] = id(module.bank_mix)
        if isinstance(module, PerSample):
            weights = module.weights
            found[f"the route of {name}"] = None if weights is None else weights.detach().clone()
    return found


def switched(before: Moment, after: Moment, *, chooses: bool) -> str:
    """The first mode that a hook left another than it found it; empty where there is none.

    What the hook has added to the model had no mode before, and what it has removed has none any more.

    Args:
        chooses: what learns and which experts answer is this hook's to choose.
    """
    names = [n for n in before.keys() & after.keys() if n.startswith(TRAINING) or not chooses]
    return min((name for name in names if not _same(before[name], after[name])), default="")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return bool(one == other) if type(one) is type(other) else False
