"""Soft prompts that have been learnt, and how a sample's are chosen: what is left of a method when nothing learns any more.

    s_m = w_v cos(f_v(x), k_m) + w_t cos(f_t(x), k_m)      f_v, f_t: features of image and prompt in CLIP's joint space

A sample reads the prompts of highest s. A method whose prompts are chosen so says it with `Prompted.choice`, and its runs can be exported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cl_zoo.batches import Batch
from cl_zoo.features.encoder import cosines
from cl_zoo.nn.prompts import Prompted

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone


@dataclass(frozen=True)
class Choice:
    """Prompts, and how a sample's are chosen among them.

    Attributes:
        prompts: (M, length, width).
        keys: k, (M, d).
        top: how many prompts a sample reads; all where there are fewer.
        images, texts: w_v and w_t.
        alone: w_t of a sample without an image; the cosine of its image is zero.
        best_last: whether the prompt of highest s stands last; else first.
    """

    prompts: Tensor
    keys: Tensor
    top: int
    images: float = 1.0
    texts: float = 0.0
    alone: float = 1.0
    best_last: bool = False

    def places(self, images: Tensor, texts: Tensor) -> Tensor:
        """Places of the prompts that samples read, (batch, top), from features (batch, d); a row of zeros is no image."""
        weights = torch.where(images.any(1, keepdim=True), self.texts, self.alone)
        scores = self.images * cosines(images, self.keys) + weights * cosines(texts, self.keys)
        best = scores.topk(min(self.top, len(self.keys)), dim=1).indices
        return best.flip(1) if self.best_last else best

    def describe(self) -> dict[str, Any]:
        """All but the tensors, as JSON."""
        return {name: value for name, value in vars(self).items() if not isinstance(value, Tensor)}

    def tensors(self) -> dict[str, Tensor]:
        """`prompts` and `keys`."""
        return {"prompts": self.prompts.detach(), "keys": self.keys.detach()}


class Chosen(Prompted):
    """A frozen model that reads the prompts of a choice."""

    def __init__(self, backbone: Backbone, choice: Choice) -> None:
        super().__init__(backbone)
        self._features, self._choice = backbone.features, choice
        self.prompts = nn.Parameter(self._choice.prompts, requires_grad=False)
        self.chosen = torch.empty(0, dtype=torch.long)

    def choice(self) -> Choice:
        return self._choice

    @torch.no_grad()
    def prepare(self, batch: Batch) -> None:
        images = self._features.images([sample.image for sample in batch.samples])
        texts = self._features.texts([sample.words for sample in batch.samples])
        self.chosen = self._choice.places(images, texts)

    def soft_prompts(self) -> Tensor:
        return self.prompts[self.chosen].flatten(1, 2)
