"""The two commands that train: a method, or several at one budget."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from cl_zoo.cli import looking
from cl_zoo.cli.flags import (
    AllowUnequal,
    AsJson,
    AsMarkdown,
    BackboneName,
    BenchmarkName,
    Budget,
    Cache,
    CacheLimit,
    Cells,
    CheckpointEvery,
    Compile,
    Data,
    Debug,
    Device,
    Executor,
    Features,
    Gate,
    Hold,
    ImageAspect,
    KeepStates,
    Limit,
    Match,
    Order,
    OrderList,
    Orders,
    Out,
    Pairs,
    Preflight,
    Probe,
    RecipeFile,
    Scoring,
    Seed,
    Seeds,
    Sets,
    Sharding,
    Template,
    Trackers,
    Vary,
    With,
    chosen_fair,
    chosen_orders,
    chosen_seeds,
    options,
    settings,
)
from cl_zoo.cli.flags import vary as varied
from cl_zoo.cli.terminal import working
from cl_zoo.runs.job import EVERY


def run(
    context: typer.Context,
    method: Annotated[
        str, typer.Argument(help=r"hide, hide\[variant=released], moelora+ewc, module:Class or file.py:Class")
    ],
    with_: With = None,
    probe: Probe = None,
    option: Pairs = None,
    set_: Sets = None,
    recipe: RecipeFile = None,
    budget: Budget = None,
    benchmark: BenchmarkName = "mini",
    backbone: BackboneName = None,
    features: Features = None,
    template: Template = None,
    image_aspect: ImageAspect = None,
    cache: Cache = None,
    cache_limit: CacheLimit = None,
    data: Data = None,
    seed: Seed = None,
    seeds: Seeds = None,
    order: Order = None,
    limit: Limit = None,
    cells: Cells = "lower",
    scoring: Scoring = "official",
    device: Device = "auto",
    out: Out = "runs",
    gate: Gate = None,
    tracker: Trackers = None,
    preflight: Preflight = True,
    keep_states: KeepStates = "last",
    checkpoint_every: CheckpointEvery = EVERY,
    compile: Compile = "auto",
    sharding: Sharding = "none",
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
    debug: Debug = False,
) -> None:
    """Run one method on a benchmark; the same command resumes an interrupted run."""
    from cl_zoo.api import run as run_one
    from cl_zoo.report.table import known_scoring
    from cl_zoo.runs.comparison import Comparison
    from cl_zoo.runs.progress import progress_for

    known_scoring(scoring)
    filled = settings(context.params)
    chosen = chosen_seeds(seed, seeds)
    _remark(benchmark, filled)
    results = []
    with working(), progress_for(_console(stderr=True), len(chosen) + (gate is not None)) as watch:
        for one in chosen:
            result = run_one(
                method,
                benchmark=benchmark,
                with_=with_ or (),
                probes=probe or (),
                options=options(option),
                seed=one,
                gate=gate if one == chosen[0] else None,
                trackers=tracker or (),
                watch=watch,
                sharding=sharding,
                **filled,
            )
            if not result.complete:
                continue  # not the main process of a distributed run; that one scores and reports
            watch(
                {
                    "event": "finished",
                    "label": result.label,
                    "seed": one,
                    "last": result.matrix.last,
                    "seconds": result.ledger["seconds"],
                }
            )
            results.append(result)
    if results:
        _show(Comparison(tuple(results)), scoring, as_json, as_markdown)


def compare(
    context: typer.Context,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help=r"finetune,moelora+ewc,'hide\[variant=released]'; all; default: the benchmark's.",
        ),
    ] = None,
    with_: With = None,
    probe: Probe = None,
    option: Pairs = None,
    vary: Vary = None,
    set_: Sets = None,
    recipe: RecipeFile = None,
    budget: Budget = None,
    benchmark: BenchmarkName = "mini",
    backbone: BackboneName = None,
    features: Features = None,
    template: Template = None,
    image_aspect: ImageAspect = None,
    cache: Cache = None,
    cache_limit: CacheLimit = None,
    data: Data = None,
    seed: Seed = None,
    seeds: Seeds = None,
    order: OrderList = None,
    orders: Orders = None,
    limit: Limit = None,
    cells: Cells = "lower",
    scoring: Scoring = "official",
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Runs at a time; default: one per GPU or core.")
    ] = None,
    executor: Executor = None,
    hold: Hold = None,
    match: Match = None,
    allow_unequal: AllowUnequal = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan with a forecast of time, and run nothing.")
    ] = False,
    device: Device = "auto",
    out: Out = "runs",
    gate: Gate = None,
    tracker: Trackers = None,
    preflight: Preflight = True,
    keep_states: KeepStates = "last",
    checkpoint_every: CheckpointEvery = EVERY,
    compile: Compile = "auto",
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
    debug: Debug = False,
) -> None:
    """Run several methods at one budget, in parallel, and print one table."""
    from cl_zoo.api import compare as compare_all
    from cl_zoo.api import plan as plan_all
    from cl_zoo.names import split
    from cl_zoo.report.table import known_scoring
    from cl_zoo.runs.progress import progress_for

    known_scoring(scoring)
    chosen = chosen_orders(order, orders)
    filled = settings({**context.params, "order": None})
    grid: dict[str, Any] = {
        "methods": None if methods is None else [one for one in split(methods, ",") if one.strip()],
        "benchmark": benchmark,
        "seeds": chosen_seeds(seed, seeds),
        "orders": chosen,
        "vary": varied(vary),
        "with_": with_ or (),
        "probes": probe or (),
        "options": options(option),
        "processes": jobs,
        "executor": executor,
        "fair": chosen_fair(hold, match, allow=allow_unequal),
        **{name: value for name, value in filled.items() if name != "order"},
    }
    _remark(benchmark, filled, order)
    if dry_run:
        with working():
            plan = plan_all(**grid)
        looking.print_plan(plan, as_json=as_json)
        return
    with working(), progress_for(_console(stderr=True)) as watch:
        comparison = compare_all(**grid, gate=gate, trackers=tracker or (), watch=watch, told=watch.told)
    if comparison.left:
        looking.print_left(comparison, as_json=as_json)
        return
    _show(comparison, scoring, as_json, as_markdown)
    if comparison.failed:
        raise SystemExit(2 if all(one.user_error for one in comparison.failed) else 1)


def _remark(benchmark: str, filled: dict[str, Any], orders: list[str] | None = None) -> None:
    """Say on standard error what a user should know although nothing is wrong."""
    from cl_zoo.runs.remarks import remarks

    about = {key: filled[key] for key in ("data", "limit", "recipe")}
    found = (remarks(benchmark, **about, order=order) for order in orders or [filled["order"]])
    for line in dict.fromkeys(line for lines in found for line in lines):
        print(f"note: {line}", file=sys.stderr)


def _console(*, stderr: bool = False) -> Any:
    """Results go to standard output, progress to standard error: `--json` can be piped."""
    from rich.console import Console

    return Console(stderr=stderr)


def _show(comparison: Any, scoring: str, as_json: bool, as_markdown: bool) -> None:
    table = comparison.table(scoring)
    if as_json:
        looking.print_json(table.to_json())
    elif as_markdown:
        print(table.markdown())
    else:
        table.show(_console())
