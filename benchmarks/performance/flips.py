"""Whether an answer depends on who else is in the batch: whole test splits answered in several ways, and what each way costs.

    python benchmarks/performance/flips.py [--run RUN] [--batch 50] [--limit N] [--precision bf16] [--ways in-order,grouped,static] --json FILE

The backbone of `mini` as it is, or the model of a finished run on it, answers each task's test samples `alone` (one by one), `in-order`
(batches as the samples come), `grouped` (batches of like length, as every command makes them) and `static` (the same, with a cache of
fixed size). `flips` are answers that differ from those alone. `tokens` is what a batch computes for a prompt, padding included. Image
features are known beforehand, so `cpu_seconds` of the process are those of batches and answers.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from results import carried_out, given, machine, options, positive, versions
from torch import nn

from cl_zoo import Backbone, Sample
from cl_zoo.batches import pieces
from cl_zoo.engine.alike import alike, lengths
from cl_zoo.engine.answering import answers
from cl_zoo.names import BACKBONES, BENCHMARKS, load
from cl_zoo.processes import World
from cl_zoo.runs.restore import restore
from cl_zoo.tasks import TaskData

WAYS = ("in-order", "grouped", "static")
"""All but `alone`, which the others are held against."""
LIBRARIES = ("cl-zoo", "torch", "transformers")


@dataclass
class Asking:
    """One model, one task's samples, and the batches that they are asked in."""

    model: nn.Module
    backbone: Backbone
    task: TaskData
    samples: Sequence[Sample]
    batch: int

    def records(self, way: str) -> Iterator[dict[str, Any]]:
        """The records of one way, in the order of the samples."""
        size = 1 if way == "alone" else self.batch
        # what fits into one batch is asked as it comes
        parts = [self.samples[piece] for piece in pieces(len(self.samples), size)]
        return chain.from_iterable(
            answers(
                self.model,
                self.backbone,
                part,
                max_new_tokens=self.task.max_new_tokens,
                batch=size,
                static=way == "static",
            )
            for part in (parts if way == "in-order" else [self.samples])
        )

    def tokens(self, way: str) -> float:
        """Tokens that a batch computes for a prompt, in the mean."""
        size = 1 if way == "alone" else self.batch
        if way in ("alone", "in-order"):
            batches = [list(self.samples[piece]) for piece in pieces(len(self.samples), size)]
        else:
            batches = [[one for _, one in asked] for asked in alike(self.backbone, self.samples, size)]
        padded = [max(lengths(self.backbone, batch)) * len(batch) for batch in batches]
        return sum(padded) / len(self.samples)

    def measure(self, ways: Sequence[str]) -> dict[str, Any]:
        """Of each way its flips, tokens and seconds."""
        self.backbone.encode([image for sample in self.samples for image in sample.images])
        found: dict[str, Any] = {}
        said: dict[str, list[dict[str, Any]]] = {}
        for way in ("alone", *ways):
            began = time.process_time()
            said[way] = list(self.records(way))
            seconds = time.process_time() - began
            flips = sum(
                one["answer"] != other["answer"] for one, other in zip(said[way], said["alone"], strict=True)
            )
            found[way] = {"flips": flips, "tokens": self.tokens(way), "cpu_seconds": seconds}
        return {"samples": len(self.samples), "ways": found}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit code, 2 where the user can put something right."""
    asked = _parse(arguments)
    return carried_out(asked, measure, lambda result: _all(result, ("alone", *asked.ways)))


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """The complete result; a task's line is printed as soon as it is known."""
    load_before, tasks = os.getloadavg(), {}
    model, backbone, precision = _model(asked)
    for task in load(BENCHMARKS, "mini")().stream(limit=asked.limit):
        asking = Asking(model, backbone, task, list(task.test), asked.batch)
        with precision:
            tasks[task.name] = asking.measure(asked.ways)
        print(_line(task.name, tasks[task.name]), flush=True)
    loads = {"load_before": load_before, "load_after": os.getloadavg()}
    return {
        "command": asked.command,
        "batch": asked.batch,
        "tasks": tasks,
        "machine": {**machine(), **loads},
        "versions": versions(LIBRARIES),
    }


def _model(asked: argparse.Namespace) -> tuple[nn.Module, Backbone, AbstractContextManager[Any]]:
    """What answers, and in which precision: a run's own, or the one asked for."""
    if asked.run is not None:
        restored = restore(asked.run, device="cpu")
        return restored.model, restored.backbone, restored.autocast()
    world = World("cpu")
    backbone = load(BACKBONES, "mini")(None, world.device, torch.float32)
    return backbone.model, backbone, world.autocast(asked.precision)


def _line(name: str, found: dict[str, Any]) -> str:
    ways = (
        f"{way}: {one['flips']} flips, {one['tokens']:.1f} tokens, {one['cpu_seconds']:.2f} s"
        for way, one in found["ways"].items()
    )
    return f"{name} ({found['samples']}): {'; '.join(ways)}"


def _all(result: dict[str, Any], ways: Sequence[str]) -> str:
    """The table's last lines: over all tasks."""
    count = sum(one["samples"] for one in result["tasks"].values())
    lines = []
    for way in ways:
        each = [one["ways"][way] for one in result["tasks"].values()]
        flips, seconds = (sum(one[key] for one in each) for key in ("flips", "cpu_seconds"))
        lines.append(
            f"{way:<10}{flips:>5} of {count} flip ({flips / count:.2%}){seconds:>9.2f} s of processor time"
        )
    return "\n".join(lines)


def _ways(text: str) -> list[str]:
    ways = [way.strip() for way in text.split(",") if way.strip()]
    if wrong := [way for way in ways if way not in WAYS]:
        raise argparse.ArgumentTypeError(f"there is no way {wrong[0]}; take {', '.join(WAYS)}")
    return ways


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument(
        "--run", type=Path, help="finished run on mini whose model answers; default: the backbone as it is"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of the backbone's answers; a run has its own",
    )
    parser.add_argument("--batch", type=positive, default=50, help="samples per generation")
    parser.add_argument("--limit", type=positive, help="test samples of each task; default: all")
    parser.add_argument("--ways", type=_ways, default=list(WAYS), help="beside `alone`, comma-separated")
    return given(parser, "flips.py", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
