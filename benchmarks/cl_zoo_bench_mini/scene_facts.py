"""What pre-training asks about a scene: facts, each with several ways to ask, its answer and its wrong alternatives."""

from __future__ import annotations

from cl_zoo_bench_mini.board_facts import board_facts
from cl_zoo_bench_mini.chart_facts import chart_facts
from cl_zoo_bench_mini.facts import HOURS, NUMBERS, Fact
from cl_zoo_bench_mini.render import BEINGS, FLAWS, GROUNDS, SIDES, SKIES, STYLES, SURFACES, THINGS
from cl_zoo_bench_mini.scenes import (
    COLOUR_NAMES,
    Board,
    Chart,
    Clock,
    Frame,
    Generator,
    Outdoors,
    Photograph,
    Portrait,
    Scene,
    some,
)
from cl_zoo_bench_mini.words import one


def facts(scene: Scene, rng: Generator) -> list[Fact]:
    """Facts about a scene in random order; what is asked about a board or a chart is itself drawn at random."""
    found: list[Fact]
    if isinstance(scene, Board):
        found = board_facts(scene, rng)
    elif isinstance(scene, Chart):
        found = chart_facts(scene, rng)
    elif isinstance(scene, (Clock, Frame)):
        found = _icon(scene)
    elif isinstance(scene, (Portrait, Photograph)):
        found = _large(scene)
    elif isinstance(scene, Outdoors):
        found = _outdoors(scene)
    else:
        raise TypeError(f"no questions are known about a scene of type {type(scene).__name__}")
    return some(rng, found, len(found))


def _icon(scene: Clock | Frame) -> list[Fact]:
    if isinstance(scene, Clock):
        asks = (
            "What hour does the clock show?",
            "Read the clock.",
            "Where does the hand point?",
            "Which hour is it?",
            "Read the time.",
            "What time is shown?",
        )
        ink = ("What colour is the hand?", "Name the colour of the hand.", "What colour is in the icon?")
        return [
            Fact("clock", asks, str(scene.hour), HOURS, "the clock shows {}"),
            Fact("colour", ink, scene.colour, COLOUR_NAMES, "the hand is {}"),
        ]
    ink = ("What colour are the dots?", "Name the colour of the dots.", "What colour is in the icon?")
    full = (
        "How many dots are there?",
        "Count the dots.",
        "How many places are full?",
        "How many dots does the frame have?",
    )
    free = ("How many places are free?", "How many dots are missing?", "Count the free places.")
    return [
        Fact("dots", full, str(scene.count), NUMBERS[:11], "there are {} dots"),
        Fact("dots", free, str(10 - scene.count), NUMBERS[:11], "{} places are free"),
        Fact("colour", ink, scene.colour, COLOUR_NAMES, "the dots are {}"),
    ]


def _large(scene: Portrait | Photograph) -> list[Fact]:
    thing = (
        "What is this?",
        "What do you see?",
        "Name the thing.",
        "What does the picture show?",
        "Which thing is shown?",
        "What object is this?",
        "Which object does the image show?",
    )
    ink = (
        "What colour is it?",
        f"What colour is the {scene.thing}?",
        "Name its colour.",
        "Which colour does it have?",
    )
    found = [
        Fact("thing", thing, scene.thing, THINGS, f"this is {one(scene.thing)}".replace(scene.thing, "{}")),
        Fact("colour", ink, scene.colour, COLOUR_NAMES, f"the {scene.thing} is {{}}"),
    ]
    if isinstance(scene, Portrait):
        asks = (
            "How is it drawn?",
            "Which style is this?",
            f"How is the {scene.thing} drawn?",
            "Name the style.",
        )
        return [*found, Fact("style", asks, scene.style, STYLES, "the style is {}")]
    table = ("What colour is the table?", "Where is it, on which table?", "Name the colour of the table.")
    flaw = (
        "What is wrong with the photo?",
        "How is the photo?",
        "Name the fault of the photo.",
        "Is it dark, bright, noisy or blurry?",
    )
    return [
        *found,
        Fact("surface", table, scene.surface, tuple(SURFACES), "the table is {}"),
        Fact("flaw", flaw, scene.flaw, FLAWS, "the photo is {}"),
    ]


def _outdoors(scene: Outdoors) -> list[Fact]:
    being = scene.being
    who = ("Who is there?", "Who do you see outside?", "Name the one who is outside.")
    ink = (f"What colour is the {being}?", f"Name the colour of the {being}.")
    near = (f"What is beside the {being}?", f"What stands near the {being}?", "Which thing is there too?")
    sky = ("How is the sky?", "What sky is it?", "Describe only the sky.")
    ground = ("What is the ground?", f"What is under the {being}?", "Name the ground.")
    side = (f"On which side is the {being}?", f"Is the {being} left or right?")
    left = "left" if scene.left else "right"
    return [
        Fact("being", who, being, BEINGS, "there is a {}"),
        Fact("colour", ink, scene.colour, COLOUR_NAMES, f"the {being} is {{}}"),
        Fact("beside", near, scene.beside, SIDES, f"beside the {being} is a {{}}"),
        Fact("sky", sky, scene.sky, tuple(SKIES), "the sky is {}"),
        Fact("ground", ground, scene.ground, tuple(GROUNDS), "the ground is {}"),
        Fact("side", side, left, ("left", "right"), f"the {being} is at the {{}}"),
    ]
