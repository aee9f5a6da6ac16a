"""A job with every name looked up, once, and whether what was found goes together.

`prepare` asks each room once; `goes_together` holds the checks that need several of their answers. Behind both, the engine gets
one `Prepared` and looks no name up again. No weights are loaded and nothing is written here. What only tokenizer, image processor
and scorer can tell of the data is looked for by `Prepared.faults`, before the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_zoo.backbones.checkpoints import backbone_parts
from cl_zoo.backbones.templates import resolve
from cl_zoo.contract.plugins import Plugins
from cl_zoo.data.benchmarks import load_benchmark
from cl_zoo.data.splits import Split
from cl_zoo.engine.folder import cells_of_row
from cl_zoo.errors import OptionError
from cl_zoo.machine import version_of
from cl_zoo.names import BACKBONES, load
from cl_zoo.recipe.recipe import Recipe, build_recipe
from cl_zoo.runs.job import Job
from cl_zoo.runs.manifest import scorable
from cl_zoo.runs.work import Work
from cl_zoo.tasks import Benchmark, TaskData, whole_of

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.preflight.found import Found


FOUR_BIT = "bitsandbytes>=0.50"
"""What quantizes a base, as the extra `4bit` of the distribution has it."""
FOUR_BIT_REMEDY = "pip install 'cl-zoo[4bit]'"

REMEMBERED = "preflight"
"""The folder, in that of all runs, of tasks that were checked before."""


JOINT = "joint"
"""What the engine calls the union of all tasks."""


def _unheard(task: str) -> None:
    """What a check is watched by that nobody watches."""


@dataclass(frozen=True)
class Prepared:
    """A job with everything looked up.

    Attributes:
        stream: the tasks in the order of this run; in the benchmark's where they are not learnt one after the other.
        backbone: name of its loader, and the folder of its weights where one is given.
        template: text around a prompt in place of the backbone's own.
    """

    job: Job
    benchmark: Benchmark
    stream: tuple[TaskData, ...]
    recipe: Recipe
    plugins: Plugins
    backbone: tuple[str, Path | None]
    template: str | None

    def load_backbone(self, device: Any) -> Backbone:
        """The run's backbone with its weights; with `sharding` in the processes that share them.

        Raises:
            BackboneError: no such checkpoint, or it is incomplete or of another class.
        """
        job = self.job
        loaded = (
            load_backbone(self.backbone, self.recipe, device)
            if job.sharding == "none"
            else load_shards(self.backbone, self.recipe, device)
        )
        loaded.adjust(
            features=job.features,
            template=self.template,
            image_aspect=job.image_aspect,
            cache=Path(job.cache) if job.cache else None,
            cache_limit=round(job.cache_limit * 2**30) if job.cache_limit else None,
        )
        return loaded

    def faults(self, backbone: Backbone, processes: int, watch: Callable[[str], None] = _unheard) -> Found:
        """All that would stop the run after it has begun, see `cl_zoo.preflight`.

        Args:
            backbone: with or without weights.
            processes: that learn together.
            watch: told the name of the task that is looked at.
        """
        from cl_zoo.preflight.check import preflight

        memory = Path(self.job.out) / REMEMBERED
        return preflight(self.stream, backbone, self.recipe, processes=processes, memory=memory, watch=watch)

    @property
    def data_folders(self) -> set[str]:
        """Where the data lie, as it was named."""
        read = [whole for task in self.stream if isinstance(whole := whole_of(task.train), Split)]
        named = {str(base) for split in read for base in split.plan.roots.bases}
        return named | ({self.job.data} if self.job.data else set())

    @property
    def work(self) -> Work:
        """The steps and answers of the run."""
        protocol, tasks = self.plugins.protocol, len(self.stream)
        learnt = [(task.name, len(task.train)) for task in self.stream] if protocol == "sequential" else []
        if protocol == "joint":
            learnt = [(JOINT, sum(len(task.train) for task in self.stream))]
        recipes = [self.recipe.for_task(name) for name, _ in learnt]
        rows = max(len(learnt), 1)
        return Work(
            tuple(
                (name, recipe.epochs * -(-size // recipe.global_batch))
                for (name, size), recipe in zip(learnt, recipes, strict=True)
            ),
            tuple(tuple(cells_of_row(self.job.cells, protocol, row, tasks)) for row in range(rows)),
            tuple((task.name, len(task.test)) for task in self.stream),
        )

    @property
    def lasting(self) -> Job:
        """The job with its backbone named and its paths absolute, so that the model can be built again from any folder."""
        name, path = self.backbone
        features = self.job.features
        if features and Path(features).exists():
            features = str(Path(features).resolve())
        named = name if path is None else f"{name}:{path.resolve()}"
        return replace(self.job, backbone=named, features=features)


def prepare(job: Job) -> Prepared:
    """Look up everything that a job names.

    Raises:
        ClZooError: anything in the job is unknown, out of range or does not go together.
    """
    template = resolve(job.template) if job.template is not None else None
    benchmark = load_benchmark(job.benchmark, job.data)
    stream = benchmark.stream(job.order, job.limit)
    recipe = build_recipe(benchmark.recipe, job.recipe)
    plugins = Plugins(job.choices, recipe.options)
    backbone = backbone_parts(job.backbone or benchmark.default_backbone)
    if plugins.protocol != "sequential":
        stream = in_default_order(stream, benchmark)
    prepared = Prepared(job, benchmark, stream, recipe, plugins, backbone, template)
    goes_together(prepared)
    return prepared


def in_default_order(stream: tuple[TaskData, ...], benchmark: Benchmark) -> tuple[TaskData, ...]:
    """The tasks of a stream in the benchmark's order: what learns nothing or all at once is one run, whatever order is asked for."""
    places = {task.name: place for place, task in enumerate(benchmark.tasks)}
    return tuple(sorted(stream, key=lambda task: places[task.name]))


def goes_together(prepared: Prepared) -> None:
    """Whether what was found goes together: scoring rules with samples, recipe with tasks, with processes and with what is installed.

    Raises:
        ClZooError: it does not, in the words of the first fault.
    """
    benchmark = prepared.benchmark
    for task in prepared.stream:
        scorable(benchmark.name, task)
    prepared.recipe.check_tasks([task.name for task in benchmark.tasks], benchmark.name)
    check_quantization(prepared.recipe, prepared.job.sharding)


def check_quantization(recipe: Recipe, sharding: str = "none") -> None:
    """Whether a base can be held in the bits that the recipe says.

    Raises:
        OptionError: the package that does it is missing or too old, or processes are to share the base.
    """
    how = recipe.quantization
    if how == "none":
        return
    if sharding != "none":
        raise OptionError(
            f"--sharding {sharding}: processes cannot share weights of 4 bits, as recipe.quantization={how} makes them; leave out one of the two"
        )
    if missing := four_bit_missing():
        raise OptionError(f"recipe.quantization={how} takes {missing}; {FOUR_BIT_REMEDY}")


def four_bit_missing() -> str | None:
    """What a base of 4 bits takes and is not here: `bitsandbytes>=1, which is not installed`; `None` where all is."""
    from packaging.requirements import Requirement

    wanted = Requirement(FOUR_BIT)
    found = version_of(wanted.name)
    if found is not None and wanted.specifier.contains(found, prereleases=True):
        return None
    return f"{wanted}, which {'is not installed' if found is None else f'is {found} here'}"


def load_backbone(found: tuple[str, Path | None], recipe: Recipe, device: Any) -> Backbone:
    """A backbone with its weights, in the recipe's precision and bits and with its bound on the length of prompts.

    Where it is quantized it is read into main memory first, whatever the device: it may not fit there in full.

    Args:
        found: what `backbone_parts` made of its name.

    Raises:
        BackboneError: no such checkpoint, or it is incomplete or of another class.
        OptionError: what quantizes it is not installed.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # a run shows its own progress
    name, path = found
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    if recipe.quantization == "none":
        backbone: Backbone = load(BACKBONES, name)(path, device, dtype)
    else:
        check_quantization(recipe)
        from cl_zoo.nn.fourbit import quantize

        where = device if device.type == "meta" else torch.device("cpu")
        backbone = quantize(load(BACKBONES, name)(path, where, dtype), device)
    backbone.adjust(max_tokens=recipe.max_tokens)
    return backbone


def load_shards(found: tuple[str, Path | None], recipe: Recipe, device: Any) -> Backbone:
    """A backbone of whose decoder layers each process of this run holds a part on its device; it is read into main memory first.

    The arguments are those of `load_backbone`.
    """
    import torch

    from cl_zoo.sharding import shard

    loaded = load_backbone(found, recipe, torch.device("cpu"))
    shard(loaded.layers, device)
    loaded.model.to(device)
    return loaded.with_model(loaded.model)  # what it owns now are the parts
