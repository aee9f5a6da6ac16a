"""Finished runs on disk that nothing was trained for: written as the engine writes them, with the answers that a test asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_zoo.engine.folder import RunFolder, run_id
from cl_zoo.runs.manifest import finish
from cl_zoo.scoring.scorer import Scorer

TASKS = ("render", "chart")
SAMPLES = 4
"""Of each task; a score is a multiple of 25."""

FORGETS = ([100], [25, 75])
"""Scores by stage and place: the first task is learnt whole and mostly forgotten."""


def identity_of(label: str, seed: int, tasks: Sequence[str] = TASKS, **recipe: Any) -> dict[str, Any]:
    """What decides a run, as far as reports read it."""
    name = label.partition("[")[0]
    return {
        "benchmark": {"name": "zoo", "version": "1", "data": "d0", "order": list(tasks), "limit": None},
        "stack": [{"name": name, "options": {}, "probe": False}],
        "probes": [],
        "recipe": {"epochs": 1, **recipe},
        "seed": seed,
        "cells": "lower",
    }


def write_run(
    root: Path,
    label: str,
    seed: int = 0,
    scores: Sequence[Sequence[int]] = FORGETS,
    *,
    tasks: Sequence[str] = TASKS,
    protocol: str = "sequential",
    question: str = "What is shown?",
    right: str = "otter",
    wrong: str = "dog",
    measured: Sequence[Mapping[str, float]] = (),
    probes: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
    cells: str = "lower",
    backbone: str = "",
    limit: int | None = None,
    **recipe: Any,
) -> Path:
    """A run's folder in which each cell has the given score: that share of its answers is `right`, the others `wrong`."""
    identity = identity_of(label, seed, tasks, **recipe)
    identity["cells"] = cells
    identity["benchmark"]["limit"] = limit
    if backbone:
        identity["backbone"] = {"name": backbone}
    identity["probes"] = [{"name": name, "options": {}, "probe": True} for name in probes]
    folder = RunFolder(root, run_id(identity, label, seed), identity)
    ids = [f"{n:05d}" for n in range(SAMPLES)]
    with folder:
        folder.begin()
        for place in range(len(tasks)):
            wanted = [{"id": n, "place": int(n), "answer": right, "references": []} for n in ids]
            folder.write_lines(f"expected/{place}.jsonl", wanted)
        for stage, row in enumerate(scores):
            for place, score in enumerate(row):
                good = score * SAMPLES // 100
                said = [
                    {"id": n, "prompt": question, "answer": right if int(n) < good else wrong} for n in ids
                ]
                folder.write_lines(f"answers/{stage}-{place}.jsonl", said)
    with Scorer() as scorer:
        finish(folder, {**_facts(folder, label, seed, tasks, protocol, measured), **(facts or {})}, scorer)
    return folder.final


def begin_run(root: Path, label: str, seed: int = 0, done: int = 1) -> Path:
    """The folder of a run that was interrupted behind some of its tasks."""
    identity = identity_of(label, seed)
    folder = RunFolder(root, run_id(identity, label, seed), identity)
    with folder:
        folder.begin()
        if done:
            (folder.partial / f"state-{done}").mkdir()
            (folder.partial / f"state-{done}" / "model.safetensors").write_bytes(b"weights")
    return folder.partial


def _facts(
    folder: RunFolder,
    label: str,
    seed: int,
    tasks: Sequence[str],
    protocol: str,
    measured: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    cost = {
        "samples": 8,
        "steps": 2,
        "seconds": 1.5,
        "flops": 1e9,
        "tokens": 64,
        "trained": {"adapters": 1000},
        "learning": {},
    }
    ledger = {
        "tasks": [{**cost, "task": name} for name in tasks],
        "trained": 1000,
        "active": 2000,
        "stored": {"inference": {"adapters": 1000 * len(label)}},
        "seconds": 3.0 + len(label),
        "evaluation_seconds": 1.0,
        "peak_memory_mb": 512.0,
    }
    return {
        "id": folder.final.name,
        "label": label,
        "seed": seed,
        "protocol": protocol,
        "tasks": list(tasks),
        "metrics": ["exact"] * len(tasks),
        "lessons": [{"name": name, "index": n} for n, name in enumerate(tasks)],
        "measured": list(measured) or [{} for _ in tasks],
        "ledger": ledger,
        "job": {"benchmark": "zoo", "data": None, "limit": None, "order": None},
        "environment": {"versions": {"cl-zoo": "0.1.0"}, "finished": "2026-01-02T03:04:05+00:00"},
    }
