"""Experts that a router weighs, as one function with a backward pass of its own: y + s · B (G ⊗ I_r) A x.

    G = diag(softmax(W_g x)), for each token                      each expert reads its own A, or all read one: `ByToken`

In torch's own operations router, softmax and weighting take three forward and seven back in each linear, eight where all experts read one A, beside
the products that every adapter takes. Where W_g lies behind A in memory and nothing is dropped out, one product gives z = A x and the logits, and one
each takes their gradients back to x and to both matrices: two operations more forward and four back. A dropout is on what the A read and not on what
the router reads, so that each has its own products there: one more forward, two back.

Tokens run along the rows of all that is computed between the products, so that logits, z and the gradients of both lie in one piece each. Sums over
the ranks of an expert and over z and logits are in another order than in torch's own operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from cl_zoo.nn.products import Lying, scaled


def by_token(y: Tensor, x: Tensor, lying: Lying, router: Tensor | None) -> Tensor | None:
    """y (..., d_out) with s · B (G ⊗ I_r) A x in it; `None` where W_g (E, d_in) does not lie behind the A, or experts differ in rank."""
    if (
        router is None
        or not lying.joined.holds(router)
        or lying.rank is None
        or len(router) != len(lying.ups)
    ):
        return None
    joined, members = lying.joined, (*lying.downs, *lying.ups, router)
    made = ByToken.apply(
        y, x.to(lying.kind), joined.rows, joined.up, lying.scale, lying.p, len(lying.downs), *members
    )
    return cast(Tensor, made)


class ByToken(torch.autograd.Function):
    """y + s · B (G ⊗ I_r) A x, put into y (..., d_out), with the softmax of a router for G.

    Takes x (..., d_in), all A and behind them W_g (Σr of the As + E, d_in), all B turned round (E r, d_out), s, the probability of a dropout on what the
    A read, how many A there are, and the parameters that lie in the matrices: all A, all B (d_out, r), W_g (E, d_in). All B have one rank, and there is
    one A or one for each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        rows: Tensor,
        up: Tensor,
        scale: float,
        p: float,
        downs: int,
        *members: Tensor,
    ) -> Tensor:
        kind, experts = x.dtype, len(members[-1])
        a, b, flat = rows.to(kind), up.to(kind), x.reshape(-1, x.shape[-1])
        seen, kept = dropped(flat, p) if p else (None, None)
        both = _apart(a, experts, None if seen is None else seen.T, flat.T)
        z = both[:-experts].view(downs, (len(a) - experts) // downs, len(flat))
        g = torch.softmax(both[-experts:], 0, dtype=fp32_at_least(kind))
        h = torch.mul(z, g[:, None], out=z.new_empty(experts, *z.shape[1:]))  # (E, r, tokens)
        y.view(-1, y.shape[-1]).addmm_(h.flatten(0, 1).T, b, alpha=scale)
        ctx.scale, ctx.p, ctx.kind = scale, p, rows.dtype
        ctx.save_for_backward(x, seen, kept, a, b, z, g, h, *members)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, seen, kept, a, b, z, g, h, *members = ctx.saved_tensors
        (whole,) = gradients
        needs, downs = (ctx.needs_input_grad[1], *ctx.needs_input_grad[7:]), len(z)
        none = (None,) * 5
        if torch.is_grad_enabled():  # a gradient of the gradient is one of the expression written out
            noise = None if kept is None else put_back(torch.ones_like(seen), kept, ctx.p).view(x.shape)
            for_x, *each = _written_out(whole, x, noise, members, needs, ctx.scale, downs)
            return whole, for_x, *none, *each
        back, flat = whole.reshape(-1, whole.shape[-1]), x.reshape(-1, x.shape[-1])
        both = _back(scaled(b, back.T, ctx.scale).view(h.shape), z, g)
        for_x, for_rows, for_ups = None, None, None
        if needs[0]:
            for_x = _together(both.T, a, len(g), kept, ctx.p).view(x.shape)
        if any(needs[1 : downs + 1]) or needs[-1]:
            for_rows = _apart(both, len(g), seen, flat).to(ctx.kind)
        if any(needs[downs + 1 : -1]):
            for_ups = scaled(h.flatten(0, 1), back, ctx.scale).to(ctx.kind)
        return whole, for_x, *none, *_shared(for_rows, for_ups, members, needs[1:], downs)


def dropped(x: Tensor, p: float, *, fused: bool | None = None) -> tuple[Tensor, Tensor]:
    """x with each entry dropped by probability p, and what `put_back` takes; the same draw as torch's own dropout.

    Args:
        fused: by the one operation that accelerators have for it; by default where torch's own dropout uses it.
    """
    if x.is_cuda if fused is None else fused:
        seen, kept = torch.native_dropout(x, p, True)
        return seen, kept
    kept = torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)
    return x * kept, kept


def put_back(gradient: Tensor, kept: Tensor, p: float) -> Tensor:
    """The gradient of x from that of what dropout has left of it."""
    if kept.dtype is torch.bool:
        return cast(Tensor, torch.ops.aten.native_dropout_backward(gradient, kept, 1 / (1 - p)))
    return gradient * kept


def fp32_at_least(kind: torch.dtype) -> torch.dtype:
    """The type of a softmax of such logits."""
    return torch.float32 if kind.itemsize < torch.float32.itemsize else kind


def _apart(rows: Tensor, experts: int, seen: Tensor | None, x: Tensor) -> Tensor:
    """(R + E, k) times (k, n): of the R rows with what dropout has left of x, where it was there, and of the E with x."""
    if seen is None:
        return rows @ x
    found = x.new_empty(len(rows), x.shape[1])
    torch.mm(rows[:-experts], seen, out=found[:-experts])
    torch.mm(rows[-experts:], x, out=found[-experts:])
    return found


def _together(both: Tensor, rows: Tensor, experts: int, kept: Tensor | None, p: float) -> Tensor:
    """(tokens, R + E) times (R + E, d_in), the R through the dropout where there was one."""
    if kept is None:
        return both @ rows
    through = put_back(both[:, :-experts] @ rows[:-experts], kept, p)
    return through.addmm_(both[:, -experts:], rows[-experts:])


def _back(for_h: Tensor, z: Tensor, g: Tensor) -> Tensor:
    """The gradients of z and of the logits in one piece (R + E, tokens), from that of h (E, r, tokens).

        dz = g dh, of one z for all experts Σ_e g dh
        dlogits = q − g δ,  q = Σ_r z g dh,  δ = Σ_e q

    All these sums are one product.
    """
    experts, rank, tokens = for_h.shape
    rows, shared = z.shape[0] * z.shape[1], len(z) < experts
    found = g.new_empty(rows + experts + 1, tokens)  # dz, q and δ
    sums = _sums(experts, rank, shared, g.dtype, g.device)
    if shared:
        terms = g.new_empty(2, *for_h.shape)
        torch.mul(for_h, g[:, None], out=terms[0])
        torch.mul(terms[0], z, out=terms[1])
        torch.mm(sums, terms.flatten(0, 2), out=found)
    else:
        weighed = torch.mul(for_h, g[:, None], out=found[:rows].view(for_h.shape))
        torch.mm(sums, (weighed * z).flatten(0, 1), out=found[rows:])
    both = found[:-1]
    both[rows:].addcmul_(g, found[-1:], value=-1)
    return both.to(z.dtype)


@lru_cache
def _sums(experts: int, rank: int, shared: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Ones and zeros that add up rows (E r): for each expert, and over all; where z is shared, before them other rows (E r) over the experts."""
    each = torch.eye(experts, dtype=dtype, device=device).repeat_interleave(rank, 1)
    over = torch.cat([each, torch.ones_like(each[:1])])
    if not shared:
        return over
    return torch.block_diag(torch.eye(rank, dtype=dtype, device=device).repeat(1, experts), over)


def _shared(
    rows: Tensor | None, ups: Tensor | None, members: Sequence[Tensor], needs: Sequence[bool], downs: int
) -> list[Tensor | None]:
    """What of the gradients of all A with W_g and of all B turned round belongs to each member that learns."""
    found: list[Tensor | None] = [None] * len(members)
    if rows is not None:
        *found[:downs], found[-1] = torch.split(rows, [len(one) for one in (*members[:downs], members[-1])])
    if ups is not None:
        found[downs:-1] = [one.T for one in torch.split(ups, [one.shape[1] for one in members[downs:-1]])]
    return [one if need else None for one, need in zip(found, needs, strict=True)]


def _written_out(
    whole: Tensor,
    x: Tensor,
    noise: Tensor | None,
    members: Sequence[Tensor],
    needs: Sequence[bool],
    scale: float,
    downs: int,
) -> list[Tensor | None]:
    """The gradients of x and of all members by torch's own operations, so that they have gradients themselves."""
    a, b, router = members[:downs], members[downs:-1], members[-1]
    with torch.enable_grad():
        seen = x if noise is None else x * noise
        z = torch.unflatten(F.linear(seen, torch.cat(list(a)).to(x.dtype)), -1, (downs, -1))
        g = torch.softmax(F.linear(x, router.to(x.dtype)), -1)
        update = scale * F.linear((z * g[..., None]).flatten(-2), torch.cat(list(b), 1).to(x.dtype))
        wanted = [one for one, need in zip((x, *members), needs, strict=True) if need]
        found = iter(torch.autograd.grad(update, wanted, whole, create_graph=True) if wanted else ())
    return [next(found) if need else None for need in needs]
