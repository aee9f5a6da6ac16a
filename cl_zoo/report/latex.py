"""Sheets as LaTeX: booktabs, every name escaped, the best value bold and the second underlined."""

from __future__ import annotations

from collections.abc import Iterator

from cl_zoo.errors import printable
from cl_zoo.report.sheets import NOTES, Entry, Rank, Sheet
from cl_zoo.report.table import Table

SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # behind a line's end it would begin an argument
    "]": "{]}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "…": r"\ldots{}",
    "→": r"$\to$",
    "−": "$-$",
}
"""What stands for a sign that LaTeX takes as an order, or that its standard fonts lack."""

MARKS: dict[Rank, str] = {"": "%s", "best": r"\textbf{%s}", "second": r"\underline{%s}"}


def as_latex(table: Table, caption: str = "") -> str:
    """The table's sheets, each in a `table` environment; the notes of its methods stand below as text.

    Args:
        caption: of the first; plain text.
    """
    parts = ["% needs \\usepackage{booktabs}\n"]
    for sheet in table.sheets:
        parts.append(sheet_as_latex(sheet, caption))
    return "\n".join(parts)


def sheet_as_latex(sheet: Sheet, caption: str = "") -> str:
    """One sheet in a `table` environment."""
    return "\n".join(_environment(sheet, caption)) + "\n"


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is, on one line."""
    return "".join(SIGNS.get(sign, sign) for sign in " ".join(printable(text).split()))


def _environment(sheet: Sheet, caption: str) -> Iterator[str]:
    shown = [n for n, name in enumerate(sheet.columns) if name != NOTES]
    yield r"\begin{table}"
    yield r"\centering"
    if caption:
        yield rf"\caption{{{escaped(caption)}}}"
    yield rf"\begin{{tabular}}{{l{'r' * len(shown)}}}"
    yield r"\toprule"
    yield " & ".join(["", *(escaped(sheet.columns[n]) for n in shown)]) + r" \\"
    for section in sheet.sections:
        yield r"\midrule"
        if section.title:
            yield rf"\multicolumn{{{len(shown) + 1}}}{{l}}{{\emph{{{escaped(section.title)}}}}} \\"
        for line in section.lines:
            yield " & ".join([escaped(line.label), *(_value(line.entries[n]) for n in shown)]) + r" \\"
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield from _notes(sheet)
    yield r"\end{table}"


def _notes(sheet: Sheet) -> Iterator[str]:
    if NOTES not in sheet.columns:
        return
    column = sheet.columns.index(NOTES)
    told = [
        f"{escaped(line.label)}: {escaped(line.entries[column].text)}."
        for section in sheet.sections
        for line in section.lines
        if line.entries[column].text
    ]
    if told:
        yield r"\par\smallskip\footnotesize " + " ".join(told)


def _value(entry: Entry) -> str:
    return MARKS[entry.rank] % escaped(entry.text)
