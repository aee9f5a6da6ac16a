"""`cl-zoo data`: check a benchmark's files, fetch what the hub holds of them, and write them as they were understood."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cl_zoo.cli.flags import AsJson, Data
from cl_zoo.cli.looking import print_json
from cl_zoo.cli.terminal import check_writable

if TYPE_CHECKING:
    from cl_zoo.inspection.check import Watch

app = typer.Typer(name="data", help="Check, fetch and convert a benchmark's data.", no_args_is_help=True)
BenchmarkArgument = Annotated[
    str, typer.Argument(metavar="BENCHMARK", help="An installed benchmark, my.yaml or module:function.")
]


@app.command()
def check(
    benchmark: BenchmarkArgument,
    data: Data = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every pixel; finds damage inside a file, and takes long.")
    ] = False,
    overlap: Annotated[
        str,
        typer.Option("--overlap", help="Compare images of training and test: exact, perceptual or none."),
    ] = "exact",
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Processes that open images; default: one per core.")
    ] = None,
    report: Annotated[
        str | None, typer.Option("--report", help="File of the whole report, JSON or .html.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read every record and open every image; exit code 1 where something has to be put right."""
    from pathlib import Path

    from rich.console import Console

    from cl_zoo.data.benchmarks import benchmark_loader
    from cl_zoo.inspection.check import inspect
    from cl_zoo.machine import cores

    plugin, file = benchmark_loader(benchmark), Path(report) if report else None
    if file is not None:
        check_writable("--report", file)
    settings: dict[str, Any] = {"decode": decode, "overlap": overlap, "processes": jobs or cores()}
    with _bar(Console(stderr=True)) as watch:
        found = inspect(plugin, Path(data) if data else None, name=benchmark, watch=watch, **settings)
    if as_json:
        print_json(found.to_json())
    else:
        found.show(Console())
    if file is not None:  # last: what was found is shown even where a disk is full
        found.write(file)
    if not found.ok:
        raise SystemExit(1)


@app.command()
def fetch(
    benchmark: BenchmarkArgument,
    data: Annotated[str, typer.Option("--data", help="Folder that the data go to.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be fetched; write nothing.")
    ] = False,
) -> None:
    """Fetch what the Hugging Face hub holds of a benchmark, and say where the rest comes from."""
    from pathlib import Path

    from cl_zoo.data.benchmarks import benchmark_loader
    from cl_zoo.data.fetching import fetch as fetch_all
    from cl_zoo.errors import DataError

    description = getattr(benchmark_loader(benchmark), "description", None)
    if description is None:
        raise DataError(f"benchmark {benchmark}: no file describes it, so there is nothing to fetch")
    sources = [*description.sources, *(source for task in description.tasks for source in task.sources)]
    if not sources:
        raise DataError(f"benchmark {benchmark}: its description names no sources; add them under 'sources'")
    fetch_all(sources, Path(data), dry_run=dry_run)


@app.command()
def convert(
    benchmark: BenchmarkArgument,
    out: Annotated[str, typer.Option("--out", help="A new folder for JSON lines and their YAML file.")],
    data: Data = None,
) -> None:
    """Write every record as it was understood, as JSON lines of our own, with a YAML file that describes them."""
    from pathlib import Path

    from cl_zoo.data.benchmarks import Described, benchmark_loader, made
    from cl_zoo.data.converting import convert as convert_all
    from cl_zoo.errors import OptionError

    if not out.strip():
        raise OptionError("--out is empty; pass a new folder")
    plugin, folder = benchmark_loader(benchmark), Path(data) if data else None
    file = convert_all(made(plugin, folder, benchmark), plugin, Path(out))
    if data is None and isinstance(plugin, Described) and plugin.beside:
        data = str(plugin.path.parent)  # pictures stay where they are
    print(f"next: cl-zoo data check {file}{f' --data {data}' if data else ''}")


@contextmanager
def _bar(console: Any) -> Iterator[Watch]:
    """A progress bar on a terminal, nothing in a log file."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        bar = bars.add_task("", total=None)
        yield lambda phase, done, total: bars.update(bar, description=phase, completed=done, total=total)
