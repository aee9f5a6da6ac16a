"""CL-MoE: a mixture of LoRA experts, two routers and a momentum.

Huai et al., "CL-MoE: Enhancing Multimodal Large Language Model with Dual Momentum Mixture-of-Experts for Continual Visual
Question Answering", CVPR 2025 (https://arxiv.org/abs/2503.00413).

Training is that of a dense mixture of experts, all of which learn on every task:

    y = W x + s · Σ_i G^I(x)_i B_i A_i x,   G^I(x) = softmax(W_g x)        instance router, per token

Dynamic momentum: after task t, which made φ_t out of θ_{t−1}, the experts go back some of the way they came,

    θ_t = λ ∘ θ_{t−1} + (1 − λ) ∘ φ_t      λ_i by the role of expert i, 1 − γ or γ

Dual router: an answer adds the weights G^T(t) that the experts had in the task to those of the token:

    y = W x + s · Σ_i (β G^I(x)_i + (1 − β) G^T(t)_i) B_i A_i x            s = α / r

`variant` says which role has which λ; S_t are the `top` most active experts of task t:
  * paper, as we read it: an expert in S_t and not in S_{t−1} is the new task's own and takes most of the new, λ = 1 − γ; all
    others keep most of the old, λ = γ.
  * released: the script's condition is the other way round, λ = 1 − γ for an expert in S_{t−1} and not in S_t.

Choices the paper leaves open, and ours:
  * The most active experts of a task are those with the largest mean gate over the real tokens of `samples` of it,
    drawn at random, in each layer by itself: experts of two layers have nothing but a number in common. G^T(t) is this mean gate
    over S_t, summing to one.
  * The task of a question is not known, so it is the one whose anchors, mean image and text features of CLIP, lie nearest by
    the sum of both cosines. The choice is hard, as a task's name would be; of a task that came twice it is the later one.
  * θ are the A and B of the experts, each by itself. Routers and projector stay as trained, as in the released script. The
    first task has no θ_{t−1} and stays as trained.
  * β = 0.5, γ = 0.7, 4 experts and the top 2 as in the released code, or as many of the 4 as the recipe's budget feeds.

What follows from it: with γ = 0.7 an expert that is not the task's own gives back 70 % of the way it came in A and in B, so where
most experts are shared little of a task is left. `clmoe/left` is the share, Σ‖B_tA_t − B_{t−1}A_{t−1}‖ after the merge over the same
before it: 1 is all that was learnt. `clmoe/momentum` is the mean λ.

Held against:
  paper     arXiv 2503.00413
  code      ECNU-ICALK/CL-MoE@a9eff1c, CLMoE/peft/tuners/clitmoelora.py, params.py, statistic.py and scripts/CLMoE/Train_MOE
  code      ECNU-ICALK/EasyCL@cbc5bea, src/easycl/cl/clmoe/clmoe_workflow.py, the same merge in a later library of the group
  verdict   equal but for the accidents below: layer outputs and gradients in learning, roles and merged weights in both variants,
            weights of both routers (tests/oracles/test_clmoe.py)
  differs   roles: the paper, as we read it, lets an expert of the new task alone take most of the new, both scripts one of the old task
            alone, ours is the paper's; which experts move, and how far
  differs   merge: theirs looks for names that begin with an expert's, which no parameter's does, so the new checkpoint is copied (the
            later library's finds them), ours merges; as published the code has no momentum and is a plain mixture of experts
  differs   cross terms: A and B are mixed each by itself in theirs and in ours, which is no mixture of the updates B A, since
            (λB + μB′)(λA + μA′) = λ² BA + μ² B′A′ + λμ (BA′ + B′A), μ = 1 − λ; at λ = 0.7 the old update counts 0.49, the new one
            0.09, and 0.42 are products of an old and a new matrix, so a merged expert lies between both only as long as neither
            has moved far
  differs   counts: theirs counts the two largest gates of each token while a task is learnt, over all layers together and in one
            second of a minute (in any other the forward ends in an error), and keeps the 8 most frequent of 4, ours takes mean
            gates in each layer when it has been learnt; as published an expert is a task's own only where the other task never
            counted it
  differs   second router: theirs is commented out, with a list of weights that nothing fills, ours answers with both; as published
            answers are those of the token's router
  differs   dropout: theirs draws a mask for each expert, ours one for all experts of a layer; nothing at dropout 0
  variants  `variant=released` has the roles of both scripts; `momentum=0,top=4,beta=1` is what the published code computes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo import Backbone, Batch, Recipe, forward, hookimpl, share, total
from cl_zoo.nn import (
    Anchors,
    Around,
    ExpertBank,
    PerToken,
    evaluating,
    image_view,
    mixture,
    per_sample,
    router,
    text_view,
)

PUBLISHED = 4
"""Experts of the released code."""


class CLMoE:
    """Experts that all learn, a momentum by their role, and a second router that remembers tasks."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        variant: Literal["paper", "released"] = Field(
            "paper", description="which experts take most of the new"
        )
        experts: int | None = Field(
            None, ge=1, description="n: number of experts; default: as many of 4 as the budget feeds"
        )
        top: int = Field(2, ge=1, description="K: experts that count as a task's own, in each layer")
        momentum: float = Field(0.7, ge=0, le=1, description="γ: share of the old weights in shared experts")
        beta: float = Field(0.5, ge=0, le=1, description="β: share of the instance router in answering")
        samples: int = Field(128, ge=1, description="samples of a task for its mean gates")

        @model_validator(mode="after")
        def _top_is_possible(self) -> CLMoE.Options:
            if self.top > (most := self.experts or PUBLISHED):
                raise ValueError(f"top is {self.top} but there are {most} experts; choose no more than these")
            return self

    answering = ("beta",)

    def __init__(self, options: Options) -> None:
        self.options = options
        self.gates: list[Tensor] = []  # G^T, (layers, experts) per task
        self.before: list[list[tuple[Tensor, Tensor]]] = []  # θ_{t−1}: A and B by layer and expert

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> ExpertBank:
        views = {"images": image_view(backbone.features, 0.5), "texts": text_view(backbone.features, 0.5)}
        self.anchors = Anchors(views, 1.0, backbone.device)
        few = self.options.top + 1  # of `top` experts all would be a task's own
        self.bank = mixture(backbone, recipe, self.options.experts, published=PUBLISHED, fewest=few)
        self.names = self.bank.experts
        self.bank.mix(lambda layer: PerToken(router(layer, len(self.names))))
        return self.bank

    @hookimpl
    def before_task(self) -> None:
        self.before = [
            [(layer.bank_down[e].detach().clone(), layer.bank_up[e].detach().clone()) for e in self.names]
            for layer in self.bank.layers
        ]

    @hookimpl
    def after_task(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        options = self.options
        self.anchors.add(batches)
        self.gates.append(task_gates(mean_gates(self.bank, batches, options.samples), options.top))
        if len(self.gates) == 1:
            return {}
        momentum = momentums(self.gates[-2] > 0, self.gates[-1] > 0, options)
        learnt, left = self._merge(momentum)
        return {"clmoe/momentum": momentum.mean(), "clmoe/left": left / learnt.clamp(min=1e-12)}

    @hookimpl
    def build_inference_model(self) -> Routed:
        self.bank.mix(lambda layer: DualRouter(cast(PerToken, layer.bank_mix).router, self.options.beta))
        return Routed(self.bank, self.gates, self.anchors)

    def state_dict(self) -> dict[str, Any]:
        return {"gates": self.gates, "anchors": self.anchors.keep()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.gates = list(state["gates"])
        self.anchors.restore(state["anchors"])

    @torch.no_grad()
    def _merge(self, momentum: Tensor) -> tuple[Tensor, Tensor]:
        """θ_t = λ ∘ θ_{t−1} + (1 − λ) ∘ φ_t with λ (layers, experts); returns Σ‖Δ_φ‖ and Σ‖Δ_t‖, see `_change`."""
        learnt = self._change()
        for layer, old, rates in zip(self.bank.layers, self.before, momentum, strict=True):
            for name, weights, rate in zip(self.names, old, rates, strict=True):
                for now, then in zip((layer.bank_down[name], layer.bank_up[name]), weights, strict=True):
                    now.copy_(rate * then + (1 - rate) * now)
        left, self.before = self._change(), []
        return learnt, left

    def _change(self) -> Tensor:
        """Σ ‖B A − B' A'‖ over layers and experts, with A', B' of θ_{t−1}."""
        changes = [
            torch.linalg.matrix_norm(layer.bank_up[name] @ layer.bank_down[name] - up @ down)
            for layer, old in zip(self.bank.layers, self.before, strict=True)
            for name, (down, up) in zip(self.names, old, strict=True)
        ]
        return torch.stack(changes).sum()


class Counting(PerToken):
    """The instance router, adding up its gates over the real tokens of what passes: `real` (batch, tokens)."""

    def __init__(self, router: nn.Module, sums: Tensor) -> None:
        super().__init__(router)
        self.sums, self.real = sums, torch.empty(0)  # (experts,), filled in place

    def forward(self, z: Tensor, x: Tensor, ranks: Sequence[int]) -> Tensor:
        gates = torch.softmax(self.router(x.to(z.dtype)).float(), dim=-1)
        self.sums += (gates * self.real[..., None]).sum((0, 1))
        return super().forward(z, x, ranks)


class DualRouter(PerToken):
    """G = diag(β G^I(x) + (1 − β) G^T(t)), the second one set per sample and batch: `task` (batch, experts)."""

    def __init__(self, router: nn.Module, beta: float) -> None:
        super().__init__(router)
        self.beta, self.task = beta, torch.empty(0)

    def gates(self, x: Tensor) -> Tensor:
        return self.beta * super().gates(x) + (1 - self.beta) * per_sample(self.task, x)


class Routed(Around):
    """Answers with both routers; `route` (batch, tasks) is one at the task whose anchors lie nearest, else zero."""

    def __init__(self, bank: ExpertBank, gates: Sequence[Tensor], anchors: Anchors) -> None:
        super().__init__(bank)
        self.anchors = anchors
        self.register_buffer("gates", torch.stack(list(gates)))  # (tasks, layers, experts)

    def prepare(self, batch: Batch) -> None:
        similarity = self.anchors(batch.samples)  # (batch, tasks)
        tasks = similarity.shape[1]
        chosen = tasks - 1 - similarity.flip(1).argmax(1)  # of two that are equally near the later
        self.route = F.one_hot(chosen, tasks).float()
        for layer, gates in zip(self.bank.layers, self.get_buffer("gates")[chosen].unbind(1), strict=True):
            cast(DualRouter, layer.bank_mix).task = gates


def mean_gates(bank: ExpertBank, batches: Sequence[Batch], samples: int) -> Tensor:
    """Mean of G^I over the real tokens of samples drawn from a task, (layers, experts) in fp32, in evaluation mode."""
    layers = bank.layers
    device = layers[0].base_layer.weight.device
    sums, tokens = (
        torch.zeros(len(layers), len(layers[0].experts), device=device),
        torch.zeros((), device=device),
    )
    with evaluating(bank):
        mixes = [
            Counting(cast(PerToken, one.bank_mix).router, row) for one, row in zip(layers, sums, strict=True)
        ]
        for layer, mix in zip(layers, mixes, strict=True):
            layer.bank_mix = mix
        for batch in share(batches, samples):
            real = batch.inputs["attention_mask"]
            for mix in mixes:
                mix.real = real
            tokens += real.sum()
            forward(bank, batch)
    return total(sums) / total(tokens).clamp(min=1)


def task_gates(means: Tensor, top: int) -> Tensor:
    """G^T of a task: mean gates (layers, experts) of its `top` experts, summing to one; zero for the others."""
    kept = torch.zeros_like(means).scatter(1, means.topk(top).indices, 1.0) * means
    return kept / kept.sum(1, keepdim=True).clamp(min=torch.finfo(kept.dtype).tiny)


def momentums(old: Tensor, new: Tensor, options: CLMoE.Options) -> Tensor:
    """λ by layer and expert from who uses it, the task before and the new one: (layers, experts) booleans each."""
    moves = new & ~old if options.variant == "paper" else old & ~new
    return torch.where(moves, 1 - options.momentum, options.momentum)
