"""Accuracy matrices of methods: the mean over seeds of A[t][i], for each label and each order of the tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cl_zoo.errors import printable
from cl_zoo.report.estimates import Estimate, estimate
from cl_zoo.report.rows import SEQUENTIAL, Method, Row
from cl_zoo.report.sheets import Entry, Line, Section, Sheet, distinct, score
from cl_zoo.report.table import Table


@dataclass(frozen=True)
class Mean:
    """The matrix of a label on one order.

    Attributes:
        tasks: names by place, (T,).
        cells: estimates over the seeds by stage and place, (T, T) or (1, T); `None` where a run did not measure the cell.
    """

    label: str
    protocol: str
    tasks: tuple[str, ...]
    cells: tuple[tuple[Estimate | None, ...], ...]

    @property
    def stages(self) -> tuple[str, ...]:
        """What each line of it is called: `after chart`, and of a bound, which has one line, what it is."""
        if self.protocol != SEQUENTIAL:
            return ("after all" if self.protocol == "joint" else "untouched",)
        return tuple(f"after {task}" for task in self.tasks)


def means(table: Table) -> Iterator[Mean]:
    """The matrices of a table's methods, in its order; a method with runs of several orders has one for each."""
    for method in table.methods:
        for tasks in dict.fromkeys(row.tasks for row in method.finished):
            rows = [row for row in method.finished if row.tasks == tasks]
            yield Mean(method.label, method.protocol, tasks, _cells(rows))


def sheets(table: Table) -> Iterator[Sheet]:
    """The matrices as sheets, one for each order of the tasks."""
    found = list(means(table))
    for tasks in dict.fromkeys(one.tasks for one in found):
        sections = tuple(_section(one) for one in found if one.tasks == tasks)
        yield Sheet(tuple(distinct([printable(task) for task in tasks])), sections)


def curve(method: Method) -> list[Estimate | None]:
    """The mean score over the tasks learnt so far, after each task, over the seeds (and orders), (T,)."""
    rows = [row for row in method.finished if row.shown is not None and row.shown.is_stream]
    stages = min((len(row.tasks) for row in rows), default=0)
    return [_over([_seen(row, stage) for row in rows]) for stage in range(stages)]


def _seen(row: Row, stage: int) -> float | None:
    cells = row.shown.scores[stage][: stage + 1] if row.shown else ()
    known = [cell for cell in cells if cell is not None]
    return sum(known) / len(known) if len(known) == len(cells) and known else None


def _section(one: Mean) -> Section:
    lines = tuple(
        Line(printable(stage), tuple(Entry(score(cell) if cell else "") for cell in cells))
        for stage, cells in zip(one.stages, one.cells, strict=True)
    )
    return Section(printable(one.label), lines)


def _cells(rows: Sequence[Row]) -> tuple[tuple[Estimate | None, ...], ...]:
    matrices = [row.shown.scores for row in rows if row.shown is not None]
    return tuple(
        tuple(_over([matrix[stage][place] for matrix in matrices]) for place in range(len(matrices[0][0])))
        for stage in range(len(matrices[0]))
    )


def _over(values: Sequence[float | None]) -> Estimate | None:
    known = [value for value in values if value is not None]
    return estimate(known) if known and len(known) == len(values) else None
