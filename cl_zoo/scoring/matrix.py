"""The score matrix of one run and everything that is computed from it.

`A[t][i]` is the score on task i after training task t; both count from 0 here and T is the number of tasks, so the final
row is `A[T-1]`. Names are never mixed, because the same matrix gives very different figures under them:

    Last         mean of the final row (ACC and MFN elsewhere)
    Avg          mean over i of the mean over t >= i (HiDe: columns)
    MAA          mean over t of the mean over i <= t (CoIN: rows)
    Immediate    mean of the diagonal (MFT elsewhere)
    BWT          mean over all T tasks of A[T-1][i] - A[i][i] (CoIN divides by T)
    BWT_T-1      the same sum divided by T - 1
    Forgetting   mean over i < T-1 of max over i <= t < T-1 of A[t][i], minus A[T-1][i]
    FWT          mean over i > 0 of A[i-1][i] - Z[i], with Z the zero-shot row (EasyCL)

A figure that needs a cell that was not measured is `None`: an average over fewer cells is never shown in its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cl_zoo.errors import DataError

METRICS_VERSION = 1
"""Changes whenever the same matrix would give another figure."""

Row = Sequence[float | None]


@dataclass(frozen=True)
class Matrix:
    """The scores of one run, (T, T), or (1, T) where one model answers for all tasks (protocols `joint` and `none`).

    Columns are positions in the stream: a task that comes twice has two columns. A one-row matrix has `last`, `acc` and
    `last_i` and nothing else; a 1 x 1 matrix counts as a stream of one task.

    Attributes:
        scores: `scores[t][i]`, `None` where the cell was not measured.

    Raises:
        DataError: the shape is neither (T, T) nor (1, T), or a score is not a finite number.
    """

    scores: tuple[tuple[float | None, ...], ...]

    def __post_init__(self) -> None:
        columns = len(self.scores[0]) if self.scores else 0
        if (
            not columns
            or any(len(row) != columns for row in self.scores)
            or len(self.scores) not in (1, columns)
        ):
            shape = [len(row) for row in self.scores]
            raise DataError(f"a score matrix has T rows of T cells, or one row; got rows of {shape} cells")
        for t, row in enumerate(self.scores):
            for i, score in enumerate(row):
                if score is not None and not math.isfinite(score):
                    raise DataError(
                        f"the score of task {i} after task {t} is {score}; score its answers again"
                    )

    @classmethod
    def from_rows(cls, rows: Sequence[Row]) -> Matrix:
        """A matrix from rows that may end early, as a lower triangle does; what is missing becomes `None`."""
        columns = max((len(row) for row in rows), default=0)
        return cls(tuple((*row, *([None] * (columns - len(row)))) for row in rows))

    @classmethod
    def from_json(cls, data: Any) -> Matrix:
        """The matrix that `to_json` wrote.

        Raises:
            DataError: the data is not a matrix of this version.
        """
        version = data.get("version") if isinstance(data, dict) else None
        if version != METRICS_VERSION:
            raise DataError(
                f"a score matrix of version {METRICS_VERSION} was expected, got {version}; score the run again"
            )
        try:
            return cls(tuple(tuple(None if s is None else float(s) for s in row) for row in data["scores"]))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"the scores of a matrix cannot be read ({error!r}); score the run again"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        return {"version": METRICS_VERSION, "scores": [list(row) for row in self.scores]}

    @property
    def tasks(self) -> int:
        """T, the number of columns."""
        return len(self.scores[0])

    @property
    def is_stream(self) -> bool:
        """Whether there is a row for each task, so that measures over time exist."""
        return len(self.scores) == self.tasks

    @property
    def last_i(self) -> tuple[float | None, ...]:
        """The final row, (T,)."""
        return self.scores[-1]

    @property
    def last(self) -> float | None:
        """Last: mean of the final row."""
        return _mean(self.last_i)

    @property
    def acc(self) -> float | None:
        """ACC, CoIN's name for `last`."""
        return self.last

    @property
    def avg_i(self) -> tuple[float | None, ...]:
        """For each task the mean of its scores from its own training on, (T,)."""
        if not self.is_stream:
            return (None,) * self.tasks
        return tuple(_mean(row[i] for row in self.scores[i:]) for i in range(self.tasks))

    @property
    def avg(self) -> float | None:
        """Avg: mean over the tasks of `avg_i` (HiDe)."""
        return _mean(self.avg_i)

    @property
    def maa(self) -> float | None:
        """MAA: mean over the stages of the mean over the tasks seen so far (CoIN)."""
        return _mean(_mean(row[: t + 1]) for t, row in enumerate(self.scores)) if self.is_stream else None

    @property
    def immediate(self) -> float | None:
        """Immediate: mean of the diagonal."""
        return _mean(self._diagonal)

    @property
    def bwt(self) -> float | None:
        """BWT as CoIN computes it: the sum of the changes since the diagonal, divided by T."""
        return _mean(_minus(self.last_i, self._diagonal))

    @property
    def bwt_t1(self) -> float | None:
        """BWT divided by T - 1, the number of tasks that can be forgotten; `None` for a single task."""
        return _mean(_minus(self.last_i, self._diagonal)[:-1])

    @property
    def forgetting(self) -> float | None:
        """Mean over all tasks but the last of its best score before the end, minus its final score."""
        if not self.is_stream:
            return None
        columns = [[row[i] for row in self.scores[i:-1]] for i in range(self.tasks - 1)]
        best = [_max(column) for column in columns]
        return _mean(_minus(best, self.last_i[:-1]))

    def fwt(self, zero_shot: Row | None) -> float | None:
        """FWT: how far the tasks before it have moved a task from its zero-shot score (EasyCL).

        Args:
            zero_shot: the untouched model's scores in the same columns, (T,); `None` where they are not known.

        Returns:
            Mean over i > 0 of A[i-1][i] - Z[i], or `None` where a cell above the diagonal was not measured.
        """
        if zero_shot is None or not self.is_stream:
            return None
        if len(zero_shot) != self.tasks:
            raise DataError(
                f"the zero-shot row has {len(zero_shot)} scores but the stream has {self.tasks} tasks"
            )
        before = [self.scores[i - 1][i] for i in range(1, self.tasks)]
        return _mean(_minus(before, zero_shot[1:]))

    def summary(self) -> dict[str, float | None]:
        """Every figure that needs nothing but the matrix, by its name here."""
        return {
            "avg": self.avg,
            "last": self.last,
            "immediate": self.immediate,
            "maa": self.maa,
            "bwt": self.bwt,
            "bwt_t1": self.bwt_t1,
            "forgetting": self.forgetting,
        }

    @property
    def _diagonal(self) -> tuple[float | None, ...]:
        if not self.is_stream:
            return (None,) * self.tasks
        return tuple(row[t] for t, row in enumerate(self.scores))


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean, or `None` if a value is missing or there is none."""
    known = _all_known(values)
    return math.fsum(known) / len(known) if known else None


def _max(values: Iterable[float | None]) -> float | None:
    known = _all_known(values)
    return max(known) if known else None


def _minus(first: Row, second: Row) -> list[float | None]:
    return [None if a is None or b is None else a - b for a, b in zip(first, second, strict=True)]


def _all_known(values: Iterable[float | None]) -> list[float] | None:
    known: list[float] = []
    for value in values:
        if value is None:
            return None
        known.append(value)
    return known
