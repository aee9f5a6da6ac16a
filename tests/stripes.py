"""Images no two parts of which are the same, so that a tile or a patch out of place is seen."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image


def stripes(width: int, height: int, blue: Callable[[int, int], int] = lambda x, y: x) -> Image.Image:
    """Red grows to the right and green downwards; blue is a function of both, modulo 256."""
    image = Image.new("RGB", (width, height))
    places = [(x, y) for y in range(height) for x in range(width)]
    image.putdata([(x * 255 // width, y * 255 // height, blue(x, y) % 256) for x, y in places])
    return image
