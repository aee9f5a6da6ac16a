"""Forgetting, sample by sample: what a lesson turned from right to wrong, what it brought back, and what is wrong in form alone.

Scores say how much is lost between two tasks; they hide that some samples are lost while others are won, and that a model may know
an answer and only write it as the last task had it. Here each test sample is followed from the lesson of its own task on.

A sample is *right* after a lesson where it scores more than nothing, and at least half of the best that it has scored since its task
was learnt. For rules of 0 and 1 that is what it says; a caption is right as long as it keeps half of its score.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_zoo.analysis.outcome import Outcome
from cl_zoo.errors import RunError, printable
from cl_zoo.report.figures import heat_map, new_figure
from cl_zoo.report.rows import SEQUENTIAL, task_columns
from cl_zoo.report.sheets import UNKNOWN, Entry, Line, Section, Sheet, as_text, distinct
from cl_zoo.runs.answered import Asked, answered
from cl_zoo.runs.finding import find_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cl_zoo.runs.result import Result

Rows = Sequence[Mapping[str, Any]]


def forgetting(places: Iterable[str | Path]) -> Outcome:
    """What each lesson cost and brought back, of finished runs.

    Args:
        places: folders of runs, of folders of runs, or patterns.

    Returns:
        A row for each run, lesson and task learnt before it: `before` and `after` count the samples that are right, `lost` those
        that went from right to wrong, `lost_in_form` those of them that are wrong in form alone, `won` those that came back,
        `form` all that are wrong in form alone. Cells that were not measured have no row; a lesson is compared with the last one
        after which the task was asked about. In the row of the task's own lesson nothing can be lost yet.

    Raises:
        OptionError: no run is there.
        RunError: none of them learnt its tasks one after the other, or none asked about a task more than once.
    """
    rows = [row for result in _learners(places) for row in of_run(result)]
    if not any(row["lesson"] != row["task"] for row in rows):
        raise RunError(
            "no run here asked about a task right after its lesson and again after a later one; run it with --cells lower"
        )
    labels = list(dict.fromkeys(row["label"] for row in rows))
    return Outcome(
        "forgetting", _sentence(rows, labels), rows, lambda: _draw(rows, labels), _text(rows, labels)
    )


def of_run(result: Result) -> Iterator[dict[str, Any]]:
    """The rows of one run, of those tasks that it asked about right after their lesson.

    Raises:
        DataError: a file of answers or scores is missing or broken.
    """
    manifest = result.manifest
    names = [name if k == 0 else f"{name}#{k + 1}" for name, k in task_columns(manifest["tasks"])]
    about = {"run": manifest["id"], "label": result.label, "seed": result.seed, "order": ",".join(names)}
    followed: dict[int, list[list[dict[str, Any]]]] = {}
    for sample in answered(result.folder) if result.folder else ():
        followed.setdefault(sample.task_place, []).append(path(sample))
    for place, paths in followed.items():
        if paths[0][0]["stage"] != place:
            continue  # what it was able to after its lesson is not known
        for step in range(len(paths[0])):
            stage = paths[0][step]["stage"]
            yield {
                **about,
                "stage": stage,
                "lesson": names[stage],
                "task": names[place],
                **_counted(paths, step),
            }


def path(sample: Asked) -> list[dict[str, Any]]:
    """A sample from its own task's lesson on: `stage`, whether it is `right`, whether it is wrong in `form` alone."""
    best, steps = 0.0, []
    for one in sample.answers:
        if one["stage"] >= sample.task_place:
            best = max(best, one["score"])
            right = one["score"] > 0 and 2 * one["score"] >= best
            steps.append({"stage": one["stage"], "right": right, "form": not right and bool(one.get("form"))})
    return steps


def _counted(paths: Sequence[Sequence[Mapping[str, Any]]], step: int) -> dict[str, int]:
    """What became of a task's samples at one lesson."""
    pairs = [(one[max(step - 1, 0)], one[step]) for one in paths]
    lost = [now for before, now in pairs if before["right"] and not now["right"]]
    first = [(one[0], one[step]) for one in paths]
    gone = [now for then, now in first if then["right"] and not now["right"]]
    return {
        "samples": len(pairs),
        "right_before": sum(before["right"] for before, _ in pairs),
        "right": sum(now["right"] for _, now in pairs),
        "lost": len(lost),
        "lost_in_form": sum(now["form"] for now in lost),
        "won": sum(now["right"] and not before["right"] for before, now in pairs),
        "form": sum(now["form"] for _, now in pairs),
        "right_first": sum(then["right"] for then, _ in first),
        "gone": len(gone),
        "gone_in_form": sum(now["form"] for now in gone),
    }


def summary(rows: Rows) -> dict[str, Any]:
    """Of the runs of one label, in percent of what was right after its own lesson: what is `gone` at the end and `gone_in_form`, what
    lessons took (`lost`) and brought back (`won`) on the way; and the lesson that took most, with its share.

    A task without a later lesson does not count: nothing can be forgotten of it.
    """
    last = {(row["run"], row["task"]): row for row in rows if row["lesson"] != row["task"]}.values()
    first = sum(row["right_first"] for row in last)
    totals = {name: sum(row[name] for row in rows) for name in ("lost", "won")}
    totals |= {name: sum(row[name] for row in last) for name in ("gone", "gone_in_form")}
    shares = {name: 100 * value / first if first else 0.0 for name, value in totals.items()}
    cells = {key: share for key, share in costs(rows).items() if share is not None}
    worst = max(cells, key=lambda key: cells[key], default=None)
    told = {"lesson": worst[0], "task": worst[1], "share": cells[worst]} if worst else {}
    return {**shares, "worst": told}


def costs(rows: Rows, lost: str = "lost") -> dict[tuple[str, str], float | None]:
    """Percent of the samples right before a lesson that it turned, by lesson and task, the mean over the runs that have both.

    Args:
        lost: which count, `lost` or `lost_in_form`.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["lesson"] != row["task"]:
            shares = found.setdefault((row["lesson"], row["task"]), [])
            shares += [100 * row[lost] / row["right_before"]] if row["right_before"] else []
    return {key: statistics.fmean(shares) if shares else None for key, shares in found.items()}


def _learners(places: Iterable[str | Path]) -> list[Result]:
    """The finished runs that learnt one task after the other.

    Raises:
        RunError: there is none.
    """
    found = find_runs(places)
    learners = [one for one in found.results if one.manifest["protocol"] == SEQUENTIAL]
    if not learners:
        left = "".join(f"; {one}" for one in found.left_out)
        raise RunError(
            f"no finished run here learnt its tasks one after the other, so nothing can be forgotten{left}"
        )
    return learners


def _of(rows: Rows, label: str) -> Rows:
    return [row for row in rows if row["label"] == label]


def _sentence(rows: Rows, labels: Sequence[str]) -> str:
    found = {label: summary(_of(rows, label)) for label in labels}
    ranked = sorted(found, key=lambda label: found[label]["gone"])
    told = [_clause(label, found[label]) for label in dict.fromkeys([ranked[-1], ranked[0]])]
    most = found[ranked[-1]]["worst"]
    dearest = (
        f" The dearest lesson was {most['lesson']}, which turned {most['share']:.1f} % of what {ranked[-1]} had right of {most['task']}."
        if most
        else ""
    )
    return "; ".join(told) + "." + dearest


def _clause(label: str, found: Mapping[str, Any]) -> str:
    form = f", {found['gone_in_form']:.1f} % in form alone" if found["gone_in_form"] else ""
    return f"of what {label} had right after its own lesson, {found['gone']:.1f} % is wrong at the end{form}"


def _text(rows: Rows, labels: Sequence[str]) -> str:
    """A summary of all labels, then for each of them what every lesson turned."""
    columns = ("wrong at the end", "in form alone", "turned on the way", "brought back")
    lines = []
    for label in labels:
        found = summary(_of(rows, label))
        values = [f"{found[name]:.1f}" for name in ("gone", "gone_in_form", "lost", "won")]
        lines.append(Line(printable(label), tuple(map(Entry, values))))
    title = "% of the samples that were right after their own lesson"
    parts = [f"{title}:\n\n{as_text(Sheet(columns, (Section('', tuple(lines)),)))}"]
    for label in labels:
        lessons, tasks, cells = _grid(_of(rows, label))
        body = tuple(
            Line(
                printable(f"after {lesson}"),
                tuple(Entry(_share(cells.get((lesson, task)))) for task in tasks),
            )
            for lesson in lessons
        )
        sheet = Sheet(tuple(distinct([printable(task) for task in tasks])), (Section("", body),))
        parts.append(f"{printable(label)}, % turned from right to wrong by each lesson:\n\n{as_text(sheet)}")
    return "\n".join(parts)


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}"


def _grid(rows: Rows) -> tuple[list[str], list[str], dict[tuple[str, str], float | None]]:
    """Lessons that could cost something, tasks that could be lost, and the costs."""
    cells = costs(rows)
    names = list(dict.fromkeys(name for row in rows for name in row["order"].split(",")))
    lessons = [name for name in names if any(lesson == name for lesson, _ in cells)]
    return lessons, [name for name in names if any(task == name for _, task in cells)], cells


def _draw(rows: Rows, labels: Sequence[str]) -> Axes:
    """A heat map for each label: what every lesson turned of every task."""
    size = max((len(_grid(_of(rows, label))[1]) for label in labels), default=1)
    figure = new_figure(1.6 + 0.75 * size, (1.3 + 0.42 * size) * len(labels))
    for place, label in enumerate(labels):
        lessons, tasks, cells = _grid(_of(rows, label))
        axes: Axes = figure.add_subplot(len(labels), 1, place + 1)
        if cells:
            grid = [[cells.get((lesson, task)) for task in tasks] for lesson in lessons]
            heat_map(axes, grid, tasks, [f"after {lesson}" for lesson in lessons])
        axes.set_title(f"{label}: % turned from right to wrong", fontsize=9)
    return axes
