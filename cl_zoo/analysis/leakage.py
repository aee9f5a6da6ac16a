"""How much of a benchmark a model knew before it learnt it: zero-shot against multi-task scores, task by task.

A benchmark whose tasks the untouched model answers nearly as well as one trained on all of them has little to learn, and so little
to forget. The HiDe-LLaVA paper reads this gap as information leakage: 43.10 points on UCIT, 13.19 on CoIN (Section 5.2, Tables 1 and
2). The gap alone does not say why: the data may have been among the model's own, or the task may be easy; it is one of a model and a
benchmark together. What stands in a given mix is `cl_zoo.analysis.overlap`'s to find.

An untouched model is a run of protocol `none`, a model trained on all tasks at once one of protocol `joint`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cl_zoo.analysis.columns import columns
from cl_zoo.analysis.outcome import Outcome
from cl_zoo.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cl_zoo.published import Publication
    from cl_zoo.report.rows import Method
    from cl_zoo.runs.comparison import Comparison

UNTOUCHED, JOINT = "none", "joint"
HEADS = {
    "benchmark": "benchmark",
    "task": "task",
    "zero_shot": "zero-shot",
    "multi_task": "multi-task",
    "gap": "gap",
}


@dataclass(frozen=True)
class Gap:
    """A task of a benchmark before and after learning.

    Attributes:
        benchmark: its name.
        task: name, or `MEAN` for the mean over all of them.
        zero_shot: score of the untouched model.
        multi_task: score of a model trained on all tasks at once; `None` where there is no such run.
        source: whose figures: `Table 1 of …`, or the labels of the runs.
    """

    benchmark: str
    task: str
    zero_shot: float
    multi_task: float | None
    source: str

    @property
    def gap(self) -> float | None:
        """Multi-task minus zero-shot."""
        return None if self.multi_task is None else self.multi_task - self.zero_shot

    def row(self) -> dict[str, Any]:
        """For a table."""
        return {**asdict(self), "gap": self.gap}


MEAN = "mean"


def leakage(gaps: Sequence[Gap]) -> Outcome:
    """The gaps of one or several benchmarks as an outcome.

    Raises:
        OptionError: none of them has a multi-task score.
    """
    known = [one for one in gaps if one.gap is not None]
    if not known:
        raise OptionError(
            "no benchmark has both an untouched and a jointly trained model here; add runs of a method of protocol "
            f"{UNTOUCHED} and of one of protocol {JOINT} on the same tasks"
        )
    rows = [one.row() for one in known]
    parts = [_said(one, known) for one in known if one.task == MEAN]
    text = columns(rows, {**HEADS, "source": "source"}, signed=["gap"])
    return Outcome("leakage", "; ".join(parts) + ".", rows, lambda: draw(known), text)


def gaps_of(comparisons: Sequence[Comparison]) -> list[Gap]:
    """Of finished runs, every jointly trained method against the untouched model; the mean over seeds.

    A benchmark without a jointly trained method has zero-shot scores alone; one without an untouched model has nothing here.
    """
    return [gap for one in comparisons for gap in _gaps(one)]


def published_gaps() -> list[Gap]:
    """Of published tables, those that have a row of both; a mean is the one that is printed, where it is right, and else that of the cells."""
    from cl_zoo.published import published, read_published

    return [gap for name in published() for gap in _of_table(read_published(name))]


def _of_table(table: Publication) -> Iterator[Gap]:
    rows = {row.protocol: row for row in table.rows if row.protocol != "sequential" and row.cells}
    if UNTOUCHED not in rows or JOINT not in rows:
        return
    table_number = f", table {table.source['table']}" if "table" in table.source else ""
    source = f"{table.source.get('paper') or table.source['repository']}{table_number}, {table.backbone}"
    before, after = rows[UNTOUCHED], rows[JOINT]
    zero, multi = table.scores(before), table.scores(after)
    gaps = [
        Gap(table.benchmark, task, score, multi[task], source)
        for task, score in zero.items()
        if task in multi
    ]
    yield from gaps
    printed = before.to_reckon_with, after.to_reckon_with
    of_cells = fmean(one.zero_shot for one in gaps), fmean(multi[one.task] for one in gaps)
    first, last = (cells if mean is None else mean for mean, cells in zip(printed, of_cells, strict=True))
    yield Gap(table.benchmark, MEAN, first, last, source)


def _gaps(comparison: Comparison) -> Iterator[Gap]:
    table = comparison.table()
    untouched = [one for one in table.methods if one.protocol == UNTOUCHED and one.finished]
    joint: list[Method | None] = [one for one in table.methods if one.protocol == JOINT and one.finished]
    name = str(
        next(one for one in comparison.results if one.error is None).manifest["identity"]["benchmark"]["name"]
    )
    for zero in untouched:
        for multi in joint or [None]:
            source = " and ".join(one.label for one in (zero, multi) if one is not None)
            for place, task in enumerate(table.tasks):
                before = zero.per_task("last_i", place)
                after = multi.per_task("last_i", place) if multi else None
                if before is not None:
                    yield Gap(name, task, before.mean, after.mean if after else None, source)
            whole, learnt = zero.figure("last"), multi.figure("last") if multi else None
            if whole is not None:
                yield Gap(name, MEAN, whole.mean, learnt.mean if learnt else None, source)


def called(one: Gap, gaps: Sequence[Gap]) -> str:
    """The benchmark of a gap for a sentence, with the source where it is there from several."""
    sources = {other.source for other in gaps if other.benchmark == one.benchmark}
    return one.benchmark if len(sources) == 1 else f"{one.benchmark} ({one.source})"


def _said(mean: Gap, gaps: Sequence[Gap]) -> str:
    """`ucit: 43.10 points from zero-shot to multi-task (31.68 to 74.78), by task from 15.57 (Flickr30k) to 74.36 (ImageNet-R)`."""
    own = [one for one in gaps if (one.benchmark, one.source) == (mean.benchmark, mean.source)]
    tasks = [(one.gap, one.task) for one in own if one.task != MEAN and one.gap is not None]
    (least, narrow), (most, wide) = min(tasks), max(tasks)
    worse = [task for gap, task in tasks if gap < 0]
    after = f"; learnt worse than not at all: {', '.join(worse)}" if worse else ""
    return (
        f"{called(mean, gaps)}: {mean.gap:.2f} points from zero-shot to multi-task ({mean.zero_shot:.2f} to {mean.multi_task:.2f}), "
        f"by task from {least:.2f} ({narrow}) to {most:.2f} ({wide}){after}"
    )


def draw(gaps: Sequence[Gap], faint: Sequence[Gap] = (), bound: float | None = None) -> Axes:
    """A line for each task, from its zero-shot to its multi-task score, under a heading for each source.

    Args:
        faint: tasks that are drawn faintly.
        bound: a zero-shot score that a line marks.
    """
    from cl_zoo.report import colours
    from cl_zoo.report.figures import new_axes, plain

    blocks = list(dict.fromkeys((one.benchmark, one.source) for one in gaps))
    axes = new_axes(6.4, 1.0 + 0.26 * (len(gaps) + len(blocks)))
    blue, orange = colours.of_method(0)[0], colours.of_method(1)[0]
    places = [n + 1 + blocks.index((one.benchmark, one.source)) for n, one in enumerate(gaps)]
    for heading, block in enumerate(blocks):
        first = next(n for n, one in enumerate(gaps) if (one.benchmark, one.source) == block)
        axes.text(0, first + heading, f"{block[0]}: {block[1]}", fontsize=8, va="center", style="italic")
    for place, one in zip(places, gaps, strict=True):
        alpha = 0.25 if one in faint else 1.0
        if one.multi_task is not None:
            axes.hlines(place, one.zero_shot, one.multi_task, color="0.6", linewidth=2, alpha=alpha)
            axes.plot(one.multi_task, place, linestyle="", marker="D", color=orange, alpha=alpha)
        axes.plot(one.zero_shot, place, linestyle="", marker="o", color=blue, alpha=alpha)
    axes.plot([], [], linestyle="", marker="o", color=blue, label="zero-shot")
    if any(one.multi_task is not None for one in gaps):
        axes.plot([], [], linestyle="", marker="D", color=orange, label="multi-task")
    if bound is not None:
        axes.axvline(bound, color="0.5", linewidth=1, linestyle="--", label=f"zero-shot {bound:g}")
    axes.set_yticks(places, [one.task for one in gaps], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("Score")
    drawn: Axes = plain(axes)
    return drawn
