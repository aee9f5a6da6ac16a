"""Rows as columns of text for a terminal: words to the left, figures to the right with two digits, `–` for what is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def columns(rows: Sequence[Mapping[str, Any]], heads: Mapping[str, str], signed: Sequence[str] = ()) -> str:
    """Lines of equal columns under their heads, the first column to the left.

    Args:
        rows: with the keys of `heads`; further keys are not shown.
        heads: what stands above each column, by key, in the order of the columns.
        signed: keys of differences, which are written with their sign.
    """
    cells = [[_cell(row.get(key), key in signed) for key in heads] for row in rows]
    texts = [all(isinstance(row.get(key), str) for row in rows) for key in heads]
    lines = [list(heads.values()), *cells]
    widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]
    told = []
    for line in lines:
        parts = [
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, texts, strict=True)
        ]
        told.append("  ".join(["", *parts]).rstrip())
    return "\n".join(told) + "\n"


def _cell(value: Any, signed: bool) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:+.2f}" if signed else f"{value:.2f}"
    return str(value)
