"""Merging: what is left of tasks learnt apart when their LoRAs are added up, by pair and all of them, with which factor?

Methods that merge rest on the premise that it is much. Whether it holds is a matter of the base, the tasks and the factor, and can be measured
before any of them is run: each task is learnt alone, and its score with the sum in the place of its own LoRA lies somewhere between that of the
base and its own. The share of the gain that is kept is 100 % where adding the others costs nothing and 0 % where nothing is left of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cl_zoo.analysis.apart import LEARNT, Apart, Asked, everywhere, kept, nobody, tasks_of
from cl_zoo.analysis.outcome import Outcome
from cl_zoo.errors import printable
from cl_zoo.report.figures import heat_map, new_figure
from cl_zoo.report.sheets import UNKNOWN, Entry, Line, Section, Sheet, as_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cl_zoo.tasks import TaskData

Rows = Sequence[Mapping[str, Any]]


def merging(
    method: str,
    *,
    scales: Sequence[float] = (),
    questions: int | None = None,
    watch: Callable[[dict[str, Any]], None] = lambda event: None,
    **settings: Any,
) -> Outcome:
    """What sums of LoRAs keep of each task.

    Args:
        method: of the runs that learn each task alone, as `cl_zoo.run` takes it.
        scales: factors on the sum of all tasks' LoRAs; default: 1, 1/2 and one by the number of tasks. Pairs are added up as they are.
        questions: test questions of each task, `None` for all.
        watch: told what the runs do.
        settings: as those of `cl_zoo.run`; `order` says which tasks.

    Returns:
        A row for each task and sum: `sum` is `base`, `alone`, `pair` (with the other task in `with`) or `all`, `scale`, `score`, and `kept`,
        percent of the gain; `None` where the task alone gains less than 10 points.

    Raises:
        ClZooError: a run cannot be made as described, or what it learns is no LoRA.
    """
    names = tasks_of(settings.get("benchmark", "mini"), settings.get("data"), settings.get("order"))
    apart = Apart(
        method,
        {name_of(n): [name] for n, name in enumerate(names)},
        questions=questions,
        watch=watch,
        **settings,
    )
    factors = list(dict.fromkeys(scales or (1.0, 0.5, 1 / len(names))))
    rows = shares(apart.scores(questions_to(apart.tasks, factors)), names, factors)
    return Outcome("merge", _sentence(rows, len(names)), rows, lambda: _draw(rows, names), _text(rows, names))


def name_of(place: int) -> str:
    """The expert of a task."""
    return f"t{place}"


def questions_to(tasks: Sequence[TaskData], factors: Sequence[float]) -> list[Asked]:
    """Who is asked what: the base, each task's own LoRA, the sum of each two, and of all times each factor."""
    asked = []
    everyone = [name_of(n) for n in range(len(tasks))]
    for n, task in enumerate(tasks):
        asked.append(Asked(("base", n), nobody, task))
        asked.append(Asked(("alone", n), everywhere([name_of(n)]), task))
        for other in range(len(tasks)):
            if other != n:
                asked.append(Asked(("pair", n, other), everywhere([name_of(n), name_of(other)]), task))
        asked += [Asked(("all", n, factor), everywhere(everyone, factor), task) for factor in factors]
    return asked


def shares(
    scores: Mapping[Hashable, float], names: Sequence[str], factors: Sequence[float]
) -> list[dict[str, Any]]:
    """The rows of `merging`, from the scores of `questions_to`."""
    rows = []
    for n, name in enumerate(names):
        base, alone = scores["base", n], scores["alone", n]

        def row(kind: str, score: float, other: str | None = None, scale: float = 1.0) -> dict[str, Any]:
            share = None if kind in ("base", "alone") else kept(score, base, alone)  # noqa: B023
            return {"task": name, "sum": kind, "with": other, "scale": scale, "score": score, "kept": share}  # noqa: B023

        rows += [row("base", base), row("alone", alone)]
        rows += [row("pair", scores["pair", n, m], other) for m, other in enumerate(names) if m != n]
        rows += [row("all", scores["all", n, factor], scale=factor) for factor in factors]
    return rows


def means(rows: Rows) -> dict[tuple[str, float], float]:
    """The mean share kept by kind of sum and factor, over tasks (and pairs) that were learnt alone."""
    found: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        if row["kept"] is not None:
            found.setdefault((row["sum"], row["scale"]), []).append(row["kept"])
    return {key: statistics.fmean(values) for key, values in found.items()}


def _sentence(rows: Rows, tasks: int) -> str:
    found = means(rows)
    if not found:
        return f"No task gained {LEARNT:g} points alone, so nothing can be kept of it; train longer, or ask more questions."
    sums = {scale: share for (kind, scale), share in found.items() if kind == "all"}
    best = max(sums, key=lambda scale: sums[scale])
    unlearnt = list(dict.fromkeys(row["task"] for row in rows if row["sum"] == "all" and row["kept"] is None))
    told = f"The sum of two LoRAs keeps {found['pair', 1.0]:.1f} % of a task's gain in the mean"
    whole = ", ".join(f"{share:.1f} % times {scale:.3g}" for scale, share in sums.items())
    told += f"; the sum of all {tasks} keeps {whole}"
    told += f" (best {best:.3g})." if len(sums) > 1 else "."
    return told + (f" Not counted, as not learnt alone: {', '.join(unlearnt)}." if unlearnt else "")


def _text(rows: Rows, names: Sequence[str]) -> str:
    """Scores and shares by task, then the shares of all pairs."""
    factors = list(dict.fromkeys(row["scale"] for row in rows if row["sum"] == "all"))
    lines = []
    for name in names:
        mine = [row for row in rows if row["task"] == name]
        score = {kind: next(row["score"] for row in mine if row["sum"] == kind) for kind in ("base", "alone")}
        pairs = [row["kept"] for row in mine if row["sum"] == "pair" and row["kept"] is not None]
        values = [
            f"{score['base']:.1f}",
            f"{score['alone']:.1f}",
            f"{statistics.fmean(pairs):.1f} %" if pairs else UNKNOWN,
        ]
        sums = {row["scale"]: row for row in mine if row["sum"] == "all"}
        values += [f"{sums[factor]['score']:.1f} ({_percent(sums[factor]['kept'])})" for factor in factors]
        lines.append(Line(printable(name), tuple(map(Entry, values))))
    columns = ("base", "alone", "kept in pairs", *(f"all × {factor:.3g} (kept)" for factor in factors))
    pairs_of = {(row["task"], row["with"]): row["kept"] for row in rows if row["sum"] == "pair"}
    body = tuple(
        Line(printable(name), tuple(Entry(_percent(pairs_of.get((name, other)))) for other in names))
        for name in names
    )
    pairwise = as_text(Sheet(tuple(f"with {printable(name)}" for name in names), (Section("", body),)))
    return f"{as_text(Sheet(columns, (Section('', tuple(lines)),)))}\nKept of the gain of each task in the sum of two:\n\n{pairwise}"


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share:.1f} %"


def _draw(rows: Rows, names: Sequence[str]) -> Axes:
    """A heat map of what pairs keep, and bars of what the sum of all keeps by factor."""
    figure = new_figure(3.2 + 0.9 * len(names), 1.6 + 0.5 * len(names))
    left, right = figure.subplots(1, 2, width_ratios=[3, 1])
    pairs = {(row["task"], row["with"]): row["kept"] for row in rows if row["sum"] == "pair"}
    grid = [[pairs.get((name, other)) for other in names] for name in names]
    heat_map(left, grid, [f"with {name}" for name in names], names)
    left.set_title("% of a task's gain kept by the sum of two", fontsize=9)
    sums = {scale: share for (kind, scale), share in means(rows).items() if kind == "all"}
    right.bar([f"× {scale:.3g}" for scale in sums], list(sums.values()), color="#0072b2")
    right.axhline(0, color="0.4", linewidth=0.8)
    right.spines[["top", "right"]].set_visible(False)
    right.set_title("sum of all", fontsize=9)
    drawn: Axes = left
    return drawn
