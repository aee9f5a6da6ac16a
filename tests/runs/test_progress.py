"""What a user sees: plain lines that come seldom, bars that say how far all runs are, and what is waited for."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from told_events import ABOUT, EVENTS, WORK, Clock

from cl_zoo.names import parse_stack
from cl_zoo.runs.job import Job
from cl_zoo.runs.plan import Plan, Planned
from cl_zoo.runs.progress import Bars, Lines, progress_for


def lines(events: list[dict[str, Any]], plan: Plan | None = None, runs: int = 2) -> list[str]:
    """What is printed off a terminal, without the times in front."""
    written, clock = io.StringIO(), Clock()
    watch = Lines(Console(file=written, width=60), runs, clock)
    if plan is not None:
        watch.told(plan)
    for one in events:
        clock.now = one.get("at", clock.now)
        watch(one)
    assert "\x1b" not in written.getvalue()
    return [line.partition("] ")[2] for line in written.getvalue().splitlines()]


def planned(method: str, order: str = "CS", training: str = "", **changes: Any) -> Planned:
    job = Job(tuple(parse_stack(method)), "tiny", out="nowhere")
    key = training or f"{method} {order}"
    ids = {"run": None, "digest": f"{method} {order}", "training": key, "ground": None}
    return Planned(
        job, **{"order": order, "tasks": ("colour", "side"), "ordered": True, "work": WORK, **ids, **changes}
    )


def test_a_run_alone_has_a_line_for_each_task_that_it_has_learnt() -> None:
    """Once a step has been measured the steps are told; the time that is left once an answer was measured as well."""
    assert lines(EVENTS) == [
        "hide, seed 0: run tiny-hide-s0-1",
        "hide, seed 0: learnt colour in 20 steps (task 1.500, pull 0.000) (20 of 40 steps)",
        "hide, seed 0: learnt side in 20 steps (task 1.500) (40 of 40 steps, about 4 s left)",
        "hide, seed 0: scoring; waits for [Java]",
        "hide, seed 0: finished, Last 50.00, 26 s (1 of 2 runs)",
        r"ewc, seed 0: failed: no [space] \x1b[31mleft (2 of 2 runs)",
    ]


def test_lines_of_a_comparison_are_ten_seconds_apart_but_for_beginnings_ends_and_what_is_waited_for() -> None:
    told = lines(EVENTS[:-1], Plan((planned("hide"),), 1, 1))[1:]

    assert told == [
        "hide, seed 0: run tiny-hide-s0-1",
        "hide, seed 0: learnt colour in 20 steps (task 1.500, pull 0.000) (20 of 40 steps)",
        "hide, seed 0: learnt side in 20 steps (task 1.500) (40 of 40 steps, about 4 s left)",
        "hide, seed 0: scoring; waits for [Java]",
        "hide, seed 0: finished, Last 50.00, 26 s (1 of 1 runs)",
    ]
    quick = [{**one, "at": one.get("at", 27) / 3} for one in EVENTS[:-1]]
    assert not [line for line in lines(quick, Plan((planned("hide"),), 1, 1)) if "learnt" in line]


def test_the_plan_stands_in_the_first_line_and_the_time_of_all_runs_behind_each_end() -> None:
    """Another run of 40 steps and 30 answers takes 20 + 6 s, and to load it the one second that nobody has measured yet is left out."""
    plan = Plan((planned("hide"), planned("hide", "SC")), 2, 1)
    told = lines(EVENTS[:-1], plan)

    assert told[0] == (
        "2 runs; 0 finished, 0 in part, 2 to do; 80 steps, 1 at a time; orders CS, SC; "
        "no forecast of time: no run of this kind was finished on this machine yet"
    )
    assert told[1] == "hide, seed 0, CS: run tiny-hide-s0-1"
    assert told[-1] == "hide, seed 0, CS: finished, Last 50.00, 26 s (1 of 2 runs, about 26 s left)"


def test_who_waits_for_the_training_of_another_run_says_so_once() -> None:
    plan = Plan((planned("hide", training="t"), planned("hide[coefficient=1]", training="t")), 2, 2)
    told = [line for line in lines(EVENTS[:8], plan) if "waits" in line]

    assert told == ["hide[coefficient=1], seed 0: waits for the training of hide, seed 0"]


def test_a_run_that_was_finished_before_is_counted_and_has_no_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text("{}")
    job = Job(tuple(parse_stack("finetune")), "tiny", out=str(tmp_path))
    there = Planned(job, "CS", ("colour", "side"), True, WORK, "run", "there", "there", None)
    before = {**ABOUT, "label": "finetune", "event": "finished", "again": True, "last": 1.0, "seconds": 1.0}
    told = lines([before, *EVENTS[:-1]], Plan((there, planned("hide")), 2, 1))

    assert not [line for line in told if "finetune" in line]
    assert told[-1] == "hide, seed 0: finished, Last 50.00, 26 s (2 of 2 runs)"


# On a terminal


def shown(events: list[dict[str, Any]], plan: Plan | None = None) -> str:
    written = io.StringIO()
    with progress_for(Console(file=written, force_terminal=True, width=130), 2) as watch:
        assert isinstance(watch, Bars)
        if plan is not None:
            watch.told(plan)
        for one in events:
            watch(one)
    return written.getvalue()


def test_on_a_terminal_each_run_has_a_bar_until_it_ends() -> None:
    written = shown(EVENTS)

    assert "hide, seed 0: finished, Last 50.00, 26 s" in written
    assert r"ewc, seed 0: failed: no [space] \x1b[31mleft" in written
    assert "2 of 2 runs, step 40 of 40" in written


@pytest.mark.parametrize(
    ("count", "state"),
    [(4, "learns colour, step 10 of 20"), (7, "answers colour"), (14, "scoring; waits for [Java]")],
)
def test_a_bar_says_what_its_run_does(count: int, state: str) -> None:
    assert state in shown(EVENTS[:count])


def test_the_bar_of_all_runs_counts_the_steps_of_a_shared_training_once() -> None:
    plan = Plan((planned("hide", training="t"), planned("hide[coefficient=1]", training="t")), 2, 2)

    written = shown(EVENTS[:4], plan)
    assert "0 of 2 runs, step 10 of 40" in written
    assert "waits for the training of hide, seed 0" in written
