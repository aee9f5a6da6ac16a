"""Directions of low-rank updates: what some of them span together, and the singular vectors of one without its full matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def span(columns: Sequence[Tensor]) -> Tensor:
    """An orthonormal basis (d, k) of what the columns of some matrices (d, r) span together, k ≤ Σr."""
    basis: Tensor = torch.linalg.qr(torch.cat(list(columns), 1)).Q
    return basis


def singular(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (d_out, k), σ (k,) falling and V (k, d_in) with BA = U diag(σ) V, k ≤ r, from A (r, d_in) and B (d_out, r).

    The full matrix is never made: B = QR, and the decomposition is that of RA.
    """
    Q, R = torch.linalg.qr(up)
    U, sizes, V = torch.linalg.svd(R @ down, full_matrices=False)
    return Q @ U, sizes, V


def strongest(
    down: Tensor, up: Tensor, *, above: float, known: Sequence[Tensor], new: float, ranks: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """A (r, d_in) and B (d_out, r) of the directions of an update BA that are worth an expert's rows.

    Of the largest singular values those above a bound are taken whose v lies outside the span Q of what is known, as far as is
    asked; then the largest others up to the least r. √σ stands in A and in B, and in A the part of v that is outside, at length one.

    Args:
        down, up: A (k, d_in) and B (d_out, k) of the update.
        above: least σ.
        known: A of other experts, none at all for no Q.
        new: least length of v − QQᵀv.
        ranks: least and largest r; r is never more than k.
    """
    U, sizes, V = singular(down, up)
    U, sizes, V = U[:, : ranks[1]], sizes[: ranks[1]], V[: ranks[1]].T
    taken = sizes > above
    if known:
        Q = span([one.T for one in known])
        outside = V - Q @ (Q.T @ V)
        lengths = outside.norm(dim=0)
        V = torch.where(lengths > 1e-6, outside / lengths.clamp(min=1e-12), V)  # what is all inside stays
        taken = taken & (lengths > new)
    missing = max(0, max(1, ranks[0]) - int(taken.sum()))
    chosen = torch.cat([taken.nonzero()[:, 0], (~taken).nonzero()[:, 0][:missing]])
    root = sizes[chosen].clamp(min=1e-12).sqrt()
    return (V[:, chosen] * root).T, U[:, chosen] * root
