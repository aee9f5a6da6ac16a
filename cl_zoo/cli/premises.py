"""The analyses of what a comparison rests on: data that a model has seen, the choice of datasets, a method's parts, what else is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cl_zoo.cli.analyzing import Csv, FigureFile, SomeRuns, app, telling
from cl_zoo.cli.flags import (
    AsJson,
    BackboneName,
    BenchmarkName,
    Budget,
    Cells,
    Data,
    Device,
    Features,
    Limit,
    OrderList,
    Orders,
    Out,
    Pairs,
    RecipeFile,
    Seed,
    Seeds,
    Sets,
    chosen_orders,
    chosen_seeds,
    options,
    values,
)
from cl_zoo.cli.models import Encoder, RunFolder, Trusted, Weights
from cl_zoo.cli.terminal import working

if TYPE_CHECKING:
    from cl_zoo.analysis.leakage import Gap
    from cl_zoo.analysis.outcome import Outcome

Published = Annotated[
    bool, typer.Option("--published", help="The published tables in place of runs of your own.")
]
TestSamples = Annotated[int | None, typer.Option("--limit", min=1, help="Test samples of each task.")]


@app.command()
def leakage(
    runs: SomeRuns = None,
    published: Published = False,
    mix: Annotated[
        list[str] | None,
        typer.Option("--mix", metavar="PLACE", help="Records or a folder of a training mix; repeatable."),
    ] = None,
    planted: Annotated[
        bool, typer.Option("--planted", help="Plant changed test samples in a mix and count what is found.")
    ] = False,
    images: Annotated[
        list[str] | None,
        typer.Option("--images", metavar="DIR", help="Folder of the mix's pictures; repeatable."),
    ] = None,
    benchmark: BenchmarkName = "mini",
    data: Data = None,
    limit: TestSamples = None,
    run_words: Annotated[
        int | None, typer.Option("--words", min=1, help="Words of a run that texts share; default: 13.")
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            "--bits", min=0, max=256, help="Bits in which hashes of one picture may differ; default: 10."
        ),
    ] = None,
    csv: Csv = None,
    figure: FigureFile = None,
    as_json: AsJson = False,
) -> None:
    """How much a model knew before: zero-shot against multi-task scores, or what of a benchmark stands in a training mix."""
    from cl_zoo.analysis import leakage as gaps
    from cl_zoo.errors import OptionError

    tell = telling(csv, figure, as_json)
    asked = {"RUNS": runs, "--published": published, "--mix": mix, "--planted": planted}
    if len(given := [name for name, value in asked.items() if value]) != 1:
        raise OptionError(
            f"one of {', '.join(asked)} says what to look at, got {' and '.join(given) or 'none'}"
        )
    if runs or published:
        tell(gaps.leakage(_gaps(runs, published)))
        return
    how = {"length": run_words, "bits": bits, "limit": limit}
    with working():
        done = _looked_for(
            benchmark, data, mix, images, {key: one for key, one in how.items() if one is not None}
        )
    tell(done)


@app.command()
def screen(
    runs: SomeRuns = None,
    published: Published = False,
    highest: Annotated[
        float | None, typer.Option("--zero-shot", help="Highest zero-shot score that qualifies; default: 54.")
    ] = None,
    least: Annotated[
        float | None, typer.Option("--gain", help="Least gain of a multi-task model; default: 15.")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", help="Answer its test splits untouched first, as a run.")
    ] = None,
    backbone: BackboneName = None,
    data: Data = None,
    limit: Limit = None,
    device: Device = "auto",
    out: Out = "runs",
    csv: Csv = None,
    figure: FigureFile = None,
    as_json: AsJson = False,
) -> None:
    """Which tasks are worth learning: little known untouched, and much gained by training, as UCIT's datasets were chosen."""
    from cl_zoo.analysis import screening
    from cl_zoo.errors import OptionError

    tell = telling(csv, figure, as_json)
    asked = {"RUNS": runs, "--published": published, "--benchmark": benchmark}
    if len(given := [name for name, value in asked.items() if value]) != 1:
        raise OptionError(
            f"one of {', '.join(asked)} says what to screen, got {' and '.join(given) or 'none'}"
        )
    if benchmark:
        with working():
            settings = {"backbone": backbone, "data": data, "limit": limit, "device": device, "out": out}
            gaps = screening.zero_shot(benchmark, **settings)
    else:
        gaps = _gaps(runs, published)
    bounds = (screening.HIGHEST if highest is None else highest, screening.LEAST if least is None else least)
    tell(screening.screen(gaps, *bounds))


@app.command()
def ablate(
    method: Annotated[str, typer.Argument(help="A method that declares ablations: cl-zoo show METHOD.")],
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="A row or a source, 'Table 3'; repeatable; default: all."),
    ] = None,
    option: Pairs = None,
    set_: Sets = None,
    recipe: RecipeFile = None,
    budget: Budget = None,
    benchmark: BenchmarkName = "mini",
    backbone: BackboneName = None,
    features: Features = None,
    data: Data = None,
    seed: Seed = None,
    seeds: Seeds = None,
    order: OrderList = None,
    orders: Orders = None,
    limit: Limit = None,
    cells: Cells = "lower",
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Runs at a time.")] = None,
    device: Device = "auto",
    out: Out = "runs",
    csv: Csv = None,
    figure: FigureFile = None,
    as_json: AsJson = False,
) -> None:
    """Run the ablations that a method declares, and print them in their order with the paper's figures beside."""
    from rich.console import Console

    from cl_zoo.analysis.ablations import ablate as run_all
    from cl_zoo.errors import OptionError
    from cl_zoo.runs.progress import progress_for

    tell = telling(csv, figure, as_json)
    own = options(option)
    if others := own.keys() - {method}:
        raise OptionError(f"-o {min(others)}: only options of {method} can be set here")
    settings = {"backbone": backbone, "features": features, "data": data, "limit": limit, "cells": cells}
    with working(), progress_for(Console(stderr=True)) as watch:
        found = run_all(
            method,
            only or (),
            own.get(method),
            benchmark=benchmark,
            seeds=chosen_seeds(seed, seeds),
            orders=chosen_orders(order, orders),
            recipe=values(recipe, set_, budget),
            processes=jobs,
            device=device,
            out=out,
            watch=watch,
            told=watch.told,
            **settings,
        )
    tell(found)


@app.command()
def retention(
    run: RunFolder,
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", help="The held-out set; default: the run's own benchmark.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="Name or letter; repeatable; default: those that were not learnt."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="test or validation.")] = "test",
    limit: TestSamples = None,
    data: Data = None,
    backbone: Weights = None,
    features: Encoder = None,
    device: Device = "auto",
    trust: Trusted = None,
    csv: Csv = None,
    figure: FigureFile = None,
    as_json: AsJson = False,
) -> None:
    """Score a finished run's model on a held-out set, beside the model that it began with."""
    from cl_zoo.analysis.retention import retention as scored

    tell = telling(csv, figure, as_json)
    places = {"backbone": backbone, "features": features, "device": device, "trust": trust or ()}
    with working():
        found = scored(run, benchmark, tasks=task or (), split=split, limit=limit, data=data, **places)
    tell(found)


def _looked_for(
    benchmark: str, data: str | None, mix: list[str] | None, images: list[str] | None, how: dict[str, Any]
) -> Outcome:
    """What of a benchmark stands in a mix; without one, what is found of planted samples."""
    from cl_zoo.analysis.mixes import read_mix
    from cl_zoo.analysis.overlap import overlap
    from cl_zoo.analysis.planting import planting
    from cl_zoo.data.benchmarks import load_benchmark
    from cl_zoo.machine import cores

    found = load_benchmark(benchmark, data)
    return (
        overlap(found, read_mix(mix, images or ()), processes=cores(), **how)
        if mix
        else planting(found, **how)
    )


def _gaps(runs: list[str] | None, published: bool) -> list[Gap]:
    """Of finished runs, or of published tables."""
    import sys

    from cl_zoo.analysis.leakage import gaps_of, published_gaps
    from cl_zoo.errors import printable
    from cl_zoo.runs.finding import find_runs

    if published:
        return published_gaps()
    found = find_runs(runs or ())
    for one in found.left_out:
        print(printable(f"left out: {one}"), file=sys.stderr)
    return gaps_of(found.comparisons)
