"""Orders: do the figures of a comparison depend on the order in which the tasks were learnt, and by more than on the seed?

The table of a paper (HiDe-LLaVA, Table 4, https://arxiv.org/abs/2503.12941) puts Last and Avg of three orders side by side, one seed each.
Whether orders differ cannot be told from that: runs of one order differ as well. With s seeds of each of k orders,

    over orders   the standard deviation of the k means, each over its seeds
    over seeds    the standard deviation within one order, its variance pooled over the orders
    by order      √max(0, over orders² − over seeds² / s): what is left once the seeds' own part in those means is taken out

The last is the usual estimate of a random effect (Snedecor and Cochran, Statistical Methods, one-way analysis of variance); with few orders it is
rough, and 0 where the means lie closer together than the seeds alone would put them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_zoo.analysis.outcome import Outcome
from cl_zoo.errors import RunError, printable
from cl_zoo.report import colours
from cl_zoo.report.figures import MARKERS, new_axes, plain
from cl_zoo.report.rows import SEQUENTIAL
from cl_zoo.report.sheets import UNKNOWN, Entry, Line, Section, Sheet, as_text
from cl_zoo.runs.finding import find_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURES = ("avg", "last")
"""Of each run."""

Values = Mapping[str, Sequence[float]]
"""A figure by order: one value for each seed."""


def orders(places: Iterable[str | Path]) -> Outcome:
    """Avg and Last by order, and what of their spread is the order's.

    Args:
        places: folders of runs, of folders of runs, or patterns.

    Returns:
        A row for each method, order and figure (`mean`, `std` over the seeds, `seeds`), and one for each method and figure over all orders
        (`over_orders`, `over_seeds`, `by_order`; `None` where there is one order, or one seed).

    Raises:
        OptionError: no run is there.
        RunError: all runs learnt their tasks in one order, or in none.
    """
    found = _values(places)
    names = list(
        dict.fromkeys(order for methods in found.values() for values in methods.values() for order in values)
    )
    if len(names) < 2:
        raise RunError(
            f"{len(names)} order is there, of runs that learn their tasks one after the other; run `compare` with --orders or another --order first"
        )
    rows = [
        row
        for label, figures in found.items()
        for name in FIGURES
        for row in _rows(label, name, figures[name])
    ]
    return Outcome("orders", _sentence(found, names), rows, lambda: _draw(found, names), _text(found, names))


def spreads(values: Values) -> dict[str, float | None]:
    """How far a figure varies: `over_orders`, `over_seeds` and `by_order`, see the module."""
    groups = [list(seeds) for seeds in values.values()]
    free = sum(len(seeds) - 1 for seeds in groups)
    within = math.sqrt(sum(_squares(seeds) for seeds in groups) / free) if free else None
    if len(groups) < 2:
        return {"over_orders": None, "over_seeds": within, "by_order": None}
    across = statistics.stdev([statistics.fmean(seeds) for seeds in groups])
    if within is None:
        return {"over_orders": across, "over_seeds": None, "by_order": None}
    own = statistics.fmean([1 / len(seeds) for seeds in groups]) * within**2
    return {"over_orders": across, "over_seeds": within, "by_order": math.sqrt(max(across**2 - own, 0.0))}


def _squares(values: Sequence[float]) -> float:
    mean = statistics.fmean(values)
    return sum((value - mean) ** 2 for value in values)


def _values(places: Iterable[str | Path]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Figures by label, figure and order; the same tasks in another order, so runs of other tasks are left out.

    Raises:
        RunError: no run learnt its tasks one after the other.
    """
    learners = [one for one in find_runs(places).results if one.manifest["protocol"] == SEQUENTIAL]
    streams = [tuple(sorted(one.manifest["tasks"])) for one in learners]
    if not streams:
        raise RunError(
            "no finished run here learnt its tasks one after the other, so there is no order; run another method"
        )
    most = max(dict.fromkeys(streams), key=lambda stream: (len(stream), streams.count(stream)))
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for one, stream in zip(learners, streams, strict=True):
        if stream != most:
            continue
        summary = one.matrix.summary()
        for name in FIGURES:
            value = summary.get(name)
            if value is not None:
                orders_of = found.setdefault(one.label, {name: {} for name in FIGURES})[name]
                orders_of.setdefault(one.order or ", ".join(one.manifest["tasks"]), []).append(value)
    return found


def _rows(label: str, name: str, values: Values) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "label": label,
            "figure": name,
            "order": order,
            "mean": statistics.fmean(seeds),
            "std": statistics.stdev(seeds) if len(seeds) > 1 else None,
            "seeds": len(seeds),
        }
        for order, seeds in values.items()
    ]
    means = [row["mean"] for row in rows]
    whole = (
        {"mean": statistics.fmean(means), "seeds": sum(len(seeds) for seeds in values.values())}
        if rows
        else {}
    )
    return [*rows, {"label": label, "figure": name, "order": None, **whole, **spreads(values)}]


def _sentence(found: Mapping[str, Mapping[str, Values]], names: Sequence[str]) -> str:
    """The spreads of Last, and who is best in which order."""
    last = {label: spreads(figures["last"]) for label, figures in found.items()}
    across = [one["over_orders"] for one in last.values() if one["over_orders"] is not None]
    within = [one["over_seeds"] for one in last.values() if one["over_seeds"] is not None]
    told = (
        f"Over {len(names)} orders Last varies by {statistics.fmean(across):.2f} points"
        if across
        else "No method has two orders"
    )
    told += f", over the seeds of one order by {statistics.fmean(within):.2f}" if within and across else ""
    told += (
        f" (standard deviations, mean of {len(across)} {'methods' if len(across) > 1 else 'method'})"
        if across
        else ""
    )
    best = [_best(found, order) for order in names]
    if len(found) > 1 and all(best):
        same = len(set(best)) == 1
        told += (
            f"; {best[0]} is best in every one of them"
            if same
            else f"; best are, in turn, {', '.join(map(str, best))}"
        )
    return told + "."


def _best(found: Mapping[str, Mapping[str, Values]], order: str) -> str | None:
    """The label with the highest mean Last in an order."""
    means = {
        label: statistics.fmean(one["last"][order]) for label, one in found.items() if order in one["last"]
    }
    return max(means, key=lambda label: means[label], default=None)


def _text(found: Mapping[str, Mapping[str, Values]], names: Sequence[str]) -> str:
    columns = (*map(printable, names), "over orders", "over seeds", "by order")
    sections = []
    for name in FIGURES:
        lines = []
        for label, figures in found.items():
            values = [_mean(figures[name].get(order, ())) for order in names]
            values += [UNKNOWN if one is None else f"{one:.2f}" for one in spreads(figures[name]).values()]
            lines.append(Line(printable(label), tuple(map(Entry, values))))
        sections.append(Section(name.capitalize(), tuple(lines)))
    return as_text(Sheet(columns, tuple(sections)))


def _mean(seeds: Sequence[float]) -> str:
    if not seeds:
        return UNKNOWN
    mean = f"{statistics.fmean(seeds):.2f}"
    return mean if len(seeds) == 1 else f"{mean} ± {statistics.stdev(seeds):.2f}"


def _draw(found: Mapping[str, Mapping[str, Values]], names: Sequence[str]) -> Axes:
    """Last by order: a point for each seed, a line through the means of each method."""
    axes = new_axes(3.4 + 1.2 * len(names), 4.6)
    for place, (label, figures) in enumerate(found.items()):
        colour, _, marker = colours.of_method(place)
        values = [(n, figures["last"][order]) for n, order in enumerate(names) if order in figures["last"]]
        axes.plot(
            [n for n, _ in values],
            [statistics.fmean(seeds) for _, seeds in values],
            color=colour,
            marker=MARKERS[marker],
            label=label,
        )
        points = [(n, value) for n, seeds in values for value in seeds]
        axes.scatter([n for n, _ in points], [value for _, value in points], color=colour, s=8, alpha=0.5)
    axes.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names], fontsize=8)
    axes.set_ylabel("Last")
    return plain(axes)
