"""One adapted linear layer: the frozen W and the experts on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo.nn.fourbit import place_of
from cl_zoo.nn.products import Down, Joined, Lying, Up, join, part, untouched, written_out
from cl_zoo.sharding import whole


@dataclass
class BankConfig(PeftConfig):  # type: ignore[misc]  # peft's base class is untyped
    """How one expert is made.

    Attributes:
        target_modules: regular expression on module paths, matched in full.
        rank: r of this expert.
        scale: s = α / r, one value for the whole bank.
        dropout: probability on x; one mask is shared by all experts of a layer.
        init_std: standard deviation of A; B starts at zero.
        reads: name of an expert whose A this one shares, or `None` for its own.
    """

    target_modules: str = field(default="")
    rank: int = field(default=8)
    scale: float = field(default=2.0)
    dropout: float = field(default=0.0)
    init_std: float = field(default=0.01)
    reads: str | None = field(default=None)


class BankLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """One adapted linear layer: the frozen W and the experts on it.

    Attributes:
        path: module path in the model.
        depth: index of the decoder layer it belongs to, or -1.
        bank_down, bank_up: A (r, d_in) and B (d_out, r) by expert.
        bank_mix: module that applies G, or `None` for the identity.
    """

    adapter_layer_names = ("bank_down", "bank_up")
    other_param_names = ()

    def __init__(self, base_layer: nn.Linear, path: str, scale: float, dropout: float) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.path, self.scale = path, scale
        found = re.search(r"layers\.(\d+)\.", path)
        self.depth = int(found.group(1)) if found else -1
        self.bank_down = nn.ParameterDict()
        self.bank_up = nn.ParameterDict()
        self.bank_dropout: nn.Module = nn.Dropout(dropout) if dropout else nn.Identity()
        self.bank_mix: nn.Module | None = None
        self.reads: dict[str, str] = {}
        self._active_adapter: list[str] = []
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._joined: Joined | None = None
        self._few = False
        # whose A and whose B were to lie together, and whether with a router
        self._lying: tuple[list[str], list[str], bool] | None = None

    def grow(self, name: str, config: BankConfig) -> None:
        """Add an expert: A ~ N(0, init_std²) or shared, B = 0, in fp32 at least, beside the frozen weight.

        One that shares an A has that A's rank, and stands only where that A stands.
        """
        if config.reads is None:
            down = torch.randn(config.rank, self.in_features, **self.made) * config.init_std
            self.bank_down[name] = nn.Parameter(down)
        reads = config.reads or name
        if reads in self.bank_down:
            self.reads[name] = reads
            rank = self.bank_down[reads].shape[0]
            self.bank_up[name] = nn.Parameter(torch.zeros(self.out_features, rank, **self.made))

    @property
    def made(self) -> dict[str, Any]:
        """Device and dtype of new experts: where W is, in fp32 at least."""
        device, kind = place_of(self.base_layer)
        return {"device": device, "dtype": torch.promote_types(kind, torch.float32)}

    def frozen(self) -> Tensor:
        """W (d_out, d_in) to be read, written out where it is held in four bits, whole where processes hold parts of it: all of them must ask, in the same order."""
        return whole(self.base_layer.weight)

    def readers(self, name: str) -> list[str]:
        """Other experts of this layer that share the A of the given one."""
        return [reader for reader, read in self.reads.items() if read == name and reader != name]

    @property
    def experts(self) -> list[str]:
        """Names of the active experts that this layer has, in the order in which they were activated."""
        return [name for name in self._active_adapter if name in self.bank_up]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (..., d_in) to (..., d_out)."""
        y = cast(Tensor, self.base_layer(x, *args, **kwargs))
        experts = self.experts
        if self._disable_adapters or not experts:
            return y
        reads = list(dict.fromkeys(self.reads[name] for name in experts))  # a shared A stands once
        downs, ups = self._tables(reads, experts)
        on = x.device.type
        kind = torch.get_autocast_dtype(on) if torch.is_autocast_enabled(on) else downs[reads[0]].dtype
        plain = written_out()
        into = not plain and y.dtype == kind and y.is_contiguous()
        if into and (put := self._put_by_mix(y, x, downs, ups, kind)) is not None:
            return put
        down, a, up, b = self._matrices(downs, ups, plain)
        seen = self.bank_dropout(x.to(kind))
        z = F.linear(seen, down) if plain else Down.apply(seen, down, *a)
        if self.bank_mix is not None:
            z = self.bank_mix(z, x, [weight.shape[1] for weight in ups.values()])
        elif len(reads) < len(experts):  # the identity: each B meets the rows of the A it reads
            rows = dict(zip(reads, torch.split(z, [one.shape[0] for one in downs.values()], -1), strict=True))
            z = torch.cat([rows[self.reads[name]] for name in experts], -1)
        if not into:
            turned = torch.cat([one.T for one in b]) if b else up
            return y + F.linear(z * self.scale, turned.T).to(y.dtype)
        return cast(Tensor, Up.apply(y, z.to(kind), up, self.scale, *b))

    def _tables(
        self, reads: Sequence[str], experts: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A by the experts that own them, and B; also where others stand in for the parameters."""
        a, b = self.bank_down._parameters, self.bank_up._parameters
        return {name: a[name] for name in reads}, {name: b[name] for name in experts}

    def _matrices(
        self, downs: dict[str, Tensor], ups: dict[str, Tensor], plain: bool
    ) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
        """All A (Σr, d_in) and all B turned round (Σr, d_out), each with the parameters that lie in it, none where it is made of them here."""
        joined = self._joined
        if not plain and joined is not None and (found := joined.found(downs, ups)) is not None:
            return joined.down, found[0], joined.up, found[1]
        return _join([*downs.values()], dim=0), [], _join([*ups.values()], dim=1).T, []

    def _put_by_mix(
        self, y: Tensor, x: Tensor, downs: dict[str, Tensor], ups: dict[str, Tensor], kind: torch.dtype
    ) -> Tensor | None:
        """y with the whole update in it, where the mix has operations of its own for it and was asked to use them.

        Only of experts that lie together, and in learning: what answers is computed as ever.
        """
        joined, own = self._joined, getattr(self.bank_mix, "put", None)
        if own is None or joined is None or not self._few or not torch.is_grad_enabled():
            return None
        found, drop = joined.found(downs, ups), self.bank_dropout
        if found is None or type(drop) not in (nn.Identity, nn.Dropout) or not untouched(drop):
            return None
        p = cast(float, drop.p) if drop.training and isinstance(drop, nn.Dropout) else 0.0
        return cast("Tensor | None", own(y, x, Lying(joined, *found, self.scale, p, kind)))

    def _beside(self) -> nn.Parameter | None:
        """What the mix reads x by, if it may lie behind the A: in their type, where they are."""
        router = cast("nn.Parameter | None", getattr(self.bank_mix, "beside", lambda: None)())
        if router is None or not self._few or not self.experts:
            return None
        of = self.bank_down[self.reads[self.experts[0]]]
        return router if (router.device, router.dtype) == (of.device, of.dtype) else None

    def join(self, *, few: bool = True) -> None:
        """Let the active experts lie one behind the other in memory, as what learns together; they stay the same parameters.

        Nothing is done where all lie so already: who lies together depends on who is active now, and not on who was.

        Args:
            few: whether a mix may take few operations for the whole update, with sums in another order; a router that reads what the A
                read lies behind them for it.
        """
        self._few = few
        experts, beside = self.experts, self._beside()
        reads = list(dict.fromkeys(self.reads[name] for name in experts))
        now = self._joined
        if self._lying == (reads, experts, beside is not None) and (
            now is None
            or (now.found(*self._tables(reads, experts)) and (beside is None or now.holds(beside)))
        ):
            return
        self.part()
        self._lying = reads, experts, beside is not None
        self._joined = join(
            {name: self.bank_down[name] for name in reads},
            {name: self.bank_up[name] for name in experts},
            beside,
        )

    def part(self) -> None:
        """Let all experts lie by themselves again."""
        if self._joined is not None:
            downs, ups = self._joined.downs, self._joined.ups
            part([self.bank_down[name] for name in downs if name in self.bank_down])
            part([self.bank_up[name] for name in ups if name in self.bank_up])
            part([] if self._joined.beside is None else [self._joined.beside])
        self._joined, self._lying = None, None

    def delta(self, experts: Sequence[str] | None = None) -> Tensor:
        """s · Σ BᵢAᵢ of the given (default: active) experts, (d_out, d_in)."""
        names = self.experts if experts is None else [name for name in experts if name in self.bank_up]
        device, _ = place_of(self.base_layer)
        delta = torch.zeros(self.out_features, self.in_features, device=device)
        with full_precision(device):
            for name in names:
                delta = delta + self.scale * self.bank_up[name] @ self.bank_down[self.reads[name]]
        return delta


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, products are taken in the type of their factors, under autocast too; nothing to do where there are no values."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _join(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)
