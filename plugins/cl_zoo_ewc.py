"""Elastic Weight Consolidation.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017 (https://arxiv.org/abs/1612.00796);
online: Schwarz et al., "Progress & Compress", ICML 2018 (https://arxiv.org/abs/1805.06370), section 4.

After each task, store where the trainable weights stand and how sharply the likelihood bends there; during later tasks,
pull every weight back in proportion to that sharpness:

    summed    L(θ) = L_task(θ) + Σ_k Σ_i λ/2 · F_k,i (θ_i − θ*_k,i)²                                      (Eq. 3)
    online    L(θ) = L_task(θ) + Σ_i λ/2 · F̃_i (θ_i − θ*_i)²,   F̃ ← γ F̃ + F_k,   θ* the latest

Choices the paper leaves open for multimodal models, and ours:
  * Weights: everything that trains, adapters and projector. Weights that a task added later have no anchor and are free;
    weights that leave the model take their penalty with them.
  * Fisher: squared gradient of the mean answer-token log-likelihood under the data's labels ("empirical"), in evaluation
    mode, over `samples` of the task, drawn at random, one by one. `fisher="batch"` squares the gradient of the mean of up to 8
    samples instead. Of b gradients whose mean is zero, as after training, the square of the mean is 1/b of the mean square, so
    that F is about 8 times smaller.
  * Past tasks: one penalty each, summed, as the paper writes it. A sum of parabolas is itself a parabola, so ΣF, ΣFθ*
    and ΣFθ*² are kept in place of one pair per task: the same value at a size that does not grow.
  * λ: the continual-learning papers for multimodal models give none. Prism's 5000 belongs to its F over 8 samples of UCIT on one
    GPU, so by sample the default is 5000 / 8.
  * γ: a hyper-parameter of each experiment in the online paper; 1 lets no task fade. The γ that the paper also puts before
    F̃ in the penalty is part of λ here, and no task's F is normalised, so that λ means the same in both modes.

Held against:
  paper     arXiv 1612.00796
  code      LAMDA-CL/Prism@7154be2, method/custom/ewc/integration.py, config/methods/ewc.py
  code      ECNU-ICALK/EasyCL@cbc5bea, src/easycl/cl/ewc/ewc.py, src/easycl/cl/ewc/ewc_trainer.py
  verdict   equal: Fisher information per sample and per batch, penalty and gradient, summed and online
            (tests/oracles/test_ewc.py)
  differs   Fisher information: Prism's squares the gradient of each batch's mean, over 50 batches of 4 to 12
            samples, ours that of each sample, over 128; F is smaller there by about the batch size, which λ
            makes up for: 5000 there, 625 here
  differs   ZeRO-2: launched as its scripts do, Prism's finds no gradient where it looks for them, ours is the
            same on any hardware; as launched there neither F nor a penalty acts
  differs   weights: Prism's and EasyCL's are LoRA alone, and Prism's projector is frozen, ours are all that
            train; a projector that learns on is held back here
  differs   penalty: Prism's adds λ F (θ − θ*) to the gradients after the backward pass, and keeps F and θ* of
            every task, ours is a term of the loss and keeps three sums; the same gradient, a size that does
            not grow, and a value that is recorded
  differs   EasyCL: theirs takes the penalty of `param.data`, keeps the last task's F only, on one process,
            and divides squared gradients of batches by the number of samples, ours has none of it; no
            gradient comes of a penalty there, so that it is fine-tuning
  variants  fisher=batch: squared gradients of batches, to which Prism's λ belongs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from cl_zoo import Batch, hookimpl, share, task_loss, total
from cl_zoo.nn import standing_still

Per = Literal["sample", "batch"]

TOGETHER: dict[Per, int] = {"sample": 1, "batch": 8}
"""Samples whose mean gradient is squared."""
STRENGTH = 5000.0
"""λ for an F of 8 samples together."""


class EWC:
    """Penalises changes of weights that earlier tasks depend on."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        mode: Literal["summed", "online"] = Field(
            "summed", description="one penalty per past task, or one running F̃ around the latest weights"
        )
        strength: float | None = Field(
            None, ge=0, description="λ: how much old tasks matter; default: 625, with fisher=batch 5000"
        )
        decay: float = Field(
            1.0, ge=0, le=1, description="γ: how much of F̃ a further task leaves; online only"
        )
        samples: int = Field(128, ge=1, description="samples per task for the Fisher information F")
        fisher: Per = Field(
            "sample", description="whose gradient is squared: each sample's, or the mean of 8 samples'"
        )

    def __init__(self, options: Options) -> None:
        self.options = options
        paired = STRENGTH * TOGETHER[options.fisher] / TOGETHER["batch"]
        self.strength = paired if options.strength is None else options.strength
        self.importance: dict[str, Tensor] = {}  # Σ_k F_k, or F̃
        self.pull: dict[str, Tensor] = {}  # Σ_k F_k θ*_k, or F̃ θ*
        self.offset: dict[str, Tensor] = {}  # Σ_k F_k θ*_k², or F̃ θ*², summed over the weights of a tensor
        self.flat: dict[
            tuple[str, ...], tuple[Tensor, Tensor, Tensor]
        ] = {}  # the same in one piece, in the task at hand

    @hookimpl
    def before_task(self) -> None:
        self.flat = {}

    @hookimpl
    def loss(self, model: nn.Module) -> dict[str, Tensor] | None:
        weights = {name: weight for name, weight in trainable(model).items() if name in self.importance}
        if not weights or not self.strength:
            return None  # nothing to protect: the first task, or one that learns new weights only
        F, pulls, offset = self._together(tuple(weights))
        here = torch.cat([weight.flatten() for weight in weights.values()])
        return {"ewc": self.strength / 2 * (((F * here - pulls) * here).sum() + offset)}  # Eq. 3, second term

    def _together(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """ΣF, 2 ΣFθ* and ΣFθ*² of these weights as vectors and a number, made once per task and choice of weights."""
        if names not in self.flat:
            F, pulls = (
                torch.cat([of[name].flatten() for name in names]) for of in (self.importance, self.pull)
            )
            self.flat[names] = F, 2 * pulls, torch.stack([self.offset[name] for name in names]).sum()
        return self.flat[names]

    @hookimpl
    def after_task(self, model: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
        fisher = diagonal_fisher(model, batches, self.options.samples, self.options.fisher)
        here = {name for name, _ in model.named_parameters()}
        for name in self.importance.keys() - here:
            del self.importance[name], self.pull[name], self.offset[name]
        for name, weight in trainable(model).items():
            F, anchor = fisher[name], weight.detach().float()
            if self.options.mode == "online":
                F = F + self.options.decay * self.importance.get(name, 0)
                self.importance[name], self.pull[name], self.offset[name] = (
                    F,
                    F * anchor,
                    (F * anchor**2).sum(),
                )
            else:
                self.importance[name] = self.importance.get(name, 0) + F
                self.pull[name] = self.pull.get(name, 0) + F * anchor
                self.offset[name] = self.offset.get(name, 0) + (F * anchor**2).sum()
        return {"ewc/fisher_trace": sum((F.sum() for F in fisher.values()), torch.zeros(()))}

    def state_dict(self) -> dict[str, Any]:
        return {"importance": self.importance, "pull": self.pull, "offset": self.offset}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.importance, self.pull, self.offset = state["importance"], state["pull"], state["offset"]
        self.flat = {}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that learn at the moment, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def diagonal_fisher(
    model: nn.Module, batches: Sequence[Batch], samples: int, per: Per = "sample"
) -> dict[str, Tensor]:
    """Mean over samples (or eights of them) of the squared gradient of their own loss, per weight, in evaluation mode, fp32.

    Over `samples` of the task, drawn at random, on all processes together; zero everywhere where there are none.
    """
    weights = trainable(model)
    if not weights:
        return {}
    fisher = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    seen = 0
    with standing_still(model):
        model.eval()
        for batch in share(batches, samples=samples):
            for start in range(0, len(batch), TOGETHER[per]):
                piece = batch.rows(range(len(batch))[start : start + TOGETHER[per]])
                gradients = torch.autograd.grad(
                    task_loss(model, piece), list(weights.values()), allow_unused=True
                )
                for squares, gradient in zip(fisher.values(), gradients, strict=True):
                    if gradient is not None:
                        squares += gradient.float() ** 2
                seen += 1
    count = total(torch.tensor(float(seen), device=next(iter(weights.values())).device)).clamp(min=1)
    return {name: total(F) / count for name, F in fisher.items()}
