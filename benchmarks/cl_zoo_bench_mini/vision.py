"""First phase of pre-training: the vision tower learns everything that its pictures show, as labels.

Trained from nothing together with the language model, a tower this small stays on a plateau for a long time;
with labels for every cell, bar and hand it needs a few minutes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPVisionModel

from cl_zoo_bench_mini.scenes import CELL_CLASSES, HEADS, PLACES, SCENES, Scene

IGNORED = -100
SHARES = (0.26, 0.2, 0.08, 0.05, 0.14, 0.13, 0.14)
"""How often each kind of scene is drawn, in the order of `SCENES`."""


def draw_scene(rng: np.random.Generator) -> Scene:
    """A scene of any kind at random."""
    return SCENES[int(rng.choice(len(SCENES), p=SHARES))].draw(rng)


def painted(scenes: list[Scene], rng: np.random.Generator) -> Tensor:
    """The painted scenes as bytes, [scene, 3, 32, 32]."""
    pictures = np.stack([np.asarray(scene.paint(rng)) for scene in scenes])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def as_pixels(pictures: Tensor) -> Tensor:
    """Bytes as the processor would hand them to the tower: -1 to 1."""
    return pictures.float() / 127.5 - 1


def label_classes(scenes: list[Scene]) -> dict[str, Tensor]:
    """What the pictures show, as class numbers by label head: [scene], for the cells of boards [scene x cell]."""
    labels = [scene.labels() | {"kind": scene.kind} for scene in scenes]
    wanted = {"cells": _cell_classes(labels)}
    for name, classes in HEADS.items():
        wanted[name] = torch.tensor(
            [classes.index(each[name]) if name in each else IGNORED for each in labels]
        )
    return wanted


class LabelHeads(nn.Module):
    """Linear readers of the tower's patches: one for the cells of a board, one per label of a whole picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells = nn.Linear(width, len(CELL_CLASSES))
        self.whole = nn.Linear(PLACES * width, sum(len(classes) for classes in HEADS.values()))

    def forward(self, patches: Tensor, wanted: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Loss summed over labels, and the share of right labels by head.

        Args:
            patches: the tower's output without its class token, [scene, patch, width].
            wanted: classes by head, as `label_classes` gives them.
        """
        logits = {"cells": self.cells(patches).flatten(0, 1)}
        whole = self.whole(patches.flatten(1)).split([len(classes) for classes in HEADS.values()], dim=1)
        logits |= dict(zip(HEADS, whole, strict=True))
        loss, right = patches.new_zeros(()), {}
        for name, target in wanted.items():
            seen = target != IGNORED
            if seen.any():
                losses = cross_entropy(logits[name], target, ignore_index=IGNORED, reduction="sum")
                loss = loss + losses / len(patches)
                right[name] = round(float((logits[name].argmax(-1) == target)[seen].float().mean()), 3)
        return loss, right


def tower_patches(tower: CLIPVisionModel, images: Tensor) -> Tensor:
    """Patch features as the language model gets them: last layer, without the class token."""
    output: Any = tower(pixel_values=images)
    patches: Tensor = output.last_hidden_state[:, 1:]
    return patches


def _cell_classes(labels: list[dict[str, str]]) -> Tensor:
    known = {name: index for index, name in enumerate(CELL_CLASSES)}
    return torch.tensor(
        [
            known[each[f"cell {place}"]] if "cell 0" in each else IGNORED
            for each in labels
            for place in range(PLACES)
        ]
    )
