"""Published rows beside ours: where benchmark, tasks and metric are the same, ours, theirs and the difference; else a sentence why not.

A metric is compared with the figure of that definition and no other: Avg and Last are those of HiDe-LLaVA, ACC (our Last), MAA and BWT (over
all tasks) those of CoIN. Rows of methods that learn the tasks one after the other are compared in the same order alone. What a difference may
still be due to (another backbone, fewer samples, the strict rules, other test sets) is said beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cl_zoo.errors import printable
from cl_zoo.published import Publication, Row, read_published
from cl_zoo.report.estimates import Estimate
from cl_zoo.report.page.content import Aside, Block
from cl_zoo.report.printed import BOUNDS, MEAN, printed
from cl_zoo.report.rows import SEQUENTIAL, Method, PerTask
from cl_zoo.report.sheets import (
    UNKNOWN,
    Entry,
    Line,
    Section,
    Sheet,
    as_markdown,
    as_text,
    escaped,
    narrowed,
    score,
)
from cl_zoo.report.table import Table
from cl_zoo.runs.result import Result

PER_TASK: Mapping[str, PerTask] = {"Avg": "avg_i", "Last": "last_i"}
"""Published metrics that have a score for each task, and ours of the same definition."""

MEANS = {"Avg": "avg", "Last": "last", "ACC": "last", "MAA": "maa", "BWT": "bwt"}
"""Published means, and ours of the same definition."""

FINAL = "Last"
"""What the final row of a matrix holds, and the one score of a method that does not learn task by task."""

SAME = "difference"


@dataclass(frozen=True)
class Compared:
    """One of our methods beside a published row.

    Attributes:
        label, order: of ours; the order in letters, empty where it does not matter.
        row: theirs, its metric by its name.
        metric: as published; of bounds and of the final row of a matrix `Last`.
        ours: of each task of the table, where the metric has scores of tasks.
        theirs: by task.
        mean: ours.
    """

    label: str
    order: str
    row: Row
    metric: str
    ours: Mapping[str, Estimate | None]
    theirs: Mapping[str, float]
    mean: Estimate | None

    @property
    def differences(self) -> dict[str, float]:
        """Ours minus theirs, of the tasks that both have."""
        return {
            task: ours.mean - self.theirs[task]
            for task, ours in self.ours.items()
            if ours and task in self.theirs
        }

    @property
    def difference(self) -> float | None:
        """Of the means, to the right one where theirs is misprinted."""
        theirs = self.row.to_reckon_with
        return None if self.mean is None or theirs is None else self.mean.mean - theirs

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "label": self.label,
            "order": self.order,
            "method": self.row.method,
            "metric": self.metric,
            "ours": {task: one and asdict(one) for task, one in self.ours.items()},
            "theirs": dict(self.theirs),
            "differences": self.differences,
            "mean": {
                "ours": self.mean and asdict(self.mean),
                "printed": self.row.mean,
                "right": self.row.to_reckon_with,
                "difference": self.difference,
            },
        }


@dataclass(frozen=True)
class Beside:
    """A comparison beside a publication.

    Attributes:
        name: of the publication.
        tasks: columns, as our table has them.
        compared: rows side by side.
        remarks: what is not compared, and what differences may be due to, a sentence each.
        unlike: those of them by which ours are no repetition of theirs: another model, fewer samples, other rules.
    """

    name: str
    paper: Publication
    tasks: tuple[str, ...]
    compared: tuple[Compared, ...]
    remarks: tuple[str, ...]
    unlike: tuple[str, ...] = ()

    def sheet(self) -> Sheet:
        """For each metric ours, theirs and the difference."""
        titles = dict.fromkeys(map(_title, self.compared))
        sections = [
            Section(
                title,
                tuple(line for one in self.compared if _title(one) == title for line in self._lines(one)),
            )
            for title in titles
        ]
        return Sheet((*self.tasks, MEAN), tuple(sections))

    def text(self, width: int | None = None) -> str:
        """Plain text, wide tables in pieces."""
        sheets = [as_text(part) for part in narrowed(self.sheet(), width)] if self.compared else []
        return "\n".join([f"{self.heading}:\n", *sheets, _listed(map(printable, self.remarks))])

    def markdown(self) -> str:
        """Under a heading of the second level."""
        sheets = [as_markdown(self.sheet())] if self.compared else []
        remarks = map(escaped, self.remarks)
        return "\n".join([f"## {escaped(self.heading)}\n", *sheets, _listed(remarks)])

    def aside(self) -> Aside:
        """For the page."""
        blocks = [Block(one.label, _title(one), tuple(self._lines(one))) for one in self.compared]
        return Aside(self.heading, (*self.tasks, MEAN), tuple(blocks), self.remarks)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        about = {"name": self.name, "source": dict(self.paper.source)}
        return {**about, "compared": [one.to_json() for one in self.compared], "remarks": list(self.remarks)}

    @property
    def heading(self) -> str:
        """Its name and source."""
        return f"Beside {self.name} ({self.paper.cited()})"

    def _lines(self, one: Compared) -> Iterator[Line]:
        differences = one.differences
        apart = [("" if (d := differences.get(task)) is None else f"{d + 0.0:+.2f}") for task in self.tasks]
        whole = "" if one.difference is None else f"{one.difference + 0.0:+.2f}"
        theirs = [UNKNOWN if (t := one.theirs.get(task)) is None else f"{t:.2f}" for task in self.tasks]
        order = f", {one.order}" if one.order else ""
        yield _line(
            printable(one.label) + order,
            [*(score(one.ours.get(task)) for task in self.tasks), score(one.mean)],
        )
        yield _line(f"{one.row.method}, {self.name}", [*theirs, printed(one.row)])
        yield _line(SAME, [*apart, whole])


def beside(table: Table, results: Sequence[Result], name: str) -> Beside:
    """A table of ours beside a publication.

    Args:
        results: the runs of the table.
        name: of the publication, or the path of its file.

    Raises:
        OptionError: there is no such publication.
    """
    paper = read_published(name)
    if why := _nothing(table, results, paper, name):
        return Beside(name, paper, table.tasks, (), (why,))
    compared, left = list[Compared](), list[str]()
    for method in table.methods:
        for part in method.by_order if method.protocol == SEQUENTIAL else (method,):
            found, reasons = _of_method(part, table.tasks, paper, name)
            compared += found
            left += reasons
    unlike = tuple(_unlike(table, results, paper, name)) if compared else ()
    said = [*left, *unlike, *(f"{name}: {one}" for one in paper.caveats if compared)]
    said += [f"{one.row.method}, {one.metric}: {one.row.note}" for one in compared if one.row.note]
    return Beside(name, paper, table.tasks, tuple(compared), tuple(dict.fromkeys(said)), unlike)


def _nothing(table: Table, results: Sequence[Result], paper: Publication, name: str) -> str:
    """Why nothing at all can be compared; empty where something can."""
    manifest = results[0].manifest
    benchmark = manifest["identity"]["benchmark"]["name"]
    # a table of one's own may name the file of its benchmark, as the run does
    if paper.benchmark not in (benchmark, manifest.get("job", {}).get("benchmark")):
        return f"{name} is of {paper.benchmark} and these runs are of {benchmark}: nothing of them can be compared"
    ours, theirs = set(table.tasks), set(paper.columns)
    if ours != theirs or len(table.tasks) != len(paper.columns):
        return f"{name} has the tasks {', '.join(paper.columns)} and these runs {', '.join(table.tasks)}: means over other tasks cannot be compared"
    return ""


def _of_method(
    method: Method, tasks: tuple[str, ...], paper: Publication, name: str
) -> tuple[list[Compared], list[str]]:
    """A method in one order beside its published rows, and why not beside others."""
    if not method.finished:
        return [], []
    rows = [row for row in _theirs(method.label, paper) if row.protocol == method.protocol]
    if not rows:
        return [], [f"{name} has no row of {method.label}"]
    learnt = method.rows[0].order if method.protocol == SEQUENTIAL else ""
    orders = dict.fromkeys(row.order or paper.order for row in rows)
    if learnt:
        rows = [row for row in rows if (row.order or paper.order) == learnt]
    if not rows:
        return [], [
            f"{method.label} learnt the tasks in the order {learnt} and {name} has {', '.join(orders)}: not compared"
        ]
    unnamed = method.protocol == SEQUENTIAL and not learnt
    said = [f"the order of {method.label} was not written down, {name} has {paper.order}"] if unnamed else []
    said += [_alike(method.label, row) for row in rows if row.ours != method.label.partition(" {")[0]]
    known = [row for row in rows if _metric(row) in MEANS and (row.protocol == SEQUENTIAL or row.cells)]
    other = dict.fromkeys(row.metric for row in rows if row not in known)
    said += [f"{metric} of {name} is no figure of a table here: not compared" for metric in other]
    return [_compared(method, learnt, row, tasks, paper) for row in known], said


def _theirs(label: str, paper: Publication) -> list[Row]:
    """Published rows of a method: of this very label, else of the method with other options; final rows of matrices among them."""
    final = [
        Row(
            method=grid.method,
            ours=grid.ours,
            metric=FINAL,
            cells=grid.scores[-1],
            mean=grid.means[-1] if grid.means else None,
            note="the final row of its matrix",
        )
        for grid in paper.matrices
        if len(grid.scores) == len(paper.tasks)
    ]
    every, plain = [*paper.rows, *final], label.partition(" {")[0]
    exact = [row for row in every if row.ours == plain]
    return exact or [row for row in every if row.ours == plain.partition("[")[0] and "+" not in plain]


def _alike(label: str, row: Row) -> str:
    return f"{label} stands beside {row.method}, which is {row.ours} here"


def _metric(row: Row) -> str:
    """The metric of a row as ours go by; methods that do not learn task by task have one score for each task, whatever it is called."""
    return FINAL if row.protocol != SEQUENTIAL and row.cells else row.metric


def _compared(method: Method, order: str, row: Row, tasks: tuple[str, ...], paper: Publication) -> Compared:
    metric = _metric(row)
    per_task = PER_TASK.get(metric)
    ours = {task: method.per_task(per_task, n) for n, task in enumerate(tasks)} if per_task else {}
    return Compared(method.label, order, row, metric, ours, paper.scores(row), method.figure(MEANS[metric]))


def _title(one: Compared) -> str:
    return BOUNDS if one.row.protocol != SEQUENTIAL else one.metric


def _unlike(table: Table, results: Sequence[Result], paper: Publication, name: str) -> Iterator[str]:
    """What differences may be due to beside the methods, as far as the runs tell."""
    identities = [one.manifest["identity"] for one in results if one.error is None]
    backbones = dict.fromkeys(
        one.get("backbone", {}).get("name", "an unknown backbone") for one in identities
    )
    if others := [one for one in backbones if one != paper.backbone]:
        yield f"these runs answer with {', '.join(others)} and {name} with {paper.backbone}: differences are of the models too"
    limits = dict.fromkeys(one["benchmark"].get("limit") for one in identities)
    if any(limits):
        fewest = min(limit for limit in limits if limit)
        yield f"these runs have {fewest} samples a split and {name} all of them: differences are of the samples too"
    if table.scoring != "official":
        yield f"these scores are by the {table.scoring} rules and those of {name} by the official ones"


def _listed(remarks: Iterable[str]) -> str:
    return "".join(f"* {one}\n" for one in remarks)


def _line(label: str, texts: Sequence[str]) -> Line:
    return Line(label, tuple(map(Entry, texts)))
