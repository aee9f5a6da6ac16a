"""SmolVLM2: any checkpoint of transformers' `SmolVLMForConditionalGeneration`, of 256 million to 2.2 billion parameters.

Marafioti et al., "SmolVLM: Redefining small and efficient multimodal models", 2025 (https://arxiv.org/abs/2504.05299). An image
is scaled until its longer side is `size.longest_edge` of the checkpoint's `preprocessor_config.json`, and cut into square tiles
of `max_image_size`; the whole image, as one tile, follows them. A token before each says where it stands, as transformers'
`SmolVLMProcessor` writes it. What is kept of an image is what enters the connector (pixel shuffle and a linear).

As published, a square image of any size is 4 × 4 tiles and the whole: 1,377 image tokens in the 2.2B model, 1,088 in smaller ones.
Half of `longest_edge` there makes it 2 × 2 and the whole, `"do_image_splitting": false` the whole alone; each is another revision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.loading import load_checkpoint
from cl_zoo.backbones.templates import TEMPLATES
from cl_zoo.backbones.towers import FrozenTiles, FrozenTower
from cl_zoo.backbones.wording import Piece

AROUND = "<fake_token_around_image>"


class SmolVLM(Backbone):
    """A SmolVLM2: SigLIP's patches of the tiles of an image and of its whole, pixel shuffle, a linear, a Llama."""

    model_type = "smolvlm"
    model_class = "SmolVLMForConditionalGeneration"
    style = "smolvlm2"
    image_frame = (AROUND, AROUND)
    image_text = "<image>"
    answer_lead, end = " ", "<end_of_utterance>"
    aspects = ("keep",)
    tower_at, projector_at, decoder_at = "model.vision_model", "model.connector", "model.text_model"
    several_images = True

    def wrap(self, tower: nn.Module) -> FrozenTower:
        return FrozenTiles(tower)

    def process(self, image: Image.Image) -> dict[str, Any]:
        """Tiles (tiles, 1, channels, height, width), and how many rows and columns of them there are beside the whole."""
        made = self.image_processor(images=[image], return_tensors="pt", return_row_col_info=True)
        grid = made["rows"][0][0], made["cols"][0][0]
        return {"pixel_values": made["pixel_values"][0][:, None], "grid": grid}

    def look(self, pixels: Sequence[dict[str, Any]]) -> list[Tensor]:
        """What enters the connector, (1 + tiles · patches, width) per image: the first row begins with rows and columns of tiles."""
        return [self._look(one["pixel_values"], one["grid"]) for one in pixels]

    def show(self, features: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[str], tuple[int, ...]]:
        grids = torch.stack([one[0, :2] for one in features]).int().tolist()
        tiles = tuple(rows * columns + 1 for rows, columns in grids)
        values = [one[1:].view(of, 1, 1, -1, one.shape[1]) for one, of in zip(features, tiles, strict=True)]
        return {"pixel_values": torch.cat(values)}, [self.layout(*grid) for grid in grids], tiles

    def layout(self, rows: int, columns: int) -> str:
        """The text that stands for an image between its marks: its tiles row by row, where it is cut, and the whole."""
        image = self.image_text * (self._patches // self.model.config.scale_factor**2)
        text = "".join(
            f"{AROUND}<row_{row}_col_{column}>{image}" + "\n" * (column == columns)
            for row in range(1, rows + 1)
            for column in range(1, columns + 1)
        )
        return (text + "\n" * bool(rows) + f"{AROUND}<global-img>{image}").removeprefix(AROUND)

    def image_tokens(self, width: int, height: int) -> int | None:
        """Of its tiles with their marks; not counted where the processor does not scale the longer side to whole tiles."""
        grid = self._grid(width, height)
        return None if grid is None else self.image_width(self.layout(*grid))

    def cost(self, width: int, height: int) -> tuple[int, int, int]:
        """Where nobody says otherwise, the longer side has four tiles, as in the published checkpoints."""
        published = (-(-4 * side // max(width, height)) for side in (height, width))
        rows, columns = self._grid(width, height) or published
        patches = (rows * columns + 1) * self._patches
        tokens = self.layout(rows, columns).count("<")  # but for line breaks each mark is a token
        return tokens, patches, (1 + patches) * self.model.config.vision_config.hidden_size

    def _grid(self, width: int, height: int) -> tuple[int, int] | None:
        if (by := self.image_processor) is None:
            return None
        whole = by.do_resize and not by.size["longest_edge"] % by.max_image_size["longest_edge"]
        if by.do_image_splitting and not whole:
            return None
        _, rows, columns = by.get_number_of_image_patches(height, width)
        return rows, columns

    @property
    def _patches(self) -> int:
        """Of a tile."""
        vision = self.model.config.vision_config
        return int((vision.image_size // vision.patch_size) ** 2)

    def _look(self, tiles: Tensor, grid: tuple[int, int]) -> Tensor:
        # One image at a time: its features are the same whatever other images are asked for.
        states: Tensor = self.vision_tower(tiles[:, 0]).last_hidden_state.flatten(0, 1)
        head = states.new_zeros(1, states.shape[1])
        head[0, :2] = states.new_tensor(grid)
        return torch.cat([head, states])

    def _asked(self, head: str, parts: Sequence[str], tail: str) -> Iterator[Piece]:
        if not parts[0] and len(parts) > 1 and self.template == TEMPLATES[self.style]:
            head = head.removesuffix(" ")  # before an image the processor's template writes none
        return super()._asked(head, parts, tail)


def load(path: Path | None, device: torch.device, dtype: torch.dtype) -> Backbone:
    """Any `SmolVLMForConditionalGeneration` checkpoint in a local folder.

    Raises:
        BackboneError: as for `load_checkpoint`.
    """
    return load_checkpoint(SmolVLM, path, device, dtype, name="smolvlm2")
