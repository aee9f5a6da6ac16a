"""What can be seen in a picture: seven kinds of scene, each drawn at random, painted and labelled.

A scene is the whole truth about its picture. Questions and answers are derived from it, so an answer is right by construction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
from PIL import Image

from cl_zoo_bench_mini import render
from cl_zoo_bench_mini.render import (
    BEINGS,
    COLOURS,
    FLAWS,
    GROUNDS,
    SHAPES,
    SIDES,
    SKIES,
    STYLES,
    SURFACES,
    THINGS,
    Bar,
)

Generator = np.random.Generator
COLOUR_NAMES = tuple(COLOURS)
PLACES = 16
Item = TypeVar("Item")
Group = tuple[str | None, str | None]
"""A colour and a shape; `None` means any."""


def pick(rng: Generator, items: tuple[Item, ...] | list[Item]) -> Item:
    """One item at random."""
    return items[int(rng.integers(len(items)))]


def some(rng: Generator, items: tuple[Item, ...] | list[Item], count: int) -> list[Item]:
    """`count` different items in random order."""
    return [items[int(place)] for place in rng.permutation(len(items))[:count]]


class Scene(ABC):
    """What a picture shows."""

    kind: ClassVar[str]

    @classmethod
    @abstractmethod
    def draw(cls, rng: Generator) -> Scene:
        """A scene of this kind at random."""

    @abstractmethod
    def paint(self, rng: Generator) -> Image.Image:
        """The picture, 32 x 32."""

    @abstractmethod
    def labels(self) -> dict[str, str]:
        """Everything that is to be seen, as class names by label head (see `HEADS`)."""


@dataclass(frozen=True)
class Board(Scene):
    """Small shapes in a 4 x 4 board: cell (in reading order) to colour and shape."""

    kind: ClassVar[str] = "board"
    cells: dict[int, tuple[str, str]]
    dark: bool

    @classmethod
    def draw(cls, rng: Generator) -> Board:
        """One to nine shapes, mostly of few colours and shapes, so that counts above one are common."""
        colours = some(rng, COLOUR_NAMES, int(rng.integers(1, 5)))
        shapes = some(rng, SHAPES, int(rng.integers(1, 5)))
        places = rng.permutation(PLACES)[: int(rng.integers(1, 10))]
        cells = {int(place): (pick(rng, colours), pick(rng, shapes)) for place in sorted(places)}
        return cls(cells, bool(rng.integers(2)))

    def group(self, rng: Generator, present: float) -> Group:
        """A colour, a shape or both to ask about; `present` is how often it is one of something on the board."""
        if rng.random() < present:
            colour, shape = pick(rng, list(self.cells.values()))
        else:
            colour, shape = pick(rng, COLOUR_NAMES), pick(rng, SHAPES)
        what = rng.integers(3)
        return (None if what == 0 else colour), (None if what == 1 else shape)

    def count(self, colour: str | None = None, shape: str | None = None) -> int:
        """How many items have this colour and this shape; `None` means any."""
        return sum(_is(item, (colour, shape)) for item in self.cells.values())

    def rest(self, gone: tuple[Group, ...], asked: Group = (None, None)) -> int:
        """How many items of the group `asked` are in none of the groups `gone`."""
        left = {
            place: item for place, item in self.cells.items() if not any(_is(item, group) for group in gone)
        }
        return sum(_is(item, asked) for item in left.values())

    def paint(self, rng: Generator) -> Image.Image:
        return render.grid(self.cells, self.dark, rng)

    def labels(self) -> dict[str, str]:
        return {f"cell {place}": " ".join(self.cells.get(place, ("no", "shape"))) for place in range(PLACES)}


def _is(item: tuple[str, str], group: Group) -> bool:
    return all(wanted in (None, has) for has, wanted in zip(item, group, strict=True))


@dataclass(frozen=True)
class Chart(Scene):
    """Three to five bars of different colours and heights."""

    kind: ClassVar[str] = "chart"
    bars: tuple[Bar, ...]

    @classmethod
    def draw(cls, rng: Generator) -> Chart:
        count = int(rng.integers(3, 6))
        heights = [int(height) + 1 for height in rng.permutation(9)[:count]]
        return cls(tuple(Bar(c, h) for c, h in zip(some(rng, COLOUR_NAMES, count), heights, strict=True)))

    def ranked(self) -> list[Bar]:
        """The bars from the tallest to the shortest."""
        return sorted(self.bars, key=lambda bar: -bar.height)

    def paint(self, rng: Generator) -> Image.Image:
        return render.chart(self.bars, rng)

    def labels(self) -> dict[str, str]:
        heights = dict.fromkeys(COLOUR_NAMES, 0) | {bar.colour: bar.height for bar in self.bars}
        ranked = self.ranked()
        return {f"height {colour}": str(height) for colour, height in heights.items()} | {
            "tallest": ranked[0].colour,
            "shortest": ranked[-1].colour,
            "second": ranked[1].colour,
            "first": self.bars[0].colour,
            "last": self.bars[-1].colour,
            "bars": str(len(self.bars)),
        }


@dataclass(frozen=True)
class Clock(Scene):
    """A clock with one coloured hand."""

    kind: ClassVar[str] = "clock"
    hour: int
    colour: str
    dark: bool

    @classmethod
    def draw(cls, rng: Generator) -> Clock:
        return cls(int(rng.integers(1, 13)), pick(rng, COLOUR_NAMES), bool(rng.integers(2)))

    def paint(self, rng: Generator) -> Image.Image:
        return render.clock(self.hour, self.colour, self.dark, rng)

    def labels(self) -> dict[str, str]:
        return {"hour": str(self.hour), "colour": self.colour}


@dataclass(frozen=True)
class Frame(Scene):
    """A frame of ten places, some of them filled with dots."""

    kind: ClassVar[str] = "frame"
    count: int
    colour: str

    @classmethod
    def draw(cls, rng: Generator) -> Frame:
        return cls(int(rng.integers(1, 11)), pick(rng, COLOUR_NAMES))

    def paint(self, rng: Generator) -> Image.Image:
        return render.frame(self.count, self.colour, rng)

    def labels(self) -> dict[str, str]:
        return {"dots": str(self.count), "colour": self.colour}


@dataclass(frozen=True)
class Portrait(Scene):
    """One large thing in some style."""

    kind: ClassVar[str] = "portrait"
    thing: str
    colour: str
    style: str
    dark: bool

    @classmethod
    def draw(cls, rng: Generator) -> Portrait:
        return cls(pick(rng, THINGS), pick(rng, COLOUR_NAMES), pick(rng, STYLES), bool(rng.integers(2)))

    def paint(self, rng: Generator) -> Image.Image:
        return render.portrait(self.thing, self.colour, self.style, self.dark, rng)

    def labels(self) -> dict[str, str]:
        return {"thing": self.thing, "colour": self.colour, "style": self.style}


@dataclass(frozen=True)
class Photograph(Scene):
    """A thing on a table in a bad photograph."""

    kind: ClassVar[str] = "photograph"
    thing: str
    colour: str
    surface: str
    flaw: str

    @classmethod
    def draw(cls, rng: Generator) -> Photograph:
        return cls(pick(rng, THINGS), pick(rng, COLOUR_NAMES), pick(rng, tuple(SURFACES)), pick(rng, FLAWS))

    def paint(self, rng: Generator) -> Image.Image:
        return render.photograph(self.thing, self.colour, self.surface, self.flaw, rng)

    def labels(self) -> dict[str, str]:
        return {"thing": self.thing, "colour": self.colour, "surface": self.surface, "flaw": self.flaw}


@dataclass(frozen=True)
class Outdoors(Scene):
    """Somebody outdoors, with one thing beside."""

    kind: ClassVar[str] = "outdoors"
    sky: str
    ground: str
    being: str
    colour: str
    beside: str
    left: bool

    @classmethod
    def draw(cls, rng: Generator) -> Outdoors:
        return cls(
            pick(rng, tuple(SKIES)),
            pick(rng, tuple(GROUNDS)),
            pick(rng, BEINGS),
            pick(rng, COLOUR_NAMES),
            pick(rng, SIDES),
            bool(rng.integers(2)),
        )

    def paint(self, rng: Generator) -> Image.Image:
        return render.outdoors(self.sky, self.ground, self.being, self.colour, self.beside, self.left, rng)

    def labels(self) -> dict[str, str]:
        return {
            "sky": self.sky,
            "ground": self.ground,
            "being": self.being,
            "colour": self.colour,
            "beside": self.beside,
            "side": "left" if self.left else "right",
        }


SCENES: tuple[type[Scene], ...] = (Board, Chart, Clock, Frame, Portrait, Photograph, Outdoors)
_COUNTS = tuple(str(count) for count in range(13))
HEADS: dict[str, tuple[str, ...]] = {
    "kind": tuple(scene.kind for scene in SCENES),
    **{f"height {colour}": _COUNTS[:10] for colour in COLOUR_NAMES},
    **dict.fromkeys(("tallest", "shortest", "second", "first", "last", "colour"), COLOUR_NAMES),
    "bars": _COUNTS[:6],
    "hour": _COUNTS,
    "dots": _COUNTS[:11],
    "thing": THINGS,
    "style": STYLES,
    "surface": tuple(SURFACES),
    "flaw": FLAWS,
    "sky": tuple(SKIES),
    "ground": tuple(GROUNDS),
    "being": BEINGS,
    "beside": SIDES,
    "side": ("left", "right"),
}
"""Classes of every label that belongs to a whole picture."""
CELL_CLASSES = ("no shape", *(f"{colour} {shape}" for colour in COLOUR_NAMES for shape in SHAPES))
"""Classes of the labels `cell 0` to `cell 15` of a board."""
