"""InfLoRA: interference-free low-rank adaptation.

Liang & Li, "InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning", CVPR 2024
(https://arxiv.org/abs/2404.00228); its memory is DualGPM: Liang & Li, "Adaptive Plasticity Improvement for Continual
Learning", CVPR 2023.

Every task t learns a new LoRA of which only the up-projection trains. What it reads is set beforehand: the main directions of the new
task's inputs that lie outside the space of the old tasks' gradients, so that learning it leaves old inputs alone:

    y = W x + s Σ_i≤t B_i A_i x                       in training and in answering, no routing, no task identity
    Ĥ_t = H_t − M M^T H_t,   A_t = the r first left singular vectors of Ĥ_t, as rows
    after the task: M ← [M, U_k], the fewest further left singular vectors of (I − M M^T) H_t with which M holds ε_t of ‖H_t‖²
    ε_t = ε + (1 − ε) t / T

with H_t the inputs of a linear, one column a token, and M an orthonormal basis; once M has more than d_in / 2 columns a basis of its
complement is kept in its place, which only shrinks. The paper's letters are turned round: its B_t is the A here, its A_t the B.

Choices the paper leaves open for multimodal models, and ours:
  * Linears: all of the language model, each with a memory of its own; those that read the same, as queries, keys and values do,
    have one. The projector learns on from task to task, as for every method here, and nothing holds it.
  * H_t: the real tokens of `samples` of the task, drawn at random, seen before it and, for M, after it. H Hᵀ is kept while it
    is looked at, never H. A basis that is stored has at most d_in / 2 columns.
  * Rank: B alone trains, so the same number of trained parameters gives a larger rank than a LoRA has.
  * Directions that are not there: where fewer than r lie outside, the rows left over are zero and learn nothing.
  * T: a method is not told how long the stream is, so `horizon` is an option; from task T on ε_t stays at its last value.

On LLaVA-1.5-7B the bases can come to 2.74 thousand million numbers, Σ d_in² / 2 over the four different inputs of each of 32 layers; how many
they are, is the tasks' to say, and a run's ledger counts them.

Held against:
  paper     arXiv 2404.00228
  code      liangyanshuo/InfLoRA@e08b00e, methods/inflora.py, models/vit_inflora.py and configs/cifar100_inflora.json
  verdict   equal: A of every task, the memory after every task in both of its forms, layer outputs and the gradient of B
            (tests/oracles/test_inflora.py)
  differs   directions: theirs takes singular vectors of (I − M Mᵀ) H Hᵀ and counts their squared singular values, the paper's and ours
            are those of (I − M Mᵀ) H; ε of the fourth powers is reached sooner, so that less is remembered there
  differs   size of M: theirs leaves out the vector with which ε is reached after the first task, the paper's and ours takes it in;
            one column
  differs   scale: theirs divides A by √3 and has no α/r, ours has rows of length 1 and the recipe's s; another step, the same
            space
  differs   place: theirs is on keys and values of a vision transformer, which share one memory, ours on all linears; more is
            remembered and more is free
  differs   first task: theirs stops where the first task fills more than half of the inputs, ours turns to the complement at once;
            nothing where it goes on
  differs   samples: theirs looks at all training samples, ours at 128; M is an estimate
  variants  `variant=released` has the code's directions, size of M and scale of A
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from cl_zoo import Backbone, Batch, Recipe, Task, hookimpl
from cl_zoo.nn import (
    BankLayer,
    ExpertBank,
    KeepsExperts,
    adapters,
    draw_samples,
    full_precision,
    input_products,
    rank_of_ups,
)

Variant = Literal["paper", "released"]

AT_ONCE = 4
"""Decoder layers whose inputs are looked at in one pass; each takes (Σ d_in²) numbers meanwhile."""
THERE = 1e-6
"""Singular values below this share of the largest possible one are rounding."""


class Space(NamedTuple):
    """What the inputs of old tasks span in a linear.

    Attributes:
        basis: orthonormal columns (d_in, k).
        free: whether they span what is left over by the old tasks, instead of what these take.
    """

    basis: Tensor
    free: bool = False


class InfLoRA(KeepsExperts):
    """A new expert per task that reads what old tasks do not."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        variant: Literal["paper", "released"] = Field(
            "paper", description="directions of H and rows of length 1, or of H Hᵀ and rows of length 1/√3"
        )
        epsilon: float = Field(
            0.95, gt=0, le=1, description="ε: share of ‖H‖² that M holds after the first task"
        )
        horizon: int = Field(10, ge=1, description="T: tasks over which ε grows towards 1")
        samples: int = Field(128, ge=1, description="samples per task for H")

    def __init__(self, options: Options) -> None:
        self.options = options
        self.spaces: dict[str, Space] = {}  # M, by layer

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> ExpertBank:
        self.backbone = backbone
        self.bank = adapters(backbone, recipe, "t0", rank=rank_of_ups(backbone, recipe))
        return self.bank

    @hookimpl
    def before_task(self, model: nn.Module, task: Task, batches: Sequence[Batch]) -> None:
        new = self.bank.learn(task, stacked=True)
        for layers, products in self._look(model, batches):
            space, rank = self.spaces.get(layers[0].path), layers[0].bank_down[new].shape[0]
            rows = directions(products, space, rank, self.options.variant)
            for layer in layers:
                layer.bank_down[new].data.copy_(rows)
        for layer in self.bank.layers:
            layer.bank_down[new].requires_grad_(False)

    @hookimpl
    def after_task(self, model: nn.Module, task: Task, batches: Sequence[Batch]) -> dict[str, float]:
        o = self.options
        epsilon = o.epsilon + (1 - o.epsilon) * min(task.index, o.horizon - 1) / o.horizon
        for layers, products in self._look(model, batches):
            space = widened(products, self.spaces.get(layers[0].path), epsilon, o.variant)
            self.spaces |= {layer.path: space for layer in layers}
        return {"inflora/taken": math.fsum(map(taken, self.spaces.values())) / max(len(self.spaces), 1)}

    @hookimpl
    def build_inference_model(self, tasks_seen: Sequence[Task]) -> ExpertBank:
        self.bank.answer(tasks_seen)  # the sum of all
        return self.bank

    def _look(self, model: nn.Module, batches: Sequence[Batch]) -> Iterator[tuple[list[BankLayer], Tensor]]:
        """All linears with H Hᵀ of their inputs, those that read the same together; none where there are no samples.

        Every process looks at all samples, one by one: small directions are rounding's to turn, and would not be the same in
        other batches.
        """
        drawn = draw_samples(batches, self.options.samples)
        depths = sorted({layer.depth for layer in self.bank.layers}) if len(batches) else []
        for start in range(0, len(depths), AT_ONCE):
            here = [layer for layer in self.bank.layers if layer.depth in depths[start : start + AT_ONCE]]
            alone = (self.backbone.batch([sample], answers=True) for sample in drawn)
            found = input_products(model, here, alone)
            with full_precision(here[0].made["device"]):
                yield from self._alike(found)

    def _alike(self, found: Mapping[BankLayer, Tensor]) -> list[tuple[list[BankLayer], Tensor]]:
        """Linears one after the other with equal inputs now and before, such as queries, keys and values, as one."""
        groups: list[tuple[list[BankLayer], Tensor]] = []
        for layer, products in found.items():
            layers, others = groups[-1] if groups else ([], products)
            before = [self.spaces.get(one.path) for one in (layer, *layers[:1])]
            if layers and before[0] is before[1] and torch.equal(products, others):
                layers.append(layer)
            else:
                groups.append(([layer], products))
        return groups

    def state_dict(self) -> dict[str, Any]:
        spaces = list({id(self.spaces[path]): self.spaces[path] for path in sorted(self.spaces)}.values())
        places = {id(space): place for place, space in enumerate(spaces)}
        of = {path: places[id(space)] for path, space in self.spaces.items()}
        return {**super().state_dict(), "spaces": [space._asdict() for space in spaces], "of": of}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        spaces = [Space(**kept) for kept in state["spaces"]]
        self.spaces = {path: spaces[place] for path, place in state["of"].items()}


def taken(space: Space) -> float:
    """Share of a linear's input directions that old tasks have taken."""
    rows, columns = space.basis.shape
    return 1 - columns / rows if space.free else columns / rows


def outside(products: Tensor, space: Space | None) -> Tensor:
    """What is left of columns (d_in, n) when the space of old tasks is taken off."""
    if space is None:
        return products
    part = space.basis @ (space.basis.T @ products)
    return part if space.free else products - part


def singular(products: Tensor, space: Space | None, variant: Variant) -> tuple[Tensor, Tensor]:
    """Left singular vectors (d_in, d_in) of what lies outside the old space, and their shares of the whole, the largest first.

    Of (I − M Mᵀ) H the squared singular values are the eigenvalues of (I − M Mᵀ) H Hᵀ (I − M Mᵀ).
    """
    left = outside(products, space)
    if variant == "released":
        U, S, _ = torch.linalg.svd(left)
        return U, S**2 / products.square().sum()
    both = outside(left.T, space)
    values, U = torch.linalg.eigh((both + both.T) / 2)
    return U.flip(1), values.flip(0).clamp(min=0) / products.trace()


@torch.no_grad()
def directions(products: Tensor, space: Space | None, rank: int, variant: Variant = "paper") -> Tensor:
    """A (rank, d_in) of a new task: the main directions of its inputs outside the old space.

    Args:
        products: H Hᵀ (d_in, d_in).
    """
    U, shares = singular(products, space, variant)
    there = shares > (THERE if variant == "paper" else THERE**2)
    rows = (U * there).T[:rank]
    made = products.new_zeros(rank, len(products))
    made[: len(rows)] = rows / math.sqrt(3) if variant == "released" else rows
    return made


@torch.no_grad()
def widened(products: Tensor, space: Space | None, epsilon: float, variant: Variant = "paper") -> Space:
    """The space with what a task's inputs need beyond it, so that it holds `epsilon` of them.

    Args:
        products: H Hᵀ (d_in, d_in).
    """
    U, shares = singular(products, space, variant)
    held = 1 - shares.sum() + torch.cat([shares.new_zeros(1), shares.cumsum(0)[:-1]])
    more = int((held < epsilon).sum())  # the fewest columns with which it does
    if space is None:
        more = max(more - 1, 1) if variant == "released" else more
        space = Space(U[:, :more].contiguous())
    elif more and space.free:
        basis, gone = space.basis, U[:, :more]
        left = torch.linalg.svd(basis - gone @ (gone.T @ basis), full_matrices=False).U
        space = Space(left[:, : max(basis.shape[1] - more, 0)].contiguous(), free=True)
    elif more:
        space = Space(torch.cat([space.basis, U[:, :more]], 1)[:, : len(U)])
    if not space.free and taken(space) > 1 / 2:
        columns = torch.linalg.qr(space.basis, mode="complete").Q
        space = Space(columns[:, space.basis.shape[1] :].contiguous(), free=True)
    return space
