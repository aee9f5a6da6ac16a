"""What a benchmark names for its runs: scoring rules, recipe keys, methods and a backbone, each of which must be there.

A run finds these out one after the other, and only when it is planned; here each is a finding beside those about data. Of a YAML file that
cannot be used they are told together with its other faults. Methods and backbones are looked up by name and not imported: an option that a
method does not have is left to the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_zoo.backbones.checkpoints import backbone_parts
from cl_zoo.data.descriptions import faults, read_yaml, told
from cl_zoo.errors import ClZooError, DataError, nearest
from cl_zoo.inspection.findings import Finding
from cl_zoo.names import BACKBONES, METHODS, find, parse_stack
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.scoring.scorer import METRICS
from cl_zoo.tasks import Benchmark

KIND = "setting"


def refused(benchmark: Benchmark) -> Iterator[Finding]:
    """A finding for every setting of a benchmark that a run on it would refuse."""
    for task in benchmark.tasks:
        if says := _rule(task.metric):
            yield Finding(KIND, f"{benchmark.name}, task {task.name}, metric: {says}", task.name)
    tasks = [task.name for task in benchmark.tasks]
    settings = (benchmark.recipe, benchmark.default_methods, benchmark.default_backbone)
    for what, says in _settings(benchmark.name, tasks, *settings):
        yield Finding(KIND, f"{benchmark.name}, {what}: {says}")


def check_description(path: Path) -> None:
    """Refuse a YAML file that cannot be used, with all that is wrong in it: keys, types, and names that are not installed.

    Raises:
        DataError: it cannot be read, or a key is missing, unknown or of another type.
    """
    content = read_yaml(path)
    found = faults(content)
    if not found:
        return  # what else is wrong are findings
    tasks = content.get("tasks")
    names = []
    for place, task in enumerate(tasks if isinstance(tasks, list) else []):
        metric = task.get("metric") if isinstance(task, dict) else None
        if isinstance(metric, str) and (says := _rule(metric)):
            found.append(f"tasks[{place}].metric: {says}")
        names.append(str(task.get("name")) if isinstance(task, dict) else "")
    recipe, methods, backbone = (content.get(key) for key in ("recipe", "methods", "backbone"))
    stacks = [one for one in methods if isinstance(one, str)] if isinstance(methods, list) else []
    recipe, backbone = (
        recipe if isinstance(recipe, dict) else {},
        backbone if isinstance(backbone, str) else "",
    )
    found += [f"{what}: {says}" for what, says in _settings("it", names, recipe, stacks, backbone)]
    raise DataError(told(path, found))


def _rule(metric: str) -> str:
    return "" if metric in METRICS else f"no scoring rule is called {metric!r}{nearest(metric, METRICS)}"


def _settings(
    name: str, tasks: Sequence[str], recipe: Mapping[str, Any], methods: Sequence[str], backbone: str
) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) for recipe, methods and backbone; an empty backbone is not looked for."""
    try:
        build_recipe(recipe).check_tasks(tasks, name)
    except ClZooError as error:
        yield "recipe", str(error)
    for stack in methods:
        try:
            for choice in parse_stack(stack):
                _installed(METHODS, choice.name)
        except ClZooError as error:
            yield "methods", str(error)
    try:
        if backbone:
            _backbone(backbone)
    except ClZooError as error:
        yield "backbone", str(error)


def _backbone(text: str) -> None:
    name, _ = backbone_parts(text)
    _installed(BACKBONES, name)


def _installed(group: str, name: str) -> None:
    """Whether a name is installed; `package.module:Object` is not looked into."""
    if ":" not in name:
        find(group, name)
