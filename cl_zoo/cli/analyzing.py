"""`cl-zoo analyze`: what stands behind a table; each analysis prints a sentence and writes rows and a figure where they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cl_zoo.cli.flags import (
    AsJson,
    BackboneName,
    BenchmarkName,
    Cache,
    Data,
    Device,
    Features,
    Limit,
    Order,
    Out,
    Pairs,
    RecipeFile,
    Seed,
    Sets,
    options,
    values,
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
Method = Annotated[
    str,
    typer.Argument(help="A stack as `run` takes it, of one LoRA per layer, which learns each task alone."),
]
Questions = Annotated[
    int | None, typer.Option("--questions", min=1, help="Test questions of each task; default: all.")
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


@app.command()
def merge(
    context: typer.Context,
    method: Method,
    scale: Annotated[
        list[float] | None,
        typer.Option(
            "--scale", help="Factor on the sum of all; repeatable; default: 1, 1/2, one by the tasks."
        ),
    ] = None,
    questions: Questions = None,
    option: Pairs = None,
    set_: Sets = None,
    recipe: RecipeFile = None,
    benchmark: BenchmarkName = "mini",
    backbone: BackboneName = None,
    features: Features = None,
    cache: Cache = None,
    data: Data = None,
    seed: Seed = None,
    order: Order = None,
    limit: Limit = None,
    device: Device = "auto",
    out: Out = "runs",
    csv: Csv = None,
    figure: FigureFile = None,
    as_json: AsJson = False,
) -> None:
    """Learn each task alone, add the LoRAs up, and measure what each task keeps; the projector is frozen, the runs are remembered."""
    from cl_zoo.analysis.apart import tasks_of
    from cl_zoo.analysis.merging import merging

    tell, settings = telling(csv, figure, as_json), run_settings(context.params)
    with watching(len(tasks_of(benchmark, data, order))) as watch:
        found = merging(method, scales=scale or (), questions=questions, watch=watch, **settings)
    tell(found)


@app.command()
def layers(
    context: typer.Context,
    method: Method,
    groups: Annotated[
        int | None, typer.Option("--groups", min=1, help="Groups of layers; default: one each, at most 8.")
    ] = None,
    scale: Annotated[float, typer.Option("--scale", help="Factor on the sum of all tasks' LoRAs.")] = 1.0,
    questions: Questions = None,
    option: Pairs = None,
    set_: Sets = None,
    recipe: RecipeFile = None,
    benchmark: BenchmarkName = "mini",
    backbone: BackboneName = None,
    features: Features = None,
    cache: Cache = None,
    data: Data = None,
    seed: Seed = None,
    order: Order = None,
    limit: Limit = None,
    device: Device = "auto",
    out: Out = "runs",
    csv: Csv = None,
    figure: FigureFile = None,
    as_json: AsJson = False,
) -> None:
    """Answer with own, added-up and foreign LoRAs by group of layers, to see where a task needs its own; the runs are remembered."""
    from cl_zoo.analysis.apart import tasks_of
    from cl_zoo.analysis.layered import layered

    tell, settings = telling(csv, figure, as_json), run_settings(context.params)
    with watching(len(tasks_of(benchmark, data, order)) + 1) as watch:
        found = layered(method, groups=groups, scale=scale, questions=questions, watch=watch, **settings)
    tell(found)


def run_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags of a command say, as keywords of `cl_zoo.run`.

    Raises:
        OptionError: a recipe key is unknown or a value out of range, or an option is misspelt.
    """
    names = ("benchmark", "backbone", "features", "cache", "data", "order", "limit", "device", "out")
    settings = {name: given[name] for name in names}
    settings |= {"recipe": values(given["recipe"], given["set_"]), "options": options(given["option"])}
    return {**settings, "seed": given["seed"] or 0}


@contextmanager
def watching(runs: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Tells on standard error what so many runs do, and keeps everything else that is printed meanwhile off standard output."""
    from rich.console import Console

    from cl_zoo.runs.progress import progress_for

    with working(), progress_for(Console(stderr=True), runs) as watch:
        yield watch
