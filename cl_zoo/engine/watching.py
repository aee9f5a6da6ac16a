"""An optimiser step as plugins see it who follow the path of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from cl_zoo.contract.plugins import Plugins
from cl_zoo.tasks import Task


@contextmanager
def watched(plugins: Plugins, model: nn.Module, task: Task) -> Iterator[None]:
    """Plugins change the gradients; inside, these are clipped and the optimiser takes its step; then plugins that look at steps are called.

    Copies are made only where there is such a plugin.
    """
    plugins.before_step(model, task)
    if not plugins.watch_steps:
        yield
        return
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    gradients = {name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None}
    yield
    plugins.after_step(model, task, gradients, before)
