"""Vision towers that are frozen, and the images that are put before them."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor, nn


class FrozenTower(nn.Module):
    """A vision tower that also takes its own output: images it has seen need not pass through it again.

    A tensor of four axes is pixels; one of three axes (images, patches, width) is what the tower answered for them at the
    layer that the model selects. The projector stays behind it, so features can be kept while the projector learns.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def train(self, mode: bool = True) -> FrozenTower:
        """Stays in evaluation mode: features that are kept must not hold a dropout mask."""
        return super().train(False)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        if pixel_values.ndim == 4:
            return self.tower(pixel_values, **kwargs)
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(
            last_hidden_state=pixel_values, hidden_states=EveryLayer((pixel_values,))
        )


class FrozenTiles(FrozenTower):
    """A vision tower that also takes what it answered as (tiles, 1, patches, width): one channel where pixels have three."""

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        kept = pixel_values.shape[1] == 1
        return super().forward(pixel_values[:, 0]) if kept else self.tower(pixel_values, **kwargs)


class EveryLayer(tuple[Tensor, ...]):
    """Hidden states of which only the selected layer is known: every index gives it."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(0)


def frame(image: Image.Image, aspect: str, processor: Any) -> Image.Image:
    """An RGB image as the image processor shall get it; a square one as it is.

    Args:
        aspect: `pad` puts it in the middle of a square of the processor's mean colour (LLaVA-1.5's `expand2square`), `crop`
            leaves its middle, `stretch` all of it on a square, `keep` leaves it alone.
    """
    width, height = image.size
    if aspect == "keep" or width == height:
        return image
    if aspect == "pad":
        side = max(width, height)
        square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in processor.image_mean))
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        return square
    crops = _crops(processor)
    if aspect == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return image if crops else image.crop((left, top, left + side, top + side))
    if not crops:
        return image  # such a processor stretches by itself
    return image.resize((processor.crop_size["width"], processor.crop_size["height"]), processor.resample)


def framed(width: int, height: int, aspect: str, processor: Any) -> tuple[int, int]:
    """Width and height of what `frame` makes of an image of a size."""
    if aspect == "keep" or width == height:
        return width, height
    if aspect == "pad":
        return max(width, height), max(width, height)
    crops = _crops(processor)
    if aspect == "crop":
        return (width, height) if crops else (min(width, height), min(width, height))
    return (processor.crop_size["width"], processor.crop_size["height"]) if crops else (width, height)


def _crops(processor: Any) -> bool:
    return bool(getattr(processor, "do_center_crop", False))
