"""What decides a run's result, and the hash of it that is the run's id; beside it what is recorded only."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_zoo._version import __version__
from cl_zoo.contract.sources import source_of
from cl_zoo.engine.files import canonical
from cl_zoo.machine import cores, processor, version_of
from cl_zoo.runs.chain import Data, chain, data_of
from cl_zoo.tasks import source_hash

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.contract.plugins import Plugins
    from cl_zoo.runs.prepared import Prepared

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
    "sequences",
    "sharding",
    "tasks",
    "videos",
)
"""Rooms of the engine whose source decides an answer; their hash is part of every run's identity."""


def deciding() -> list[Path]:
    """The source files of `DECIDING`."""
    here = Path(__file__).parents[1]
    return [
        file for name in DECIDING for file in (sorted((here / name).rglob("*.py")) or [here / f"{name}.py"])
    ]


def identify(prepared: Prepared, backbone: Backbone, device: str | None = None) -> dict[str, Any]:
    """Everything that decides a run's result, of the data what its own tasks are; its hash is the run's id.

    Args:
        device: kind of device that the run is going to use, where the backbone is somewhere else.
    """
    job, benchmark = prepared.job, prepared.benchmark
    data = [data_of(benchmark, task) for task in prepared.stream]
    kind = device or backbone.device.type
    compiled = job.compiles(kind)
    identity = {
        "benchmark": {
            "name": benchmark.name,
            "version": benchmark.version,
            "order": [task.name for task in prepared.stream],
            "tasks": {
                task.name: [task.instruction, task.metric, task.max_new_tokens] for task in prepared.stream
            },
            "tests": {one.name: {"asked": one.asked, "expected": one.expected} for one in data},
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
        "device": kind,
        **({"compile": compiled} if compiled != "off" else {}),
        "sources": prepared.plugins.sources(),
        "engine": _engine(),
        "version": __version__,
    }
    return {**identity, "chain": links(identity, prepared.plugins, data)}


def links(identity: Mapping[str, Any], plugins: Plugins, data: Sequence[Data]) -> list[dict[str, str]]:
    """The chain of a run, see `cl_zoo.runs.chain`.

    Args:
        identity: all else that is in it.
        data: of the stream.
    """
    start = training_of(identity, plugins)
    start["benchmark"] = {key: identity["benchmark"][key] for key in ("name", "version", "limit")}
    if not plugins.watch_answers:
        return chain(start, data, plugins.protocol)
    # What such a stack keeps is that of its own answers, so what decides these decides its states.
    start |= {key: identity[key] for key in ("stack", "probes")}
    return chain(start, data, plugins.protocol, watched=identity["cells"])


@cache
def _engine() -> str:
    """The hash of the engine's sources, read once: what is loaded stays what it is."""
    return source_hash(*deciding())


def training_of(identity: Mapping[str, Any], plugins: Plugins) -> dict[str, Any]:
    """What of a run's identity decides what is learnt; equal for runs that may share one training."""
    rest = {key: value for key, value in identity.items() if key not in ("stack", "probes", "cells")}
    return {**rest, "stack": plugins.options(answering=False)}


def training_key(prepared: Prepared) -> str:
    """Equal for jobs whose runs may share one training, told from their names before anything is loaded.

    A stack with a plugin that looks at answers stands alone: what it keeps is that of one run's answers.
    """
    job = prepared.job.to_json()
    if prepared.plugins.watch_answers:
        return canonical(job)
    return canonical(training_of({**job, "choices": None}, prepared.plugins))


def environment(device: Any, processes: int) -> dict[str, Any]:
    """Versions, hardware and commit; recorded beside a result, not part of its identity."""
    packages = (
        "cl-zoo",
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "bitsandbytes",
        "pluggy",
        "open_clip_torch",
        "numpy",
        "av",
    )
    return {
        "versions": {name: version_of(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        **hardware(device),
        "processes": processes,
        "commit": _commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def hardware(device: Any) -> dict[str, Any]:
    """What a run's time depends on: processor, cores that it may use, and the accelerator's name."""
    accelerator = None
    if device.type == "cuda":
        import torch

        accelerator = torch.cuda.get_device_name(device)
    return {"processor": processor(), "cores": cores(), "accelerator": accelerator}


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
