"""Synaptic Intelligence.

Zenke, Poole & Ganguli, "Continual Learning Through Synaptic Intelligence", ICML 2017 (https://arxiv.org/abs/1703.04200).

While a task is learnt, every weight adds up by how much its own steps have lowered the loss. Later it is held where it stood,
in proportion to that and against how far it went for it:

    ω_k   = −Σ_steps g_k Δθ_k                            g = ∂L/∂θ, Δθ the step that the optimiser took            (Eq. 3)
    Ω_k   = Σ_ν<μ ω_k^ν / ((Δ_k^ν)² + ξ)                 Δ_k^ν the way from begin to end of task ν                 (Eq. 5)
    L̃_μ   = L_μ + c Σ_k Ω_k (θ̃_k − θ_k)²                 θ̃ the weights after the last task                         (Eq. 4)

Choices the paper leaves open for multimodal models, and ours:
  * Weights: everything that trains, adapters and projector. Weights that a task added later are free, those that leave the model
    take their penalty with them. What a method makes of weights when their task has ended is where θ̃ stands, not part of the way.
  * Gradient: of the whole global batch, before it is clipped, without that of this penalty, which is known in closed form and
    taken off. Terms of other plugins in the stack belong to the objective whose decrease is shared out.
  * c and ξ: the authors' of split MNIST; c is 0.1 in their other experiments. Both belong together: a weight that went less far than
    √ξ is held the less for it, and LoRA's weights do not go far, so a stream may want a c of hundreds or more.

Held against:
  paper     arXiv 1703.04200
  code      ganguli-lab/pathint@86c5e07, pathint/protocols.py, pathint/optimizers.py and pathint/regularizers.py
  code      aimagelab/mammoth@e75a491, models/si.py
  verdict   equal: ω of every step, Ω after every task, penalty, gradient and the weights that are learnt with them
            (tests/oracles/test_si.py)
  differs   negative Ω: the authors' code cuts the running Ω off at zero, the paper does not say so and mammoth does not, ours does with
            `variant=released`; a weight whose steps have raised the loss is free then, and pushed away from θ̃ otherwise
  differs   clipping: mammoth clips each entry of the gradient to ±1 for the step, the authors do not and ours clips the norm as
            the recipe says; ω has the gradient before that in all of them
  differs   ω: mammoth adds it up with all weights in one vector and penalises by adding to the gradient, ours has one tensor for
            each weight and a term of the loss; the same gradient, and a value that is recorded
  differs   optimiser: the authors' moments go on or begin anew with each task, as a script says, ours are new for each task, for all
            methods; another step, and ω follows whatever step is taken
  variants  `variant=released` is the authors' code
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from cl_zoo import hookimpl


class SI:
    """Penalises changes of weights whose steps have lowered the loss of earlier tasks."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        strength: float = Field(1.0, ge=0, description="c in Eq. 4: how much old tasks matter")
        damping: float = Field(
            1e-3, gt=0, description="ξ in Eq. 5: bounds Ω of weights that have hardly moved"
        )
        variant: Literal["paper", "released"] = Field(
            "paper", description="released: Ω is cut off at zero after each task"
        )

    def __init__(self, options: Options) -> None:
        self.options = options
        self.importance: dict[str, Tensor] = {}  # Ω
        self.anchor: dict[str, Tensor] = {}  # θ̃
        self.path: dict[str, Tensor] = {}  # ω of the task that is being learnt
        self.moved: dict[str, Tensor] = {}  # Δ, so far
        self.flat: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}  # Ω and θ̃ in one piece

    @hookimpl
    def loss(self, model: nn.Module) -> dict[str, Tensor] | None:
        weights = {name: weight for name, weight in trainable(model).items() if name in self.importance}
        if not weights or not self.options.strength:
            return None  # nothing to protect: the first task, or one that learns new weights only
        importance, anchor = self._together(tuple(weights))
        here = torch.cat([weight.flatten() for weight in weights.values()])
        return {"si": self.options.strength * (importance * (here - anchor) ** 2).sum()}  # Eq. 4, second term

    def _together(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Ω and θ̃ of these weights as vectors, made once per task and choice of weights."""
        if names not in self.flat:
            importance, anchor = (
                torch.cat([of[name].flatten() for name in names]) for of in (self.importance, self.anchor)
            )
            self.flat[names] = importance, anchor
        return self.flat[names]

    @hookimpl
    def after_step(
        self, model: nn.Module, gradients: Mapping[str, Tensor], before: Mapping[str, Tensor]
    ) -> None:
        here = {name: weight.detach() for name, weight in trainable(model).items()}
        steps = each(torch._foreach_sub, here, before)
        self.moved = added(self.moved, steps)
        slopes = {**gradients, **each(torch._foreach_sub, gradients, self._pulls(before))}
        # without a gradient the optimiser leaves a weight where it is
        lowered = each(torch._foreach_mul, slopes, each(torch._foreach_neg, steps))
        self.path = added(self.path, lowered)  # Eq. 3

    @hookimpl
    def after_task(self, model: nn.Module) -> dict[str, Tensor]:
        here = {name for name, _ in model.named_parameters()}
        for name in self.importance.keys() - here:
            del self.importance[name], self.anchor[name]
        for name, weight in trainable(model).items():
            still = torch.zeros_like(weight, requires_grad=False)
            path, moved = self.path.get(name, still), self.moved.get(name, still)
            importance = self.importance.get(name, still) + path / (moved**2 + self.options.damping)  # Eq. 5
            cut = self.options.variant == "released"
            self.importance[name] = importance.clamp(min=0) if cut else importance
            self.anchor[name] = weight.detach().clone()
        lowered = sum((self.path[name].sum() for name in sorted(self.path)), torch.zeros(()))
        self.path, self.moved, self.flat = {}, {}, {}
        return {"si/lowered": lowered}

    def _pulls(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradient of the penalty at these weights, of those that it holds."""
        held = {name: F for name, F in self.importance.items() if name in weights}
        slopes = each(partial(torch._foreach_mul, scalar=2 * self.options.strength), held)
        return each(torch._foreach_mul, slopes, each(torch._foreach_sub, weights, self.anchor))

    def state_dict(self) -> dict[str, Any]:
        return {
            "importance": self.importance,
            "anchor": self.anchor,
            "path": self.path,
            "moved": self.moved,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.importance, self.anchor = dict(state["importance"]), dict(state["anchor"])
        self.path, self.moved = dict(state["path"]), dict(state["moved"])
        self.flat = {}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that learn at the moment, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def each(function: Callable[..., Sequence[Tensor]], *tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A function of lists, in one call, of the tensors whose name all tables have."""
    names = [name for name in tables[0] if all(name in table for table in tables)]
    if not names:
        return {}
    return dict(zip(names, function(*([table[name] for name in names] for table in tables)), strict=True))


def added(sums: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums with what is new; a name that is new begins with it."""
    return {**sums, **new, **each(torch._foreach_add, sums, new)}
