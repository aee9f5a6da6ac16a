"""A run whose tokens are routed: A, B and the router of each layer, as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.export.adapters import METADATA, plain
from cl_zoo.export.folders import Answering, write_folder
from cl_zoo.export.folding import measured, nothing_else
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.nn.layer import BankLayer
from cl_zoo.nn.patched import Gates, gates_patch
from cl_zoo.nn.still import standing_still
from cl_zoo.nn.tokens import Told
from cl_zoo.runs.restore import Restored


@dataclass(frozen=True)
class GatedLayer:
    """A layer, and what it adds to W x by its router."""

    layer: BankLayer
    gates: Gates

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer.base_layer(x)
        added: Tensor = gates_patch(self.gates, self.layer.scale)(x)
        return y + added.to(y.dtype)


@torch.no_grad()
def gates_of(answering: nn.Module, backbone: Backbone) -> tuple[GatedLayer, ...] | None:
    """The layers of a bank whose mixes all say their router; none where one does not, or its experts differ in rank.

    Raises:
        OptionError: a layer adds something else than it says, or something beside the layers takes part.
    """
    bank = answering.bank if type(answering) is Told else answering
    if not isinstance(bank, ExpertBank):
        return None
    found = [(layer, _gates(layer)) for layer in bank.layers if layer.experts]
    if not found or any(gates is None for _, gates in found):
        return None
    layers = tuple(GatedLayer(layer, gates) for layer, gates in found if gates is not None)
    nothing_else(bank, backbone)
    with standing_still(answering):
        answering.eval()
        for one in layers:
            measured(one)
    return layers


def _gates(layer: BankLayer) -> Gates | None:
    says: Any = getattr(layer.bank_mix, "gated", None)
    router = says() if says else None
    ups = [layer.bank_up[name] for name in layer.experts]
    reads = dict.fromkeys(layer.reads[name] for name in layer.experts)
    alike = len({up.shape[1] for up in ups}) == 1 and len(reads) in (1, len(ups))
    if router is None or router.bias is not None or not alike:
        return None
    down = torch.cat([layer.bank_down[name] for name in reads], 0)
    return Gates(down.detach(), torch.cat(ups, 1).detach(), router.weight.detach())


def write_gated(folder: Path, restored: Restored, layers: Sequence[GatedLayer]) -> list[str]:
    """`gates.safetensors` with `down`, `up` and `router` of each linear, and what all folders have."""
    tensors = dict(_tensors(restored.backbone, layers))
    save_file(plain(tensors), folder / "gates.safetensors", METADATA)
    what = (
        "Experts of the language model's linears and their routers: y = W x + scale * B (g * A x), g = softmax(router x) for each "
        "token, one weight for the ranks of each expert; where A has the rank of one expert, all share it."
    )
    write_folder(folder, restored, Answering("gates", {"scale": layers[0].layer.scale}, looks=False), what)
    return []


def _tensors(backbone: Backbone, layers: Sequence[GatedLayer]) -> Iterator[tuple[str, Tensor]]:
    for one in layers:
        for part, tensor in one.gates._asdict().items():
            yield f"{backbone.hub_name(one.layer.path)}.{part}", tensor
