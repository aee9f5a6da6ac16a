"""Whether runs of ours reach a published figure: reached, not reached, or not comparable, each with its reason.

Reached is a figure that ours is not further from than a tolerance, above or below. An interval of ours never makes it reached, since few
seeds have wide ones; it is said where theirs lies in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cl_zoo.report.estimates import Estimate
from cl_zoo.runs.beside import Beside, Compared

TOLERANCE = 1.0
"""Points; two runs of one published method differ by about as much."""

Word = Literal["reached", "not reached", "not comparable"]


@dataclass(frozen=True)
class Verdict:
    """One published figure and ours.

    Attributes:
        label, order: of our method; empty where there is none.
        method, metric: theirs.
        ours, theirs: the means; of a row without a readable mean, `None`.
        word: the verdict.
        why: a sentence's end: `64.0 is 0.2 below 64.19`.
    """

    label: str
    order: str
    method: str
    metric: str
    ours: Estimate | None
    theirs: float | None
    word: Word
    why: str

    def text(self) -> str:
        """One line."""
        ours = ", ".join(filter(None, (self.label, self.order, f"{self.metric} of {self.method}")))
        return f"{self.word}: {ours}: {self.why}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def verdicts(found: Beside, tolerance: float = TOLERANCE) -> Iterator[Verdict]:
    """A verdict on each published figure that ours stand beside.

    Args:
        tolerance: points.
    """
    for one in found.compared:
        word, why = _judged(one, tolerance)
        if found.unlike:
            word, why = "not comparable", found.unlike[0]
        theirs = one.row.to_reckon_with
        yield Verdict(one.label, one.order, one.row.method, one.metric, one.mean, theirs, word, why)
    for row in found.paper.rows:
        if row.ours is None:
            why = "no method here is the same"
            yield Verdict("", "", row.method, row.metric, None, row.to_reckon_with, "not comparable", why)


def _judged(one: Compared, tolerance: float) -> tuple[Word, str]:
    theirs = one.row.to_reckon_with
    if one.mean is None or theirs is None:
        return _by_cells(one, tolerance)
    apart = abs(one.mean.mean - theirs)
    side = "above" if one.mean.mean > theirs else "below"
    said = f"{one.mean.mean:.2f} is {apart:.2f} {side} {theirs:.2f}"
    if apart <= tolerance:
        return "reached", said
    low, high = one.mean.low, one.mean.high
    if low is not None and high is not None and low <= theirs <= high:
        said += f", which lies in our interval [{low:.1f}, {high:.1f}]"
    return "not reached", said


def _by_cells(one: Compared, tolerance: float) -> tuple[Word, str]:
    """Of a row whose mean is not known: its furthest cell."""
    if not one.differences:
        return "not comparable", "no score of one task is known of both"
    task, apart = max(one.differences.items(), key=lambda item: abs(item[1]))
    said = f"{len(one.differences)} cells are known, and the furthest is {task}, {apart:+.2f}"
    return ("reached" if abs(apart) <= tolerance else "not reached"), said
