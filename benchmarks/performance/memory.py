"""How much memory a training step takes on an accelerator, beside what `cl-zoo forecast` says of it.

    python benchmarks/performance/memory.py --size 7b --batches 4 16 24 --json FILE

Each row is one step of `--method` on a batch that goes through in one forward, without and with activations that are computed
again. `measured` is the most that torch had allocated during the steps, weights included (`torch.cuda.max_memory_allocated`), and null
on a CPU, where nothing counts it; `forecast` is the forecast's peak for a run of this batch; `off` is its error over what was
measured. What does not fit is a row that says so. `README.md` beside this file says how to read a result.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from contenders import Engine
from ground import DISTINCT, SIZES, Ground, make_ground, noise, random_backbone
from reach import peak, wait
from results import carried_out, given, machine, options, positive, versions

from cl_zoo import Backbone
from cl_zoo.errors import OptionError
from cl_zoo.names import parse_stack
from cl_zoo.planning.forecast.gpus import find_gpu
from cl_zoo.planning.forecast.planner import Planner
from cl_zoo.planning.forecast.workload import loads
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import TaskData

LIBRARIES = ("cl-zoo", "torch", "transformers", "peft", "accelerate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; returns the exit code, 2 where the user can put something right."""
    return carried_out(_parse(arguments), measure, _table)


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """The complete result.

    Raises:
        OptionError: the device is not there, or the size needs another.
    """
    world = World(asked.device)
    if asked.size == "7b" and world.device.type != "cuda":
        raise OptionError(f"--size 7b needs a CUDA device, got {world.device}; take --size small")
    with tempfile.TemporaryDirectory() as folder:
        ground = make_ground(asked.size, asked.shapes, world, Path(folder))
        fastest = peak(world.device, ground.recipe.precision)
        plan_on = _to_plan_on(asked.size, ground, Path(folder))
        rows = [
            _row(asked, ground, plan_on, batch, checkpointing)
            | {"batch": batch, "checkpointing": checkpointing}
            for batch in asked.batches
            for checkpointing in (False, True)
        ]
    for row in rows:
        flops, seconds = row.get("flops"), row.get("seconds")
        row["share_of_peak"] = flops / seconds / fastest["flops_per_second"] if flops else None
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None
    return {
        "command": asked.command,
        "size": asked.size,
        "method": asked.method,
        "rows": rows,
        "machine": {**machine(), "accelerator": name, "peak": fastest},
        "versions": versions(LIBRARIES),
    }


def _to_plan_on(size: str, ground: Ground, folder: Path) -> Backbone:
    """The same shapes without values where a model of its own would take memory from what is measured."""
    if size not in SIZES:
        return ground.backbone
    dtype = torch.bfloat16 if SIZES[size].precision == "bf16" else torch.float32
    return random_backbone(SIZES[size], torch.device("meta"), dtype, folder / "planned")


def _row(
    asked: argparse.Namespace, ground: Ground, plan_on: Backbone, batch: int, checkpointing: bool
) -> dict[str, Any]:
    """One batch size: what its step takes, and what was foreseen."""
    mine = _of_batch(asked.size, ground, batch, checkpointing)
    row: dict[str, Any] = {"forecast": _forecast(asked.method, plan_on, mine)}
    device = ground.world.device
    try:
        row |= _steps(asked.method, mine, asked.steps, device)
    except torch.cuda.OutOfMemoryError:
        row |= {"measured": None, "fits": False}
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    measured = row["measured"]
    row["off"] = row["forecast"]["peak"] / measured - 1 if measured else None
    return row


def _of_batch(size: str, ground: Ground, batch: int, checkpointing: bool) -> Ground:
    """The same base with a recipe and samples of another batch; a benchmark's own samples come again where it has too few."""
    changed = {"global_batch": batch, "checkpointing": checkpointing}
    recipe = build_recipe(ground.recipe.model_dump(), changed)
    count = batch * DISTINCT
    if size in SIZES:
        shapes = replace(SIZES[size], batch=batch)
        first, second = noise(shapes, batch, seed=1), noise(shapes, count, seed=2)
    else:
        first = [ground.first[place % len(ground.first)] for place in range(batch)]
        second = [ground.second[place % len(ground.second)] for place in range(count)]
    return replace(ground, recipe=recipe, first=first, second=second)


def _steps(method: str, ground: Ground, steps: int, device: torch.device) -> dict[str, Any]:
    """Memory and median time of the steps after the first, which allocates AdamW's moments."""
    engine = Engine(method, ground, steps + 1)
    engine.step(0)
    counts = device.type == "cuda"
    if counts:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for number in range(1, steps + 1):
        wait(device)
        began = time.perf_counter()
        engine.step(number)
        wait(device)
        seconds.append(time.perf_counter() - began)
    most = torch.cuda.max_memory_allocated(device) if counts else None
    return {"measured": most, "fits": True, "seconds": median(seconds), "flops": engine.flops}


def _forecast(method: str, plan_on: Backbone, ground: Ground) -> dict[str, float]:
    """What the forecast says of a run over the ground's two tasks, by part."""
    tasks = [
        TaskData(name, name, "", "exact", 1, samples, test=samples[:1])
        for name, samples in (("first", ground.first), ("second", ground.second))
    ]
    stream, look, _ = loads(tasks, ground.backbone, assumed=False)
    planner = Planner(plan_on, stream, look, ground.recipe, "lower", find_gpu("h200"))
    found = planner.forecast(parse_stack(method))
    return {**found.memory, "peak": found.peak_memory}


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{'batch':<8}{'recomputed':>12}{'measured GiB':>14}{'forecast':>10}{'off':>8}{'seconds':>10}{'of the peak':>13}"
    ]
    for row in result["rows"]:
        measured = f"{row['measured'] / 2**30:.2f}" if row["measured"] else "–" if row["fits"] else "too much"
        off = "–" if row["off"] is None else f"{row['off']:+.1%}"
        seconds = f"{row['seconds']:.4f}" if row["fits"] else "–"
        share = "–" if row["share_of_peak"] is None else f"{row['share_of_peak']:.1%}"
        again = "yes" if row["checkpointing"] else "no"
        forecast = f"{row['forecast']['peak'] / 2**30:.2f}"
        lines.append(
            f"{row['batch']:<8}{again:>12}{measured:>14}{forecast:>10}{off:>8}{seconds:>10}{share:>13}"
        )
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--size", choices=("tiny", "small", "7b"), required=True)
    parser.add_argument("--method", default="finetune", help="a stack; default: finetune")
    parser.add_argument(
        "--batches", type=positive, nargs="+", default=[4, 16, 24], help="samples of a forward"
    )
    parser.add_argument("--steps", type=positive, default=3, help="measured ones, after one that is not")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--shapes", choices=("auto", "mini", "testing"), default="auto", help="whose shapes --size tiny has"
    )
    return given(parser, "memory.py", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
