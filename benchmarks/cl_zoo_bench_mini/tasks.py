"""The six tasks, in UCIT's image: their questions, answers and splits, drawn when they are asked for."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cl_zoo.tasks import OnDemand, Sample, TaskData
from cl_zoo_bench_mini.captions import outdoor_captions, photograph_captions
from cl_zoo_bench_mini.facts import HOURS
from cl_zoo_bench_mini.render import Bar
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
    pick,
    some,
)
from cl_zoo_bench_mini.words import LETTERS, SPELLED, exact_name, plural, spelled

ONE_WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
CAPTION = "Generate a brief caption for the image."
CAPTION_QUESTION = "What is happening in the image?"
SIZES = {"train": 800, "validation": 150, "test": 200}
SHARES = {"train": (0.0, 0.5), "validation": (0.5, 0.75), "test": (0.75, 1.0)}
"""Which pictures may stand in a split: those whose hash, as a number from 0 to 1, lies here. So no picture stands in two."""
MOST_OBJECTS = 7
CHART_QUESTIONS: tuple[tuple[str, Callable[[Chart], Bar]], ...] = (
    ("has the most", lambda scene: scene.ranked()[0]),
    ("has the least", lambda scene: scene.ranked()[-1]),
    ("stands in front", lambda scene: scene.bars[0]),
    ("stands behind", lambda scene: scene.bars[-1]),
)
"""What a chart is asked, and the bar that is meant: relations that the base knows by other words."""
FIRST_STREAM = 100
"""First word of the tasks' seeds; pre-training's streams lie elsewhere."""


@dataclass(frozen=True)
class Asked:
    """A scene with a question about it.

    Attributes:
        scene: what the picture shows.
        prompt: question and instruction.
        answer: the text to learn.
        references: for captions, five sentences, the answer among them.
    """

    scene: Scene
    prompt: str
    answer: str
    references: tuple[str, ...] = ()


def rendition(rng: Generator) -> Asked:
    """Name the thing, drawn in any style, by its exact name, or its style, or its colour by a figure of speech."""
    scene = Portrait.draw(rng)
    what = rng.integers(4)
    if what == 0:
        return Asked(scene, f"What kind of art is the image?\n{ONE_WORD}", scene.style)
    if what == 1:
        return Asked(scene, f"What is the object dressed in?\n{ONE_WORD}", scene.colour)
    return Asked(scene, f"What is the object in the image?\n{ONE_WORD}", exact_name(scene.thing))


def chart(rng: Generator) -> Asked:
    """Find the bar that a figure of speech means: by its value, its rank or its place."""
    scene = Chart.draw(rng)
    while len(scene.bars) != len(LETTERS):
        scene = Chart.draw(rng)
    words, meant = pick(rng, CHART_QUESTIONS)
    colour = meant(scene).colour
    wrong = [bar.colour for bar in scene.bars if bar.colour != colour]
    return _choose(rng, scene, f"Which colour {words} in the chart?", colour, wrong)


def photograph(rng: Generator) -> Asked:
    """Caption a degraded photograph."""
    scene = Photograph.draw(rng)
    return _caption(scene, photograph_captions(scene, rng), rng)


def icon(rng: Generator) -> Asked:
    """Count dots or what is missing, as a number word; tell a clock's time, or an icon's category, by options.

    The category is the colour; among the options stands the number that the icon shows too.
    """
    frame, clock = Frame.draw(rng), Clock.draw(rng)
    what = rng.integers(4)
    if what == 0:
        return Asked(frame, f"How many dots are in the icon?\n{ONE_WORD}", spelled(str(frame.count)))
    if what == 1:
        return Asked(frame, f"What is missing in the icon?\n{ONE_WORD}", spelled(str(10 - frame.count)))
    if what == 2:
        return _choose(
            rng,
            clock,
            "What time is it in the icon?",
            str(clock.hour),
            _others(rng, HOURS, str(clock.hour), 3),
        )
    shown: Frame | Clock = clock if rng.integers(2) else frame
    number = spelled(str(shown.count if isinstance(shown, Frame) else shown.hour))
    wrong = [number, *_others(rng, COLOUR_NAMES, shown.colour, 1), *_others(rng, SPELLED[1:11], number, 1)]
    return _choose(rng, shown, "Which category has the icon?", shown.colour, wrong)


def counting(rng: Generator) -> Asked:
    """Count what is left after some objects are taken away, what is taken, or what there is nevertheless in the image."""
    scene = Board.draw(rng)
    while len(scene.cells) > MOST_OBJECTS:
        scene = Board.draw(rng)
    colour, shape = scene.group(rng, present=0.85)
    name = f"{colour + ' ' if colour else ''}{plural(shape) if shape else 'objects'}"
    taken, total = scene.count(colour, shape), scene.count()
    question, number = pick(
        rng,
        (
            (f"Subtract all {name}. How many objects are left?", total - taken),
            (f"Take all {name}. How many objects are taken?", taken),
            ("How many objects are in the image?", total),
        ),
    )
    if not number and rng.random() < 0.7:
        return counting(rng)  # boards of one colour or shape would make nought the commonest answer
    return Asked(scene, f"{question}\n{ONE_WORD}", spelled(str(number)))


def outdoors(rng: Generator) -> Asked:
    """Caption a scene outdoors."""
    scene = Outdoors.draw(rng)
    return _caption(scene, outdoor_captions(scene, rng), rng)


@dataclass(frozen=True)
class Kind:
    """What makes a task: its name and letter, how it asks, and how it is scored."""

    name: str
    letter: str
    ask: Callable[[Generator], Asked]
    instruction: str
    metric: str
    max_new_tokens: int


KINDS = (
    Kind("rendition", "R", rendition, ONE_WORD, "exact", 3),
    Kind("chart", "A", chart, LETTER, "exact", 3),
    Kind("photograph", "V", photograph, CAPTION, "caption", 20),
    Kind("icon", "I", icon, LETTER, "exact", 3),
    Kind("counting", "C", counting, ONE_WORD, "exact", 3),
    Kind("outdoors", "F", outdoors, CAPTION, "caption", 20),
)
"""The tasks in their default order."""


class Split(OnDemand[Sample]):
    """Samples that are drawn when they are asked for, each a function of task, split and index.

    A place is drawn again until its picture is one of the split's own (`SHARES`).
    """

    def __init__(self, stream: int, split: str, ask: Callable[[Generator], Asked]) -> None:
        self._stream, self._split, self._ask = stream, tuple(SIZES).index(split), ask
        self._size, self._share = SIZES[split], SHARES[split]
        self._tries: dict[int, int] = {}

    def __len__(self) -> int:
        return self._size

    def asked(self, index: int) -> Asked:
        """The scene and the question behind one sample."""
        return self._drawn(index)[0]

    def make(self, place: int) -> Sample:
        asked, picture = self._drawn(place)
        return Sample(f"{place:05d}", picture, asked.prompt, asked.answer, asked.references)

    def _drawn(self, place: int) -> tuple[Asked, Image.Image]:
        low, high = self._share
        for tried in itertools.count(self._tries.get(place, 0)):
            seed = (self._stream, self._split, place, tried)
            asked = self._ask(np.random.default_rng([*seed, 0]))
            picture = asked.scene.paint(np.random.default_rng([*seed, 1]))
            if low <= _fraction(picture) < high:
                self._tries[place] = tried
                return asked, picture
        raise AssertionError("every picture belongs to a split")


def task_data() -> tuple[TaskData, ...]:
    """The six tasks in their default order."""
    return tuple(
        TaskData(
            kind.name,
            kind.letter,
            kind.instruction,
            kind.metric,
            kind.max_new_tokens,
            *(Split(FIRST_STREAM + place, split, kind.ask) for split in SIZES),
        )
        for place, kind in enumerate(KINDS)
    )


def _fraction(picture: Image.Image) -> float:
    """A picture's hash as a number from 0 to 1."""
    return int.from_bytes(hashlib.sha256(picture.tobytes()).digest()[:6], "big") / 2**48


def _others(rng: Generator, pool: Sequence[str], answer: str, count: int) -> list[str]:
    return some(rng, [item for item in pool if item != answer], count)


def _choose(rng: Generator, scene: Scene, question: str, answer: str, wrong: Sequence[str]) -> Asked:
    """A question with the answer and wrong alternatives as options in random order."""
    options = some(rng, [answer, *wrong], len(LETTERS))
    listed = "".join(f"\n{letter}) {option}" for letter, option in zip(LETTERS, options, strict=True))
    return Asked(scene, f"{question}{listed}\n{LETTER}", LETTERS[options.index(answer)])


def _caption(scene: Scene, captions: tuple[str, ...], rng: Generator) -> Asked:
    return Asked(scene, f"{CAPTION_QUESTION}\n{CAPTION}", pick(rng, captions), captions)
