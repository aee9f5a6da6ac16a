"""`trigap`: ten tasks under the file names of Prism's configuration, documents scored by edit distance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cl_zoo_bench_trigap import load as trigap

from cl_zoo.data.benchmarks import load_benchmark
from cl_zoo.inspection.check import inspect
from cl_zoo.names import Choice, load
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.runs.job import Job
from cl_zoo.runs.prepared import prepare
from cl_zoo.scoring.judges import Expected
from cl_zoo.scoring.rules import RULES

TREES = Path(__file__).parents[1] / "official_sequences.py"
write_trigap, TRIGAP = (load("", f"{TREES}:{name}") for name in ("write_trigap", "TRIGAP"))
DOCUMENTS = ("DocVQA", "InfographicVQA")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The ten tasks."""
    root: Path = write_trigap(tmp_path / "data")
    return root


def test_the_order_is_that_of_the_configuration_and_letters_are_all_different():
    about = trigap.description.tasks

    assert [one.name for one in about] == list(TRIGAP)
    assert "".join(one.letter for one in about) == "PDCIGARHFL"


def test_documents_are_scored_by_likeness_and_the_rest_by_equality():
    for one in trigap.description.tasks:
        assert one.metric == ("anls" if one.name in DOCUMENTS else "exact")
        assert one.max_new_tokens == 128


def test_no_count_is_given_since_a_name_is_none():
    for one in trigap.description.tasks:
        assert (one.train.count, one.test.count) == (None, None)


def test_its_recipe_trains_rank_8_per_task_with_the_projector_frozen():
    recipe = build_recipe(trigap.description.recipe)

    assert (recipe.epochs, recipe.global_batch, recipe.adapter.rank, recipe.adapter.scale) == (1, 12, 8, 2.0)
    assert (recipe.projector, recipe.clip, recipe.schedule) == ("frozen", "none", "cosine")


def test_all_ten_tasks_are_prepared(data: Path):
    prepared = prepare(Job((Choice("finetune"),), "trigap", data=str(data), limit=3))

    assert [one.name for one in prepared.stream] == list(TRIGAP)
    for one in prepared.stream:
        assert [len(one.train), len(one.test)] == [3, 3]
        assert all(sample.image.is_file() for sample in (*one.train, *one.test))  # type: ignore[union-attr]


def test_a_list_of_right_answers_counts_by_the_best(data: Path):
    (sample, *_) = load_benchmark("trigap", str(data)).stream("D")[0].test

    assert sample.answer == "yes"
    assert sample.truth["answers"] == ["yes", "yes Inc."]
    wanted = Expected(sample.answer, sample.references, sample.truth)
    assert RULES["anls"].official("YES INC.", wanted) == 1  # type: ignore[misc]
    assert RULES["anls"].official("yes Inc", wanted) == pytest.approx(7 / 8)  # type: ignore[misc]


def test_data_check_finds_nothing_that_has_to_be_put_right(data: Path):
    report = inspect(trigap, data)

    assert report.ok
    assert [facts.task for facts in report.tasks if facts.split == "test"] == list(TRIGAP)


def test_a_document_file_that_is_missing_is_named(data: Path):
    file = data / "TriGap/instructions/DocVQA/train_converted_sub.json"
    file.rename(file.with_name("train_converted.json"))

    found = [one for one in inspect(trigap, data).findings if one.kind == "no file"]

    assert len(found) == 1
    assert "DocVQA/train_converted_sub.json" in str(found[0])


def test_a_run_answers_documents_and_equality_tasks(
    data: Path, tiny_folder: Path, tmp_path: Path, cli: Callable[..., Any]
):
    ended = cli(
        *("run", "finetune", "--benchmark", "trigap", "--data", data, "--order", "DL", "--limit", 2),
        *("--backbone", tiny_folder / "llava", "--set", "global_batch=2", "--set", "precision=fp32"),
        *("--set", "checkpointing=false", "--device", "cpu", "--out", tmp_path / "runs"),
    )

    assert ended.code == 0, ended.err
    (manifest,) = (tmp_path / "runs").glob("*/manifest.json")
    scores = json.loads(manifest.read_text())["scores"]
    assert [scores[cell]["metric"].partition("/")[0] for cell in ("0-0", "1-0", "1-1")] == [
        "anls",
        "anls",
        "exact",
    ]
