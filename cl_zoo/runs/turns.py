"""Whose turn it is: the jobs of a comparison one after the other, those that share a training behind the one that learns.

Of jobs with one training the first learns and keeps it. When it has kept every task's state the others may run, all at a time;
where it fails, or had been finished before and left nothing, the next one learns. What was kept goes with the last of them.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_zoo.runs.execute import Training


@dataclass
class Group:
    """Jobs that share a training.

    Attributes:
        waiting, running: how many of them.
        shares: whether there were several.
        whole: whether every state is kept.
        folders: names of those that hold the states.
    """

    waiting: int = 0
    running: int = 0
    shares: bool = False
    whole: bool = False
    folders: set[str] = field(default_factory=set)


class Turns:
    """The order of a comparison's jobs, for threads that each serve one at a time.

    Args:
        trainings: a key for each job; jobs of one key share a training.
        kept: folder of all trainings that are shared.
    """

    def __init__(self, trainings: Sequence[str], kept: Path) -> None:
        self._changed, self._closed, self._kept = threading.Condition(), False, kept
        self._waiting = list(range(len(trainings)))
        groups = {key: Group() for key in trainings}
        self._groups = [groups[key] for key in trainings]
        for group in self._groups:
            group.shares, group.waiting = group.waiting > 0, group.waiting + 1

    def next(self) -> tuple[int, Training] | None:
        """Place of the next job and how it trains, as soon as there is one that may run; `None` when nothing is left to begin."""
        with self._changed:
            while self._waiting and not self._closed:
                if (turn := self._free()) is not None:
                    return turn
                self._changed.wait()
        return None

    def free(self) -> tuple[int, Training] | None:
        """The same where one may run now; `None` where none is left or all of them have to wait."""
        with self._changed:
            return None if self._closed else self._free()

    def _free(self) -> tuple[int, Training] | None:
        for place in self._waiting:
            group = self._groups[place]
            if group.whole or not group.running:
                self._waiting.remove(place)
                group.waiting, group.running = group.waiting - 1, group.running + 1
                return place, _training(group)
        return None

    def heard(self, place: int, event: Mapping[str, Any]) -> None:
        """Take note of an event of a job that runs; after its last one others may have their turn."""
        group = self._groups[place]
        with self._changed:
            if self._closed:  # what was interrupted may go on from what is kept
                return
            if event["event"] == "progress":
                if event.get("trained"):
                    group.folders.add(event["trained"])
                group.whole = group.whole or event.get("phase") == "trained"
                return
            group.running -= 1
            if not group.running and not group.waiting:
                self._forget(group)
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody has a turn any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _forget(self, group: Group) -> None:
        for name in group.folders:
            shutil.rmtree(self._kept / name, ignore_errors=True)
        if group.folders:
            with suppress(OSError):  # others are in it, or it was never made
                self._kept.rmdir()


def _training(group: Group) -> Training:
    if not group.shares:
        return "own"
    return "taken" if group.whole or not group.waiting else "kept"
