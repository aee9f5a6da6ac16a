"""How a forecast is shown: a sheet with a column per method, what all runs take together, and what was assumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cl_zoo.errors import OptionError, nearest
from cl_zoo.planning.forecast.gpus import find_gpu
from cl_zoo.planning.forecast.planner import EFFICIENCY, OF_BANDWIDTH, Forecast, Planner, planned_backbone
from cl_zoo.planning.forecast.workload import loads, planned
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.report.sheets import Entry, Line, Section, Sheet, as_text, distinct, narrowed
from cl_zoo.runs.job import CELLS

GIB, MIB = 2**30, 2**20


def plan(
    benchmark: str,
    backbone: str | None,
    recipe: Mapping[str, Any],
    *,
    data: str | None = None,
    order: str | None = None,
    limit: int | None = None,
    cells: str = "lower",
    gpu: str = "a100",
    efficiency: float | None = None,
    shelved: bool = False,
    cache_limit: float | None = None,
) -> tuple[Planner, list[str], list[str]]:
    """Look up everything that a comparison is planned with.

    Args:
        recipe: values by dotted key, over the benchmark's.
        efficiency: share of the GPU's peak; default: `EFFICIENCY`.
        shelved: whether image features are kept on disk for all runs.
        cache_limit: GiB that they may take there.

    Returns:
        The planner, the benchmark's own methods, and what was assumed in the place of data.

    Raises:
        ClZooError: anything is unknown, out of range or does not go together.
    """
    share = EFFICIENCY if efficiency is None else efficiency
    if not 0 < share <= 1:
        raise OptionError(f"--efficiency {efficiency}: must lie above 0 and not above 1")
    if cache_limit is not None and not (shelved and 0 < cache_limit < float("inf")):
        what = "is no size; give GiB" if shelved else "there is no cache to limit; add --cache DIR"
        raise OptionError(f"--cache-limit {cache_limit:g}: {what}")
    if cells not in CELLS:
        raise OptionError(f"--cells {cells}{nearest(cells, CELLS)}")
    maker = find_gpu(gpu)
    made, notes = planned(benchmark, data, limit)
    filled = build_recipe(made.recipe, recipe)
    filled.check_tasks([task.name for task in made.tasks], made.name)
    shaped = planned_backbone(backbone or made.default_backbone)
    stream, look, more = loads(made.stream(order, limit), shaped, assumed=bool(notes))
    limit = float("inf") if cache_limit is None else cache_limit * GIB
    planner = Planner(shaped, stream, look, filled, cells, maker, share, shelved, limit)
    return planner, list(made.default_methods), [*notes, *more]


def text(
    found: Sequence[Forecast],
    planner: Planner,
    *,
    seeds: int,
    gpus: int,
    assumed: Sequence[str],
    width: int | None = None,
) -> str:
    """All of it as plain text, in sheets that fit into a width."""
    hours, disk = totals(found, seeds=seeds, gpus=gpus)
    runs = f"{len(found)} {_s('method', len(found))} × {seeds} {_s('seed', seeds)}"
    lines = [as_text(part) for part in narrowed(sheet(found), width)]
    lines.append(f"all runs ({runs}): {_hours(hours)} on {gpus} × {planner.gpu.name}, {_bytes(disk)} of disk")
    if planner.gpu.memory:
        tight = [one.label for one in found if one.peak_memory > 0.9 * planner.gpu.memory]
        memory = f"{planner.gpu.memory / GIB:.0f} GiB of one {planner.gpu.name}"
        lines.append(
            f"too large or tight for the {memory}: {', '.join(tight)}; lower micro_batch or eval_batch, or set checkpointing"
            if tight
            else f"all fit into the {memory}"
        )
    lines.append(_features(found, planner))
    lines += ["", "assumed", *(f"  {sentence}" for sentence in assumptions(planner, assumed))]
    return "\n".join(lines)


def _features(found: Sequence[Forecast], planner: Planner) -> str:
    """How much disk the frozen features take, and how much of it they get."""
    most = max(found, key=lambda one: one.shelf, default=None)
    whole = most.shelf if most else 0.0
    says = f"features of all images: {_bytes(whole)} in a --cache that all runs share"
    kept = most.disk["features"] if most else 0.0
    if not planner.shelved or kept >= whole:
        return says
    return f"{says}; --cache-limit holds {kept / whole:.0%} of them, the others are computed at every use"


def to_json(
    found: Sequence[Forecast], planner: Planner, *, seeds: int, gpus: int, assumed: Sequence[str]
) -> dict[str, Any]:
    """The same as values; bytes, FLOPs and seconds."""
    hours, disk = totals(found, seeds=seeds, gpus=gpus)
    return {
        "gpu": {**vars(planner.gpu), "count": gpus, "efficiency": planner.efficiency},
        "runs": [one.to_json() for one in found],
        "all": {"runs": len(found) * seeds, "seconds": hours * 3600, "disk": disk},
        "assumed": assumptions(planner, assumed),
    }


def totals(found: Sequence[Forecast], *, seeds: int, gpus: int) -> tuple[float, float]:
    """Hours until the last run has ended, and bytes on disk; a run stays on one GPU, features are kept once."""
    each = [sum(one.seconds.values()) for one in found for _ in range(seeds)]
    hours = max(sum(each) / gpus, max(each, default=0.0)) / 3600
    own = sum(one.disk["checkpoint"] + one.disk["answers"] for one in found) * seeds
    return hours, own + max((one.disk["features"] for one in found), default=0.0)


def assumptions(planner: Planner, assumed: Sequence[str]) -> list[str]:
    """What the numbers rest on, a sentence each."""
    gpu, recipe = planner.gpu, planner.recipe
    micro = recipe.micro_batch or "the whole batch"
    packed = "base: the linears of the language model's layers in 4.127 bits a weight (NF4, double quantization); a token of an answer writes each of them out and reads it again, and the time that this takes in training is left out"
    return [
        *assumed,
        *([packed] if recipe.quantization != "none" else []),
        f"time: {planner.efficiency:.0%} of {gpu.peak(recipe.precision) / 1e12:g} TFLOP/s ({gpu.name}, {recipe.precision}); answers are written at {OF_BANDWIDTH:.0%} of {gpu.bandwidth / 1e9:g} GB/s"
        + ("; neither share was measured here" if planner.efficiency == EFFICIENCY else ""),
        "time: starting kernels, reading images, scoring and what hooks compute besides are left out; small models take longer",
        "FLOPs: the ledger's rule (matrix products of the language model and the adapters, no attention scores), and the tower's likewise",
        f"memory: micro-batch {micro}, adapters and AdamW in fp32, activations as autograd keeps them of the adapted language model; without what hooks keep, CUDA's own and fragmentation (1 to 2 GiB)",
        "answers are as long as those of training; rehearsed samples, and steps behind a task, are not counted",
        "a run stays on one GPU, and several GPUs share the runs",
    ]


def sheet(found: Sequence[Forecast]) -> Sheet:
    """One column per method."""

    def section(title: str, unit: Callable[[float], str], rows: dict[str, list[float]]) -> Section:
        return Section(
            title,
            tuple(Line(name, tuple(Entry(unit(value)) for value in values)) for name, values in rows.items()),
        )

    def of(what: str) -> dict[str, list[float]]:
        return {key: [getattr(one, what)[key] for one in found] for key in getattr(found[0], what)}

    def stored(use: str) -> list[float]:
        return [sum(getattr(one.sizes[-1], use).values()) for one in found]

    work = {
        "steps": [sum(task.steps for task in one.tasks) for one in found],
        "samples": [sum(task.samples for task in one.tasks) for one in found],
        "tokens": [sum(task.tokens for task in one.tasks) for one in found],
        "answers": [one.answers for one in found],
    }
    parameters: dict[str, list[float]] = {
        "trained per task": [one.trained for one in found],
        "stored for inference": stored("inference"),
        "stored for continuing": stored("continuing"),
    }
    hours = of("seconds") | {"sum": [sum(one.seconds.values()) for one in found]}
    sections = (
        section(
            "work", lambda value: f"{value:,.0f}", {key: list(map(float, row)) for key, row in work.items()}
        ),
        section("parameters", lambda value: f"{value:,.0f}", parameters),
        section("memory", _bytes, of("memory") | {"peak": [one.peak_memory for one in found]}),
        section("PFLOPs", lambda value: f"{value / 1e15:,.4g}", of("flops")),
        section("time", lambda value: _hours(value / 3600), hours),
        section("disk", _bytes, of("disk")),
    )
    return Sheet(tuple(distinct([one.label for one in found])), sections)


def _bytes(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / MIB:.1f} MiB"


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def _s(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"
