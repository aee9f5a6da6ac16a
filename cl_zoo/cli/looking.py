"""The commands that run nothing on a benchmark: what is installed, what it costs, whether it keeps its promises."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cl_zoo.cli.flags import (
    AsJson,
    AsMarkdown,
    BenchmarkName,
    Budget,
    Cache,
    CacheLimit,
    Cells,
    Data,
    Debug,
    Limit,
    Order,
    Out,
    Pairs,
    RecipeFile,
    Seeds,
    Sets,
    With,
    options,
    values,
)


def ledger(
    method: Annotated[
        str | None,
        typer.Argument(
            help="A stack as `run` takes it: branchlora, moelora+ewc; default: all methods side by side."
        ),
    ] = None,
    backbone: Annotated[
        str,
        typer.Option("--backbone", help="llava-1.5-7b, llava-1.5-13b, or a LLaVA folder with config.json."),
    ] = "llava-1.5-7b",
    with_: With = None,
    option: Pairs = None,
    set_: Sets = None,
    recipe: RecipeFile = None,
    budget: Budget = None,
    tasks: Annotated[int, typer.Option("--tasks", min=1, help="Length of the stream.")] = 6,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            help="Methods that each have a recipe of their own: mcitlib-ucit, prism-ucit, or a YAML file.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count what methods train, store and use on a model's real shapes; no weights, no data, no network."""
    if suite is not None:
        _suite(suite, backbone, as_json)
        return
    from cl_zoo.contract.plugins import every_method
    from cl_zoo.engine.sizes import sizes
    from cl_zoo.names import stack
    from cl_zoo.planning.sizes import as_sheet, shapes, side_by_side
    from cl_zoo.recipe.recipe import build_recipe

    filled = build_recipe(values(recipe, set_, budget))
    found = {}
    for name in [method] if method else every_method():
        choices = stack(name, with_ or (), (), options(option), strict=method is not None)
        found[name] = sizes(choices, shapes(backbone), filled, tasks)
    if as_json:
        about = {"backbone": backbone, "rank": filled.adapter.rank, "budget": filled.budget}
        counted = [
            {"method": name, **about, "tasks": [size.to_json() for size in one]}
            for name, one in found.items()
        ]
        print_json(counted[0] if method else counted)
    else:
        print(as_sheet(found[method]) if method else side_by_side(found), end="")


def _suite(name: str, backbone: str, as_json: bool) -> None:
    from cl_zoo.planning.suites import as_sheet, spent_by, to_json
    from cl_zoo.recipe.suite import read_suite

    spent = spent_by(read_suite(name), backbone)
    if as_json:
        print_json({"suite": name, "backbone": backbone, "methods": to_json(spent)})
    else:
        print(as_sheet(spent), end="")


def list_(
    check: Annotated[
        bool, typer.Option("--check", help="Import each plugin in a process of its own.")
    ] = False,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Installed methods, benchmarks, backbones and executors."""
    from cl_zoo.cli import catalogue

    entries = catalogue.entries(check=check)
    if as_json:
        print_json([entry.to_json() for entry in entries])
    elif as_markdown:
        print(catalogue.markdown(entries))
    else:
        print(catalogue.text(entries))
    if any(entry.fault for entry in entries):
        raise SystemExit(2)


def show(
    what: Annotated[
        str,
        typer.Argument(
            help="A method (hide, module:Class), or a kind: method, benchmark, backbone, executor, recipe, published."
        ),
    ],
    name: Annotated[str | None, typer.Argument(help="Which one of the kind; default: all of it.")] = None,
) -> None:
    """A method's documentation, options and hooks; a recipe's sources; a benchmark's tasks; published results."""
    from cl_zoo.cli.showing import show as show_one

    print(show_one(what, name))


def forecast(
    methods: Annotated[
        str | None, typer.Option("--methods", help="As for compare; default: the benchmark's.")
    ] = None,
    with_: With = None,
    option: Pairs = None,
    set_: Sets = None,
    recipe: RecipeFile = None,
    budget: Budget = None,
    benchmark: BenchmarkName = "mini",
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="A published name (llava-1.5-7b), a checkpoint folder, or a plugin."),
    ] = None,
    data: Data = None,
    cache: Cache = None,
    cache_limit: CacheLimit = None,
    seeds: Seeds = None,
    order: Order = None,
    limit: Limit = None,
    cells: Cells = "lower",
    gpu: Annotated[str, typer.Option("--gpu", help="Its name, or its TFLOP/s in bf16.")] = "a100",
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="How many; they share the runs.")] = 1,
    efficiency: Annotated[
        float | None, typer.Option("--efficiency", help="Share of the GPU's peak that is reached.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate what a comparison will cost; no weights, no data and no GPU are needed."""
    from cl_zoo.api import expanded
    from cl_zoo.names import split, stack
    from cl_zoo.planning.forecast import outlook

    planner, named, assumed = outlook.plan(
        benchmark,
        backbone,
        values(recipe, set_, budget),
        data=data,
        order=order,
        limit=limit,
        cells=cells,
        gpu=gpu,
        efficiency=efficiency,
        shelved=cache is not None,
        cache_limit=cache_limit,
    )
    names = expanded([part for part in split(methods, ",") if part.strip()]) if methods else named
    found = [
        planner.forecast(stack(name, with_ or (), (), options(option), strict=len(names) == 1))
        for name in names
    ]
    about: dict[str, Any] = {"seeds": seeds or 1, "gpus": gpus, "assumed": assumed}
    if as_json:
        print_json(outlook.to_json(found, planner, **about))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(outlook.text(found, planner, width=width, **about))


def doctor(
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", help="Look for the files of this benchmark too.")
    ] = None,
    data: Data = None,
    cache: Cache = None,
    out: Out = "runs",
    as_json: AsJson = False,
) -> None:
    """Look at everything that a run needs on this machine; exit code 1 where something is broken."""
    from cl_zoo.cli.doctor import examine, text, working

    found = examine(out=out, cache=cache, benchmark=benchmark, data=data)
    if as_json:
        print_json({"ok": working(found), "findings": [finding.to_json() for finding in found]})
    else:
        print(text(found))
    if not working(found):
        raise SystemExit(1)


def new(
    name: Annotated[str, typer.Argument(help="Small letters, digits and single underscores: my_method")],
) -> None:
    """Write a package for a method of your own to ./cl-zoo-NAME."""
    from pathlib import Path

    from cl_zoo.cli import template

    folder = template.new(name, Path())
    print(f"wrote ./{folder}; next: python -m pip install -e ./{folder} && cl-zoo check {name}")


def check(
    method: Annotated[
        str, typer.Argument(help="An installed method, module:Class, file.py:Class or a stack: moelora+ewc")
    ],
    option: Pairs = None,
    slow: Annotated[
        bool, typer.Option("--slow", help="With the promises that start processes of their own.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Check on tiny tasks that a method keeps every promise; exit code 1 where it breaks one."""
    from cl_zoo.testing.conformance.check import check_and_print

    if not check_and_print(method, options(option), slow=slow):
        raise SystemExit(1)


def print_plan(plan: Any, *, as_json: bool) -> None:
    """What a comparison would run, as a table or as JSON on standard output."""
    from cl_zoo.report.sheets import as_text

    forecast = plan.forecast()
    if forecast.seconds is None:
        from cl_zoo.planning.forecast.unmeasured import by_shapes

        forecast = by_shapes(plan) or forecast
    if as_json:
        print_json(plan.to_json(forecast))
    else:
        print(f"{as_text(plan.sheet(forecast))}\n{plan}\n{forecast}")


def print_left(comparison: Any, *, as_json: bool) -> None:
    """The commands of the runs that nobody has made, on standard output; on standard error what to do with them."""
    if as_json:
        print_json([asdict(one) for one in comparison.left])
    else:
        print("\n".join(one.command for one in comparison.left))
    count, all_ = len(comparison.left), len(comparison.left) + len(comparison.results)
    print(
        f"{count} of {all_} runs {'is' if count == 1 else 'are'} missing, and nothing was run; call the commands above from this folder, "
        "then this one again, which prints the table",
        file=sys.stderr,
    )


def print_json(value: Any) -> None:
    """A result as JSON on standard output."""
    print(json.dumps(value, indent=1, ensure_ascii=False))
