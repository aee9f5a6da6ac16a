"""Mean and interval of a figure over orders, seeds and test samples, and of the paired difference of two methods.

What varies, from the top: the order of the tasks, the seed of the training, the test samples. The uppermost level of which there is more
than one is resampled as a whole (its runs together, each lower level inside it as it is): that gives the variance of the mean
whatever the levels below contribute (Davison and Hinkley 1997, 3.8). The test samples are the same for all runs, so they are drawn once
for all of them. With u units at the top and their mean m:

    Var(m) = s²/u + V_samples − V_both

s² is the variance of the units (what resampling them gives, times u/(u − 1)); V_samples that of m over bootstrap draws of the test
samples; V_both what both contain, the units' own ups and downs on single samples (Owen 2007): the mean over units of the bootstrap
variance of a unit's distance from m, divided by u − 1. Half the interval is Student's quantile times the root, with the degrees of freedom of
Welch and Satterthwaite: u − 1 for the units, the number of samples for the rest. With one run there are the samples alone, and nothing is
known of other seeds; without samples there are the units alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cl_zoo.errors import DataError
from cl_zoo.statistics.measured import Drawn, Figure

if TYPE_CHECKING:
    from cl_zoo.statistics.measured import Array

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """A mean and how well it is known.

    Attributes:
        mean: over the seeds of each order, then over the orders.
        runs: number of runs.
        units: number of units at the top, orders or seeds; 1 where there is one run.
        error: standard error of the mean, `None` where nothing is known of it.
        degrees: its degrees of freedom.
        units_error: the part of the units alone, s/√u; 0 where there is one.
        sampled: whether the test samples are part of it.
    """

    mean: float
    runs: int
    units: int
    error: float | None
    degrees: float
    units_error: float = 0.0
    sampled: bool = False

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.error is None else quantile((1 + CONFIDENCE) / 2, self.degrees) * self.error

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.mean + self.half

    @property
    def p(self) -> float | None:
        """How often a mean this far from 0 would be met if the true one were 0, both sides."""
        if self.error is None:
            return None
        if self.error == 0.0:
            return 1.0 if self.mean == 0.0 else 0.0
        return 2 * _below(-abs(self.mean) / self.error, self.degrees)


Values = dict[tuple[tuple[str, ...], int], "Array"]
"""A figure by order and seed: as measured, then on each draw of the test samples, (1 + draws,)."""


def spread(runs: Sequence[Drawn], figure: Figure) -> Spread | None:
    """A method's figure over its runs; `None` where a run does not have it.

    Raises:
        DataError: there is no run, or two have one order and seed.
    """
    found = values(runs, figure)
    return None if found is None else over(found)


def values(runs: Sequence[Drawn], figure: Figure) -> Values | None:
    """A method's figure of each run; `None` where one does not have it.

    Raises:
        DataError: there is no run, or two have one order and seed.
    """
    import numpy as np

    if not runs:
        raise DataError("no run to take a mean of; run at least one seed")
    found: Values = {}
    for run in runs:
        if run.key in found:
            raise DataError(f"two runs have seed {run.key[1]} and one order; give each its own")
        found[run.key] = figure(run.cells, run.order)
    return None if any(np.isnan(one).any() for one in found.values()) else found


def paired(first: Values, second: Values) -> Values:
    """How much higher the first method's figure is, run by run of equal order and seed, on the same draws of test samples.

    Runs of which there is no partner do not count. What learns in no order (its matrix has one row) is the partner of every order.
    """
    found: Values = {}
    ordered = any(order for order, _ in [*first, *second])
    for order, seed in dict.fromkeys([*first, *second]):
        ours, theirs = (one.get((order, seed), one.get(((), seed))) for one in (first, second))
        if ours is not None and theirs is not None and bool(order) == ordered:
            width = min(len(ours), len(theirs))
            found[order, seed] = ours[:width] - theirs[:width]
    return found


def difference(first: Sequence[Drawn], second: Sequence[Drawn], figure: Figure) -> Spread | None:
    """The mean of `paired` and how well it is known; `None` where no two runs are partners, or one does not have the figure.

    Raises:
        DataError: a method has no run, or two of one order and seed.
    """
    ours, theirs = values(first, figure), values(second, figure)
    found = paired(ours, theirs) if ours and theirs else {}
    return over(found) if found else None


def over(found: Values) -> Spread:
    """The mean of the units and its error, see the module."""
    import numpy as np

    width = min(len(one) for one in found.values())
    orders = dict.fromkeys(order for order, _ in found)
    groups = [[one[:width] for (name, _), one in found.items() if name == order] for order in orders]
    if len(groups) == 1:
        groups = [[one] for one in groups[0]]
    units = np.stack([np.mean(group, axis=0) for group in groups])
    count, point, drawn = len(units), units[:, 0], units[:, 1:]
    mean, own = float(point.mean()), float(point.var(ddof=1)) / count if count > 1 else 0.0
    if width == 1:
        error = math.sqrt(own) if count > 1 else None
        return Spread(mean, len(found), count, error, count - 1.0 or math.inf, math.sqrt(own))
    both = float((drawn - drawn.mean(axis=0)).var(axis=1).sum()) / (count * (count - 1)) if count > 1 else 0.0
    rest = max(float(drawn.mean(axis=0).var()) - both, 0.0)
    # The units vary at least as single samples make them; few units may by accident lie closer together.
    units_own = max(own, both)
    whole = units_own + rest
    degrees = (count - 1) * (whole / units_own) ** 2 if units_own else math.inf
    return Spread(mean, len(found), count, math.sqrt(whole), degrees, math.sqrt(own), sampled=True)


def quantile(share: float, degrees: float) -> float:
    """Student's quantile; the normal distribution's at infinite degrees of freedom."""
    from scipy.special import ndtri, stdtrit  # scipy.stats takes a second to import

    return float(ndtri(share) if math.isinf(degrees) else stdtrit(degrees, share))


def _below(value: float, degrees: float) -> float:
    from scipy.special import ndtr, stdtr

    return float(ndtr(value) if math.isinf(degrees) else stdtr(degrees, value))
