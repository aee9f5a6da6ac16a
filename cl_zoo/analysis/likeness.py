"""Likeness: how alike are tasks represented, layer by layer, in a backbone that has learnt none of them, or along finished runs?

HiDe-LLaVA decides from such a figure which layers hold what tasks have in common and which are a task's own (its Fig. 1,
https://arxiv.org/abs/2503.12941). The measure is a probe's, whichever is named: it is called after each task as in a run, only that the
model stays as it was loaded, so what differs between two tasks is what the model is shown and not what it has learnt.

Samples of two tasks come in no pairs, so a likeness says something only beside what shuffled pairs give; a probe measures that as well, and both
are told together.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_zoo.analysis.outcome import Outcome
from cl_zoo.errors import OptionError, RunError, printable
from cl_zoo.names import Choice
from cl_zoo.report.figures import new_axes, plain
from cl_zoo.report.sheets import UNKNOWN, Entry, Line, Section, Sheet, as_text
from cl_zoo.report.similarity import Pair, pairs_of
from cl_zoo.runs.finding import find_runs
from cl_zoo.runs.job import Job

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]


def of_backbone(
    probe: Choice, *, watch: Callable[[str], None] = lambda task: None, **settings: Any
) -> Outcome:
    """What a probe measures between the tasks of a benchmark on an untouched backbone.

    Args:
        probe: a plugin that measures after each task, with its options.
        watch: told the name of each task when it is looked at.
        settings: fields of `Job`: benchmark, backbone, features, data, order, recipe, limit, device, cache.

    Returns:
        A row for each pair of tasks and layer: `likeness`, and `shuffled` of pairs that were shuffled, `None` where the probe has no such.

    Raises:
        ClZooError: something is unknown, or the data or the backbone cannot be read.
        OptionError: the probe measures nothing by layer and pair of tasks.
    """
    import torch

    from cl_zoo.engine.lessons import lessons_of
    from cl_zoo.engine.sound import numbers
    from cl_zoo.engine.streams import TaskBatches
    from cl_zoo.processes import World
    from cl_zoo.runs.prepared import prepare

    prepared = prepare(Job((Choice(probe.name, probe.options, probe=True),), **settings))
    world = World(prepared.job.device)
    if world.device.type == "cpu":
        torch.set_num_threads(1)
    backbone, plugins, recipe = prepared.load_backbone(world.device), prepared.plugins, prepared.recipe
    measured = []
    for lesson in lessons_of("sequential", prepared.stream):
        watch(lesson.task.name)
        batches = TaskBatches(backbone, lesson.train, recipe)
        with torch.no_grad(), world.autocast(recipe.precision):
            found = plugins.after_task(backbone.model, lesson.task, batches, parts={}, backbone=backbone)
        measured.append(numbers("after_task", found))
    rows = _rows({"model": backbone.name}, pairs_of(measured))
    if not rows:
        raise OptionError(
            f"{probe.label} measured nothing by layer and pair of tasks of {len(measured)} tasks; name another probe, or at least two tasks"
        )
    return _outcome(rows)


def of_runs(places: Iterable[str | Path]) -> Outcome:
    """What probes measured between tasks along finished runs, each task in the model that had just learnt it.

    Raises:
        OptionError: no run is there.
        RunError: none of them measured by layer and pair of tasks.
    """
    rows = [
        row
        for one in find_runs(places).results
        for row in _rows(
            {"model": one.label, "run": one.manifest["id"], "seed": one.seed},
            pairs_of(one.manifest.get("measured", ())),
        )
    ]
    if not rows:
        raise RunError(
            "no run here measured likeness by layer and pair of tasks; run it with a --probe that does"
        )
    return _outcome(rows)


def by_layer(rows: Rows, name: str = "likeness") -> dict[int, float]:
    """The mean over pairs (and runs) of `likeness` or `shuffled`, by layer; layers that do not have it are left out."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row[name] is not None:
            found.setdefault(row["layer"], []).append(row[name])
    return {layer: statistics.fmean(found[layer]) for layer in sorted(found)}


def _rows(about: Mapping[str, Any], found: Sequence[Pair]) -> list[dict[str, Any]]:
    return [
        {**about, "pair": pair.name, "layer": layer, "likeness": value, "shuffled": pair.shuffled.get(layer)}
        for pair in found
        for layer, value in sorted(pair.layers.items())
    ]


def _outcome(rows: Rows) -> Outcome:
    return Outcome("likeness", _sentence(rows), rows, lambda: _draw(rows), _text(rows))


def _sentence(rows: Rows) -> str:
    means, chance = by_layer(rows), by_layer(rows, "shuffled")
    low, high = (pick(means, key=lambda layer: means[layer]) for pick in (min, max))
    count = len({row["pair"] for row in rows})

    def told(layer: int) -> str:
        beside = f", {chance[layer]:.3f} of shuffled samples" if layer in chance else ""
        return f"layer {layer} ({means[layer]:.3f}{beside})"

    pairs = f"{count} pairs of tasks are" if count > 1 else "one pair of tasks is"
    sentence = f"Of {len(means)} layers, counted from the bottom, {pairs} least alike in {told(low)} and most in {told(high)}."
    if not chance:
        return sentence
    above = {layer: means[layer] - value for layer, value in chance.items()}
    far = max(above, key=lambda layer: abs(above[layer]))
    return f"{sentence} The farthest from shuffled samples is layer {far}, by {above[far]:+.3f}."


def _text(rows: Rows) -> str:
    """By layer: mean, least and most of the pairs, and what shuffled samples give."""
    means, chance = by_layer(rows), by_layer(rows, "shuffled")
    lines = []
    for layer in reversed(means):
        values = [(row["likeness"], row["pair"]) for row in rows if row["layer"] == layer]
        least, most = (f"{value:.3f} {printable(pair)}" for value, pair in (min(values), max(values)))
        shuffled = f"{chance[layer]:.3f}" if layer in chance else UNKNOWN
        lines.append(
            Line(f"layer {layer}", tuple(map(Entry, (f"{means[layer]:.3f}", shuffled, least, most))))
        )
    return as_text(Sheet(("mean", "shuffled", "least alike", "most alike"), (Section("", tuple(lines)),)))


def _draw(rows: Rows) -> Axes:
    """A faint line for each pair, the mean over them, and what shuffled samples give."""
    axes = new_axes(6.4, 4.2)
    lines: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row.get("run"), row["pair"]), []).append(row)
    for line in lines.values():
        layers = sorted(line, key=lambda row: int(row["layer"]))
        axes.plot(
            [row["layer"] for row in layers], [row["likeness"] for row in layers], color="0.75", linewidth=0.8
        )
    for name, style, label in (
        ("likeness", "-", "mean of the pairs"),
        ("shuffled", "--", "shuffled samples"),
    ):
        means = by_layer(rows, name)
        if means:
            axes.plot(
                list(means), list(means.values()), color="#0072b2", linestyle=style, linewidth=2, label=label
            )
    axes.set_xlabel("Layer, from the bottom")
    axes.set_ylabel("Likeness of two tasks")
    return plain(axes)
