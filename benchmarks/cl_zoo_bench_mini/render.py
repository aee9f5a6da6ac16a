"""Draws the small pictures of the benchmark: every function turns a description into a 32 x 32 picture.

A description holds everything that is to be seen; the drawing itself takes a generator only for what carries no meaning
(speckle of a texture, the grain of a noisy photograph), so a picture is a function of description and seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cl_zoo_bench_mini.figures import (
    PAINT_BESIDE,
    PAINT_SHAPE,
    SIZE,
    Colour,
    on_circle,
    paint_being,
    paint_sky,
    silhouette,
    texture,
)

CELL = 8
ROWS = SIZE // CELL
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (40, 175, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 215, 40),
    "purple": (165, 60, 190),
    "orange": (250, 140, 30),
}
SHAPES = ("circle", "square", "triangle", "cross")
THINGS = ("fish", "house", "tree", "star", "heart", "cup", "car", "boat", "flower", "key", "bottle", "arrow")
STYLES = ("plain", "outlined", "striped", "dotted", "negative", "speckled")
SURFACES: dict[str, tuple[int, int, int]] = {
    "white": (236, 236, 232),
    "grey": (150, 152, 156),
    "brown": (140, 98, 60),
    "black": (38, 38, 42),
}
FLAWS = ("blurry", "dark", "bright", "noisy")
SKIES: dict[str, tuple[int, int, int]] = {
    "clear": (150, 205, 250),
    "cloudy": (185, 190, 196),
    "night": (22, 24, 60),
    "sunset": (252, 170, 120),
}
GROUNDS: dict[str, tuple[int, int, int]] = {
    "grass": (70, 150, 60),
    "sand": (228, 205, 150),
    "snow": (245, 247, 252),
    "water": (50, 110, 170),
}
BEINGS = ("man", "woman", "dog", "bird")
SIDES = ("tree", "house", "car", "boat", "tent", "rock")


@dataclass(frozen=True)
class Bar:
    """One bar of a chart: its colour's name and its height, 1 to 9."""

    colour: str
    height: int


def grid(cells: dict[int, tuple[str, str]], dark: bool, rng: np.random.Generator) -> Image.Image:
    """Small shapes in the 4 x 4 cells of a board; `cells` maps a cell, counted in reading order, to colour and shape."""
    picture = Image.new("RGB", (SIZE, SIZE), (34, 34, 40) if dark else (232, 232, 228))
    pen = ImageDraw.Draw(picture)
    for cell, (colour, shape) in cells.items():
        x, y = CELL * (cell % ROWS) + int(rng.integers(0, 2)), CELL * (cell // ROWS) + int(rng.integers(0, 2))
        PAINT_SHAPE[shape](pen, (x, y, x + 6, y + 6), COLOURS[colour])
    return picture


def chart(bars: tuple[Bar, ...], rng: np.random.Generator) -> Image.Image:
    """A bar chart; one unit of height is three pixels."""
    picture = Image.new("RGB", (SIZE, SIZE), (250, 250, 250))
    pen = ImageDraw.Draw(picture)
    for line in range(1, 10, 2):
        pen.line((1, SIZE - 3 - 3 * line, SIZE, SIZE - 3 - 3 * line), fill=(222, 222, 226))
    width = 30 // len(bars)
    for place, bar in enumerate(bars):
        left = 2 + place * width + int(rng.integers(0, 2))
        pen.rectangle((left, SIZE - 3 - 3 * bar.height, left + width - 3, SIZE - 3), fill=COLOURS[bar.colour])
    pen.line((0, SIZE - 2, SIZE, SIZE - 2), fill=(60, 60, 60), width=2)
    pen.line((0, 0, 0, SIZE), fill=(60, 60, 60))
    return picture


def clock(hour: int, colour: str, dark: bool, rng: np.random.Generator) -> Image.Image:
    """A clock face with one coloured hand that points to an hour, 1 to 12."""
    back, ink = ((40, 40, 46), (225, 225, 225)) if dark else ((238, 238, 240), (50, 50, 50))
    picture = Image.new("RGB", (2 * SIZE, 2 * SIZE), back)
    pen = ImageDraw.Draw(picture)
    x, y, radius = 32 + int(rng.integers(-3, 4)), 32 + int(rng.integers(-3, 4)), int(rng.integers(25, 29))
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=ink, width=3)
    for tick in range(12):
        u, v = on_circle(tick, radius - 5, x, y)
        pen.ellipse((u - 1, v - 1, u + 1, v + 1), fill=ink)
    pen.line((x, y, *on_circle(hour, radius - 7, x, y)), fill=COLOURS[colour], width=5)
    pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=ink)
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX)


def frame(count: int, colour: str, rng: np.random.Generator) -> Image.Image:
    """A frame of ten places, two rows of five, of which the first `count` hold a dot."""
    picture = Image.new("RGB", (SIZE, SIZE), (246, 246, 240))
    pen = ImageDraw.Draw(picture)
    top = 10 + int(rng.integers(-8, 9))
    for place in range(10):
        x, y = 1 + 6 * (place % 5), top + 6 * (place // 5)
        pen.rectangle((x, y, x + 6, y + 6), outline=(90, 90, 90))
        if place < count:
            pen.ellipse((x + 1, y + 1, x + 5, y + 5), fill=COLOURS[colour])
    return picture


def portrait(thing: str, colour: str, style: str, dark: bool, rng: np.random.Generator) -> Image.Image:
    """One large thing in one of six styles."""
    back: Colour = (40, 42, 50) if dark else (235, 233, 226)
    shade = COLOURS[colour]
    if style == "negative":
        back, shade = shade, back
    picture = Image.new("RGB", (2 * SIZE, 2 * SIZE), back)
    mask = silhouette(thing, rng)
    if style == "outlined":
        inner = mask.filter(ImageFilter.MinFilter(7))
        mask = Image.fromarray(np.where(np.asarray(inner) > 0, 0, np.asarray(mask)))
    ink = Image.fromarray(texture(style, shade, back, rng))
    picture.paste(ink, (0, 0), mask)
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX)


def photograph(thing: str, colour: str, surface: str, flaw: str, rng: np.random.Generator) -> Image.Image:
    """A thing on a table, photographed badly."""
    picture = Image.new("RGB", (2 * SIZE, 2 * SIZE), (198, 200, 190))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 42, 64, 64), fill=SURFACES[surface])
    mask = silhouette(thing, rng).resize((46, 46))
    picture.paste(COLOURS[colour], (9 + int(rng.integers(-5, 6)), 5), mask)
    small: np.ndarray[Any, Any] = np.asarray(
        picture.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32
    )
    if flaw == "dark":
        small = small * 0.35
    elif flaw == "bright":
        small = 255 - (255 - small) * 0.4
    elif flaw == "noisy":
        small = small + rng.normal(0, 30, (SIZE, SIZE, 1))
    result = Image.fromarray(np.clip(small, 0, 255).astype(np.uint8))
    return result.filter(ImageFilter.GaussianBlur(1.5)) if flaw == "blurry" else result


def outdoors(
    sky: str, ground: str, being: str, colour: str, beside: str, left: bool, rng: np.random.Generator
) -> Image.Image:
    """Somebody under a sky on some ground, with one thing beside; `left` tells that the being stands at the left."""
    picture = Image.new("RGB", (2 * SIZE, 2 * SIZE), SKIES[sky])
    pen = ImageDraw.Draw(picture)
    horizon = 38 + int(rng.integers(-3, 4))
    pen.rectangle((0, horizon, 64, 64), fill=GROUNDS[ground])
    paint_sky(pen, sky, rng)
    near, far = (3, 33) if left else (33, 3)
    shift = int(rng.integers(0, 4))
    PAINT_BESIDE[beside](pen, far + shift - 2)
    paint_being(pen, being, COLOURS[colour], near + shift)
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX)
