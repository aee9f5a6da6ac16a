"""What a user sees while runs are under way: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from cl_zoo.errors import printable
from cl_zoo.runs.plan import Plan, duration
from cl_zoo.runs.tracker import Tracked, Tracker

EVERY = 10.0
"""Seconds between two lines of one run of a comparison, those aside that say how it begins, what it waits for and how it ends."""
ALWAYS = ("start", "inherited", "resumed", "passed")
"""What is said of a run whenever it comes: which it is, and where it goes on."""

RECKONING = 20
"""How many times as long as it takes to reckon the time that is left nobody reckons it anew."""


def progress_for(console: Console, runs: int = 1) -> Lines | Bars:
    """Bars where the console is a terminal, else lines.

    Args:
        runs: how many there will be, where no plan is told.
    """
    return Bars(console, runs) if console.is_terminal else Lines(console, runs)


class Clock:
    """The time that is left, reckoned once a second at most."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker, self._next, self._ends = tracker, 0.0, float("nan")

    def ends(self) -> float | None:
        """When the last run will have ended, by the tracker's clock; `None` as long as nobody can say."""
        now = self._tracker.clock()
        if now >= self._next:
            left = self._tracker.left()
            self._ends = float("nan") if left is None else now + left
            self._next = now + max(1.0, RECKONING * (self._tracker.clock() - now))
        return None if self._ends != self._ends else self._ends

    def left(self) -> str:
        """The same as a tail of a sentence: `, about 3 min left`."""
        ends = self.ends()
        return "" if ends is None else f", about {duration(max(ends - self._tracker.clock(), 0.0))} left"


class Lines:
    """A line when a run begins and when it ends, at times one about how far it is; nothing that a log file could not hold."""

    def __init__(self, console: Console, runs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock, self._began = console, clock, clock()
        self._tracker = Tracker(runs, clock)
        self._left, self._said = Clock(self._tracker), dict[Any, float]()
        self._waiting: set[Any] = set()

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def told(self, plan: Plan) -> None:
        """Say what is going to happen."""
        self._tracker.told(plan)
        self._say(f"{plan}; {plan.forecast()}")

    def __call__(self, event: dict[str, Any]) -> None:
        one = self._tracker.heard(event)
        if event["event"] == "progress":
            self._progress(one, event)
        elif not event.get("again"):
            outcome = f"failed: {event['message']}" if event["event"] == "failed" else _outcome(event)
            tail = self._left.left() if self._tracker.ended < self._tracker.runs else ""
            self._say(f"{one.called}: {outcome} ({self._tracker.ended} of {self._tracker.runs} runs{tail})")
        for other in self._tracker.waiting():
            if other.key not in self._waiting:
                self._waiting.add(other.key)
                self._say(f"{other.called}: {_waits(self._tracker, other)}")

    def _progress(self, one: Tracked, event: dict[str, Any]) -> None:
        text, now = _state(event), self._clock()
        learnt = event["phase"] == "train" and event["step"] == event["steps"]
        always = event["phase"] in ALWAYS or event.get("waits") or (learnt and self._tracker.plan is None)
        if not text or not (always or now - self._said.get(one.key, 0.0) >= EVERY):
            return
        if event["phase"] == "start":
            text = f"run {event['run']}"
        elif event["phase"] not in ALWAYS and not event.get("waits"):
            done, steps = self._tracker.steps_of(one)
            left = one.left(self._tracker.pace, now)
            about = f"{done} of {steps} steps" if one.learns and steps else ""
            ends = "" if left is None else f"about {duration(left)} left"
            text += f" ({', '.join(filter(None, (about, ends)))})" if about or ends else ""
        self._said[one.key] = now
        self._say(f"{one.called}: {text}")

    def _say(self, text: str) -> None:
        line = f"[{self._clock() - self._began:6.0f} s] {printable(text)}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Bars:
    """A bar for all runs together and one for each that is under way; how a run has ended stands above them."""

    def __init__(self, console: Console, runs: int) -> None:
        self._tracker = Tracker(runs)
        self._left = Clock(self._tracker)
        self._bars = Progress(
            TextColumn("{task.fields[name]}", markup=False, table_column=Column(ratio=3, no_wrap=True)),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[state]}", markup=False, table_column=Column(ratio=4, no_wrap=True)),
            _Left(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            console=console,
            expand=True,
        )
        self._ids: dict[Any, TaskID] = {}
        self._all = self._bars.add_task("", total=None, name="all runs", state="checking", ends=None)
        self._held = self._bars.add_task("", total=None, name="", state="", ends=None, visible=False)

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def told(self, plan: Plan) -> None:
        """Say what is going to happen."""
        self._tracker.told(plan)
        self._print(f"{plan}; {plan.forecast()}")
        self._together()

    def __call__(self, event: dict[str, Any]) -> None:
        event = {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}
        one = self._tracker.heard(event)
        if event["event"] == "progress":
            self._progress(one, event)
        elif not event.get("again"):
            outcome = f"failed: {event['message']}" if event["event"] == "failed" else _outcome(event)
            if one.key in self._ids:
                self._bars.remove_task(self._ids.pop(one.key))
            self._print(f"{printable(one.called)}: {outcome}")
        self._together()

    def _progress(self, one: Tracked, event: dict[str, Any]) -> None:
        if one.key not in self._ids:
            name = printable(one.called)
            self._ids[one.key] = self._bars.add_task("", total=None, name=name, state="starting", ends=None)
        bar, now = self._ids[one.key], self._tracker.clock()
        done, steps = self._tracker.steps_of(one)
        left = one.left(self._tracker.pace, now)
        if event["phase"] in ALWAYS[1:]:
            self._print(f"{one.called}: {_state(event)}")
        state = _state(event) or self._bars.tasks[self._bars.task_ids.index(bar)].fields["state"]
        self._bars.update(
            bar, total=steps or None, completed=done, state=state, ends=None if left is None else now + left
        )

    def _together(self) -> None:
        """Bring the bar of all runs up to date."""
        (done, steps), waiting = self._tracker.steps, self._tracker.waiting()
        state = f"{self._tracker.ended} of {self._tracker.runs} runs"
        state += f", step {done:,} of {steps:,}" if steps else ""
        self._bars.update(self._all, total=steps or None, completed=done, state=state, ends=self._left.ends())
        if waiting:
            name = waiting[0].called if len(waiting) == 1 else f"{len(waiting)} runs"
            self._bars.update(self._held, name=printable(name), state=_waits(self._tracker, waiting[0]))
        self._bars.update(self._held, visible=bool(waiting))

    def _print(self, text: str) -> None:
        self._bars.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


class _Left(ProgressColumn):
    """The time that is left, counted down between two events; nothing where nobody can say."""

    def render(self, task: Task) -> Text:
        ends = task.fields["ends"]
        left = None if ends is None else ends - time.monotonic()
        return Text("" if left is None or left < 0 else f"{duration(left)} left")


def _state(event: dict[str, Any]) -> str:
    """What a run does, in words."""
    phase, task = event["phase"], event.get("task", "")
    if phase == "train":
        # Rounded before zero is added: what is nearly nothing has no sign.
        terms = ", ".join(f"{name} {round(value, 3) + 0.0:.3f}" for name, value in event["terms"].items())
        if event["step"] < event["steps"]:
            return f"learns {task}, step {event['step']} of {event['steps']} ({terms})"
        steps = "1 step, too few to learn from" if event["steps"] == 1 else f"{event['steps']} steps"
        return f"learnt {task} in {steps} ({terms})"
    if phase == "score":
        return _scoring(event)
    if phase == "inherited":
        return _inherited(event)
    return {
        "start": "begins",
        "before_task": f"learns {task}",
        "preflight": f"checks {task}",
        "taken": f"took over {task}, which another run has learnt",
        "resumed": f"goes on within {task} after step {event.get('step')} of {event.get('steps')}",
        "passed": str(event.get("message", "")),
        "answer": f"answers {task}",
    }.get(phase, "")


def _inherited(event: dict[str, Any]) -> str:
    """What another run had learnt already, and what comes next."""
    tasks, again, following = event["tasks"], event["again"], event["next"]
    names = ", ".join(tasks)
    says = f"{names} {'were' if ', ' in names else 'was'} learnt in {event['run']}"
    if again:
        says += f"; learning {', '.join(again)} once more for answers that are not there"
    return f"{says}; going on with {following}" if following else f"{says}; nothing new to learn"


def _scoring(event: dict[str, Any]) -> str:
    """That the answers are scored, and what that waits for."""
    waits = event.get("waits", "")
    return f"scoring{'; ' if waits else ''}{waits}"


def _waits(tracker: Tracker, one: Tracked) -> str:
    learner = tracker.tracked[one.behind].called if one.behind else "another run"
    return f"waits for the training of {learner}"


def _outcome(event: dict[str, Any]) -> str:
    last = "–" if event["last"] is None else f"{event['last']:.2f}"
    return f"finished, Last {last}, {event['seconds']:.0f} s"
