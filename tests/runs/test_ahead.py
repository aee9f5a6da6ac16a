"""Java for captions is started while something is still computed, and only where captions are scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cl_zoo.api
from cl_zoo.names import parse_stack
from cl_zoo.runs.ahead import Ahead
from cl_zoo.runs.job import Job
from cl_zoo.scoring.scorer import Scorer
from cl_zoo.testing import tiny_benchmark

CAPTIONS = (
    "from cl_zoo.testing import tiny_benchmark\ndef load(data=None): return tiny_benchmark(3, size=4)\n"
)


class Counted(Scorer):
    """A scorer that counts how often its Java is started ahead."""

    started = 0

    def warm_up(self) -> None:
        self.started += 1
        super().warm_up()


@pytest.fixture
def described(install: Callable[..., Any]) -> str:
    """A benchmark whose third task is captions."""
    install("described", modules={"described": CAPTIONS})
    return "described:load"


def ahead(scorer: Scorer, benchmark: str, out: Path, order: str | None = None) -> Ahead:
    job = Job(tuple(parse_stack("finetune")), benchmark, order=order, out=str(out))
    return Ahead([job], scorer)


def test_java_starts_once_with_a_run_that_has_captions(described: str, tmp_path: Path):
    with Counted() as scorer:
        hearing = ahead(scorer, described, tmp_path)
        hearing.begin()
        for event in ({"phase": "start", "tasks": ["description"]}, {"phase": "train"}):
            hearing.heard(event)

        assert scorer.started == 1


def test_a_run_that_may_be_finished_starts_java_when_it_begins_to_work(described: str, tmp_path: Path):
    """A finished one of the same name lies there; what it was made of is known only when weights are read."""
    finished = tmp_path / "tiny-finetune-s0-0123456789ab"
    finished.mkdir()
    (finished / "manifest.json").touch()
    with Counted() as scorer:
        hearing = ahead(scorer, described, tmp_path)
        hearing.begin()
        hearing.heard({"event": "progress", "phase": "start", "tasks": ["description"]})
        hearing.heard({"event": "answered", "facts": {}})
        assert scorer.started == 0
        assert "that starts now and reads its word tables" in hearing.waits_for(["exact", "caption"])

        hearing.heard({"event": "progress", "phase": "train"})
        assert scorer.started == 1


def test_a_run_for_all_seeds_may_be_finished_under_another_seed(described: str, tmp_path: Path):
    finished = tmp_path / "tiny-zeroshot-s0-0123456789ab"
    finished.mkdir()
    (finished / "manifest.json").touch()
    jobs = [Job(tuple(parse_stack("zeroshot")), described, seed=seed, out=str(tmp_path)) for seed in (0, 1)]
    with Counted() as scorer:
        Ahead(jobs, scorer).begin()

        assert scorer.started == 0


def test_a_run_without_captions_starts_no_java(described: str, tmp_path: Path):
    with Counted() as scorer:
        hearing = ahead(scorer, described, tmp_path, order="CS")
        hearing.begin()
        hearing.heard({"event": "progress", "phase": "start", "tasks": ["colour", "side"]})
        hearing.heard({"event": "progress", "phase": "train"})

        assert scorer.started == 0
        assert hearing.waits_for(["exact"]) == ""


def test_a_run_scores_captions_with_a_java_that_began_before_anything_was_loaded(
    described: str, run_tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    """And the same run once more, finished, starts none."""
    scorers, heard = [], []

    def made() -> Counted:
        scorers.append(Counted())
        return scorers[-1]

    def watch(event: dict[str, Any]) -> None:
        heard.append((event["phase"], scorers[-1].started, event.get("waits")))

    monkeypatch.setattr(cl_zoo.api, "Scorer", made)
    settings = {"benchmark": described, "order": "D", "watch": watch}
    result = run_tiny("zeroshot", **settings)
    again = run_tiny("zeroshot", **settings)

    assert [(phase, started) for phase, started, _ in heard] == [
        ("start", 1),
        ("preflight", 1),
        ("answer", 1),
        ("score", 1),
        ("start", 0),
    ]
    assert heard[3][2] == "" or heard[3][2].startswith(
        "waits for METEOR, a Java program that is still reading"
    )
    assert again.matrix == result.matrix
    assert result.folder is not None
    scores = [json.loads(line) for line in Path(result.folder, "scores/0-0.jsonl").read_text().splitlines()]
    assert [one["id"] for one in scores] == [one.id for one in tiny_benchmark(3, size=4).tasks[2].test]
