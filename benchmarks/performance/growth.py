"""Whether a step grows with what was learnt before it, and how with rank and experts: time, operations, memory and parameters of each method.

    python benchmarks/performance/growth.py [--methods a,b] [--shapes testing|mini] [--rounds 3] [--steps 4] [--figure FILE] --json FILE

Every method stands at tasks 1, 6 and 20 with the recipe's rank, at task 2 with ranks 4 to 128, and where it has an option for the number of
its experts, at task 2 with 2 to 16 of them and rank 16, which all of these divide. Each earlier task was one step and what the method does around it.

`operations` are what a step launches, counted as in `operations.py`. `memory` is the most that is held at once of the tensors which a step makes, in bytes: activations,
gradients and what hooks make; what stands before it (weights, momenta, a plugin's state) is not in it, and is in `trained` and `stored`, numbers of parameters.
These four are the same on every machine. `cpu_ratio` and `ratio` are times of a step against one of `finetune` at its second task,
by processor time and by the clock: all variants of a method and `finetune` take turns on the same batches, and the median over all turns is told.
A method is `flat` in a quantity where the 20th task has no more of it than the sixth, operations and memory within 1 %: what only a second task begins, as a penalty, is no growth.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from contenders import Engine, at_task, named, sequential
from ground import Ground, make_ground
from growth_figure import draw
from operations import count_engine
from results import carried_out, given, machine, options, positive, versions
from tensors import Held

from cl_zoo.contract.plugins import every_method, load_class
from cl_zoo.engine.sizes import sizes
from cl_zoo.errors import OptionError
from cl_zoo.names import parse_stack
from cl_zoo.processes import World

TASKS, RANKS, EXPERTS = (1, 6, 20), (4, 8, 16, 32, 64, 128), (2, 4, 8, 16)
SECOND, DIVIDED = 2, 16
"""The task at which ranks and experts change, and the rank at which experts do."""
COUNTED_BY = ("experts", "heads")
"""Options that are a number of experts, whatever a method calls them."""
SLACK = 1.01
"""Of operations and memory: which experts stand still in a task (`same`) makes a few more or less."""
LIBRARIES = ("cl-zoo", "torch", "transformers", "peft")

GROWS: dict[str, tuple[tuple[str, ...], str]] = {
    "branchlora": (("stored",), "a router and two keys for each task"),
    "clmoe": (("stored",), "gates and anchors of each task"),
    "cram": (
        ("operations", "memory", "stored"),
        "an expert for each task, those of a group take part in training",
    ),
    "disco": (("stored",), "a LoRA for each task, one learns at a time"),
    "hide": (("stored",), "a LoRA for each task, one learns at a time"),
    "inflora": (("stored",), "directions of all tasks so far"),
    "merging": (("stored",), "a LoRA for each task, one learns at a time"),
    "modalprompt": (("stored",), "prompts for each task, a few of them take part"),
    "mrlora": (("stored",), "a LoRA for each task, one learns at a time"),
    "olora": (("operations", "memory", "stored"), "a LoRA for each task, all of them take part in training"),
    "replay": (("operations", "memory"), "samples of each task are learnt again"),
    "sefe": (("operations", "memory", "stored"), "places of the largest entries of each task, in the term"),
}
"""Methods of which their papers say that something grows with the tasks: the quantities, and what it is."""


@dataclass(frozen=True)
class Point:
    """One variant of a method: its task, counted from 1, the recipe's rank, and its experts, `None` for its own number."""

    task: int
    rank: int
    experts: int | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write and draw; returns the exit code, 2 where the user can put something right."""
    asked = _parse(arguments)
    return carried_out(
        asked, measure, table, lambda result: draw(result, asked.figure) if asked.figure else None
    )


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """The complete result."""
    methods = _methods(asked.methods)
    with tempfile.TemporaryDirectory() as folder:
        ground = make_ground("tiny", asked.shapes, World("cpu"), Path(folder))
        found = {}
        for name in methods:
            print(name, file=sys.stderr, flush=True)
            found[name] = _method(name, ground, asked)
    return {
        "command": asked.command,
        "methods": found,
        "flat": {name: flat(points) for name, points in found.items()},
        "unsaid": {name: more for name, points in found.items() if (more := unsaid(name, points))},
        "setting": {
            "shapes_of": ground.origin,
            "recipe": ground.recipe.model_dump(mode="json"),
            "rounds": asked.rounds,
            "steps_per_round": asked.steps,
        },
        "machine": machine(),
        "versions": versions(LIBRARIES),
    }


def points_of(name: str, rank: int) -> list[Point]:
    """The variants that a method is measured in, those of tasks first."""
    found = [Point(task, rank) for task in TASKS] + [Point(SECOND, other) for other in RANKS]
    if counted_by(name):
        found += [Point(SECOND, DIVIDED, experts) for experts in EXPERTS]
    return list(dict.fromkeys(found))


def counted_by(name: str) -> str | None:
    """The option that says how many experts a method has, if it has one."""
    fields = getattr(load_class(name), "Options", None)
    return next((one for one in COUNTED_BY if fields and one in fields.model_fields), None)


def _method(name: str, ground: Ground, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """All variants of a method, measured side by side."""
    points = points_of(name, ground.recipe.adapter.rank)
    if asked.tasks_only:
        points = points[: len(TASKS)]
    total = asked.rounds * asked.steps + 3
    engines = [made(name, point, ground, total) for point in points]
    wall, cpu = _race([Engine("finetune", ground, total), *engines], asked.rounds, asked.steps)
    counted = {}
    for rank in {point.rank for point in points}:
        for experts in {point.experts for point in points if point.rank == rank}:
            last = max(one.task for one in points if (one.rank, one.experts) == (rank, experts))
            counted[rank, experts] = _sizes(name, Point(last, rank, experts), ground)
    found = []
    for place, (point, engine) in enumerate(zip(points, engines, strict=True), 1):
        size = counted[point.rank, point.experts][point.task - 1]
        found.append(
            {
                **asdict(point),
                "operations": operations(engine),
                "memory": memory(engine),
                "trained": sum(size.trained.values()),
                "stored": sum(size.continuing.values()),
                "samples_per_step": engine.samples,
                "cpu_ratio": float(np.median(cpu[place] / cpu[0])),
                "ratio": float(np.median(wall[place] / wall[0])),
                "cpu_seconds": float(np.median(cpu[place])),
                "seconds": float(np.median(wall[place])),
            }
        )
    return found


def _stack(name: str, point: Point) -> str:
    return name if point.experts is None else f"{name}[{counted_by(name)}={point.experts}]"


def _ranked(ground: Ground, rank: int) -> Ground:
    adapter = ground.recipe.adapter.model_copy(update={"rank": rank})
    return replace(ground, recipe=ground.recipe.model_copy(update={"adapter": adapter}))


def made(name: str, point: Point, ground: Ground, total: int) -> Engine:
    """The engine with a variant of a method, ready for a step."""
    return Engine(f"{_stack(name, point)}@{point.task}", _ranked(ground, point.rank), total)


def _sizes(name: str, point: Point, ground: Ground) -> list[Any]:
    choices = parse_stack(_stack(name, point))
    return sizes(choices, ground.copy(), _ranked(ground, point.rank).recipe, point.task)


def operations(engine: Engine) -> int:
    """What one step launches."""
    return sum(named.total() for named in count_engine(engine).named.values())


def memory(engine: Engine) -> int:
    """The most bytes that one step holds at once of the tensors it makes."""
    with Held() as held:
        engine.step(0)
    return held.peak


def _race(engines: Sequence[Engine], rounds: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Wall-clock and process seconds (engines, rounds · steps); all take step n before any takes step n + 1, in turning order."""
    for engine in engines:
        engine.step(0)
    wall, cpu = np.zeros((2, len(engines), rounds * steps))
    for number in range(rounds * steps):
        turns = range(len(engines)) if number // steps % 2 == 0 else reversed(range(len(engines)))
        for place in turns:
            began, worked = time.perf_counter(), time.process_time()
            engines[place].step(number + 1)
            wall[place, number] = time.perf_counter() - began
            cpu[place, number] = time.process_time() - worked
    return wall, cpu


def flat(points: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """By quantity: whether the last task of a method has no more of it than the one before it in the list."""
    *_, before, last = points[: len(TASKS)]
    return {
        "operations": last["operations"] <= SLACK * before["operations"],
        "memory": last["memory"] <= SLACK * before["memory"],
        "stored": last["stored"] <= before["stored"],
    }


def unsaid(name: str, points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Quantities of a method that grow without its paper saying so."""
    said, _ = GROWS.get(name, ((), ""))
    return [what for what, is_flat in flat(points).items() if not is_flat and what not in said]


def table(result: Mapping[str, Any]) -> str:
    """A method a line: what it has at each task, and whether that is flat."""
    columns = ("operations", "memory", "stored", "cpu_ratio")
    head = "".join(f"{name:>30}" for name in ("operations", "memory KiB", "stored", "time / finetune"))
    lines = [f"{'method':<14}{head}", f"{'at task':<14}" + "".join(f"{task:>10}" for task in TASKS) * 4]
    for name, points in result["methods"].items():
        cells = "".join(_cell(column, point[column]) for column in columns for point in points[: len(TASKS)])
        growing = [what for what, is_flat in result["flat"][name].items() if not is_flat]
        said = f" ({GROWS[name][1]})" if growing and name in GROWS else ""
        lines.append(f"{name:<14}{cells}  {', '.join(growing) or 'flat'}{said}")
    for name, what in result["unsaid"].items():
        lines.append(f"{name}: {', '.join(what)} grow, and its paper does not say so")
    return "\n".join(lines)


def _cell(column: str, value: float) -> str:
    if column == "cpu_ratio":
        return f"{value:>10.2f}"
    return f"{value / 1024:>10,.0f}" if column == "memory" else f"{value:>10,}"


def _methods(asked: str | None) -> list[str]:
    """The methods to measure: those that learn task after task.

    Raises:
        OptionError: one of them does not.
    """
    if asked is None:
        return [name for name in every_method() if sequential(name)]
    names = named(asked)
    for name in names:
        if not sequential(at_task(name)[0]):
            raise OptionError(f"--methods {name}: it does not learn task after task; leave it out")
    return names


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--methods", help="names, comma-separated; default: every installed sequential one")
    parser.add_argument("--shapes", choices=("testing", "mini"), default="testing", help="whose shapes")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--steps", type=positive, default=4, help="measured steps per variant and round")
    parser.add_argument("--tasks-only", action="store_true", help="no other ranks and experts")
    parser.add_argument("--figure", type=Path, help="file of the figure, .svg or .png")
    return given(parser, "growth.py", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
