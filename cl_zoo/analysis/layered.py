"""Layers: in which of them does a task need its own LoRA, and where is the sum of all tasks' as good?

HiDe-LLaVA keeps a task's own LoRA in the top layer and adds the others up below, after a figure that compares this with four other ways of
answering (its Fig. 2, https://arxiv.org/abs/2503.12941). Here the comparison is made for every group of layers, so that it shows as well whether the
top one is special:

    own        each task's own LoRA in all layers, (i) of the figure; the base without any beside it
    merged     the sum of all tasks' LoRAs, times a factor, in all layers, (iii)
    own here   the own LoRA in one group of layers, the sum in all others; with the top layer alone that is (ii)
    foreign    another task's LoRA in that group, the sum in all others, (iv)
    sequence   one LoRA that learnt the tasks one after the other, (v)
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cl_zoo.analysis.apart import Apart, Asked, Choose, everywhere, kept, nobody, tasks_of
from cl_zoo.analysis.merging import name_of
from cl_zoo.analysis.outcome import Outcome
from cl_zoo.errors import OptionError, printable
from cl_zoo.report.figures import new_axes, plain
from cl_zoo.report.sheets import Entry, Line, Section, Sheet, as_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cl_zoo.tasks import TaskData

Rows = Sequence[Mapping[str, Any]]

SEQUENCE = "sequence"
"""The expert that learnt all tasks."""

GROUPS = 8
"""Groups of layers, where there are more layers than that and nobody says otherwise."""


def layered(
    method: str,
    *,
    groups: int | None = None,
    scale: float = 1.0,
    questions: int | None = None,
    watch: Callable[[dict[str, Any]], None] = lambda event: None,
    **settings: Any,
) -> Outcome:
    """Scores with own, merged and foreign LoRAs by group of layers.

    Args:
        method: of the runs that learn each task alone and all in sequence, as `cl_zoo.run` takes it.
        groups: how many groups of neighbouring layers, as equal as may be; default: each layer its own, at most 8 groups.
        scale: factor on the sum of all tasks' LoRAs.
        questions: test questions of each task, `None` for all.
        watch: told what the runs do.
        settings: as those of `cl_zoo.run`; `order` says which tasks, and in which order the sequence learns them.

    Returns:
        A row for each task, way of answering and group (`low` and `high`, the layers counted from the bottom; `None` for all layers) with `score` and
        `kept`, percent of the task's gain; `None` where the task alone gains less than 10 points.

    Raises:
        OptionError: there are fewer layers than groups.
        ClZooError: a run cannot be made as described, or what it learns is no LoRA.
    """
    names = tasks_of(settings.get("benchmark", "mini"), settings.get("data"), settings.get("order"))
    orders = {**{name_of(n): [name] for n, name in enumerate(names)}, SEQUENCE: names}
    apart = Apart(method, orders, questions=questions, watch=watch, **settings)
    parts = grouped(apart.bank.depth + 1, groups)
    asked = questions_to(apart.tasks, parts, scale)
    rows = as_rows(apart.scores(asked), names, parts)
    return Outcome(
        "layers", _sentence(rows, parts), rows, lambda: _draw(rows, parts), _text(rows, parts, names)
    )


def grouped(layers: int, groups: int | None = None) -> list[range]:
    """Neighbouring layers in groups as equal as may be, the bottom first.

    Raises:
        OptionError: there are fewer layers than groups.
    """
    count = min(layers, GROUPS) if groups is None else groups
    if not 1 <= count <= layers:
        raise OptionError(f"--groups {count}: the model has {layers} layers; choose 1 to {layers}")
    edges = [layers * n // count for n in range(count + 1)]
    return [range(low, high) for low, high in itertools.pairwise(edges)]


def questions_to(tasks: Sequence[TaskData], parts: Sequence[range], scale: float) -> list[Asked]:
    """Who is asked what, see the module."""
    everyone = [name_of(n) for n in range(len(tasks))]
    asked = []
    for n, task in enumerate(tasks):
        own, foreign = name_of(n), name_of((n + 1) % len(tasks))
        asked += [
            Asked(("base", n), nobody, task),
            Asked(("own", n), everywhere([own]), task),
            Asked(("merged", n), everywhere(everyone, scale), task),
            Asked((SEQUENCE, n), everywhere([SEQUENCE]), task),
        ]
        for place, part in enumerate(parts):
            asked.append(Asked(("own here", n, place), within(part, own, everyone, scale), task))
            asked.append(Asked(("foreign", n, place), within(part, foreign, everyone, scale), task))
    return asked


def within(part: range, name: str, everyone: Sequence[str], scale: float) -> Choose:
    """One expert in some layers, and the sum of all, times a factor, in the others."""
    return lambda layer: ([name], 1.0) if layer.depth in part else (everyone, scale)


def as_rows(
    scores: Mapping[Hashable, float], names: Sequence[str], parts: Sequence[range]
) -> list[dict[str, Any]]:
    """The rows of `layered`, from the scores of `questions_to`."""
    rows = []
    for n, name in enumerate(names):
        base, own = scores["base", n], scores["own", n]
        whole = [(way, None, scores[way, n]) for way in ("base", "own", "merged", SEQUENCE)]
        some = [
            (way, part, scores[way, n, m]) for m, part in enumerate(parts) for way in ("own here", "foreign")
        ]
        for way, part, score in [*whole, *some]:
            where = {"low": None, "high": None} if part is None else {"low": part[0], "high": part[-1]}
            share = None if way == "base" else kept(score, base, own)
            rows.append({"task": name, "way": way, **where, "score": score, "kept": share})
    return rows


def mean(rows: Rows, way: str, part: range | None = None) -> float:
    """The mean score over the tasks of a way of answering."""
    low = None if part is None else part[0]
    return statistics.fmean(row["score"] for row in rows if row["way"] == way and row["low"] == low)


def _called(part: range) -> str:
    return f"layer {part[0]}" if len(part) == 1 else f"layers {part[0]} to {part[-1]}"


def _sentence(rows: Rows, parts: Sequence[range]) -> str:
    whole = {way: mean(rows, way) for way in ("base", "own", "merged", SEQUENCE)}
    here = [mean(rows, "own here", part) for part in parts]
    best, top = max(range(len(parts)), key=lambda place: here[place]), parts[-1]
    count = len({row["task"] for row in rows})
    told = f"The mean over {count} tasks is {whole['own']:.1f} with own LoRAs, {whole['merged']:.1f} with all added up"
    told += f", {whole[SEQUENCE]:.1f} learnt in sequence and {whole['base']:.1f} with none."
    told += f" Own ones in {_called(top)}, the top, and the sum below give {here[-1]:.1f}, foreign ones there {mean(rows, 'foreign', top):.1f}"
    return told + f"; the best place for own ones alone is {_called(parts[best])} ({here[best]:.1f})."


def _text(rows: Rows, parts: Sequence[range], names: Sequence[str]) -> str:
    """Scores by way of answering and task."""
    lines = []
    ways: list[tuple[str, range | None]] = [("own", None), ("merged", None), (SEQUENCE, None), ("base", None)]
    ways += [(way, part) for part in reversed(parts) for way in ("own here", "foreign")]
    for way, part in ways:
        low = None if part is None else part[0]
        scores = [
            next(r["score"] for r in rows if (r["task"], r["way"], r["low"]) == (name, way, low))
            for name in names
        ]
        label = way if part is None else f"{way.removesuffix(' here')} in {_called(part)}"
        values = [f"{score:.1f}" for score in [*scores, mean(rows, way, part)]]
        lines.append(Line(label, tuple(map(Entry, values))))
    return as_text(Sheet((*map(printable, names), "mean"), (Section("", tuple(lines)),)))


def _draw(rows: Rows, parts: Sequence[range]) -> Axes:
    """Means over the tasks: own and foreign LoRAs by group of layers, and lines of what answers in all layers alike."""
    axes = new_axes(2.4 + 0.8 * len(parts), 4.2)
    places = range(len(parts))
    for way, colour, marker in (("own here", "#0072b2", "o"), ("foreign", "#d55e00", "s")):
        axes.plot(
            places,
            [mean(rows, way, part) for part in parts],
            color=colour,
            marker=marker,
            label=f"{way}, sum elsewhere",
        )
    for way, style in (("own", "-"), ("merged", "--"), (SEQUENCE, ":"), ("base", "-.")):
        axes.axhline(mean(rows, way), color="0.4", linestyle=style, linewidth=1, label=f"{way} in all layers")
    axes.set_xticks(places, [_called(part).partition(" ")[2] for part in parts])
    axes.set_xlabel("Layers, from the bottom")
    axes.set_ylabel("Mean score of the tasks")
    return plain(axes)
