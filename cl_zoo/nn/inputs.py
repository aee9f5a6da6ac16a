"""What adapted linears read while a model looks at a task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from cl_zoo.batches import Batch, forward
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
