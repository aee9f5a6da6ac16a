"""The geometry of the page's charts, in units of their view box; the template draws them as SVG, so that they follow the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from cl_zoo.report import colours
from cl_zoo.report.estimates import Estimate

WIDTH = 360.0
"""Of every chart: as wide as a phone, so that text is read there as it is drawn."""

TOP, LEFT, BOTTOM = 10.0, 34.0, 34.0
LINE = 14.0
"""Height of a line of text."""

SIGNS = 16
"""Signs of a name that a label in a chart shows."""

SIGN = 6.6
"""Width of a sign of a tick, at most."""

TICKS = 5


@dataclass(frozen=True)
class Values:
    """What a chart shows of one method.

    Attributes:
        place: of the method in the table, which decides its colour.
        points: x and its estimate.
    """

    label: str
    place: int
    points: Sequence[tuple[float, Estimate]]


@dataclass(frozen=True)
class Series:
    """The same as it is drawn.

    Attributes:
        marks: x, y and words of each marker.
        path: the line through them; empty for single points.
        band: the outline of the intervals.
        whiskers: x, upper and lower y of each interval.
        name: x and y of the label, and where its leader begins; `None` where there is none.
    """

    label: str
    text: str
    colour: str
    dash: str
    marker: str
    marks: tuple[tuple[float, float, str], ...]
    path: str = ""
    band: str = ""
    whiskers: tuple[tuple[float, float, float], ...] = ()
    name: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Chart:
    """A chart ready to be drawn.

    Attributes:
        about: what it shows, for those who do not see it.
        right: where the plot ends and the labels begin.
        frontier: the line of the methods that none beats.
        owner: the method whose measurements it shows; empty where each series is a method.
    """

    title: str
    about: str
    height: float
    right: float
    series: tuple[Series, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_title: str = ""
    frontier: str = ""
    owner: str = ""
    width: float = WIDTH
    left: float = LEFT
    top: float = TOP
    bottom: float = field(default=BOTTOM)


@dataclass(frozen=True)
class Steps:
    """The horizontal axis of lines: stages or layers.

    Attributes:
        names: of the steps, for the words of a marker.
        numbers: what stands on the axis for them.
    """

    title: str
    names: Sequence[str]
    numbers: Sequence[str]


def lines(
    title: str,
    about: str,
    values: Sequence[Values],
    steps: Steps,
    *,
    labelled: bool = False,
    owner: str = "",
    least: float = 10.0,
) -> Chart:
    """A line for each method over the steps, with its intervals as a band.

    Args:
        values: their x is the place of a step.
        labelled: whether names stand behind the lines.
        owner: the method whose measurements these are; empty where each line is a method.
        least: the least span of the vertical axis.
    """
    names = steps.names
    right = WIDTH - (122.0 if labelled else 10.0)
    height = max(220.0 if labelled else 150.0, TOP + BOTTOM + LINE * len(values) if labelled else 0.0)
    y = Scale.of([e for one in values for _, e in one.points], height - BOTTOM, TOP, least)
    step = (right - LEFT - 12) / max(len(names) - 1, 1)
    x = [LEFT + 6 + n * step for n in range(len(names))]
    drawn = []
    for one in values:
        marks = [
            (x[int(stage)], y.at(e.mean), _words(one.label, e, names[int(stage)])) for stage, e in one.points
        ]
        known = [
            (x[int(stage)], y.at(e.high), y.at(e.low))
            for stage, e in one.points
            if e.low is not None and e.high is not None
        ]
        outline = [(a, b) for a, b, _ in known] + [(a, b) for a, _, b in reversed(known)]
        drawn.append(_series(one, marks, path=_points((a, b) for a, b, _ in marks), band=_points(outline)))
    if labelled:
        drawn = _named(drawn, right + 6, TOP + 4, height - BOTTOM)
    every = math.ceil(len(names) / TICKS / 2)
    ticks = tuple((x[n], steps.numbers[n]) for n in range(0, len(names), every))
    return Chart(title, about, height, right, tuple(drawn), ticks, y.ticks, x_title=steps.title, owner=owner)


def scatter(
    title: str, about: str, values: Sequence[Values], x_title: str, best: Sequence[tuple[float, float]]
) -> Chart:
    """A point for each method: cost to the right, score up, with the interval of the score.

    Args:
        best: cost and score of the methods that none beats in both.
    """
    right = WIDTH - 126.0
    height = max(220.0, TOP + BOTTOM + LINE * len(values))
    y = Scale.of([e for one in values for _, e in one.points], height - BOTTOM, TOP)
    x = Scale.over([price for one in values for price, _ in one.points], LEFT + 8, right - 8)
    drawn = []
    for one in values:
        marks = [(x.at(price), y.at(e.mean), _words(one.label, e, short(price))) for price, e in one.points]
        whiskers = tuple(
            (x.at(price), y.at(e.high), y.at(e.low))
            for price, e in one.points
            if e.low is not None and e.high is not None
        )
        drawn.append(_series(one, marks, whiskers=whiskers))
    drawn = _named(drawn, right + 8, TOP + 4, height - BOTTOM)
    corners: list[tuple[float, float]] = []
    for price, score in best:
        if corners:
            corners.append((x.at(price), corners[-1][1]))
        corners.append((x.at(price), y.at(score)))
    return Chart(title, about, height, right, tuple(drawn), x.ticks, y.ticks, x_title, _points(corners))


@dataclass(frozen=True)
class Scale:
    """Values onto a line of the view box.

    Attributes:
        low, high: the values at its ends.
        start, end: where they are drawn.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[tuple[float, str], ...] = ()

    def at(self, value: float) -> float:
        """Where a value is drawn, at the ends where it lies outside."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> Scale:
        """A scale over values, with round ticks; both ends are ticks."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        if high - low < 1e-9 * max(abs(high), 1.0):
            low, high = low - (abs(low) * 0.05 or 0.5), high + (abs(high) * 0.05 or 0.5)
        step = _round_step((high - low) / TICKS)
        first, last = math.floor(low / step), math.ceil(high / step)
        plain = cls(first * step, last * step, start, end)
        shown = [(plain.at(n * step), short(n * step)) for n in range(first, last + 1)]
        # on the horizontal axis, which runs upwards in the view box's units, a text needs room for its signs
        room = max(SIGN * len(text) + 8 for _, text in shown) if start < end else LINE
        every = max(1, math.ceil(room / (abs(end - start) / (len(shown) - 1))))
        return cls(plain.low, plain.high, start, end, tuple(shown[::every]))

    @classmethod
    def of(cls, values: Sequence[Estimate], start: float, end: float, least: float = 10.0) -> Scale:
        """A scale over scores with their intervals, which never leaves 0 to 100 where the means do not.

        Args:
            least: span below which a difference would look greater than it is.
        """
        low = [min(max(0.0, e.low), e.mean) if e.low is not None else e.mean for e in values]
        high = [max(min(100.0, e.high), e.mean) if e.high is not None else e.mean for e in values]
        lack = max(least - (max(high, default=0.0) - min(low, default=0.0)), 0.0) / 2
        wide = [min(low, default=0.0) - lack, max(high, default=0.0) + lack]
        if least >= 100.0:
            wide = [0.0, 100.0]
        return cls.over(wide, start, end)


def short(value: float) -> str:
    """A number on an axis: `415 k`, `0.25`."""
    for one, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= one:
            return f"{value / one:.4g}{unit}"
    return f"{round(value, 6) + 0.0:.4g}"


def spread(wanted: Sequence[float], low: float, high: float, gap: float = LINE) -> list[float]:
    """Places as near to the wanted ones as can be, `gap` apart and between two ends, in the order of the wanted ones.

    Where they do not fit between the ends they stand closer, evenly.
    """
    order = sorted(range(len(wanted)), key=lambda n: wanted[n])
    if len(order) > 1:
        gap = min(gap, (high - low) / (len(order) - 1))
    placed: list[float] = []
    for rank, n in enumerate(order):
        least = placed[-1] + gap if placed else low
        most = high - gap * (len(order) - 1 - rank)
        placed.append(min(max(wanted[n], least), most))
    for rank in range(
        len(placed) - 2, -1, -1
    ):  # what was pushed too far down moves up again where there is room
        placed[rank] = min(placed[rank], placed[rank + 1] - gap)
    found = [0.0] * len(order)
    for n, place in zip(order, placed, strict=True):
        found[n] = round(place, 1)
    return found


def _named(drawn: Sequence[Series], x: float, low: float, high: float) -> list[Series]:
    """The series with labels beside the chart, at the height of their last marks where nothing else stands."""
    with_marks = [one for one in drawn if one.marks]
    places = spread([one.marks[-1][1] for one in with_marks], low, high)
    return [
        Series(**{**vars(one), "name": (x + 10, place + 3.5, one.marks[-1][0], one.marks[-1][1])})
        for one, place in zip(with_marks, places, strict=True)
    ]


def _series(one: Values, marks: Sequence[tuple[float, float, str]], **drawn: object) -> Series:
    colour, dash, marker = colours.of_method(one.place)
    return Series(one.label, _cut(one.label), colour, dash, marker, tuple(marks), **drawn)  # type: ignore[arg-type]


def _cut(label: str) -> str:
    return label if len(label) <= SIGNS else f"{label[: SIGNS - 1]}…"


def _points(points: object) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)  # type: ignore[attr-defined]


def _words(label: str, value: Estimate, where: str) -> str:
    interval = "" if value.low is None else f" [{value.low:.1f}, {value.high:.1f}]"
    return f"{label}, {where}: {value.mean:.2f}{interval}"


def _round_step(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(one * power for one in (1, 2, 2.5, 5, 10) if one * power >= step * 0.999)


@dataclass(frozen=True)
class Bar:
    """A line of a forest chart: name, mean, the ends of its interval, and the value in words."""

    label: str
    text: str
    colour: str
    marker: str
    y: float
    x: float
    low: float | None
    high: float | None
    value: str
    bound: bool


@dataclass(frozen=True)
class Forest:
    """Means with their intervals below each other, the highest first."""

    title: str
    about: str
    height: float
    bars: tuple[Bar, ...]
    x_ticks: tuple[tuple[float, str], ...]
    left: float = 118.0
    right: float = WIDTH - 48.0
    width: float = WIDTH
    bottom: float = 22.0


def forest(title: str, about: str, values: Sequence[tuple[str, int, bool, Estimate]]) -> Forest:
    """A forest chart.

    Args:
        values: label, place in the table, whether it is a bound, and its estimate.
    """
    ordered = sorted(values, key=lambda one: -one[3].mean)
    gap = 20.0
    x = Scale.of([one[3] for one in ordered], Forest.left, Forest.right)
    bars = []
    for n, (label, place, bound, value) in enumerate(ordered):
        colour, _, marker = colours.of_method(place)
        low, high = (None if end is None else x.at(end) for end in (value.low, value.high))
        y, words = TOP + gap * (n + 0.5), f"{value.mean:.1f}"
        text = _cut(label)
        bars.append(Bar(label, text, colour, marker, y, x.at(value.mean), low, high, words, bound))
    return Forest(title, about, TOP + gap * len(ordered) + Forest.bottom, tuple(bars), x.ticks)
