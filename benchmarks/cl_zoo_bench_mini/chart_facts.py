"""What pre-training asks about a chart of coloured bars."""

from __future__ import annotations

from cl_zoo_bench_mini.facts import NUMBERS, YES_NO, Fact
from cl_zoo_bench_mini.render import Bar
from cl_zoo_bench_mini.scenes import Chart, Generator, some

RANKS = (
    (
        0,
        "tallest",
        (
            "Which bar is the tallest?",
            "What colour is the tallest bar?",
            "Name the biggest bar.",
            "Which colour is at the top?",
            "Which bar has the highest value?",
            "Name the highest bar.",
        ),
    ),
    (
        -1,
        "shortest",
        (
            "Which bar is the shortest?",
            "What colour is the shortest bar?",
            "Name the smallest bar.",
            "Which colour is at the bottom?",
            "Which bar has the lowest value?",
            "Name the lowest bar.",
        ),
    ),
    (
        1,
        "second",
        (
            "Which bar is second?",
            "What colour is the second tallest bar?",
            "Name the second biggest bar.",
            "Which bar has the second highest value?",
        ),
    ),
    (
        -2,
        "second shortest",
        (
            "What colour is the second shortest bar?",
            "Name the second smallest bar.",
            "Which bar has the second lowest value?",
        ),
    ),
)
"""Place among the bars from the tallest to the shortest, its word, and ways to ask for the bar there."""
ENDS = (
    (0, "first", ("Which bar comes first?", "What colour is the bar at the left end?")),
    (-1, "last", ("Which bar comes last?", "What colour is the bar at the right end?")),
)
"""The same from left to right."""


def chart_facts(scene: Chart, rng: Generator) -> list[Fact]:
    """Facts about a chart; whose height is asked for, and which bar it is compared with, is drawn at random."""
    one, other = some(rng, scene.bars, 2)
    pool = tuple(bar.colour for bar in scene.bars)
    ranked = scene.ranked()
    return [
        *(_which("chart rank", ranked[place], word, asks, pool) for place, word, asks in RANKS),
        *(_which("chart place", scene.bars[place], word, asks, pool) for place, word, asks in ENDS),
        _value(one),
        _lookup(other, pool),
        _taller(one, other),
        _bars(scene),
    ]


def _which(skill: str, bar: Bar, word: str, asks: tuple[str, ...], pool: tuple[str, ...]) -> Fact:
    return Fact(skill, asks, bar.colour, pool, f"the {word} bar is {{}}")


def _value(bar: Bar) -> Fact:
    asks = (
        f"How tall is the {bar.colour} bar?",
        f"What value has {bar.colour}?",
        f"Read the {bar.colour} bar.",
        f"What is the height of the {bar.colour} bar?",
    )
    return Fact("chart value", asks, str(bar.height), NUMBERS[1:10], f"the {bar.colour} bar has {{}}")


def _lookup(bar: Bar, pool: tuple[str, ...]) -> Fact:
    asks = (
        f"Which bar has the height {bar.height}?",
        f"What colour is the bar of {bar.height}?",
        f"Name the bar with {bar.height}.",
    )
    return Fact("chart lookup", asks, bar.colour, pool, f"the bar with {bar.height} is {{}}")


def _taller(one: Bar, other: Bar) -> Fact:
    asks = (
        f"Is {one.colour} taller than {other.colour}?",
        f"Is the {one.colour} bar above the {other.colour} bar?",
    )
    answer = YES_NO[one.height < other.height]
    return Fact("chart compare", asks, answer, YES_NO, f"{{}} , for {one.colour} and {other.colour}")


def _bars(scene: Chart) -> Fact:
    asks = ("How many bars are there?", "Count the bars.")
    return Fact("chart bars", asks, str(len(scene.bars)), NUMBERS[1:8], "there are {} bars")
