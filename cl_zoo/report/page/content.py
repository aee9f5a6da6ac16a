"""What the page is made of: for each comparison its table, its runs' manifests and some examples, all of it plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cl_zoo.report.sheets import Line
from cl_zoo.report.table import Table


@dataclass(frozen=True)
class Run:
    """A finished run: the label and seed of its row, and its manifest."""

    label: str
    seed: int
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Gallery:
    """Examples of one comparison.

    Attributes:
        examples: objects with `task`, `place`, `first`, `question`, `expected`, `picture`, `forgotten` and `said`, each of these with `label`,
            `answers` and `forgotten`.
        stages: what was learnt before each answer.
        note: why something is not shown.
    """

    examples: Sequence[Any] = ()
    stages: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Block:
    """Lines of one method beside one published row.

    Attributes:
        label: of our method.
        title: what is compared: `Last`.
        lines: ours, theirs and the difference.
    """

    label: str
    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Aside:
    """One publication beside a comparison.

    Attributes:
        heading: its name and source.
        columns: the tasks and their mean.
        remarks: what is not compared, and what differences may be due to.
    """

    heading: str
    columns: tuple[str, ...]
    blocks: tuple[Block, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Told:
    """One comparison.

    Attributes:
        title: benchmark and order in one line.
        name: the benchmark alone.
    """

    title: str
    name: str
    table: Table
    runs: Sequence[Run]
    gallery: Gallery = Gallery()
    asides: Sequence[Aside] = ()
