"""A training that several runs share: one learns, the others answer, and each ends with the bytes of a run of its own."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cl_zoo
from cl_zoo.engine.run import Run
from cl_zoo.names import parse_stack
from cl_zoo.runs.comparison import Comparison
from cl_zoo.runs.execute import TRAINED, Training, execute
from cl_zoo.runs.job import Job
from cl_zoo.runs.turns import Turns
from cl_zoo.runs.worker import check
from cl_zoo.testing import tiny_benchmark

SWEEP = ["hide[coefficient=0.2]", "hide[temperature=0.5]", "hide"]
TINY: dict[str, Any] = {
    "benchmark": "cl_zoo.testing:load_tiny",
    "backbone": "cl_zoo.testing:load_tiny_backbone",
    "device": "cpu",
    "recipe": {"lr.adapters": 1e-2},
}


def answers(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "answers").iterdir()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of its own for each of the sweep."""
    out = tmp_path_factory.mktemp("alone")
    return {method: cl_zoo.run(method, out=out, **TINY) for method in SWEEP}


# In a comparison


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, list[dict[str, Any]], Path]:
    """The sweep as one comparison beside a method that shares nothing, what was reported, and its folder."""
    out, events = tmp_path_factory.mktemp("swept"), list[dict[str, Any]]()
    made = cl_zoo.compare([*SWEEP, "finetune"], processes=1, out=out, watch=events.append, **TINY)
    return made, events, out


def phases(events: list[dict[str, Any]], phase: str) -> list[tuple[str, str]]:
    """(label, task) of each event of a phase."""
    return [(event["label"], event["task"]) for event in events if event.get("phase") == phase]


def test_a_sweep_of_what_answers_read_trains_once(
    swept: tuple[Comparison, list[dict[str, Any]], Path],
) -> None:
    _, events, _ = swept
    tasks = ["colour", "side"]

    assert phases(events, "after_task") == [(name, t) for name in (SWEEP[0], "finetune") for t in tasks]
    assert phases(events, "taken") == [(name, task) for name in SWEEP[1:] for task in tasks]


def test_each_run_of_a_sweep_answers_as_one_of_its_own(
    swept: tuple[Comparison, list[dict[str, Any]], Path], alone: dict[str, Any]
) -> None:
    """Byte for byte, with the same id, measurements and costs but for the time; the swept options do change the answers."""
    results = {one.label: one for one in swept[0].results}
    for method, own in alone.items():
        one = results[method]
        assert one.folder.name == own.folder.name
        assert answers(one.folder) == answers(own.folder)
        assert one.manifest["measured"] == own.manifest["measured"]
        assert one.ledger["stored"] == own.ledger["stored"]
        for here, there in zip(one.ledger["tasks"], own.ledger["tasks"], strict=True):
            assert {**here, "seconds": 0} == {**there, "seconds": 0}
    assert len({tuple(sorted(answers(one.folder).items())) for one in alone.values()}) == len(SWEEP)


def test_the_seconds_of_a_shared_training_stand_in_each_row(
    swept: tuple[Comparison, list[dict[str, Any]], Path],
) -> None:
    first, *others = (one.ledger for one in swept[0].results if one.label in SWEEP)

    assert [first["taken"], *(one["taken"] for one in others)] == [0, 2, 2]
    for other in others:
        assert other["tasks"] == first["tasks"]
        assert other["hooks"]["after_task"] == first["hooks"]["after_task"] > 0
        assert other["peak_memory_mb"] > 0


def test_nothing_is_left_of_a_shared_training_but_the_model_of_each_run(
    swept: tuple[Comparison, list[dict[str, Any]], Path],
) -> None:
    made, _, out = swept

    assert not (out / TRAINED).exists()
    for one in made.results:
        assert [path.name for path in one.folder.glob("state-*")] == ["state-2"]


def test_a_restored_run_answers_what_it_answered(
    swept: tuple[Comparison, list[dict[str, Any]], Path],
) -> None:
    """The model of a run that learnt nothing itself comes from its own checkpoint."""
    taken = cl_zoo.load(next(one.folder for one in swept[0].results if one.label == SWEEP[1]), device="cpu")
    task = tiny_benchmark().tasks[1]
    images, prompts = [one.image for one in task.test], [one.prompt for one in task.test]

    said = [json.loads(line)["answer"] for line in answers(taken.folder)["1-1.jsonl"].splitlines()]
    assert taken.generate(images, prompts, max_new_tokens=task.max_new_tokens) == said


# Interruptions


class Stop(Exception):
    """The run was interrupted here."""


def job(method: str, out: Path, **changes: Any) -> Job:
    return Job(tuple(parse_stack(method)), out=str(out), **{**TINY, **changes})


def start(method: str, out: Path, training: Training) -> tuple[dict[str, bytes], list[str]]:
    """Answers of a run, and how it came by each task that it had not learnt before: `after_task` or `taken`."""
    came: list[str] = []

    def report(**event: Any) -> None:
        came.extend(p for p in [event["phase"]] if p in ("after_task", "taken"))

    folder, _ = execute(job(method, out), report, training)
    return answers(folder.partial), came


@contextmanager
def stopping(method: str, tasks: int) -> Iterator[None]:
    """Inside, a run is interrupted where it is about to answer, to take over, … when it has so many tasks behind it."""
    real = getattr(Run, method)

    def stopped(self: Run, *arguments: Any) -> Any:
        if len(self.ledger.tasks) == tasks:
            raise Stop
        return real(self, *arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Run, method, stopped)
        with pytest.raises(Stop):
            yield


@pytest.mark.parametrize("where", ["_answer", "_checkpoint"])
def test_what_a_run_had_learnt_when_it_failed_serves_the_others_and_itself(
    tmp_path: Path, alone: dict[str, Any], where: str
) -> None:
    """It ends in its second task: the next run takes both over, and so does the same one when it is started again."""
    first, other, _ = SWEEP
    with stopping(where, 2):
        start(first, tmp_path, "kept")

    assert start(other, tmp_path, "kept") == (answers(alone[other].folder), ["taken", "taken"])
    assert start(first, tmp_path, "kept") == (answers(alone[first].folder), ["taken"])


def test_what_is_missing_is_learnt_by_whoever_comes_next(tmp_path: Path, alone: dict[str, Any]) -> None:
    """The first run fails while it learns its second task; three bring the training to its end."""
    first, other, last = SWEEP
    with stopping("_learn", 1):
        start(first, tmp_path, "kept")

    assert start(other, tmp_path, "kept") == (answers(alone[other].folder), ["taken", "after_task"])
    assert start(last, tmp_path, "taken") == (answers(alone[last].folder), ["taken", "taken"])
    assert start(first, tmp_path, "taken") == (answers(alone[first].folder), ["taken"])


def test_a_run_that_takes_over_goes_on_after_an_interruption(tmp_path: Path, alone: dict[str, Any]) -> None:
    first, other, _ = SWEEP
    start(first, tmp_path, "kept")
    with stopping("_take", 1):
        start(other, tmp_path, "taken")

    assert start(other, tmp_path, "taken") == (answers(alone[other].folder), ["taken"])


@pytest.mark.parametrize("damage", ["cut", "gone", "none there"])
def test_a_state_that_cannot_be_read_is_learnt_anew(
    tmp_path: Path, alone: dict[str, Any], damage: str
) -> None:
    first, other, _ = SWEEP
    if damage != "none there":
        start(first, tmp_path, "kept")
        (file,) = tmp_path.glob(f"{TRAINED}/*/state-2/model.safetensors")
        file.write_bytes(file.read_bytes()[:-9]) if damage == "cut" else file.unlink()

    found = start(other, tmp_path, "taken")

    learnt = ["after_task", "after_task"] if damage == "none there" else ["taken", "after_task"]
    assert found == (answers(alone[other].folder), learnt)
    assert (tmp_path / TRAINED).exists() is (damage != "none there")


def test_a_run_of_its_own_neither_takes_nor_keeps(tmp_path: Path, alone: dict[str, Any]) -> None:
    first, other, _ = SWEEP
    assert start(first, tmp_path, "own")[1] == ["after_task", "after_task"]
    assert not (tmp_path / TRAINED).exists()

    start(first, tmp_path / "again", "kept")
    assert start(other, tmp_path / "again", "own") == (
        answers(alone[other].folder),
        ["after_task", "after_task"],
    )


# Who shares with whom


@pytest.mark.parametrize(
    ("one", "changes", "other", "more", "shares"),
    [
        ("hide", {}, "hide[coefficient=0.2,alpha=0.3,modality=text]", {}, True),
        ("hide", {}, "hide", {"cells": "last"}, True),
        ("hide+ewc", {}, "hide[temperature=1]+ewc", {}, True),
        ("hide", {}, "hide[variant=released]", {}, False),
        ("hide", {}, "hide[expanded=0]", {}, False),
        ("hide", {}, "hide[temperature=1]+ewc", {}, False),
        ("hide", {}, "hide[coefficient=0.2]", {"seed": 1}, False),
        ("hide", {}, "hide[coefficient=0.2]", {"order": "SC"}, False),
        ("hide", {}, "hide[coefficient=0.2]", {"recipe": {}}, False),
        ("finetune", {}, "ewc", {}, False),
    ],
)
def test_runs_share_a_training_where_only_what_answers_read_differs(
    tmp_path: Path, one: str, changes: dict[str, Any], other: str, more: dict[str, Any], shares: bool
) -> None:
    jobs = [job(one, tmp_path, **changes).to_json(), job(other, tmp_path, **more).to_json()]
    here, there = check(jobs, {"allow": True})["foreseen"]

    assert (here["training"] == there["training"]) is shares


@pytest.mark.parametrize(("probe", "shares"), [("cka", True), ("routing", False)])
def test_a_probe_of_answers_keeps_runs_apart(tmp_path: Path, probe: str, shares: bool) -> None:
    """`routing` keeps what one run answered; `cka` looks at what was learnt."""
    jobs = [job(f"{method}+{probe}", tmp_path) for method in ("hide", "hide[coefficient=0.2]")]
    jobs = [replace(one, choices=(one.choices[0], replace(one.choices[1], probe=True))) for one in jobs]
    here, there = check([one.to_json() for one in jobs], {})["foreseen"]

    assert (here["training"] == there["training"]) is shares


# Turns


def ended(turns: Turns, place: int, event: str = "answered", *, whole: bool = True) -> None:
    """A job that keeps its states, or has failed before it could."""
    turns.heard(place, {"event": "progress", "phase": "start", "trained": "mini-hide"})
    if whole:
        turns.heard(place, {"event": "progress", "phase": "trained"})
    turns.heard(place, {"event": event})


def test_those_who_share_wait_for_the_first_and_others_go_before_them(tmp_path: Path) -> None:
    turns = Turns(["a", "a", "a", "b"], tmp_path)
    assert [turns.next(), turns.next()] == [(0, "kept"), (3, "own")]
    found: queue.Queue[Any] = queue.Queue()
    waiting = threading.Thread(target=lambda: found.put(turns.next()), daemon=True)
    waiting.start()
    with pytest.raises(queue.Empty):
        found.get(timeout=0.2)

    ended(turns, 0)
    assert found.get(timeout=10) == (1, "taken")
    assert turns.next() == (2, "taken"), "both at a time, since every state is there"
    assert turns.next() is None


def test_where_the_first_fails_the_next_one_learns(tmp_path: Path) -> None:
    """So it is where the first was finished before. The last one learns for itself alone."""
    turns = Turns(["a", "a", "a"], tmp_path)
    for place, training in enumerate(("kept", "kept", "taken")):
        assert turns.next() == (place, training)
        ended(turns, place, "failed", whole=False)
    assert turns.next() is None


def test_states_go_with_the_last_who_shares_them_and_stay_in_an_interruption(tmp_path: Path) -> None:
    for interrupted in (False, True):
        states = tmp_path / "trained" / "mini-hide" / "state-1"
        states.mkdir(parents=True)
        turns = Turns(["a", "a"], tmp_path / "trained")
        turns.next()
        ended(turns, 0)
        assert states.exists()
        turns.next()
        if interrupted:
            turns.close()
        ended(turns, 1, "failed")
        assert states.exists() is (tmp_path / "trained").exists() is interrupted


def test_nobody_waits_for_a_turn_behind_the_end(tmp_path: Path) -> None:
    turns = Turns(["a", "a"], tmp_path)
    turns.next()
    found: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=lambda: found.put(turns.next()), daemon=True).start()
    turns.close()

    assert found.get(timeout=10) is None
