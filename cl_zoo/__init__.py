"""cl_zoo: continual-learning methods for multimodal language models, on one engine, at one budget, in one table.

    >>> import cl_zoo
    >>> result = cl_zoo.run("hide", benchmark="mini", seed=0)
    >>> result.matrix.last
    >>> print(cl_zoo.compare(["finetune", "hide"], benchmark="mini", seeds=3).table())

Importing this package loads no torch; its names are looked up when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cl_zoo._version import __version__ as __version__
from cl_zoo.contract.hookspecs import hookimpl

if TYPE_CHECKING:
    from cl_zoo.api import compare, load, run
    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.batches import Batch, answer_losses, task_loss
    from cl_zoo.processes import share, total
    from cl_zoo.recipe.recipe import Recipe
    from cl_zoo.tasks import Benchmark, Sample, Task, TaskData

__all__ = [
    "Backbone",
    "Batch",
    "Benchmark",
    "Recipe",
    "Sample",
    "Task",
    "TaskData",
    "answer_losses",
    "compare",
    "hookimpl",
    "load",
    "run",
    "share",
    "task_loss",
    "total",
]

_HOMES = {
    "Backbone": "backbones.backbone",
    "Batch": "batches",
    "Benchmark": "tasks",
    "Recipe": "recipe.recipe",
    "Sample": "tasks",
    "Task": "tasks",
    "TaskData": "tasks",
    "answer_losses": "batches",
    "compare": "api",
    "load": "api",
    "run": "api",
    "share": "processes",
    "task_loss": "batches",
    "total": "processes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cl_zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cl_zoo.{_HOMES[name]}"), name)
