"""Mine: sequential fine-tuning with a pull towards the weights after the last task.

Here go authors, title, venue and link of the paper, its idea in two lines, and its equations with their numbers:

    L(θ) = L_task(θ) + λ Σ_i (θ_i − θ*_i)²,    θ* the weights after the last task

Choices the paper leaves open, and ours:
  * Weights that a task adds have no θ* yet and are free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from cl_zoo import hookimpl


class Mine:
    """Pulls every weight that learns towards where the last task left it."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        strength: float = Field(0.1, ge=0, description="λ: weight of the pull")

    def __init__(self, options: Options) -> None:
        self.strength = options.strength
        self.anchor: dict[str, Tensor] = {}  # θ*, by name

    @hookimpl
    def loss(self, model: nn.Module) -> dict[str, Tensor] | None:
        held = {name: weight for name, weight in learning(model).items() if name in self.anchor}
        if not held:
            return None  # the first task
        distances = [(weight - self.anchor[name]).pow(2).sum() for name, weight in held.items()]
        return {"mine/pull": self.strength * torch.stack(distances).sum()}

    @hookimpl
    def after_task(self, model: nn.Module) -> None:
        self.anchor = {name: weight.detach().clone() for name, weight in learning(model).items()}

    def state_dict(self) -> dict[str, Any]:
        return {"anchor": self.anchor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.anchor = dict(state["anchor"])


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that learn at the moment, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
