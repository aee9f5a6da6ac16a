"""`cl-zoo analyze`: what stands behind a table; each analysis prints a sentence and writes rows and a figure where they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from cl_zoo.cli.flags import (
    AsJson,
    BackboneName,
    BenchmarkName,
    Cache,
    Data,
    Device,
    Order,
    Pairs,
    options,
)
from cl_zoo.cli.looking import print_json
from cl_zoo.cli.reporting import Runs
from cl_zoo.cli.terminal import check_writable, working, write_file

if TYPE_CHECKING:
    from cl_zoo.analysis.outcome import Outcome

app = typer.Typer(
    name="analyze",
    help="Look behind the table: each analysis prints a sentence and writes rows and a figure.",
    no_args_is_help=True,
)
Csv = Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Tidy rows of all that was measured.")]
SomeRuns = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUNS]…", help="Finished runs that had the probe; without them a backbone is looked at."
    ),
]
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


@app.command()
def forgetting(
    runs: Runs,
    csv: Csv = None,
    figure: FigureFile = None,
    as_json: AsJson = False,
) -> None:
    """Follow each test sample of finished runs: which lesson turned it from right to wrong, and what is wrong in form alone."""
    from cl_zoo.analysis.forgetting import forgetting as analysed

    tell = telling(csv, figure, as_json)
    tell(analysed(runs))


@app.command()
def orders(
    runs: Runs,
    csv: Csv = None,
    figure: FigureFile = None,
    as_json: AsJson = False,
) -> None:
    """Put Avg and Last of finished runs beside each other, order by order, and the spread over orders beside that over seeds."""
    from cl_zoo.analysis.orders import orders as analysed

    tell = telling(csv, figure, as_json)
    tell(analysed(runs))


@app.command()
def cka(
    context: typer.Context,
    runs: SomeRuns = None,
    samples: Annotated[int, typer.Option("--samples", min=4, help="Training questions of each task.")] = 64,
    option: Pairs = None,
    benchmark: BenchmarkName = "mini",
    backbone: BackboneName = None,
    data: Data = None,
    cache: Cache = None,
    order: Order = None,
    device: Device = "auto",
    csv: Csv = None,
    figure: FigureFile = None,
    as_json: AsJson = False,
) -> None:
    """Measure how alike tasks are represented, layer by layer, beside what shuffled samples give; on a backbone as it is, or of runs."""
    from cl_zoo.analysis import likeness
    from cl_zoo.names import stack

    tell = telling(csv, figure, as_json)
    if runs:
        tell(likeness.of_runs(runs))
        return
    name = str(context.info_name)  # the probe is called as the command is
    (probe,) = stack(f"{name}[samples={samples}]", (), (), options(option))
    settings = {"benchmark": benchmark, "backbone": backbone, "data": data, "cache": cache}
    with working():
        found = likeness.of_backbone(
            probe,
            watch=lambda task: print(f"looks at {task}", file=sys.stderr),
            order=order,
            device=device,
            **settings,
        )
    tell(found)
