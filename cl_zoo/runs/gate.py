"""The gate before a comparison: the untouched model's scores must be those of an anchor, or nothing is trained.

A base that does not score as published was loaded, prompted or scored otherwise, and whatever is trained on it cannot be laid beside published rows.
The anchor is the zero-shot row of a publication, or a finished run that learnt nothing. What is measured for it is an ordinary run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cl_zoo.engine.folder import MANIFEST
from cl_zoo.errors import OptionError, RunError
from cl_zoo.published import read_published
from cl_zoo.runs.result import Result, load_result
from cl_zoo.tasks import Benchmark

TOLERANCE = 2.0
"""Points that a task's score may be off, where nothing else is asked for."""

UNTOUCHED = "none"
"""The protocol of what learns nothing."""


@dataclass(frozen=True)
class Gate:
    """What the untouched model has to score.

    Attributes:
        name: of the anchor, as it was given.
        method: the stack that is scored, `zeroshot`.
        benchmark: that the scores are of.
        scores: by task.
        tolerance: points that each may be off.
    """

    name: str
    method: str
    benchmark: str
    scores: Mapping[str, float]
    tolerance: float = TOLERANCE

    def fits(self, benchmark: Benchmark, order: str | None = None) -> None:
        """Whether a benchmark can pass it at all, found out before anything runs.

        Raises:
            OptionError: it is another one, or the anchor has no score of one of its tasks.
        """
        if benchmark.name != self.benchmark:
            raise OptionError(
                f"--gate {self.name}: is of {self.benchmark} and not of {benchmark.name}; name an anchor of {benchmark.name}, or leave the gate out"
            )
        if lacking := [task.name for task in benchmark.stream(order) if task.name not in self.scores]:
            raise OptionError(
                f"--gate {self.name}: has no zero-shot score of {', '.join(lacking)}; leave them out with --order, or name another anchor"
            )

    def passes(self, result: Result) -> None:
        """Whether a run of `method` scores as the anchor does, by the official rules.

        Raises:
            RunError: a task is off by more than the tolerance, or the run failed.
        """
        if result.error is not None:
            raise RunError(f"--gate {self.name}: {result.label} failed: {result.error}")
        scores = dict(zip(result.manifest["tasks"], result.matrix.last_i, strict=True))
        off = [
            f"{task} {_two(score)} (anchor {self.scores[task]:.2f})"
            for task, score in scores.items()
            if score is None or abs(score - self.scores[task]) > self.tolerance
        ]
        if off:
            raise RunError(
                f"--gate {self.name}: nothing is trained, since {result.label} scores {', '.join(off)}, more than {self.tolerance:g} apart; "
                f"look at backbone, template, data and --limit, or allow more with --gate {self.name}=POINTS"
            )


def read_gate(text: str) -> Gate:
    """A gate from `NAME` or `NAME=POINTS`; the name is that of a publication, of its file, or of a finished run's folder.

    Raises:
        OptionError: there is no such anchor, it has no scores of an untouched model, or the points are no number from 0 on.
    """
    name, equals, points = text.rpartition("=")
    if not equals or Path(text).exists():
        name, points = text, f"{TOLERANCE}"
    try:
        tolerance = float(points)
    except ValueError:
        tolerance = math.nan
    if not 0 <= tolerance < math.inf:
        raise OptionError(f"--gate {text}: {points!r} is no tolerance; write NAME=POINTS, such as {name}=2")
    return _of_run(Path(name), tolerance) if Path(name).is_dir() else _of_publication(name, tolerance)


def _of_publication(name: str, tolerance: float) -> Gate:
    paper = read_published(name)
    rows = [row for row in paper.rows if row.protocol == UNTOUCHED and row.ours and row.cells]
    if not rows:
        raise OptionError(f"--gate {name}: has no zero-shot row; `cl-zoo show published {name}` prints it")
    return Gate(name, str(rows[0].ours), paper.benchmark, paper.scores(rows[0]), tolerance)


def _of_run(folder: Path, tolerance: float) -> Gate:
    if not (folder / MANIFEST).is_file():
        raise OptionError(f"--gate {folder}: is no finished run; name its folder, or a publication")
    result = load_result(folder)
    manifest = result.manifest
    if manifest["protocol"] != UNTOUCHED:
        raise OptionError(f"--gate {folder}: is a run of {result.label}, which learns; name one of zero-shot")
    known = zip(manifest["tasks"], result.matrix.last_i, strict=True)
    scores = {task: score for task, score in known if score is not None}
    return Gate(str(folder), result.label, manifest["identity"]["benchmark"]["name"], scores, tolerance)


def _two(score: float | None) -> str:
    return "nothing" if score is None else f"{score:.2f}"
