"""What the mixes of all layers have to know of a forward: which tokens are real, and whether it was seen before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl_zoo.batches import Batch
from cl_zoo.nn.answering import Around
from cl_zoo.nn.bank import ExpertBank


class Tokens:
    """One object serves all layers. A model calls `start(batch)` in its `prepare`; `Told` does."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self._ones: Tensor | None = None  # the mask, ready to be multiplied with
        self._forward = torch.empty(0)

    def start(self, batch: Batch) -> None:
        """A new forward, that no module has seen."""
        self.mask, self._forward = batch.inputs["attention_mask"], torch.empty(0)
        self._ones = self.mask[..., None].to(torch.float32)

    def first(self, module: nn.Module) -> bool:
        """Whether a module asks for the first time since `start`: activations that are recomputed come by again."""
        # Two tensors: whether they are one is all that a compilation depends on. A set would be another one in each layer.
        new = getattr(module, "_forward_seen", None) is not self._forward
        module._forward_seen = self._forward
        return new

    def real(self, x: Tensor) -> Tensor:
        """Ones (rows, tokens, 1), zeros at padding, for x (rows, tokens, d); rows = batch × beams, and a decoding step has no padding."""
        ones = self._ones
        if ones is None or x.shape[1] != ones.shape[1]:
            return torch.ones_like(x[..., :1])
        return (ones if len(x) == len(ones) else ones.repeat_interleave(len(x) // len(ones), 0)).to(x)


class Told(Around):
    """The bank, whose mixes are told of every forward.

    Attributes:
        tokens: what they are told.
    """

    def __init__(self, bank: ExpertBank) -> None:
        super().__init__(bank)
        self.tokens = Tokens()

    def prepare(self, batch: Batch) -> None:
        self.tokens.start(batch)
