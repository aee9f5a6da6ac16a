"""A frozen model some of whose linears add what was learnt, without a bank: what is left of experts when nothing learns any more.

y = W x + s · B (G ⊗ I_r) A x        G by the mixes of `cl_zoo.nn.mixes`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo.batches import Batch
from cl_zoo.nn.anchors import Anchors
from cl_zoo.nn.mixes import PerSample, PerToken, SharedDown
from cl_zoo.nn.routers import TokenGate


class Patch(nn.Module):
    """What one linear adds to W x, frozen.

    Args:
        downs, ups: A (r, d_in) and B (d_out, r) of each expert; one A where all share it.
        scale: s.
        mix: G; `None` for the identity.
    """

    def __init__(
        self, downs: Sequence[Tensor], ups: Sequence[Tensor], scale: float, mix: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.ranks, self.scale, self.mix = [up.shape[1] for up in ups], scale, mix
        self.down = nn.Parameter(torch.cat(list(downs), 0), requires_grad=False)
        self.up = nn.Parameter(torch.cat(list(ups), 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) to (..., d_out)."""
        # as in a layer of the bank: under autocast the product is taken in its type
        seen = x if torch.is_autocast_enabled(x.device.type) else x.to(self.down.dtype)
        z = F.linear(seen, self.down)
        if self.mix is not None:
            z = self.mix(z, x, self.ranks)
        return F.linear(z * self.scale, self.up)


class Gates(NamedTuple):
    """A linear's experts and their router, with a softmax for each token.

    Attributes:
        down: A of all experts (E r, d_in), or the one that all share (r, d_in).
        up: B of all (d_out, E r).
        router: W_g (E, d_in).
    """

    down: Tensor
    up: Tensor
    router: Tensor


def gates_patch(gates: Gates, scale: float) -> Patch:
    """Gates as what a linear adds; `scale` is s."""
    count = len(gates.router)
    router = nn.Linear(gates.router.shape[1], count, bias=False, device="meta")
    router.weight = nn.Parameter(gates.router, requires_grad=False)
    shared = len(gates.down) < gates.up.shape[1]
    mix = SharedDown(TokenGate(router)) if shared else PerToken(router)
    return Patch([gates.down], gates.up.chunk(count, 1), scale, mix)


class Patched(nn.Module):
    """A model with patches on its linears, and a route where one is decided per sample.

    Args:
        model: the backbone's.
        patches: by the name of the linear in it.
        gate, anchors: where experts are weighed per sample: the mix that holds the route, and what decides it.

    Attributes:
        route: (batch, tasks) of the last batch.
    """

    def __init__(
        self,
        model: nn.Module,
        patches: Mapping[str, Patch],
        gate: PerSample | None = None,
        anchors: Anchors | None = None,
    ) -> None:
        super().__init__()
        self.model, self.gate, self.anchors = model, gate, anchors
        self.patches = nn.ModuleList(patches.values())
        self.route: Tensor | None = None
        for name, patch in patches.items():
            model.get_submodule(name).register_forward_hook(_adding(patch))

    def prepare(self, batch: Batch) -> None:
        if self.gate is not None and self.anchors is not None:
            self.route = self.gate.weights = self.anchors(batch.samples)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def generate(self, **inputs: Any) -> Tensor:
        return cast(Tensor, cast(Any, self.model).generate(**inputs))


def _adding(patch: nn.Module) -> Any:
    def add(layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + cast(Tensor, patch(inputs[0])).to(y.dtype)

    return add
