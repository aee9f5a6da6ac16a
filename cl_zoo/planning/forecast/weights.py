"""What the frozen weights of a model take in memory, and what passes through it for a token of an answer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.nn.fourbit import packed_bytes
from cl_zoo.recipe.recipe import Recipe


@dataclass(frozen=True)
class Weights:
    """Bytes of a frozen model.

    Attributes:
        held: that are there all the time.
        written_out: of the largest matrix that is held in 4 bits, in full, as one at a time is.
        read: that a batch's next token makes pass through memory; what is held in 4 bits is written out and read again.
    """

    held: int
    written_out: int
    read: int


def weights(backbone: Backbone, recipe: Recipe) -> Weights:
    """Of a backbone in the recipe's precision and bits; the backbone itself is not quantized."""
    size = 2 if recipe.precision == "bf16" else 4
    every = sum(int(weight.numel()) for weight in backbone.model.parameters())
    if recipe.quantization == "none":
        return Weights(size * every, 0, size * every)
    linears = [one.weight.numel() for one in backbone.layers.modules() if isinstance(one, nn.Linear)]
    held = size * (every - sum(linears)) + sum(map(packed_bytes, linears))
    return Weights(held, size * max(linears), held + 2 * size * sum(linears))
