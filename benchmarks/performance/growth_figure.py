"""The figure of `growth.py`: a row per method, a dot per task, rank or number of experts, a column per quantity.

Where a method does not grow its dots lie on each other; where it does a line joins them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_zoo.report.colours import CIVIDIS, as_hex

COLUMNS = {
    "cpu_ratio": "time of a step / finetune",
    "operations": "operations of a step",
    "memory": "memory of a step, KiB",
    "stored": "parameters stored",
}
"""Quantities, and what stands above their columns."""
ORDERS = ("memory", "stored")
"""Quantities that span orders of magnitude, so that their axes are logarithmic; the others begin at 0."""
BLOCKS = {"task": "at task", "rank": "at rank", "experts": "experts"}
"""What changes in a block of rows, and the words of its legend."""


def draw(result: Mapping[str, Any], file: Path) -> None:
    """Write the figure of a result; the name's end says whether as SVG or PNG."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none", "font.size": 8})
    from matplotlib import pyplot

    blocks = {by: series(result["methods"], by) for by in BLOCKS}
    heights = [len(found) + 1 for found in blocks.values() if found]
    drawn = {by: found for by, found in blocks.items() if found}
    figure, axes = pyplot.subplots(
        len(drawn),
        len(COLUMNS),
        figsize=(12, 0.19 * sum(heights) + 1.2 * len(drawn)),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for line, (by, found) in zip(axes, drawn.items(), strict=True):
        for place, (column, title) in enumerate(COLUMNS.items()):
            _panel(line[place], found, by, column)
            line[place].set_title(title)
            line[place].tick_params(labelleft=place == 0)
        line[-1].legend(
            title=BLOCKS[by], loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8
        )
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=150)
    pyplot.close(figure)


def series(methods: Mapping[str, Sequence[Mapping[str, Any]]], by: str) -> dict[str, list[Mapping[str, Any]]]:
    """By method the points that differ in one thing alone, in its order; methods with less than two are left out."""
    found = {}
    for name, points in methods.items():
        own = [point for point in points if point["experts"] is None]
        ranked = {point["task"] for point in own if point["rank"] != own[0]["rank"]}
        if by == "experts":
            those = [point for point in points if point["experts"] is not None]
        else:
            those = [point for point in own if (point["task"] in ranked) == (by == "rank")]
        if len(those) > 1:
            found[name] = sorted(those, key=lambda point: point[by])
    return found


def _panel(axes: Any, found: Mapping[str, Sequence[Mapping[str, Any]]], by: str, column: str) -> None:
    scale = 1024 if column == "memory" else 1
    values = sorted({point[by] for points in found.values() for point in points})
    colour = dict(zip(values, _colours(len(values)), strict=True))
    names = list(found)
    for row, name in enumerate(names):
        told = [point[column] / scale for point in found[name]]
        axes.plot([min(told), max(told)], [row, row], color="0.75", linewidth=1, zorder=1)
    for value in values:
        at = [
            (point[column] / scale, row)
            for row, name in enumerate(names)
            for point in found[name]
            if point[by] == value
        ]
        across, rows = zip(*at, strict=True)
        axes.scatter(across, rows, s=18, color=colour[value], label=f"{value}", zorder=2, linewidths=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    if column in ORDERS:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    else:
        axes.set_xlim(left=0)
    axes.grid(axis="x", which="major", color="0.9", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def _colours(count: int) -> list[str]:
    """So many colours of the scale, dark to bright, the brightest left out, which is not seen on white."""
    last = len(CIVIDIS) - 2
    return [as_hex(CIVIDIS[round(place * last / max(count - 1, 1))]) for place in range(count)]
