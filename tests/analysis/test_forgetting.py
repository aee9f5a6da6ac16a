"""Which lesson turned which samples from right to wrong, by runs whose answers are known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from kept_runs import write_run
from typer.testing import CliRunner

from cl_zoo.analysis.forgetting import costs, forgetting, path, summary
from cl_zoo.cli.main import app
from cl_zoo.errors import RunError
from cl_zoo.runs.answered import Asked

TASKS = ("render", "chart", "icon")
SCORES = ([100], [25, 75], [50, 75, 100])
"""Of the first task's four samples three are lost with the second lesson, and one of them comes back with the third."""


def asked(*scores: float, start: int = 0, form: int | None = None) -> Asked:
    answers = [
        {
            "after": "t",
            "stage": stage,
            "answer": "",
            "score": score,
            **({"form": True} if stage == form else {}),
        }
        for stage, score in enumerate(scores)
    ]
    return Asked("render", start, {"id": "0", "place": 0}, "", "otter", tuple(answers))


def test_each_lesson_is_counted_against_the_one_before(tmp_path: Path) -> None:
    write_run(tmp_path, "ewc", scores=SCORES, tasks=TASKS)

    rows = {(row["lesson"], row["task"]): row for row in forgetting([tmp_path]).rows}

    def counted(lesson: str, task: str) -> tuple[int, ...]:
        return tuple(rows[lesson, task][name] for name in ("right_before", "lost", "won", "right", "gone"))

    assert set(rows) == {(lesson, task) for n, lesson in enumerate(TASKS) for task in TASKS[: n + 1]}
    assert counted("render", "render") == (4, 0, 0, 4, 0)
    assert counted("chart", "render") == (4, 3, 0, 1, 3)
    assert counted("icon", "render") == (1, 0, 1, 2, 2)
    assert counted("icon", "chart") == (3, 0, 0, 3, 0)


def test_shares_are_of_what_was_right_and_the_last_task_does_not_count(tmp_path: Path) -> None:
    """Seven samples were right after their own lesson; two of them are wrong at the end, three were turned, one came back."""
    write_run(tmp_path, "ewc", scores=SCORES, tasks=TASKS)

    rows = forgetting([tmp_path]).rows

    assert costs(rows) == {("chart", "render"): 75.0, ("icon", "render"): 0.0, ("icon", "chart"): 0.0}
    found = summary(rows)
    assert [round(found[name], 3) for name in ("gone", "lost", "won")] == [28.571, 42.857, 14.286]
    assert found["worst"] == {"lesson": "chart", "task": "render", "share": 75.0}


@pytest.mark.parametrize(
    ("wrong", "in_form"),
    [("the answer is otter", 3), ("An otter.", 3), ("dog", 0)],
    ids=["said", "article", "wrong"],
)
def test_what_is_wrong_in_form_alone_is_told_apart(tmp_path: Path, wrong: str, in_form: int) -> None:
    write_run(tmp_path, "ewc", scores=SCORES, tasks=TASKS, wrong=wrong)

    (row,) = (
        row for row in forgetting([tmp_path]).rows if (row["lesson"], row["task"]) == ("chart", "render")
    )

    assert (row["lost"], row["lost_in_form"], row["form"], row["gone_in_form"]) == (
        3,
        in_form,
        in_form,
        in_form,
    )


def test_a_caption_is_right_as_long_as_it_keeps_half_of_its_best_score() -> None:
    assert [step["right"] for step in path(asked(40.0, 20.0, 60.0, 29.0, 30.0))] == [
        True,
        True,
        True,
        False,
        True,
    ]
    assert [step["right"] for step in path(asked(0.0, 0.0))] == [False, False]


def test_what_was_said_before_a_tasks_own_lesson_does_not_count() -> None:
    steps = path(asked(100.0, 50.0, 10.0, start=1, form=2))

    assert [(step["stage"], step["right"], step["form"]) for step in steps] == [
        (1, True, False),
        (2, False, True),
    ]


def test_runs_of_several_seeds_are_averaged_and_several_methods_told_from_most_to_least(
    tmp_path: Path,
) -> None:
    write_run(tmp_path, "ewc", scores=([100], [50, 100]))
    write_run(tmp_path, "ewc", 1, scores=([100], [0, 100]))
    write_run(tmp_path, "hide", scores=([100], [100, 100]))
    found = forgetting([tmp_path])

    assert costs([row for row in found.rows if row["label"] == "ewc"]) == {("chart", "render"): 75.0}
    assert found.sentence == (
        "of what ewc had right after its own lesson, 75.0 % is wrong at the end; of what hide had right after its own lesson, "
        "0.0 % is wrong at the end. The dearest lesson was chart, which turned 75.0 % of what ewc had right of render."
    )
    assert "after chart    75.0" in found.text
    assert len(found.figure().axes) == 2


def test_runs_that_can_forget_nothing_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "bound", "zeroshot", scores=([25, 50],), protocol="none")
    write_run(tmp_path / "one", "ewc", scores=([100],), tasks=("render",))

    with pytest.raises(RunError, match="learnt its tasks one after the other"):
        forgetting([tmp_path / "bound"])
    with pytest.raises(RunError, match="again after a later one"):
        forgetting([tmp_path / "one"])


def test_the_command_prints_a_sentence_and_writes_rows_and_a_figure(tmp_path: Path) -> None:
    write_run(tmp_path, "ewc")
    files = ["--csv", str(tmp_path / "rows.csv"), "--figure", str(tmp_path / "figure.png")]

    done = CliRunner().invoke(app, ["analyze", "forgetting", str(tmp_path), *files])
    told = json.loads(CliRunner().invoke(app, ["analyze", "forgetting", str(tmp_path), "--json"]).stdout)

    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("of what ewc had right after its own lesson, 75.0 % is wrong at the end.")
    with (tmp_path / "rows.csv").open() as file:
        assert [row["lost"] for row in csv.DictReader(file)] == ["0", "3", "0"]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert [row["lost"] for row in told["rows"]] == [0, 3, 0]
