"""The end of a run: both matrices in the manifest, and what of them a table shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cl_zoo.engine.folder import RunFolder
from cl_zoo.errors import DataError
from cl_zoo.names import Choice
from cl_zoo.runs.comparison import Comparison, load_result
from cl_zoo.runs.job import Job
from cl_zoo.runs.manifest import finish
from cl_zoo.runs.prepared import prepare
from cl_zoo.scoring.scorer import Scorer

RIGHT, WRONG, EMPTY = "otter", "cat", ""


def finished(
    root: Path, metrics: list[str], cells: dict[str, list[str]], protocol: str = "sequential"
) -> Path:
    """A run whose answers, by `row-place`, are scored; every expected answer is "otter"."""
    identity = {"benchmark": {"name": "zoo"}, "stack": [], "cells": "lower"}
    folder = RunFolder(root, "run", identity)
    facts = {
        "label": "finetune",
        "protocol": protocol,
        "seed": 0,
        "tasks": [f"task-{n}" for n in range(len(metrics))],
        "metrics": metrics,
        "ledger": {"tasks": [], "trained": 0, "stored": {}, "seconds": 1.0},
    }
    with folder:
        folder.begin()
        for place in range(len(metrics)):
            size = len(next(answers for cell, answers in cells.items() if cell.endswith(f"-{place}")))
            expected = [{"id": str(n), "answer": RIGHT, "references": []} for n in range(size)]
            folder.write_lines(f"expected/{place}.jsonl", expected)
        for cell, answers in cells.items():
            records = [{"id": str(n), "answer": text} for n, text in enumerate(answers)]
            folder.write_lines(f"answers/{cell}.jsonl", records)
    with Scorer() as scorer:
        finish(folder, facts, scorer)
    return folder.final


CELLS = {"0-0": [RIGHT, WRONG], "1-0": [RIGHT, EMPTY], "1-1": [RIGHT, WRONG]}
"""By ImageNet's rule the empty answer is right: 50 and 100 on the first task, strictly 50 and 50."""


def test_both_matrices_are_stored_where_a_rule_has_a_strict_form(tmp_path: Path):
    result = load_result(finished(tmp_path, ["imagenet", "exact"], CELLS))

    assert result.matrix.scores == ((50.0, None), (100.0, 50.0))
    assert result.strict.scores == ((50.0, None), (50.0, 50.0))
    assert result.manifest["scores"]["1-0"] == {
        "value": 100.0,
        "strict": 50.0,
        "parts": {},
        "metric": "imagenet/1",
        "count": 2,
        "empty": 50.0,
        "form": 0.0,
        "notes": [],
    }


def test_the_score_of_each_sample_lies_beside_the_answers_which_stay_what_was_said(tmp_path: Path):
    folder = finished(tmp_path, ["imagenet", "exact"], CELLS)

    scores = [json.loads(line) for line in (folder / "scores" / "1-0.jsonl").read_text().splitlines()]

    assert scores == [
        {"id": "0", "score": 100.0, "strict": 100.0},
        {"id": "1", "score": 100.0, "strict": 0.0},
    ]
    assert json.loads((folder / "answers" / "1-0.jsonl").read_text().splitlines()[1]) == {
        "id": "1",
        "answer": EMPTY,
    }


def test_empty_answers_and_answers_wrong_in_form_alone_are_notes_of_the_row(tmp_path: Path):
    """Of the last answers: half of the first task's are empty, of the second one's half lack nothing but their form."""
    cells = {"0-0": [EMPTY, EMPTY], "1-0": [RIGHT, EMPTY], "1-1": [RIGHT, "An otter."]}
    result = load_result(finished(tmp_path, ["imagenet", "exact"], cells))

    assert result.row().stamps == ("empty answers: task-0", "wrong in form alone: task-1")
    assert "wrong in form alone: task-1" in result.table().text()
    (run,) = result.table().to_json()["runs"]
    assert run["answers"]["0-0"] == {"empty": 100.0, "form": 0.0, "notes": []}
    assert run["answers"]["1-1"] == {"empty": 0.0, "form": 50.0, "notes": []}
    assert run["marks"] == {"empty": ["task-0"], "form": ["task-1"]}


def test_a_manifest_of_a_version_that_knew_nothing_of_answers_still_has_its_row(tmp_path: Path):
    folder = finished(tmp_path, ["imagenet", "exact"], CELLS)
    manifest = json.loads((folder / "manifest.json").read_text())
    for score in manifest["scores"].values():
        for key in ("empty", "form", "notes"):
            del score[key]
    for key in ("files", "seal"):  # what lists and seals the files is younger too
        del manifest[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))

    row = load_result(folder).row()

    assert row.stamps == ()
    assert row.matrix is not None
    assert row.answers["1-0"] == {}


@pytest.mark.parametrize(("cells", "missing"), [("0-0 1-1", "1-0"), ("1-0 1-1", "0-0")])
def test_a_cell_that_was_lost_is_an_error_and_no_hole_in_the_matrix(tmp_path: Path, cells: str, missing: str):
    with pytest.raises(DataError, match=rf"answers/{missing}\.jsonl.*verify .*run\.partial --repair"):
        finished(tmp_path, ["imagenet", "exact"], {cell: CELLS[cell] for cell in cells.split()})

    assert not (tmp_path / "run").exists()


def test_one_matrix_is_stored_where_no_rule_has_a_strict_form(tmp_path: Path):
    result = load_result(finished(tmp_path, ["exact", "exact"], CELLS))

    assert "strict" not in result.manifest
    assert result.strict == result.matrix
    assert result.row().strict is None


def test_a_run_of_one_row_has_both_matrices_too(tmp_path: Path):
    cells = {"0-0": [RIGHT, EMPTY], "0-1": [RIGHT, EMPTY]}
    result = load_result(finished(tmp_path, ["imagenet", "exact"], cells, "none"))

    assert (result.matrix.scores, result.strict.scores) == (((100.0, 50.0),), ((50.0, 50.0),))


def test_a_table_shows_the_official_scores_or_says_that_it_shows_the_strict_ones(tmp_path: Path):
    result = load_result(finished(tmp_path, ["imagenet", "exact"], CELLS))
    comparison = Comparison((result,))

    official, strict = comparison.table().text(), comparison.table("strict").text()

    assert "strict" not in official
    assert "Last, strict" in strict
    assert "Scores by the strict rules" in strict
    assert [
        table.to_json()["methods"][0]["figures"]["last"]["mean"]
        for table in (
            comparison.table(),
            comparison.table("strict"),
            result.table("strict"),
        )
    ] == [75.0, 50.0, 50.0]


def test_json_holds_both_matrices_whichever_is_shown(tmp_path: Path):
    result = load_result(finished(tmp_path, ["imagenet", "exact"], CELLS))

    for scoring in ("official", "strict"):
        data = Comparison((result,)).table(scoring).to_json()
        assert data["scoring"] == scoring
        assert data["runs"][0]["matrix"] == result.matrix.to_json()
        assert data["runs"][0]["strict"] == result.strict.to_json()


@pytest.mark.parametrize("command", ["run finetune", "compare --methods finetune"])
def test_an_unknown_scoring_is_refused_before_anything_runs(
    cli: Callable[..., Any], tmp_path: Path, command: str
):
    ended = cli(*command.split(), "--scoring", "stric", "--out", tmp_path / "runs")

    assert ended.code == 2
    assert "--scoring stric; did you mean 'strict'? known: official, strict" in ended.err
    assert not (tmp_path / "runs").exists()


BLIND = """
from cl_zoo.tasks import Benchmark, Sample, TaskData
ONE = [Sample("0", None, "?", "yes")]
def load(data):
    return Benchmark("blind", "1", (TaskData("one", "O", "Say it.", "textvqa", 4, ONE, ONE, ONE),), ("x",), "mini", "hash")
"""


def test_a_benchmark_that_lacks_what_its_rule_needs_is_refused_before_training(install: Callable[..., Any]):
    install("blind", modules={"blind": BLIND})

    with pytest.raises(
        DataError,
        match="blind, task one, test sample '0': textvqa scoring needs 10 texts as 'answers' in its 'truth'; give it",
    ):
        prepare(Job((Choice("finetune"),), "blind:load"))
