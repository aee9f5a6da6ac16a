"""Images no two parts of which are the same, so that a tile or a patch out of place is seen."""

from __future__ import annotations

from PIL import Image


def stripes(width: int, height: int, blue: int | None = None) -> Image.Image:
    """Red grows to the right and green downwards; blue is one value, or goes with the column."""
    image = Image.new("RGB", (width, height))
    image.putdata(
        [
            (x * 255 // width, y * 255 // height, x % 256 if blue is None else blue)
            for y in range(height)
            for x in range(width)
        ]
    )
    return image
