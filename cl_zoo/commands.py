"""The commands that run nothing on a benchmark: what is installed, what it costs, whether it keeps its promises."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from cl_zoo.flags import AsJson, AsMarkdown, Pairs, RecipeFile, Sets, With, options, values


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

    choices = stack(method, with_ or (), (), options(option))
    filled = build_recipe(values(recipe, set_))
    found = sizes(choices, shapes(backbone), filled, tasks)
    if as_json:
        print_json(
            {"method": method, "backbone": backbone, "rank": filled.adapter.rank}
            | {"tasks": [size.to_json() for size in found]}
        )
    else:
        print(as_sheet(found), end="")


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
        print_json([entry.to_json() for entry in entries])
    elif as_markdown:
        print(catalogue.markdown(entries))
    else:
        print(catalogue.text(entries))
    if any(entry.fault for entry in entries):
        raise SystemExit(2)


def show(
    method: Annotated[str, typer.Argument(help="An installed method, module:Class or file.py:Class.")],
) -> None:
    """A method's documentation, options, hooks and origin."""
    from cl_zoo import catalogue

    print(catalogue.describe(method))


def new(
    name: Annotated[str, typer.Argument(help="Small letters, digits and single underscores: my_method")],
) -> None:
    """Write a package for a method of your own to ./cl-zoo-NAME."""
    from pathlib import Path

    from cl_zoo import newcomer

    folder = newcomer.new(name, Path())
    print(f"wrote ./{folder}; next: python -m pip install -e ./{folder} && cl-zoo check {name}")


def check(
    method: Annotated[
        str, typer.Argument(help="An installed method, module:Class, file.py:Class or a stack: moelora+ewc")
    ],
    option: Pairs = None,
    slow: Annotated[
        bool, typer.Option("--slow", help="With the promises that start processes of their own.")
    ] = False,
) -> None:
    """Check on tiny tasks that a method keeps every promise; exit code 1 where it breaks one."""
    from cl_zoo.conformance import check_and_print

    if not check_and_print(method, options(option), slow=slow):
        raise SystemExit(1)


def print_json(value: Any) -> None:
    """A result as JSON on standard output."""
    print(json.dumps(value, indent=1, ensure_ascii=False))
