"""A job: one run as a user describes it, from names to a finished run folder.

`Job` holds names and numbers only, so that it can be sent to a worker process as JSON. `prepare` looks everything up,
`execute` trains and answers; `cl_zoo.runs.manifest.finish` scores and writes the manifest.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_zoo._version import __version__
from cl_zoo.backbones.checkpoints import family_of
from cl_zoo.backbones.templates import resolve
from cl_zoo.contract.plugins import Plugins, source_of
from cl_zoo.data.benchmarks import benchmark_loader, made
from cl_zoo.engine.folder import RunFolder, run_id
from cl_zoo.errors import BackboneError, OptionError, nearest
from cl_zoo.names import BACKBONES, Choice, installed, load
from cl_zoo.recipe.recipe import Recipe, build_recipe
from cl_zoo.runs.manifest import scorable
from cl_zoo.tasks import Benchmark, TaskData, source_hash

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.engine.learning import Report
    from cl_zoo.engine.run import Run

CELLS = ("lower", "last", "full")
DECIDING = (
    "backbones",
    "batches",
    "contract",
    "data",
    "engine",
    "features",
    "images",
    "nn",
    "processes",
    "recipe",
    "tasks",
)
"""Modules and packages of the engine whose source decides a result; their hash is part of every run's identity."""


@dataclass(frozen=True)
class Job:
    """One run as a user describes it.

    Attributes:
        choices: the stack: method, what runs with it, probes.
        benchmark, backbone: installed names; a backbone may be `NAME:PATH` or the path of a checkpoint.
        features: feature encoder in place of the backbone's own.
        template: chat template in place of the backbone's own, by name or as a text with `{prompt}`.
        image_aspect: how an image becomes what the vision tower takes, in place of the backbone's own way.
        cache: folder where image features are kept for all runs; `None` keeps them in memory only.
        data: folder of the benchmark's data.
        order: letters or names, `None` for the default order.
        recipe: recipe values by dotted key, over the benchmark's.
        limit: samples per split, `None` for all.
        cells: which cells of the matrix are measured.
        out: folder of all runs.
    """

    choices: tuple[Choice, ...]
    benchmark: str
    backbone: str | None = None
    features: str | None = None
    template: str | None = None
    image_aspect: str | None = None
    cache: str | None = None
    data: str | None = None
    order: str | None = None
    seed: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    cells: str = "lower"
    device: str = "auto"
    out: str = "runs"

    @property
    def label(self) -> str:
        """The stack without its probes: `moelora+ewc[strength=3]`."""
        return "+".join(choice.label for choice in self.choices if not choice.probe)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Job:
        return cls(**{**values, "choices": tuple(Choice(**choice) for choice in values["choices"])})


@dataclass(frozen=True)
class Prepared:
    """A job with everything looked up; nothing is written and no weights are loaded yet."""

    job: Job
    benchmark: Benchmark
    stream: tuple[TaskData, ...]
    recipe: Recipe
    plugins: Plugins


def prepare(job: Job) -> Prepared:
    """Look up benchmark, tasks, recipe and plugins.

    Raises:
        ClZooError: anything in the job is unknown, out of range or does not go together.
    """
    if job.cells not in CELLS:
        raise OptionError(f"--cells {job.cells}{nearest(job.cells, CELLS)}")
    if job.template is not None:
        resolve(job.template)  # raises before anything is loaded
    benchmark = load_benchmark(job.benchmark, job.data)
    stream = benchmark.stream(job.order, job.limit)
    for task in stream:
        scorable(benchmark.name, task)
    recipe = build_recipe(benchmark.recipe, job.recipe)
    recipe.check_tasks([task.name for task in benchmark.tasks], benchmark.name)
    return Prepared(job, benchmark, stream, recipe, Plugins(job.choices))


def load_benchmark(name: str, data: str | None = None) -> Benchmark:
    """A benchmark by name, as `cl_zoo.data.described.benchmark_loader` reads it.

    Raises:
        PluginError: no such benchmark, or its plugin does not give a `Benchmark`.
        OptionError: it has no such option or value.
        DataError: its description or its data cannot be used.
    """
    return made(benchmark_loader(name), Path(data) if data else None, name)


def load_backbone(job: Job, default: str, recipe: Recipe, device: Any) -> Backbone:
    """The job's backbone with its weights.

    Raises:
        BackboneError: no such checkpoint, or it is incomplete or of another class.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # a run shows its own progress
    name, path = backbone_parts(job.backbone or default)
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    backbone: Backbone = load(BACKBONES, name)(path, device, dtype)
    backbone.adjust(
        features=job.features,
        template=job.template,
        image_aspect=job.image_aspect,
        cache=Path(job.cache) if job.cache else None,
        max_tokens=recipe.max_tokens,
    )
    return backbone


def backbone_parts(text: str) -> tuple[str, Path | None]:
    """Name and checkpoint of `NAME`, `NAME:PATH`, a folder (its configuration names the family) or `module:function`.

    Raises:
        BackboneError: a folder of no known family; or it looks like a path, but there is no such folder.
    """
    name, _, path = text.partition(":")
    if any(one.name == name for one in installed(BACKBONES)):  # a folder of that name here changes nothing
        return name, Path(path) if path else None
    if Path(text).is_dir():
        return family_of(Path(text)), Path(text)
    if ":" not in text and ("/" in text or text.startswith(".")):
        raise BackboneError(f"backbone {text}: no such folder; pass the path of a downloaded checkpoint")
    return text, None


def execute(job: Job, report: Report) -> tuple[RunFolder, dict[str, Any]]:
    """Train and answer, or find the finished run; scoring is left to `cl_zoo.runs.manifest`.

    Returns:
        The run's folder, still to be entered by `cl_zoo.runs.manifest.finish`, and the facts for its manifest (empty for a finished run).

    Raises:
        ClZooError: the job cannot be run as described.
    """
    import torch

    from cl_zoo.engine.ledger import forget_memory
    from cl_zoo.engine.run import Run
    from cl_zoo.processes import World

    prepared = prepare(job)
    world = World(job.device)
    if world.device.type == "cpu":
        torch.set_num_threads(
            1
        )  # threads spin at barriers; a run's bits must not depend on the number of cores
    forget_memory(world.device)
    backbone = load_backbone(job, prepared.benchmark.default_backbone, prepared.recipe, world.device)
    identity = identify(prepared, backbone)
    run = run_id(identity, job.label, job.seed)
    folder = RunFolder(Path(job.out), run, identity)
    report(
        phase="start", run=run, label=job.label, seed=job.seed, tasks=[task.name for task in prepared.stream]
    )
    with folder if world.main else folder.reading():
        if folder.finished:
            return folder, {}
        running = Run(
            prepared.plugins,
            prepared.stream,
            backbone,
            prepared.recipe,
            seed=job.seed,
            cells=job.cells,
            folder=folder,
            world=world,
            report=report,
        )
        running.execute()
        facts = {"id": run, **_facts(prepared, running), "environment": environment(world.device, world.size)}
        if world.main:
            folder.note(facts)
    return folder, facts


def found_again(job: Job, default: str) -> Job:
    """The job with its backbone named and its paths absolute, so that the model can be built again from any folder."""
    name, path = backbone_parts(job.backbone or default)
    named = name if path is None else f"{name}:{path.resolve()}"
    features = job.features
    if features and Path(features).exists():
        features = str(Path(features).resolve())
    return replace(job, backbone=named, features=features)


def _facts(prepared: Prepared, run: Run) -> dict[str, Any]:
    return {
        "job": found_again(prepared.job, prepared.benchmark.default_backbone).to_json(),
        "label": prepared.job.label,
        "protocol": prepared.plugins.protocol,
        "seed": prepared.job.seed,
        "tasks": [task.name for task in prepared.stream],
        "lessons": [asdict(lesson.task) for lesson in run.lessons],
        "metrics": [task.metric for task in prepared.stream],
        "ledger": run.ledger.to_json(),
        "measured": run.measured,
    }


def deciding() -> list[Path]:
    """The source files of `DECIDING`."""
    here = Path(__file__).parents[1]
    return [
        file for name in DECIDING for file in (sorted((here / name).glob("*.py")) or [here / f"{name}.py"])
    ]


def identify(prepared: Prepared, backbone: Backbone) -> dict[str, Any]:
    """Everything that decides a run's result; its hash is the run's id."""
    job = prepared.job
    return {
        "benchmark": {
            "name": prepared.benchmark.name,
            "version": prepared.benchmark.version,
            "data": prepared.benchmark.data_hash,
            "order": [task.name for task in prepared.stream],
            "tasks": {
                task.name: [task.instruction, task.metric, task.max_new_tokens] for task in prepared.stream
            },
            "limit": job.limit,
        },
        "backbone": {
            "name": backbone.name,
            "revision": backbone.revision,
            "template": backbone.template,
            "image_aspect": backbone.image_aspect,
            "features": backbone.feature_revision,
            "source": source_of(type(backbone)),
        },
        "stack": [plugin for plugin in prepared.plugins.options() if not plugin["probe"]],
        "probes": [plugin for plugin in prepared.plugins.options() if plugin["probe"]],
        "recipe": prepared.recipe.model_dump(mode="json"),
        "seed": job.seed,
        "cells": job.cells,
        "device": backbone.device.type,
        "sources": prepared.plugins.sources(),
        "engine": source_hash(*deciding()),
        "version": __version__,
    }


def environment(device: Any, processes: int) -> dict[str, Any]:
    """Versions, hardware and commit; recorded beside a result, not part of its identity."""
    packages = ("cl-zoo", "torch", "transformers", "peft", "accelerate", "pluggy", "open_clip_torch", "numpy")
    accelerator = None
    if device.type == "cuda":
        import torch

        accelerator = torch.cuda.get_device_name(device)
    return {
        "versions": {name: _version(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "accelerator": accelerator,
        "processes": processes,
        "commit": _commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        asked = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except OSError:
        return None
    return asked.stdout.strip() or None if asked.returncode == 0 else None
