"""What can be said from a few seeds: mean, standard deviation, a 95 % interval, and paired differences.

The interval is Student's: mean ± t(0.975, n - 1) · s / √n, with s the sample standard deviation (n - 1 below). Two methods
are compared on the same seeds, seed by seed, because the seed decides the data order for both: the interval of the paired
difference is then free of what the seeds have in common.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cl_zoo.errors import DataError
from cl_zoo.statistics.spread import CONFIDENCE, quantile


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds and how well it is known.

    Attributes:
        mean: the mean.
        n: number of values.
        std: sample standard deviation; `None` for one value.
        low, high: ends of the 95 % interval of the mean; `None` for one value.
    """

    mean: float
    n: int
    std: float | None = None
    low: float | None = None
    high: float | None = None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, deviation and interval of the values of some seeds.

    Raises:
        DataError: there is no value.
    """
    n = len(values)
    if n == 0:
        raise DataError("no seed has a value to take the mean of; run at least one seed")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, n)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = quantile((1 + CONFIDENCE) / 2, n - 1) * std / math.sqrt(n)
    return Estimate(mean, n, std, mean - half, mean + half)


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate:
    """How much the first method scores above the second, seed by seed.

    Args:
        first, second: score by seed; seeds that only one of them has do not count.

    Raises:
        DataError: no seed is common to both.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        raise DataError(
            f"seeds {sorted(first)} and {sorted(second)} have none in common; run both methods on the same seeds"
        )
    return estimate([first[seed] - second[seed] for seed in common])
