"""Sheets of values, and how they look on a terminal, in plain text and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from cl_zoo.report.estimates import Estimate

Rank = Literal["", "best", "second"]
STYLES: dict[Rank, str] = {"": "", "best": "bold", "second": "underline"}
MARKS: dict[Rank, str] = {"": "", "best": "**", "second": "_"}

UNKNOWN = "–"

NOTES = "Notes"
"""The name of a column of sentences."""

GAP = "  "
"""Between two columns, and before the label of a line."""

WRAPPED = 24
"""Terminal cells that wrapped notes get at least."""


@dataclass(frozen=True)
class Entry:
    """One value as it is printed."""

    text: str
    rank: Rank = ""


@dataclass(frozen=True)
class Line:
    """One line: a value for each column."""

    label: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Section:
    """Lines under a title, which may be empty."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Sheet:
    """Sections under one row of column names. Values stand right, but those of a column called Notes left."""

    columns: tuple[str, ...]
    sections: tuple[Section, ...]


def score(value: Estimate | None) -> str:
    """Two decimals, `±` and the deviation where there are several seeds, `–` where there is no value."""
    if value is None:
        return UNKNOWN
    mean = f"{round(value.mean, 2) + 0.0:.2f}"  # + 0.0 turns -0.0 into 0.0
    return mean if value.std is None else f"{mean} ± {value.std:.2f}"


def parameters(value: Estimate | None) -> str:
    """A number of parameters: `512`, `5.30 k`, `0.18 M`, `7.06 B`."""
    if value is None:
        return UNKNOWN
    if value.mean < 1e3:
        return f"{value.mean:.0f}"
    unit, name = (1e3, "k") if value.mean < 1e4 else (1e6, "M") if value.mean < 1e9 else (1e9, "B")
    return f"{value.mean / unit:.2f} {name}"


def seconds(value: Estimate | None) -> str:
    """Seconds: `3.0`, `155`."""
    if value is None:
        return UNKNOWN
    return f"{value.mean:.0f}" if value.mean >= 100 else f"{value.mean:.1f}"


def flops(value: Estimate | None) -> str:
    """A number of floating-point operations: `1.2 T`."""
    if value is None:
        return UNKNOWN
    units = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
    return next(
        (f"{value.mean / one:.1f} {unit}" for one, unit in units if value.mean >= one), f"{value.mean:.0f}"
    )


def memory(value: Estimate | None) -> str:
    """Peak memory: `910 MB`, `1.21 GB`."""
    if value is None:
        return UNKNOWN
    return f"{value.mean / 1000:.2f} GB" if value.mean >= 1000 else f"{value.mean:.0f} MB"


def measure(value: Estimate) -> str:
    """A measurement of whatever size, in four digits: `0.9812`, `1.2e-05`, `± 0.01` behind it where there are several seeds."""
    return f"{value.mean:.4g}" + ("" if value.std is None else f" ± {value.std:.2g}")


def distinct(names: Sequence[str]) -> list[str]:
    """Column names; one that comes again is numbered."""
    return [
        f"{name} ({k})" if (k := names[: n + 1].count(name)) > 1 else name for n, name in enumerate(names)
    ]


def as_rich(sheet: Sheet) -> Table:
    """A table for a rich console: notes are wrapped where it is too narrow, and nothing is cut."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True, overflow="fold")
    for name in sheet.columns:
        table.add_column(Text(name), justify="left" if name == NOTES else "right", overflow="fold")
    for section in sheet.sections:
        if section.title:
            table.add_row(Text(section.title, style="italic"))
        for line in section.lines:
            # a span, because the style of the whole text would underline the space before it too
            values = [Text().append(entry.text, STYLES[entry.rank]) for entry in line.entries]
            table.add_row(Text(GAP + line.label), *values)
        table.add_section()
    return table


def as_text(sheet: Sheet) -> str:
    """Plain text, as wide as it needs to be; every line ends with a line break."""
    widths = _widths(sheet)
    heading = _join(widths, sheet, "", sheet.columns)
    lines = [heading, "-" * cell_len(heading)]
    for section in sheet.sections:
        if section.title:
            lines.append(section.title)
        for line in section.lines:
            lines.append(_join(widths, sheet, GAP + line.label, [entry.text for entry in line.entries]))
    return "".join(line + "\n" for line in lines)


def as_markdown(sheet: Sheet) -> str:
    """A Markdown table; the best value is **bold** and the second _italic_."""
    lines = [["", *sheet.columns], ["---", *("---" if name == NOTES else "---:" for name in sheet.columns)]]
    for section in sheet.sections:
        if section.title:
            lines.append([f"*{escaped(section.title)}*", *[""] * len(sheet.columns)])
        for line in section.lines:
            values = (f"{MARKS[e.rank]}{escaped(e.text)}{MARKS[e.rank]}" for e in line.entries)
            lines.append([escaped(line.label), *values])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def narrowed(sheet: Sheet, width: int | None) -> Iterator[Sheet]:
    """The sheet as several that fit into a width, each with some of the columns, at least one.

    Args:
        width: in terminal cells; `None` leaves the sheet as it is. Long notes are expected to be wrapped.
    """
    label, *widths = _widths(sheet)
    start, used = 0, label
    for n, (name, column) in enumerate(zip(sheet.columns, widths, strict=True)):
        needed = len(GAP) + (min(column, WRAPPED) if name == NOTES else column)
        if width is not None and used + needed > width and n > start:
            yield _columns(sheet, start, n)
            start, used = n, label
        used += needed
    yield _columns(sheet, start, len(widths))


def _columns(sheet: Sheet, start: int, end: int) -> Sheet:
    sections = tuple(
        Section(s.title, tuple(Line(line.label, line.entries[start:end]) for line in s.lines))
        for s in sheet.sections
    )
    return Sheet(sheet.columns[start:end], sections)


def _widths(sheet: Sheet) -> list[int]:
    """Of the labels, then of each column."""
    lines = [line for section in sheet.sections for line in section.lines]
    labels = [section.title for section in sheet.sections] + [GAP + line.label for line in lines]
    columns = [[name, *(line.entries[n].text for line in lines)] for n, name in enumerate(sheet.columns)]
    return [max(map(cell_len, column)) for column in (labels, *columns)]


def _join(widths: Sequence[int], sheet: Sheet, label: str, values: Sequence[str]) -> str:
    cells = [label + " " * (widths[0] - cell_len(label))]
    for name, width, value in zip(sheet.columns, widths[1:], values, strict=True):
        space = " " * (width - cell_len(value))
        cells.append(value + space if name == NOTES else space + value)
    return GAP.join(cells).rstrip()


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return "".join("\\" + letter if letter in "\\|*_[]<>`" else letter for letter in " ".join(text.split()))
