"""Figures of finished runs with matplotlib, which is imported when one is drawn: scores, forgetting, cost, likeness of layers.

Each function takes a `Table` or what has one (`cl_zoo.load_runs("runs").comparisons[0]`, a `Result`), draws on the given axes or on
new ones, and returns the axes; `axes.figure.savefig("scores.png", bbox_inches="tight")` writes them, with the names beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cl_zoo.errors import DataError, OptionError, nearest
from cl_zoo.report import colours
from cl_zoo.report.matrices import curve, means
from cl_zoo.report.rows import SEQUENTIAL, Method
from cl_zoo.report.similarity import pairs
from cl_zoo.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSTS = {"trained": "Parameters trained per task", "stored": "Parameters stored", "seconds": "Seconds"}
"""What `plot_pareto` may set a score against, and the words on its axis."""

MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D"}
FORMATS = ("png", "svg")

NAMES = 20
"""Methods in a column of a legend."""


class HasTable(Protocol):
    """A comparison, or a single run."""

    def table(self) -> Table: ...


def plot_matrix(told: Table | HasTable, label: str | None = None, axes: Axes | None = None) -> Axes:
    """Scores on each task after each task as a heat map, with the numbers in it; the mean over the seeds.

    Args:
        label: of the method; may be left out where there is one.

    Raises:
        OptionError: there is no such method.
        DataError: none of its runs is finished.
    """
    table = _table(told)
    found = list(means(table))
    wanted = _label(table, label)
    one = next((mean for mean in found if mean.label == wanted), None)
    if one is None:
        raise DataError(f"{wanted}: no run is finished, so there are no scores to draw; run it again")
    axes = axes or new_axes(1.2 + 0.75 * len(one.tasks), 1.2 + 0.5 * len(one.cells))
    cells = [[None if cell is None else cell.mean for cell in row] for row in one.cells]
    heat_map(axes, cells, one.tasks, one.stages)
    axes.set_title(one.label)
    return axes


def plot_forgetting(told: Table | HasTable, axes: Axes | None = None) -> Axes:
    """The mean score over the tasks learnt so far, after each task: a line for each method, with the interval over its seeds."""
    table = _table(told)
    axes = axes or new_axes(6.4, 4.2)
    for place, method in enumerate(_learners(table)):
        points = [(n, one) for n, one in enumerate(curve(method)) if one is not None]
        colour, _, marker = colours.of_method(place)
        style = ("-", "--", ":", "-.")[place // len(colours.METHODS) % 4]
        stages = [n for n, _ in points]
        axes.plot(
            stages,
            [one.mean for _, one in points],
            color=colour,
            linestyle=style,
            marker=MARKERS[marker],
            markersize=4,
            label=method.label,
        )
        known = [(n, one.low, one.high) for n, one in points if one.low is not None and one.high is not None]
        low, high = [low for _, low, _ in known], [high for _, _, high in known]
        axes.fill_between([n for n, _, _ in known], low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xticks(range(len(table.tasks)), [f"{n + 1}" for n in range(len(table.tasks))])
    axes.set_xlabel("Tasks learnt")
    axes.set_ylabel("Mean score on the tasks learnt")
    return plain(axes)


def plot_pareto(told: Table | HasTable, cost: str = "trained", axes: Axes | None = None) -> Axes:
    """Last against a cost: a point for each method with the interval over its seeds, and the line of those that none beats in both.

    Args:
        cost: a name in `COSTS`.

    Raises:
        OptionError: there is no such cost.
    """
    if cost not in COSTS:
        raise OptionError(f"cost {cost!r}{nearest(cost, COSTS)}")
    table = _table(told)
    axes = axes or new_axes(6.4, 4.2)
    points = []
    for place, method in enumerate(_learners(table)):
        price, last = method.over_seeds(lambda row: getattr(row, cost)), method.figure("last")
        if price is None or last is None:
            continue
        colour, _, marker = colours.of_method(place)
        spread = (
            None
            if last.low is None or last.high is None
            else [[last.mean - last.low], [last.high - last.mean]]
        )
        axes.errorbar(
            price.mean,
            last.mean,
            yerr=spread,
            color=colour,
            marker=MARKERS[marker],
            linestyle="",
            label=method.label,
        )
        points.append((price.mean, last.mean))
    best = frontier(points)
    axes.step([x for x, _ in best], [y for _, y in best], where="post", color="0.6", linewidth=1, zorder=0)
    axes.set_xlabel(COSTS[cost])
    axes.set_ylabel("Last")
    axes.xaxis.set_major_formatter(_short)
    return plain(axes)


def plot_cka(told: Table | HasTable, label: str | None = None, axes: Axes | None = None) -> Axes:
    """CKA by layer for each pair of tasks of a method's first run that has it, and what shuffled pairs give, dashed.

    Raises:
        OptionError: there is no such method.
        DataError: the probe `cka` was not there.
    """
    table = _table(told)
    wanted = _label(table, label)
    rows = [row for method in table.methods if method.label == wanted for row in method.finished]
    found = next((found for row in rows if (found := pairs(row))), None)
    if not found:
        raise DataError(f"{wanted}: no run measured CKA; run it with `--probe cka`")
    axes = axes or new_axes(6.4, 4.2)
    for place, pair in enumerate(found):
        colour, _, _ = colours.of_method(place)
        axes.plot(*_ordered(pair.layers), color=colour, marker=".", label=pair.name)
        axes.plot(*_ordered(pair.shuffled), color=colour, linestyle="--", linewidth=0.8, alpha=0.7)
    axes.set_xlabel("Layer")
    axes.set_ylabel("CKA (dashed: pairs shuffled)")
    axes.set_title(wanted)
    return plain(axes)


def heat_map(
    axes: Axes,
    cells: Sequence[Sequence[float | None]],
    columns: Sequence[str],
    rows: Sequence[str],
    highest: float = 100.0,
) -> None:
    """Draw numbers between 0 and `highest` as colours with the numbers in them; what is `None` stays empty."""
    shades = [
        ["#00000000" if cell is None else colours.as_hex(colours.of_score(cell, highest)) for cell in row]
        for row in cells
    ]
    axes.imshow([[_rgba(shade) for shade in row] for row in shades], aspect="auto")
    for stage, row in enumerate(cells):
        for place, cell in enumerate(row):
            if cell is not None:
                ink = colours.as_hex(colours.on(colours.of_score(cell, highest)))
                axes.text(place, stage, f"{cell:.1f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), rows)


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in both, cheapest first: lower cost, higher score."""
    best: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or score > best[-1][1]:
            best.append((cost, score))
    return best


def write_figures(told: Table | HasTable, folder: Path, prefix: str = "") -> Iterator[Path]:
    """Write all figures of a comparison into a folder as PNG and SVG; yields the files."""
    table = _table(told)
    drawn: list[tuple[str, Axes]] = []
    if any(method.finished for method in _learners(table)):
        drawn += [("forgetting", plot_forgetting(table))]
        drawn += [(f"pareto-{cost}", plot_pareto(table, cost)) for cost in COSTS]
    for method in table.methods:
        if method.finished:
            drawn.append((f"matrix-{_slug(method.label)}", plot_matrix(table, method.label)))
            if any(pairs(row) for row in method.finished):
                drawn.append((f"cka-{_slug(method.label)}", plot_cka(table, method.label)))
    for name, (_, axes) in zip(_distinct([name for name, _ in drawn]), drawn, strict=True):
        for ending in FORMATS:
            file = folder / f"{prefix}{name}.{ending}"
            save(axes, file)
            yield file


def save(axes: Axes, file: Path) -> None:
    """Write the figure of some axes, in the format that the file's name ends in."""
    about = {"Date": None} if file.suffix == ".svg" else {}
    figure: Any = axes.figure
    figure.savefig(file, dpi=160, bbox_inches="tight", metadata=about)


def new_axes(width: float, height: float) -> Any:
    """New axes on a figure of their own; sizes in inches."""
    return new_figure(width, height).add_subplot()


def new_figure(width: float, height: float) -> Any:
    """A figure that no window and no global list holds; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain(axes: Axes) -> Axes:
    """No frame, faint lines, and the names beside the plot, where they cover nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    columns = -(-len(axes.get_legend_handles_labels()[1]) // NAMES) or 1
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, ncols=columns)
    return axes


def _table(told: Table | HasTable) -> Table:
    return told if isinstance(told, Table) else told.table()


def _learners(table: Table) -> list[Method]:
    return [one for one in table.methods if one.protocol == SEQUENTIAL and one.finished]


def _label(table: Table, label: str | None) -> str:
    known = [method.label for method in table.methods]
    if label is None and len(known) == 1:
        return known[0]
    if label not in known:
        raise OptionError(f"label {label!r}{nearest(str(label), known)}")
    return str(label)


def _short(value: float, _: object) -> str:
    """A number on an axis: `415 k`."""
    for one, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= one:
            return f"{value / one:.4g} {unit}"
    return f"{value:.4g}"


def _rgba(shade: str) -> tuple[float, ...]:
    from matplotlib.colors import to_rgba

    return tuple(to_rgba(shade))


def _ordered(layers: dict[int, float]) -> tuple[list[int], list[float]]:
    places = sorted(layers)
    return places, [layers[place] for place in places]


def _distinct(names: list[str]) -> list[str]:
    """Names of files; one that comes again is numbered."""
    return [f"{name}-{k}" if (k := names[: n + 1].count(name)) > 1 else name for n, name in enumerate(names)]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=-]+", "_", text).strip("_")[:80] or "run"
