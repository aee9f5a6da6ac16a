"""What a run has to do, counted in steps and answers, and how far it is; told before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["start", "step", "hook", "answer", "score"]
"""What takes time: loading until a run begins; an optimiser step; the hooks of a task, by its steps; an answer; scoring a run."""

Part = tuple[Kind, str, float]
"""Something that a run does: its kind, the task that it is done on, and how many units of it."""


@dataclass(frozen=True)
class At:
    """How far a run is.

    Attributes:
        begun: whether it is loaded.
        lesson: number of lessons that are behind it, answers to them too.
        step: steps of the lesson at hand.
        cells: cells of that lesson's row whose answers are written.
    """

    begun: bool = False
    lesson: int = 0
    step: int = 0
    cells: int = 0


NOT_BEGUN = At()


@dataclass(frozen=True)
class Work:
    """What a run does: it learns lessons one after the other and answers questions after each.

    Attributes:
        lessons: (name, optimiser steps) of each; none where nothing is learnt.
        asked: places of the stream that are asked about after each lesson; one row where nothing is learnt.
        tests: (task, number of questions) at each place of the stream.
    """

    lessons: tuple[tuple[str, int], ...]
    asked: tuple[tuple[int, ...], ...]
    tests: tuple[tuple[str, int], ...]

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return sum(steps for _, steps in self.lessons)

    @property
    def answers(self) -> int:
        """Answers of the whole run."""
        return sum(self.tests[place][1] for row in self.asked for place in row)

    def behind(self, at: At) -> int:
        """Steps that are behind a run."""
        return min(sum(steps for _, steps in self.lessons[: at.lesson]) + at.step, self.steps)

    def left(self, at: At = NOT_BEGUN, *, learns: bool = True) -> Iterator[Part]:
        """What is still to be done.

        Args:
            at: how far the run is.
            learns: whether it learns itself, and does not take over what another one has learnt.
        """
        if not at.begun:
            yield "start", "", 1
        for row, places in enumerate(self.asked):
            if row < at.lesson:
                continue
            here = row == at.lesson
            if self.lessons and learns and not (here and at.cells):
                name, steps = self.lessons[row]
                yield "step", name, max(steps - at.step, 0) if here else steps
                yield "hook", name, steps
            for place in places[at.cells if here else 0 :]:
                yield "answer", *self.tests[place]
        yield "score", "", 1

    @classmethod
    def from_json(cls, values: Mapping[str, Sequence[Any]]) -> Work:
        """As `to_json` wrote it."""
        lessons, tests = (
            [(str(name), int(count)) for name, count in values[key]] for key in ("lessons", "tests")
        )
        return cls(tuple(lessons), tuple(tuple(row) for row in values["asked"]), tuple(tests))

    def to_json(self) -> dict[str, list[Any]]:
        """Plain lists."""
        return {
            "lessons": [list(one) for one in self.lessons],
            "asked": [list(row) for row in self.asked],
            "tests": [list(one) for one in self.tests],
        }
