"""From comparisons to what the template shows: texts, numbers to sort by, colours and charts. Nothing here is HTML."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cl_zoo.errors import printable
from cl_zoo.report import colours
from cl_zoo.report.estimates import Estimate, estimate
from cl_zoo.report.matrices import Mean, means
from cl_zoo.report.page import drawn
from cl_zoo.report.page.content import Run, Told
from cl_zoo.report.rows import SEQUENTIAL, Method, Row
from cl_zoo.report.sheets import UNKNOWN, Rank, distinct, flops, measure, memory, parameters, seconds
from cl_zoo.report.table import FIGURES, LEGEND, STRICT, Table

MEASURED = 200
"""Measurements of a run that the page lists; all of them stand in `--json`."""

PERCENT = ("avg", "last", "immediate", "maa")
"""Figures that a bar behind the number shows, since they lie between 0 and 100."""


@dataclass(frozen=True)
class Cell:
    """One value of a table.

    Attributes:
        text: the number as it is read.
        sort: what it is sorted by; `None` comes last.
        interval: its 95 % interval in words; empty where nothing is known but the value.
        bar: its share of 100, for a bar behind it; `None` for none.
        rank: `best`, `second` or nothing.
    """

    text: str
    sort: float | str | None = None
    interval: str = ""
    bar: float | None = None
    rank: Rank = ""


@dataclass(frozen=True)
class Line:
    """One method in a table."""

    label: str
    bound: bool
    cells: tuple[Cell, ...]
    colour: str = ""


@dataclass(frozen=True)
class Sorted:
    """A table that can be sorted."""

    name: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]


def section(told: Told, number: int) -> dict[str, Any]:
    """All that the template needs for one comparison."""
    table = told.table
    places = {method.label: place for place, method in enumerate(_learners(table))}
    matrices = list(means(table))
    orders = dict.fromkeys(one.tasks for one in matrices if one.protocol == SEQUENTIAL)
    several = len(orders) > 1
    heat = [_heat(one, several) for one in matrices]
    return {
        "key": f"c{number}",
        "title": told.title,
        "name": told.name,
        "tasks": table.tasks,
        "orders": list(orders),
        "over": "seeds and orders" if several else "the seeds",
        "tables": [_summary(told, places), *_by_task(table, places)],
        "legend": (STRICT if table.scoring == "strict" else "") + LEGEND,
        "strict": table.scoring == "strict",
        "forest": drawn.last(table, places),
        "curves": drawn.curves(table, places),
        "tasks_curves": drawn.by_task(table, places),
        "costs": drawn.costs(table, places),
        "likeness": drawn.likeness(table),
        "methods": [(label, *colours.of_method(place)) for label, place in places.items()],
        "heat": heat,
        "scale": [colours.as_hex(colours.of_score(score)) for score in range(0, 101, 5)],
        "gallery": told.gallery,
        "asides": told.asides,
        "budget": _budget(told),
        "probes": list(_probes(told)),
        "runs": [_run(run) for run in told.runs],
        "failed": [(m.label, row.seed, row.error) for m in table.methods for row in m.failed],
        "seeds": sorted({row.seed for row in table.rows}),
        "count": len(told.runs),
    }


def interval(value: Estimate | None) -> str:
    """The 95 % interval of a value: `[67.9, 86.5]`; empty where there is none."""
    if value is None or value.low is None or value.high is None:
        return ""
    return f"[{value.low:.1f}, {value.high:.1f}]"


def _learners(table: Table) -> list[Method]:
    return [one for one in table.methods if one.protocol == SEQUENTIAL]


def _summary(told: Told, places: Mapping[str, int]) -> Sorted:
    table = told.table
    ranks = _ranks(table.sheets[-1].columns, table.sheets[-1].sections)
    lines = []
    for method in table.methods:
        cells = [
            _score(
                table.ranks.known(method, method.figure(name), name),
                ranks.get(("", heading, method.label), ""),
                name in PERCENT,
            )
            for name, heading in FIGURES.items()
        ]
        costs: list[tuple[Estimate | None, Callable[[Estimate | None], str]]] = [
            (method.over_seeds(lambda row: row.trained), parameters),
            (method.over_seeds(lambda row: row.stored), parameters),
            (_ledger(told, method.label, lambda one: sum(t.get("flops", 0.0) for t in one["tasks"])), flops),
            (method.over_seeds(lambda row: row.seconds), seconds),
            (_ledger(told, method.label, lambda one: one.get("peak_memory_mb")), memory),
        ]
        cells += [Cell(words(value), None if value is None else value.mean) for value, words in costs]
        cells.append(Cell(str(len(method.finished)), len(method.finished)))
        cells.append(Cell(method.notes, method.notes))
        lines.append(_line(method, cells, places))
    columns = (*FIGURES.values(), "Trained", "Stored", "FLOPs", "Seconds", "Memory", "Seeds", "Notes")
    return Sorted("Summary", columns, tuple(lines))


def _by_task(table: Table, places: Mapping[str, int]) -> Iterator[Sorted]:
    """Last and Avg of each task."""
    ranks = _ranks(table.sheets[0].columns, table.sheets[0].sections)
    names = (*distinct([printable(task) for task in table.tasks]), "Mean")
    for name, per_task, mean in (("Last", "last_i", "last"), ("Avg", "avg_i", "avg")):
        lines = []
        for method in table.methods:
            if not method.finished or (name == "Avg" and method.protocol != SEQUENTIAL):
                continue
            block = name if method.protocol == SEQUENTIAL else "Bounds"
            values = [
                table.ranks.known(method, method.per_task(per_task, i), f"{mean}:{task}")  # type: ignore[arg-type]
                for i, task in enumerate(table.tasks)
            ]
            values.append(table.ranks.known(method, method.figure(mean), mean))
            cells = [
                _score(value, ranks.get((block, column, method.label), ""), True)
                for value, column in zip(values, names, strict=True)
            ]
            lines.append(_line(method, cells, places))
        yield Sorted(f"{name} by task", names, tuple(lines))


def _ranks(columns: Sequence[str], sections: Sequence[Any]) -> dict[tuple[str, str, str], Rank]:
    """Ranks as the table has them, by block, column and label."""
    return {
        (part.title.removesuffix(", strict").removesuffix("strict"), column, line.label): entry.rank
        for part in sections
        for line in part.lines
        for column, entry in zip(columns, line.entries, strict=True)
    }


def _line(method: Method, cells: Sequence[Cell], places: Mapping[str, int]) -> Line:
    place = places.get(method.label)
    colour = "" if place is None else colours.of_method(place)[0]
    return Line(method.label, method.protocol != SEQUENTIAL, tuple(cells), colour)


def _score(value: Estimate | None, rank: Rank, bar: bool) -> Cell:
    if value is None:
        return Cell(UNKNOWN)
    mean = round(value.mean, 2) + 0.0
    share = min(max(mean, 0.0), 100.0) if bar else None
    return Cell(f"{mean:.2f}", value.mean, interval(value), share, rank)


def _ledger(told: Told, label: str, pick: Callable[[Mapping[str, Any]], float | None]) -> Estimate | None:
    """A cost that only the ledgers have, over the runs of a label."""
    values = [pick(run.manifest["ledger"]) for run in told.runs if run.label == label]
    known = [value for value in values if value is not None]
    return estimate(known) if known and len(known) == len(values) else None


def _heat(one: Mean, several: bool) -> dict[str, Any]:
    """A matrix with the colours of its cells, and its order where there are several."""
    lines = []
    for stage, cells in zip(one.stages, one.cells, strict=True):
        line: list[tuple[str, str, str, str] | None] = []
        for cell in cells:
            if cell is None:
                line.append(None)
                continue
            ground = colours.of_score(cell.mean)
            ink = colours.as_hex(colours.on(ground))
            text = "100" if cell.mean >= 99.95 else f"{cell.mean:.1f}"
            line.append((text, colours.as_hex(ground), ink, f"{cell.mean:.2f} {interval(cell)}".strip()))
        lines.append((stage.removeprefix("after "), line))
    about = {"label": one.label, "tasks": one.tasks, "order": " → ".join(one.tasks) if several else ""}
    return {**about, "lines": lines, "stream": one.protocol == SEQUENTIAL}


def _budget(told: Told) -> dict[str, Any]:
    """What each method was given and used in all tasks, and what a reader has to know of it."""
    names = {"samples": "Samples", "steps": "Steps", "tokens": "Tokens", "flops": "FLOPs"}
    lines = []
    for method in told.table.methods:
        ledgers = [run.manifest["ledger"] for run in told.runs if run.label == method.label]
        cells = []
        for name in names:
            sums = [sum(task.get(name, 0) for task in ledger["tasks"]) for ledger in ledgers]
            value = estimate(sums) if sums else None
            text = UNKNOWN if value is None else flops(value) if name == "flops" else f"{value.mean:,.0f}"
            cells.append(Cell(text, None if value is None else value.mean))
        for pick in ((lambda row: row.trained), (lambda row: row.stored)):
            price = method.over_seeds(pick)
            cells.append(
                Cell(
                    UNKNOWN if price is None else f"{price.mean:,.0f}", None if price is None else price.mean
                )
            )
        stamps = list(dict.fromkeys(stamp for row in method.rows for stamp in row.stamps))
        lines.append({"label": method.label, "cells": cells, "stamps": stamps})
    return {"columns": [*names.values(), "Trained per task", "Stored"], "lines": lines}


def _probes(told: Told) -> Iterator[dict[str, Any]]:
    """What was measured after each task, of the first run of each label that measured anything."""
    for method in told.table.methods:
        row = next((row for row in method.finished if any(row.measured)), None)
        if row is not None:
            yield _measured(row)


def _measured(row: Row) -> dict[str, Any]:
    names = list(dict.fromkeys(name for one in row.measured for name in one))
    lines = [
        (name, [measure(Estimate(one[name], 1)) if name in one else "" for one in row.measured])
        for name in names[:MEASURED]
    ]
    return {
        "label": row.label,
        "seed": row.seed,
        "tasks": row.tasks,
        "lines": lines,
        "more": max(len(names) - MEASURED, 0),
    }


def _run(run: Run) -> dict[str, Any]:
    """A run with its manifest as text; the list of its files and the cells' scores stand in the matrices and on disk."""
    kept = {key: value for key, value in run.manifest.items() if key not in ("files", "scores", "seal")}
    about = run.manifest.get("environment", {})
    return {
        "id": run.manifest["id"],
        "label": run.label,
        "seed": run.seed,
        "finished": about.get("finished") or "",
        "machine": about.get("accelerator") or about.get("machine") or "",
        "manifest": json.dumps(kept, indent=1, ensure_ascii=False),
    }
