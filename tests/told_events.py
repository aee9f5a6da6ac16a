"""What a comparison tells of one run of two tasks, from its beginning to its end, and of one that fails."""

from __future__ import annotations

from typing import Any

from cl_zoo.runs.work import Work

WORK = Work((("colour", 20), ("side", 20)), ((0,), (0, 1)), (("colour", 10), ("side", 10)))
ABOUT = {"label": "hide", "seed": 0, "order": "CS"}


def event(phase: str, at: float, **facts: Any) -> dict[str, Any]:
    return {**ABOUT, "event": "progress", "phase": phase, "at": at, **facts}


def steps(name: str, index: int, step: int, at: float, **terms: float) -> dict[str, Any]:
    return event("train", at, task=name, index=index, step=step, steps=20, terms=terms or {"task": 1.5})


EVENTS = [
    event("begin", 0, worker=0),
    event("start", 1, worker=0, run="tiny-hide-s0-1", work=WORK.to_json()),
    event("before_task", 1, task="colour", index=0),
    steps("colour", 0, 10, 6),
    steps("colour", 0, 20, 11, task=1.5, pull=-0.0001),
    event("after_task", 11, task="colour", index=0),
    event("answer", 11, task="colour", index=0, cell=0),
    event("before_task", 13, task="side", index=1),
    steps("side", 1, 10, 18),
    steps("side", 1, 20, 23),
    event("after_task", 23, task="side", index=1),
    event("answer", 23, task="colour", index=1, cell=0),
    event("answer", 25, task="side", index=1, cell=1),
    event("score", 27, waits="waits for [Java]"),
    {**ABOUT, "event": "finished", "last": 50.0, "seconds": 26.2},
    {**ABOUT, "label": "ewc", "event": "failed", "message": "no [space] \x1b[31mleft"},
]
"""A step takes half a second, an answer a fifth: (10 s + 2 s) + (10 s + 4 s)."""


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now
