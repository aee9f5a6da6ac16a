"""A comparison: many jobs in parallel processes, their answers scored by one scorer, one table.

The parent loads no model and no torch. It hands jobs to worker processes of one thread each, scores what they answered
(one Java process for all) and keeps the runs that are finished when it is interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_zoo.engine.folder import IDENTITY, RunFolder
from cl_zoo.errors import ClZooError, PluginError, full_disk_named
from cl_zoo.machine import cores
from cl_zoo.recipe.budget import TOLERANCE
from cl_zoo.report.table import Table
from cl_zoo.runs.ahead import Ahead
from cl_zoo.runs.equal import HELD, TRAINED_PARAMETERS, Difference, Fair, Spent, differences
from cl_zoo.runs.job import Job
from cl_zoo.runs.manifest import finish
from cl_zoo.runs.plan import Plan, Planned, planned
from cl_zoo.runs.result import Result as Result
from cl_zoo.runs.result import load_result as load_result
from cl_zoo.runs.tidy import as_frame, records
from cl_zoo.runs.worker import describe
from cl_zoo.runs.workers import Workers
from cl_zoo.scoring.matrix import Matrix
from cl_zoo.scoring.scorer import Scorer

if TYPE_CHECKING:
    import pandas

Watch = Callable[[dict[str, Any]], None]
"""Called with every event of every worker, `worker`, `label`, `seed` and `order` added."""

Told = Callable[[Plan], None]
"""Called with the plan of a comparison before its first run begins."""

Key = tuple[str, int, str]
"""A run of a comparison: label, seed and letters of its order; these are empty for runs from before orders were written down."""


@dataclass(frozen=True)
class Comparison:
    """Finished and failed runs side by side.

    Attributes:
        holds: what is held equal, with the share by which a run may differ before its row is stamped.
    """

    results: tuple[Result, ...]
    holds: Mapping[str, float] = field(default_factory=lambda: dict(HELD))

    @property
    def matrix(self) -> dict[tuple[str, int], Matrix]:
        """Matrices by label and seed, of the runs that finished.

        Raises:
            PluginError: the tasks were learnt in several orders.
        """
        found = self.matrices
        if len(orders := {one.order for one in self.results if one.ordered}) > 1:
            raise PluginError(
                f"a label and a seed have {len(orders)} matrices, one of each order; use matrices"
            )
        return {(label, seed): matrix for (label, seed, _), matrix in found.items()}

    @property
    def matrices(self) -> dict[Key, Matrix]:
        """Matrices by label, seed and order in letters, of the runs that finished."""
        return {one.key: one.matrix for one in self.results if one.error is None}

    @property
    def failed(self) -> list[Result]:
        return [one for one in self.results if one.error is not None]

    def table(self, scoring: str = "official") -> Table:
        """All of them in one table, by the official or the strict rules."""
        found, ranks = unequal(self.results, self.holds), other_ranks(self.results)
        budgets = matched(self.results)
        rows = [
            replace(
                one,
                unequal=found.get(one.key, ()),
                stamps=(*one.stamps, *ranks.get(one.key, ())),
                budget=budgets.get(one.key),
            ).row()
            for one in self.results
        ]
        return Table(rows, scoring)

    def frame(self, kind: str = "runs") -> pandas.DataFrame:
        """Tidy rows for pandas; `kind` is `runs`, `cells` (one score) or `samples` (one answer).

        Raises:
            OptionError: there is no such kind, or pandas is not installed.
        """
        return as_frame(records(self.results, kind))


def plan(jobs: Sequence[Job], *, processes: int | None = None, fair: Fair | None = None) -> Plan:
    """What `compare` would run, everything looked up and checked, and nothing run.

    Raises:
        ClZooError: a job names something unknown, or the budgets are not equal.
    """
    with _workers(jobs, processes, needed=1) as (workers, jobs, processes):
        return planned(*workers.check(jobs, fair or Fair())(), processes)


def compare(
    jobs: Sequence[Job],
    *,
    processes: int | None = None,
    watch: Watch = lambda event: None,
    told: Told = lambda plan: None,
    fair: Fair | None = None,
) -> Comparison:
    """Run all jobs and score them; a run that is finished is taken from its folder, one that fails is a row with its reason.

    Args:
        jobs: no two have label, seed and order in common.
        processes: how many run at a time; default: one per accelerator, else one per core.
        told: the plan, before anything runs.
        fair: what is held equal, and what comes of a difference; by default `HELD`, and a comparison of unequal budgets is refused.

    Raises:
        ClZooError: a job names something unknown, or the budgets are not equal; nothing has been started then.
    """
    results: dict[Key, Result] = {}
    with _workers(jobs, processes) as (workers, jobs, processes), Scorer() as scorer:
        fair = fair or Fair()
        checked, ahead = workers.check(jobs, fair), Ahead(jobs, scorer)
        with suppress(ClZooError):  # where Java is missing, the check says so with all else that it finds
            ahead.begin()
        made = planned(*checked(), processes)
        told(made)
        for one in made.runs:
            if one.finished:
                event, results[one.key] = _found(one)
                watch({**event, **_about(one)})
        if made.left:
            _run(made, workers, scorer, ahead, results, watch)
    return Comparison(tuple(results[one.key] for one in made.runs), fair.holds)


def _run(
    made: Plan, workers: Workers, scorer: Scorer, ahead: Ahead, results: dict[Key, Result], watch: Watch
) -> None:
    """Run what is left of a plan and score it."""
    for place, event in workers.run(made.left):
        one = made.left[place]
        if event.get("phase") != "begin":
            with suppress(
                ClZooError, OSError
            ):  # without Java only the runs with captions fail, when they are scored
                ahead.heard(event)
        if event["event"] == "answered":
            if event["facts"]:
                waits = ahead.waits_for(event["facts"]["metrics"])
                about = {"event": "progress", "phase": "score", "waits": waits}
                watch({**event, **about, **_about(one)})
            event, results[one.key] = _score(one, event, scorer)
        elif event["event"] == "failed":
            results[one.key] = _failed(one, event["message"], user=event["user"])
        watch({**event, **_about(one)})


@contextmanager
def _workers(
    jobs: Sequence[Job], processes: int | None, *, needed: int | None = None
) -> Iterator[tuple[Workers, list[Job], int]]:
    """Workers for some jobs, the jobs as they run there, and how many run at a time.

    Raises:
        PluginError: a run stands twice among them.
    """
    keys = Counter((job.label, job.seed, job.order) for job in jobs)
    for (label, _, _), count in keys.items():
        if count > 1:
            raise PluginError(f"{label} stands twice in the comparison; name it once")
    devices = accelerators(jobs[0].device)
    # Each worker sees one device only, and sees it as the first; `auto` may still find that torch cannot use it.
    there = [replace(job, device="cuda") if devices and job.device != "auto" else job for job in jobs]
    count = min(processes or len(devices) or cores(), len(jobs))
    with Workers(needed or count, devices, Path(jobs[0].out)) as workers:
        yield workers, there, count


def _about(one: Planned) -> dict[str, Any]:
    return {"label": one.job.label, "seed": one.job.seed, "order": one.order}


def _failed(one: Planned, message: str, *, user: bool) -> Result:
    label, seed = one.job.label, one.job.seed
    failed = Result(label, seed, {}, error=message, user_error=user)
    return replace(failed, order=one.order, ordered=one.ordered)


def _found(one: Planned) -> tuple[dict[str, Any], Result]:
    """A run that was finished before."""
    return _ended(one, {"event": "finished", "again": True}, lambda folder: None)


def _score(one: Planned, event: dict[str, Any], scorer: Scorer) -> tuple[dict[str, Any], Result]:
    """A run whose answers are there, scored."""
    root = Path(one.job.out)

    def score(folder: Path) -> None:
        if event["facts"]:
            identity = json.loads(Path(f"{folder}.partial", IDENTITY).read_text(encoding="utf-8"))
            with full_disk_named(root):
                finish(
                    RunFolder(root, event["run"], identity, keep=one.job.keeps_all),
                    event["facts"],
                    scorer,
                )

    return _ended(one, event, score)


def _ended(
    one: Planned, event: dict[str, Any], score: Callable[[Path], None]
) -> tuple[dict[str, Any], Result]:
    """The last event of a run and its result; whatever goes wrong is the reason of a row, and the others go on."""
    event = {key: value for key, value in event.items() if key != "at"}  # scoring takes time of its own
    try:
        folder = Path(one.job.out) / (event.get("run") or one.run or "")
        score(folder)
        result = replace(load_result(folder, trust=one.job.names), order=one.order, ordered=one.ordered)
        told = {"last": result.matrix.last, "seconds": result.ledger["seconds"]}
    except Exception as error:
        message = str(error) if isinstance(error, ClZooError) else describe(error)
        user = isinstance(error, ClZooError | OSError)
        return {**event, "event": "failed", "message": message}, _failed(one, message, user=user)
    return {**event, "event": "finished", **told}, result


def unequal(results: Sequence[Result], holds: Mapping[str, float]) -> dict[Key, tuple[Difference, ...]]:
    """How the budget of each run differs from that of most; what is said of a run by its own recipe's budget is not said again."""
    spent, common = _spent(results)
    said = {key for key, one in spent.items() if one.budget == common}
    return {
        key: tuple(one for one in many if one.name != TRAINED_PARAMETERS or key not in said)
        for key, many in differences(spent, holds).items()
    }


def matched(results: Sequence[Result]) -> dict[Key, int]:
    """The budget of most, for the runs of another one that train as much as it allows: `--match` gives them the rank for that."""
    spent, common = _spent(results)
    others = {key: one.trained for key, one in spent.items() if one.budget != common}
    return {key: common for key, trained in others.items() if abs(trained - common) <= TOLERANCE * common}


def _spent(results: Sequence[Result]) -> tuple[dict[Key, Spent], int]:
    """What the finished runs have spent that learn something, and what the recipe of most lets train."""
    finished = {one.key: one for one in results if one.error is None}
    spent = {key: found for key, one in finished.items() if (found := Spent.from_ledger(one.ledger))}
    budgets = Counter(one.budget for one in spent.values()).most_common(1)
    return spent, budgets[0][0] if budgets else 0


def other_ranks(results: Sequence[Result]) -> dict[Key, tuple[str, ...]]:
    """`rank 17` for the runs whose recipe has another rank than most have, as `--match` gives it."""
    ranks = {
        one.key: one.manifest.get("identity", {}).get("recipe", {}).get("adapter", {}).get("rank")
        for one in results
        if one.error is None and one.ordered
    }
    common = Counter(ranks.values()).most_common(1)
    return {key: (f"rank {rank}",) for key, rank in ranks.items() if rank != common[0][0]}


def accelerators(device: str) -> list[str]:
    """Indices of the CUDA devices that a comparison may use; asked of the driver, so that the parent needs no torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device.startswith("cpu") or shutil.which("nvidia-smi") is None:
        return []
    if ":" in device:
        return [device.partition(":")[2]]
    if visible is not None:
        return [index for index in visible.split(",") if index]
    asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(index) for index, line in enumerate(asked.stdout.splitlines()) if line.startswith("GPU")]
