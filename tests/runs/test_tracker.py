"""What is measured while runs are under way: each second goes to what was done in it."""

from __future__ import annotations

from typing import Any

import pytest
from told_events import ABOUT, EVENTS, Clock, event

from cl_zoo.runs.tracker import Tracker

NAME = ("hide", "hide")


def heard(events: list[dict[str, Any]]) -> Tracker:
    made = Tracker(1, Clock())
    for one in events:
        made.heard(one)
    return made


def test_steps_hooks_and_answers_have_the_seconds_between_their_events() -> None:
    """20 steps in 10 s for each task, 10 answers in 2 s."""
    pace = heard(EVENTS[:-2]).pace

    assert pace.rate("step", "colour", NAME) == pytest.approx(0.5)
    assert pace.rate("answer", "colour", NAME) == pytest.approx(0.2)
    assert pace.rate("hook", "", NAME) == 0.0


def test_the_first_start_of_a_worker_says_nothing_of_the_next_and_a_later_one_does() -> None:
    """It waits for imports."""
    made = heard(EVENTS[:2])
    assert made.pace.rate("start", "", NAME) is None

    second = {"seed": 1, "worker": 0}
    made.heard({**event("begin", 30), **second})
    made.heard({**event("start", 33, run="r", work=EVENTS[1]["work"]), **second})
    assert made.pace.rate("start", "", NAME) == 3.0


@pytest.mark.parametrize(("waits", "rate"), [("", 1.5), ("waits for Java", None)])
def test_a_score_that_had_to_wait_for_others_or_for_java_has_its_own_seconds_alone(
    waits: str, rate: float | None
) -> None:
    """Answered at 27 s, its turn came 40 s later, and then it took 1.5 s."""
    clock = Clock()
    made = Tracker(1, clock)
    for one in EVENTS[:-3]:
        made.heard(one)
    clock.now = 67.0
    made.heard(event("score", 27, waits=waits))
    clock.now = 68.5
    made.heard({**ABOUT, "event": "finished", "last": 1.0, "seconds": 1.0})

    assert made.pace.rate("score", "", NAME) == rate
    assert made.pace.rate("answer", "side", NAME) == pytest.approx(0.2)
