"""An optimiser step as plugins see it: those who change its gradients, and those who follow the path of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.sound import unsound
from cl_zoo.errors import PluginFault
from cl_zoo.tasks import Task


class Watch:
    """What stands around the optimiser steps of one task."""

    def __init__(self) -> None:
        self._norm = torch.tensor(torch.nan)  # of the last step's gradients before plugins changed them

    @contextmanager
    def __call__(self, plugins: Plugins, model: nn.Module, task: Task) -> Iterator[None]:
        """Plugins change the gradients; inside, these are clipped and the optimiser takes its step; then plugins that look at steps are called.

        Copies are made only where there is such a plugin, and a norm is taken only where one changes gradients; no device is waited for.
        """
        if plugins.implementing("before_step"):
            self._norm = get_total_norm(
                weight.grad for weight in model.parameters() if weight.grad is not None
            )
        plugins.before_step(model, task)
        if not plugins.watch_steps:
            yield
            return
        weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        before = copied({name: weight.detach() for name, weight in weights.items()})
        gradients = copied({name: weight.grad for name, weight in weights.items() if weight.grad is not None})
        yield
        plugins.after_step(model, task, gradients, before)

    def stop(self, plugins: Plugins, model: nn.Module) -> NoReturn:
        """End behind a step whose gradients had no finite norm: whose `before_step` made them such, else whoever took part in the objective.

        Raises:
            PluginFault: in any case.
        """
        named = model.named_parameters()
        bad = unsound({name: weight.grad for name, weight in named if weight.grad is not None})
        what = f"the gradient of {bad}" if bad else "the gradient is beyond the range of its numbers"
        if self._norm.isfinite():
            with plugins.calling("before_step"):
                raise PluginFault(
                    f"behind before_step {what}", "keep divisions, roots and logarithms in it away from zero"
                )
        with plugins.told("loss"):
            raise PluginFault(
                what,
                "keep roots, logarithms and norms in loss and forward away from zero, or lower the learning rate",
            )


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of them, made in one call."""
    copies = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    if copies:
        torch._foreach_copy_(list(copies.values()), list(tensors.values()))
    return copies
