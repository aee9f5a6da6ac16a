"""What an executor is, and the one that somebody names: `local`, `ray[address=auto]`, `mine.py:Mine`.

Executors are found as methods are, by entry points of the group `cl_zoo.executors` or as `file.py:Class`, and have options as methods
have them.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cl_zoo.contract.options import filled
from cl_zoo.errors import PluginError
from cl_zoo.names import EXECUTORS, load, parse_stack
from cl_zoo.runs.equal import Fair
from cl_zoo.runs.job import Job
from cl_zoo.runs.plan import Planned
from cl_zoo.runs.workers import Workers

Event = dict[str, Any]
"""Something that a run tells of itself: `event` says what, see `Executor.run`."""

LookedUp = tuple[list[Job], list[dict[str, Any]]]
"""Jobs as they shall run, and what is foreseen of each, see `cl_zoo.runs.foreseen`."""


class Executor(ABC):
    """Makes the runs of a comparison, wherever it likes; scores and tables are made by whoever asks for them.

    A class attribute `Options`, a pydantic model, names its options; without one there are none. It is entered before the runs are looked
    up and left however the comparison ends; when it is left nothing of it may still run. Every run is idempotent: made again, it goes on after
    its last checkpoint, and finished it tells so at once. A run that two processes would make is made by the one that came first.

    Args:
        options: filled from what stands in square brackets behind its name.
        jobs: what is compared.
        at_a_time: how many runs at a time somebody asks for (`--jobs`); `None` leaves it to the executor.
    """

    elsewhere: bool = False
    """Whether the machines of the runs may have other devices than this one."""

    def __init__(self, options: BaseModel, jobs: Sequence[Job], at_a_time: int | None) -> None:
        self.options, self.jobs, self.at_a_time = options, jobs, at_a_time

    def __enter__(self) -> Executor:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None:
        """End whatever still runs."""

    @property
    def processes(self) -> int:
        """Runs at a time, for the forecast of time."""
        return min(self.at_a_time or len(self.jobs), len(self.jobs))

    def there(self, job: Job) -> Job:
        """A job as it is called where it runs; here its device may be settled."""
        return job

    def check(self, jobs: Sequence[Job], fair: Fair) -> Callable[[], LookedUp]:
        """Begin to look up everything that jobs name, before anything runs.

        Args:
            fair: what is held equal.

        Returns:
            What waits for its answer, and raises a `PluginError` where something is unknown, does not go together or is not equal.
        """
        return looked_up(jobs, fair, elsewhere=self.elsewhere)

    @abstractmethod
    def run(self, runs: Sequence[Planned]) -> Iterator[tuple[int, Event]]:
        """Make runs; yields (place of the run, event) as they happen.

        Events of a run are those of `cl_zoo.runs.worker`, as they come: any number of `progress`, and in the end one of

        * `answered`: its answers and facts are in the folder of the runs; with `run` and `facts`, as the worker told them;
        * `failed`: with a sentence as `message`, and `user`, whether its user can put it right;
        * `left`: nobody makes it now; with the shell's `command` that would.

        Whatever happens to one of them, the others go on. `at` of an event is a time in seconds, of any clock that a run keeps to; what
        has the same `worker` shares a process.
        """


def chosen(text: str, jobs: Sequence[Job], at_a_time: int | None) -> Executor:
    """The executor that somebody names, with its options, not yet entered.

    Args:
        text: `local`, `ray[address=auto,cpus=2]`, `package.module:Class` or `file.py:Class`.

    Raises:
        PluginError: there is no such executor, or it is none.
        OptionError: it has no such option, or a value is out of range.
    """
    choices = parse_stack(text)
    if len(choices) > 1:
        raise PluginError(f"--executor {text}: names {len(choices)}; a comparison has one executor")
    kind = load(EXECUTORS, choices[0].name)
    if not (inspect.isclass(kind) and issubclass(kind, Executor)):
        raise PluginError(
            f"{choices[0].name}: is no executor; derive its class from cl_zoo.Executor, see docs/extend.md"
        )
    if inspect.isabstract(kind):
        missing = ", ".join(sorted(kind.__abstractmethods__))
        raise PluginError(f"{choices[0].name}: lacks {missing}; define what an executor promises")
    made: Executor = kind(filled(kind, choices[0], {}), jobs, at_a_time)
    return made


def looked_up(jobs: Sequence[Job], fair: Fair, *, elsewhere: bool = False) -> Callable[[], LookedUp]:
    """Look jobs up in a process of its own, which ends when it has answered; see `Executor.check`."""

    def checked() -> LookedUp:
        with Workers(1, [], Path(jobs[0].out), name="check") as workers:
            return workers.check(jobs, fair, elsewhere=elsewhere)()

    return checked
