"""The command line: select a method by name, compare methods, look at what is installed.

Heavy imports stay inside the commands: `cl-zoo --help` and `cl-zoo list` load no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from cl_zoo import __version__

app = typer.Typer(
    name="cl-zoo",
    help="Continual-learning methods for multimodal language models: run, compare, extend.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

With = Annotated[list[str] | None, typer.Option("--with", help="A further plugin of the stack; repeatable.")]
Probe = Annotated[list[str] | None, typer.Option("--probe", help="A plugin that only measures; repeatable.")]
Pairs = Annotated[list[str] | None, typer.Option("--option", "-o", help="METHOD.option=value; repeatable.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Recipe value, key=value with dots (lr.projector=0); repeatable."),
]
RecipeFile = Annotated[str | None, typer.Option("--recipe", help="YAML file of recipe values.")]
BenchmarkName = Annotated[str, typer.Option("--benchmark", help="Installed benchmark.")]
BackboneName = Annotated[
    str | None, typer.Option("--backbone", help="NAME, NAME:PATH, or a LLaVA checkpoint folder.")
]
Features = Annotated[
    str | None, typer.Option("--features", help="Feature encoder: open_clip NAME/PRETRAINED or a folder.")
]
Data = Annotated[str | None, typer.Option("--data", help="Folder of the benchmark's data.")]
Seed = Annotated[int, typer.Option("--seed", help="One seed.")]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="N seeds, 0 to N-1.")]
Order = Annotated[str | None, typer.Option("--order", help="Letters (RAVICF) or comma-separated task names.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Samples per split.")]
Cells = Annotated[str, typer.Option("--cells", help="Scores to measure: lower, last or full.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Out = Annotated[str, typer.Option("--out", help="Folder of all runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print as Markdown.")]


@app.command()
def run(
    method: Annotated[
        str, typer.Argument(help="hide, hide[variant=released], moelora+ewc, module:Class or file.py:Class")
    ],
    with_: With = None,
    probe: Probe = None,
    option: Pairs = None,
    set_: Sets = None,
    recipe: RecipeFile = None,
    benchmark: BenchmarkName = "mini",
    backbone: BackboneName = None,
    features: Features = None,
    data: Data = None,
    seed: Seed = 0,
    seeds: Seeds = None,
    order: Order = None,
    limit: Limit = None,
    cells: Cells = "lower",
    device: Device = "auto",
    out: Out = "runs",
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Run one method on a benchmark; the same command resumes an interrupted run."""
    from cl_zoo.api import run as run_one
    from cl_zoo.comparison import Comparison
    from cl_zoo.progress import progress_for

    settings = _settings(recipe, set_, backbone, features, data, order, limit, cells, device, out)
    chosen = range(seeds) if seeds else [seed]
    results = []
    with _resumable(), progress_for(_console(stderr=True), len(chosen)) as watch:
        for one in chosen:
            result = run_one(
                method,
                benchmark=benchmark,
                with_=with_ or (),
                probes=probe or (),
                options=_options(option),
                seed=one,
                watch=watch,
                **settings,
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
        _show(Comparison(tuple(results)), as_json, as_markdown)


@app.command()
def compare(
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods", help="finetune,moelora+ewc,'hide[variant=released]'; all; default: the benchmark's."
        ),
    ] = None,
    with_: With = None,
    probe: Probe = None,
    option: Pairs = None,
    set_: Sets = None,
    recipe: RecipeFile = None,
    benchmark: BenchmarkName = "mini",
    backbone: BackboneName = None,
    features: Features = None,
    data: Data = None,
    seed: Seed = 0,
    seeds: Seeds = None,
    order: Order = None,
    limit: Limit = None,
    cells: Cells = "lower",
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Runs at a time; default: one per GPU or core.")
    ] = None,
    device: Device = "auto",
    out: Out = "runs",
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Run several methods at one budget, in parallel, and print one table."""
    from cl_zoo.api import compare as compare_all
    from cl_zoo.choices import split
    from cl_zoo.jobs import load_benchmark
    from cl_zoo.progress import progress_for

    settings = _settings(recipe, set_, backbone, features, data, order, limit, cells, device, out)
    names = (
        [part for part in split(methods, ",") if part.strip()]
        if methods
        else list(load_benchmark(benchmark, data).default_methods)
    )
    chosen = list(range(seeds)) if seeds else [seed]
    with _resumable(), progress_for(_console(stderr=True), len(names) * len(chosen)) as watch:
        comparison = compare_all(
            names,
            benchmark=benchmark,
            seeds=chosen,
            with_=with_ or (),
            probes=probe or (),
            options=_options(option),
            processes=jobs,
            watch=watch,
            **settings,
        )
    _show(comparison, as_json, as_markdown)
    if comparison.failed:
        raise SystemExit(2 if all(one.user_error for one in comparison.failed) else 1)


@app.command()
def ledger(
    method: Annotated[str, typer.Argument(help="A stack as `run` takes it: branchlora, moelora+ewc")],
    backbone: Annotated[
        str,
        typer.Option("--backbone", help="llava-1.5-7b, llava-1.5-13b, or a LLaVA folder with config.json."),
    ] = "llava-1.5-7b",
    with_: With = None,
    option: Pairs = None,
    set_: Sets = None,
    recipe: RecipeFile = None,
    tasks: Annotated[int, typer.Option("--tasks", min=1, help="Length of the stream.")] = 6,
    as_json: AsJson = False,
) -> None:
    """Count what a method trains, stores and uses on a model's real shapes; no weights, no data, no network."""
    from cl_zoo.api import stack
    from cl_zoo.config import build_recipe
    from cl_zoo.sizes import as_sheet, shapes, sizes

    choices = stack(method, with_ or (), (), _options(option))
    filled = build_recipe(_values(recipe, set_))
    found = sizes(choices, shapes(backbone), filled, tasks)
    if as_json:
        _print_json(
            {"method": method, "backbone": backbone, "rank": filled.adapter.rank}
            | {"tasks": [size.to_json() for size in found]}
        )
    else:
        print(as_sheet(found), end="")


@app.command("list")
def list_(
    check: Annotated[
        bool, typer.Option("--check", help="Import each plugin in a process of its own.")
    ] = False,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Installed methods, benchmarks and backbones."""
    from cl_zoo import catalogue

    entries = catalogue.entries(check=check)
    if as_json:
        _print_json([entry.to_json() for entry in entries])
    elif as_markdown:
        print(catalogue.markdown(entries))
    else:
        print(catalogue.text(entries))
    if any(entry.fault for entry in entries):
        raise SystemExit(2)


@app.command()
def show(
    method: Annotated[str, typer.Argument(help="An installed method, module:Class or file.py:Class.")],
) -> None:
    """A method's documentation, options, hooks and origin."""
    from cl_zoo import catalogue

    print(catalogue.describe(method))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Continual-learning methods for multimodal language models: run, compare, extend."""
    if version:
        print(f"cl-zoo {__version__}")
        raise SystemExit(0)


def main() -> None:
    """Entry point: errors of the user are one sentence on standard error and exit code 2."""
    from cl_zoo.errors import ClZooError

    try:
        app()
    except ClZooError as error:
        _fail(str(error))
    except OSError as error:
        from cl_zoo.worker import describe

        _fail(describe(error))


@contextmanager
def _resumable() -> Iterator[None]:
    """Ctrl-C ends a command with a sentence; what is finished stays."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; the same command goes on after the last finished task", file=sys.stderr)
        raise SystemExit(130) from None


def _fail(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2) from None


def _settings(
    recipe: str | None,
    sets: list[str] | None,
    backbone: str | None,
    features: str | None,
    data: str | None,
    order: str | None,
    limit: int | None,
    cells: str,
    device: str,
    out: str,
) -> dict[str, Any]:
    from cl_zoo.config import build_recipe

    values = _values(recipe, sets)
    build_recipe(values)  # a misspelt key is found before anything else happens
    return {
        "recipe": values,
        "backbone": backbone,
        "features": features,
        "data": data,
        "order": order,
        "limit": limit,
        "cells": cells,
        "device": device,
        "out": out,
    }


def _values(recipe: str | None, sets: list[str] | None) -> dict[str, Any]:
    from pathlib import Path

    from cl_zoo.config import parse_pairs, read_recipe

    return {**(read_recipe(Path(recipe)) if recipe else {}), **parse_pairs(sets or [], "--set")}


def _options(pairs: list[str] | None) -> dict[str, dict[str, Any]]:
    from cl_zoo.config import parse_pairs
    from cl_zoo.errors import OptionError

    options: dict[str, dict[str, Any]] = {}
    for key, value in parse_pairs(pairs or [], "-o").items():
        method, dot, name = key.rpartition(".")
        if not dot:
            raise OptionError(f"-o {key}={value}: write it as METHOD.option=value")
        options.setdefault(method, {})[name] = value
    return options


def _console(*, stderr: bool = False) -> Any:
    """Results go to standard output, progress to standard error: `--json` can be piped."""
    from rich.console import Console

    return Console(stderr=stderr)


def _show(comparison: Any, as_json: bool, as_markdown: bool) -> None:
    table = comparison.table()
    if as_json:
        _print_json(table.to_json())
    elif as_markdown:
        print(table.markdown())
    else:
        table.show(_console())


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
