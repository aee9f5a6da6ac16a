"""LLaVA-NeXT (LLaVA-1.6): any checkpoint of transformers' `LlavaNextForConditionalGeneration`.

Liu et al., "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", 2024 (https://llava-vl.github.io/blog/2024-01-30-llava-next/).
An image is looked at whole and in tiles: of the resolutions in `image_grid_pinpoints` the one that wastes least is cut into
tiles of the size that CLIP takes. Behind the projector the model puts the tiles' tokens into rows, leaves out those that are padding
alone, and ends each row with one learnt token, `image_newline`, which stays frozen here. For that it has to know the image's own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.loading import load_checkpoint
from cl_zoo.backbones.towers import FrozenTiles, FrozenTower

DIGITS = 256  # the base in which a size is written among features: bf16 holds no larger integers one by one
STYLES = {"mistral": "mistral_instruct"}
"""The template that a checkpoint was taught, by the kind of its language model, where it is not the family's."""


class LlavaNext(Backbone):
    """A LLaVA-NeXT: CLIP's patches of an image and of its tiles, a two-layer projector, a Llama or Mistral."""

    model_type = "llava_next"
    model_class = "LlavaNextForConditionalGeneration"
    style = "vicuna_v1"
    image_frame = ("", "\n")
    image_text = "<image>"
    aspects = ("keep",)

    def wrap(self, tower: nn.Module) -> FrozenTower:
        return FrozenTiles(tower)

    def look(self, pixels: Sequence[dict[str, Any]]) -> list[Tensor]:
        """Hidden states of the selected layer, (tiles · patches + 1, width) per image; the last row tells the image's size."""
        return [self._look(one) for one in pixels]

    def show(self, features: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[int], tuple[int, ...]]:
        sizes = [size_in(one) for one in features]
        tiles = [one[:-1].view(-1, self._patches, one.shape[1]) for one in features]
        # Without tiles of its own an image is its patches and the end of a row.
        tokens = [
            self.image_tokens(width, height) if len(one) > 1 else self._side**2 + 1
            for one, (height, width) in zip(tiles, sizes, strict=True)
        ]
        values, about = torch.cat(tiles)[:, None], torch.tensor(sizes, device=self.device)
        return {"pixel_values": values, "image_sizes": about}, tokens, tuple(len(one) for one in tiles)

    def image_tokens(self, width: int, height: int) -> int:
        """Those of the whole, those of the tiles that are not padding alone, and one at the end of each row of these."""
        rows, columns = self._rows_and_columns(width, height)
        return self._side**2 + rows * (columns + 1)

    def cost(self, width: int, height: int) -> tuple[int, int, int]:
        """What an image of a size costs: tokens in a prompt, patches in the tower, numbers that are kept of it."""
        rows, columns = self._grid(width, height)
        patches, every = (1 + rows * columns) * self._patches, self.model.config.vision_config.hidden_size
        return self.image_tokens(width, height), patches, (patches + 1) * every

    @property
    def _side(self) -> int:
        """Patches of a tile in a row."""
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size)

    @property
    def _patches(self) -> int:
        """What the tower answers for a tile, a class token included."""
        return self._side**2 + int(self.model.config.vision_feature_select_strategy == "default")

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of tiles."""
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape as shape

        config = self.model.config
        rows, columns = shape((height, width), config.image_grid_pinpoints, config.vision_config.image_size)
        return rows, columns

    def _rows_and_columns(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of the tokens of all tiles, without those that are padding alone."""
        from transformers.models.llava_next.modeling_llava_next import unpad_image

        rows, columns = (self._side * count for count in self._grid(width, height))
        _, rows, columns = unpad_image(torch.empty(1, rows, columns, device="meta"), (height, width)).shape
        return rows, columns

    def _look(self, pixels: dict[str, Any]) -> Tensor:
        # One image at a time: its features are the same whatever other images are asked for.
        states = self.vision_tower(pixels["pixel_values"][0], output_hidden_states=True).hidden_states
        chosen: Tensor = states[self.model.config.vision_feature_layer].flatten(0, 1)
        height, width = pixels["image_sizes"][0].tolist()
        digits = chosen.new_tensor([*divmod(height, DIGITS), *divmod(width, DIGITS)])
        return torch.cat([chosen, nn.functional.pad(digits, (0, chosen.shape[1] - 4))[None]])


def size_in(features: Tensor) -> tuple[int, int]:
    """Height and width of the image that features are of, as their last row tells."""
    above, below, far, near = (int(digit) for digit in features[-1, :4].tolist())
    return above * DIGITS + below, far * DIGITS + near


def load(path: Path | None, device: torch.device, dtype: torch.dtype) -> Backbone:
    """Any `LlavaNextForConditionalGeneration` checkpoint in a local folder; it raises what `load_checkpoint` does."""
    made = load_checkpoint(LlavaNext, path, device, dtype, name="llava-next")
    made.adjust(template=STYLES.get(made.model.config.text_config.model_type))
    return made
