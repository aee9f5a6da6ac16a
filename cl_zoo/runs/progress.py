"""What a user sees while runs are under way: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cl_zoo.errors import printable


def progress_for(console: Console, runs: int) -> Lines | Bars:
    """Bars where the console is a terminal, else lines."""
    return Bars(console, runs) if console.is_terminal else Lines(console, runs)


class Lines:
    """One line when a run starts, after each task, and when it ends; nothing that a log file could not hold."""

    def __init__(self, console: Console, runs: int) -> None:
        self._console, self._runs, self._ended, self._began = console, runs, 0, time.monotonic()
        self._last: dict[tuple[str, int], str] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self, event: dict[str, Any]) -> None:
        name = f"{event['label']}, seed {event['seed']}"
        if event["event"] == "progress":
            text = _phase(event)
            if text and self._last.get((event["label"], event["seed"])) != text:
                self._last[(event["label"], event["seed"])] = text
                self._say(f"{name}: {text}")
        elif event["event"] == "finished":
            self._ended += 1
            self._say(f"{name}: {_outcome(event)} ({self._ended} of {self._runs})")
        elif event["event"] == "failed":
            self._ended += 1
            self._say(f"{name}: failed: {event['message']} ({self._ended} of {self._runs})")

    def _say(self, text: str) -> None:
        line = f"[{time.monotonic() - self._began:6.0f} s] {printable(text)}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Bars:
    """A bar per run: tasks learnt, with the loss of the last step beside it."""

    def __init__(self, console: Console, runs: int) -> None:
        self._bars = Progress(
            TextColumn("{task.fields[name]}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=console,
        )
        self._ids: dict[tuple[str, int], TaskID] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        event = {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}
        key = (event["label"], event["seed"])
        if key not in self._ids:
            self._ids[key] = self._bars.add_task(
                "", total=None, name=f"{key[0]}, seed {key[1]}", state="starting"
            )
        bar = self._ids[key]
        if event["event"] == "progress":
            if event["phase"] == "start":
                self._bars.update(bar, total=len(event["tasks"]))
            elif event["phase"] == "train":
                done = event["index"] + event["step"] / event["steps"]
                loss = event["terms"].get("task", 0.0)
                self._bars.update(bar, completed=done, state=f"{event['task']}, loss {loss:.2f}")
            elif event["phase"] == "taken":
                self._bars.update(bar, completed=event["index"] + 1, state=f"{event['task']}, learnt before")
            elif event["phase"] == "inherited":
                self._bars.update(bar, completed=len(event["tasks"]), state=_inherited(event))
            elif event["phase"] == "resumed":
                done = event["index"] + event["step"] / event["steps"]
                self._bars.update(bar, completed=done, state=_phase(event))
            elif event["phase"] == "passed":
                self._bars.console.print(_phase(event), markup=False, highlight=False, soft_wrap=True)
            elif event["phase"] == "preflight":
                self._bars.update(bar, state=f"checking {event['task']}")
            elif event["phase"] == "answer":
                self._bars.update(bar, state=f"answering {event['task']}")
            elif event["phase"] == "score":
                self._bars.update(bar, state=_scoring(event))
        elif event["event"] == "finished":
            self._bars.update(bar, total=1, completed=1, state=_outcome(event))
        elif event["event"] == "failed":
            self._bars.update(bar, state=f"failed: {event['message']}")


def _phase(event: dict[str, Any]) -> str:
    if event["phase"] == "start":
        return f"run {event['run']}"
    if event["phase"] == "train" and event["step"] == event["steps"]:
        # Rounded before zero is added: what is nearly nothing has no sign.
        terms = ", ".join(f"{name} {round(value, 3) + 0.0:.3f}" for name, value in event["terms"].items())
        steps = "1 step, too few to learn from" if event["steps"] == 1 else f"{event['steps']} steps"
        return f"learnt {event['task']} in {steps} ({terms})"
    if event["phase"] == "taken":
        return f"took over {event['task']}, which another run has learnt"
    if event["phase"] == "inherited":
        return _inherited(event)
    if event["phase"] == "resumed":
        return f"goes on within {event['task']} after step {event['step']} of {event['steps']}"
    if event["phase"] == "passed":
        return str(event["message"])
    if event["phase"] == "score":
        return _scoring(event)
    return ""


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
    return f"scoring{'; ' if event['waits'] else ''}{event['waits']}"


def _outcome(event: dict[str, Any]) -> str:
    last = "–" if event["last"] is None else f"{event['last']:.2f}"
    return f"finished, Last {last}, {event['seconds']:.0f} s"
