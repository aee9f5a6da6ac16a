"""The table of a comparison, in the layout of Table 1 of the HiDe-LLaVA paper.

First the bounds (zero-shot, joint training), then a block Avg and a block Last with a column for each task and their mean,
then a summary with the figures of `cl_zoo.scoring.matrix`, what was trained and stored, the time, and notes. The best value of a
column is bold and the second underlined, among the methods that learn the tasks one after the other. Runs of one method
with several seeds or orders of the tasks are one line: mean ± sample standard deviation. A run's figures are those of its own
order; the columns stand in the order of the first run. Scores are by the official rules or by the strict ones
(`cl_zoo.scoring.rules`); a table by the strict ones says so above its blocks and below itself.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from cl_zoo.errors import DataError, OptionError, nearest, printable
from cl_zoo.report.estimates import Estimate
from cl_zoo.report.ranks import Ranks
from cl_zoo.report.rows import SEQUENTIAL, Method, PerTask, Row, RowKey, forward_transfer, task_columns
from cl_zoo.report.sheets import (
    NOTES,
    Entry,
    Line,
    Section,
    Sheet,
    as_markdown,
    as_rich,
    as_text,
    distinct,
    escaped,
    flops,
    measure,
    memory,
    narrowed,
    parameters,
    score,
    seconds,
)
from cl_zoo.scoring.matrix import METRICS_VERSION

FIGURES = {
    "avg": "Avg",
    "last": "Last",
    "immediate": "Immediate",
    "maa": "MAA",
    "bwt": "BWT",
    "forgetting": "Forgetting",
}
"""The figures of the summary, name of the property and heading."""

COSTS = ("FLOPs", "Seconds", "Memory")
"""What a run took: floating-point operations of its training, wall-clock time, peak memory."""

SCORINGS = ("official", "strict")
"""Which scores a table shows."""

STRICT = "Scores by the strict rules; tasks whose official rule has no strict form are scored by the official one. "

SHOWN, ALL = 6, "all of it in --json"
"""Measurements of probes below a table, for each method, and where the others are."""

LEGEND = (
    "Avg: mean over the tasks of the mean score since the task was learnt. Last: mean of the final scores. "
    "Immediate: mean score right after learning. MAA: mean over the stages of the mean over the tasks seen. "
    "BWT: mean change since learning, over all tasks. "
    "Forgetting: mean of the best earlier score minus the final one, over all tasks but the last."
)

TRANSFER = " FWT: mean score before learning minus the untouched model's, over all tasks but the first."

MARKED = (
    " Bold: the best and all that cannot be told from it by paired tests over orders, seeds and test samples (Holm, 5 %); "
    "underlined or in italics: the next."
)


class Table:
    """A comparison's table.

    Args:
        rows: the runs, in the order in which their methods shall stand.
        scoring: a name in `SCORINGS`; runs without strict scores show their official ones, which are right.

    Raises:
        DataError: there is no run, two runs have one label, seed and order, or they learn different tasks.
        OptionError: there is no such scoring.
    """

    def __init__(self, rows: Iterable[Row], scoring: str = "official") -> None:
        self.scoring = known_scoring(scoring)
        self.rows = tuple(replace(row, scoring=scoring) for row in rows)
        if not self.rows:
            raise DataError("a table needs at least one run; name a method")
        for (label, seed, order, tasks), count in Counter(row.key for row in self.rows).items():
            if count > 1:
                learnt = f" and order {order or ','.join(tasks)}" if order or tasks else ""
                raise DataError(
                    f"{count} runs are called {label!r} with seed {seed}{learnt}; put what differs into the label"
                )
        streams = {frozenset(task_columns(row.tasks)): row.tasks for row in reversed(self.rows) if row.tasks}
        if len(streams) > 1:
            orders = " and ".join(",".join(tasks) for tasks in reversed(streams.values()))
            raise DataError(
                f"runs of one table learn the same tasks, these learn {orders}; make a table of each"
            )
        self.tasks: tuple[str, ...] = next(iter(streams.values()), ())
        learners = [row for row in self.rows if row.protocol == SEQUENTIAL]
        named = {row.tasks: row.order or ",".join(row.tasks) for row in learners if row.tasks}
        self.orders = tuple(dict.fromkeys([*named.values(), *(row.order for row in learners if row.order)]))

    @cached_property
    def methods(self) -> tuple[Method, ...]:
        """The runs by label: the untouched model, then joint training, then the others."""
        place = {"none": 0, "joint": 1}
        keys = dict.fromkeys((row.label, row.protocol) for row in self.rows)
        ordered = sorted(keys, key=lambda key: place.get(key[1], 2))
        return tuple(
            Method(*key, tuple(row for row in self.rows if (row.label, row.protocol) == key), self.tasks)
            for key in ordered
        )

    @cached_property
    def ranks(self) -> Ranks:
        """Intervals and tests of its figures, and who is marked."""
        return Ranks(self.methods)

    def rich(self, width: int | None = None) -> Group:
        """For a terminal; `width` as for `text`."""
        parts: list[RenderableType] = []
        for sheet in self._sheets:
            for part in narrowed(sheet, width):
                parts += [as_rich(part), ""]
        parts += [Text(self._probed), ""] if self._probed else []
        return Group(*parts, Text(self._legend, style="dim"))

    def text(self, width: int | None = None) -> str:
        """Plain text that loses no column.

        Args:
            width: columns that do not fit are continued below; `None` for lines as long as they need to be.
        """
        parts = [as_text(part) for sheet in self._sheets for part in narrowed(sheet, width)]
        closing = [textwrap.fill(text, width or 110) for text in (self._probed, self._legend) if text]
        return "\n".join([*parts, "\n\n".join(closing)]) + "\n"

    def __str__(self) -> str:
        return self.text()

    def markdown(self) -> str:
        """For a file; the best value is **bold** and the second _italic_."""
        closing = "\n\n".join(text for text in (escaped(self._probed), self._legend) if text)
        return "\n".join([*(as_markdown(sheet) for sheet in self._sheets), closing]) + "\n"

    def show(self, console: Console) -> None:
        """Print the table: with styles on a terminal, as full plain text elsewhere."""
        if console.is_terminal:
            console.print(self.rich(console.width))
        else:
            console.file.write(self.text())

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`: every run with both matrices, and every method over its runs; figures as shown."""
        runs = []
        for row in self.rows:
            both = {"matrix": row.matrix, "strict": row.strict}
            matrices = {name: matrix.to_json() if matrix else None for name, matrix in both.items()}
            about = asdict(replace(row, scores=None))
            del about["scores"]
            figures = {**row.figures(), "fwt": self._fwt.get(row.key)}
            runs.append({**about, **matrices, "figures": figures})
        methods = []
        for method in self.methods:
            orders = [{"order": one.rows[0].order, **self._plain(one)} for one in method.by_order]
            split = {"by_order": orders} if self._several else {}
            about = {"label": method.label, "protocol": method.protocol}
            spreads = {"intervals": {name: self._interval(method, name) for name in FIGURES}}
            methods.append({**about, **self._plain(method), **spreads, **split})
        return {
            "metrics_version": METRICS_VERSION,
            "scoring": self.scoring,
            "tasks": list(self.tasks),
            "orders": list(self.orders),
            "runs": runs,
            "methods": methods,
            "tests": {"figure": "last", "pairs": self.ranks.to_json("last")},
        }

    def _interval(self, method: Method, figure: str) -> dict[str, Any] | None:
        """What is known of a figure beyond its mean: 95 % over orders, seeds and test samples."""
        found = self.ranks.interval(method.label, figure)
        if found is None:
            return None
        return {"low": found.low, "high": found.high, "units": found.units, "sampled": found.sampled}

    @cached_property
    def _fwt(self) -> dict[RowKey, float | None]:
        return forward_transfer(self.rows)

    def _plain(self, method: Method) -> dict[str, Any]:
        """What `to_json` says of some runs."""
        return {
            "seeds": list(dict.fromkeys(row.seed for row in method.finished)),
            "n": len(method.finished),
            "figures": {name: _plain(method.figure(name)) for name in (*FIGURES, "bwt_t1")},
            "avg_i": [_plain(method.per_task("avg_i", i)) for i in range(len(self.tasks))],
            "last_i": [_plain(method.per_task("last_i", i)) for i in range(len(self.tasks))],
        }

    @property
    def _several(self) -> bool:
        """Whether the tasks were learnt in several orders."""
        return len(self.orders) > 1

    @property
    def sheets(self) -> tuple[Sheet, ...]:
        """What `text` and `markdown` print: scores by task, then the summary."""
        return self._sheets

    @property
    def _probed(self) -> str:
        """A line of what probes measured, the first of each method."""
        parts = []
        for method in self.methods:
            found = [f"{name} {measure(value)}" for name, value in method.probed().items()]
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            parts += [f"{method.label}: {', '.join(found[:SHOWN])}{more}"] if found else []
        return f"Measured after the last task ({ALL}): {'; '.join(parts)}." if parts else ""

    @property
    def _legend(self) -> str:
        seeds = any(len(method.finished) > 1 for method in self.methods)
        strict = STRICT if self.scoring == "strict" else ""
        legend = strict + LEGEND + (TRANSFER if self._transfers else "") + (MARKED if self._marks else "")
        if not self._several:
            return legend + (" ±: sample standard deviation over the seeds." if seeds else "")
        orders = (
            f" The tasks were learnt in {len(self.orders)} orders, {', '.join(map(printable, self.orders))}; "
        )
        return legend + orders + "±: sample standard deviation over seeds and orders together, n runs."

    @property
    def _marks(self) -> bool:
        """Whether anything is marked."""
        sections = [section for sheet in self._sheets for section in sheet.sections]
        return any(entry.rank for section in sections for line in section.lines for entry in line.entries)

    @cached_property
    def _sheets(self) -> tuple[Sheet, Sheet]:
        bounds = [method for method in self.methods if method.protocol != SEQUENTIAL]
        learners = [method for method in self.methods if method.protocol == SEQUENTIAL]
        mark = ", strict" if self.scoring == "strict" else ""
        blocks = (
            Section("Bounds" + mark, self._block(bounds, "last_i", "last")),
            Section("Avg" + mark, self._block(learners, "avg_i", "avg")),
            Section("Last" + mark, self._block(learners, "last_i", "last")),
        )
        scores = Sheet(
            (*distinct([printable(task) for task in self.tasks]), "Mean"),
            tuple(block for block in blocks if block.lines),
        )
        transfer = ["FWT"] if self._transfers else []
        count = ["n"] if self._several else []
        columns = (*FIGURES.values(), *transfer, *count, "Trained", "Stored", *COSTS, NOTES)
        return scores, Sheet(columns, (Section(mark.removeprefix(", "), self._summary()),))

    def _block(self, methods: Sequence[Method], per_task: PerTask, mean: str) -> tuple[Line, ...]:
        """A line for each method: the tasks, then their mean."""
        columns = [
            self._ranked(methods, [m.per_task(per_task, i) for m in methods], f"{mean}:{task}")
            for i, task in enumerate(self.tasks)
        ]
        means = self._ranked(methods, [m.figure(mean) for m in methods], mean)
        columns.append([e if m.finished else Entry("failed") for m, e in zip(methods, means, strict=True)])
        return _lines(methods, columns)

    def _summary(self) -> tuple[Line, ...]:
        """A line for each method: the figures, what they cost, notes."""
        methods = self.methods
        columns = [self._ranked(methods, [m.figure(name) for m in methods], name) for name in FIGURES]
        if self._transfers:
            columns.append([Entry(score(m.over_seeds(lambda row: self._fwt.get(row.key)))) for m in methods])
        if self._several:
            columns.append([Entry(str(len(m.finished))) for m in methods])
        columns.append([Entry(parameters(m.over_seeds(lambda row: row.trained))) for m in methods])
        columns.append([Entry(parameters(m.over_seeds(lambda row: row.stored))) for m in methods])
        columns.append([Entry(flops(m.over_seeds(lambda row: row.flops))) for m in methods])
        columns.append([Entry(seconds(m.over_seeds(lambda row: row.seconds))) for m in methods])
        columns.append([Entry(memory(m.over_seeds(lambda row: row.memory))) for m in methods])
        columns.append([Entry(printable(m.notes)) for m in methods])
        return _lines(methods, columns)

    @property
    def _transfers(self) -> bool:
        """Whether the cells above the diagonal of some run were measured, and the untouched model's."""
        return any(value is not None for value in self._fwt.values())

    def _ranked(
        self, methods: Sequence[Method], values: Sequence[Estimate | None], figure: str
    ) -> list[Entry]:
        """The entries of a column, marked by tests among the methods that learn the tasks one after the other.

        Args:
            figure: as `Ranks.marked` takes it. A task that comes twice has no marks.
        """
        pairs = list(zip(methods, values, strict=True))
        means = {m.label: v.mean for m, v in pairs if v is not None and m.protocol == SEQUENTIAL}
        once = self.tasks.count(figure.partition(":")[2]) < 2
        best, second = self.ranks.marked(figure, means) if len(means) > 1 and once else (set(), set())
        return [
            Entry(score(v), "best" if m.label in best else "second" if m.label in second else "")
            for m, v in pairs
        ]


def known_scoring(name: str) -> str:
    """The name.

    Raises:
        OptionError: no table shows such scores.
    """
    if name not in SCORINGS:
        raise OptionError(f"--scoring {name}{nearest(name, SCORINGS)}")
    return name


# Values


def _lines(methods: Sequence[Method], columns: Sequence[Sequence[Entry]]) -> tuple[Line, ...]:
    return tuple(
        Line(printable(m.label), tuple(column[n] for column in columns)) for n, m in enumerate(methods)
    )


def _plain(value: Estimate | None) -> dict[str, Any] | None:
    return None if value is None else asdict(value)
