"""Slow: fine-tuning that is pulled towards slow weights, and answers with them.

The worked example of the page "Write a method"; no paper. The weights that learn, θ, are fast. Slow weights θ̄ follow them
from task to task as the running average of where each task ended:

    θ̄_1 = θ_1,   θ̄_t = θ̄_{t−1} + (θ_t − θ̄_{t−1}) / t            θ_t the weights after task t
    L_t(θ) = L_task(θ) + λ Σ_i (θ_i − θ̄_{t−1,i})²                 from the second task on

Answers come from θ̄. No routing, no task identity, and nothing is stored per task.

Choices that are left open, and ours:
  * Weights: everything that learns, adapters and projector.
  * Each weight counts the tasks in which it learnt: one that a task adds has that task's end as its first average. One that
    has left the model takes its average with it.
  * λ = 0.01 is a guess; nothing was tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from cl_zoo import hookimpl
from cl_zoo.nn import OtherWeights


class Slow:
    """Learns with fast weights near slow ones, and answers with the slow ones."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        strength: float = Field(0.01, ge=0, description="λ: weight of the pull")

    def __init__(self, options: Options) -> None:
        self.strength = options.strength
        self.average: dict[str, Tensor] = {}  # θ̄, by name
        self.tasks: dict[str, int] = {}  # t, by name: tasks in which the weight learnt

    @hookimpl
    def loss(self, model: nn.Module) -> dict[str, Tensor] | None:
        held = {name: weight for name, weight in learning(model).items() if name in self.average}
        if not held or not self.strength:
            return None  # the first task, or λ = 0
        distances = [(weight - self.average[name]).pow(2).sum() for name, weight in held.items()]
        return {"slow/pull": self.strength * torch.stack(distances).sum()}

    @hookimpl
    def after_task(self, model: nn.Module) -> None:
        here = {name for name, _ in model.named_parameters()}
        for name in self.average.keys() - here:
            del self.average[name], self.tasks[name]
        for name, weight in learning(model).items():
            now = weight.detach()
            self.tasks[name] = self.tasks.get(name, 0) + 1
            before = self.average.get(name, now)
            # A new tensor in the first task too: one of the model's own would move with it.
            self.average[name] = before + (now - before) / self.tasks[name]

    @hookimpl
    def build_inference_model(self, model: nn.Module) -> nn.Module:
        return OtherWeights(model, self.average)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "tasks": self.tasks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average, self.tasks = dict(state["average"]), dict(state["tasks"])


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that learn at the moment, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
