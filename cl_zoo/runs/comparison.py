"""A comparison: many jobs in parallel processes, their answers scored by one scorer, one table.

The parent loads no model and no torch. It hands jobs to worker processes of one thread each, scores what they answered
(one Java process for all) and keeps the runs that are finished when it is interrupted.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cl_zoo.engine.folder import IDENTITY, RunFolder
from cl_zoo.errors import ClZooError, PluginError, full_disk_named
from cl_zoo.machine import cores
from cl_zoo.report.table import Table
from cl_zoo.runs.ahead import Ahead
from cl_zoo.runs.execute import TRAINED
from cl_zoo.runs.faults import LOGS
from cl_zoo.runs.job import Job
from cl_zoo.runs.manifest import finish
from cl_zoo.runs.result import Result as Result
from cl_zoo.runs.result import load_result as load_result
from cl_zoo.runs.turns import Turns
from cl_zoo.runs.worker import describe
from cl_zoo.scoring.matrix import Matrix
from cl_zoo.scoring.scorer import Scorer

Watch = Callable[[dict[str, Any]], None]
"""Called with every event of every worker, `worker`, `label` and `seed` added."""

TOLERANCE = {"steps": 0.02, "samples": 0.02}
"""How far a run's budget may be from the common one before its row is stamped; parameters are measured by the recipe's budget."""


@dataclass(frozen=True)
class Comparison:
    """Finished and failed runs side by side."""

    results: tuple[Result, ...]

    @property
    def matrix(self) -> dict[tuple[str, int], Matrix]:
        """Matrices by label and seed, of the runs that finished."""
        return {(one.label, one.seed): one.matrix for one in self.results if one.error is None}

    @property
    def failed(self) -> list[Result]:
        return [one for one in self.results if one.error is not None]

    def table(self, scoring: str = "official") -> Table:
        """All of them in one table, by the official or the strict rules."""
        stamps = budget_stamps(self.results)
        rows = [replace(one, stamps=stamps.get((one.label, one.seed), ())).row() for one in self.results]
        return Table(rows, scoring)


def compare(
    jobs: Sequence[Job], *, processes: int | None = None, watch: Watch = lambda event: None
) -> Comparison:
    """Run all jobs and score them.

    Args:
        jobs: their labels and seeds are distinct.
        processes: how many run at a time; default: one per accelerator, else one per core.

    Raises:
        ClZooError: a job names something unknown; nothing has been started then.
    """
    doubles = [key for key, count in Counter((job.label, job.seed) for job in jobs).items() if count > 1]
    if doubles:
        raise PluginError(f"{doubles[0][0]} stands twice in the comparison; name it once")
    devices = accelerators(jobs[0].device)
    # Each worker sees one device only, and sees it as the first; `auto` may still find that torch cannot use it.
    jobs = [replace(job, device="cuda") if devices and job.device != "auto" else job for job in jobs]
    processes = min(processes or len(devices) or cores(), len(jobs))
    results: dict[int, Result] = {}
    with Workers(processes, devices, Path(jobs[0].out)) as workers, Scorer() as scorer:
        trainings, ahead = workers.check(jobs), Ahead(jobs, scorer)
        ahead.begin()
        for place, event in workers.run(jobs, trainings):
            job = jobs[place]
            ahead.heard(event)
            if event["event"] == "answered":
                if event["facts"]:
                    waits = ahead.waits_for(event["facts"]["metrics"])
                    about = {"event": "progress", "label": job.label, "seed": job.seed}
                    watch({**event, **about, "phase": "score", "waits": waits})
                event, results[place] = _score(job, event, scorer)
            elif event["event"] == "failed":
                results[place] = Result(
                    job.label, job.seed, {}, error=event["message"], user_error=event["user"]
                )
            watch({**event, "label": job.label, "seed": job.seed})
    return Comparison(tuple(results[place] for place in sorted(results)))


def _score(job: Job, event: dict[str, Any], scorer: Scorer) -> tuple[dict[str, Any], Result]:
    root = Path(job.out)
    try:
        if event["facts"]:
            identity = json.loads((root / f"{event['run']}.partial" / IDENTITY).read_text(encoding="utf-8"))
            folder = RunFolder(root, event["run"], identity, keep=job.keeps_all)
            with full_disk_named(root):
                finish(folder, event["facts"], scorer)
        result = load_result(root / event["run"], trust=job.names)
    except (ClZooError, OSError) as error:
        message = str(error) if isinstance(error, ClZooError) else describe(error)
        failed = Result(job.label, job.seed, {}, error=message, user_error=True)
        return {**event, "event": "failed", "message": message}, failed
    return {
        **event,
        "event": "finished",
        "last": result.matrix.last,
        "seconds": result.ledger["seconds"],
    }, result


def budget_stamps(results: Sequence[Result]) -> dict[tuple[str, int], tuple[str, ...]]:
    """`unequal: steps ×2` for every run whose budget is not the common one of the comparison, by label and seed."""
    budgets = {
        (one.label, one.seed): _budget(one) for one in results if one.error is None and _budget(one)["steps"]
    }
    stamps: dict[tuple[str, int], tuple[str, ...]] = {}
    for key, budget in budgets.items():
        unequal = []
        for what, tolerance in TOLERANCE.items():
            common = Counter(other[what] for other in budgets.values()).most_common(1)[0][0]
            if abs(budget[what] - common) > tolerance * common:
                unequal.append(f"{what} ×{budget[what] / common:.2f}".rstrip("0").rstrip("."))
        stamps[key] = (f"unequal: {', '.join(unequal)}",) if unequal else ()
    return stamps


def _budget(result: Result) -> dict[str, int]:
    tasks = result.ledger["tasks"]
    return {what: sum(task[what] for task in tasks) for what in TOLERANCE}


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


class Workers:
    """Worker processes of one thread each; ended, however the comparison ends.

    Args:
        count: how many.
        devices: CUDA devices to share out, or none.
        out: folder of the runs; logs go to `out/logs`.
    """

    def __init__(self, count: int, devices: Sequence[str], out: Path) -> None:
        self._logs, self._devices = out / LOGS, devices
        self._closing, self._closed, self._threads = threading.Lock(), False, list[threading.Thread]()
        self._turns: Turns | None = None
        self._logs.mkdir(parents=True, exist_ok=True)
        for log in self._logs.glob("worker-*.log"):
            log.unlink()
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

    def check(self, jobs: Sequence[Job]) -> list[str]:
        """Let one worker look up everything that the jobs name.

        Returns:
            A key for each job, equal for those that may share one training.

        Raises:
            PluginError: something is unknown or does not go together, in the words of whoever found it.
        """
        for process in self._processes[1:]:
            self._tell(process, {"load": True})
        answer = self._ask(0, {"check": [job.to_json() for job in jobs]})
        event = next(answer)
        if event["event"] != "checked":
            raise PluginError(event["message"])
        keys: list[str] = event["trainings"]
        return keys

    def run(self, jobs: Sequence[Job], trainings: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Run the jobs in order, as workers become free; yields (place of the job, event).

        Args:
            trainings: keys from `check`; of jobs with an equal one the first learns and the others wait for it.
        """
        left, turns = len(jobs), Turns(trainings, Path(jobs[0].out) / TRAINED)
        self._turns = turns

        def serve(worker: int) -> None:
            while (turn := turns.next()) is not None:
                place, training = turn
                for event in self._ask(worker, {"run": jobs[place].to_json(), "training": training}):
                    turns.heard(place, event)
                    self._events.put((place, {**event, "worker": worker}))

        for worker in range(len(self._processes)):
            self._threads.append(threading.Thread(target=serve, args=(worker,), daemon=True))
            self._threads[-1].start()
        while left:
            place, event = self._events.get()
            left -= event["event"] in ("answered", "failed")
            yield place, event

    def _ask(self, worker: int, command: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a command and yield its events up to the closing one."""
        process, last = self._processes[worker], dict[str, Any]()
        log = self._logs / f"worker-{worker}.log"
        self._tell(process, command)
        for line in process.stdout:  # type: ignore[union-attr]
            event = json.loads(line)
            if event.get("logged"):
                event["message"] += f"; its traceback is in {log}"
            yield event
            if event["event"] != "progress":
                return
            last = event
        code = process.wait()
        with self._closing:  # the jobs that wait for this worker get a new one
            if not self._closed:
                _close(process)
                self._processes[worker] = self._start(worker)
        yield {"event": "failed", "user": code >= 0, "message": f"{ended(code, last)}; see {log}"}

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
        with (self._logs / f"worker-{index}.log").open("a") as log:
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
    how = f"with code {code}" if code >= 0 else f"by signal {-code}, as where memory is short"
    asks = ", though a hook returns or raises and never ends the process" if code >= 0 else ""
    return f"its process ended {how}{during}{step}{asks}"


def _close(process: subprocess.Popen[str]) -> None:
    """Close the pipes of a process that has ended, with what it never read."""
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
