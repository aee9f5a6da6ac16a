"""What statistics are made of: one run's scores, of each cell and of each test sample, and the figures of many matrices at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from cl_zoo.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

Figure = Callable[["Array", tuple[str, ...]], "Array"]
"""From matrices (..., stages, T) and the names of their columns to one value each, (...); not a number where a cell is missing."""


DRAWS = 1000
AT_ONCE = 4_000_000
"""Weights of samples in memory at a time."""


@dataclass(frozen=True)
class Measured:
    """The scores of one run.

    Attributes:
        order: names of the tasks as they were learnt.
        seed: the run's seed.
        cells: official scores, (stages, T) with T = `len(order)`; not a number where a cell was not measured.
        samples: by place in the stream the score of each test sample, (stages, n), not a number where a cell was not measured; may lack places.

    Raises:
        DataError: shapes do not agree.
    """

    order: tuple[str, ...]
    seed: int
    cells: Array
    samples: Mapping[int, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cells.ndim != 2 or self.cells.shape[1] != len(self.order):
            raise DataError(f"{self.cells.shape} scores for {len(self.order)} tasks; score the run again")
        for place, scores in self.samples.items():
            if scores.ndim != 2 or len(scores) != len(self.cells) or not scores.shape[1]:
                raise DataError(
                    f"task {self.order[place]}: {scores.shape} scores of samples for {len(self.cells)} stages; score the run again"
                )


@dataclass(frozen=True)
class Drawn:
    """A run's matrix, and how it would be on other draws of the test samples.

    Attributes:
        order: names of the columns.
        key: order and seed: runs of two methods with an equal one are a pair. What answers in one row has learnt in no order, `()`.
        cells: (1 + draws, stages, T), the measured matrix first and alone where the run has no samples.
    """

    order: tuple[str, ...]
    key: tuple[tuple[str, ...], int]
    cells: Array


def draw(runs: Sequence[Measured], draws: int = DRAWS) -> list[Drawn]:
    """Bootstrap the test samples, which are the same for all runs.

    A cell moves as the mean of its samples' scores does; its value stays the official one, also where that is no mean of samples (BLEU, CIDEr).
    Draws are the same whoever asks: they depend on a task's name and the number of its samples.
    """
    import numpy as np

    found = [np.repeat(run.cells[None], 1 + draws if run.samples else 1, axis=0) for run in runs]
    asked: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for n, run in enumerate(runs):
        for place, scores in run.samples.items():
            asked.setdefault((run.order[place], scores.shape[1]), []).append((n, place))
    for (name, size), cells in asked.items():
        scores = np.concatenate([runs[n].samples[place] for n, place in cells])
        away = scores - scores.mean(axis=1, keepdims=True)
        source, chunk = np.random.default_rng([size, *name.encode()]), max(1, AT_ONCE // size)
        for start in range(1, 1 + draws, chunk):
            part = slice(start, min(start + chunk, 1 + draws))
            times = source.multinomial(size, np.full(size, 1 / size), size=part.stop - start)
            moved, at = times @ away.T / size, 0
            for n, place in cells:
                stages = len(runs[n].cells)
                found[n][part, :, place] += moved[:, at : at + stages]
                at += stages
    keys = [((run.order if len(run.cells) > 1 else ()), run.seed) for run in runs]
    return [Drawn(run.order, key, cells) for run, key, cells in zip(runs, keys, found, strict=True)]


def last(cells: Array, tasks: tuple[str, ...]) -> Array:
    """Mean of the final row (`Matrix.last`)."""
    return _mean(cells[..., -1, :])


def last_of(task: str) -> Figure:
    """A task's final score; the mean where it comes more than once."""

    def figure(cells: Array, tasks: tuple[str, ...]) -> Array:
        places = [place for place, name in enumerate(tasks) if name == task]
        return _mean(cells[..., -1, places])

    return figure


def avg_of(task: str) -> Figure:
    """Mean of a task's scores from its own training on (`Matrix.avg_i`)."""

    def figure(cells: Array, tasks: tuple[str, ...]) -> Array:
        return _over_tasks([_since(cells, place) for place, name in enumerate(tasks) if name == task])

    return figure


def avg(cells: Array, tasks: tuple[str, ...]) -> Array:
    """Mean over the tasks of the mean since each was learnt (`Matrix.avg`)."""
    return _over_tasks([_since(cells, place) for place in range(len(tasks))])


def immediate(cells: Array, tasks: tuple[str, ...]) -> Array:
    """Mean of the diagonal (`Matrix.immediate`)."""
    return _mean(_diagonal(cells))


def maa(cells: Array, tasks: tuple[str, ...]) -> Array:
    """Mean over the stages of the mean over the tasks seen (`Matrix.maa`)."""
    cells = _stream(cells)
    rows = [_mean(cells[..., stage, : stage + 1]) for stage in range(len(tasks))]
    return _over_tasks(rows)


def bwt(cells: Array, tasks: tuple[str, ...]) -> Array:
    """Mean change since learning, over all tasks (`Matrix.bwt`)."""
    return _mean(cells[..., -1, :] - _diagonal(cells))


def forgetting(cells: Array, tasks: tuple[str, ...]) -> Array:
    """Mean over all tasks but the last of the best earlier score minus the final one (`Matrix.forgetting`)."""
    import numpy as np

    cells = _stream(cells)
    lost = [
        cells[..., place:-1, place].max(axis=-1) - cells[..., -1, place] for place in range(len(tasks) - 1)
    ]
    return _over_tasks(lost) if lost else np.full(cells.shape[:-2], np.nan)


FIGURES: dict[str, Figure] = {
    "avg": avg,
    "last": last,
    "immediate": immediate,
    "maa": maa,
    "bwt": bwt,
    "forgetting": forgetting,
}
"""By the names of `Matrix.summary`; all but `last` need a row for each task."""


def _stream(cells: Array) -> Array:
    """The same with a row for each task; of what answered in one row nothing is known."""
    import numpy as np

    stages, tasks = cells.shape[-2:]
    return cells if stages == tasks else np.full((*cells.shape[:-2], tasks, tasks), np.nan)


def _diagonal(cells: Array) -> Array:
    import numpy as np

    cells = _stream(cells)
    return np.diagonal(cells, axis1=-2, axis2=-1)


def _since(cells: Array, place: int) -> Array:
    return _mean(_stream(cells)[..., place:, place])


def _mean(values: Array) -> Array:
    return cast("Array", values.mean(axis=-1))


def _over_tasks(values: list[Array]) -> Array:
    import numpy as np

    return cast("Array", np.mean(values, axis=0))
