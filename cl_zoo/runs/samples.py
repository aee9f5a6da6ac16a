"""The scores of a finished run as statistics take them: of each cell, and of each test sample where they are on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_zoo.scoring.matrix import Matrix
    from cl_zoo.statistics.measured import Array, Measured


def measured(
    manifest: Mapping[str, Any], matrix: Matrix, folder: Path | None, key: str = "score"
) -> Measured:
    """What a run measured.

    Args:
        manifest: of the run.
        matrix: its scores, official or strict.
        folder: where it lies; without it there are no scores of samples.
        key: of a sample's score in its file, `strict` for the strict ones; rules without it have their official ones.
    """
    import numpy as np

    from cl_zoo.statistics.measured import Measured

    cells = np.array([[np.nan if s is None else s for s in row] for row in matrix.scores])
    samples: dict[int, Array] = {}
    for place in range(len(manifest["tasks"])):
        rows = None if folder is None else _rows(folder, manifest["scores"], place, len(cells), key)
        if rows is None:
            samples.clear()  # statistics of some tasks' samples and not of others' would say less than they seem to
            break
        samples[place] = rows
    return Measured(tuple(manifest["tasks"]), manifest["seed"], cells, samples)


def _rows(folder: Path, scores: Mapping[str, Any], place: int, stages: int, key: str) -> Array | None:
    """Scores of a task's samples, (stages, n), as the files hold them; `None` where a file is missing."""
    import numpy as np

    found: dict[int, list[float]] = {}
    for stage in (stage for stage in range(stages) if f"{stage}-{place}" in scores):
        try:
            text = (folder / "scores" / f"{stage}-{place}.jsonl").read_text(encoding="utf-8")
        except OSError:
            return None
        lines = [json.loads(line) for line in text.split("\n") if line]
        found[stage] = [line.get(key, line["score"]) for line in lines]
    if len({len(row) for row in found.values()}) != 1:
        return None
    filled = np.full((stages, len(next(iter(found.values())))), np.nan)
    for stage, row in found.items():
        filled[stage] = row
    return filled
