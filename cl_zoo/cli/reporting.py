"""The commands for runs that are there already: report them, list them, remove what is named of them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cl_zoo.cli.flags import AsJson, Data, Scoring
from cl_zoo.cli.looking import print_json
from cl_zoo.cli.terminal import write_file

Runs = Annotated[
    list[str],
    typer.Argument(metavar="RUNS…", help="Folders of runs, of folders of runs, or patterns: runs/mini-*"),
]
RunsIn = Annotated[str, typer.Argument(metavar="OUT", help="Folder of runs.")]
Markdown = Annotated[
    str | None, typer.Option("--markdown", metavar="FILE", help="Tables and matrices as Markdown.")
]
Csv = Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Tidy rows, one per run and cell.")]
Latex = Annotated[str | None, typer.Option("--latex", metavar="FILE", help="Tables for LaTeX with booktabs.")]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="All of it as JSON, as compare --json.")
]
Html = Annotated[
    str | None, typer.Option("--html", metavar="FILE", help="One page that needs no other file.")
]
Figures = Annotated[str | None, typer.Option("--figures", metavar="DIR", help="Figures as PNG and SVG.")]
Papers = Annotated[
    list[str] | None,
    typer.Option(
        "--beside", metavar="PAPER", help="Published rows beside ours, see show published; repeatable."
    ),
]
Examples = Annotated[int, typer.Option("--examples", min=0, help="Samples of each task that the page shows.")]


def report(
    runs: Runs,
    markdown: Markdown = None,
    csv: Csv = None,
    latex: Latex = None,
    json_: Json = None,
    html: Html = None,
    figures: Figures = None,
    beside: Papers = None,
    scoring: Scoring = "official",
    examples: Examples = 3,
    data: Data = None,
) -> None:
    """Print tables and matrices of finished runs and write them to files; nothing is computed anew."""
    import shutil

    from cl_zoo.errors import printable
    from cl_zoo.report.table import known_scoring
    from cl_zoo.runs import written
    from cl_zoo.runs.finding import find_runs

    known_scoring(scoring)
    found = find_runs(runs)
    for line in written.left_out(found):
        print(printable(line), file=sys.stderr)
    told = written.parts(found, scoring, beside or ())
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(written.text(told, width), end="")
    write_file(markdown, lambda: written.markdown(told))
    write_file(csv, lambda: written.as_csv(told))
    write_file(latex, lambda: written.latex(told))
    write_file(json_, lambda: _json(written.as_json(told, found)))
    write_file(html, lambda: written.html(told, found, examples, data))
    if figures:
        count = sum(1 for _ in written.figures(told, figures))
        print(f"wrote {count} files to {figures}", file=sys.stderr)


def _json(value: object) -> str:
    import json

    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def runs(
    out: RunsIn = "runs",
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder: finished, unfinished and damaged ones, with size and age."""
    from pathlib import Path

    from cl_zoo.runs import listing

    found = listing.listed(Path(out))
    if as_json:
        print_json([one.to_json() for one in found])
    elif found:
        print(listing.text(found), end="")
    else:
        print(f"no run is in {out}")


def clean(
    context: typer.Context,
    out: RunsIn = "runs",
    partial: Annotated[bool, typer.Option("--partial", help="Unfinished runs.")] = False,
    damaged: Annotated[bool, typer.Option("--damaged", help="What verify --repair has set aside.")] = False,
    states: Annotated[
        bool, typer.Option("--states", help="Checkpoints of finished runs: scores stay, models go.")
    ] = False,
    trained: Annotated[bool, typer.Option("--trained", help="Trainings that several runs share.")] = False,
    preflight: Annotated[bool, typer.Option("--preflight", help="What preflight remembers.")] = False,
    logs: Annotated[bool, typer.Option("--logs", help="Logs of workers and plugins.")] = False,
    cache: Annotated[
        str | None, typer.Option("--cache", metavar="DIR", help="Image features in this folder.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this it is only shown.")] = False,
) -> None:
    """Show what of a folder of runs would be removed, and with --yes remove it; only what is named."""
    from pathlib import Path

    from cl_zoo.errors import printable
    from cl_zoo.runs import cleaning
    from cl_zoo.runs.listing import as_size

    given = context.params
    kinds = [kind for kind in cleaning.KINDS if given[kind]]
    found = cleaning.named(Path(out), kinds, Path(cache) if cache else None)
    ended = list(cleaning.remove(found)) if yes else found
    for item in ended:
        print(printable(item.text()))
    gone = [item for item in ended if not item.kept]
    total = as_size(sum(item.size for item in gone))
    if yes:
        print(f"removed {len(gone)} of {len(found)}, {total}")
    else:
        print(f"{len(gone)} of {len(found)} would be removed, {total}; pass --yes to remove them")
