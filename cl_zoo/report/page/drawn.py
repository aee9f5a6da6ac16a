"""Which charts the page has: the final scores, forgetting over the stages and task by task, and what scores cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cl_zoo.report.estimates import Estimate, estimate
from cl_zoo.report.figures import frontier
from cl_zoo.report.matrices import curve, means
from cl_zoo.report.page.charts import Chart, Forest, Steps, Values, forest, lines, scatter
from cl_zoo.report.rows import SEQUENTIAL, Method, Row
from cl_zoo.report.similarity import pairs
from cl_zoo.report.table import Table

COSTS: dict[str, tuple[str, Callable[[Row], float | None]]] = {
    "trained": ("Parameters trained per task", lambda row: row.trained),
    "stored": ("Parameters stored for inference", lambda row: row.stored),
    "seconds": ("Seconds", lambda row: row.seconds),
}
"""Words of the axis and the value of a run."""


def last(table: Table, places: Mapping[str, int]) -> Forest | None:
    """The final mean score of every method, bounds too."""
    found = []
    for n, method in enumerate(table.methods):
        value = table.ranks.known(method, method.figure("last"), "last") if method.finished else None
        if value is not None:
            place = places.get(method.label, len(places) + n)
            found.append((method.label, place, method.protocol != SEQUENTIAL, value))
    about = "Mean of the final scores of all tasks, with its interval"
    return forest("Last", about, found) if found else None


def curves(table: Table, places: Mapping[str, int]) -> Chart | None:
    """The mean over the tasks learnt, after each task, a line for each method."""
    if len(table.tasks) < 2:
        return None
    values = [
        Values(
            method.label, places[method.label], [(n, e) for n, e in enumerate(curve(method)) if e is not None]
        )
        for method in _learners(table)
    ]
    values = [one for one in values if one.points]
    if not values:
        return None
    about = "Mean score on the tasks learnt so far, after each task"
    return lines("All tasks learnt so far", about, values, _stages(table), labelled=True)


def by_task(table: Table, places: Mapping[str, int]) -> list[Chart]:
    """For each task but the last its score since it was learnt, a line for each method."""
    found: dict[int, list[Values]] = {}
    for mean in means(table):
        if mean.protocol != SEQUENTIAL or mean.tasks != table.tasks:
            continue
        for place in range(len(mean.tasks) - 1):
            column = [(stage, row[place]) for stage, row in enumerate(mean.cells) if stage >= place]
            points = [(stage, cell) for stage, cell in column if cell is not None]
            if points:
                found.setdefault(place, []).append(Values(mean.label, places[mean.label], points))
    told = "Score on {} after each task since it was learnt"
    return [
        lines(table.tasks[place], told.format(table.tasks[place]), values, _stages(table), least=100.0)
        for place, values in sorted(found.items())
    ]


def costs(table: Table, places: Mapping[str, int]) -> list[Chart]:
    """Last against each cost."""
    made = []
    for words, pick in COSTS.values():
        values, points = [], []
        for method in _learners(table):
            price = method.over_seeds(pick)
            score = table.ranks.known(method, method.figure("last"), "last")
            if price is not None and score is not None:
                values.append(Values(method.label, places[method.label], [(price.mean, score)]))
                points.append((price.mean, score.mean))
        if values:
            about = f"Last against {words[0].lower()}{words[1:]}; the line joins the methods that none beats in both"
            made.append(scatter(words, about, values, words.lower(), frontier(points)))
    return made


def likeness(table: Table) -> list[Chart]:
    """How alike pairs of tasks are represented, layer by layer, where a probe measured it: of each method's first such run."""
    made = []
    for method in table.methods:
        found = next((found for row in method.finished if (found := pairs(row))), [])
        layers = sorted({layer for pair in found for layer in pair.layers})
        values = [
            Values(
                pair.name,
                n,
                [(layers.index(layer), Estimate(pair.layers[layer], 1)) for layer in sorted(pair.layers)],
            )
            for n, pair in enumerate(found)
        ]
        chance = [pair.shuffled for pair in found if pair.shuffled]
        if chance:
            means_of = {
                layer: estimate([one[layer] for one in chance])
                for layer in layers
                if all(layer in one for one in chance)
            }
            points = [(layers.index(layer), Estimate(value.mean, 1)) for layer, value in means_of.items()]
            values.append(Values("by chance", len(found), points))
        if values:
            steps = Steps("layer", [f"layer {layer}" for layer in layers], [str(layer) for layer in layers])
            about = f"CKA of pairs of tasks by layer, {method.label}"
            made.append(
                lines(method.label, about, values, steps, labelled=True, owner=method.label, least=0.1)
            )
    return made


def _stages(table: Table) -> Steps:
    return Steps("tasks learnt", table.tasks, [str(n + 1) for n in range(len(table.tasks))])


def _learners(table: Table) -> list[Method]:
    return [one for one in table.methods if one.protocol == SEQUENTIAL and one.finished]
