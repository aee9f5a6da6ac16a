"""Published tables and matrices: a YAML file each, figures as printed, under the names that their authors gave them.

A mean is kept as it was printed. Where it is not that of its cells `right` holds what is, so that nobody reckons with a slip of print;
the tests recompute every mean. Avg and MAA, Last and ACC, BWT over T and over T − 1 are names of their own and never stand for each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from cl_zoo.errors import OptionError, first_line
from cl_zoo.recipe.keys import file_named
from cl_zoo.recipe.recipe import validated

TABLES = Path(__file__).parent
"""Publications with a name, one YAML file each."""

SOURCE = ("paper", "repository")
"""Keys of a source, one of which says whose figures they are."""

Cell = float | None
"""A score in percent, or that it was not measured, not printed or cannot be read."""


class _Said(BaseModel):
    """Part of a file; a misspelt key is a fault."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(_Said):
    """One row of a table.

    Attributes:
        method: as printed.
        ours: label of the method here, `hide[expanded=all]`; `None` where there is none.
        protocol: `none` for the untouched model, `joint` for training on all tasks at once.
        metric: as printed; empty where a table has one score for each task and no name for it.
        cells: a score for each task in the order of the columns; empty where means alone are printed.
        mean: as printed; `None` where there is none, or it cannot be read.
        right: the mean of the cells, where the printed one is another.
        order: letters of the tasks, where it is not that of the whole table.
        note: what a reader has to know.
    """

    method: str
    ours: str | None = None
    protocol: Literal["sequential", "joint", "none"] = "sequential"
    metric: str = ""
    cells: tuple[Cell, ...] = ()
    mean: float | None = None
    right: float | None = None
    order: str = ""
    note: str = ""

    @property
    def to_reckon_with(self) -> float | None:
        """The mean that differences are taken to: the right one."""
        return self.mean if self.right is None else self.right


class Grid(_Said):
    """Scores after each task.

    Attributes:
        method, ours: as in `Row`.
        metric: name of one score, as printed.
        scores: after each task those of the tasks seen, in the order of the columns.
        means: of each row, as printed; empty where there are none.
    """

    method: str
    ours: str | None = None
    metric: str = ""
    scores: tuple[tuple[Cell, ...], ...]
    means: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _a_triangle(self) -> Grid:
        if [len(row) for row in self.scores] != list(range(1, len(self.scores) + 1)):
            raise ValueError(f"the matrix of {self.method} has no row of k scores after each k-th task")
        return self


class Setting(_Said):
    """How a table's methods were trained, by the names that this is called here.

    Attributes:
        recipe: one for all methods, or
        suite: one of those in which each method has its own.
        values: recipe values over it, by dotted key.
        source: where all this is read.
        unlike: what of it is known not to be as theirs, a sentence each.
    """

    recipe: str = ""
    suite: str = ""
    values: Mapping[str, Any] = {}
    source: str
    unlike: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> Setting:
        if bool(self.recipe) == bool(self.suite):
            raise ValueError("its setting names a recipe or a suite, one of them")
        return self


class Publication(_Said):
    """What one table or file gives.

    Attributes:
        about: a sentence on what it is.
        source: paper and table, or repository, commit and file.
        benchmark: name of the benchmark here.
        backbone: name of the backbone here, or a description of one that is not here.
        order: letters of the tasks, in which they were learnt.
        tasks: heading of each column, and the name of its task here.
        rows, matrices: the figures.
        caveats: why its figures are not measured as ours are, a sentence each.
        setting: how its methods were trained; `None` where that cannot be set up here.
    """

    about: str
    source: Mapping[str, str]
    benchmark: str
    backbone: str
    order: str
    tasks: Mapping[str, str]
    rows: tuple[Row, ...] = ()
    matrices: tuple[Grid, ...] = ()
    caveats: tuple[str, ...] = ()
    setting: Setting | None = None

    @model_validator(mode="after")
    def _a_cell_for_each_task(self) -> Publication:
        if not set(SOURCE) & self.source.keys():
            raise ValueError(f"its source names none of {', '.join(SOURCE)}")
        for row in self.rows:
            if row.cells and len(row.cells) != len(self.tasks):
                raise ValueError(
                    f"{row.method}, {row.metric}: {len(row.cells)} cells for {len(self.tasks)} tasks"
                )
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The tasks by their names here, in the order of the columns."""
        return tuple(self.tasks.values())

    @property
    def labels(self) -> tuple[str, ...]:
        """The methods here that stand for its rows and matrices, each once."""
        return tuple(
            dict.fromkeys(
                filter(None, [*(row.ours for row in self.rows), *(grid.ours for grid in self.matrices)])
            )
        )

    @property
    def orders(self) -> tuple[str, ...]:
        """The orders that its rows learnt the tasks in, in letters, each once."""
        return tuple(dict.fromkeys([row.order or self.order for row in self.rows])) or (self.order,)

    def scores(self, row: Row) -> dict[str, float]:
        """The cells of a row that are known, by the name of the task here."""
        return {
            task: cell
            for task, cell in zip(self.columns, row.cells or [None] * len(self.columns), strict=True)
            if cell is not None
        }

    def cited(self) -> str:
        """Its source in a line: `Guo et al., HiDe-LLaVA, ACL 2025, table 1`."""
        whose = [self.source[key] for key in SOURCE if key in self.source]
        where = [f"{key} {text}" for key, text in self.source.items() if key not in (*SOURCE, "url")]
        return ", ".join([*whose, *where])


def published() -> dict[str, str]:
    """The publications that go by a name, with a sentence about each."""
    return {name: read_published(name).about for name in sorted(file.stem for file in TABLES.glob("*.yaml"))}


def read_published(name: str | Path) -> Publication:
    """A publication by name, or from a YAML file of the same form.

    Raises:
        OptionError: there is no such publication or file, or it is not written so.
    """
    file = file_named(name, TABLES, "publication")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"{file}: {first_line(error)}; pass a readable YAML file") from None
    if not isinstance(content, Mapping):
        raise OptionError(f"{file}: holds no mapping; write lines such as 'benchmark: ucit'")
    return validated(Publication, content, str(name))
