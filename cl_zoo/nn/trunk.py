"""One A for all experts, whose B are weighed once for a whole row: y + s · (Σ gᵢ Bᵢ) A x, in few operations.

    g of logits W x₀, x₀ the first real token of the row        `Trunk` gives z = A x and the logits, `ByRow` the rest

As g is the same for all tokens of a row, the B of a row are added up before they meet z, one matrix (d_out, r) for each row. So nothing is as wide as all
experts together, and the gradients of g and of the B are two small products of that matrix's own gradient. What g makes of the logits is the mix's.

Sums over tokens come before those over experts, in another order than in torch's own operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cl_zoo.nn.gated import dropped, put_back


class Trunk(torch.autograd.Function):
    """z = A x (rows, tokens, r) of what dropout leaves of x, and W x₀ (rows, E) of x itself in the type of W.

    Takes x (rows, tokens, d_in), W (E, d_in), the places of the x₀ among all tokens (rows,), the probability of the dropout, the type of z, and A.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, router: Tensor, first: Tensor, p: float, kind: torch.dtype, down: Tensor
    ) -> tuple[Tensor, Tensor]:
        read, a = x.to(kind), down.to(kind)
        seen, kept = dropped(read, p) if p else (read, None)
        start = x.reshape(-1, x.shape[-1]).index_select(0, first).to(router.dtype)
        with torch.autocast(x.device.type, enabled=False):
            logits = start @ router.T
        ctx.p, ctx.of, ctx.first = p, down.dtype, first
        ctx.save_for_backward(x, seen, kept, a, start, router, down)
        return F.linear(seen, a), logits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, seen, kept, a, start, router, down = ctx.saved_tensors
        for_z, for_logits = gradients
        needs = (*ctx.needs_input_grad[:2], ctx.needs_input_grad[5])
        if torch.is_grad_enabled():  # a gradient of the gradient is one of the expression written out
            noise = None if kept is None else put_back(torch.ones_like(seen), kept, ctx.p)
            for_x, for_router, for_down = _trunk(
                ctx.first, noise, a.dtype, (x, router, down), gradients, needs
            )
            return for_x, for_router, None, None, None, for_down
        back, for_x = for_z.reshape(-1, a.shape[0]), None
        if needs[0]:
            for_x = (back @ a).view(x.shape)
            for_x = (for_x if kept is None else put_back(for_x, kept, ctx.p)).to(x.dtype)
            for_x.view(-1, x.shape[-1]).index_add_(0, ctx.first, (for_logits @ router).to(x.dtype))
        for_router = for_logits.T @ start if needs[1] else None
        for_down = (back.T @ seen.reshape(-1, x.shape[-1])).to(ctx.of) if needs[2] else None
        return for_x, for_router, None, None, None, for_down


class ByRow(torch.autograd.Function):
    """y + s · z (Σ gᵢ Bᵢ)ᵀ, put into y (rows, tokens, d_out), of z (rows, tokens, r) and g (rows, E).

    Takes also all B turned round (E r, d_out), s, and the B themselves (d_out, r), which are of one rank.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, z: Tensor, g: Tensor, up: Tensor, scale: float, *members: Tensor
    ) -> Tensor:
        weights, every = g.to(z.dtype), up.to(z.dtype).view(g.shape[1], -1)
        each = (weights @ every).view(len(z), z.shape[-1], -1)  # Σ gᵢ Bᵢ of each row, turned round
        y.baddbmm_(z, each, alpha=scale)
        ctx.scale, ctx.of = scale, up.dtype
        ctx.save_for_backward(z, g, weights, every, each, *members)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        z, g, weights, every, added, *members = ctx.saved_tensors
        (whole,) = gradients
        needs = (*ctx.needs_input_grad[1:3], *ctx.needs_input_grad[5:])
        if torch.is_grad_enabled():
            for_z, for_g, *each = _by_row(ctx.scale, (z, g, *members), whole, needs)
            return whole, for_z, for_g, None, None, *each
        for_z = _scaled(whole, added.mT, ctx.scale) if needs[0] else None
        if not any(needs[1:]):
            return whole, for_z, None, None, None, *[None] * len(members)
        for_each = _scaled(z.mT, whole, ctx.scale).flatten(1)
        for_g = (for_each @ every.T).to(g.dtype) if needs[1] else None
        ups: list[Tensor | None] = [None] * len(members)
        if any(needs[2:]):
            turned = (weights.T @ for_each).to(ctx.of).view(len(members), z.shape[-1], -1)
            ups = [one.T if need else None for one, need in zip(turned, needs[2:], strict=True)]
        return whole, for_z, for_g, None, None, *ups


def _scaled(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """s · left @ right (rows, n, m) in one operation."""
    nothing = left.new_empty(left.shape[0], left.shape[1], right.shape[2])
    return torch.baddbmm(nothing, left, right, beta=0, alpha=scale)


def _trunk(
    first: Tensor,
    noise: Tensor | None,
    kind: torch.dtype,
    given: Sequence[Tensor],
    gradients: Sequence[Tensor],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of x, W and A by torch's own operations, so that they have gradients themselves."""
    x, router, down = given
    with torch.enable_grad():
        read = x.to(kind)
        z = F.linear(read if noise is None else read * noise, down.to(kind))
        logits = x.reshape(-1, x.shape[-1])[first].to(router.dtype) @ router.T
        return _differentiated((z, logits), given, gradients, needs)


def _by_row(
    scale: float, given: Sequence[Tensor], whole: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of z, g and all B by torch's own operations."""
    z, g, *members = given
    with torch.enable_grad():
        each = torch.einsum("be,edr->bdr", g.to(z.dtype), torch.stack(members).to(z.dtype))
        return _differentiated((scale * z @ each.mT,), given, (whole,), needs)


def _differentiated(
    made: Sequence[Tensor], given: Sequence[Tensor], gradients: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    wanted = [one for one, need in zip(given, needs, strict=True) if need]
    found = torch.autograd.grad(made, wanted, gradients, create_graph=True) if wanted else ()
    each = iter(found)
    return [next(each) if need else None for need in needs]
