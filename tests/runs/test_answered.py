"""What a finished run answered to each sample, after which task, and what of it is forgotten."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cl_zoo.engine.folder import RunFolder
from cl_zoo.errors import DataError, OptionError, RunError
from cl_zoo.runs.answered import Asked, answered
from cl_zoo.runs.manifest import finish
from cl_zoo.scoring.scorer import Scorer

TASKS = ("render", "chart")
EXPECTED = {
    "0": [
        {"id": "7", "place": 0, "record": "q-1", "picture": "otter.png", "answer": "otter", "references": []},
        {"id": "8", "place": 1, "answer": "cat", "references": []},
    ],
    "1": [{"id": "7", "place": 0, "answer": "B", "references": []}],
}
ANSWERS = {"0-0": ["otter", "dog"], "1-0": ["a \x1b[31m[B]\n", "cat"], "1-1": ["B"]}
"""The first sample is forgotten; the second one was wrong and is right now."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of two tasks."""
    folder = RunFolder(tmp_path, "run", {"benchmark": {"name": "zoo"}, "stack": [], "cells": "lower"})
    facts = {"label": "ewc", "protocol": "sequential", "seed": 0, "tasks": TASKS, "metrics": ["exact"] * 2}
    with folder:
        folder.begin()
        for place, records in EXPECTED.items():
            folder.write_lines(f"expected/{place}.jsonl", records)
        for cell, texts in ANSWERS.items():
            ids = [record["id"] for record in EXPECTED[cell[-1]]]
            said = [
                {"id": n, "prompt": f"What is {n}?", "answer": t} for n, t in zip(ids, texts, strict=True)
            ]
            folder.write_lines(f"answers/{cell}.jsonl", said)
    with Scorer() as scorer:
        finish(folder, {**facts, "lessons": [{"name": name} for name in TASKS]}, scorer)
    return folder.final


def test_a_sample_was_right_after_one_task_and_is_wrong_now(run: Path):
    first, second, third = answered(run)

    assert first.to_json() == {
        "task": "render",
        "task_place": 0,
        "id": "7",
        "place": 0,
        "record": "q-1",
        "picture": "otter.png",
        "question": "What is 7?",
        "expected": "otter",
        "answers": [
            {"after": "render", "stage": 0, "answer": "otter", "score": 100.0},
            {"after": "chart", "stage": 1, "answer": "a \x1b[31m[B]\n", "score": 0.0},
        ],
        "forgotten": True,
    }
    assert [one.forgotten for one in (second, third)] == [False, False]
    assert third.then is None


@pytest.mark.parametrize(("last", "forgotten"), [(29.9, True), (30.0, False), (40.0, False)])
def test_half_of_the_best_earlier_score_is_not_forgotten(last: float, forgotten: bool):
    said = [
        {"after": "render", "stage": stage, "answer": "", "score": n}
        for stage, n in enumerate((60.0, 20.0, last))
    ]
    assert Asked("render", 0, {}, "?", "otter", tuple(said)).forgotten == forgotten


def test_the_command_lists_what_is_forgotten_with_the_answers_then_and_now(
    run: Path, cli: Callable[..., Any]
):
    """Nothing of an answer reaches the terminal as anything but text."""
    ended = cli("answers", run, "--forgotten")

    assert ended.code == 0
    assert ended.out.splitlines() == [
        "render: 1 of 2 samples are forgotten",
        "  sample 0 (id 7, record q-1, picture otter.png)",
        "    question   What is 7?",
        "    expected   otter",
        "    after render: otter   [100]",
        "    after chart: a [31m[B]   [0]",
        "chart: 0 of 1 samples are forgotten, each asked once",
    ]


def test_the_command_shows_every_sample_of_one_task_and_all_as_json(run: Path, cli: Callable[..., Any]):
    chart = cli("answers", run, "--task", "chart").out
    everything = json.loads(cli("answers", run, "--json").out)
    forgotten = json.loads(cli("answers", run, "--json", "--forgotten").out)

    assert "render" not in chart
    assert "    after chart: B   [100]" in chart
    assert [(one["task"], one["id"]) for one in everything] == [
        ("render", "7"),
        ("render", "8"),
        ("chart", "7"),
    ]
    assert forgotten == everything[:1]


def test_a_run_of_a_version_that_wrote_no_scores_of_samples_says_the_same(run: Path):
    with_scores = [one.to_json() for one in answered(run)]
    shutil.rmtree(run / "scores")

    assert [one.to_json() for one in answered(run)] == with_scores


def test_scores_that_lack_a_sample_are_an_error_with_the_remedy(run: Path):
    file = run / "scores" / "1-0.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n")

    with pytest.raises(DataError, match=r"scores/1-0.jsonl: has no score of sample '8'; `cl-zoo verify"):
        list(answered(run))


def test_an_unknown_task_and_a_folder_that_is_no_run_are_named(run: Path, tmp_path: Path):
    with pytest.raises(OptionError, match=r"--task chrt: .* has no such task; did you mean 'chart'"):
        list(answered(run, "chrt"))
    with pytest.raises(RunError, match=r"has no manifest\.json"):
        list(answered(tmp_path))
