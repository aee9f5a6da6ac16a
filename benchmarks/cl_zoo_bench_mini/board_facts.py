"""What pre-training asks about a board of small shapes."""

from __future__ import annotations

from cl_zoo_bench_mini.facts import NUMBERS, YES_NO, Fact
from cl_zoo_bench_mini.render import SHAPES
from cl_zoo_bench_mini.scenes import COLOUR_NAMES, Board, Generator, pick, some
from cl_zoo_bench_mini.words import one, plural

PRESENT = 0.8
"""How often what is asked for is on the board."""


def _names(colour: str | None, shape: str | None, rng: Generator) -> str:
    noun = plural(shape) if shape else pick(rng, ("shapes", "objects"))
    return f"{colour} {noun}" if colour else noun


def board_facts(scene: Board, rng: Generator) -> list[Fact]:
    """Facts about a board; which groups are counted is drawn at random."""
    found = [_count(scene, rng, None, None), _contains(scene, rng), _corner(scene, rng), _more(scene, rng)]
    for _ in range(2):
        found.append(_count(scene, rng, *scene.group(rng, PRESENT)))
    for _ in range(3):
        found.append(_without(scene, rng, *scene.group(rng, PRESENT)))
    found += [_only(scene, rng), *_beside(scene, rng)]
    for colour, shape in scene.cells.values():
        if scene.count(colour) == 1:
            ask = (
                f"What shape is {colour}?",
                f"Which shape is the {colour} one?",
                f"Name the {colour} shape.",
            )
            found.append(Fact("attribute", ask, shape, SHAPES, f"the {colour} one is a {{}}"))
        if scene.count(None, shape) == 1:
            ask = (
                f"What colour is the {shape}?",
                f"Which colour has the {shape}?",
                f"Name the colour of the {shape}.",
            )
            found.append(Fact("attribute", ask, colour, COLOUR_NAMES, f"the {shape} is {{}}"))
    return found


def _count(scene: Board, rng: Generator, colour: str | None, shape: str | None) -> Fact:
    names = _names(colour, shape, rng)
    asks = (
        f"How many {names} are there?",
        f"Count the {names}.",
        f"What is the number of {names}?",
        f"How many {names} do you see?",
    )
    return Fact("count", asks, str(scene.count(colour, shape)), NUMBERS[:10], f"there are {{}} {names}")


def _without(scene: Board, rng: Generator, colour: str | None, shape: str | None) -> Fact:
    names = _names(colour, shape, rng)
    asks = (
        f"Without the {names}, how many shapes remain?",
        f"Leave out the {names}. How many shapes are there now?",
        f"Ignore the {names} and count the rest.",
        f"Take away all {names}. What number of shapes remains?",
        f"How many shapes are there apart from the {names}?",
        f"Remove every one of the {names}. Count the remaining shapes.",
        f"Without all {names}, how many objects are left?",
        f"Remove all {names}. How many are left?",
        f"Subtract the {names} and count the rest.",
    )
    rest = scene.count() - scene.count(colour, shape)
    return Fact("count without", asks, str(rest), NUMBERS[:10], f"without the {names} there are {{}} shapes")


def _only(scene: Board, rng: Generator) -> Fact:
    group = scene.group(rng, PRESENT)
    names = _names(*group, rng)
    asks = (
        f"Look only at the {names}. How many shapes are there?",
        f"Find the {names}. How many shapes is that?",
        f"Keep only the {names} and count the shapes.",
        f"Pick the {names}. What number of shapes is that?",
    )
    return Fact(
        "count only", asks, str(scene.count(*group)), NUMBERS[:10], f"only the {names} are {{}} shapes"
    )


def _beside(scene: Board, rng: Generator) -> list[Fact]:
    """How many of one group there are when another, which has nothing in common with it, is left out."""
    gone, asked = scene.group(rng, PRESENT), scene.group(rng, PRESENT)
    if scene.rest((gone,), asked) != scene.count(*asked):
        return []
    names, others = _names(*gone, rng), _names(*asked, rng)
    asks = (
        f"Without the {names}, how many {others} remain?",
        f"Leave out the {names}. Count the {others}.",
        f"How many {others} are there apart from the {names}?",
        f"Take away all {names}. What number of {others} remains?",
    )
    sentence = f"without the {names} there are {{}} {others}"
    return [Fact("count beside", asks, str(scene.count(*asked)), NUMBERS[:10], sentence)]


def _contains(scene: Board, rng: Generator) -> Fact:
    colour, shape = (
        scene.group(rng, PRESENT) if rng.random() < 0.5 else (pick(rng, COLOUR_NAMES), pick(rng, SHAPES))
    )
    name = f"{colour + ' ' if colour else ''}{shape or 'shape'}"
    asks = (f"Is there {one(name)}?", f"Do you see {one(name)}?", f"Is {one(name)} on the board?")
    answer = YES_NO[scene.count(colour, shape) == 0]
    return Fact("exists", asks, answer, YES_NO, f"{{}} for {one(name)}")


def _corner(scene: Board, rng: Generator) -> Fact:
    cell, name = pick(rng, [(0, "top left"), (3, "top right"), (12, "bottom left"), (15, "bottom right")])
    answer = " ".join(scene.cells.get(cell, ("no", "shape")))
    pool = tuple(
        sorted(
            {
                answer,
                "no shape",
                *(" ".join(item) for item in scene.cells.values()),
                "red cross",
                "blue circle",
                "green square",
            }
        )
    )
    asks = (f"What is in the {name} corner?", f"Which shape is at the {name}?")
    return Fact("place", asks, answer, pool, f"at the {name} there is {{}}")


def _more(scene: Board, rng: Generator) -> Fact:
    one, other = some(rng, SHAPES, 2)
    answer = YES_NO[scene.count(None, one) <= scene.count(None, other)]
    asks = (
        f"Are there more {plural(one)} than {plural(other)}?",
        f"Do the {plural(one)} outnumber the {plural(other)}?",
    )
    return Fact("more", asks, answer, YES_NO, f"{{}} , about the {plural(one)} and the {plural(other)}")
