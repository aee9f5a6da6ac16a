"""What is said of a run although nothing is wrong: before it in a line, behind it as marks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cl_zoo.errors import OptionError
from cl_zoo.runs.remarks import remarks


@pytest.mark.parametrize(("turns", "samples", "answers"), [("all", 2, 4), ("last", 2, 2), ("split", 4, 4)])
def test_conversations_of_several_questions_are_counted(
    tmp_path: Path, three: str, turns: str, samples: int, answers: int
) -> None:
    """Of one record with three questions and one with one."""
    turn = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}]
    (tmp_path / "B.json").write_text(json.dumps([{"conversations": turn * 3}, {"conversations": turn}]))
    about = yaml.safe_load(Path(three).read_text())
    about["tasks"][1]["train"]["turns"] = turns
    Path(three).write_text(yaml.safe_dump(about))

    (line,) = remarks(three, recipe={"global_batch": 1, "epochs": 10})
    assert line.startswith(
        f"b: 2 training records ask 4 questions and make {samples} samples that learn {answers} answers; 'turns' in"
    )


@pytest.fixture
def three(tmp_path: Path) -> str:
    """Tasks A, B and C of 6, 60 and 240 samples."""
    tasks = []
    for letter, size in (("A", 6), ("B", 60), ("C", 240)):
        turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}]
        (tmp_path / f"{letter}.json").write_text(json.dumps([{"conversations": turns}] * size))
        about = {
            "name": letter.lower(),
            "letter": letter,
            "instruction": "",
            "metric": "exact",
            "max_new_tokens": 4,
        }
        tasks.append(
            about
            | {
                "train": {"files": [f"{letter}.json"], "format": "llava"},
                "test": {"files": ["test.json"], "format": "question"},
            }
        )
    (tmp_path / "test.json").write_text(json.dumps([{"question_id": 1, "text": "?", "answer": "a"}]))
    recipe = {"global_batch": 24, "epochs": 1}
    all_of_it = {
        "name": "three",
        "version": "1",
        "methods": ["finetune"],
        "backbone": "mini",
        "recipe": recipe,
        "tasks": tasks,
    }
    file = tmp_path / "three.yaml"
    file.write_text(yaml.safe_dump(all_of_it))
    return str(file)


def test_an_order_that_leaves_tasks_out_is_said(three: str):
    few = {"global_batch": 1}

    assert remarks(three, order="CBA", recipe=few | {"epochs": 2}) == []
    assert remarks(three, order="CB", recipe=few) == [
        "--order CB takes 2 of the 3 tasks of three; scores do not compare with those of all (without a)"
    ]


def test_a_run_of_a_handful_of_steps_is_said(three: str):
    """6 samples are 1 step of 24, 60 are 3, 240 are exactly 10."""
    assert remarks(three) == [
        "2 of 3 tasks have fewer than 10 steps, a has 1 (6 samples in batches of 24): so few teach next to nothing; "
        "take more samples or epochs, or a smaller global_batch"
    ]
    assert remarks(three, limit=216)[0].startswith("3 of 3 tasks have fewer than 10 steps, a has 1")
    assert remarks(three, order="A", limit=1)[1].startswith(
        "1 of 1 task has fewer than 10 steps, a has 1 (1 sample in batches of 24): so few"
    )
    assert remarks(three, recipe={"epochs": 10}) == []


def test_an_order_of_an_unknown_task_is_refused(three: str):
    with pytest.raises(OptionError, match="three has no task 'X'"):
        remarks(three, order="X")


def test_a_finished_run_is_marked_with_what_it_left_out_and_with_tasks_of_few_steps(
    run_tiny: Callable[..., Any],
):
    """8 samples in batches of 4 are two steps an epoch; five epochs are ten, which are enough."""
    part = run_tiny("finetune", order="S", limit=8, recipe={"global_batch": 4, "epochs": 1})
    whole = run_tiny("finetune", order="SC", recipe={"global_batch": 4, "epochs": 5})

    (run,) = part.table().to_json()["runs"]
    assert run["marks"] == {"without": ["colour"], "limit": 8, "few_steps": {"side": 2}}
    assert not whole.row().marks.keys() & {"without", "limit", "few_steps"}
