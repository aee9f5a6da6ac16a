"""The modes of a model: what is in training, what learns, which experts answer, through which mix and by which route."""

from __future__ import annotations

from torch import nn

from cl_zoo.nn.layer import BankLayer
from cl_zoo.nn.mixes import PerSample
from cl_zoo.testing.conformance.moments import Moment, differing

TRAINING = "the train/eval mode of "


def modes(model: nn.Module) -> Moment:
    """All modes of a model by what they are."""
    found: Moment = {f"requires_grad of {name}": one.requires_grad for name, one in model.named_parameters()}
    for name, module in model.named_modules():
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
    return differing({n: before[n] for n in names}, {n: after[n] for n in names})
