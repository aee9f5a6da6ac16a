"""Which datasets are worth learning: little of them answered untouched, much gained by training, as UCIT's were chosen.

The HiDe-LLaVA paper screens datasets "based on LLaVA's zero-shot performance" and names no bound (Section 5.1). Ours: a task qualifies
where the untouched model scores at most `HIGHEST` and, where a jointly trained model is there, that one scores at least `LEAST` more.
With both numbers the paper's own tables give all six tasks of UCIT back, and of CoIN's eight ImageNet alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cl_zoo.analysis.columns import columns
from cl_zoo.analysis.leakage import HEADS, MEAN, UNTOUCHED, Gap, called, draw, gaps_of
from cl_zoo.analysis.outcome import Outcome
from cl_zoo.contract.plugins import every_method, load_class
from cl_zoo.data.benchmarks import load_benchmark
from cl_zoo.errors import ClZooError, OptionError

HIGHEST = 54.0
"""The highest zero-shot score of a task that qualifies."""
LEAST = 15.0
"""And the least that training on all tasks has to add."""


def screen(gaps: Sequence[Gap], highest: float = HIGHEST, least: float = LEAST) -> Outcome:
    """Which tasks qualify.

    Args:
        gaps: tasks of one or several benchmarks, with or without multi-task scores.
        highest: zero-shot score up to which a task qualifies.
        least: gain of a multi-task model from which it does; not asked where there is no such model.

    Raises:
        OptionError: there is no task.
    """
    tasks = [one for one in gaps if one.task != MEAN]
    if not tasks:
        raise OptionError(
            f"no untouched model is here to screen with; add runs of a method of protocol {UNTOUCHED}"
        )
    rows = [{**one.row(), "why": why(one, highest, least)} for one in tasks]
    rows = [{**row, "qualifies": not row["why"]} for row in rows]
    faint = [one for one, row in zip(tasks, rows, strict=True) if not row["qualifies"]]
    first = {(one.benchmark, one.source): one for one in reversed(tasks)}
    parts = []
    for (benchmark, source), one in reversed(first.items()):
        own = [row for row in rows if (row["benchmark"], row["source"]) == (benchmark, source)]
        good = [str(row["task"]) for row in own if row["qualifies"]]
        named = f": {', '.join(good)}" if good else ""
        parts.append(f"{called(one, tasks)}: {len(good)} of {len(own)} tasks qualify{named}")
    bounds = f"zero-shot at most {highest:g}"
    if any(one.gap is not None for one in tasks):
        bounds += f", gain at least {least:g}"
    text = columns(
        rows, {**HEADS, "qualifies": "qualifies", "why": "why not", "source": "source"}, signed=["gap"]
    )
    sentence = f"{'; '.join(parts)} ({bounds})."
    return Outcome("screen", sentence, rows, lambda: draw(tasks, faint, highest), text)


def zero_shot(benchmark: str, **settings: Any) -> list[Gap]:
    """Zero-shot scores of a benchmark, from a run of an untouched model that is made here or found finished.

    Args:
        settings: what else `cl_zoo.run` takes.

    Raises:
        OptionError: no installed method leaves the model untouched.
        ClZooError: the run cannot be made.
    """
    from cl_zoo.api import run
    from cl_zoo.runs.comparison import Comparison

    found = load_benchmark(benchmark, settings.get("data"))
    names = dict.fromkeys([*found.default_methods, *every_method()])
    untouched = next((name for name in names if _protocol(name) == UNTOUCHED), None)
    if untouched is None:
        raise OptionError(
            f"no installed method has the protocol {UNTOUCHED}; install one, or pass finished runs"
        )
    result = run(untouched, benchmark=benchmark, **settings)
    return gaps_of([Comparison((result,))])


def _protocol(name: str) -> str:
    """Of a method by name; empty of a stack and of one that cannot be loaded."""
    try:
        return str(getattr(load_class(name), "protocol", ""))
    except ClZooError:
        return ""


def why(task: Gap, highest: float, least: float) -> str:
    """Why a task does not qualify; empty where it does."""
    found = []
    if task.zero_shot > highest:
        found.append(f"zero-shot {task.zero_shot:.2f} is above {highest:g}")
    if task.gap is not None and task.gap < least:
        found.append(f"training adds {task.gap:.2f}, less than {least:g}")
    return " and ".join(found)
