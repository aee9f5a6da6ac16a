"""The figures that the pictures are made of: small shapes, silhouettes of large things, and what stands outdoors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIZE = 32
Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]


def on_circle(hour: float, radius: float, x: float, y: float) -> tuple[float, float]:
    """The point at an hour of a clock face with the given centre and radius."""
    angle = math.pi * hour / 6
    return x + radius * math.sin(angle), y - radius * math.cos(angle)


def _circle(pen: ImageDraw.ImageDraw, box: Box, fill: Colour) -> None:
    pen.ellipse(box, fill=fill)


def _square(pen: ImageDraw.ImageDraw, box: Box, fill: Colour) -> None:
    pen.rectangle(box, fill=fill)


def _triangle(pen: ImageDraw.ImageDraw, box: Box, fill: Colour) -> None:
    x0, y0, x1, y1 = box
    pen.polygon([((x0 + x1) / 2, y0), (x0, y1), (x1, y1)], fill=fill)


def _cross(pen: ImageDraw.ImageDraw, box: Box, fill: Colour) -> None:
    x0, y0, x1, y1 = box
    pen.line((x0, y0, x1, y1), fill=fill, width=2)
    pen.line((x0, y1, x1, y0), fill=fill, width=2)


PAINT_SHAPE: dict[str, Callable[[ImageDraw.ImageDraw, Box, Colour], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
}


def texture(style: str, shade: Colour, back: Colour, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Pixels [64, 64, 3] from which a silhouette is cut."""
    pixels = np.tile(np.array(shade, dtype=np.uint8), (2 * SIZE, 2 * SIZE, 1))
    y, x = np.mgrid[0 : 2 * SIZE, 0 : 2 * SIZE]
    holes = np.zeros((2 * SIZE, 2 * SIZE), dtype=bool)
    if style == "striped":
        holes = (x + y) % 10 < 4
    elif style == "dotted":
        holes = ((x % 8) < 4) & ((y % 8) < 4)
    elif style == "speckled":
        holes = np.kron(rng.random((SIZE, SIZE)) < 0.35, np.ones((2, 2), dtype=bool))
    pixels[holes] = back
    return pixels


def silhouette(thing: str, rng: np.random.Generator) -> Image.Image:
    """The mask [64 x 64] of a large thing, shifted by a few pixels."""
    mask = Image.new("L", (2 * SIZE, 2 * SIZE), 0)
    pen = ImageDraw.Draw(mask)
    for kind, points in _PARTS[thing]:
        paint = 0 if kind.startswith("no ") else 255
        if kind.endswith("polygon"):
            pen.polygon(points, fill=paint)
        elif kind.endswith("ellipse"):
            pen.ellipse(points, fill=paint)
        else:
            pen.rectangle(points, fill=paint)
    shift = rng.integers(-3, 4, size=2)
    return mask.transform(mask.size, Image.Transform.AFFINE, (1, 0, int(shift[0]), 0, 1, int(shift[1])))


def _star() -> list[tuple[float, float]]:
    points = []
    for corner in range(10):
        radius = 28 if corner % 2 == 0 else 12
        points.append(on_circle(corner * 1.2, radius, 31.5, 33.5))
    return points


_PARTS: dict[str, list[tuple[str, list[Any]]]] = {
    "fish": [("ellipse", [6, 18, 46, 46]), ("polygon", [(42, 32), (58, 16), (58, 48)])],
    "house": [
        ("polygon", [(6, 30), (32, 6), (58, 30)]),
        ("box", [12, 30, 52, 58]),
        ("no box", [27, 42, 37, 58]),
    ],
    "tree": [("ellipse", [12, 4, 52, 40]), ("box", [28, 38, 36, 60])],
    "star": [("polygon", _star())],
    "heart": [
        ("ellipse", [6, 10, 34, 36]),
        ("ellipse", [30, 10, 58, 36]),
        ("polygon", [(8, 30), (56, 30), (32, 58)]),
    ],
    "cup": [
        ("box", [12, 16, 42, 54]),
        ("ellipse", [34, 22, 58, 46]),
        ("no ellipse", [42, 28, 52, 40]),
        ("box", [12, 16, 42, 54]),
    ],
    "car": [
        ("box", [4, 30, 60, 46]),
        ("polygon", [(14, 30), (22, 16), (44, 16), (52, 30)]),
        ("ellipse", [10, 40, 26, 56]),
        ("ellipse", [38, 40, 54, 56]),
    ],
    "boat": [
        ("polygon", [(4, 42), (60, 42), (50, 58), (14, 58)]),
        ("polygon", [(30, 4), (30, 38), (8, 38)]),
        ("polygon", [(34, 10), (34, 38), (54, 38)]),
    ],
    "flower": [
        ("ellipse", [24, 4, 40, 20]),
        ("ellipse", [10, 14, 26, 30]),
        ("ellipse", [38, 14, 54, 30]),
        ("ellipse", [16, 28, 32, 44]),
        ("ellipse", [32, 28, 48, 44]),
        ("ellipse", [22, 16, 42, 36]),
        ("box", [30, 40, 34, 62]),
    ],
    "key": [
        ("ellipse", [4, 20, 28, 44]),
        ("no ellipse", [11, 27, 21, 37]),
        ("box", [26, 29, 60, 35]),
        ("box", [48, 35, 52, 44]),
        ("box", [56, 35, 60, 46]),
    ],
    "bottle": [
        ("box", [26, 4, 38, 20]),
        ("polygon", [(26, 18), (38, 18), (46, 30), (46, 60), (18, 60), (18, 30)]),
    ],
    "arrow": [("box", [6, 26, 38, 38]), ("polygon", [(34, 12), (60, 32), (34, 52)])],
}


def paint_sky(pen: ImageDraw.ImageDraw, sky: str, rng: np.random.Generator) -> None:
    """Sun, cloud, moon or evening glow."""
    x = int(rng.integers(8, 48))
    if sky == "clear":
        pen.ellipse((x, 2, x + 9, 11), fill=(255, 240, 90))
    elif sky == "cloudy":
        pen.ellipse((x - 6, 3, x + 14, 11), fill=(240, 240, 242))
    elif sky == "night":
        pen.ellipse((x, 3, x + 7, 10), fill=(240, 240, 215))
    else:
        pen.rectangle((0, 26, 64, 34), fill=(240, 120, 90))


def paint_being(pen: ImageDraw.ImageDraw, being: str, colour: Colour, x: int) -> None:
    """A man, a woman, a dog or a bird whose left edge is at `x`."""
    skin, dark = (235, 190, 150), (50, 40, 40)
    if being in ("man", "woman"):
        pen.ellipse((x + 8, 18, x + 18, 28), fill=skin)
        pen.rectangle((x + 8, 17, x + 18, 21), fill=dark)
    if being == "man":
        pen.rectangle((x + 6, 28, x + 20, 44), fill=colour)
        pen.rectangle((x + 8, 44, x + 11, 58), fill=dark)
        pen.rectangle((x + 15, 44, x + 18, 58), fill=dark)
    elif being == "woman":
        pen.rectangle((x + 5, 19, x + 8, 32), fill=dark)
        pen.rectangle((x + 18, 19, x + 21, 32), fill=dark)
        pen.polygon([(x + 13, 26), (x + 2, 54), (x + 24, 54)], fill=colour)
    elif being == "dog":
        pen.rectangle((x + 2, 42, x + 20, 51), fill=colour)
        pen.rectangle((x + 17, 35, x + 26, 45), fill=colour)
        for leg in (3, 8, 13, 18):
            pen.rectangle((x + leg, 50, x + leg + 2, 58), fill=colour)
    else:
        pen.ellipse((x + 5, 40, x + 21, 53), fill=colour)
        pen.ellipse((x + 16, 32, x + 25, 42), fill=colour)
        pen.polygon([(x + 24, 35), (x + 30, 38), (x + 24, 40)], fill=(250, 170, 20))
        pen.line((x + 13, 52, x + 13, 59), fill=dark, width=2)


def _tree(pen: ImageDraw.ImageDraw, x: int) -> None:
    pen.rectangle((x + 11, 36, x + 16, 54), fill=(110, 70, 35))
    pen.ellipse((x + 2, 14, x + 25, 40), fill=(30, 105, 40))


def _house(pen: ImageDraw.ImageDraw, x: int) -> None:
    pen.rectangle((x + 3, 30, x + 25, 52), fill=(205, 175, 140))
    pen.polygon([(x, 31), (x + 14, 14), (x + 28, 31)], fill=(140, 50, 40))
    pen.rectangle((x + 11, 40, x + 17, 52), fill=(80, 50, 30))


def _car(pen: ImageDraw.ImageDraw, x: int) -> None:
    pen.rectangle((x, 41, x + 28, 51), fill=(120, 125, 135))
    pen.rectangle((x + 6, 34, x + 21, 42), fill=(170, 205, 225))
    pen.ellipse((x + 3, 47, x + 10, 55), fill=(15, 15, 15))
    pen.ellipse((x + 18, 47, x + 25, 55), fill=(15, 15, 15))


def _boat(pen: ImageDraw.ImageDraw, x: int) -> None:
    pen.polygon([(x, 45), (x + 28, 45), (x + 23, 54), (x + 5, 54)], fill=(120, 70, 40))
    pen.polygon([(x + 14, 16), (x + 14, 43), (x + 27, 43)], fill=(250, 250, 250))


def _tent(pen: ImageDraw.ImageDraw, x: int) -> None:
    pen.polygon([(x + 14, 28), (x - 1, 54), (x + 29, 54)], fill=(245, 150, 40))
    pen.polygon([(x + 14, 36), (x + 9, 54), (x + 19, 54)], fill=(90, 50, 20))


def _rock(pen: ImageDraw.ImageDraw, x: int) -> None:
    pen.polygon([(x + 1, 54), (x + 5, 40), (x + 14, 34), (x + 24, 42), (x + 27, 54)], fill=(112, 112, 116))


PAINT_BESIDE: dict[str, Callable[[ImageDraw.ImageDraw, int], None]] = {
    "tree": _tree,
    "house": _house,
    "car": _car,
    "boat": _boat,
    "tent": _tent,
    "rock": _rock,
}
