"""The last step of a run: its answers are scored and the manifest is written; and whether they can be, before the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cl_zoo.errors import DataError, nearest
from cl_zoo.metrics import Matrix
from cl_zoo.runs import RunFolder, read_manifest
from cl_zoo.scoring import Cell, Score, Scorer
from cl_zoo.scoring.judges import Expected
from cl_zoo.scoring.rules import RULES, lacking
from cl_zoo.tasks import TaskData


def scorable(benchmark: str, task: TaskData) -> None:
    """Whether a task's rule exists and has what it needs, found out before anything is trained.

    Raises:
        DataError: it does not, by the first test sample.
    """
    if task.metric not in RULES:
        raise DataError(
            f"{benchmark}, task {task.name}: no metric {task.metric!r}{nearest(task.metric, RULES)}"
        )
    first = task.test[0]
    what = lacking(RULES[task.metric], Expected(first.answer, first.references, first.truth))
    if what:
        raise DataError(
            f"{benchmark}, task {task.name}, test sample {first.id!r}: {task.metric} scoring needs {what}; "
            "give it for every test sample or choose another metric"
        )


def finish(folder: RunFolder, facts: Mapping[str, Any], scorer: Scorer) -> dict[str, Any]:
    """Score the answers and write the manifest; a finished run's manifest is read.

    Its `matrix` holds official scores. Where the rule of a task has a strict form, `strict` is a second matrix with the
    strict scores of those tasks and the official ones of the others.

    Raises:
        DataError: an answer file is incomplete.
    """
    with folder:
        if folder.finished:
            return read_manifest(folder.final)
        scores = score_answers(folder.partial, facts["metrics"], scorer)
        tasks = len(facts["tasks"])
        rows = 1 if facts["protocol"] != "sequential" else tasks
        manifest = {
            **facts,
            "identity": folder.identity,
            "scores": {cell: asdict(score) for cell, score in scores.items()},
            "matrix": _matrix({cell: score.value for cell, score in scores.items()}, rows, tasks),
        }
        if any(score.strict is not None for score in scores.values()):
            strict = {cell: s.value if s.strict is None else s.strict for cell, s in scores.items()}
            manifest["strict"] = _matrix(strict, rows, tasks)
        folder.finish(manifest)
        return manifest


def score_answers(folder: Path, metrics: Sequence[str], scorer: Scorer) -> dict[str, Score]:
    """Scores of all answer files of a run, by `row-place`."""
    files = sorted((folder / "answers").glob("*.jsonl"))
    places = [int(file.stem.partition("-")[2]) for file in files]
    cells = [
        Cell(metrics[place], file, folder / "expected" / f"{place}.jsonl")
        for place, file in zip(places, files, strict=True)
    ]
    return {file.stem: score for file, score in zip(files, scorer.score(cells), strict=True)}


def _matrix(values: Mapping[str, float], rows: int, tasks: int) -> dict[str, Any]:
    """A matrix as JSON, from values by `row-place`."""
    return Matrix.from_rows(
        [[values.get(f"{row}-{place}") for place in range(tasks)] for row in range(rows)]
    ).to_json()
