"""The two thin products of an adapted layer, z = A x and y + s · B z, in as few operations as there can be.

A frozen model with adapters is bound by the number of operations that are launched, not by their size. Written out, an adapted linear takes
a product, a scaling, a product and a sum forward, and twice as many back; where experts are parameters of their own, also their join forward and a copy
of each one's gradient. Here a scaling and a sum are part of the product they belong to, and experts that lie one behind the other
in memory (`Joined`) are read as one and get their rows of one gradient. Nothing is kept for the backward pass but x, z and the matrices.

The order of all sums is that of the expressions written out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ALIGNED = 64
"""Bytes at whole multiples of which a matrix begins wherever torch puts it; products of others may end in other last bits."""


@dataclass(frozen=True)
class Joined:
    """Experts whose A, and whose B, lie one behind the other in memory, so that each table is one matrix without a copy.

    Attributes:
        downs, ups: names of the A and of the B, in the order in which they lie.
        rows, up: all A and what lies behind them (Σr + n, d_in), and all B turned round (Σr, d_out).
        places: where each of them begins in memory, as long as the tables hold them.
        beside: what lies behind the A (n, d_in), such as a router that reads the same x.
    """

    downs: tuple[str, ...]
    ups: tuple[str, ...]
    rows: Tensor
    up: Tensor
    places: tuple[int, ...]
    beside: nn.Parameter | None

    @property
    def down(self) -> Tensor:
        """All A (Σr, d_in)."""
        return self.rows if self.beside is None else self.rows[: -len(self.beside)]

    def holds(self, beside: Tensor) -> bool:
        """Whether this matrix lies behind the A."""
        if self.beside is None:
            return False
        return beside.data_ptr() == self.rows[-len(self.beside) :].data_ptr()

    def found(
        self, downs: Mapping[str, Tensor], ups: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], list[Tensor]] | None:
        """The tensors of the tables; `None` where these hold others or in another order, or where one lies elsewhere by now."""
        if (tuple(downs), tuple(ups)) != (self.downs, self.ups):
            return None
        a, b = [downs.get(name) for name in self.downs], [ups.get(name) for name in self.ups]
        there = [tensor for tensor in (*a, *b) if tensor is not None]
        if len(there) < len(self.places) or any(
            tensor.data_ptr() != place for tensor, place in zip(there, self.places, strict=True)
        ):
            return None
        return there[: len(a)], there[len(a) :]


@dataclass(frozen=True)
class Lying:
    """What a layer gives a mix that puts the whole update into y by itself.

    Attributes:
        joined: where the active experts lie.
        downs, ups: their A and their B (d_out, r), as they learn.
        scale: s.
        p: probability of the dropout on what the A read.
        kind: type of the products.
    """

    joined: Joined
    downs: list[Tensor]
    ups: list[Tensor]
    scale: float
    p: float
    kind: torch.dtype

    @property
    def rank(self) -> int | None:
        """r of every B, `None` where they differ."""
        ranks = {up.shape[1] for up in self.ups}
        return ranks.pop() if len(ranks) == 1 else None


def join(
    downs: Mapping[str, nn.Parameter], ups: Mapping[str, nn.Parameter], beside: nn.Parameter | None = None
) -> Joined | None:
    """Let these A (r, d_in) and these B (d_out, r) lie one behind the other; they stay the same parameters with the same values.

    The B are transposed in memory until `part`. Returns `None`, and does nothing, where there is nothing to join: a single expert, no values,
    or matrices that would not begin where torch lets them begin.

    Args:
        beside: what shall lie behind the A (n, d_in), in their type.
    """
    readers = [*downs.values(), *([] if beside is None else [beside])]
    width = [
        weight.element_size() * weight.shape[dim]
        for dim, table in ((1, readers), (0, ups.values()))
        for weight in table
    ]
    if len(ups) < 2 or readers[0].is_meta or any(size % ALIGNED for size in width):
        return None
    rows = torch.cat([weight.data for weight in readers])
    up = torch.cat([weight.data.T for weight in ups.values()])
    for weight, its in zip(readers, rows.split([len(one) for one in readers]), strict=True):
        weight.data = its
    for weight, its in zip(ups.values(), up.split([one.shape[1] for one in ups.values()]), strict=True):
        weight.data = its.T
    places = tuple(weight.data_ptr() for weight in (*downs.values(), *ups.values()))
    return Joined(tuple(downs), tuple(ups), rows, up, places, beside)


def part(weights: Sequence[nn.Parameter]) -> None:
    """Let each of these lie by itself again, row by row."""
    for weight in weights:
        weight.data = weight.data.clone(memory_format=torch.contiguous_format)


def written_out() -> bool:
    """Whether products must be written out: a compiler or a transform of functions wants to see them."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def untouched(module: nn.Module) -> bool:
    """Whether nobody waits for a call of this module, so that what it computes may be computed without one."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return not any(hooks) and "forward" not in vars(module)


class Down(torch.autograd.Function):
    """z (..., r) of x (..., d_in) and A (r, d_in); `members` are the parameters that lie in A, if A is not one itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, *members: Tensor) -> Tensor:
        factor = down.to(x.dtype)
        ctx.rows, ctx.kind = [member.shape[0] for member in members], down.dtype
        ctx.save_for_backward(x, factor, *members)
        return F.linear(x, factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, factor, *members = ctx.saved_tensors
        if members and torch.is_grad_enabled():  # a gradient of the gradient depends on them
            factor = torch.cat(members).to(x.dtype)
        back = gradients[0].reshape(-1, factor.shape[0])
        for_x = (back @ factor).view(x.shape) if ctx.needs_input_grad[0] else None
        needs = ctx.needs_input_grad[1:]
        if not any(needs):
            return for_x, None, *[None] * len(members)
        whole = (back.T @ x.reshape(-1, x.shape[-1])).to(ctx.kind)
        return for_x, *_shared(whole, needs, ctx.rows)


class Up(torch.autograd.Function):
    """y + s · B z, put into y (..., d_out), of z (..., r) and B turned round (r, d_out); members as in `Down`, not turned round (d_out, r)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, up: Tensor, scale: float, *members: Tensor) -> Tensor:
        factor = up.to(z.dtype)
        ctx.rows, ctx.kind, ctx.scale = [member.shape[1] for member in members], up.dtype, scale
        ctx.save_for_backward(z, factor, *members)
        y.view(-1, y.shape[-1]).addmm_(z.reshape(-1, z.shape[-1]), factor, alpha=scale)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | float | None, ...]:
        z, factor, *members = ctx.saved_tensors
        if members and torch.is_grad_enabled():
            factor = torch.cat([member.T for member in members]).to(z.dtype)
        (whole,) = gradients
        back = whole.reshape(-1, whole.shape[-1])
        for_z = scaled(back, factor.T, ctx.scale).view(z.shape) if ctx.needs_input_grad[1] else None
        needs = (ctx.needs_input_grad[2], *ctx.needs_input_grad[4:])
        if not any(needs):
            return whole, for_z, None, None, *[None] * len(members)
        flat = z.reshape(-1, z.shape[-1])
        if not members:  # in memory B lies row by row
            return whole, for_z, scaled(back.T, flat, ctx.scale).T.to(ctx.kind), None
        turned = scaled(flat.T, back, ctx.scale).to(ctx.kind)
        _, *rows = _shared(turned, needs, ctx.rows)
        return whole, for_z, None, None, *(None if row is None else row.T for row in rows)


def scaled(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """s · left @ right (n, m) in one operation, of left (n, k) and right (k, m)."""
    nothing = left.new_empty(left.shape[0], right.shape[1])
    return torch.addmm(nothing, left, right, beta=0, alpha=scale)


def _shared(whole: Tensor, needs: Sequence[bool], rows: Sequence[int]) -> list[Tensor | None]:
    """The gradient of the joined matrix for itself, or of each member that learns its rows of it."""
    if not rows:
        return [whole]
    return [None, *(part if need else None for part, need in zip(whole.split(rows), needs[1:], strict=True))]
