"""InternVL: any checkpoint of transformers' `InternVLForConditionalGeneration`.

Zhu et al., "InternVL3: Exploring Advanced Training and Test-Time Recipes for Open-Source Multimodal Models", 2025
(https://arxiv.org/abs/2504.10479). An image is one tile of 448 × 448 pixels, or several and a thumbnail where the checkpoint's
`preprocessor_config.json` sets `crop_to_patches`. Four neighbouring patches become one token (pixel shuffle) before the
projector, so what the tower answered can be kept while the projector learns.

InternVL3.5 (Wang et al., 2025, https://arxiv.org/abs/2508.18265) is the same model with a Qwen3 behind it, and is asked in the same words;
`internvl3.5` is another name for it. Its conversions are those whose name on the hub ends in -HF.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.loading import load_checkpoint
from cl_zoo.backbones.towers import framed

TILES = 32
"""Tiles that pass through the tower together."""


class InternVL(Backbone):
    """An InternVL: patches of one or more tiles, pixel shuffle, a projector, a Qwen2, Qwen3 or Llama."""

    model_type = "internvl"
    model_class = "InternVLForConditionalGeneration"
    style = "internvl"
    image_frame = ("<img>", "</img>\n")
    image_text = "<IMG_CONTEXT>"
    end = "<|im_end|>"
    aspects = ("stretch", "pad", "crop")
    several_images = True

    def look(self, pixels: Sequence[dict[str, Any]]) -> list[Tensor]:
        """Hidden states of the selected layer, (tiles, patches, width) per image, class token included."""
        values, layer = (
            torch.cat([one["pixel_values"] for one in pixels]),
            self.model.config.vision_feature_layer,
        )
        states = []
        for start in range(0, len(values), TILES):
            made = self.vision_tower(values[start : start + TILES], output_hidden_states=True)
            states.append(made.last_hidden_state if layer == -1 else made.hidden_states[layer])
        return list(torch.split(torch.cat(states), [len(one["pixel_values"]) for one in pixels]))

    def show(self, features: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[int], tuple[int, ...]]:
        config = self.model.config
        classes = 1 if config.vision_feature_select_strategy == "default" else 0
        patches = features[0].shape[1] - classes
        tiles = tuple(len(one) for one in features)
        tokens = round(patches * config.downsample_ratio**2)
        return {"pixel_values": torch.cat(list(features))}, [tokens * count for count in tiles], tiles

    def image_tokens(self, width: int, height: int) -> int:
        """Of one tile, times the tiles that the image processor cuts an image of this size into."""
        config = self.model.config
        wide, high = framed(width, height, self.image_aspect, self.image_processor)
        tiles = self.image_processor.get_number_of_image_patches(high, wide)
        (rows, columns), (down, across) = config.vision_config.image_size, config.vision_config.patch_size
        classes = 0 if config.vision_feature_select_strategy == "default" else 1
        patches = (rows // down) * (columns // across) + classes
        return int(round(patches * config.downsample_ratio**2) * tiles)


def load(path: Path | None, device: torch.device, dtype: torch.dtype) -> Backbone:
    """Any `InternVLForConditionalGeneration` checkpoint in a local folder.

    Raises:
        BackboneError: as for `load_checkpoint`.
    """
    return load_checkpoint(InternVL, path, device, dtype, name="internvl")


def load_35(path: Path | None, device: torch.device, dtype: torch.dtype) -> Backbone:
    """InternVL3.5, as for `load`."""
    return load_checkpoint(InternVL, path, device, dtype, name="internvl3.5")
