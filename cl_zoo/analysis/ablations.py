"""The declared ablations of a method as a grid of runs, in the declared order, with the paper's figures beside ours.

A method declares them (`cl_zoo.contract.ablations`); rows of equal options are one run, and rows that differ only in what answers alone
read share one training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cl_zoo.analysis.columns import columns
from cl_zoo.analysis.outcome import Outcome
from cl_zoo.contract.ablations import Ablation, ablations
from cl_zoo.contract.plugins import load_class
from cl_zoo.errors import OptionError, nearest
from cl_zoo.names import Choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cl_zoo.report.rows import Method
    from cl_zoo.runs.comparison import Comparison

ALWAYS = ("avg", "last", "bwt")
"""Figures that a table has whatever is published."""


@dataclass(frozen=True)
class Wanted:
    """Ablations of one method that shall be run.

    Attributes:
        method: its name.
        rows: the chosen ones, in their order.
        options: of the method, the same in every row.
    """

    method: str
    rows: tuple[Ablation, ...]
    options: Mapping[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """The method of each row as it is asked for; rows of equal options have equal ones."""
        return tuple(Choice(self.method, {**self.options, **row.options}).label for row in self.rows)

    @property
    def choices(self) -> list[str]:
        """Each of them once, without what all have in common: the methods of a comparison."""
        return list(dict.fromkeys(Choice(self.method, row.options).label for row in self.rows))


def wanted(method: str, only: Sequence[str] = (), options: Mapping[str, Any] | None = None) -> Wanted:
    """The ablations that a method declares.

    Args:
        method: its name; one method, no stack.
        only: names of rows, or sources, `Table 3`; default: all.
        options: of the method, for every row.

    Raises:
        PluginError: there is no such method.
        OptionError: it declares none, or not those, or an option is set that a row sets.
    """
    declared = ablations(method, load_class(method))
    if not declared:
        raise OptionError(f"{method} declares no ablations; name them in its class, or use compare --vary")
    names = [*dict.fromkeys(row.source for row in declared), *(row.name for row in declared)]
    for one in only:
        if one not in names:
            raise OptionError(f"{method} has no ablation {one!r}{nearest(one, names)}")
    rows = tuple(row for row in declared if not only or {row.name, row.source} & set(only))
    for row in rows:
        for name in row.options.keys() & (options or {}).keys():
            raise OptionError(
                f"{method}.{name} is set for all rows, but the row {row.name!r} sets it; leave it out"
            )
    return Wanted(method, rows, options or {})


def ablate(
    method: str, only: Sequence[str] = (), options: Mapping[str, Any] | None = None, **grid: Any
) -> Outcome:
    """Run the ablations of a method and compare them.

    Args:
        method, only, options: as for `wanted`.
        grid: what else `cl_zoo.compare` takes: benchmark, seeds, orders, recipe, limit, out and others.

    Raises:
        ClZooError: something is unknown; nothing has been started then.
    """
    from cl_zoo.api import compare

    chosen = wanted(method, only, options)
    shared = {method: dict(chosen.options)} if chosen.options else {}
    return outcome(chosen, compare(chosen.choices, options=shared, **grid))


def outcome(chosen: Wanted, comparison: Comparison) -> Outcome:
    """The rows of a comparison that has run, in the declared order."""
    methods = {one.label: one for one in comparison.table().methods}
    published = [name for row in chosen.rows for name in row.published]
    figures = list(dict.fromkeys([*ALWAYS, *published]))
    rows, first = [], dict[str, dict[str, Any]]()
    for ablation, label in zip(chosen.rows, chosen.labels, strict=True):
        row = _row(ablation, label, methods.get(label), figures)
        base = first.setdefault(ablation.source, row)
        row["change"] = _minus(row["last"], base["last"])
        row["published_change"] = _minus(row.get("published_last"), base.get("published_last"))
        rows.append(row)
    heads = {"ablation": "row", "source": "source", "options": "options"}
    heads |= {name: name for name in figures} | {"change": "Δ last"}
    heads |= {f"published_{name}": f"published {name}" for name in dict.fromkeys(published)}
    heads |= {"published_change": "Δ"} if published else {}
    heads |= {"error": "failed"} if any(row["error"] for row in rows) else {}
    text = columns(rows, heads, signed=["change", "published_change"])
    on = next(iter(comparison.results)).manifest.get("identity", {}).get("benchmark", {}).get("name", "")
    return Outcome("ablate", _said(chosen, rows, on), rows, lambda: _draw(rows), text)


def _row(ablation: Ablation, label: str, method: Method | None, figures: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "ablation": ablation.name,
        "source": ablation.source,
        "options": ", ".join(f"{name}={value}" for name, value in ablation.options.items())
        or "as by default",
        "label": label,
        "runs": len(method.finished) if method else 0,
        "error": method.failed[0].error or "" if method and method.failed else "",
    }
    for name in figures:
        one = method.figure(name) if method and method.finished else None
        found |= {name: one.mean if one else None, f"{name}_low": one.low if one else None}
        found |= {f"{name}_high": one.high if one else None}
    return {
        **found,
        **{f"published_{name}": value for name, value in ablation.published.items()},
        "on": ablation.on,
    }


def _minus(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def _said(chosen: Wanted, rows: Sequence[Mapping[str, Any]], benchmark: str) -> str:
    """`hide on mini: against HiDe-LLaVA (Last 61.20), Merge (1-32) −2.10 (published −2.93), …`, source by source."""
    parts = []
    for source in dict.fromkeys(row["source"] for row in rows):
        base, *others = [row for row in rows if row["source"] == source]
        changes = [
            f"{row['ablation']} {row['change']:+.2f}"
            + ("" if row["published_change"] is None else f" (published {row['published_change']:+.2f})")
            for row in others
            if row["change"] is not None
        ]
        start = (
            f"{source}: {base['ablation']} has Last {base['last']:.2f}" if base["last"] is not None else ""
        )
        parts += [f"{start}; against it {', '.join(changes)}" if changes else start] if start else []
    failed = sum(bool(row["error"]) for row in rows)
    parts += [f"{failed} of {len(rows)} rows failed"] if failed else []
    return f"{chosen.method} on {benchmark}: {'. '.join(parts) or 'nothing has run'}."


def _draw(rows: Sequence[Mapping[str, Any]]) -> Axes:
    """Last of each row with its interval, and what the paper gives."""
    from cl_zoo.report import colours
    from cl_zoo.report.figures import new_axes, plain

    axes = new_axes(6.4, 1.0 + 0.32 * len(rows))
    known = [(place, row) for place, row in enumerate(rows) if row["last"] is not None]
    axes.plot(
        [row["last"] for _, row in known],
        [place for place, _ in known],
        linestyle="",
        marker="o",
        color=colours.of_method(0)[0],
        label="ours",
    )
    for place, row in known:
        if row["last_low"] is not None:
            axes.hlines(place, row["last_low"], row["last_high"], color=colours.of_method(0)[0])
    told = [(place, row) for place, row in enumerate(rows) if row.get("published_last") is not None]
    if told:
        points = [row["published_last"] for _, row in told]
        label = f"published, on {told[0][1]['on']}"
        where = [place for place, _ in told]
        axes.plot(points, where, linestyle="", marker="D", color=colours.of_method(1)[0], label=label)
    axes.set_yticks(range(len(rows)), [f"{row['source']}: {row['ablation']}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("Last")
    drawn: Axes = plain(axes)
    return drawn
