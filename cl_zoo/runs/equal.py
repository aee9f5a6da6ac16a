"""What a comparison holds equal, counted before anything runs and again from what was run.

Samples and optimiser steps are held equal task by task, what trains in a task against the budget of the recipe (`cl_zoo.recipe.budget`), stored
parameters and the FLOPs of an answer against the median of the methods. Who has more refuses the comparison or is stamped; who trains
less than it may is stamped only, since that favours nobody. The bounds are held to samples and steps in all; what learns nothing is held to nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from cl_zoo.errors import ClZooError, OptionError, nearest
from cl_zoo.recipe.budget import TOLERANCE, beside_projector
from cl_zoo.report.rows import task_columns
from cl_zoo.runs.job import Job
from cl_zoo.runs.prepared import JOINT, Prepared, prepare
from cl_zoo.runs.ratios import of_tasks, times

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.names import Choice
    from cl_zoo.recipe.recipe import Recipe
    from cl_zoo.tasks import TaskData

Key = TypeVar("Key", bound=Hashable)

HELD = {"steps": 0.02, "samples": 0.02, "trained-parameters": TOLERANCE}
"""What is held equal by default, each with the share by which it may differ."""

TRAINED_PARAMETERS = "trained-parameters"

QUANTITIES = (*HELD, "stored-parameters", "inference-flops")
"""What may be held equal."""

REMEDY = (
    "--allow-unequal runs it and stamps these rows, --match trained-parameters gives methods a rank that fits"
)


@dataclass(frozen=True)
class Spent:
    """The budget of one run.

    Attributes:
        samples, steps: of each task learnt, one entry where all are learnt at once.
        trained: parameters in a task, the most of all tasks, without the projector.
        budget: what the recipe lets train.
        stored: parameters kept for answering beside the frozen backbone.
        flops: of one answer token, by the rule of `TaskCost` in `cl_zoo.engine.ledger`.
        tasks: names of the tasks learnt, one entry each; without them tasks are told by their places.
    """

    samples: tuple[int, ...]
    steps: tuple[int, ...]
    trained: int
    budget: int
    stored: int
    flops: int
    tasks: tuple[str, ...] = ()

    @classmethod
    def from_ledger(cls, ledger: Mapping[str, Any]) -> Spent | None:
        """What a finished run has spent, 0 of what older runs did not write down; `None` where it learnt nothing."""
        tasks = ledger["tasks"]
        if not any(task["steps"] for task in tasks):
            return None
        samples, steps = (tuple(task[what] for task in tasks) for what in ("samples", "steps"))
        trained = max(beside_projector(task.get("trained", {})) for task in tasks)
        kept, first = sum(ledger.get("stored", {}).get("inference", {}).values()), tasks[0]
        # training FLOPs = tokens · (4 · language + 6 · trained)
        each = first.get("flops", 0.0) / max(1, first.get("tokens", 0))
        language = round((each - 6 * sum(first.get("trained", {}).values())) / 4)
        flops = 2 * (language + ledger.get("active", 0)) if each else 0
        names = tuple(task.get("task", str(place)) for place, task in enumerate(tasks))
        return cls(samples, steps, trained, ledger.get("budget", 0), kept, flops, names)

    def by_task(self, name: str) -> dict[tuple[str, int], int]:
        """Samples or steps by the name of a task and by how often it has come before."""
        values = getattr(self, name)
        return dict(
            zip(task_columns(self.tasks or [str(n) for n in range(len(values))]), values, strict=True)
        )


@dataclass(frozen=True)
class Fair:
    """What a comparison holds equal, and what comes of a difference.

    Attributes:
        holds: quantities, each with the share by which it may differ.
        allow: whether unequal budgets are run and stamped, and not refused.
        match: whether methods get the rank with which what they train comes nearest to the budget.
    """

    holds: Mapping[str, float] = field(default_factory=lambda: dict(HELD))
    allow: bool = False
    match: bool = False


@dataclass(frozen=True)
class Difference:
    """How one run's budget is not that of the others.

    Attributes:
        name: of the quantity.
        what: `steps ×2 from task 2`.
        ratio: how many times that of the others, over all tasks.
        more: whether the run has more than the others, or other samples and steps; such a comparison is refused.
    """

    name: str
    what: str
    ratio: float
    more: bool = True


def held(asked: Sequence[str]) -> dict[str, float]:
    """What is held equal: the default with what a user asks for, `NAME` or `NAME=TOLERANCE`.

    Raises:
        OptionError: there is no such quantity, or its tolerance is no number of at least 0.
    """
    found = dict(HELD)
    for one in (part for text in asked for part in text.split(",")):
        name, equals, share = one.partition("=")
        if name not in QUANTITIES:
            raise OptionError(f"--hold {name}{nearest(name, QUANTITIES)}")
        try:
            tolerance = float(share) if equals else HELD.get(name, TOLERANCE)
        except ValueError:
            tolerance = -1.0
        if not 0 <= tolerance < math.inf:
            raise OptionError(f"--hold {one}: the tolerance is a share of at least 0, such as 0.1")
        found[name] = tolerance
    return found


def differences(runs: Mapping[Key, Spent], holds: Mapping[str, float]) -> dict[Key, list[Difference]]:
    """How each run's budget differs from that of most; runs that do not differ are left out.

    Args:
        runs: all runs that learn something.
        holds: what is held equal, with the share by which it may differ.
    """
    found: dict[Key, list[Difference]] = {key: [] for key in runs}
    for name, share in holds.items():
        for key, difference in _different(name, runs, share):
            found[key].append(difference)
    return {key: one for key, one in found.items() if one}


def _different(name: str, runs: Mapping[Key, Spent], share: float) -> Iterator[tuple[Key, Difference]]:
    if not runs:
        return
    if name in ("samples", "steps"):
        by_task = {key: one.by_task(name) for key, one in runs.items()}
        # Whatever the order of the tasks: runs are alike where each task costs them the same.
        sorts = [tuple(sorted(values.items())) for values in by_task.values()]
        most_have = dict(_common([one for one in sorts if len(one) > 1] or sorts))
        for key, values in by_task.items():
            places = values if values.keys() == most_have.keys() else most_have
            common = tuple(most_have[place] for place in places)
            if words := of_tasks(tuple(values.values()), common, share):
                yield key, Difference(name, f"{name} {words}", sum(values.values()) / max(1, sum(common)))
        return
    if name == "trained-parameters":
        most = _common([one.budget for one in runs.values()])
        spent = {key: one.trained for key, one in runs.items()}
    else:
        spent = {key: one.stored if name == "stored-parameters" else one.flops for key, one in runs.items()}
        most = round(median(spent.values()))
    for key, value in spent.items():
        if most and abs(value - most) > share * most:
            ratio = value / most
            yield key, Difference(name, f"{name.replace('-', ' ')} {times(ratio)}", ratio, ratio > 1)


Value = TypeVar("Value", bound=Hashable)


def _common(values: Sequence[Value]) -> Value:
    return Counter(values).most_common(1)[0][0]


# Before anything runs


def hold_equal(everything: Sequence[Prepared], fair: Fair) -> list[Job]:
    """The jobs, once their budgets are known to be equal; matched ones with a rank of their own.

    Args:
        everything: all jobs of the comparison.

    Raises:
        OptionError: a budget is larger than that of the others, or steps or samples are not theirs.
    """
    kinds = dict(zip(_kinds(everything), everything, strict=True))
    jobs = [one.job for one in everything]
    if len(kinds) < 2:
        return jobs
    counted = {kind: counted_of(one, fair.holds) for kind, one in kinds.items()}
    known = {kind: one for kind, one in counted.items() if one is not None}
    if fair.match and known:
        ranks = {kind: _rank(kinds[kind], known, kind, fair.holds) for kind in known}
        jobs = [_ranked(job, ranks.get(kind)) for job, kind in zip(jobs, _kinds(everything), strict=True)]
        budget = _common([one.budget for one in known.values()])
        for kind in (kind for kind, rank in ranks.items() if rank):
            if (spent := counted_of(prepare(_ranked(kinds[kind].job, ranks[kind])), fair.holds)) is not None:
                known[kind] = replace(spent, budget=budget)
    if not fair.allow:
        _refuse({kinds[kind].job.label: many for kind, many in differences(known, fair.holds).items()}, fair)
    return jobs


def _refuse(found: Mapping[str, Sequence[Difference]], fair: Fair) -> None:
    more = [f"{label} has {one.what}" for label, many in found.items() for one in many if one.more]
    if more:
        names = ", ".join(name.replace("-", " ") for name in fair.holds)
        raise OptionError(f"a comparison holds {names} equal, and {', '.join(more)}; {REMEDY}")


def counted_of(prepared: Prepared, holds: Mapping[str, float]) -> Spent | None:
    """What a job will spend; `None` where it learns nothing, or cannot be counted without values."""
    import torch

    all_tasks = any(name in holds for name in ("stored-parameters", "inference-flops"))
    try:
        backbone = prepared.load_backbone(torch.device("meta"))
    except Exception:  # a loader of somebody else's, see `cl_zoo.runs.foreseen`
        return None
    try:
        return counted(prepared.job.choices, prepared.recipe, prepared.stream, backbone, all_tasks=all_tasks)
    except ClZooError:
        return None  # the run itself has values, and its ledger is held to the same afterwards


def counted(
    choices: Sequence[Choice],
    recipe: Recipe,
    stream: Sequence[TaskData],
    backbone: Backbone,
    *,
    all_tasks: bool,
) -> Spent | None:
    """What a stack will spend; `None` where it learns nothing.

    Args:
        backbone: without values.
        all_tasks: whether all tasks are counted, as what is stored after the last asks for, or the first two.

    Raises:
        ClZooError: a hook needs values or data to size its tensors.
    """
    from cl_zoo.contract.plugins import Plugins
    from cl_zoo.engine.sizes import sizes
    from cl_zoo.nn.fourbit import language_size

    protocol = Plugins(choices, recipe.options).protocol
    if protocol == "none":
        return None
    pairs = [(len(task.train), recipe.for_task(task.name)) for task in stream]
    if protocol == "joint":
        pairs = [(sum(size for size, _ in pairs), recipe)]
    samples = tuple(size * one.epochs for size, one in pairs)
    steps = tuple(-(-size // one.global_batch) * one.epochs for size, one in pairs)
    found = sizes(choices, backbone, recipe, len(stream) if all_tasks else min(2, len(stream)))
    names = (JOINT,) if protocol == "joint" else tuple(task.name for task in stream)
    return Spent(
        samples,
        steps,
        max(beside_projector(size.trained) for size in found),
        found[-1].budget,
        sum(found[-1].inference.values()),
        2 * (language_size(backbone) + sum(found[-1].active.values())),
        names,
    )


def _rank(
    prepared: Prepared, known: Mapping[str, Spent], kind: str, holds: Mapping[str, float]
) -> int | None:
    """The `adapter.rank` with which what a job trains comes nearest to the budget; `None` where its own will do, or none helps."""
    budget, own = _common([one.budget for one in known.values()]), prepared.recipe.adapter.rank
    share = holds.get("trained-parameters", TOLERANCE)
    trained = {own: known[kind].trained}
    if abs(trained[own] - budget) <= share * budget or prepared.plugins.protocol != "sequential":
        return None

    def at(rank: int) -> int:
        if rank not in trained:
            spent = counted_of(prepare(_ranked(prepared.job, rank)), holds)
            trained[rank] = spent.trained if spent is not None else 0
        return trained[rank]

    guess = max(1, round(own * budget / max(1, trained[own])))
    if at(guess) == trained[own] and guess != own:
        return None  # its size is not one of ranks
    low, high = 1, max(guess, own)
    while at(high) < budget and high < 64 * own:
        high *= 2
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if at(middle) < budget else (low, middle)
    at(low), at(max(1, low - 1))
    best = min(trained, key=lambda rank: (abs(trained[rank] - budget), rank))
    return best if best != own else None


def _ranked(job: Job, rank: int | None) -> Job:
    return job if rank is None else replace(job, recipe={**job.recipe, "adapter.rank": rank})


def _kinds(everything: Sequence[Prepared]) -> list[str]:
    return [repr((one.job.choices, one.recipe, _sizesof_tasks(one))) for one in everything]


def _sizesof_tasks(prepared: Prepared) -> list[tuple[str, int]]:
    """Sizes by name, in no order: a task costs the same wherever it stands."""
    return sorted((task.name, len(task.train)) for task in prepared.stream)
