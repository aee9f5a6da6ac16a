"""`cl-zoo analyze`: what stands behind a table; each analysis prints a sentence and writes rows and a figure where they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from cl_zoo.cli.looking import print_json
from cl_zoo.cli.terminal import check_writable, write_file

if TYPE_CHECKING:
    from cl_zoo.analysis.outcome import Outcome

app = typer.Typer(
    name="analyze",
    help="Look behind the table: each analysis prints a sentence and writes rows and a figure.",
    no_args_is_help=True,
)
Csv = Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Tidy rows of all that was measured.")]
FigureFile = Annotated[str | None, typer.Option("--figure", metavar="FILE", help="The figure, .png or .svg.")]


def telling(csv: str | None, figure: str | None, as_json: bool) -> Callable[[Outcome], None]:
    """What prints an outcome and writes its files; that they can be written is found out here, before anything is computed.

    Raises:
        OptionError: a file cannot be written, or a figure's name does not end in a format.
    """
    from pathlib import Path

    from cl_zoo.analysis.outcome import check_figure

    for option, name in (("--csv", csv), ("--figure", figure)):
        if name is not None:
            check_writable(option, Path(name))
    if figure is not None:
        check_figure(Path(figure))

    def tell(found: Outcome) -> None:
        from cl_zoo.errors import printable
        from cl_zoo.runs.tidy import as_csv

        if as_json:
            print_json(found.to_json())
        else:
            print(printable(found.sentence))
            print(f"\n{found.text}" if found.text else "", end="")
        write_file(csv, lambda: as_csv(found.rows))
        if figure is not None:
            found.write_figure(Path(figure))
            print(f"wrote {figure}", file=sys.stderr)

    return tell
