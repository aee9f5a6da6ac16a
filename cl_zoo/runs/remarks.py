"""What a user should know of a run although nothing is wrong, part of the tasks, next to no training, conversations: a line before it starts, marks behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cl_zoo.data.benchmarks import load_benchmark
from cl_zoo.data.conversations import conversations
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import TaskData

FEW_STEPS = 10
"""Optimiser steps below which a task is hardly learnt: the warm-up alone takes one."""


def remarks(
    benchmark: str,
    *,
    data: str | None = None,
    order: str | None = None,
    limit: int | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> list[str]:
    """A line each for an order that leaves tasks out, for tasks of a handful of steps and for conversations of several questions, before the run.

    Raises:
        ClZooError: the benchmark, its data, the order or the recipe cannot be used.
    """
    made = load_benchmark(benchmark, data)
    stream, filled, lines = made.stream(order, limit), build_recipe(made.recipe, recipe or {}), []
    names = {task.name for task in stream}
    if left := [task.name for task in made.tasks if task.name not in names]:
        few = f"{len(names)} of the {len(made.tasks)} tasks of {made.name}"
        lines.append(
            f"--order {order} takes {few}; scores do not compare with those of all (without {', '.join(left)})"
        )
    steps = {}
    for task in stream:
        own = filled.for_task(task.name)
        steps[task.name] = (
            own.epochs * -(-len(task.train) // own.global_batch),
            len(task.train),
            own.global_batch,
        )
    if few_steps := {name: one for name, one in steps.items() if one[0] < FEW_STEPS}:
        name, (count, size, batch) = min(few_steps.items(), key=lambda one: one[1][0])
        lines.append(
            f"{len(few_steps)} of {len(steps)} {'task has' if len(steps) == 1 else 'tasks have'} fewer than {FEW_STEPS} steps, {name} has "
            f"{count} ({size:,} {'sample' if size == 1 else 'samples'} in batches of {batch}): so few teach next to nothing; take more "
            "samples or epochs, or a smaller global_batch"
        )
    return [*lines, *_conversations(stream)]


def marks(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a finished run as data, each where there is something to know.

    Returns:
        `without` (tasks of the benchmark that the order leaves out), `limit` (samples per split), `few_steps` (optimiser steps of
        each task that had fewer than `FEW_STEPS`).
    """
    steps: dict[str, int] = {}
    for cost in manifest["ledger"]["tasks"]:
        steps[cost["task"]] = min(cost["steps"], steps.get(cost["task"], cost["steps"]))
    found = {
        "without": manifest.get("without"),
        "limit": manifest["identity"]["benchmark"].get("limit"),
        "few_steps": {task: count for task, count in steps.items() if count < FEW_STEPS},
    }
    return {kind: what for kind, what in found.items() if what}


def _conversations(stream: Sequence[TaskData]) -> Iterator[str]:
    for task in {task.name: task for task in stream}.values():
        if found := conversations(task.train):
            count = {key: f"{value:,}" for key, value in found.items()}
            yield (
                f"{task.name}: {count['records']} training records ask {count['questions']} questions and make {count['samples']} samples that "
                f"learn {count['answers']} answers; 'turns' in the benchmark's description chooses, 'cl-zoo data check' counts each choice"
            )
