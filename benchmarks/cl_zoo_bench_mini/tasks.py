"""The six tasks, in UCIT's image: their questions, answers and splits, drawn when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from cl_zoo.tasks import OnDemand, Sample, TaskData
from cl_zoo_bench_mini.captions import outdoor_captions, photograph_captions
from cl_zoo_bench_mini.render import Bar
from cl_zoo_bench_mini.scenes import (
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
from cl_zoo_bench_mini.words import LETTERS, exact_name, plural

ONE_WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
CAPTION = "Generate a brief caption for the image."
CAPTION_QUESTION = "What is happening in the image?"
SIZES = {"train": 1920, "validation": 150, "test": 150}
BAR_COLOURS = ("red", "green", "blue", "yellow")
CLOCK_HOURS = ("3", "6", "9", "12")
"""The options of a chart and of a clock, in their fixed order: the small base reads colours and hours well, but does not learn
to look a letter up in a list that is always new."""
MOST_OBJECTS = 3
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
    """Name the thing, drawn in any style, by its exact name."""
    scene = Portrait.draw(rng)
    return Asked(scene, f"What is the object in the image?\n{ONE_WORD}", exact_name(scene.thing))


def chart(rng: Generator) -> Asked:
    """Find the colour of the highest or lowest value; the options are always the same four colours."""
    heights = [int(height) + 1 for height in rng.permutation(9)[: len(BAR_COLOURS)]]
    scene = Chart(
        tuple(Bar(c, h) for c, h in zip(some(rng, BAR_COLOURS, len(BAR_COLOURS)), heights, strict=True))
    )
    word, bar = pick(rng, [("highest", scene.ranked()[0]), ("lowest", scene.ranked()[-1])])
    return _choose(scene, f"Which colour has the {word} value in the chart?", bar.colour, BAR_COLOURS)


def photograph(rng: Generator) -> Asked:
    """Caption a degraded photograph."""
    scene = Photograph.draw(rng)
    return _caption(scene, photograph_captions(scene, rng), rng)


def icon(rng: Generator) -> Asked:
    """Read a clock by options, always the same four hours, or count the dots of a frame as a number."""
    if rng.random() < 0.5:
        frame = Frame.draw(rng)
        return Asked(frame, f"How many dots are in the icon?\n{ONE_WORD}", str(frame.count))
    clock = replace(Clock.draw(rng), hour=int(pick(rng, CLOCK_HOURS)))
    return _choose(clock, "What time is it in the icon?", str(clock.hour), CLOCK_HOURS)


def counting(rng: Generator) -> Asked:
    """Count what is left after some objects are taken away."""
    scene = Board.draw(rng)
    while len(scene.cells) > MOST_OBJECTS:
        scene = Board.draw(rng)
    colour, shape = scene.group(rng, present=0.85)
    name = f"{colour + ' ' if colour else ''}{plural(shape) if shape else 'objects'}"
    left = scene.count() - scene.count(colour, shape)
    if not left and rng.random() < 0.7:
        return counting(rng)  # boards of one colour or shape would make nought the commonest answer
    return Asked(scene, f"Subtract all {name}. How many objects are left?\n{ONE_WORD}", str(left))


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
    """Samples that are drawn when they are asked for, each a function of task, split and index."""

    def __init__(self, stream: int, split: str, ask: Callable[[Generator], Asked]) -> None:
        self._stream, self._split, self._ask = stream, tuple(SIZES).index(split), ask
        self._size = SIZES[split]

    def __len__(self) -> int:
        return self._size

    def asked(self, index: int) -> Asked:
        """The scene and the question behind one sample."""
        return self._ask(np.random.default_rng([self._stream, self._split, index, 0]))

    def make(self, place: int) -> Sample:
        asked = self.asked(place)
        picture = asked.scene.paint(np.random.default_rng([self._stream, self._split, place, 1]))
        return Sample(f"{place:05d}", picture, asked.prompt, asked.answer, asked.references)


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


def _choose(scene: Scene, question: str, answer: str, options: tuple[str, ...]) -> Asked:
    listed = "".join(f"\n{letter}) {option}" for letter, option in zip(LETTERS, options, strict=True))
    return Asked(scene, f"{question}{listed}\n{LETTER}", LETTERS[options.index(answer)])


def _caption(scene: Scene, captions: tuple[str, ...], rng: Generator) -> Asked:
    return Asked(scene, f"{CAPTION_QUESTION}\n{CAPTION}", pick(rng, captions), captions)
