"""LLaVA-OneVision: any checkpoint of transformers' `LlavaOnevisionForConditionalGeneration`.

Li et al., "LLaVA-OneVision: Easy Visual Task Transfer", 2024 (https://arxiv.org/abs/2408.03326). An image is looked at whole and in
tiles as in LLaVA-NeXT, by a SigLIP, which has no class token. Where its rows hold more tokens than `vision_aspect_ratio` allows
(`anyres_max_9`: those of nine tiles, and a tenth on each side), the model makes fewer of them behind the projector (bilinear). An image
of a sample with several is one tile, on a square of the mean colour. The prompt is that of the released training code, `qwen_1_5` in
llava/conversation.py of https://github.com/LLaVA-VL/LLaVA-NeXT; the chat template of the conversions leaves its system sentence out
(`--template internvl` is the same text). Frames of a video are images of a sample; the model's own video tokens are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import torch

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.llava_next import LlavaNext
from cl_zoo.backbones.loading import load_checkpoint
from cl_zoo.batches import Batch
from cl_zoo.tasks import ImageSource, Sample

SLACK = 1.1
"""How much longer than allowed a side may be before tokens are merged, as in transformers."""


class LlavaOnevision(LlavaNext):
    """A LLaVA-OneVision: SigLIP's patches of an image and of its tiles, a two-layer projector, a Qwen2."""

    model_type = "llava_onevision"
    model_class = "LlavaOnevisionForConditionalGeneration"
    style = "qwen2.5-vl"
    end = "<|im_end|>"
    several_images = True

    def aspect_of(self, sample: Sample) -> str:
        return self.image_aspect if len(sample.images) == 1 else "pad"

    @property
    def tokens_together(self) -> int:
        """Of an image of a sample with several: its patches and the end of a row."""
        return self._side**2 + 1

    def batch(self, samples: Sequence[Sample], *, answers: bool) -> Batch:
        """As in every family; where there are images, the model has to be told which of them belong together."""
        made = super().batch(samples, answers=answers)
        if "pixel_values" in made.inputs:
            counts = [len(sample.images) for sample in samples]
            made.inputs["batch_num_images"] = torch.tensor(counts, device=self.device)
        return made

    def _rows_and_columns(self, width: int, height: int) -> tuple[int, int]:
        rows, columns = super()._rows_and_columns(width, height)
        tiles = int(self.model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = sqrt(rows * columns / (tiles * self._side**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > SLACK else (rows, columns)

    def _pixels(self, image: ImageSource, aspect: str | None = None) -> dict[str, Any]:
        made = super()._pixels(image, aspect)
        return {**made, "pixel_values": made["pixel_values"][:, :1]} if aspect == "pad" else made


def load(path: Path | None, device: torch.device, dtype: torch.dtype) -> Backbone:
    """Any `LlavaOnevisionForConditionalGeneration` checkpoint in a local folder.

    Raises:
        BackboneError: as for `load_checkpoint`.
    """
    return load_checkpoint(LlavaOnevision, path, device, dtype, name="llava-onevision")
