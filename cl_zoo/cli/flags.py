"""Flags that several commands share, and what they mean together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cl_zoo.errors import DEBUG, OptionError, nearest

if TYPE_CHECKING:
    from cl_zoo.runs.equal import Fair


def _debug(value: bool) -> bool:
    """Through the environment, which the worker processes of a comparison get."""
    if value:
        os.environ[DEBUG] = "1"
    return value


With = Annotated[list[str] | None, typer.Option("--with", help="A further plugin of the stack; repeatable.")]
Probe = Annotated[list[str] | None, typer.Option("--probe", help="A plugin that only measures; repeatable.")]
Pairs = Annotated[list[str] | None, typer.Option("--option", "-o", help="METHOD.option=value; repeatable.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Recipe value, key=value with dots (lr.projector=0); repeatable."),
]
RecipeFile = Annotated[
    str | None, typer.Option("--recipe", help="paper, released, mcitlib, coin, or a YAML file.")
]
Budget = Annotated[
    str | None,
    typer.Option("--budget", help="What methods may train: parameters (the default) or published."),
]
BenchmarkName = Annotated[
    str,
    typer.Option(
        "--benchmark", help=r"An installed name, my.yaml, or either with \[option=value]; see show benchmark."
    ),
]
BackboneName = Annotated[
    str | None, typer.Option("--backbone", help="NAME, NAME:PATH, or a LLaVA checkpoint folder.")
]
Features = Annotated[
    str | None, typer.Option("--features", help="Feature encoder: open_clip NAME/PRETRAINED or a folder.")
]
Template = Annotated[
    str | None, typer.Option("--template", help="Chat template by name, or a text with {prompt}.")
]
ImageAspect = Annotated[
    str | None, typer.Option("--image-aspect", help="pad, crop or stretch an image to the tower's square.")
]
Cache = Annotated[str | None, typer.Option("--cache", help="Folder for image features that all runs share.")]
CacheLimit = Annotated[
    float | None,
    typer.Option(
        "--cache-limit", metavar="GIB", help="Disk that --cache may take; default: all but the last GiB."
    ),
]
Data = Annotated[str | None, typer.Option("--data", help="Folder of the benchmark's data.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="One seed; default: 0.")]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="N seeds, 0 to N-1.")]
Order = Annotated[str | None, typer.Option("--order", help="Letters (RAVICF) or comma-separated task names.")]
OrderList = Annotated[
    list[str] | None,
    typer.Option("--order", help="Letters (RAVICF), task names or a name of the benchmark's; repeatable."),
]
Orders = Annotated[
    int | None,
    typer.Option("--orders", min=1, help="N orders: the default and N-1 drawn ones, the same for everybody."),
]
Vary = Annotated[
    list[str] | None,
    typer.Option("--vary", help="METHOD.option=value,value: a run for each value; repeatable."),
]
Executor = Annotated[
    str | None,
    typer.Option(
        "--executor",
        help=r"Who makes the runs: local, ray\[cpus=1], slurm\[partition=gpu,time=120], print or another that is installed; default: local.",
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", help="Samples per split.")]
Cells = Annotated[str, typer.Option("--cells", help="Scores to measure: lower, last or full.")]
Scoring = Annotated[
    str,
    typer.Option("--scoring", help="Scores to show: official or strict; both are kept."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Out = Annotated[str, typer.Option("--out", help="Folder of all runs.")]
Gate = Annotated[
    str | None,
    typer.Option(
        "--gate",
        metavar="NAME[=POINTS]",
        help="Train only if the untouched model scores as a publication's zero-shot row or a finished run does.",
    ),
]
Trackers = Annotated[
    list[str] | None,
    typer.Option("--tracker", help="Curves for tensorboard, wandb, mlflow or trackio; repeatable."),
]
Preflight = Annotated[
    bool,
    typer.Option(
        "--preflight/--no-preflight",
        help="Check all records and pictures with tokenizer, image processor and scorer before the first step.",
    ),
]
Hold = Annotated[
    list[str] | None,
    typer.Option(
        "--hold",
        help="Held equal besides steps, samples and trained-parameters, or by how much: stored-parameters, inference-flops=0.5.",
    ),
]
Match = Annotated[
    str | None,
    typer.Option(
        "--match", help="trained-parameters: methods get the rank that comes nearest to the budget."
    ),
]
AllowUnequal = Annotated[
    bool, typer.Option("--allow-unequal", help="Run methods with a larger budget too, and stamp their rows.")
]
KeepStates = Annotated[
    str,
    typer.Option(
        "--keep-states",
        help="States that a finished run keeps: last, or all, so that a run with another later task goes on from them.",
    ),
]
CheckpointEvery = Annotated[
    float,
    typer.Option(
        "--checkpoint-every", metavar="MINUTES", help="Time between checkpoints within a task; 0: none."
    ),
]
Sharding = Annotated[
    str,
    typer.Option(
        "--sharding",
        help="none, or fsdp: the processes of torchrun share the frozen layers of a base larger than one GPU.",
    ),
]
Compile = Annotated[
    str,
    typer.Option(
        "--compile",
        help="Compile the decoder layers while a task is learnt: on, off, or auto, on an accelerator if the task is long.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print as Markdown.")]
Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_debug, help="Tracebacks of plugins whole, not only their own lines."),
]

SETTINGS = """
backbone features template image_aspect cache cache_limit data order limit cells device out preflight keep_states
checkpoint_every compile
""".split()
"""Flags that are keywords of `cl_zoo.run` and `cl_zoo.compare` as they are."""


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags of a command say, as the keywords of `cl_zoo.run` and `cl_zoo.compare`.

    Args:
        given: the command's parameters by name, as `typer.Context.params` holds them.

    Raises:
        OptionError: a recipe key is unknown or a value out of range.
    """
    from cl_zoo.recipe.recipe import build_recipe

    filled = values(given["recipe"], given["set_"], given["budget"])
    build_recipe(filled)  # a misspelt key is found before anything else happens
    return {"recipe": filled, **{name: given[name] for name in SETTINGS}}


def values(recipe: str | None, sets: list[str] | None, budget: str | None = None) -> dict[str, Any]:
    """Recipe values by dotted key: those of the named recipe or file, with `--set` and `--budget` over them."""
    from cl_zoo.recipe.keys import parse_pairs, read_recipe
    from cl_zoo.recipe.recipe import layered

    declared = {"budget": budget} if budget else {}
    return layered(read_recipe(recipe) if recipe else {}, parse_pairs(sets or [], "--set"), declared)


def options(pairs: list[str] | None) -> dict[str, dict[str, Any]]:
    """Option values by plugin name."""
    from cl_zoo.errors import OptionError
    from cl_zoo.recipe.keys import parse_pairs

    found: dict[str, dict[str, Any]] = {}
    for key, value in parse_pairs(pairs or [], "-o").items():
        method, dot, name = key.rpartition(".")
        if not dot:
            raise OptionError(f"-o {key}={value}: write it as METHOD.option=value")
        found.setdefault(method, {})[name] = value
    return found


def vary(pairs: list[str] | None) -> dict[str, dict[str, list[Any]]]:
    """Values of varied options by plugin name."""
    from cl_zoo.errors import OptionError
    from cl_zoo.names import split
    from cl_zoo.recipe.keys import parse_pairs

    found: dict[str, dict[str, list[Any]]] = {}
    for pair in pairs or []:
        key, equals, texts = pair.partition("=")
        method, _, name = key.strip().rpartition(".")
        if not (equals and method and name):
            raise OptionError(f"--vary {pair}: write it as METHOD.option=value,value")
        if name in found.get(method, {}):
            raise OptionError(f"--vary {key.strip()} is given twice; name all its values in one")
        parts = [text for text in split(texts, ",") if text.strip()]
        read = [parse_pairs([f"{key}={text}"], "--vary")[key.strip()] for text in parts]
        found.setdefault(method, {})[name] = read
    return found


def chosen_orders(order: list[str] | None, orders: int | None) -> int | list[str] | None:
    """The orders that `--order` or `--orders` asks for.

    Raises:
        OptionError: both are given.
    """
    from cl_zoo.errors import OptionError

    if order and orders is not None:
        raise OptionError(f"--order {order[0]} and --orders {orders} are both given; use one of them")
    return order or orders


def chosen_seeds(seed: int | None, seeds: int | None) -> list[int]:
    """The seeds that `--seed` or `--seeds` asks for.

    Raises:
        OptionError: both are given.
    """
    from cl_zoo.errors import OptionError

    if seed is not None and seeds is not None:
        raise OptionError(f"--seed {seed} and --seeds {seeds} are both given; use one of them")
    return list(range(seeds)) if seeds is not None else [seed or 0]


def chosen_fair(hold: list[str] | None, match: str | None, *, allow: bool) -> Fair:
    """What a comparison holds equal, and what comes of a difference.

    Raises:
        OptionError: there is no such quantity, or it cannot be matched.
    """
    from cl_zoo.runs.equal import TRAINED_PARAMETERS, Fair, held

    if match not in (None, TRAINED_PARAMETERS):
        raise OptionError(f"--match {match}{nearest(str(match), [TRAINED_PARAMETERS])}")
    return Fair(held(hold or ()), allow, match is not None)
