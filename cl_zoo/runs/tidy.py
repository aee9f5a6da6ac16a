"""Runs as tidy rows: a row per run, per run and cell, or per run, cell and sample; every row says which run it is of."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cl_zoo.errors import OptionError, nearest
from cl_zoo.report.rows import Row
from cl_zoo.runs.answered import answered

if TYPE_CHECKING:
    import pandas

    from cl_zoo.runs.result import Result

KINDS = ("runs", "cells", "samples")
"""What one row stands for."""

SUMS = ("samples", "steps", "tokens", "flops", "seconds")
"""Costs of a task that add up to those of a run's learning."""


def records(results: Iterable[Result], kind: str = "runs") -> Iterator[dict[str, Any]]:
    """Tidy rows of finished runs; a run that failed has one row of kind `runs`, with its error.

    Args:
        kind: `runs`, `cells` (scores A[t][i]) or `samples` (every answer with its score).

    Raises:
        OptionError: there is no such kind.
        ClZooError: a run's files are damaged.
    """
    if kind not in KINDS:
        raise OptionError(f"kind {kind!r}{nearest(kind, KINDS)}")
    make = {"runs": _run, "cells": _cells, "samples": _samples}[kind]
    for result in results:
        row = result.row()
        if row.error is None:
            yield from make(result, row)
        elif kind == "runs":
            yield {"label": row.label, "seed": row.seed, "error": row.error}


def as_frame(rows: Iterable[dict[str, Any]]) -> pandas.DataFrame:
    """The rows as a pandas DataFrame.

    Raises:
        OptionError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise OptionError(
            "a frame needs pandas, which is not installed; install it with `pip install 'cl-zoo[report]'`"
        ) from None
    return pandas.DataFrame(list(rows))


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV; a column that only some of them have is empty in the others."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _about(result: Result, row: Row) -> dict[str, Any]:
    """The columns that all kinds share."""
    identity = result.manifest["identity"]
    return {
        "run": result.manifest["id"],
        "benchmark": identity["benchmark"]["name"],
        "label": row.label,
        "protocol": row.protocol,
        "seed": row.seed,
        "order": ",".join(row.tasks),
    }


def _run(result: Result, row: Row) -> Iterator[dict[str, Any]]:
    tasks = result.ledger["tasks"]
    sums = {name: sum(task[name] for task in tasks if name in task) for name in SUMS}
    last = row.measured[-1] if row.measured else {}
    yield {
        **_about(result, row),
        **row.figures(),
        "trained": row.trained,
        "stored": row.stored,
        "active": result.ledger.get("active"),
        "seconds": row.seconds,
        "evaluation_seconds": result.ledger.get("evaluation_seconds"),
        "peak_memory_mb": result.ledger.get("peak_memory_mb"),
        **{f"learning_{name}": value for name, value in sums.items()},
        "notes": "; ".join(row.stamps),
        "error": None,
        **{f"measured/{name}": value for name, value in last.items()},
    }


def _cells(result: Result, row: Row) -> Iterator[dict[str, Any]]:
    for cell, score in result.manifest["scores"].items():
        stage, place = map(int, cell.split("-"))
        yield {
            **_about(result, row),
            **_place(result, stage, place),
            "score": score["value"],
            "strict": score.get("strict"),
            "metric": score.get("metric"),
            "count": score.get("count"),
            "empty": score.get("empty"),
            "form": score.get("form"),
            "trained": row.trained,
            "stored": row.stored,
            "seconds": row.seconds,
        }


def _samples(result: Result, row: Row) -> Iterator[dict[str, Any]]:
    if result.folder is None:
        return
    for one in answered(result.folder):
        expected = one.expected if isinstance(one.expected, str) else " | ".join(one.expected or ())
        for said in one.answers:
            yield {
                **_about(result, row),
                **_place(result, said["stage"], one.task_place),
                "sample": one.about["id"],
                "sample_place": one.about["place"],
                "picture": one.about.get("picture"),
                "question": one.question,
                "expected": expected,
                "answer": said["answer"],
                "score": said["score"],
                "forgotten": one.forgotten,
            }


def _place(result: Result, stage: int, place: int) -> dict[str, Any]:
    """Which cell: `after` is the task that was learnt last, and is `None` where tasks are not learnt one after the other."""
    lessons = result.manifest["lessons"]
    sequential = result.manifest["protocol"] == "sequential"
    return {
        "stage": stage,
        "after": lessons[stage]["name"] if sequential and lessons else None,
        "place": place,
        "task": result.manifest["tasks"][place],
    }
