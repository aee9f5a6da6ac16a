"""Qwen2.5-VL: any checkpoint of transformers' `Qwen2_5_VLForConditionalGeneration`.

Bai et al., "Qwen2.5-VL Technical Report", 2025 (https://arxiv.org/abs/2502.13923). An image keeps its aspect and has as many
tokens as its size asks for; tokens of an image have positions in height and width (M-RoPE), which the model counts from
`image_grid_thw` and `mm_token_type_ids`. The merger, which makes one token of four neighbouring patches, is the projector.
What is kept of an image is what enters the merger, in the order of the tokens.

An image has as many tokens as its pixels ask for. `preprocessor_config.json` in the checkpoint's folder bounds the pixels: as
`min_pixels` and `max_pixels`, or as `size.shortest_edge` and `size.longest_edge`, which are areas too. Where large photographs
make prompts longer than a recipe's `max_tokens`, lower the upper bound there: it counts as another revision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.loading import load_checkpoint
from cl_zoo.backbones.towers import FrozenTower
from cl_zoo.errors import DataError, first_line


class FrozenVisual(FrozenTower):
    """A vision tower with its merger in it that also takes what enters the merger: (tokens, patches of a token, width).

    A tensor of two axes (patches, values) is pixels.
    """

    @property
    def dtype(self) -> torch.dtype:
        return cast(torch.dtype, self.tower.dtype)

    @property
    def spatial_merge_size(self) -> int:
        return cast(int, self.tower.spatial_merge_size)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        if pixel_values.ndim == 2:
            return self.tower(pixel_values, **kwargs)
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        merger = cast(nn.Module, self.tower.merger)
        return BaseModelOutputWithPooling(last_hidden_state=pixel_values, pooler_output=merger(pixel_values))


class Gathered(nn.Module):
    """In the merger's place: the patches of each token, (tokens, patches of a token, width)."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.patches = patches

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.patches, x.shape[-1])


class Qwen(Backbone):
    """A Qwen2.5-VL: patches of an image of any size, a merger, a Qwen2.5 with positions in three axes."""

    model_type = "qwen2_5_vl"
    model_class = "Qwen2_5_VLForConditionalGeneration"
    style = "qwen2.5-vl"
    image_frame = ("<|vision_start|>", "<|vision_end|>")
    image_text = "<|image_pad|>"
    end = "<|im_end|>"
    aspects = ("keep",)
    tower_at = "model.visual"
    projector_at = "model.visual.tower.merger"
    several_images = True

    def wrap(self, tower: nn.Module) -> FrozenTower:
        return FrozenVisual(tower)

    def look(self, pixels: Sequence[dict[str, Any]]) -> list[Tensor]:
        """What enters the merger, (rows, columns, patches of a token, width) per image: its shape tells the image's grid."""
        return [self._look(one) for one in pixels]

    def show(self, features: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[int], tuple[int, ...]]:
        merge = self._merge
        grids = [[1, one.shape[0] * merge, one.shape[1] * merge] for one in features]
        tokens = [one.shape[0] * one.shape[1] for one in features]
        values = torch.cat([one.flatten(0, 1) for one in features])
        grid = torch.tensor(grids, device=self.device)
        return {"pixel_values": values, "image_grid_thw": grid}, tokens, tuple(tokens)

    def finish(self, inputs: dict[str, Any]) -> None:
        """Where there are images, the model counts positions itself, and has to be told which tokens are theirs."""
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.model.config.image_token_id).int()
            inputs.pop("position_ids", None)

    def image_tokens(self, width: int, height: int) -> int:
        """A token for every square of merged patches of what the image processor makes of the size."""
        try:
            patches = self.image_processor.get_number_of_image_patches(height, width)
        except ValueError as error:
            raise DataError(first_line(error)) from None
        return int(patches // self._merge**2)

    def cost(self, width: int, height: int) -> tuple[int, int, int]:
        """Of a grid in squares of merged patches, as near to the size as can be."""
        vision = self.model.config.vision_config
        rows, columns = (round(side / (vision.patch_size * self._merge)) for side in (height, width))
        patches = rows * columns * self._merge**2
        return rows * columns, patches, patches * self._levels * vision.hidden_size

    @property
    def _levels(self) -> int:
        """Layers of the tower whose states are kept."""
        return 1

    @property
    def _merge(self) -> int:
        return int(self.model.config.vision_config.spatial_merge_size)

    def _look(self, pixels: dict[str, Any]) -> Tensor:
        # One image at a time: its features are the same whatever other images are asked for.
        grid, merge = pixels["image_grid_thw"].to(self.device), self._merge
        with self._unmerged() as tower:
            gathered = self._gathered(tower(pixels["pixel_values"], grid_thw=grid))
        _, rows, _ = (int(side) for side in grid[0])
        return gathered.reshape(rows // merge, -1, *gathered.shape[1:])

    def _gathered(self, made: Any) -> Tensor:
        """What the tower answers without its merger, a row for each token."""
        return cast(Tensor, made.pooler_output)

    @contextmanager
    def _unmerged(self) -> Iterator[Any]:
        """Inside, the tower answers with what it otherwise merges: it puts windows back into the image's order itself."""
        tower = cast(Any, self.vision_tower)
        merger, tower.merger = tower.merger, Gathered(self._merge**2)
        try:
            yield tower
        finally:
            tower.merger = merger


def load(path: Path | None, device: torch.device, dtype: torch.dtype) -> Backbone:
    """Any `Qwen2_5_VLForConditionalGeneration` checkpoint in a local folder.

    Raises:
        BackboneError: as for `load_checkpoint`.
    """
    return load_checkpoint(Qwen, path, device, dtype, name="qwen2.5-vl")
