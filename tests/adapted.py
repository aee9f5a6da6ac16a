"""A small linear with random experts, and what it computes written out in torch's own operations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl_zoo.nn.layer import BankConfig, BankLayer

WIDE, HIGH, RANK, SCALE = 16, 32, 3, 1.5
"""d_in, d_out, r of each expert, and s."""


def make_layer(*names: str, reads: str | None = None, mix: nn.Module | None = None) -> BankLayer:
    """A linear of 16 to 32 with random experts of rank 3, all active and learning."""
    layer = BankLayer(nn.Linear(WIDE, HIGH).requires_grad_(False), "layers.0.lin", SCALE, 0.0)
    for place, name in enumerate(names):
        layer.grow(name, BankConfig(rank=RANK, reads=reads if place else None))
    for weight in (*layer.bank_down.values(), *layer.bank_up.values()):
        nn.init.normal_(weight)
    layer._active_adapter, layer.bank_mix = list(names), mix
    return layer


def written_out(layer: BankLayer, x: Tensor) -> Tensor:
    """y = W x + s · B G A x in torch's own operations."""
    experts = layer.experts
    reads = list(dict.fromkeys(layer.reads[name] for name in experts))
    z = x @ torch.cat([layer.bank_down[name] for name in reads]).T
    if layer.bank_mix is not None:
        z = layer.bank_mix(z, x, [RANK] * len(experts))
    elif len(reads) < len(experts):
        z = torch.cat([z] * len(experts), -1)
    return layer.base_layer(x) + SCALE * z @ torch.cat([layer.bank_up[name] for name in experts], 1).T


def gradients(layer: BankLayer, y: Tensor, x: Tensor) -> dict[str, Tensor | None]:
    wanted = {"x": x, **{name: one for name, one in layer.named_parameters() if one.requires_grad}}
    found = torch.autograd.grad(
        (y * torch.arange(1.0, HIGH + 1)).sin().sum(), [*wanted.values()], allow_unused=True
    )
    return dict(zip(wanted, found, strict=True))


def assert_second_derivatives_drop_the_same(layer: BankLayer, x: Tensor) -> None:
    """A gradient of the gradient with respect to x is, with the same draw, that of the experts where they lie apart."""

    def second() -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        (first,) = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
        weights = [one for one in layer.parameters() if one.requires_grad]
        return torch.autograd.grad(first.square().sum(), weights)

    here = second()
    layer.part()
    for one, wanted in zip(here, second(), strict=True):
        torch.testing.assert_close(one, wanted)
