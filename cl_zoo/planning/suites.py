"""What the methods of a suite spend, counted on shapes alone, and where their budgets are not equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cl_zoo.names import stack
from cl_zoo.planning.forecast.workload import planned
from cl_zoo.planning.sizes import shapes
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.recipe.suite import Suite
from cl_zoo.report.sheets import NOTES, UNKNOWN, Entry, Line, Section, Sheet, as_text
from cl_zoo.runs.equal import HELD, Difference, Spent, counted, differences


def spent_by(suite: Suite, backbone: str, benchmark: str | None = None) -> dict[str, Spent]:
    """The budget of every method of a suite that learns something.

    Args:
        backbone: a published model, or a folder with a `config.json`.
        benchmark: in place of the suite's; the sizes of its tasks are its description's where its data are not here.

    Raises:
        ClZooError: a name or a recipe's key is unknown, or a hook cannot be counted without values.
    """
    found, _ = planned(benchmark or suite.benchmark, None, None)
    spent = {}
    for method in suite.methods:
        recipe = build_recipe(found.recipe, suite.of(method))
        one = counted(stack(method, (), (), {}), recipe, found.stream(), shapes(backbone), all_tasks=True)
        if one is not None:
            spent[method] = one
    return spent


def as_sheet(spent: Mapping[str, Spent], holds: Mapping[str, float] = HELD) -> str:
    """A line for each method: samples and steps in all, what trains in a task, what is stored, and how it differs from the others."""
    apart = differences(spent, holds)
    columns = ("Samples", "Steps", "Trained", "Stored", NOTES)
    lines = []
    for method, one in spent.items():
        notes = "; ".join(difference.what for difference in apart.get(method, ())) or UNKNOWN
        cells = (*(f"{n:,}" for n in (sum(one.samples), sum(one.steps), one.trained, one.stored)), notes)
        lines.append(Line(method, tuple(map(Entry, cells))))
    return as_text(Sheet(columns, (Section("", tuple(lines)),)))


def to_json(spent: Mapping[str, Spent], holds: Mapping[str, float] = HELD) -> list[dict[str, Any]]:
    """The same as plain data."""
    apart: Mapping[str, list[Difference]] = differences(spent, holds)
    return [
        {
            "method": method,
            "samples": list(one.samples),
            "steps": list(one.steps),
            "trained": one.trained,
            "stored": one.stored,
            "budget": one.budget,
            "unequal": [difference.what for difference in apart.get(method, ()) if difference.more],
            "less": [difference.what for difference in apart.get(method, ()) if not difference.more],
        }
        for method, one in spent.items()
    ]
