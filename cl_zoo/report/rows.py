"""What a table is made of: a row per run, the rows of one method over its seeds and orders of the tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from cl_zoo.errors import DataError
from cl_zoo.report.estimates import Estimate, estimate
from cl_zoo.scoring.matrix import Matrix

if TYPE_CHECKING:
    from cl_zoo.statistics.measured import Measured

SEQUENTIAL = "sequential"

NOTED = {"empty": "empty answers", "form": "wrong in form alone"}
"""Keys of a score, with the words of a stamp that names the tasks of which it is much."""

RowKey = tuple[str, int, str, tuple[str, ...]]
"""Label, seed, letters of the order, and tasks of a run."""

PerTask = Literal["avg_i", "last_i"]
"""The figures of a matrix that have one value for each task."""


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        label: the method as it was asked for, `hide[variant=released]`; runs of equal label are one line.
        protocol: `sequential`, `joint` or `none`.
        seed: the run's seed; no two runs of a label and an order share one.
        tasks: names in the order of the stream; may be empty for a run that failed.
        matrix: the official scores; `None` for a run that failed.
        strict: the strict scores, where the rule of some task has them.
        trained: parameters trained per task.
        stored: parameters stored for inference.
        seconds: wall-clock time.
        stamps: what a reader has to know, `unequal: steps ×2`.
        marks: the same for programs, and what else a run should not be compared without: kinds, and what there is to know of each.
        error: the sentence with which the run failed.
        scoring: which of both the table shows.
        answers: of each cell, by `stage-place`, what a reader has to know of its answers: `empty`, `form`, `notes`.
        measured: of each task learnt, what methods and probes measured.
        probes: names of the plugins that only measure.
        scores: asked with a scoring, the same scores with those of each test sample, for statistics.
        flops: of all training, by the ledger's rule.
        memory: peak memory in MB.
        order: letters of the tasks; empty where nobody wrote them down.
    """

    label: str
    protocol: str
    seed: int
    tasks: tuple[str, ...]
    matrix: Matrix | None = None
    trained: int | None = None
    stored: int | None = None
    seconds: float | None = None
    stamps: tuple[str, ...] = ()
    marks: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    strict: Matrix | None = None
    scoring: str = "official"
    answers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    measured: Sequence[Mapping[str, float]] = ()
    probes: Sequence[str] = ()
    scores: Callable[[str], Measured] | None = field(default=None, compare=False, repr=False)
    flops: float | None = None
    memory: float | None = None
    order: str = ""

    def __post_init__(self) -> None:
        where = f"{self.label}, seed {self.seed}"
        if self.error is None and self.matrix is None:
            raise DataError(f"{where}: a run has scores or an error, this one has neither; run it again")
        if self.matrix is not None and self.matrix.tasks != len(self.tasks):
            raise DataError(
                f"{where}: {self.matrix.tasks} columns of scores for {len(self.tasks)} tasks; run it again"
            )

    @property
    def shown(self) -> Matrix | None:
        """The scores that the table shows."""
        return self.strict if self.scoring == "strict" and self.strict else self.matrix

    @property
    def key(self) -> RowKey:
        """What tells it from all other runs of a table."""
        return self.label, self.seed, self.order, self.tasks

    def of_task(self, name: PerTask, task: tuple[str, int]) -> float | None:
        """A figure of a task, by its name and by how often the name has come before, wherever it stands in this run's order."""
        values: Sequence[float | None] = getattr(self.shown, name)
        return values[task_columns(self.tasks).index(task)]

    def figures(self) -> dict[str, float | None]:
        """The figures of `Matrix.summary`; without a stream of tasks there is `last` alone."""
        if self.shown is None:
            return {}
        summary = self.shown.summary()
        return summary if self.protocol == SEQUENTIAL else {"last": summary["last"]}

    def probed(self) -> dict[str, float]:
        """What its probes measured after the last task."""
        last = self.measured[-1] if self.measured else {}
        return {name: value for name, value in last.items() if name.partition("/")[0] in self.probes}


@dataclass(frozen=True)
class Method:
    """The runs of one label.

    Attributes:
        label, protocol: of its runs.
        rows: the runs.
        tasks: names in the order of the columns; each run may have learnt them in another one.
    """

    label: str
    protocol: str
    rows: tuple[Row, ...]
    tasks: tuple[str, ...] = ()

    @property
    def finished(self) -> tuple[Row, ...]:
        """The runs that have scores."""
        return tuple(row for row in self.rows if row.error is None)

    @property
    def failed(self) -> tuple[Row, ...]:
        """The other runs."""
        return tuple(row for row in self.rows if row.error is not None)

    @property
    def by_order(self) -> tuple[Method, ...]:
        """The same for each order alone."""
        orders = dict.fromkeys(row.order for row in self.rows)
        kept = [tuple(row for row in self.rows if row.order == order) for order in orders]
        return tuple(replace(self, rows=rows) for rows in kept)

    def over_seeds(self, value: Callable[[Row], float | None]) -> Estimate | None:
        """The estimate of a value over the finished runs, seeds and orders alike; `None` where one of them does not have it."""
        values = [value(row) for row in self.finished]
        known = [v for v in values if v is not None]
        return estimate(known) if known and len(known) == len(values) else None

    def figure(self, name: str) -> Estimate | None:
        """A figure of the summary over the runs, each in its own order."""
        return self.over_seeds(lambda row: row.figures().get(name))

    def per_task(self, name: PerTask, task: int) -> Estimate | None:
        """Avg or Last of the task in a column over the runs."""
        column = task_columns(self.tasks)[task]
        return self.over_seeds(lambda row: row.of_task(name, column))

    def probed(self) -> dict[str, Estimate]:
        """What probes measured after the last task, over the seeds; sums over layers and tasks before single ones."""
        names = dict.fromkeys(name for row in self.finished for name in row.probed())
        found = {name: self.over_seeds(lambda row, name=name: row.probed().get(name)) for name in names}  # type: ignore[misc]
        known = [(name, value) for name, value in found.items() if value is not None]
        return dict(sorted(known, key=lambda one: any(sign.isdigit() for sign in one[0])))

    @property
    def notes(self) -> str:
        """The stamps of all runs, tasks of the same note (`NOTED`) in one, then what failed."""
        stamps: dict[str, dict[str, None]] = {}
        for stamp in (stamp for row in self.rows for stamp in row.stamps):
            head, _, names = stamp.partition(": ")
            tasks = names.split(", ") if head in NOTED.values() else []
            stamps.setdefault(head if tasks else stamp, {}).update(dict.fromkeys(tasks))
        told = [f"{stamp}: {', '.join(tasks)}" if tasks else stamp for stamp, tasks in stamps.items()]
        several = len({row.order for row in self.rows}) > 1
        failed = [
            (f"seed {row.seed}" + (f", {row.order}" if several else ""), row.error) for row in self.failed
        ]
        return "; ".join([*told, *(f"{which} failed: {error}" for which, error in failed)])


def task_columns(tasks: Sequence[str]) -> list[tuple[str, int]]:
    """Tasks by name and by how often the name has come before: what a column of a table is about, in whatever order they were learnt."""
    return [(name, tasks[:place].count(name)) for place, name in enumerate(tasks)]


def forward_transfer(rows: Sequence[Row]) -> dict[RowKey, float | None]:
    """FWT of each run against the untouched model among them, that of its own seed first; `None` where cells above the diagonal are missing."""
    untouched = [row for row in rows if row.protocol == "none" and row.shown is not None]
    found: dict[RowKey, float | None] = {}
    for row in rows:
        if row.protocol == SEQUENTIAL and row.shown is not None and untouched:
            own = [one for one in untouched if one.seed == row.seed]
            zero = (own or untouched)[0]
            found[row.key] = row.shown.fwt([zero.of_task("last_i", one) for one in task_columns(row.tasks)])
    return found
