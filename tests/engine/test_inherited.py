"""What a run takes over from others beside it, without any training: which of them, which files, and nothing that is damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_zoo.engine.folder import RunFolder, cells_of_row
from cl_zoo.engine.inherited import Inherited, inherit, ways_back
from cl_zoo.engine.states import read_list, read_state_in, states_in

TASKS = ("a", "b", "c", "d")
CELLS = [(row, place) for row in range(4) for place in cells_of_row("lower", "sequential", row, 4)]


def identity(links: str, asked: str = "????", order: Sequence[str] = TASKS, **more: Any) -> dict[str, Any]:
    """Of a run whose links are these letters, and whose questions are these by task."""
    tests = {name: {"asked": one} for name, one in zip(TASKS, asked, strict=True)}
    return {
        "benchmark": {"name": "tiny", "order": list(order), "tests": tests},
        "stack": ["method"],
        "probes": [],
        "chain": [{"task": name, "link": link} for name, link in zip(order, links, strict=False)],
        **more,
    }


def folder(root: Path, run: str, about: dict[str, Any], **more: Any) -> RunFolder:
    return RunFolder(root, run, about, **more)


def left(root: Path, run: str, about: dict[str, Any], done: int, *, data: Sequence[str] = ()) -> Path:
    """What a run has left that was interrupted after so many tasks; its tensors say how many."""
    with folder(root, run, about, keep=True, data=data) as made:
        made.begin()
        for row in range(done):
            for place in range(row + 1):
                made.write_lines(f"answers/{row}-{place}.jsonl", [{"answer": f"{run} {row}-{place}"}])
            notes = {"ledger": {"taken": 0}, "measured": [], "data": made.data}
            plugins = {"method": {"file": f"{data[0]}/x.png"} if data else {}}
            made.save_state(row + 1, {"w": torch.full((2,), row + 1.0)}, plugins, notes)
    return made.partial


def taken(
    root: Path, about: dict[str, Any], **more: Any
) -> tuple[Inherited | None, dict[int, float], dict[str, str]]:
    """What a new run takes over: as it is told, the states with their tensor, and the answers."""
    with folder(root, "new", about, **more) as made:
        found = inherit(made, CELLS)
        states = {int(one.name[6:]): float(read_state_in(one)[0]["w"][0]) for one in states_in(made.partial)}
        listed = (read_list(states_in(made.partial)[-1]) or {"run": {}})["run"] if states else {}
        answers = {
            name: json.loads((made.partial / name).read_text())["answer"]
            for name in listed
            if name.startswith("answers/")
        }
        made.load_state()
        rows = {row: [place for r, place in CELLS if r == row] for row in range(max(states, default=0))}
        lost = made.lost(rows)
    assert {f"answers/{row}-{place}.jsonl" for row, those in rows.items() for place in those} == {
        *answers,
        *(f"answers/{row}-{place}.jsonl" for row, those in lost.items() for place in those),
    }
    return found, states, answers


ROWS = st.sets(st.integers(0, 6))
STATES = st.sets(st.integers(1, 7))


@given(ROWS, STATES)
def test_every_row_is_reached_from_the_newest_state_before_it_and_nothing_is_learnt_twice(
    rows: set[int], states: set[int]
):
    at, learnt = 0, list[int]()
    for row, state, places in ways_back(rows, states):
        if state:
            assert state in states
            at = state
        assert places == range(at, row + 1)
        assert not any(at < one <= row + 1 for one in states)
        learnt += places
        at = row + 1

    assert [row for row, *_ in ways_back(rows, states)] == sorted(rows)
    assert learnt == sorted(set(learnt))


def test_a_new_run_takes_the_state_behind_the_last_task_in_common(tmp_path: Path):
    """With all answers before it and, of earlier states, what is kept."""
    left(tmp_path, "old", identity("1234"), 4)

    found, states, answers = taken(tmp_path, identity("12xx"))

    assert found == Inherited("old.partial", 2, ())
    assert states == {2: 2.0}
    assert answers == {f"answers/{cell}.jsonl": f"old {cell}" for cell in ("0-0", "1-0", "1-1")}
    shutil.rmtree(tmp_path / "new.partial")
    assert taken(tmp_path, identity("12xx"), keep=True)[1] == {1: 1.0, 2: 2.0}


def test_of_several_runs_the_one_that_has_learnt_most_in_common_serves_then_the_one_with_most_answers(
    tmp_path: Path,
):
    left(tmp_path, "z-short", identity("12yy"), 2)
    left(tmp_path, "y-other", identity("123y", asked="!???"), 3)
    left(tmp_path, "b-long", identity("123z"), 3)
    left(tmp_path, "nothing", identity("xxxx"), 4)

    found, states, answers = taken(tmp_path, identity("1234"))

    assert found == Inherited("b-long.partial", 3, ())
    assert states == {3: 3.0}
    assert len(answers) == 6


def test_answers_to_other_questions_are_not_taken_and_the_way_back_to_them_is(tmp_path: Path):
    """The states that they are made from again come along; where one is gone its task is learnt."""
    old = left(tmp_path, "old", identity("1234"), 3)
    shutil.rmtree(old / "state-1")

    found, states, answers = taken(tmp_path, identity("123x", asked="!???"))

    assert found == Inherited("old.partial", 3, (0,))
    assert states == {2: 2.0, 3: 3.0}
    assert sorted(answers) == [f"answers/{cell}.jsonl" for cell in ("1-1", "2-1", "2-2")]


def test_answers_are_found_where_the_task_stands_in_another_place(tmp_path: Path):
    """Cells above the diagonal, that of a later task: only its questions count."""
    with folder(tmp_path, "old", identity("1234")) as made:
        made.begin()
        made.write_lines("answers/0-3.jsonl", [{"answer": "to d"}])
        made.save_state(1, {"w": torch.ones(2)}, {}, {"ledger": {}, "data": []})

    with folder(tmp_path, "new", identity("1xyz", order="adcb")) as new:
        inherit(new, [(0, 0), (0, 1)])

    assert (new.partial / "answers/0-1.jsonl").read_text() == '{"answer":"to d"}\n'
    assert not (new.partial / "answers/0-0.jsonl").exists()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "done", "answers"),
    [
        (lambda old: cut(old / "state-2/model.safetensors"), 1, 1),
        (lambda old: (old / "state-2/plugins.safetensors").unlink(), 1, 1),
        (lambda old: cut(old / "state-2/state.json"), 1, 1),
        (lambda old: (old / "state-2/files.json").unlink(), 1, 1),
        (lambda old: cut(old / "answers/0-0.jsonl"), 2, 2),
        (lambda old: (old / "answers/0-0.jsonl").unlink(), 2, 2),
        (lambda old: cut(old / "state-2/files.json"), 1, 1),
        (lambda old: (old / "identity.json").write_text("["), 0, 0),
        (lambda old: (old / "identity.json").write_text("[]"), 0, 0),
        (lambda old: old.rename(old.with_name("old.damaged")), 0, 0),
    ],
)
def test_what_is_damaged_is_not_taken(tmp_path: Path, damage: Callable[[Path], Any], done: int, answers: int):
    """Nor what stands in a list that is damaged alone, since nothing tells what its files should hold."""
    damage(left(tmp_path, "old", identity("1234"), 2))

    found, states, said = taken(tmp_path, identity("12xx"))

    assert (found.done if found else 0) == max(states, default=0) == done
    assert len(said) == answers


@pytest.mark.parametrize(
    "other",
    [
        identity("2234"),
        identity("1234", stack=["method with other options of answering"]),
        identity("1234", probes=["another"]),
        {key: value for key, value in identity("1234").items() if key != "chain"},
        identity("1234", chain="of another version"),
    ],
    ids=["another link", "another stack", "another probe", "before chains", "no chain"],
)
def test_a_run_that_has_learnt_or_answers_otherwise_does_not_serve(tmp_path: Path, other: dict[str, Any]):
    left(tmp_path, "old", other, 2)

    assert taken(tmp_path, identity("1234")) == (None, {}, {})


def test_a_run_that_has_begun_takes_nothing_over(tmp_path: Path):
    left(tmp_path, "new", identity("1234"), 1)
    left(tmp_path, "old", identity("123x"), 3)

    assert taken(tmp_path, identity("1234"))[:2] == (None, {1: 1.0})


@pytest.mark.parametrize(("here", "there", "done"), [("d", "d", 2), ("d", "e", 0), ("d", "d2", 0)])
def test_a_state_with_paths_into_other_data_is_not_taken(tmp_path: Path, here: str, there: str, done: int):
    left(tmp_path, "old", identity("1234"), 2, data=[there])

    found, states, _ = taken(tmp_path, identity("12xx"), data=[here])

    assert (found.done if found else 0) == max(states, default=0) == done
    if found:
        notes = json.loads((tmp_path / "new.partial/state-2/state.json").read_text())
        assert (notes["data"], notes["ledger"]) == ([here], {"taken": 2})
