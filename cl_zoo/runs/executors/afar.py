"""Runs on other machines that share the folder of the runs: what Ray, SLURM and their like have in common.

A run is an errand, a function call that some system carries to a machine. There it starts a worker process as a comparison here does, and writes
the events of the run to a file in the shared folder, which is read here. So nothing but the folder connects both sides. Where an errand is
lost with its machine it is sent again; the run goes on after its last checkpoint.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import tempfile
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from cl_zoo.errors import PluginError, first_line
from cl_zoo.runs.execute import TRAINED
from cl_zoo.runs.executors.contract import Event, Executor
from cl_zoo.runs.faults import LOGS
from cl_zoo.runs.job import Job
from cl_zoo.runs.plan import Planned
from cl_zoo.runs.turns import Turns
from cl_zoo.runs.worker import describe
from cl_zoo.runs.workers import ENDS, Workers

if TYPE_CHECKING:
    from cl_zoo.runs.execute import Training

LOOKS = 0.25
"""Seconds between two looks at what is under way."""

LAG = 60.0
"""Seconds after which the end of a run is no longer waited for whose errand is over; shared folders show a file late."""

HELD = 120.0
"""Seconds for which an errand that is sent again waits for the folder that the lost one may still hold."""

HANDED_ON = ("CL_ZOO_", "HF_")
"""Variables of the environment that go with an errand, by how their names begin."""


@dataclass(frozen=True)
class Errand:
    """A run as it is carried to another machine, and made there by calling it.

    Attributes:
        job: as `Job.to_json` gives it.
        training: whether it learns, see `cl_zoo.runs.execute`.
        events: the file for its events, in the shared folder.
        log: what the log of its worker is called.
        folder: that of whoever asks; it has the same path there.
        environment: variables that are set there.
        again: whether it was sent before and lost.
    """

    job: Mapping[str, Any]
    training: Training
    events: str
    log: str
    folder: str
    environment: Mapping[str, str]
    again: bool = False

    def __call__(self) -> None:
        """Make the run in a worker process here, and write down what it tells."""
        os.chdir(self.folder)
        os.environ.update(self.environment)
        out = Path(self.job["out"])
        with open(self.events, "a", encoding="utf-8") as file, Workers(1, [], out, name=self.log) as workers:
            for event in self._events(workers):
                file.write(json.dumps({**event, "at": time.monotonic()}) + "\n")
                file.flush()

    def _events(self, workers: Workers) -> Iterator[Event]:
        until = time.monotonic() + (HELD if self.again else 0.0)
        while True:
            for event in workers.served(0, self.job, self.training):
                if event.get("held") and time.monotonic() < until:
                    break  # the lost one has not ended yet; it does, within a second of its parent
                yield event
            else:
                return
            time.sleep(1.0)


@dataclass
class _Trip:
    """An errand under way: what the system knows it by, and how far its file was read.

    Attributes:
        unsent: why it could not be sent.
        shift: what a time of its clock lacks to one of the clock here.
        over: when its call had returned, by the clock here.
    """

    errand: Errand
    tries: int = 1
    handle: Any = None
    unsent: str = ""
    read: int = 0
    shift: float | None = None
    over: float | None = None

    def events(self) -> Iterator[Event]:
        """What has been written since the last look; `at` by the clock here, with the distances that it had there."""
        try:
            with open(self.errand.events, "rb") as file:
                file.seek(self.read)
                whole, newline, _ = file.read().rpartition(b"\n")  # behind it half a line may stand
        except FileNotFoundError:
            return
        self.read += len(whole) + len(newline)
        for line in whole.splitlines():
            event = json.loads(line)
            if self.shift is None:
                self.shift = time.monotonic() - event["at"]
            yield {**event, "at": event["at"] + self.shift, "worker": self.errand.log}


class Afar(Executor):
    """An executor that has errands carried to other machines; whoever derives from it says how.

    Attributes:
        name: what its logs are called.
        retries: how often a run is sent again whose errand was lost.
        gpus: accelerators of a run; they settle what `auto` means as a device.
    """

    elsewhere = True
    name = "afar"
    retries = 3
    gpus: float = 0

    def __init__(self, options: BaseModel, jobs: Sequence[Job], at_a_time: int | None) -> None:
        super().__init__(options, jobs, at_a_time)
        self._under_way: dict[int, _Trip] = {}
        self._events: Path | None = None

    @abstractmethod
    def send(self, errand: Errand) -> Any:
        """Have an errand called on some machine, once; returns what the system knows it by."""

    @abstractmethod
    def ended(self, handle: Any) -> str | None:
        """`None` while an errand waits or is called, an empty text when its call has returned, else how it was lost, in words.

        Raises:
            Exception: what the call has raised; it is not sent again then.
        """

    @abstractmethod
    def cancel(self, handle: Any) -> None:
        """End an errand, wherever it is."""

    def __exit__(self, *_: object) -> None:
        for trip in self._under_way.values():
            if not trip.unsent:
                self.cancel(trip.handle)
        if self._events is not None:
            shutil.rmtree(self._events, ignore_errors=True)

    def there(self, job: Job) -> Job:
        device = job.device if job.device != "auto" else "cuda" if self.gpus else "cpu"
        return replace(job, device=device)

    def run(self, runs: Sequence[Planned]) -> Iterator[tuple[int, Event]]:
        out = Path(runs[0].job.out)
        self._events = Path(tempfile.mkdtemp(prefix="events-", dir=out / LOGS)).absolute()
        left, turns = len(runs), Turns([one.training for one in runs], out / TRAINED)
        while left:
            while len(self._under_way) < self.processes and (turn := turns.free()) is not None:
                place, training = turn
                trip = _Trip(self._errand(runs[place].job, training, place))
                self._under_way[place] = self._sent(trip)
            for place, trip in list(self._under_way.items()):
                for event in self._heard(trip):
                    if event["event"] in ENDS:
                        left -= 1
                        del self._under_way[place]
                    turns.heard(place, event)
                    yield place, event
            if left:
                time.sleep(LOOKS)

    def _errand(self, job: Job, training: Training, place: int) -> Errand:
        handed_on = {key: value for key, value in os.environ.items() if key.startswith(HANDED_ON)}
        file = f"{self._events}/{place}-1.jsonl"
        return Errand(job.to_json(), training, file, f"{self.name}-{place}", os.getcwd(), handed_on)

    def _sent(self, trip: _Trip) -> _Trip:
        try:
            trip.handle = self.send(trip.errand)
        except Exception as error:  # the run is a row, and nobody waits for it
            trip.unsent = f"it could not be sent: {describe(error)}"
        return trip

    def _heard(self, trip: _Trip) -> Iterator[Event]:
        """What an errand has told since the last look, and what became of it where it can tell nothing any more."""
        why, lost = trip.unsent, None
        if not why:
            try:
                lost = self.ended(trip.handle)  # asked first: all that it told before it ended is read behind
            except Exception as error:
                why = describe(error)
        for event in trip.events():
            yield event
            if event["event"] in ENDS:
                return
        if lost == "":
            trip.over = trip.over or time.monotonic()
            if time.monotonic() - trip.over > LAG:
                why = f"nothing was told of its end within {LAG:.0f} s; is {trip.errand.folder} the same folder there?"
        elif lost and trip.tries <= self.retries:
            yield self._again(trip, lost)
        elif lost:
            why = f"{lost}; it was sent {trip.tries} times"
        if why:
            yield {"event": "failed", "message": why, "user": False}

    def _again(self, trip: _Trip, lost: str) -> Event:
        """Send an errand anew, with a file of its own."""
        tries = trip.tries + 1
        file = trip.errand.events.replace(f"-{trip.tries}.jsonl", f"-{tries}.jsonl")
        trip.__dict__.update(_Trip(replace(trip.errand, events=file, again=True), tries).__dict__)
        self._sent(trip)
        return {"event": "progress", "phase": "passed", "message": f"lost ({lost}), sent again"}


def imported(library: str, executor: str) -> Any:
    """The library that an executor works with; the extra of the executor's name brings it.

    Raises:
        PluginError: it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        remedy = f"pip install 'cl-zoo[{executor}]'"
        raise PluginError(f"--executor {executor}: {first_line(error)}; {remedy}") from error
