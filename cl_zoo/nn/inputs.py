"""What adapted linears read: sums over a task that a model looks at, and means over the image of a sample that it learns from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from cl_zoo.batches import Batch, forward
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.nn.layer import BankLayer, full_precision
from cl_zoo.nn.still import evaluating


def input_products(
    model: nn.Module, layers: Sequence[BankLayer], batches: Iterable[Batch]
) -> dict[BankLayer, Tensor]:
    """Σ x xᵀ (d_in, d_in) of each layer in fp32, over the real tokens of some batches, on this process; in evaluation mode."""
    found = {
        layer: torch.zeros(layer.in_features, layer.in_features, device=layer.made["device"])
        for layer in layers
    }
    real = torch.empty(0)

    def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0][real].float()  # (tokens, d_in), padding excluded
        with full_precision(x.device):
            found[cast(BankLayer, layer)] += x.T @ x

    handles = [layer.register_forward_pre_hook(add) for layer in layers]
    try:
        with evaluating(model):
            for batch in batches:
                real = batch.inputs["attention_mask"].bool()
                forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


class ImageInputs:
    """Watches the layers of a bank in the forward; what it sees is part of the graph.

    Attributes:
        layers: those that are watched, none at first.
        found: h̄ (batch, d_in) of each, from the last forward; zeros for a sample without an image.
    """

    def __init__(self, bank: ExpertBank) -> None:
        self.layers: Collection[BankLayer] = ()
        self.found: dict[BankLayer, Tensor] = {}
        self._places = torch.empty(0)
        for layer in bank.layers:
            layer.register_forward_pre_hook(self._look)

    def start(self, places: Tensor) -> None:
        """Say where the images are in the batch to come: a mask (batch, tokens)."""
        self._places, self.found = places, {}

    def _look(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(layer, BankLayer) and layer in self.layers:
            places = self._places.to(inputs[0].dtype)
            mean = (places[:, None] @ inputs[0])[:, 0]  # no copy of the input
            self.found[layer] = mean / places.sum(1, keepdim=True).clamp(min=1)
