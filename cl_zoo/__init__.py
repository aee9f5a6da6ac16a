"""cl_zoo: continual-learning methods for multimodal language models, on one engine, at one budget, in one table.

    >>> import cl_zoo
    >>> result = cl_zoo.run("hide", benchmark="mini", seed=0)
    >>> result.matrix.last
    >>> print(cl_zoo.compare(["finetune", "hide"], benchmark="mini", seeds=3).table())

What a method is made of is in `cl_zoo.nn`; a method imports from these two places only. Importing this package loads no torch; its
names are looked up when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cl_zoo._version import __version__
from cl_zoo.errors import (
    BackboneError,
    ClZooError,
    DataError,
    OptionError,
    PluginError,
    RunError,
)

if TYPE_CHECKING:
    from cl_zoo.api import compare, load, load_runs, run
    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.batches import Batch, answer_losses, forward, task_loss
    from cl_zoo.contract.hookspecs import hookimpl
    from cl_zoo.data.benchmarks import Described
    from cl_zoo.features.encoder import open_image
    from cl_zoo.images.frames import frames
    from cl_zoo.images.kinds import Faithful
    from cl_zoo.processes import draw_rows, share, total
    from cl_zoo.recipe.recipe import Recipe
    from cl_zoo.report.figures import plot_cka, plot_forgetting, plot_matrix, plot_pareto
    from cl_zoo.runs.executors.afar import Afar, Errand
    from cl_zoo.runs.executors.contract import Executor
    from cl_zoo.tasks import Benchmark, ImageSource, Sample, Task, TaskData

_HOMES = {
    "Afar": "runs.executors.afar",
    "Backbone": "backbones.backbone",
    "Batch": "batches",
    "Benchmark": "tasks",
    "Described": "data.benchmarks",
    "Errand": "runs.executors.afar",
    "Executor": "runs.executors.contract",
    "Faithful": "images.kinds",
    "ImageSource": "tasks",
    "Recipe": "recipe.recipe",
    "Sample": "tasks",
    "Task": "tasks",
    "TaskData": "tasks",
    "answer_losses": "batches",
    "compare": "api",
    "draw_rows": "processes",
    "forward": "batches",
    "frames": "images.frames",
    "hookimpl": "contract.hookspecs",
    "load": "api",
    "load_runs": "api",
    "open_image": "features.encoder",
    "plot_cka": "report.figures",
    "plot_forgetting": "report.figures",
    "plot_matrix": "report.figures",
    "plot_pareto": "report.figures",
    "run": "api",
    "share": "processes",
    "task_loss": "batches",
    "total": "processes",
}
"""The module of each name that is looked up late."""

__all__ = [
    "Afar",
    "Backbone",
    "BackboneError",
    "Batch",
    "Benchmark",
    "ClZooError",
    "DataError",
    "Described",
    "Errand",
    "Executor",
    "Faithful",
    "ImageSource",
    "OptionError",
    "PluginError",
    "Recipe",
    "RunError",
    "Sample",
    "Task",
    "TaskData",
    "__version__",
    "answer_losses",
    "compare",
    "draw_rows",
    "forward",
    "frames",
    "hookimpl",
    "load",
    "load_runs",
    "open_image",
    "plot_cka",
    "plot_forgetting",
    "plot_matrix",
    "plot_pareto",
    "run",
    "share",
    "task_loss",
    "total",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cl_zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cl_zoo.{_HOMES[name]}"), name)
