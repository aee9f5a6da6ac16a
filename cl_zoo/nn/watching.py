"""What reaches adapted linears: the mean of each one's input over the tokens of a sample's image."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from cl_zoo.nn.bank import ExpertBank
from cl_zoo.nn.layer import BankLayer


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
