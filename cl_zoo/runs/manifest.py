"""The last step of a run: its answers are scored and the manifest is written; and whether they can be, before the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_zoo.engine.folder import RunFolder, cells_of_row, read_manifest
from cl_zoo.errors import DataError, nearest
from cl_zoo.scoring.judges import Expected
from cl_zoo.scoring.matrix import Matrix
from cl_zoo.scoring.rules import RULES, lacking
from cl_zoo.scoring.scorer import Cell, Score, Scorer
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

    The score of each sample goes to `scores/T-I.jsonl`, beside the answers: these stay what the model said.

    Its `matrix` holds official scores. Where the rule of a task has a strict form, `strict` is a second matrix with the
    strict scores of those tasks and the official ones of the others.

    Raises:
        DataError: an answer file is incomplete.
    """
    with folder:
        if folder.finished:
            return read_manifest(folder.final)
        tasks = len(facts["tasks"])
        rows = 1 if facts["protocol"] != "sequential" else tasks
        cells = [
            (row, place)
            for row in range(rows)
            for place in cells_of_row(folder.identity["cells"], facts["protocol"], row, tasks)
        ]
        scores = score_answers(folder.partial, cells, facts["metrics"], scorer)
        for cell, score in scores.items():
            folder.write_lines(f"scores/{cell}.jsonl", score.samples)
        manifest = {
            **facts,
            "identity": folder.identity,
            "scores": {cell: score.to_json() for cell, score in scores.items()},
            "matrix": _matrix({cell: score.value for cell, score in scores.items()}, rows, tasks),
        }
        if any(score.strict is not None for score in scores.values()):
            strict = {cell: s.value if s.strict is None else s.strict for cell, s in scores.items()}
            manifest["strict"] = _matrix(strict, rows, tasks)
        folder.finish(manifest)
        return manifest


def score_answers(
    folder: Path, cells: Sequence[tuple[int, int]], metrics: Sequence[str], scorer: Scorer
) -> dict[str, Score]:
    """Scores of a run's answer files, by `row-place`.

    Args:
        folder: of the run, with `answers` and `expected`.
        cells: rows and places that were asked about.
        metrics: rule of each place.

    Raises:
        DataError: an answer file is missing or incomplete.
    """
    remedy = f"delete {folder} and run the same command again, which begins anew"
    named = {f"{row}-{place}": place for row, place in cells}
    files = [
        Cell(
            metrics[place],
            folder / "answers" / f"{name}.jsonl",
            folder / "expected" / f"{place}.jsonl",
            remedy,
        )
        for name, place in named.items()
    ]
    return dict(zip(named, scorer.score(files), strict=True))


def _matrix(values: Mapping[str, float], rows: int, tasks: int) -> dict[str, Any]:
    """A matrix as JSON, from values by `row-place`."""
    return Matrix.from_rows(
        [[values.get(f"{row}-{place}") for place in range(tasks)] for row in range(rows)]
    ).to_json()
