"""A pool of soft prompts with keys: each sample reads the prompts whose keys lie nearest to its query.

    K_x = argmin_{s_1…s_N} Σ_i γ(q(x), k_{s_i}),  γ = 1 − cos             q(x): the image's feature in CLIP's joint space

As in L2P (https://arxiv.org/abs/2112.08654), and what builds on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cl_zoo.batches import Batch
from cl_zoo.features.encoder import cosines
from cl_zoo.nn.chosen import Choice
from cl_zoo.nn.prompts import Prompted, token_rows

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone


class PromptPool(Prompted):
    """A frozen model that reads, of M prompts, the N of each sample's choice.

    A sample without an image asks with its text feature. Prompts start as copies of token embeddings, keys as N(0, init_std²).

    Args:
        pool: M.
        length: vectors of one prompt.
        top: N.

    Attributes:
        prompts, keys: (M, length, width) and (M, d), which learn.
        query, chosen: of the batch at hand, (batch, d) and (batch, N).
    """

    def __init__(self, backbone: Backbone, *, pool: int, length: int, top: int, init_std: float) -> None:
        super().__init__(backbone)
        self._features, self._top = backbone.features, top
        rows = token_rows(backbone, pool * length)
        self.prompts = nn.Parameter(rows.view(pool, length, -1))
        keys = torch.randn(pool, backbone.features.width) * init_std
        self.keys = nn.Parameter(keys.to(rows.device))
        self.query, self.chosen = torch.empty(0), torch.empty(0, dtype=torch.long)

    def prepare(self, batch: Batch) -> None:
        self.query = self.ask(batch)
        self.chosen = self.choose(self.query)

    def ask(self, batch: Batch) -> Tensor:
        """q(x), (batch, d)."""
        query = self._features.images([sample.image for sample in batch.samples])
        blind = [place for place, sample in enumerate(batch.samples) if sample.image is None]
        if blind:
            texts = self._features.texts([batch.samples[place].words for place in blind])
            query = query.index_copy(0, torch.tensor(blind, device=query.device), texts)
        return query

    @torch.no_grad()
    def choose(self, query: Tensor) -> Tensor:
        """Places of the N prompts of each query, nearest key first, (batch, N)."""
        return nearest(distance(query, self.keys), self._top)

    def pull(self) -> Tensor:
        """Σ γ over the chosen keys, (batch,)."""
        return distance(self.query, self.keys).gather(1, self.chosen).sum(1)

    def choice(self) -> Choice:
        return Choice(self.prompts, self.keys, self._top)

    def soft_prompts(self) -> Tensor:
        return self.prompts[self.chosen].flatten(1, 2)

    def active(self) -> dict[str, int]:
        return {"prompts": self._top * self.prompts[0].numel()}


def distance(query: Tensor, keys: Tensor) -> Tensor:
    """γ(q, k) = 1 − cos: queries (batch, d) and keys (M, d) to (batch, M)."""
    return 1 - cosines(query, keys)


def nearest(distances: Tensor, top: int, weights: Tensor | None = None) -> Tensor:
    """Places of the `top` smallest of distances (batch, M), each weighed by (M,) where given; (batch, top)."""
    costs = distances if weights is None else distances * weights
    return costs.topk(top, dim=1, largest=False).indices
