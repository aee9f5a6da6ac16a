"""Who stands out in a comparison: intervals of its figures, tests of its pairs, and which values of a column are marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cl_zoo.report.estimates import Estimate
from cl_zoo.report.rows import SEQUENTIAL, Method, Row

if TYPE_CHECKING:
    from cl_zoo.statistics.measured import Drawn, Figure, Measured
    from cl_zoo.statistics.pairs import Pair
    from cl_zoo.statistics.spread import Spread

LOWER = ("forgetting",)
"""Figures of which less is better."""


class Ranks:
    """Statistics of the methods of a table, each computed when it is asked for.

    Args:
        methods: the bounds have intervals and take part in no rank. What a run's samples scored is asked of `Row.scores`; where nobody
            knows, there are its cells alone.
    """

    def __init__(self, methods: Sequence[Method]) -> None:
        self._methods = [method for method in methods if method.finished]
        self._pairs: dict[str, list[Pair]] = {}

    @cached_property
    def _drawn(self) -> dict[str, list[Drawn]]:
        """The runs of each method on common draws of the test samples."""
        from cl_zoo.statistics.measured import draw

        labels = [method.label for method in self._methods for _ in method.finished]
        runs = [_measured(row) for method in self._methods for row in method.finished]
        found: dict[str, list[Drawn]] = {method.label: [] for method in self._methods}
        for label, one in zip(labels, draw(runs), strict=True):
            found[label].append(one)
        return {label: _each_its_own(many) for label, many in found.items()}

    def interval(self, label: str, figure: str) -> Spread | None:
        """A method's figure with its interval: a name in `FIGURES`, or `last:TASK`, `avg:TASK`."""
        from cl_zoo.statistics.spread import spread

        return spread(self._drawn[label], _figure(figure)) if label in self._drawn else None

    def known(self, method: Method, value: Estimate | None, figure: str) -> Estimate | None:
        """A value of a method with the ends of its interval over orders, seeds and test samples.

        Args:
            value: the mean over its runs.
            figure: as for `interval`.
        """
        spread = None if value is None else self.interval(method.label, figure)
        return value if value is None or spread is None else replace(value, low=spread.low, high=spread.high)

    def pairs(self, figure: str) -> list[Pair]:
        """Tests of all pairs of methods that learn the tasks one after the other."""
        from cl_zoo.statistics.pairs import all_pairs

        if figure not in self._pairs:
            learners = {label: self._drawn[label] for label in self._learners}
            self._pairs[figure] = all_pairs(learners, _figure(figure))
        return self._pairs[figure]

    def marked(self, figure: str, means: Mapping[str, float]) -> tuple[set[str], set[str]]:
        """Labels whose value is among the best of a column, and among the next; see `tiers`.

        Args:
            means: of those that take part, by label.
        """
        from cl_zoo.statistics.pairs import tiers

        return tiers(means, self.pairs(figure), lowest=figure in LOWER)

    def to_json(self, figure: str = "last") -> list[dict[str, Any]]:
        """The tests of a figure as plain data, with the number of units that each difference would need."""
        from cl_zoo.statistics.power import least_seen, units_needed

        return [
            {
                "first": pair.first,
                "second": pair.second,
                "difference": pair.spread.mean,
                "low": pair.spread.low,
                "high": pair.spread.high,
                "p": pair.p,
                "adjusted": pair.adjusted,
                "told_apart": pair.told_apart,
                "units": pair.spread.units,
                "units_needed": units_needed(pair.spread),
                "least_seen": least_seen(pair.spread),
            }
            for pair in self.pairs(figure)
        ]

    @property
    def _learners(self) -> list[str]:
        return [method.label for method in self._methods if method.protocol == SEQUENTIAL]


def _each_its_own(runs: list[Drawn]) -> list[Drawn]:
    """Runs of one method; what older versions learnt at once in several orders are runs of these orders."""
    if len({one.key for one in runs}) == len(runs):
        return runs
    return [replace(one, key=(one.order, one.key[1])) for one in runs]


def _measured(row: Row) -> Measured:
    """The scores that the table shows of a run."""
    import numpy as np

    from cl_zoo.statistics.measured import Measured

    if row.scores is not None:
        return row.scores(row.scoring)
    scores = row.shown.scores if row.shown else ()
    cells = np.array([[np.nan if one is None else one for one in line] for line in scores])
    return Measured(row.tasks, row.seed, cells)


def _figure(name: str) -> Figure:
    from cl_zoo.statistics.measured import FIGURES, avg_of, last_of

    kind, _, task = name.partition(":")
    return FIGURES[name] if not task else {"last": last_of, "avg": avg_of}[kind](task)
