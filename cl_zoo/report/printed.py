"""A publication as text: what `cl-zoo show published NAME` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cl_zoo.published import Grid, Publication, Row
from cl_zoo.report.sheets import UNKNOWN, Entry, Line, Section, Sheet, as_text

MEAN = "Mean"
"""The column behind those of the tasks."""

BOUNDS = "Bounds"
"""Over the rows of what is not learnt task by task."""


def described(name: str, paper: Publication) -> str:
    """Source, setting, rows, matrices and what to know of them."""
    lines = [
        f"{name}: {paper.about}",
        "",
        f"source     {paper.cited()}",
        *([f"           {paper.source['url']}"] if "url" in paper.source else []),
        f"benchmark  {paper.benchmark}, order {paper.order}",
        f"backbone   {paper.backbone}",
        *(f"note       {one}" for one in (*paper.caveats, *_notes(paper))),
        "",
    ]
    return "\n".join([*lines, *map(as_text, sheets(paper))]).rstrip("\n")


def sheets(paper: Publication) -> Iterator[Sheet]:
    """The rows of a publication under its own headings, then its matrices."""
    cells = any(row.cells for row in paper.rows)
    columns = (*(paper.tasks if cells else ()), MEAN)
    titles = dict.fromkeys(map(_title, paper.rows))
    sections = [
        Section(
            title, tuple(_line(row, len(columns) - 1, paper) for row in paper.rows if _title(row) == title)
        )
        for title in titles
    ]
    if sections:
        yield Sheet(columns, tuple(sections))
    for grid in paper.matrices:
        yield _matrix(grid, paper)


def printed(row: Row) -> str:
    """The mean as it was printed, the right one behind it where it is another."""
    if row.mean is None:
        return UNKNOWN
    return f"{row.mean:.2f}" + ("" if row.right is None else f" (right: {row.right:.2f})")


def _title(row: Row) -> str:
    """Heading of a section: the metric, or that the rows are bounds."""
    return BOUNDS if row.protocol != "sequential" and not row.metric else row.metric


def _line(row: Row, cells: int, paper: Publication) -> Line:
    label = row.method + (
        f", {row.order}" if row.order and len({one.order for one in paper.rows}) > 1 else ""
    )
    scores: Sequence[float | None] = row.cells or [None] * cells
    texts = [*(UNKNOWN if one is None else f"{one:.2f}" for one in scores), printed(row)]
    return Line(label, tuple(map(Entry, texts)))


def _matrix(grid: Grid, paper: Publication) -> Sheet:
    names, width = tuple(paper.tasks), len(grid.scores)
    lines = []
    for place, row in enumerate(grid.scores):
        texts = [UNKNOWN if one is None else f"{one:.2f}" for one in row] + [""] * (width - len(row))
        mean = f"{grid.means[place]:.2f}" if grid.means else UNKNOWN
        lines.append(Line(f"after {names[place]}", tuple(map(Entry, (*texts, mean)))))
    return Sheet((*names, MEAN), (Section(f"{grid.method}, {grid.metric}", tuple(lines)),))


def _notes(paper: Publication) -> Iterator[str]:
    for row in paper.rows:
        if row.note:
            yield f"{row.method}{', ' if row.metric else ''}{row.metric}: {row.note}"
