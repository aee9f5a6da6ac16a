"""`cl-zoo reproduce`: a published table run as it was made, ours beside theirs, and whether it is reached."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cl_zoo.cli.flags import (
    AsJson,
    BackboneName,
    Cache,
    Data,
    Device,
    Executor,
    Features,
    Limit,
    Out,
    Seeds,
)
from cl_zoo.cli.looking import print_json

if TYPE_CHECKING:
    from cl_zoo.planning.reproducing import Target
    from cl_zoo.runs.comparison import Comparison

SETTINGS = ("data", "features", "cache", "limit", "device", "out")
"""Flags that are settings of a run as they are."""


def reproduce(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(metavar="TARGET", help="A published table, see show published; default: list them."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="Some of its methods alone, by their names here.")
    ] = None,
    data: Data = None,
    backbone: BackboneName = None,
    features: Features = None,
    cache: Cache = None,
    seeds: Seeds = None,
    limit: Limit = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="Points by which ours may lie above or below.")
    ] = 1.0,
    gpu: Annotated[str, typer.Option("--gpu", help="Of the forecast: a name, or TFLOP/s in bf16.")] = "a100",
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Of the forecast: how many.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is missing and what it will cost, and run nothing.")
    ] = False,
    executor: Executor = None,
    device: Device = "auto",
    out: Out = "runs",
    as_json: AsJson = False,
) -> None:
    """Run a published table in its own setting, and say of each figure whether it is reached."""
    from cl_zoo.planning.reproducing import costs, lacking, read_target, targets

    if target is None:
        print(targets(), end="")
        return
    chosen = read_target(target, methods)
    missing = lacking(chosen, data, backbone)
    if not as_json:
        print(chosen.about())
    if missing or dry_run:
        about: dict[str, Any] = {"seeds": seeds or 1, "gpu": gpu, "gpus": gpus, "limit": limit}
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        text, values = costs(chosen, data=None if missing else data, width=width, **about)
        if as_json:
            print_json({"target": target, "missing": missing, "forecast": values})
        else:
            print("\n".join([*(f"missing: {one}" for one in missing), "", text]))
        raise SystemExit(0 if dry_run else 2)
    given = {name: context.params[name] for name in SETTINGS}
    settings = {**given, "backbone": backbone or chosen.paper.backbone, "executor": executor}
    _tell(_run(chosen, seeds or 1, settings), target, tolerance, as_json)


def _run(target: Target, seeds: int, settings: dict[str, Any]) -> Comparison:
    """All runs of a target, those with one recipe together."""
    from rich.console import Console

    from cl_zoo.api import compare
    from cl_zoo.runs.comparison import Comparison
    from cl_zoo.runs.equal import Fair
    from cl_zoo.runs.progress import progress_for

    made = []
    for methods, recipe in target.groups:
        with progress_for(Console(stderr=True)) as watch:
            made.append(
                compare(
                    methods,
                    benchmark=target.paper.benchmark,
                    recipe=recipe,
                    seeds=seeds,
                    orders=target.paper.orders,
                    fair=Fair(allow=True),
                    watch=watch,
                    told=watch.told,
                    **settings,
                )
            )
    return Comparison(tuple(result for one in made for result in one.results))


def _tell(comparison: Comparison, target: str, tolerance: float, as_json: bool) -> None:
    """The table, theirs beside it, and the verdicts.

    Raises:
        SystemExit: 1 where a run failed or a figure is not reached.
    """
    from cl_zoo.runs.beside import beside
    from cl_zoo.runs.verdict import verdicts

    table = comparison.table()
    found = beside(table, comparison.results, target)
    judged = list(verdicts(found, tolerance))
    if as_json:
        print_json(
            {**table.to_json(), "beside": found.to_json(), "verdicts": [one.to_json() for one in judged]}
        )
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(table.text(width), found.text(width), *(one.text() for one in judged), sep="\n")
    ours = [one.word for one in judged if one.label]  # rows of methods that are not here say nothing of ours
    if comparison.failed or any(word != "reached" for word in ours) or not ours:
        raise SystemExit(1)
