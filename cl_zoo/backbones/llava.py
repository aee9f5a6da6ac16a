"""LLaVA: any checkpoint of transformers' `LlavaForConditionalGeneration`, and LLaVA-1.5 by name.

Liu et al., "Improved Baselines with Visual Instruction Tuning", CVPR 2024 (https://arxiv.org/abs/2310.03744). The prompt, the
square that an image is padded to and the layer of CLIP are those of the released training code
(https://github.com/haotian-liu/LLaVA); the weights are read as the `llava-hf` conversions have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.checkpoints import HUB, hub_folder
from cl_zoo.backbones.loading import load_checkpoint

ENCODER = "ViT-L-14-336/openai"
"""The CLIP that LLaVA-1.5's vision tower was taken from; the papers' anchors are its features."""


class Llava(Backbone):
    """A LLaVA: CLIP's patches of one square image, a two-layer projector, a Llama."""

    model_type = "llava"
    model_class = "LlavaForConditionalGeneration"
    style = "vicuna_v1"
    image_frame = ("", "\n")
    image_text = "<image>"

    def look(self, pixels: Sequence[dict[str, Any]]) -> list[Tensor]:
        """Hidden states of the selected layer, (patches, width) per image, class token included."""
        values = torch.cat([one["pixel_values"] for one in pixels])
        states = self.vision_tower(values, output_hidden_states=True).hidden_states
        return list(states[self.model.config.vision_feature_layer])

    def show(self, features: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[int], tuple[int, ...]]:
        stacked = torch.stack(list(features))
        classes = 1 if self.model.config.vision_feature_select_strategy == "default" else 0
        return {"pixel_values": stacked}, [stacked.shape[1] - classes] * len(stacked), ()

    def image_tokens(self, width: int, height: int) -> int:
        """As many as CLIP has patches, whatever the size."""
        vision = self.model.config.vision_config
        classes = 1 if self.model.config.vision_feature_select_strategy == "default" else 0
        return int((vision.image_size // vision.patch_size) ** 2 + 1 - classes)


def load(
    path: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    name: str = "llava",
    template: str | None = None,
    features: str | None = None,
) -> Backbone:
    """Any `LlavaForConditionalGeneration` checkpoint in a local folder.

    Raises:
        BackboneError: as for `load_checkpoint`.
    """
    return load_checkpoint(Llava, path, device, dtype, name=name, template=template, features=features)


def load_7b(path: Path | None, device: torch.device, dtype: torch.dtype) -> Backbone:
    """LLaVA-1.5-7B: `llava-hf/llava-1.5-7b-hf` from the hub's cache or the hub, or a folder with it.

    Raises:
        BackboneError: as for `load`, or the hub cannot be reached.
    """
    return _published("llava-1.5-7b", path, device, dtype)


def load_13b(path: Path | None, device: torch.device, dtype: torch.dtype) -> Backbone:
    """LLaVA-1.5-13B: `llava-hf/llava-1.5-13b-hf`, as for `load_7b`."""
    return _published("llava-1.5-13b", path, device, dtype)


def _published(name: str, path: Path | None, device: torch.device, dtype: torch.dtype) -> Backbone:
    folder = path or hub_folder(name, HUB[name])
    return load(folder, device, dtype, name=name, features=ENCODER)
