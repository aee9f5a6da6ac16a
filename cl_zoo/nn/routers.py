"""Routers: small networks that say how much each expert counts, for a token or for a whole row.

    g(x)  = softmax(W_g x)       for each token                                   `router`, `TokenGate`
    g(x₀) = softmax(W_t x₀)      for the whole row, from its first real token     `FirstToken`, `Prefill`
    g(x̄)                         for the whole row, from the mean of its prompt   `PromptMean`

Padding stands left of the first real token, beam search multiplies the rows, a decoding step sees the newest token only, and a
recomputed forward must see what the first one saw: `FirstToken` and `Prefill` take care of these four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo.batches import Batch, forward
from cl_zoo.nn.layer import BankLayer
from cl_zoo.nn.mixes import per_sample, plain_router
from cl_zoo.nn.products import Lying, untouched, written_out
from cl_zoo.nn.still import evaluating
from cl_zoo.nn.trunk import ByRow, Trunk
from cl_zoo.processes import share, total


def router(layer: BankLayer, experts: int) -> nn.Linear:
    """W_g of one layer, beside its frozen weight: (..., d_in) to one logit per expert (..., experts), without bias."""
    return nn.Linear(layer.in_features, experts, bias=False, **layer.made)


class TokenGate(nn.Module):
    """The softmax of a router, as the gate of a `SharedDown` mix: (z, x) with x (..., d_in) to weights (..., experts) that sum to one."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router = router

    def forward(self, _: Tensor, x: Tensor) -> Tensor:
        return self.router(x).softmax(-1)  # type: ignore[no-any-return]  # torch leaves modules untyped

    def gated(self) -> nn.Linear | None:
        """The router, where it is a linear."""
        return self.router if isinstance(self.router, nn.Linear) else None

    def beside(self) -> nn.Parameter | None:
        """W_g; none of a class made from this one, which may do more."""
        return plain_router(self.router) if type(self) is TokenGate and untouched(self) else None


class Prefill:
    """What `prepare(batch)` tells the mixes of all layers about a batch, and what they decide when they first see it.

    One object serves all layers. A model calls `start(batch.first_tokens)` in its `prepare`, with the names of the routers to
    choose from and the choice of each sample where routers are per task.

    Attributes:
        learning: name of the router that learns; it answers where nothing is chosen.
        first: (batch,) place of each sample's first real token.
        names, chosen: of the routers to choose from, and (batch,) which of them each sample gets.
        kept: by mix, p and g (rows, experts) of the prefill, for the tokens that are decoded behind it.
    """

    def __init__(self, learning: str) -> None:
        self.learning = learning
        self.start(None)

    def start(self, first: Tensor | None, names: Sequence[str] = (), chosen: Tensor | None = None) -> None:
        """A new batch: what was decided for the one before is forgotten."""
        self.first, self.names, self.chosen = first, names, chosen
        self.kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._places: tuple[int, Tensor] | None = None

    def tokens(self, x: Tensor) -> Tensor:
        """x₀ of every row, (rows, d), of a layer's input x (rows, tokens, d); rows = batch × beams.

        Raises:
            ValueError: nobody said where the first tokens are, or they are of another batch.
        """
        if self.first is None or x.shape[0] % len(self.first):
            raise ValueError(
                f"no first tokens are known for {x.shape[0]} rows; call prepare(batch) for each batch"
            )
        beams = x.shape[0] // len(self.first)
        places = self.first if beams == 1 else self.first.repeat_interleave(beams)
        places = places[:, None, None].expand(-1, 1, x.shape[-1])
        return x.gather(1, places)[:, 0]

    def places(self, x: Tensor) -> Tensor | None:
        """Where the x₀ stand among all tokens of x, (rows,), made once per batch; `None` where rows are not samples."""
        if self.first is None or len(self.first) != len(x):
            return None
        if self._places is None or self._places[0] != x.shape[1]:
            rows = torch.arange(len(x), device=x.device)
            self._places = x.shape[1], self.first + rows * x.shape[1]
        return self._places[1]


class FirstToken(nn.Module):
    """A mix with one weight per row and expert, decided by routers that see the row's first real token only.

    Works where all experts share one A and where each has its own.

    Args:
        experts: how many.
        prefill: shared with all layers.
        select: g (rows, experts) from p, the softmax of a router, and from which experts come first, ones and zeros of the same
            shape or `None`; by default p itself. It may leave some experts out.
        few: the same from the logits, where there is a way of fewer operations; by default `select` of their softmax.

    Attributes:
        routers: W (experts, d_in) by name; `learn` makes them.
        first: (experts,) by name of a router, one for the experts that come first with it; of none where nobody said so.
    """

    def __init__(
        self,
        layer: BankLayer,
        experts: int,
        prefill: Prefill,
        select: Callable[[Tensor, Tensor | None], Tensor] = lambda p, first: p,
        few: Callable[[Tensor, Tensor | None], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self._width, self.experts, self._made, self.prefill = layer.in_features, experts, layer.made, prefill
        self._select = select
        self._few = few or (lambda logits, first: select(logits.softmax(-1), first))
        self.routers, self.first = nn.ParameterDict(), nn.ParameterDict()

    def learn(self, name: str, first: Sequence[int] | None = None) -> None:
        """Let the router of this name learn and no other; it is made where it is not there yet.

        Args:
            first: places of the experts that come first with it; they are said once and hold from then on.
        """
        if first is not None and name not in self.first:
            ones = torch.zeros(self.experts, **self._made).index_fill_(
                0, torch.tensor(first, dtype=torch.long, device=self._made["device"]), 1.0
            )
            self.first[name] = nn.Parameter(ones, requires_grad=False)
        if name not in self.routers:
            self.routers[name] = nn.Linear(self._width, self.experts, bias=False, **self._made).weight
        for other, weight in self.routers.items():
            weight.requires_grad_(other == name)

    def forward(self, z: Tensor, x: Tensor, ranks: Sequence[int]) -> Tensor:
        """z (batch, tokens, r), or as many times as wide as there are experts where no A is shared, to (batch, tokens, Σr)."""
        g = per_sample(self.gates(x), z)
        trunks = rearrange(z, "... (a r) -> ... a r", r=ranks[0])  # one for all experts, or one each
        return rearrange(g[..., None] * trunks, "... e r -> ... (e r)")

    def gates(self, x: Tensor) -> Tensor:
        """g (rows, experts). In learning always from x: a recomputed forward must see what the first one saw."""
        if not self.training and self in self.prefill.kept:
            return self.prefill.kept[self][1]
        p = torch.softmax(self.logits(x), dim=-1)
        g = self._select(p, self._coming_first(p))
        if self.training:
            self.prefill.kept.pop(self, None)
        else:
            self.prefill.kept[self] = p.detach(), g.detach()
        return g

    def put(self, y: Tensor, x: Tensor, lying: Lying) -> Tensor | None:
        """In learning by the one router that learns, where all read one A."""
        now, places = self.prefill, self.prefill.places(x)
        learning = type(self) is FirstToken and self.training and now.chosen is None and untouched(self)
        if not learning or places is None or len(lying.downs) > 1 or lying.rank is None or y.dim() != 3:
            return None
        now.kept.pop(self, None)
        z, logits = Trunk.apply(x, self.routers[now.learning], places, lying.p, lying.kind, *lying.downs)
        g = self._few(logits, self._coming_first(logits))
        return cast(Tensor, ByRow.apply(y, z, g, lying.joined.up, lying.scale, *lying.ups))

    def _coming_first(self, p: Tensor) -> Tensor | None:
        """Ones and zeros (rows, experts), by each row's own router; nothing is made where no expert ever comes first."""
        now = self.prefill
        if not self.first:
            return None
        if now.chosen is None:
            return self.first[now.learning].expand_as(p) if now.learning in self.first else None
        none = torch.zeros_like(p[0])
        every = torch.stack([self.first.get(name, none) for name in now.names])
        return every[now.chosen.repeat_interleave(len(p) // len(now.chosen))]

    def logits(self, x: Tensor) -> Tensor:
        """W x₀ (rows, experts) in fp32, with each row's own router; x (rows, tokens, d_in), rows = batch × beams."""
        now, first = self.prefill, self.prefill.tokens(x)
        with torch.autocast(x.device.type, enabled=False):
            if now.chosen is None:
                router = self.routers[now.learning]
                return F.linear(first.to(router.dtype), router)
            routers = torch.stack([self.routers[name] for name in now.names])  # (names, experts, d_in)
            every = torch.einsum("bd,tnd->btn", first.to(routers.dtype), routers)
            chosen = now.chosen.repeat_interleave(len(first) // len(now.chosen))
            return every[torch.arange(len(chosen), device=chosen.device), chosen]


class PromptMean:
    """What `prepare(batch)` tells the mixes of all layers about a batch, and what they decide by the mean of each prompt.

    One object serves all layers. A model calls `start(batch.prompt_mask, features)` in its `prepare`.

    Attributes:
        mask: (batch, tokens), true at the tokens that are averaged.
        features: (batch, e), what else is known of each sample, of its text for instance.
        kept: by mix, g (rows, experts) of the prompts, for the tokens that are decoded behind them.
    """

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self.features: Tensor | None = None
        self.kept: dict[nn.Module, Tensor] = {}
        self._others: Tensor | None = None  # (batch, tokens, 1), true at the tokens that are not averaged
        self._count: Tensor | None = None  # (batch, 1)

    def start(self, mask: Tensor, features: Tensor | None = None) -> None:
        """A new batch: what was decided for the one before is forgotten."""
        self.mask, self.features, self.kept = mask, features, {}
        self._others, self._count = ~mask[..., None], mask.sum(1, keepdim=True)

    def mean(self, x: Tensor, kind: torch.dtype) -> Tensor:
        """Mean (rows, d) of each prompt in a layer's input x (rows, tokens, d), in the given type; rows = batch × beams.

        Tokens behind those of the batch are left out; fewer tokens are decoded ones, of which none is padding.

        Raises:
            ValueError: nobody said what the prompts are, or they are of another batch.
        """
        others = _for_rows(self._others, x)
        behind = x.shape[1] - others.shape[1]
        if behind < 0:
            return x.mean(1, dtype=kind)
        if behind:
            others = F.pad(others, (0, 0, 0, behind), value=True)
        return x.masked_fill(others, 0).sum(1, dtype=kind) / _for_rows(self._count, x)

    def beside(self, x: Tensor) -> Tensor:
        """The features (rows, e) of the rows of x.

        Raises:
            ValueError: as for `mean`.
        """
        return _for_rows(self.features, x)


def _for_rows(known: Tensor | None, x: Tensor) -> Tensor:
    """What is known of each sample, once for each of its beams in x."""
    if known is None or x.shape[0] % len(known):
        raise ValueError(f"no prompts are known for {x.shape[0]} rows; call prepare(batch) for each batch")
    return known if len(known) == len(x) else known.repeat_interleave(x.shape[0] // len(known), 0)


def top_gates(p: Tensor, k: int, first: Tensor | None = None, *, renormalise: bool = True) -> Tensor:
    """g (..., experts): p where it is among the k largest, zero elsewhere; divided by its sum if asked.

    Args:
        p: softmax of a router.
        first: of the same shape, one where an expert is chosen before any with a zero.
    """
    places = (p if first is None else p + first).topk(k, dim=-1).indices  # p is at most one
    g = torch.zeros_like(p).scatter(-1, places, p.gather(-1, places))
    return g / g.sum(-1, keepdim=True) if renormalise else g


class _TopSoftmax(torch.autograd.Function):
    """The softmax of the logits (..., experts) at these places (..., k), zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, places: Tensor, top: Tensor) -> Tensor:
        g = torch.full_like(logits, -torch.inf).scatter_(-1, places, top).softmax(-1)
        ctx.save_for_backward(g)
        return g

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (g,) = ctx.saved_tensors  # zero where nothing is chosen, so that no gradient is there either
        return torch._softmax_backward_data(gradients[0], g, -1, g.dtype), None, None


def top_softmax(logits: Tensor, k: int, first: Tensor | None = None) -> Tensor:
    """g (..., experts): the softmax over the k largest logits, zero elsewhere: p of these experts divided by their sum.

    Args:
        first: of the same shape, one where an expert is chosen before any with a zero.
    """
    if first is None:
        top, places = logits.detach().topk(k, dim=-1)
    else:
        places = (logits.detach().softmax(-1) + first).topk(k, dim=-1).indices  # a softmax is at most one
        top = logits.detach().gather(-1, places)
    if written_out():
        chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, places, True)
        return logits.masked_fill(~chosen, -torch.inf).softmax(-1)
    return cast(Tensor, _TopSoftmax.apply(logits, places, top))


def gate_sums(
    model: nn.Module, mixes: Sequence[FirstToken], batches: Sequence[Batch], samples: int
) -> tuple[Tensor, Tensor]:
    """Σ p and Σ g over samples drawn from a task, by layer and expert (layers, experts) each, in evaluation mode.

    Args:
        mixes: of the layers; one `Prefill` serves them all.
    """
    prefill = mixes[0].prefill
    sums: list[Tensor] = []
    with evaluating(model):
        for batch in share(batches, samples=samples):
            forward(model, batch)
            kept = [torch.stack([prefill.kept[mix][i].sum(0) for mix in mixes]) for i in range(2)]
            sums = [a + b for a, b in zip(sums, kept, strict=True)] if sums else kept
    none = torch.zeros(len(mixes), mixes[0].experts, device=next(iter(mixes[0].routers.values())).device)
    p, g = sums or (none, none)
    return total(p), total(g)
