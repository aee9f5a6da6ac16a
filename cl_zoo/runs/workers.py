"""Worker processes: they run jobs in processes of one thread each, and are ended however a comparison ends."""

from __future__ import annotations

import fcntl
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cl_zoo.errors import PluginError
from cl_zoo.runs.equal import Fair
from cl_zoo.runs.execute import TRAINED, Training
from cl_zoo.runs.faults import LOGS
from cl_zoo.runs.job import Job
from cl_zoo.runs.plan import Planned
from cl_zoo.runs.turns import Turns
from cl_zoo.runs.worker import describe

ENDS = ("answered", "failed")
"""The last event of a run that a worker was given."""


class Workers:
    """Worker processes of one thread each; ended, however the comparison ends.

    Args:
        count: how many.
        devices: CUDA devices to share out, or none.
        out: folder of the runs; logs go to `out/logs`.
        name: what the logs are called, a number behind it.
    """

    def __init__(self, count: int, devices: Sequence[str], out: Path, *, name: str = "worker") -> None:
        self._logs, self._devices, self._name = out / LOGS, devices, name
        self._closing, self._closed, self._threads = threading.Lock(), False, list[threading.Thread]()
        self._turns: Turns | None = None
        self._logs.mkdir(parents=True, exist_ok=True)
        for log in self._logs.glob(f"{name}-*.log"):
            _forget(log)
        self._processes = [self._start(index) for index in range(count)]
        self._events: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        with self._closing:
            self._closed = True  # nothing is started after this
        if self._turns is not None:
            self._turns.close()
        for process in self._processes:
            process.terminate()  # files are written under draft names, so nothing is left half-written
        for process in self._processes:
            process.wait()
        for thread in self._threads:  # each was waiting for a word of a process that is gone
            thread.join()
        for process in self._processes:
            _close(process)

    def check(
        self, jobs: Sequence[Job], fair: Fair, *, elsewhere: bool = False
    ) -> Callable[[], tuple[list[Job], list[dict[str, Any]]]]:
        """Let one worker begin to look up everything that the jobs name.

        Args:
            elsewhere: whether they run on machines that may have other devices.

        Returns:
            What waits for its answer: the jobs as they shall run, and what is foreseen of each, see `cl_zoo.runs.foreseen`; or a
            `PluginError` where something is unknown or does not go together, in the words of whoever found it.
        """
        for process in self._processes[1:]:
            self._tell(process, {"load": True})
        asked: dict[str, Any] = {"check": [job.to_json() for job in jobs], "elsewhere": elsewhere}
        answer = self._ask(0, {**asked, "fair": asdict(fair)})

        def checked() -> tuple[list[Job], list[dict[str, Any]]]:
            event = next(answer)
            if event["event"] == "failed" and not event.get("logged"):
                # A plugin ended the process while it was counted; looked up without that, it fails in a row of its own.
                event = next(self._ask(0, {**asked, "fair": None}))
            if event["event"] != "checked":
                raise PluginError(event["message"])
            return [Job.from_json(one) for one in event["jobs"]], event["foreseen"]

        return checked

    def run(self, runs: Sequence[Planned]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Run what is planned in order, as workers become free; yields (place of the run, event).

        Of runs with one training the first learns and the others wait for it. Each ends with `answered` or `failed`, whatever
        happens to its worker; the others go on.
        """
        left, turns = len(runs), Turns([one.training for one in runs], Path(runs[0].job.out) / TRAINED)
        self._turns = turns

        def serve(worker: int) -> None:
            while (turn := turns.next()) is not None:
                place, training = turn
                for event in self.served(worker, runs[place].job.to_json(), training):
                    turns.heard(place, event)
                    self._events.put((place, {**event, "worker": worker, "at": time.monotonic()}))

        for worker in range(len(self._processes)):
            self._threads.append(threading.Thread(target=serve, args=(worker,), daemon=True))
            self._threads[-1].start()
        while left:
            place, event = self._events.get()
            left -= event["event"] in ENDS
            yield place, event

    def served(self, worker: int, job: Mapping[str, Any], training: Training) -> Iterator[dict[str, Any]]:
        """The events of a run that one worker is given; what goes wrong around its worker is the last of them."""
        yield {"event": "progress", "phase": "begin"}
        try:
            yield from self._ask(worker, {"run": job, "training": training})
        except Exception as error:  # no process could be started; the run is a row, and nobody waits for it
            yield {"event": "failed", "user": isinstance(error, OSError), "message": describe(error)}

    def _ask(self, worker: int, command: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a command; what comes back are its events, up to the closing one."""
        process = self._alive(worker)
        self._tell(process, command)
        return self._heard(worker, process)

    def _heard(self, worker: int, process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
        last = dict[str, Any]()
        log = self._logs / f"{self._name}-{worker}.log"
        for line in process.stdout:  # type: ignore[union-attr]
            try:
                event = json.loads(line)
            except ValueError:  # half a line of one that is killed
                continue
            if event.get("logged"):
                event["message"] += f"; its traceback is in {log}"
            yield event
            if event["event"] != "progress":
                return
            last = event
        code = process.wait()
        yield {"event": "failed", "user": code >= 0, "message": f"{ended(code, last)}; see {log}"}

    def _alive(self, worker: int) -> subprocess.Popen[str]:
        """The process of a worker, a new one where the last has ended."""
        with self._closing:
            process = self._processes[worker]
            if process.poll() is not None and not self._closed:
                _close(process)
                process = self._processes[worker] = self._start(worker)
            return process

    @staticmethod
    def _tell(process: subprocess.Popen[str], command: Mapping[str, Any]) -> None:
        with suppress(BrokenPipeError):  # who reads its answer finds out that it has ended
            process.stdin.write(json.dumps(command) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]

    def _start(self, index: int) -> subprocess.Popen[str]:
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment = {**os.environ, **threads}
        if self._devices:
            environment["CUDA_VISIBLE_DEVICES"] = self._devices[index % len(self._devices)]
        with (self._logs / f"{self._name}-{index}.log").open("a") as log:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(log, fcntl.LOCK_SH)  # held as long as the process writes to it, see `_forget`
            return subprocess.Popen(
                [sys.executable, "-m", "cl_zoo.runs.worker", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which ends its workers in order
            )


def ended(code: int, last: Mapping[str, Any]) -> str:
    """That a worker ended by itself, and at what: by a signal where the system or a user ended it, else by code that it ran.

    Args:
        last: the last event that it told of.
    """
    doing = {"train": "while it learnt", "after_task": "in after_task of", "answer": "while it answered"}
    now = doing.get(last.get("phase", ""), "")
    during = f" {now} {last['task']}" if now else ""
    step = f", behind step {last['step']}" if last.get("phase") == "train" else ""
    asks = ", though a hook returns or raises and never ends the process" if code >= 0 else ""
    return f"its process ended {_how(code)}{during}{step}{asks}"


def _how(code: int) -> str:
    if code >= 0:
        return f"with code {code}"
    short = ", as where memory is short" if code == -signal.SIGKILL else ""
    return f"by signal {-code} ({signal.strsignal(-code)}){short}"


def _forget(log: Path) -> None:
    """Remove the log of an earlier comparison; one that a worker of another comparison writes to stays."""
    with suppress(OSError), log.open() as opened:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        log.unlink()


def _close(process: subprocess.Popen[str]) -> None:
    """Close the pipes of a process that has ended, with what it never read."""
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
