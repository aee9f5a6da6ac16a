"""The executor that needs nothing: processes on this machine, one for each accelerator or core."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from cl_zoo.machine import cores
from cl_zoo.runs.equal import Fair
from cl_zoo.runs.executors.contract import Event, Executor, LookedUp
from cl_zoo.runs.job import Job
from cl_zoo.runs.plan import Planned
from cl_zoo.runs.workers import Workers


class Local(Executor):
    """Processes of one thread each on this machine, as many as it has accelerators, else cores."""

    def __init__(self, options: BaseModel, jobs: Sequence[Job], at_a_time: int | None) -> None:
        super().__init__(options, jobs, at_a_time)
        self._devices = accelerators(jobs[0].device)

    def __enter__(self) -> Local:
        self._workers = Workers(self.processes, self._devices, Path(self.jobs[0].out))
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.__exit__()

    @property
    def processes(self) -> int:
        return min(self.at_a_time or len(self._devices) or cores(), len(self.jobs))

    def there(self, job: Job) -> Job:
        """Each worker sees one device only, and sees it as the first; `auto` may still find that torch cannot use it."""
        return replace(job, device="cuda") if self._devices and job.device != "auto" else job

    def check(self, jobs: Sequence[Job], fair: Fair) -> Callable[[], LookedUp]:
        """One of the workers looks it up while the others load."""
        return self._workers.check(jobs, fair)

    def run(self, runs: Sequence[Planned]) -> Iterator[tuple[int, Event]]:
        return self._workers.run(runs)


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
