"""A model looked at or run in another state, and put back as it stood."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cl_zoo.nn.layer import BankLayer
from cl_zoo.nn.mixes import PerSample


@contextmanager
def standing_still(model: nn.Module) -> Iterator[None]:
    """Whatever is done inside, afterwards the same weights learn and the same experts, mixes and routes answer."""
    learns = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    layers = [
        (module, list(module._active_adapter), module.bank_mix, module._disable_adapters)
        for module in model.modules()
        if isinstance(module, BankLayer)
    ]
    routes = [(module, module.weights) for module in model.modules() if isinstance(module, PerSample)]
    try:
        yield
    finally:
        for parameter, learning in learns:
            parameter.requires_grad_(learning)
        for module, training in modes:
            module.training = training
        for layer, active, mix, disabled in layers:
            layer._active_adapter, layer.bank_mix, layer._disable_adapters = active, mix, disabled
        for route, weights in routes:
            route.weights = weights


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode and no gradient is recorded; afterwards it stands as it stood."""
    with standing_still(model), torch.no_grad():
        model.eval()
        yield
