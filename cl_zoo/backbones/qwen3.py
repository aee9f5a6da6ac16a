"""Qwen3-VL: any checkpoint of transformers' `Qwen3VLForConditionalGeneration`; the prompt is that of the Instruct checkpoints.

Bai et al., "Qwen3-VL Technical Report", 2025 (https://arxiv.org/abs/2511.21631). As Qwen2.5-VL, with 32 × 32 pixels a token and
positions whose three axes alternate over the frequencies. Beside the merger, three more (DeepStack, https://arxiv.org/abs/2406.04334)
map the states of earlier layers of the tower to what is added to the image's tokens behind the first layers of the language model.
What is kept of an image is what enters the merger and each of these. The merger alone is the projector, as in the authors' own
fine-tuning (`qwen-vl-finetune/qwenvl/train/train_qwen.py` of https://github.com/QwenLM/Qwen3-VL); the others stay frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.loading import load_checkpoint
from cl_zoo.backbones.qwen import FrozenVisual, Qwen
from cl_zoo.backbones.towers import FrozenTower


class FrozenDeepVisual(FrozenVisual):
    """A vision tower with its mergers in it that also takes what enters them: (tokens, mergers, patches of a token, width)."""

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        if pixel_values.ndim == 2:
            return self.tower(pixel_values, **kwargs)
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        tower = cast(Any, self.tower)
        mergers = (tower.merger, *tower.deepstack_merger_list)
        levels = (level.contiguous() for level in pixel_values.unbind(1))
        last, *deep = [merger(level) for merger, level in zip(mergers, levels, strict=True)]
        return BaseModelOutputWithDeepstackFeatures(
            last_hidden_state=pixel_values, pooler_output=last, deepstack_features=deep
        )


class Qwen3(Qwen):
    """A Qwen3-VL: patches of an image of any size, mergers, a Qwen3 that gets the image in its first layers once more."""

    model_type = "qwen3_vl"
    model_class = "Qwen3VLForConditionalGeneration"
    style = "qwen3-vl"

    def wrap(self, tower: nn.Module) -> FrozenTower:
        return FrozenDeepVisual(tower)

    @property
    def _levels(self) -> int:
        return 1 + len(self.model.config.vision_config.deepstack_visual_indexes)

    def _gathered(self, made: Any) -> Tensor:
        return torch.stack([made.pooler_output, *made.deepstack_features], dim=1)

    @contextmanager
    def _unmerged(self) -> Iterator[Any]:
        with super()._unmerged() as tower:
            mergers = tower.deepstack_merger_list
            tower.deepstack_merger_list = nn.ModuleList(tower.merger for _ in mergers)
            try:
                yield tower
            finally:
                tower.deepstack_merger_list = mergers


def load(path: Path | None, device: torch.device, dtype: torch.dtype) -> Backbone:
    """Any `Qwen3VLForConditionalGeneration` checkpoint in a local folder.

    Raises:
        BackboneError: as for `load_checkpoint`.
    """
    return load_checkpoint(Qwen3, path, device, dtype, name="qwen3-vl")
