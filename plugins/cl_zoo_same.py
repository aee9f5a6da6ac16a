"""SAME: a mixture of LoRA experts whose routers and experts move little where earlier tasks' inputs lie.

Xie et al., "SAME: Stabilized Mixture-of-Experts for Multimodal Continual Instruction Tuning", ICML 2026
(https://arxiv.org/abs/2602.01990).

A router may drift, so that an old input finds other experts, and an expert may drift, so that the right one answers otherwise.
Every layer keeps the second moment C of all inputs that it has seen, by its principal directions, and changes gradients by it:

    h = W x + s · Σ_i ω_i(x) B_i A_i x,   ω(x) = softmax(W_G x)        A_i (ρ, d_in), B_i (d_out, ρ), W_G (E, d_in)
    C^t = (α_{t−1} C^{t−1} + n_t Ĉ^t) / α_t = V Σ Vᵀ                   Ĉ^t: mean of x xᵀ over n_t tokens of task t, α_t = α_{t−1} + n_t
    V_∥ = the first k columns of V,  Σ_{i≤k} σ_i² ≥ δ Σ_i σ_i²,        V_⊥ the others
    ∇W_G ← ∇W_G V_∥ g(Σ) V_∥ᵀ + ∇W_G V_⊥ V_⊥ᵀ                          g = diag(1 / σ̂_i), σ̂_i the mean of `window` σ up to σ_i
    ∇A_i ← ∇A_i (C^{t−1})⁻¹ ≈ ∇A_i (V_k (Σ_k + μ)⁻¹ V_kᵀ + (I − V_k V_kᵀ) / μ)                   from the second task on
    Score(i) = Ũ(i) − F̃_pre(i) < τ: expert i neither answers nor learns in this task

U is the mean ω_i of the current task, F_pre the mean of ω_i(x) ‖x‖² over the tasks before it, ~ from 0 (least) to 1 (most) over a
layer's experts. At inference all experts answer. There is no further term in the objective.

The paper's ablation adds the three parts one after the other to the mixture: `routing`, `scaling` and `freezing` switch them.
`cl-zoo analyze ablate same` runs the steps.

Choices that the equations leave open, and ours:
  * Gradients are changed once per optimiser step, when they are those of the whole global batch; what the layers saw is added up
    over all processes first. Padding counts nowhere.
  * C is a sketch of `components` fixed directions (`cl_zoo.nn.Sketch`), fed by every `every`-th step and decomposed then; the
    first step of a task is one of them. It also counts the current task, as C^t does; that of the experts stands still in a task.
  * g has no value above 1: a direction of little energy does not learn faster than one of none.
  * Score: U is a running mean over steps (`MOMENTUM`), as a task's beginning may route otherwise than its end. The best of a
    layer's experts always learns, and in the first task, which has no past, all do. A frozen one has no gradient, so that no
    momentum moves it either; the score decides anew after every step. Behind a norm all ‖x‖ are alike, so that a layer which
    routes as it did before has scores near zero: τ = 0.1 then leaves it one expert, and its router no gradient. `same/open` is the
    mean number at a task's end.
  * E and ρ follow from the recipe's budget, which counts the routers. E = 8, the number of CoIN's tasks that the code takes.
  * Values of δ, window, μ, τ, `components`, `every` and `MOMENTUM` are the code's.

Held against:
  paper     arXiv 2602.01990, its equations by way of a summary (zhaoyang97/Paper-Notes-en), not its own pages
  code      LAMDA-CL/Prism@7154be2, PEFT/tuners/custom/same.py, method/custom/same/integration.py, config/methods/same.py
  verdict   equal but for the accidents below: gates, outputs and gradients, changed gradients of routers and experts, scores,
            in both variants (tests/oracles/test_same.py)
  differs   route: theirs is one for all tokens of a batch, padding and answers among them, ours is each token's, with
            variant=released each row's mean over its real tokens; an answer does not depend on who else is in the batch
  differs   C: theirs is centred, of the batch of every 20th forward alone, in random columns that stand in no order, ours holds all tasks,
            by eigenvectors of the sketch; nothing of the tasks before the last one holds theirs back
  differs   g: theirs is the inverse of σ̂ over the largest inverse, no lower than 0.8, and 1 in the first 10 forwards, ours is 1 / σ̂ up
            to 1; a router keeps four fifths of its gradient there, wherever old inputs lie
  differs   F_pre: theirs is a running mean that the current task joins, from the first task on, ours stands still in a task; on inputs
            of one norm U and F are one there and no score reaches τ, and once all experts but one are frozen they stay so
  differs   frozen experts: theirs get a gradient of zero, ours none; AdamW's momentum moves them on there
  differs   kept open: theirs keeps the expert with the number of the task, and has as many as tasks, ours the one of the highest score;
            a stream may be longer than the experts are many
  differs   place: theirs is on the feed-forward linears and their projector is frozen, ours is where the recipe says
            (`adapter.targets=mlp`, `projector=frozen`); more layers share the budget
  variants  variant=released: one route per row, (Σ ω_i B_i)(Σ ω_i A_i), answers by the two best experts of softmax(W_G x / E), C
            centred and of the latest look with σ a standard deviation, g in [0.8, 1], the running F_pre, the task's own expert open
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from einops import rearrange
from pydantic import BaseModel, Field
from torch import Tensor, nn

from cl_zoo import Backbone, Recipe, Task, hookimpl, total
from cl_zoo.nn import (
    BankLayer,
    KeepsExperts,
    Tokens,
    Told,
    Watched,
    along,
    directions,
    mixture,
    principal,
    top_gates,
)

MOMENTUM = 0.95
"""What a step leaves of the running mean U."""
STEPS = ("routing", "scaling", "freezing")


def step(taken: Sequence[str], last: float) -> dict[str, Any]:
    """A row of the paper's ablation on CoIN, with the steps that are taken."""
    options = {name: name in taken for name in STEPS}
    return {"options": options, "source": "ablation, LLaVA-1.5-7B", "published": {"last": last}, "on": "coin"}


class SAME(KeepsExperts):
    """Token-wise experts; routers and experts learn by gradients that spare the directions of earlier inputs.

    Attributes:
        use, energy, before: (layers, E), U, Σ ω_i(x) ‖x‖² over all tasks so far, and F_pre.
        open: (layers, E), one at an expert that takes part.
    """

    class Options(BaseModel, frozen=True, extra="forbid"):
        variant: Literal["paper", "released"] = Field(
            "paper", description="the equations, or what the released code computes in their place"
        )
        experts: int | None = Field(
            None, ge=1, description="E: number of experts; default: as many of 8 as the budget feeds"
        )
        routing: bool = Field(True, description="gradients of routers go through V_∥ g(Σ) V_∥ᵀ + V_⊥ V_⊥ᵀ")
        scaling: bool = Field(True, description="gradients of A go through the inverse of C^{t−1}")
        freezing: bool = Field(True, description="experts whose score is below τ stand still in a task")
        share: float = Field(0.9, gt=0, le=1, description="δ: share of Σ σ² that the first k directions hold")
        window: int = Field(3, ge=1, description="how many σ are averaged for σ̂")
        damping: float = Field(0.9, gt=0, description="μ: added to every σ where C is inverted")
        threshold: float = Field(0.1, ge=-1, le=1, description="τ: score below which an expert is frozen")
        components: int = Field(64, ge=1, description="m: directions by which C is kept")
        every: int = Field(20, ge=1, description="optimiser steps from one look at the inputs to the next")

    ablations: ClassVar = {
        "mixture": step((), 50.58),
        "+ spectral-aware routing": step(("routing",), 61.32),
        "+ curvature-aware scaling": step(("routing", "scaling"), 65.89),
        "+ adaptive expert activation": step(STEPS, 66.82),
    }

    def __init__(self, options: Options) -> None:
        self.options, self.literal = options, options.variant == "paper"

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> Told:
        options = self.options
        self.bank = mixture(backbone, recipe, options.experts, published=8)
        self.layers, self.number = self.bank.layers, len(self.bank.experts)
        model, widths = Told(self.bank), {layer.in_features: layer.made for layer in self.layers}
        omegas = {width: directions(width, options.components, **made) for width, made in widths.items()}
        self.bank.mix(
            lambda layer: Gate(layer, self.number, omegas[layer.in_features], model.tokens, options)
        )
        self.gates = [layer.bank_mix for layer in self.layers if isinstance(layer.bank_mix, Gate)]
        self.energy = torch.zeros(len(self.layers), self.number, **self.layers[0].made)
        self._begin(0)
        return model

    @hookimpl
    def before_task(self, task: Task) -> None:
        self.bank.use(self.bank.experts, trainable=self.bank.experts)
        self._begin(task.index)

    def _begin(self, task: int) -> None:
        """What was seen so far is the past of the task at this place."""
        self.task, self.steps, self.before = task, 0, self.energy
        self.use, self.open = torch.zeros_like(self.energy), torch.ones_like(self.energy)
        for gate in self.gates:
            gate.past = gate.curved(self.options.damping) if task and not self.energy.is_meta else None
        self._ready()

    def _ready(self) -> None:
        """For the forwards of the next step."""
        sums = self.energy.new_zeros(len(self.gates), 2, self.number)
        for gate, open, own in zip(self.gates, self.open, sums, strict=True):
            gate.open = open
            gate.begin(looks=self.steps % self.options.every == 0, sums=own)

    @hookimpl
    def before_step(self) -> None:
        with torch.no_grad():
            self._take_in(total(torch.stack([gate.sums for gate in self.gates])).to(self.use))
            for layer, gate, open in zip(self.layers, self.gates, self.open.tolist(), strict=True):
                self._change(layer, gate, open)
            self.open, self.steps = self._chosen(), self.steps + 1
        self._ready()

    def _take_in(self, sums: Tensor) -> None:
        """What the step saw, on all processes."""
        used, energy = sums.unbind(1)
        tokens, new = used.sum(1, keepdim=True).clamp(min=1), 1 - MOMENTUM
        self.use = self.use.lerp(used / tokens, new)
        if self.literal:
            self.energy = self.energy + energy
        else:
            self.before = self.energy = self.energy.lerp(energy / tokens, new)
        for gate in self.gates:
            if gate.looks:
                gate.sketch.take_in(anew=not self.literal)
                gate.present = gate.slowed(self.options)

    def _change(self, layer: BankLayer, gate: Gate, open: Sequence[float]) -> None:
        """The gradients of one layer: none of experts that stand still."""
        weight = gate.router.weight
        if self.options.routing and gate.present and weight.grad is not None:
            weight.grad = along(weight.grad, *gate.present)
        learnt = []
        for name, takes_part in zip(self.bank.experts, open, strict=True):
            down, up = layer.bank_down[name], layer.bank_up[name]
            if not takes_part:
                down.grad = up.grad = None
            elif down.grad is not None:
                learnt.append(down)
        if self.options.scaling and gate.past and learnt:
            changed = along(torch.cat([cast(Tensor, down.grad) for down in learnt]), *gate.past)
            for down, gradient in zip(
                learnt, torch.split(changed, [len(down) for down in learnt]), strict=True
            ):
                down.grad = gradient

    def _chosen(self) -> Tensor:
        """Ones (layers, E) at experts whose score is at least τ, and at one of each layer at least."""
        if not self.options.freezing or (self.literal and not self.task):
            return torch.ones_like(self.use)
        use = ranked(self.use)
        score = use - ranked(self.before)
        own = torch.full_like(score[:, :1], min(self.task, self.number - 1), dtype=torch.long)
        best = (score + 1e-5 * use).argmax(
            1, keepdim=True
        )  # of equal scores not the one that rounding favours
        best = best if self.literal else own
        return (score >= self.options.threshold).to(score).scatter(1, best, 1.0)

    @hookimpl
    def after_task(self) -> dict[str, float]:
        kept = [len(gate.present[1]) for gate in self.gates if gate.present]
        if not kept:
            return {}
        return {"same/open": float(self.open.sum(1).mean()), "same/directions": sum(kept) / len(kept)}

    def state_dict(self) -> dict[str, Any]:
        seen = {
            layer.path: {"moments": gate.sketch.moments, "count": gate.sketch.count}
            for layer, gate in zip(self.layers, self.gates, strict=True)
        }
        own = {name: getattr(self, name) for name in ("steps", "use", "energy", "open")}
        return {**super().state_dict(), **own, "seen": seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name in ("steps", "use", "energy", "open"):
            setattr(self, name, state[name])
        for layer, gate in zip(self.layers, self.gates, strict=True):
            seen = state["seen"][layer.path]
            gate.sketch.moments, gate.sketch.count = seen["moments"], seen["count"]
            gate.present = gate.slowed(self.options) if self.steps else None
        self._ready()


class Gate(Watched):
    """ω of one layer, and how gradients are changed along the directions of what the layer saw.

    Attributes:
        past: V_k of C^{t−1}, (Σ_k + μ)⁻¹, and 1 / μ.
        present: V_k of C^t, and g.
        open: (E,), one at an expert that takes part.
    """

    past: tuple[Tensor, Tensor, float] | None = None
    present: tuple[Tensor, Tensor] | None = None

    def __init__(
        self, layer: BankLayer, experts: int, omega: Tensor, tokens: Tokens, options: SAME.Options
    ) -> None:
        super().__init__(layer, experts, omega, tokens)
        self.literal, self.share, self.open = (
            options.variant == "paper",
            options.share,
            omega.new_ones(experts),
        )

    def gates(self, x: Tensor) -> Tensor:
        """ω (rows, tokens, E) of x (rows, tokens, d_in), with variant=released (rows, 1, E)."""
        if self.training:
            p = self.mean(super().gates(x), x) * self.open
            return p / p.sum(-1, keepdim=True)
        if self.literal:
            return super().gates(x)
        p = torch.softmax(self.router(x) / self.experts, dim=-1)
        return top_gates(self.mean(p, x), min(2, self.experts))

    def gated(self) -> nn.Linear | None:
        return self.router if self.literal else None  # of whole rows with variant=released

    def mean(self, p: Tensor, x: Tensor) -> Tensor:
        """With variant=released that of a row's real tokens."""
        real = self.tokens.real(x)
        return p if self.literal else (p * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)

    def forward(self, z: Tensor, x: Tensor, ranks: Sequence[int]) -> Tensor:
        if self.literal:
            return super().forward(z, x, ranks)
        g = self.gates(x.to(z.dtype)).to(z)[..., None]  # (rows, 1, E, 1)
        one = (rearrange(z, "... (e r) -> ... e r", r=ranks[0]) * g).sum(-2, keepdim=True)
        return rearrange(g * one, "... e r -> ... (e r)")

    def directions(self) -> tuple[Tensor, Tensor]:
        """V_k and σ_k of what was seen so far."""
        V, sigma = self.sketch.spectrum()
        return principal(V, sigma if self.literal else sigma.sqrt(), self.share)

    def curved(self, damping: float) -> tuple[Tensor, Tensor, float]:
        """`past`, of what was seen so far."""
        V, sigma = self.directions()
        return V, 1 / (sigma + damping), 1 / damping

    def slowed(self, options: SAME.Options) -> tuple[Tensor, Tensor]:
        """`present`, of what was seen so far."""
        V, sigma = self.directions()
        return V, slowed(sigma, options)


def slowed(sigma: Tensor, options: SAME.Options) -> Tensor:
    """g (k,) of σ (k,)."""
    mean = torch.stack([sigma[max(0, i + 1 - options.window) : i + 1].mean() for i in range(len(sigma))])
    if options.variant == "paper":
        return mean.clamp(min=1).reciprocal()
    return ((mean.min() + 1e-6) / (mean + 1e-6)).clamp(min=0.8)


def ranked(values: Tensor) -> Tensor:
    """Each row from 0 at its smallest value to 1 at its largest; zeros where all are equal."""
    low, high = values.aminmax(dim=1, keepdim=True)
    return (values - low) / torch.where(high > low, high - low, torch.inf)
