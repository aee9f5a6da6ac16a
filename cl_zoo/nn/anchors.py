"""Anchors: where each task lies in the frozen encoder's space, and the route of a sample by how near it lies to them.

    m_t^k = Σ_n f_k(x_n) / N_t                            task t's anchor for features of kind k: images, texts
    w     = softmax_t( Σ_k α_k cos(f_k(x), m_t^k) / T )   route of a sample over the tasks learnt so far

Nothing here is trained. A sample that has nothing of a kind, no image, has a row of zeros there: it takes no part in that
anchor, and its cosine with every anchor is zero. A task without any image has an anchor of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cl_zoo.batches import Batch
from cl_zoo.features.encoder import cosines
from cl_zoo.nn.answering import Around
from cl_zoo.nn.mixes import PerSample
from cl_zoo.processes import share, total
from cl_zoo.tasks import Sample

if TYPE_CHECKING:
    from cl_zoo.features.encoder import FeatureEncoder
    from cl_zoo.nn.bank import ExpertBank


FORMULA = (
    "route of a sample: w = softmax over the tasks t of (sum over the views k of weight_k * cos(feature_k, anchor_k[t])) / "
    "temperature; a cosine with a row of zeros is zero"
)


@dataclass(frozen=True)
class View:
    """One kind of features that samples are compared by.

    Attributes:
        look: features (n, width) of n samples; a row of zeros for a sample that has nothing to look at.
        width: of the features.
        weight: α_k, how much their similarity counts.
        says: what `look` does in words, for those who route without this package.
        name: the same in a word of `VIEWS`; empty where it is another one.
    """

    look: Callable[[Sequence[Sample]], Tensor]
    width: int
    weight: float
    says: str = ""
    name: str = ""


def image_view(features: FeatureEncoder, weight: float) -> View:
    """Images in CLIP's joint space."""
    says = "image feature in CLIP's joint space, fp32, not normalised; zeros for a prompt without an image"
    return View(
        lambda samples: features.images([one.image for one in samples]), features.width, weight, says, "image"
    )


def text_view(features: FeatureEncoder, weight: float) -> View:
    """Whole prompts, question and instruction, in CLIP's joint space."""
    says = "text feature in CLIP's joint space of the whole prompt (question, newline, instruction), fp32, not normalised"
    return View(
        lambda samples: features.texts([one.words for one in samples]), features.width, weight, says, "text"
    )


def state_view(features: FeatureEncoder, weight: float) -> View:
    """Prompts before CLIP's text projection, up to a first " ASSISTANT", as two released methods take them."""

    def look(samples: Sequence[Sample]) -> Tensor:
        return features.text_states([one.words.partition(" ASSISTANT")[0] for one in samples])

    says = (
        "state at the end token before CLIP's text projection, after the final layer norm, of the prompt (question, "
        "newline, instruction) up to a first ' ASSISTANT', fp32"
    )
    return View(look, features.text_width, weight, says, "state")


VIEWS = {"image": image_view, "text": text_view, "state": state_view}
"""The views of this module, by name."""


class Anchors(nn.Module):
    """The anchors of all tasks learnt so far, a buffer (tasks, width) for each kind of features.

    Args:
        views: kinds of features by name; those of weight zero are left out.
        temperature: T of the softmax.
        device: where the buffers are.
    """

    def __init__(self, views: Mapping[str, View], temperature: float, device: torch.device) -> None:
        super().__init__()
        self.views = {kind: view for kind, view in views.items() if view.weight}
        self.temperature = temperature
        for kind, view in self.views.items():
            self.register_buffer(kind, torch.zeros(0, view.width, device=device))

    def __getitem__(self, kind: str) -> Tensor:
        return self.get_buffer(kind)

    @torch.no_grad()
    def add(self, batches: Sequence[Batch]) -> None:
        """One more task: means over all its samples, in fp32 and over all processes."""
        sums = {kind: self[kind].new_zeros(view.width) for kind, view in self.views.items()}
        counts = {kind: self[kind].new_zeros(()) for kind in self.views}
        for batch in share(batches):
            for kind, view in self.views.items():
                rows = view.look(batch.samples)
                sums[kind] = sums[kind] + rows.sum(0)
                counts[kind] = counts[kind] + rows.any(1).sum()
        for kind in self.views:
            mean = total(sums[kind]) / total(counts[kind]).clamp(min=1)
            setattr(self, kind, torch.cat([self[kind], mean[None]]))

    def forward(self, samples: Sequence[Sample]) -> Tensor:
        """The route of each sample, (samples, tasks), rows summing to one."""
        similar = [view.weight * cosines(view.look(samples), self[kind]) for kind, view in self.views.items()]
        return torch.softmax(torch.stack(similar).sum(0) / self.temperature, dim=-1)

    def weighed(self, weights: Mapping[str, float], temperature: float) -> Anchors:
        """The same anchors, no copies, for a route with these weights by kind and this temperature; those of weight zero are left out."""
        views = {kind: replace(view, weight=weights[kind]) for kind, view in self.views.items()}
        made = Anchors(views, temperature, torch.device("cpu"))
        for kind in made.views:
            setattr(made, kind, self[kind])
        return made

    def describe(self) -> dict[str, Any]:
        """How a route is made, as JSON; the anchors themselves are in `keep`."""
        views = {
            kind: {"weight": view.weight, "width": view.width, "feature": view.says}
            for kind, view in self.views.items()
        }
        return {"formula": FORMULA, "temperature": self.temperature, "views": views}

    def keep(self) -> dict[str, Tensor]:
        """The buffers, for a plugin's `state_dict`."""
        return dict(self.named_buffers())

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Put back what `keep` gave, whatever the number of tasks."""
        for kind in self.views:
            setattr(self, kind, kept[kind].to(self[kind].device))


class Routed(Around):
    """A bank that answers each sample with its experts weighted by the sample's route.

    Args:
        bank: its routed layers have `gate` as their mix.
        gate: holds the route of the batch at hand.
        anchors: decide the route.

    Attributes:
        route: (batch, tasks) of the last batch.
    """

    def __init__(self, bank: ExpertBank, gate: PerSample, anchors: Anchors) -> None:
        super().__init__(bank)
        self.gate, self.anchors = gate, anchors

    def prepare(self, batch: Batch) -> None:
        self.route = self.gate.weights = self.anchors(batch.samples)
