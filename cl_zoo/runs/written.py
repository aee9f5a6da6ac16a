"""What is written of runs that are there already: tables and matrices as text, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_zoo.errors import RunError, printable
from cl_zoo.report.figures import write_figures
from cl_zoo.report.latex import as_latex, sheet_as_latex
from cl_zoo.report.matrices import sheets
from cl_zoo.report.page.content import Gallery, Run, Told
from cl_zoo.report.page.render import render
from cl_zoo.report.sheets import as_markdown, as_text, escaped, narrowed
from cl_zoo.report.table import Table
from cl_zoo.runs import tidy
from cl_zoo.runs.beside import Beside, beside
from cl_zoo.runs.comparison import Comparison
from cl_zoo.runs.examples import examples, pictures
from cl_zoo.runs.finding import Found

MATRICES = "Scores on each task after each task"


@dataclass(frozen=True)
class Part:
    """One comparison as it is reported.

    Attributes:
        title: benchmark and order: `mini, version 2: rendition → chart`.
        name: the benchmark alone.
        beside: the same beside publications.
    """

    title: str
    name: str
    table: Table
    comparison: Comparison
    beside: tuple[Beside, ...] = ()


def parts(found: Found, scoring: str = "official", papers: Sequence[str] = ()) -> list[Part]:
    """The comparisons with their tables and titles.

    Args:
        papers: publications, by name or file, that they are put beside.

    Raises:
        RunError: no run is finished.
        OptionError: there is no such publication.
    """
    if not found.comparisons:
        told = "; ".join(str(one) for one in found.left_out)
        raise RunError(f"no finished run is there: {told}")
    return [_part(one, scoring, papers) for one in found.comparisons]


def _part(comparison: Comparison, scoring: str, papers: Sequence[str]) -> Part:
    table = comparison.table(scoring)
    others = tuple(beside(table, comparison.results, paper) for paper in papers)
    return Part(_title(comparison), _name(comparison), table, comparison, others)


def text(told: list[Part], width: int | None = None) -> str:
    """Tables and matrices as plain text, under titles where there are several comparisons."""
    return "\n".join(
        "\n".join(
            [
                f"{_underlined(one.title) if len(told) > 1 else ''}{one.table.text(width)}",
                matrices(one.table, width),
                *(paper.text(width) for paper in one.beside),
            ]
        )
        for one in told
    )


def matrices(table: Table, width: int | None = None) -> str:
    """The accuracy matrices as plain text."""
    narrow = [as_text(part) for sheet in sheets(table) for part in narrowed(sheet, width)]
    return "\n".join([f"{MATRICES}:\n", *narrow])


def markdown(told: list[Part]) -> str:
    """Tables and matrices as Markdown, a heading for each comparison."""
    pieces = []
    for one in told:
        pieces += [f"# {escaped(one.title)}\n", one.table.markdown(), f"## {MATRICES}\n"]
        pieces += [as_markdown(sheet) for sheet in sheets(one.table)]
        pieces += [paper.markdown() for paper in one.beside]
    return "\n".join(pieces)


def latex(told: list[Part]) -> str:
    """The tables as LaTeX, each publication in a table of its own behind them."""
    pieces = []
    for one in told:
        pieces.append(as_latex(one.table, one.title))
        pieces += [sheet_as_latex(paper.sheet(), paper.heading) for paper in one.beside if paper.compared]
    return "\n".join(pieces)


def as_csv(told: list[Part], kind: str = "cells") -> str:
    """Tidy rows, one for each run and cell; columns that only some runs have are empty in the others."""
    return tidy.as_csv([row for one in told for row in tidy.records(one.comparison.results, kind)])


def as_json(told: list[Part], found: Found) -> dict[str, Any]:
    """What `--json` of `compare` prints for each comparison, and the runs that are in none."""
    tables = [
        {
            "title": one.title,
            **one.table.to_json(),
            **({"beside": [paper.to_json() for paper in one.beside]} if one.beside else {}),
        }
        for one in told
    ]
    left = [{"run": str(one.folder), "why": one.why} for one in found.left_out]
    return {"tables": tables, "left_out": left}


def html(told: list[Part], found: Found, count: int = 3, data: str | None = None) -> str:
    """The page.

    Args:
        count: examples of each task.
        data: the folder of the benchmark's data, for the pictures of examples; default: the one that the runs were made with.
    """
    pages = []
    for one in told:
        runs = [Run(r.label, r.seed, r.manifest) for r in one.comparison.results if r.error is None]
        asides = [paper.aside() for paper in one.beside]
        pages.append(Told(one.title, one.name, one.table, runs, _gallery(one, count, data), asides))
    return render(pages, [str(one) for one in found.left_out])


def _gallery(part: Part, count: int, data: str | None) -> Gallery:
    """Examples of the first order of a comparison."""
    finished = [one for one in part.comparison.results if one.error is None]
    learners = [one for one in finished if one.manifest["protocol"] == "sequential"]
    if not learners:
        return Gallery()
    first = learners[0].manifest
    shown, note = pictures(
        examples([one for one in learners if one.manifest["tasks"] == first["tasks"]], count), first, data
    )
    return Gallery(shown, [lesson["name"] for lesson in first["lessons"]], note)


def figures(told: list[Part], folder: str) -> Iterator[Path]:
    """Write the figures of all comparisons into a folder, which is made; yields the files."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(told, start=1):
        yield from write_figures(one.table, place, f"{number}-" if len(told) > 1 else "")


def left_out(found: Found) -> Iterator[str]:
    """A line for each run that no table shows."""
    return (f"left out: {one}" for one in found.left_out)


def _name(comparison: Comparison) -> str:
    """The benchmark: `mini, version 2`."""
    about = comparison.results[0].manifest["identity"]["benchmark"]
    version = f", version {about['version']}" if about.get("version") else ""
    limit = f", {about['limit']} samples a split" if about.get("limit") else ""
    return f"{about['name']}{version}{limit}"


def _title(comparison: Comparison) -> str:
    """Benchmark and order, fit for a terminal."""
    orders = dict.fromkeys(tuple(one.manifest["tasks"]) for one in comparison.results)
    order = " → ".join(next(iter(orders))) if len(orders) == 1 else f"{len(orders)} orders"
    return printable(f"{_name(comparison)}: {order}")


def _underlined(title: str) -> str:
    return f"{title}\n{'=' * len(title)}\n\n"
