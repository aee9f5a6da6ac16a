"""A comparison: many jobs, made by an executor at the same time, their answers scored by one scorer, one table.

The parent loads no model and no torch. It hands jobs to an executor (`cl_zoo.runs.executors`), scores what was answered (one Java process
for all) and keeps the runs that are finished when it is interrupted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_zoo.contract.options import NoOptions
from cl_zoo.engine.folder import IDENTITY, RunFolder
from cl_zoo.errors import ClZooError, PluginError, full_disk_named
from cl_zoo.recipe.budget import TOLERANCE
from cl_zoo.report.table import Table
from cl_zoo.runs.ahead import Ahead
from cl_zoo.runs.equal import HELD, TRAINED_PARAMETERS, Difference, Fair, Spent, differences
from cl_zoo.runs.executors.contract import Executor, chosen, looked_up
from cl_zoo.runs.executors.local import Local
from cl_zoo.runs.job import Job
from cl_zoo.runs.manifest import finish
from cl_zoo.runs.plan import Plan, Planned, planned
from cl_zoo.runs.result import Result as Result
from cl_zoo.runs.result import load_result as load_result
from cl_zoo.runs.tidy import as_frame, records
from cl_zoo.runs.worker import describe
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
class Left:
    """A run that an executor left to somebody else.

    Attributes:
        command: of the shell, which makes it.
    """

    label: str
    seed: int
    order: str
    command: str


@dataclass(frozen=True)
class Comparison:
    """Finished and failed runs side by side.

    Attributes:
        left: runs that were asked for and that nobody has made, with the executor `print`.
        holds: what is held equal, with the share by which a run may differ before its row is stamped.
    """

    results: tuple[Result, ...]
    left: tuple[Left, ...] = ()
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


def plan(
    jobs: Sequence[Job],
    *,
    processes: int | None = None,
    executor: str | None = None,
    fair: Fair | None = None,
) -> Plan:
    """What `compare` would run, everything looked up and checked, and nothing run.

    Raises:
        ClZooError: a job names something unknown, or the budgets are not equal.
    """
    made_by = _executor(jobs, processes, executor)
    there = [made_by.there(job) for job in jobs]
    found = looked_up(there, fair or Fair(), elsewhere=made_by.elsewhere)()
    return planned(*found, made_by.processes)


def compare(
    jobs: Sequence[Job],
    *,
    processes: int | None = None,
    executor: str | None = None,
    watch: Watch = lambda event: None,
    told: Told = lambda plan: None,
    fair: Fair | None = None,
) -> Comparison:
    """Run all jobs and score them; a run that is finished is taken from its folder, one that fails is a row with its reason.

    Args:
        jobs: no two have label, seed and order in common.
        processes: how many run at a time; default: one per accelerator, else one per core.
        executor: who makes them, with its options: `ray[address=auto]`; default: processes here.
        told: the plan, before anything runs.
        fair: what is held equal, and what comes of a difference; by default `HELD`, and a comparison of unequal budgets is refused.

    Raises:
        ClZooError: a job names something unknown, or the budgets are not equal; nothing has been started then.
    """
    results: dict[Key, Result | Left] = {}
    with _executor(jobs, processes, executor) as made_by, Scorer() as scorer:
        fair = fair or Fair()
        there = [made_by.there(job) for job in jobs]
        checked, ahead = made_by.check(there, fair), Ahead(jobs, scorer)
        with suppress(ClZooError):  # where Java is missing, the check says so with all else that it finds
            ahead.begin()
        made = planned(*checked(), made_by.processes)
        told(made)
        for one in made.runs:
            if one.finished:
                event, results[one.key] = _found(one)
                watch({**event, **_about(one)})
        if made.left:
            _run(made, made_by, scorer, ahead, results, watch)
    ended = [results[one.key] for one in made.runs]
    return Comparison(
        tuple(one for one in ended if isinstance(one, Result)),
        tuple(one for one in ended if isinstance(one, Left)),
        fair.holds,
    )


def _run(
    made: Plan,
    made_by: Executor,
    scorer: Scorer,
    ahead: Ahead,
    results: dict[Key, Result | Left],
    watch: Watch,
) -> None:
    """Run what is left of a plan and score it."""
    for place, event in made_by.run(made.left):
        one = made.left[place]
        if event["event"] == "left":
            results[one.key] = Left(one.job.label, one.job.seed, one.order, event["command"])
            continue
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


def _executor(jobs: Sequence[Job], processes: int | None, name: str | None) -> Executor:
    """Who makes some jobs' runs.

    Raises:
        PluginError: a run stands twice among them, or there is no such executor.
    """
    keys = Counter((job.label, job.seed, job.order) for job in jobs)
    for (label, _, _), count in keys.items():
        if count > 1:
            raise PluginError(f"{label} stands twice in the comparison; name it once")
    return Local(NoOptions(), jobs, processes) if name is None else chosen(name, jobs, processes)


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
