"""The gate: the untouched model is scored first, and what does not score as its anchor trains nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kept_runs import write_run

import cl_zoo
from cl_zoo.engine.folder import MANIFEST
from cl_zoo.errors import OptionError, RunError
from cl_zoo.runs.gate import TOLERANCE, read_gate
from cl_zoo.testing import tiny_benchmark

TINY = {"benchmark": "cl_zoo.testing:load_tiny", "device": "cpu", "preflight": False}
FLAGS = ("--benchmark", TINY["benchmark"], "--device", "cpu", "--no-preflight")


def paper(file: Path, scores: dict[str, float], benchmark: str = "tiny") -> Path:
    row = {"method": "Zero-shot", "ours": "zeroshot", "protocol": "none", "cells": list(scores.values())}
    about = {
        "about": "tiny.",
        "source": {"paper": "T"},
        "benchmark": benchmark,
        "backbone": "b",
        "order": "CS",
    }
    content = {**about, "tasks": {task: task for task in scores}, "rows": [row]}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def labels(out: Path) -> list[str]:
    """Labels of the runs that are finished or begun."""
    return sorted({folder.name.split("-")[1] for folder in out.glob("tiny-*")})


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the untouched tiny model scores."""
    return cl_zoo.run("zeroshot", out=str(tmp_path_factory.mktemp("anchor")), **TINY)


def scores_of(run: Any) -> dict[str, float]:
    return dict(zip(run.manifest["tasks"], run.matrix.last_i, strict=True))


def test_a_run_passes_a_gate_of_the_same_scores_and_the_untouched_model_is_a_run_like_others(
    measured: Any, tmp_path: Path
):
    events: list[dict[str, Any]] = []

    result = cl_zoo.run(
        "finetune", gate=measured.folder, out=str(tmp_path), watch=events.append, seed=3, **TINY
    )

    assert result.complete
    assert labels(tmp_path) == ["finetune", "zeroshot"]
    assert [one["label"] for one in events if one["event"] == "finished"] == ["zeroshot"]
    begun = [one["label"] for one in events if one.get("phase") == "start"]
    assert begun == ["zeroshot", "finetune"]


def test_a_model_that_scores_otherwise_trains_nothing_and_is_told_task_score_and_anchor(
    cli: Callable[..., Any], measured: Any, tmp_path: Path
):
    scores = scores_of(measured)
    anchor = paper(tmp_path / "anchor.yaml", {**scores, "side": scores["side"] + 10})

    ended = cli("run", "finetune", *FLAGS, "--gate", anchor, "--out", tmp_path / "runs")

    assert ended.code == 2
    assert f"nothing is trained, since zeroshot scores side {scores['side']:.2f}" in ended.err
    assert f"(anchor {scores['side'] + 10:.2f}), more than 2 apart" in ended.err
    assert "colour" not in ended.err.split("error: ")[1]
    assert labels(tmp_path / "runs") == ["zeroshot"]

    assert cli("run", "finetune", *FLAGS, "--gate", f"{anchor}=10", "--out", tmp_path / "runs").code == 0
    assert labels(tmp_path / "runs") == ["finetune", "zeroshot"]


@pytest.mark.slow
def test_a_comparison_stops_at_its_gate_or_takes_the_run_over(
    cli: Callable[..., Any], measured: Any, tmp_path: Path
):
    scores = scores_of(measured)
    anchor = paper(tmp_path / "anchor.yaml", {**scores, "colour": scores["colour"] + 10})
    asked = ("compare", "--methods", "zeroshot,finetune", *FLAGS, "--out", tmp_path / "runs", "--seeds", 2)

    assert cli(*asked, "--gate", anchor).code == 2
    assert labels(tmp_path / "runs") == ["zeroshot"]
    (before,) = [path.stat().st_mtime_ns for path in tmp_path.glob(f"runs/tiny-zeroshot-*/{MANIFEST}")]

    ended = cli(*asked, "--gate", f"{anchor}=10")
    assert ended.code == 0
    assert "1 finished, 0 in part, 2 to do" in ended.err
    assert "(3 of 3 runs)" in ended.err
    (after,) = [path.stat().st_mtime_ns for path in tmp_path.glob(f"runs/tiny-zeroshot-*/{MANIFEST}")]
    assert after == before


def test_what_cannot_be_a_gate_is_told_before_anything_runs(measured: Any, tmp_path: Path):
    learner = write_run(tmp_path / "kept", "ewc")
    for gate, says in (
        (paper(tmp_path / "a.yaml", {"colour": 1.0}), "has no zero-shot score of side"),
        (paper(tmp_path / "b.yaml", {"colour": 1.0}, "park"), "is of park and not of tiny"),
        ("hide-table4", "has no zero-shot row"),
        (learner, "is a run of ewc, which learns"),
        (tmp_path, "is no finished run"),
        (f"{measured.folder}=-1", "'-1' is no tolerance"),
        (f"{measured.folder}=much", "'much' is no tolerance"),
        ("nobody", "no publication is called 'nobody'"),
    ):
        with pytest.raises(OptionError, match=says):
            cl_zoo.run("finetune", gate=str(gate), out=str(tmp_path / "runs"), **TINY)
    assert not (tmp_path / "runs").exists()


def test_a_gate_is_read_with_and_without_its_points():
    plain, wide = read_gate("hide-table1"), read_gate("hide-table1=3.5")

    assert (plain.tolerance, wide.tolerance) == (TOLERANCE, 3.5)
    assert plain.scores == wide.scores
    assert (plain.benchmark, plain.method, plain.scores["CLEVR-Math"]) == ("ucit", "zeroshot", 20.63)


def test_a_score_is_off_from_beyond_the_tolerance_on_either_side(measured: Any, tmp_path: Path):
    scores = scores_of(measured)
    gate = read_gate(f"{paper(tmp_path / 'a.yaml', {task: score + 2 for task, score in scores.items()})}")
    gate.passes(measured)

    low = read_gate(f"{paper(tmp_path / 'b.yaml', {task: score - 2.01 for task, score in scores.items()})}")
    with pytest.raises(RunError, match=r"scores colour .*, side "):
        low.passes(measured)
    low.fits(tiny_benchmark())
