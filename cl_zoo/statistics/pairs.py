"""Who can be told from whom: paired tests of all methods of a column, corrected for their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from cl_zoo.statistics.measured import Drawn, Figure
from cl_zoo.statistics.spread import Spread, over, paired, values

LEVEL = 0.05
"""How often two copies of one method may be told apart by accident, over all pairs of a column."""


@dataclass(frozen=True)
class Pair:
    """Two methods.

    Attributes:
        first, second: their labels.
        spread: of the first's figure minus the second's.
        p: of a difference this large between equals, by Student's test of the paired differences.
        adjusted: the same after Holm's correction for all pairs that were tested together.
    """

    first: str
    second: str
    spread: Spread
    p: float
    adjusted: float

    @property
    def told_apart(self) -> bool:
        """Whether the difference is more than chance at `LEVEL`."""
        return self.adjusted <= LEVEL


def all_pairs(methods: Mapping[str, Sequence[Drawn]], figure: Figure) -> list[Pair]:
    """All pairs of methods that can be tested: both have the figure, and more is known than its value alone."""
    known = {label: one for label, runs in methods.items() if (one := values(runs, figure)) is not None}
    found: list[tuple[str, str, Spread, float]] = []
    for first, second in combinations(known, 2):
        between = paired(known[first], known[second])
        if between and (mean := over(between)).p is not None:
            found.append((first, second, mean, mean.p))
    adjusted = holm([p for *_, p in found])
    return [Pair(*one, corrected) for one, corrected in zip(found, adjusted, strict=True)]


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979): the k-th smallest of n times (n − k + 1), never below a smaller one's, at most 1."""
    adjusted, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        least = max(least, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = least
    return adjusted


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """McNemar's exact test of two lists of right and wrong answers to the same questions (McNemar 1947), both sides.

    Of the questions that one alone has right, each is as likely the first's as the second's if they are equally good.
    """
    from scipy.special import bdtr

    ours = sum(a and not b for a, b in zip(first, second, strict=True))
    theirs = sum(b and not a for a, b in zip(first, second, strict=True))
    return min(1.0, 2 * float(bdtr(min(ours, theirs), ours + theirs, 0.5))) if ours + theirs else 1.0


def tiers(
    means: Mapping[str, float], pairs: Sequence[Pair], *, lowest: bool = False
) -> tuple[set[str], set[str]]:
    """Those that nobody can be told to be better than, and the next.

    Args:
        means: a method's figure, of those that take part.
        pairs: tests among them.
        lowest: whether less is better.

    Returns:
        The best and all that cannot be told from it; of the others the best and all that cannot be told from it. Both are empty where a method
        cannot be compared with the best, since nothing is known of its rank then, or all are best.
    """
    apart = {frozenset((pair.first, pair.second)): pair.told_apart for pair in pairs}
    ranked = sorted(means, key=means.__getitem__, reverse=not lowest)
    found: list[set[str]] = []
    while ranked and len(found) < 2:
        top, *rest = ranked
        if any(frozenset((top, other)) not in apart for other in rest):
            return set(), set()
        found.append({top, *(other for other in rest if not apart[frozenset((top, other))])})
        ranked = [other for other in rest if other not in found[-1]]
    best, second = [*found, set(), set()][:2]
    return (best, second) if second else (set(), set())
