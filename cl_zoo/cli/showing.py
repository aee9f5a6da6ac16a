"""What `cl-zoo show` prints of a kind, or of one of a kind."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from cl_zoo.cli.catalogue import aligned, describe, entries, plain, text
from cl_zoo.cli.keys import rows
from cl_zoo.contract.options import kind_of
from cl_zoo.data.benchmarks import benchmark_loader, load_benchmark
from cl_zoo.errors import OptionError, nearest
from cl_zoo.names import BACKBONES, EXECUTORS, find, load
from cl_zoo.published import published, read_published
from cl_zoo.recipe.keys import flatten, recipe_settings, recipes
from cl_zoo.report.printed import described

if TYPE_CHECKING:
    from cl_zoo.data.schema import Description


def show(what: str, name: str | None) -> str:
    """What `cl-zoo show WHAT [NAME]` prints: a method by its name alone, or a kind and a name, or all of a kind.

    Raises:
        ClZooError: there is no such thing.
    """
    describers = {
        "method": describe,
        "benchmark": describe_benchmark,
        "backbone": describe_backbone,
        "executor": describe_executor,
        "recipe": describe_recipe,
        "published": describe_published,
    }
    if name is not None:
        if what not in describers:
            raise OptionError(f"show {what} {name}: {what!r} is no kind{nearest(what, describers)}")
        return describers[what](name)
    if what in ("recipe", "published"):
        return aligned(list((recipes() if what == "recipe" else published()).items()))
    if what in describers:
        found = text([one for one in entries() if one.kind == what])
        return f"{found}\n\nmy.yaml may say:\n\n{aligned(rows())}" if what == "benchmark" else found
    return describe(what)


def describe_recipe(name: str) -> str:
    """Every key of a named recipe or of a recipe file with its value and where that comes from.

    Raises:
        OptionError: there is no such recipe.
    """
    rows = [("key", "value", "source")]
    rows += [(one.key, plain(one.value), one.source) for one in recipe_settings(name)]
    about = recipes().get(name)
    return "\n".join([*([f"{name}: {about}", ""] if about else []), aligned(rows)])


def describe_published(name: str) -> str:
    """What others have published, by name or from a file: source, setting, figures.

    Raises:
        OptionError: there is no such publication.
    """
    return described(name, read_published(name))


def describe_benchmark(name: str) -> str:
    """A benchmark's tasks with sizes, scoring and files, from its description; one without is loaded.

    Raises:
        ClZooError: there is no such benchmark, or it cannot be described without data.
    """
    about: Description | None = getattr(benchmark_loader(name), "description", None)
    rows = [("", "task", "train", "test", "metric", "tokens", "files")]
    if about is not None:
        for task in about.tasks:
            files = f"{task.train.files[0]}, {task.test.files[0]}"
            counts = (_count(task.train.count), _count(task.test.count))
            rows.append((task.letter, task.name, *counts, task.metric, str(task.max_new_tokens), files))
        methods, backbone, recipe, version = about.methods, about.backbone, about.recipe, about.version
        orders = about.orders
    else:
        made = load_benchmark(name)
        for one in made.tasks:
            counts = (_count(len(one.train)), _count(len(one.test)))
            rows.append(
                (one.letter, one.name, *counts, one.metric, str(one.max_new_tokens), "made by the benchmark")
            )
        methods, backbone, recipe, version = (
            made.default_methods,
            made.default_backbone,
            made.recipe,
            made.version,
        )
        orders = made.orders
    lines = [
        f"{name}, version {version}, {len(rows) - 1} tasks",
        "",
        aligned(rows),
        "",
        f"methods   {', '.join(methods)}",
        f"backbone  {backbone}",
        f"recipe    {', '.join(f'{key}={plain(value)}' for key, value in flatten(recipe).items()) or 'the general defaults'}",
        *([f"orders    {', '.join(f'{name} {order}' for name, order in orders.items())}"] if orders else []),
    ]
    return "\n".join(lines)


def describe_backbone(name: str) -> str:
    """What the loader of a backbone says, and where it comes from.

    Raises:
        PluginError: there is no such backbone, or it cannot be imported.
    """
    loader = load(BACKBONES, name)
    origin = name if ":" in name else f"{find(BACKBONES, name).distribution} {find(BACKBONES, name).version}"
    about = inspect.cleandoc(loader.__doc__ or f"{name}: no documentation")
    lines = [about.partition("\n\nRaises:")[0].partition("\n\nArgs:")[0], ""]
    lines += [f"loader    {loader.__module__}:{getattr(loader, '__qualname__', name)}", f"from      {origin}"]
    return "\n".join(lines)


def describe_executor(name: str) -> str:
    """What an executor says of itself, its options, and where it comes from.

    Raises:
        PluginError: there is no such executor, or it cannot be imported.
    """
    kind = load(EXECUTORS, name)
    origin = name if ":" in name else f"{find(EXECUTORS, name).distribution} {find(EXECUTORS, name).version}"
    fields = kind_of(kind).model_fields
    lines = [inspect.cleandoc(kind.__doc__ or f"{name}: no documentation"), ""]
    lines += [f"class     {kind.__module__}:{kind.__qualname__}", f"from      {origin}"]
    lines += ["options" + ("" if fields else "   none")]
    lines += [f"  {key} = {field.default!r}   {field.description or ''}" for key, field in fields.items()]
    return "\n".join(lines)


def _count(size: int | None) -> str:
    return "–" if size is None else f"{size:,}"
