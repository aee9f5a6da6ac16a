"""How many units (orders or seeds) a difference needs to be seen, and which differences those at hand can show."""

from __future__ import annotations

import math

from cl_zoo.statistics.pairs import LEVEL
from cl_zoo.statistics.spread import Spread, quantile

POWER, MOST = 0.8, 1000
"""How often a true difference shall be seen, and beyond how many units there is no use in counting."""


def power(delta: float, deviation: float, units: int, level: float = LEVEL) -> float:
    """How often Student's paired test of both sides sees a true difference.

    Args:
        delta: the true mean of the differences.
        deviation: their standard deviation from unit to unit.
        units: how many, at least 2.
    """
    from scipy.special import nctdtr

    if not deviation:
        return 1.0 if delta else level
    bound = quantile(1 - level / 2, units - 1)
    shift = math.sqrt(units) * abs(delta) / deviation
    # Differences that lie on the other side of 0 by accident count for nothing.
    return 1.0 - float(nctdtr(units - 1, shift, bound))


def units_needed(between: Spread, delta: float | None = None) -> int | None:
    """The least number of units at which a true difference would be seen with probability `POWER`.

    Args:
        between: a paired difference over at least two units; it says how much they vary.
        delta: the true difference; by default as large as the measured one.

    Returns:
        `None` where it cannot be told: fewer than two units, no difference, or more than `MOST` are needed.
    """
    wanted = between.mean if delta is None else delta
    if between.units < 2 or not wanted:
        return None
    deviation = between.units_error * math.sqrt(between.units)
    return next((n for n in range(2, MOST + 1) if power(wanted, deviation, n) >= POWER), None)


def least_seen(between: Spread) -> float | None:
    """The smallest true difference that as many units would show with probability `POWER`; `None` with fewer than two."""
    if between.units < 2:
        return None
    deviation = between.units_error * math.sqrt(between.units)
    low, high = 0.0, max(deviation, 1e-9)
    while deviation and power(high, deviation, between.units) < POWER:
        high *= 2
    for _ in range(60 if deviation else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, deviation, between.units) < POWER else (low, middle)
    return high if deviation else 0.0
