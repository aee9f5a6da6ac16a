"""The last step of a run: its answers are scored and the manifest is written; and whether they can be, before the first."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_zoo.engine.files import remedy
from cl_zoo.engine.folder import RunFolder, cells_of_row, check_answers, read_manifest
from cl_zoo.errors import DataError, nearest
from cl_zoo.scoring.judges import Expected
from cl_zoo.scoring.matrix import Matrix
from cl_zoo.scoring.rules import RULES, lacking, of_files
from cl_zoo.scoring.scorer import Cell, Score, Scorer
from cl_zoo.tasks import TaskData, without_image


def scorable(benchmark: str, task: TaskData) -> None:
    """Whether a task's rule exists and has what it needs, found out before anything is trained.

    Raises:
        DataError: it does not, by the first test sample.
    """
    if task.metric not in RULES:
        raise DataError(
            f"{benchmark}, task {task.name}: no metric {task.metric!r}{nearest(task.metric, RULES)}"
        )
    first = without_image(task.test, 0)
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
        RunError: a file is damaged.
    """
    with folder:
        if folder.finished:
            return read_manifest(folder.final)
        check_answers(folder.partial, {"files": folder.files, **facts})
        began, waits = time.perf_counter(), any(map(of_files, facts["metrics"])) and scorer.waits_for()
        scores = score_cells(folder.partial, facts, folder.identity["cells"], scorer)
        seconds = {} if waits else {"score": time.perf_counter() - began}
        for cell, score in scores.items():
            folder.write_lines(f"scores/{cell}.jsonl", score.samples)
        manifest = {
            **facts,
            "besides": {**facts.get("besides", {}), **seconds},
            "files": {**facts.get("files", {}), **folder.files},
            "identity": folder.identity,
            **scored(scores, facts),
        }
        folder.finish(manifest)
        return manifest


def score_cells(folder: Path, facts: Mapping[str, Any], cells: str, scorer: Scorer) -> dict[str, Score]:
    """Scores of all answers of a run, by `row-place`.

    Args:
        folder: of the run, with `answers` and `expected`.
        facts: of its manifest: `tasks`, `metrics`, `protocol`.
        cells: which cells were asked about.

    Raises:
        DataError: an answer file is missing or incomplete.
    """
    tasks, protocol = len(facts["tasks"]), facts["protocol"]
    rows = range(1 if protocol != "sequential" else tasks)
    asked = [(row, place) for row in rows for place in cells_of_row(cells, protocol, row, tasks)]
    return score_answers(folder, asked, facts["metrics"], scorer)


def scored(scores: Mapping[str, Score], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest holds of a run's scores: `scores`, `matrix`, and `strict` where some rule has a strict form."""
    tasks = len(facts["tasks"])
    rows = 1 if facts["protocol"] != "sequential" else tasks
    found = {
        "scores": {cell: score.to_json() for cell, score in scores.items()},
        "matrix": _matrix({cell: score.value for cell, score in scores.items()}, rows, tasks),
    }
    if any(score.strict is not None for score in scores.values()):
        strict = {cell: s.value if s.strict is None else s.strict for cell, s in scores.items()}
        found["strict"] = _matrix(strict, rows, tasks)
    return found


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
    named = {f"{row}-{place}": place for row, place in cells}
    files = [
        Cell(
            metrics[place],
            folder / "answers" / f"{name}.jsonl",
            folder / "expected" / f"{place}.jsonl",
            remedy(folder),
        )
        for name, place in named.items()
    ]
    return dict(zip(named, scorer.score(files), strict=True))


def _matrix(values: Mapping[str, float], rows: int, tasks: int) -> dict[str, Any]:
    """A matrix as JSON, from values by `row-place`."""
    return Matrix.from_rows(
        [[values.get(f"{row}-{place}") for place in range(tasks)] for row in range(rows)]
    ).to_json()
