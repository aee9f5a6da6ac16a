"""The plan of a comparison: which runs, who shares a training, what is finished, and how long the rest may take.

It is made before anything is loaded, from what a worker has looked up (`cl_zoo.runs.foreseen`), and it is the same plan that then
runs. Runs that would end with the same bits are one: what learns nothing, or all tasks at once, is one run for all orders, and what
nothing is drawn for, one for all seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from cl_zoo.engine.folder import MANIFEST
from cl_zoo.engine.states import states_in
from cl_zoo.report.sheets import UNKNOWN, Entry, Line, Section, Sheet
from cl_zoo.runs.job import Job
from cl_zoo.runs.pace import Name, Pace, measured, together
from cl_zoo.runs.work import NOT_BEGUN, At, Work

Standing = Literal["finished", "in part", "to do"]


@dataclass(frozen=True)
class Planned:
    """A run before it begins.

    Attributes:
        job: what is asked for.
        order: letters of its tasks, in the benchmark's order where they are not learnt one after the other.
        tasks: names of the stream.
        ordered: whether they are learnt one after the other.
        work: what it has to do.
        run: its id; `None` where it is known only once the backbone is loaded.
        digest: equal for runs that end with the same bits.
        training: equal for runs that may share one training.
        ground: equal for runs whose times may be compared; `None` as for `run`.
    """

    job: Job
    order: str
    tasks: tuple[str, ...]
    ordered: bool
    work: Work
    run: str | None
    digest: str
    training: str
    ground: str | None

    @classmethod
    def from_json(cls, job: Job, facts: Mapping[str, Any]) -> Planned:
        """A job with what `cl_zoo.runs.foreseen` says of it."""
        return cls(job, **{**facts, "tasks": tuple(facts["tasks"]), "work": Work.from_json(facts["work"])})

    @property
    def name(self) -> Name:
        """Label and plugins, as rates go by."""
        return self.job.label, "+".join(one.name for one in self.job.choices if not one.probe)

    @property
    def key(self) -> tuple[str, int, str]:
        """Label, seed and order."""
        return self.job.label, self.job.seed, self.order

    @property
    def folder(self) -> Path | None:
        """Where it lies once it is finished."""
        return None if self.run is None else Path(self.job.out) / self.run

    @cached_property
    def finished(self) -> bool:
        """Whether it was when the plan was made."""
        return self.folder is not None and (self.folder / MANIFEST).is_file()

    @cached_property
    def at(self) -> At:
        """How far an interrupted run had come when the plan was made: where it goes on."""
        states = [] if self.folder is None else states_in(Path(f"{self.folder}.partial"))
        return At(lesson=int(states[-1].name.removeprefix("state-"))) if states else NOT_BEGUN

    @property
    def standing(self) -> Standing:
        """What is there of it."""
        return "finished" if self.finished else "in part" if self.at.lesson else "to do"


@dataclass(frozen=True)
class Plan:
    """The runs of a comparison, each once, in the order in which they begin.

    Attributes:
        runs: of several that end with the same bits the first.
        asked: how many were asked for.
        processes: runs at a time.
    """

    runs: tuple[Planned, ...]
    asked: int
    processes: int

    @cached_property
    def left(self) -> tuple[Planned, ...]:
        """Those that are not finished."""
        return tuple(one for one in self.runs if not one.finished)

    @cached_property
    def learners(self) -> dict[str, Planned]:
        """By training the run that learns, of those that are left; the others of it take over what it has learnt."""
        found: dict[str, Planned] = {}
        for one in self.left:
            found.setdefault(one.training, one)
        return found

    @property
    def orders(self) -> tuple[str, ...]:
        """Orders of the runs whose tasks are learnt one after the other."""
        return tuple(dict.fromkeys(one.order for one in self.runs if one.ordered))

    @property
    def steps(self) -> int:
        """Optimiser steps until all are finished, those of runs that are finished or shared not among them."""
        return sum(one.work.steps - one.work.behind(one.at) for one in self.left if self.learns(one))

    def learns(self, one: Planned) -> bool:
        """Whether a run learns itself."""
        return self.learners.get(one.training) is one

    @cached_property
    def pace(self) -> tuple[Pace, int]:
        """What the finished runs of the same machine in the folder of the runs have measured, and how many they are."""
        grounds = {(one.job.out, one.ground) for one in self.left}
        out, ground = next(iter(grounds)) if len(grounds) == 1 else ("", None)
        return (Pace(), 0) if ground is None else measured(Path(out), ground)

    def forecast(self) -> Forecast:
        """How long what is left may take, by the finished runs of the same machine in the folder of the runs."""
        pace, count = self.pace
        each = [pace.seconds(one.work.left(one.at, learns=self.learns(one)), one.name) for one in self.left]
        unknown = dict.fromkeys(one.job.label for one in self.left if not pace.knows(one.name))
        return Forecast(tuple(each), count, self.until(each), tuple(unknown))

    def until(self, each: Sequence[float | None]) -> float | None:
        """Seconds until the last of the runs that are left has ended, by those of each; `None` where one is."""
        known = [seconds for seconds in each if seconds is not None]
        if len(known) < len(each):
            return None
        places = {id(one): place for place, one in enumerate(self.left)}
        behind = [None if self.learns(one) else places[id(self.learners[one.training])] for one in self.left]
        return together(known, behind, self.processes)

    def to_json(self, forecast: Forecast) -> dict[str, Any]:
        """Plain data: every run with what there is of it, and the forecast in seconds."""
        seconds = {id(one): value for one, value in zip(self.left, forecast.each, strict=True)}
        runs = [
            {
                "label": one.job.label,
                "seed": one.job.seed,
                "order": one.order,
                "tasks": list(one.tasks),
                "run": one.run,
                "standing": one.standing,
                "tasks_done": len(one.work.asked) if one.finished else one.at.lesson,
                "learns": self.learns(one),
                "shares": self._learner(one),
                "steps": one.work.steps,
                "answers": one.work.answers,
                "seconds": seconds.get(id(one)),
            }
            for one in self.runs
        ]
        totals = {"asked": self.asked, "orders": list(self.orders), "steps": self.steps}
        told = {
            "seconds": forecast.seconds,
            "measured_on": forecast.count,
            "unknown": list(forecast.unknown),
            "processes": self.processes,
        }
        return {**totals, "forecast": told, "runs": runs}

    def _learner(self, one: Planned) -> str | None:
        """The run whose training another one takes over, in words."""
        learner = self.learners.get(one.training, one)
        return None if learner is one or one.finished else self.called(learner)

    def called(self, one: Planned) -> str:
        """A run in words: `hide, seed 0`, with its order where there are several."""
        return called(*one.key, several=len(self.orders) > 1 and one.ordered)

    def sheet(self, forecast: Forecast) -> Sheet:
        """A line for each run."""
        seconds = {id(one): value for one, value in zip(self.left, forecast.each, strict=True)}
        lines = []
        for one in self.runs:
            done, learner = one.at.lesson, self._learner(one)
            standing = f"{done} of {len(one.work.asked)} tasks" if one.standing == "in part" else one.standing
            expected = seconds.get(id(one))
            cells = (
                f"{one.work.steps:,}" if learner is None else UNKNOWN,
                f"{one.work.answers:,}",
                UNKNOWN if expected is None else duration(expected),
                standing,
                f"training of {learner}" if learner else "",
            )
            lines.append(Line(self.called(one), tuple(map(Entry, cells))))
        columns = ("Steps", "Answers", "Time", "State", "Shares")
        return Sheet(columns, (Section("", tuple(lines)),))

    def __str__(self) -> str:
        """What it comes to, in sentences."""
        finished, part = len(self.runs) - len(self.left), sum(one.at.lesson > 0 for one in self.left)
        parts = [f"{len(self.runs)} {_s('run', len(self.runs))}"]
        if self.asked > len(self.runs):
            parts.append(f"for {self.asked} asked for (those with the same bits are one)")
        parts.append(f"{finished} finished, {part} in part, {len(self.left) - part} to do")
        shared = sum(not self.learns(one) for one in self.left)
        parts += [f"{shared} {_s('takes', shared, 'take')} over another's training"] if shared else []
        parts.append(f"{self.steps:,} steps, {self.processes} at a time")
        if len(self.orders) > 1:
            parts.append(f"orders {', '.join(self.orders)}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Forecast:
    """How long what is left of a plan may take.

    Attributes:
        each: seconds of each run that is left; `None` where nothing like it was measured.
        count: finished runs of the same machine that it rests on.
        seconds: until the last has ended; `None` where one of `each` is.
        unknown: labels of which nothing was measured; they are taken to be as fast as the others.
        by: what it rests on, in words, where that is no finished run.
    """

    each: tuple[float | None, ...]
    count: int
    seconds: float | None
    unknown: tuple[str, ...] = ()
    by: str = ""

    def __str__(self) -> str:
        if not self.each:
            return "nothing is left to do"
        if self.seconds is None:
            return "no forecast of time: no run of this kind was finished on this machine yet"
        if self.by:
            return f"about {duration(self.seconds)}, {self.by}"
        runs = f"{self.count} finished {_s('run', self.count)}"
        taken = f" ({', '.join(self.unknown)} taken to be as fast)" if self.unknown else ""
        return f"about {duration(self.seconds)}, by what {runs} took on this machine{taken}"


def planned(jobs: Sequence[Job], facts: Sequence[Mapping[str, Any]], processes: int) -> Plan:
    """The plan for some jobs, with what is foreseen of each."""
    runs: dict[str, Planned] = {}
    for job, about in zip(jobs, facts, strict=True):
        runs.setdefault(about["digest"], Planned.from_json(job, about))
    return Plan(tuple(runs.values()), len(jobs), processes)


def called(label: str, seed: int, order: str, *, several: bool) -> str:
    """A run in words; its order where there are several."""
    return f"{label}, seed {seed}" + (f", {order}" if several and order else "")


def duration(seconds: float) -> str:
    """`8 s`, `3 min`, `2 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _s(noun: str, count: int, many: str = "") -> str:
    return noun if count == 1 else many or f"{noun}s"
