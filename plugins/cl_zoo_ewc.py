"""Elastic Weight Consolidation.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017 (https://arxiv.org/abs/1612.00796).

After each task, store where the trainable weights stand and how sharply the likelihood bends there; during later tasks,
pull every weight back in proportion to that sharpness:

    L(θ) = L_task(θ) + Σ_k Σ_i λ/2 · F_k,i (θ_i − θ*_k,i)²                                                (Eq. 3)

Choices the paper leaves open for multimodal models, and ours:
  * Weights: everything that trains, adapters and projector. Weights that a task added later have no anchor and are free.
  * Fisher: squared gradient of the mean answer-token log-likelihood under the data's labels ("empirical"), sample by
    sample, in evaluation mode, over the first `samples` of the task. (Squaring the gradient of a batch mean, as a public
    implementation does, underestimates it by about the batch size.)
  * Past tasks: one penalty each, summed, as the paper writes it. The sum of parabolas is itself a parabola, so ΣF, ΣFθ*
    and ΣFθ*² are kept in place of one pair per task: the same value at a size that does not grow.
  * λ: the continual-learning papers for multimodal models give none; 5000 is that of a public implementation (Prism).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from cl_zoo import Batch, hookimpl, task_loss


class EWC:
    """Penalises changes of weights that earlier tasks depend on."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        strength: float = Field(5000.0, ge=0, description="λ in Eq. 3: how much old tasks matter")
        samples: int = Field(128, ge=1, description="samples per task for the Fisher information F")

    def __init__(self, options: Options) -> None:
        self.strength, self.samples = options.strength, options.samples
        self.importance: dict[str, Tensor] = {}  # Σ_k F_k
        self.pull: dict[str, Tensor] = {}  # Σ_k F_k θ*_k
        self.offset: dict[str, Tensor] = {}  # Σ_k F_k θ*_k², summed over the weights of a tensor

    @hookimpl
    def loss(self, model: nn.Module) -> dict[str, Tensor] | None:
        weights = {name: weight for name, weight in trainable(model).items() if name in self.importance}
        if not weights:
            return None  # nothing to protect: the first task, or one that learns new weights only
        terms = [
            (self.importance[name] * weight**2 - 2 * self.pull[name] * weight).sum() + self.offset[name]
            for name, weight in weights.items()
        ]
        return {"ewc": self.strength / 2 * torch.stack(terms).sum()}  # Eq. 3, second term

    @hookimpl
    def after_task(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        fisher = diagonal_fisher(model, batches, self.samples)
        for name, weight in trainable(model).items():
            F, anchor = fisher[name], weight.detach()
            self.importance[name] = self.importance.get(name, 0) + F
            self.pull[name] = self.pull.get(name, 0) + F * anchor
            self.offset[name] = self.offset.get(name, 0) + (F * anchor**2).sum()
        return {"ewc/fisher_trace": sum(float(F.sum()) for F in fisher.values())}

    def state_dict(self) -> dict[str, Any]:
        return {"importance": self.importance, "pull": self.pull, "offset": self.offset}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.importance, self.pull, self.offset = state["importance"], state["pull"], state["offset"]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that learn at the moment, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def diagonal_fisher(model: nn.Module, batches: Iterable[Batch], samples: int) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient of the sample's own loss, per weight, in evaluation mode."""
    weights, training = trainable(model), model.training
    fisher = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    seen = 0
    model.eval()
    for batch in batches:
        for place in range(min(len(batch), samples - seen)):
            loss = task_loss(model, batch.rows([place]))
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for total, gradient in zip(fisher.values(), gradients, strict=True):
                if gradient is not None:
                    total += gradient**2
            seen += 1
        if seen >= samples:
            break
    model.train(training)
    return {name: total / max(seen, 1) for name, total in fisher.items()}
