"""What a benchmark names for its runs: scoring rules, recipe keys, methods and a backbone, each of which must be there.

A run finds these out one after the other, and only when it is planned; here each is a finding beside those about data. Methods
and backbones are looked up by name and not imported: an option that a method does not have is left to the run.
"""

from __future__ import annotations

from collections.abc import Iterator

from cl_zoo.backbones.checkpoints import backbone_parts
from cl_zoo.errors import ClZooError, nearest
from cl_zoo.inspection.findings import Finding
from cl_zoo.names import BACKBONES, METHODS, find, parse_stack
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.scoring.scorer import METRICS
from cl_zoo.tasks import Benchmark

KIND = "setting"


def refused(benchmark: Benchmark) -> Iterator[Finding]:
    """A finding for every setting of a benchmark that a run on it would refuse."""
    for task in benchmark.tasks:
        if task.metric not in METRICS:
            says = f"no scoring rule is called {task.metric!r}{nearest(task.metric, METRICS)}"
            yield Finding(KIND, f"{benchmark.name}, task {task.name}, metric: {says}", task.name)
    try:
        recipe = build_recipe(benchmark.recipe)
        recipe.check_tasks([task.name for task in benchmark.tasks], benchmark.name)
    except ClZooError as error:
        yield Finding(KIND, f"{benchmark.name}, recipe: {error}")
    for stack in benchmark.default_methods:
        try:
            for choice in parse_stack(stack):
                _installed(METHODS, choice.name)
        except ClZooError as error:
            yield Finding(KIND, f"{benchmark.name}, methods: {error}")
    try:
        _backbone(benchmark.default_backbone)
    except ClZooError as error:
        yield Finding(KIND, f"{benchmark.name}, backbone: {error}")


def _backbone(text: str) -> None:
    name, _ = backbone_parts(text)
    _installed(BACKBONES, name)


def _installed(group: str, name: str) -> None:
    """Whether a name is installed; `package.module:Object` is not looked into."""
    if ":" not in name:
        find(group, name)
