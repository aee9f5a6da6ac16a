"""A held-out set before and after a stream of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import cl_zoo
from cl_zoo.analysis.retention import chosen, compared, retention
from cl_zoo.errors import OptionError
from cl_zoo.scoring.scorer import Score
from cl_zoo.testing import tiny_benchmark

TINY: dict[str, Any] = {
    "benchmark": "cl_zoo.testing:load_tiny",
    "backbone": "cl_zoo.testing:load_tiny_backbone",
    "device": "cpu",
    "preflight": False,
}


def score(*points: float) -> Score:
    samples = tuple({"id": f"{n}", "score": one} for n, one in enumerate(points))
    return Score(sum(points) / len(points), {}, "exact/1", len(points), samples=samples)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt the first of two tasks."""
    out = tmp_path_factory.mktemp("runs")
    result = cl_zoo.run("finetune", order="C", out=out, recipe={"lr.adapters": 3e-2, "epochs": 4}, **TINY)
    assert result.folder is not None
    return result.folder


def test_a_task_outside_the_stream_is_scored_before_and_after(learnt: Path) -> None:
    """Before it is what zero-shot measures, after it what the run's model answers to the same samples."""
    untouched = cl_zoo.run("zeroshot", out=learnt.parent, **TINY)
    task = tiny_benchmark().tasks[1]
    images, prompts = [one.image for one in task.test], [one.prompt for one in task.test]
    said = cl_zoo.load(learnt, device="cpu").generate(images, prompts, max_new_tokens=task.max_new_tokens)

    (row,) = retention(learnt, device="cpu").rows

    assert (row["task"], row["samples"]) == ("side", len(task.test))
    assert row["before"] == pytest.approx(untouched.matrix.last_i[1])
    right = [text.strip().lower() == one.answer for text, one in zip(said, task.test, strict=True)]
    assert row["after"] == pytest.approx(100 * sum(right) / len(right))


def test_a_task_that_was_learnt_is_asked_about_where_it_is_named(learnt: Path) -> None:
    found = retention(learnt, tasks=["colour"], limit=4, device="cpu")

    assert [(row["task"], row["samples"]) for row in found.rows] == [("colour", 4)]
    assert found.rows[0]["after"] > found.rows[0]["before"]
    assert "on 1 task of" in found.sentence
    assert found.figure().axes


def test_the_interval_of_a_change_is_that_of_the_paired_scores() -> None:
    """Of eight samples three fall from 100 to 0 and none rises: the change is −37.5, s = 51.75, and t(7) is 2.3646."""
    row = compared("chart", score(*[100.0] * 8), score(*[0.0] * 3, *[100.0] * 5))

    assert (row["before"], row["after"], row["change"]) == (100.0, 62.5, -37.5)
    assert (row["lost"], row["won"]) == (3, 0)
    assert row["p"] == pytest.approx(0.0796, abs=1e-4)  # of |t| = 2.0494
    half = 2.3646 * 51.755 / 8**0.5
    assert (row["low"], row["high"]) == pytest.approx((-37.5 - half, -37.5 + half), abs=0.01)
    assert compared("chart", score(100.0), score(0.0))["low"] is None


def test_what_cannot_be_asked_is_told_with_what_can() -> None:
    benchmark = tiny_benchmark()

    assert [task.name for task in chosen(benchmark, ["S", "side"], ["side"])] == ["side"]
    with pytest.raises(OptionError, match="has learnt every task of"):
        chosen(benchmark, [], ["colour", "side"])
    with pytest.raises(OptionError, match=r"--task colours: .*did you mean 'colour'"):
        chosen(benchmark, ["colours"], [])
