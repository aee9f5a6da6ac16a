"""What a model keeps of what it never learnt here: scores on a held-out general set before and after a stream of tasks.

The untouched backbone of a finished run and the run's own model answer the same questions, in one precision and template, and are scored
by the same rules. Nothing is learnt, and the run stays as it is. Any benchmark serves as the set, the tasks of the run's own benchmark
that its stream leaves out as well. The sentence names tasks that changed more than chance, at 5 % over all of them (Holm's correction).
"""

from __future__ import annotations

import gc
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Any

from cl_zoo.analysis.columns import columns
from cl_zoo.analysis.outcome import Outcome
from cl_zoo.data.benchmarks import load_benchmark
from cl_zoo.engine.streams import expected
from cl_zoo.errors import OptionError, nearest
from cl_zoo.runs.manifest import scorable
from cl_zoo.scoring.scorer import Cell, Score, Scorer
from cl_zoo.statistics.pairs import LEVEL, holm
from cl_zoo.statistics.spread import Spread
from cl_zoo.tasks import Benchmark, Part, TaskData

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cl_zoo.runs.restore import Restored

SPLITS = ("test", "validation")
HEADS = {
    "task": "task",
    "samples": "samples",
    "before": "before",
    "after": "after",
    "change": "change",
    "low": "from",
    "high": "to",
}


def retention(
    run: str | Path,
    benchmark: str | None = None,
    *,
    tasks: Sequence[str] = (),
    split: str = "test",
    limit: int | None = None,
    data: str | None = None,
    **places: Any,
) -> Outcome:
    """Scores of a finished run's model on a held-out set, beside those of the model it began with.

    Args:
        run: folder of the run.
        benchmark: the set; default: the run's own.
        tasks: names or letters of its tasks; default: those that are not in the run's stream.
        split: `test` or `validation`.
        limit: samples of each task.
        data: folder of the set's data; default, for the run's own benchmark, that of the run.
        places: backbone, features, device and trust, as for `cl_zoo.load`.

    Raises:
        OptionError: there is no such task or split, or no task that was not learnt.
        ClZooError: the run's model cannot be restored.
    """
    from cl_zoo.api import load

    folder = Path(run)
    result = load(folder, **places)
    job = result.manifest["job"]
    if benchmark is None:
        benchmark, data = job["benchmark"], data or job["data"]
    known = load_benchmark(benchmark, data)
    learnt = result.manifest["tasks"] if benchmark == job["benchmark"] else ()
    held_out = [_part(task, split, limit, known.name) for task in chosen(known, tasks, learnt)]
    from cl_zoo.runs.restore import untouched

    with tempfile.TemporaryDirectory() as place:
        before = _answered(untouched(folder, **places), held_out, Path(place) / "before")
        gc.collect()  # one model at a time
        after = _answered(result.restored, held_out, Path(place) / "after")
        with Scorer() as scorer:
            scores = scorer.score([*before, *after])
    rows = [
        compared(task.name, first, second)
        for task, first, second in zip(held_out, scores, scores[len(held_out) :], strict=False)
    ]
    text = columns(rows, HEADS, signed=["change", "low", "high"])
    return Outcome("retention", _said(rows, result.label, known.name), rows, lambda: _draw(rows), text)


def chosen(benchmark: Benchmark, tasks: Sequence[str], learnt: Iterable[str]) -> list[TaskData]:
    """The tasks to ask about.

    Args:
        tasks: names or letters; none for all that were not learnt.
        learnt: names of the tasks of the same benchmark that the model has learnt.

    Raises:
        OptionError: there is no such task, or none is left.
    """
    names = {key: task for task in benchmark.tasks for key in (task.letter, task.name)}
    for one in tasks:
        if one not in names:
            raise OptionError(f"--task {one}: {benchmark.name} has no such task{nearest(one, names)}")
    found = [names[one] for one in tasks] or [task for task in benchmark.tasks if task.name not in learnt]
    if not found:
        raise OptionError(
            f"the run has learnt every task of {benchmark.name}; pass another --benchmark, or a --task"
        )
    return list({task.name: task for task in found}.values())


def compared(task: str, before: Score, after: Score) -> dict[str, Any]:
    """One task's row.

    `low` and `high` are the ends of the 95 % interval of the change over draws of the questions, from the paired scores of the
    samples, `p` says how often chance alone changes as much; `lost` and `won` count samples whose score fell or rose.
    """
    pairs = zip(before.samples, after.samples, strict=True)
    changes = [float(after["score"]) - float(before["score"]) for before, after in pairs]
    change = _spread(after.value - before.value, changes)
    return {
        "task": task,
        "metric": before.metric,
        "samples": len(changes),
        "before": before.value,
        "after": after.value,
        "change": change.mean,
        "low": change.low,
        "high": change.high,
        "p": change.p,
        "lost": sum(one < 0 for one in changes),
        "won": sum(one > 0 for one in changes),
    }


def _spread(change: float, changes: Sequence[float]) -> Spread:
    """A change and how well it is known from those of the samples; nothing is known from one."""
    count = len(changes)
    error = stdev(changes) / math.sqrt(count) if count > 1 else None
    return Spread(change, 1, count, error, count - 1.0, sampled=True)


def _part(task: TaskData, split: str, limit: int | None, benchmark: str) -> TaskData:
    """A task with the wanted samples as its test split."""
    if split not in SPLITS:
        raise OptionError(f"--split {split}{nearest(split, SPLITS)}")
    samples = getattr(task, split)
    count = len(samples) if limit is None else min(limit, len(samples))
    if count < 1:
        raise OptionError(f"{benchmark}, task {task.name}: its {split} split is empty; pass another --split")
    part = replace(task, test=Part(samples, range(count)))
    scorable(benchmark, part)
    return part


def _answered(model: Restored, tasks: Sequence[TaskData], place: Path) -> list[Cell]:
    """Files of what a model answers to each task and of what is expected."""
    from cl_zoo.engine.answering import answers

    place.mkdir()
    cells = []
    for number, task in enumerate(tasks):
        said, wanted = place / f"{number}.jsonl", place / f"{number}-expected.jsonl"
        with model.autocast():
            found = answers(
                model.model,
                model.backbone,
                task.test,
                max_new_tokens=task.max_new_tokens,
                batch=model.recipe.eval_batch,
                static=model.recipe.static_cache,
                guard=model.plugins.calling_module(answers=True),
            )
            _write(said, found)
        _write(wanted, expected(task))
        cells.append(Cell(task.metric, said, wanted))
    return cells


def _write(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")


def _said(rows: Sequence[Mapping[str, Any]], label: str, benchmark: str) -> str:
    before, after = (math.fsum(row[key] for row in rows) / len(rows) for key in ("before", "after"))
    known = [row for row in rows if row["p"] is not None]
    adjusted = holm([row["p"] for row in known])
    apart = [row for row, p in zip(known, adjusted, strict=True) if p <= LEVEL]
    named = ", ".join(f"{row['task']} {row['change']:+.2f}" for row in apart)
    told = f"more than chance on {named}" if apart else "on no task more than chance"
    which = f"{len(rows)} task{'s' if len(rows) > 1 else ''} of {benchmark}"
    return f"{label} on {which}: mean {before:.2f} before, {after:.2f} after ({after - before:+.2f}), {told}."


def _draw(rows: Sequence[Mapping[str, Any]]) -> Axes:
    """The change on each task with its interval."""
    from cl_zoo.report import colours
    from cl_zoo.report.figures import new_axes

    axes = new_axes(6.4, 1.0 + 0.35 * len(rows))
    places = range(len(rows))
    colour = colours.of_method(0)[0]
    axes.barh(places, [row["change"] for row in rows], color=colour, alpha=0.5)
    for place, row in enumerate(rows):
        if row["low"] is not None:
            axes.hlines(place, row["low"], row["high"], color=colour)
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_yticks(places, [row["task"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("Score after minus score before")
    drawn: Axes = axes
    return drawn
