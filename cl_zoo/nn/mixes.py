"""The mixes: what stands between the down- and up-projections of the bank's experts.

A mix applies G of `y = W x + s · B (G ⊗ I_r) A x` to z = A x. It is called with z (..., Σr of the As), the layer's input
x (..., d_in) and the rank of every active expert, and returns (..., Σr of the Bs).

A mix whose G depends on no input may define `fold(downs, ups) -> (A, B)`: one A (r, d_in) and one B (d_out, r) in the place of
those of the active experts, with B A = Σᵢⱼ Bᵢ Gᵢⱼ Aⱼ. Then a layer's update can be exported as one LoRA or merged into W.

A mix whose G is the softmax of a router, for each token of its own, may define `gated() -> nn.Linear | None`, the router; none where it is
more than that. Then A, B and the router are exported as they are.

In learning, experts that lie together are read in few operations. A mix that has some of its own may define `put(y, x, lying) -> Tensor | None`: y with
the whole update s · B (G ⊗ I_r) A x in it, `None` where it cannot; what it reads x by, and what should lie behind the A for it, is `beside() -> Parameter | None`.
It is called in the place of the mix itself, so that a class made from another one, which may do more, must not inherit it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from cl_zoo.nn.gated import by_token
from cl_zoo.nn.products import Lying, untouched


class PerToken(nn.Module):
    """G = diag(g(x)) with g a softmax router over the layer's input: Σ gᵢ(x) BᵢAᵢ x."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router = router

    def gates(self, x: Tensor) -> Tensor:
        """g(x) (..., experts), from x in the type of the router."""
        return torch.softmax(self.router(x), dim=-1)

    def gated(self) -> nn.Linear | None:
        """The router, where it is a linear."""
        return self.router if isinstance(self.router, nn.Linear) else None

    def beside(self) -> nn.Parameter | None:
        """W_g; none of a class made from this one, which may do more."""
        return plain_router(self.router) if type(self) is PerToken and untouched(self) else None

    def put(self, y: Tensor, x: Tensor, lying: Lying) -> Tensor | None:
        """With W_g behind all A."""
        return by_token(y, x, lying, self.beside()) if len(lying.downs) == len(lying.ups) else None

    def forward(self, z: Tensor, x: Tensor, ranks: Sequence[int]) -> Tensor:
        return weighted(z, self.gates(x.to(z.dtype)), ranks)


class PerSample(nn.Module):
    """G = diag(w) with one weight per sample and expert, set once per batch: Σ wᵢ BᵢAᵢ x.

    `weights` (batch, experts) stands until it is set again, so the prefill, the decoding steps and a recomputed forward
    all see the same route. Beam search multiplies the batch; the weights follow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: Tensor | None = None

    def forward(self, z: Tensor, x: Tensor, ranks: Sequence[int]) -> Tensor:
        if self.weights is None:
            raise RuntimeError("no route is set; set PerSample.weights in prepare(batch)")
        return weighted(z, per_sample(self.weights, z), ranks)


class SharedDown(nn.Module):
    """G = a column of gates on one shared A: (Σ gᵢ Bᵢ) A x.

    `gate` maps (z, x) to weights per token (..., experts) or per sample (batch, experts).
    """

    def __init__(self, gate: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, z: Tensor, x: Tensor, ranks: Sequence[int]) -> Tensor:
        if set(ranks) != {z.shape[-1]}:
            raise ValueError(
                f"SharedDown mixes experts on one shared A; here {len(ranks)} experts read several"
            )
        gates = self.gate(z, x.to(z.dtype))
        if gates.dim() < z.dim():
            gates = per_sample(gates, z)
        _one_each(gates, ranks)
        return rearrange(gates.to(z)[..., :, None] * z[..., None, :], "... e r -> ... (e r)")

    def gated(self) -> nn.Linear | None:
        """The router of a gate that says it has no other part."""
        return self.gate.gated() if hasattr(self.gate, "gated") else None

    def beside(self) -> nn.Parameter | None:
        """W_g of a gate that says it has no other part."""
        of = getattr(self.gate, "beside", None)
        return of() if of is not None and type(self) is SharedDown and untouched(self) else None

    def put(self, y: Tensor, x: Tensor, lying: Lying) -> Tensor | None:
        """With W_g behind the one A."""
        return by_token(y, x, lying, self.beside()) if len(lying.downs) == 1 else None


class AllOnes(nn.Module):
    """G = 1: every B reads every A, (ΣBᵢ)(ΣAᵢ) x. All experts need the same rank."""

    def forward(self, z: Tensor, x: Tensor, ranks: Sequence[int]) -> Tensor:
        if len(set(ranks)) > 1 or z.shape[-1] != sum(ranks):
            raise ValueError(
                f"AllOnes needs experts of one rank, each with its own A; the ranks are {list(ranks)}"
            )
        total = rearrange(z, "... (e r) -> ... e r", e=len(ranks)).sum(-2)
        return repeat(total, "... r -> ... (e r)", e=len(ranks))

    def fold(self, downs: Sequence[Tensor], ups: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """ΣAᵢ and ΣBᵢ."""
        return torch.stack(list(downs)).sum(0), torch.stack(list(ups)).sum(0)


class Scaled(nn.Module):
    """G = ε: the update of the active experts, ε times as large."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor, x: Tensor, ranks: Sequence[int]) -> Tensor:
        return self.factor * z

    def fold(self, downs: Sequence[Tensor], ups: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """One A and one B of all ranks, with ε in B."""
        return torch.cat(list(downs), 0), self.factor * torch.cat(list(ups), 1)


def plain_router(router: nn.Module) -> nn.Parameter | None:
    """W_g (E, d_in) of a router that is a linear without bias and nothing else."""
    plain = type(router) is nn.Linear and router.bias is None and untouched(router)
    return cast(nn.Parameter, router.weight) if plain else None


def per_sample(weights: Tensor, z: Tensor) -> Tensor:
    """Weights (batch, experts) shaped to meet z (batch × beams, ..., Σr); beam search repeats a sample's row in place.

    Raises:
        ValueError: z does not hold a whole number of rows for each sample.
    """
    beams, rest = z.shape[0] // weights.shape[0], z.shape[0] % weights.shape[0]
    if rest or not beams:
        raise ValueError(
            f"the route has {weights.shape[0]} rows but the batch {z.shape[0]}; set it for each batch in prepare(batch)"
        )
    rows = weights.to(z) if beams == 1 else weights.to(z).repeat_interleave(beams, 0)
    return rows.reshape(rows.shape[0], *[1] * (z.dim() - 2), rows.shape[1])


def spread(weights: Tensor, ranks: Sequence[int]) -> Tensor:
    """One weight per expert (..., experts) to one per rank row (..., Σr).

    Raises:
        ValueError: there is not one weight for each expert.
    """
    _one_each(weights, ranks)
    if len(set(ranks)) == 1:
        return weights.repeat_interleave(ranks[0], dim=-1)
    pieces = [weights[..., i : i + 1].expand(*weights.shape[:-1], rank) for i, rank in enumerate(ranks)]
    # repeat_interleave by a tensor would wait for the device in each layer
    return torch.cat(pieces, dim=-1)


def _one_each(weights: Tensor, ranks: Sequence[int]) -> Tensor:
    if weights.shape[-1] != len(ranks):
        raise ValueError(f"the mix gives {weights.shape[-1]} weights but {len(ranks)} experts are active")
    return weights


def weighted(z: Tensor, weights: Tensor, ranks: Sequence[int]) -> Tensor:
    """z (..., Σr) with each expert's rows times its weight (..., experts).

    Raises:
        ValueError: there is not one weight for each expert, or z has not the rows of all of them.
    """
    if z.shape[-1] != sum(ranks):
        raise ValueError(f"{len(ranks)} active experts share an A; their mix is SharedDown")
    if len(set(ranks)) == 1:
        each = torch.unflatten(z, -1, (len(ranks), -1))
        return (each * _one_each(weights, ranks)[..., None]).flatten(-2)
    return z * spread(weights, ranks)
