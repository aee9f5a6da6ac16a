"""What a model learnt, folded into one low-rank update per linear layer where the layer's equation allows it.

    y = W x + s · B (G ⊗ I_r) A x        a G that depends on no input gives y = W x + s · B' A' x

The decision is made from the modules alone. A layer folds if it has no mix (the experts stand side by side on the rank axis) or
a mix that says how it folds; a layer that weighs whole experts per sample by anchors folds once per task; changes that answer in the
place of experts are taken as they are. Everything else is refused by name: routers, prompts, weights that are neither the bank's nor the projector's. Each fold is then measured against
the layer itself, so a wrong one never leaves this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.engine.ledger import answering_state
from cl_zoo.errors import OptionError
from cl_zoo.nn.anchors import Routed
from cl_zoo.nn.answering import Change, OtherUpdates
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.nn.layer import BankLayer, full_precision
from cl_zoo.nn.still import standing_still

TOLERANCE = 1e-4
"""Largest difference of a fold from its layer, relative to the largest value that the layer adds to W x."""


@dataclass(frozen=True)
class Update:
    """What a linear layer adds to W x: s · B A x, and Σ Δ x where changes of full rank stand beside the bank.

    Attributes:
        layer: the layer.
        down, up: A (r, d_in) and B (d_out, r); none where no expert answers.
        dense: modules whose `dense()` is a Δ (d_out, d_in), asked for when it is needed: all of them are as large as the model.
    """

    layer: BankLayer
    down: Tensor | None
    up: Tensor | None
    dense: tuple[Any, ...] = ()

    def merged(self) -> Tensor:
        """W + s · B A + Δ (d_out, d_in), formed in fp32, in the type of W."""
        weight = self.layer.frozen()
        with full_precision(weight.device):
            total = weight.float()
            if self.down is not None and self.up is not None:
                total = total + self.layer.scale * self.up.float() @ self.down.float()
            for one in self.dense:
                total = total + one.dense().float()
        return total.to(weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """y of the folded layer."""
        y: Tensor = self.layer.base_layer(x)
        if self.down is not None and self.up is not None:
            z = F.linear(x.to(self.down.dtype), self.down) * self.layer.scale
            y = y + F.linear(z, self.up).to(y.dtype)
        for one in self.dense:
            y = y + F.linear(x, one.dense().to(x.dtype))
        return y


class Added(Protocol):
    """What stands in the place of a layer with its experts: y of x."""

    @property
    def layer(self) -> BankLayer: ...

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Folded:
    """A model as updates of its linear layers.

    Attributes:
        bank: the experts.
        updates: one set of all layers, or one set per task where samples are routed.
        routed: the module that routes, or none.
    """

    bank: ExpertBank
    updates: tuple[tuple[Update, ...], ...]
    routed: Routed | None = None


@torch.no_grad()
def fold(answering: nn.Module, backbone: Backbone) -> Folded:
    """Fold what answers.

    Raises:
        OptionError: something in it cannot be folded; the message names it.
    """
    routed = answering if type(answering) is Routed else None
    other = answering if type(answering) is OtherUpdates else None
    bank = routed.bank if routed else other.bank if other else answering
    if answering is backbone.model:
        raise OptionError("nothing was trained, so there is nothing to export; use the backbone itself")
    if not isinstance(bank, ExpertBank):
        raise refusal(f"{named(answering)} answers by more than updates of linear layers")
    gates = {id(routed.gate)} if routed else set()
    for layer in bank.layers:
        mix = layer.bank_mix
        if layer.experts and mix is not None and id(mix) not in gates and not hasattr(mix, "fold"):
            raise refusal(f"{named(mix)} decides for each input how it mixes the experts of {layer.path}")
    nothing_else(bank, backbone)
    with standing_still(answering):
        answering.eval()
        if other is not None:
            return Folded(bank, (tuple(_others(other)),))
        if routed is None:
            return Folded(bank, (tuple(_update(layer, None) for layer in bank.layers),))
        return Folded(bank, tuple(_per_task(bank, routed)), routed)


def refusal(what: str) -> OptionError:
    """The error for a module that cannot be folded."""
    return OptionError(
        f"{what}, which neither an adapter nor merged weights can hold; answer with `cl-zoo predict` or cl_zoo.load(RUN).generate(images, prompts)"
    )


def named(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"


def nothing_else(bank: ExpertBank, backbone: Backbone) -> None:
    """Every tensor that answers is an expert's, the projector's, or stands in a module of a layer that can say its Δ."""
    held = {id(tensor) for tensor in [*backbone.projector.parameters(), *backbone.projector.buffers()]}
    for layer in bank.layers:
        tables = (layer.bank_down, layer.bank_up, layer.bank_mix, *extras(layer))
        held |= {id(tensor) for table in tables if table is not None for tensor in _tensors(table)}
    for name, tensor in answering_state(bank, backbone).items():
        if id(tensor) not in held:
            raise refusal(f"{name} takes part in answering beside the experts and the projector")


def extras(layer: BankLayer) -> tuple[Any, ...]:
    """Modules that a method put beside the experts of a layer and that can say their `dense()` change of W."""
    known = (layer.base_layer, layer.bank_down, layer.bank_up, layer.bank_mix, layer.bank_dropout)
    return tuple(one for one in layer.children() if one not in known and hasattr(one, "dense"))


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _per_task(bank: ExpertBank, routed: Routed) -> Iterable[tuple[Update, ...]]:
    tasks = len(next(iter(routed.anchors.keep().values())))
    fixed = {layer: _update(layer, None) for layer in bank.layers if layer.bank_mix is not routed.gate}
    for task in range(tasks):
        device = bank.layers[0].made["device"]
        routed.gate.weights = torch.eye(tasks, device=device)[task, None]
        yield tuple(fixed[layer] if layer in fixed else _update(layer, task) for layer in bank.layers)


def _others(answering: OtherUpdates) -> Iterable[Update]:
    """The changes that answer in the place of experts."""
    with answering.worn():
        for layer, change in zip(answering.changed, answering.changes, strict=True):
            one = cast(Change, change)
            down, up = one.factors or (None, None)
            whole = (one,) if down is None else ()
            update = Update(layer, down, up, (*whole, *extras(layer)))
            measured(update)
            yield update


def _update(layer: BankLayer, task: int | None) -> Update:
    """The update of a layer; with a task, that of the expert in its place.

    Raises:
        OptionError: it is not what the layer computes.
    """
    experts = [] if layer._disable_adapters else layer.experts
    chosen = experts if task is None else experts[task : task + 1]
    downs = [layer.bank_down[layer.reads[name]].detach() for name in chosen]
    ups = [layer.bank_up[name].detach() for name in chosen]
    mix = layer.bank_mix if task is None else None
    join = _side_by_side if mix is None else cast(Callable[..., tuple[Tensor, Tensor]], mix.fold)
    down, up = join(downs, ups) if downs else (None, None)
    update = Update(layer, down, up, extras(layer))
    measured(update)
    return update


def _side_by_side(downs: list[Tensor], ups: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Σ BᵢAᵢ as one product, exact: ranks add up."""
    return torch.cat(downs, 0), torch.cat(ups, 1)


def measured(update: Added) -> None:
    """Compare the update with what its layer adds to W x, on random inputs and in fp32.

    Raises:
        OptionError: they differ, so something that is not in the update takes part in the layer.
    """
    layer, device = update.layer, update.layer.made["device"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, layer.in_features, generator=generator).to(device)
    # W itself has no part in the comparison: in its type, rounding of W x alone would hide a small update.
    base: Any = layer.base_layer
    layer.base_layer = cast(Any, _Silent(layer.out_features))
    try:
        with full_precision(device):
            wanted, got = layer(x), update(x)
    finally:
        layer.base_layer = base
    far = float((wanted - got).abs().max() / wanted.abs().max().clamp(min=1e-12))
    if not far <= TOLERANCE:
        raise refusal(f"{layer.path} adds more than its folded experts do (a difference of {far:.1e})")


class _Silent(nn.Module):
    """Stands where W does, and adds nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.width)
