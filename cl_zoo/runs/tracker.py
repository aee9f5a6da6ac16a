"""How far a comparison is: what each run does, steps of steps, the time that is left by what was measured, and who waits for whom."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cl_zoo.runs.pace import Name, Pace, together
from cl_zoo.runs.plan import Plan, called
from cl_zoo.runs.work import At, Part, Work

Key = tuple[str, int, str]


@dataclass
class Tracked:
    """A run under way.

    Attributes:
        key: label, seed, order.
        called: in words.
        name: label and plugins, as rates go by.
        work, at: what it does and how far it is; `None` before it has said so.
        learns: whether it learns itself.
        behind: the run whose training it waits for, where it does not learn.
        began, ended: whether a worker has it, and whether it is over.
    """

    key: Key
    called: str
    name: Name
    work: Work | None = None
    at: At = field(default_factory=At)
    learns: bool = True
    behind: Key | None = None
    began: bool = False
    ended: bool = False
    _doing: Part | None = None
    _since: float = 0.0

    def goes_on(self, doing: Part | None, now: float, pace: Pace) -> None:
        """What it did until now is done, and was measured; now it does something else."""
        if self._doing is not None:
            kind, task, units = self._doing
            pace.add(kind, task, now - self._since, units, self.name)
        self._doing, self._since = doing, now

    def forgets(self) -> None:
        """What it does at present says nothing of how long that takes."""
        self._doing = None

    def left(self, pace: Pace, now: float) -> float | None:
        """Seconds until it ends; `None` where nothing like what it still does was measured."""
        if self.work is None:
            return None
        parts = list(self.work.left(self.at, learns=self.learns))
        whole = pace.seconds(parts, self.name)
        if whole is None or self._doing is None:
            return whole
        steps = ("step", "hook") if self._doing[0] == "step" else ()
        hand = [part for part in parts if part[0] in steps and part[1] == self._doing[1]] or [self._doing]
        at_hand = pace.seconds(hand[:1], self.name) or 0.0
        return max(whole - min(now - self._since, at_hand), 0.0)


class Tracker:
    """Hears the plan and the events of all runs, and says how far they are.

    Args:
        runs: how many there will be, where no plan is told.
        clock: seconds, whatever they start from.
    """

    def __init__(self, runs: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.runs, self.clock, self.several = runs, clock, False
        self.tracked: dict[Key, Tracked] = {}
        self.plan: Plan | None = None
        self.pace, self._before, self._warm = Pace(), 0, set[Any]()

    def told(self, plan: Plan) -> None:
        """Take note of the plan, and of what finished runs of the same machine have measured; what came before it is over."""
        self.tracked.clear()
        self.plan, self.runs, self.several = plan, len(plan.runs), len(plan.orders) > 1
        self.pace, self._before = plan.pace[0], len(plan.runs) - len(plan.left)
        for one in plan.left:
            learner = plan.learners[one.training]
            behind = None if learner is one else learner.key
            self.tracked[one.key] = Tracked(
                one.key, plan.called(one), one.name, one.work, one.at, learns=behind is None, behind=behind
            )

    def heard(self, event: Mapping[str, Any]) -> Tracked:
        """Take note of an event; returns the run that it is about."""
        key = (event["label"], event["seed"], event.get("order", ""))
        one = self.tracked.get(key)
        if one is None:
            one = Tracked(key, called(*key, several=self.several), (event["label"], event["label"]))
            if event.get("again"):
                return one  # it was finished before, and is counted so
            self.tracked[key] = one
        now = event.get("at") or self.clock()
        if event["event"] == "progress":
            one.began = True
            self._moved(one, event, now)
        else:
            one.ended = True
            if event["event"] == "finished":
                one.goes_on(None, now, self.pace)
        return one

    def _moved(self, one: Tracked, event: Mapping[str, Any], now: float) -> None:
        phase, task = event["phase"], event.get("task", "")
        if phase == "begin":
            one.goes_on(("start", "", 1), now, self.pace)
        elif phase == "start":
            one.work = Work.from_json(event["work"]) if "work" in event else one.work
            one.at = replace(one.at, begun=True)
            if (
                event.get("worker") not in self._warm
            ):  # its first run waits for imports too, the next ones do not
                self._warm.add(event.get("worker"))
                one.forgets()
            one.goes_on(None, now, self.pace)
        elif phase == "before_task":
            one.learns, one.at = True, At(True, event["index"])
            one.goes_on(("step", task, 0), now, self.pace)
        elif phase == "train":
            before = one.at.step if one.at.lesson == event["index"] else 0
            self.pace.add("step", task, now - one._since, event["step"] - before, one.name)
            one.at = At(True, event["index"], event["step"])
            one.goes_on(("step", task, 0), now, self.pace)
        elif phase == "after_task":
            one.goes_on(("hook", "", one.at.step), now, self.pace)
        elif phase == "resumed":
            one.at = At(True, event["index"], event["step"])
            one.goes_on(("step", task, 0), now, self.pace)
        elif phase == "inherited":
            one.at = At(True, len(event["tasks"]))
            one.goes_on(None, now, self.pace)
        elif phase == "taken":
            one.at = At(True, event["index"], self._steps(one, event["index"]))
            one.goes_on(None, now, self.pace)
        elif phase == "answer":
            self._asked(one, event, now)
        elif phase == "score":
            one.at = At(True, len(one.work.asked)) if one.work else one.at
            one.goes_on(None, now, self.pace)
            # It was answered then, and is scored from now on, behind others. What it waits for comes once in a comparison, so
            # that it says nothing of the next score.
            one.goes_on(None if event.get("waits") else ("score", "", 1), self.clock(), self.pace)

    def _asked(self, one: Tracked, event: Mapping[str, Any], now: float) -> None:
        if one.work is None:
            return
        row, place = event["index"], event["cell"]
        cells = one.work.asked[row].index(place) if place in one.work.asked[row] else 0
        one.goes_on(("answer", *one.work.tests[place]), now, self.pace)
        one.at = At(True, row, self._steps(one, row), cells)

    @staticmethod
    def _steps(one: Tracked, lesson: int) -> int:
        return one.work.lessons[lesson][1] if one.work and one.work.lessons else 0

    # Together

    @property
    def ended(self) -> int:
        """Runs that are over, those that had been finished before too."""
        return self._before + sum(one.ended for one in self.tracked.values())

    @property
    def steps(self) -> tuple[int, int]:
        """Optimiser steps that are behind the runs, and all of them; of a shared training once."""
        learning = [one for one in self.tracked.values() if one.work is not None and one.learns]
        done = sum(self.steps_of(one)[0] for one in learning)
        return done, sum(self.steps_of(one)[1] for one in learning)

    @staticmethod
    def steps_of(one: Tracked) -> tuple[int, int]:
        """Steps that are behind a run, and all of them."""
        if one.work is None:
            return 0, 0
        return one.work.behind(one.at), one.work.steps

    def waiting(self) -> list[Tracked]:
        """Runs that could begin if the one that learns for them had done so: there is a free worker, and they are all that is left."""
        if self.plan is None:
            return []
        running = sum(one.began and not one.ended for one in self.tracked.values())
        queue = [one for one in self.tracked.values() if not one.began and not one.ended]
        free = running < self.plan.processes and all(self._held(one) for one in queue)
        return queue if free else []

    def _held(self, one: Tracked) -> bool:
        learner = self.tracked.get(one.behind) if one.behind else None
        return learner is not None and learner.began and not learner.ended

    def left(self) -> float | None:
        """Seconds until the last run has ended; `None` as long as nothing like what is left was measured."""
        if self.plan is None and self.runs > len(self.tracked):
            return None  # the next ones have not said what they do
        now = self.clock()
        order = sorted((one for one in self.tracked.values() if not one.ended), key=lambda one: not one.began)
        seconds = [one.left(self.pace, now) for one in order]
        places = {one.key: place for place, one in enumerate(order)}
        behind = [places.get(one.behind) if one.behind and not one.began else None for one in order]
        known = [one for one in seconds if one is not None]
        if len(known) < len(seconds):
            return None
        return together(known, behind, self.plan.processes if self.plan else 1)
