"""The executor that makes each run a job of SLURM, through submitit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from cl_zoo.errors import OptionError, first_line
from cl_zoo.runs.executors.afar import Afar, Errand, imported
from cl_zoo.runs.faults import LOGS
from cl_zoo.runs.job import Job

FOLDER = "submitit"
"""The folder, in that of the logs, for what submitit writes."""


class Slurm(Afar):
    """A job of SLURM for each run, sent by submitit. `pip install 'cl-zoo[slurm]'`

    All nodes share the folder of the runs and the installation. A job that is ended before its run, by its time limit or with its node, is sent
    again and the run goes on after its last checkpoint. Options beside those below are handed on to submitit as parameters of SLURM: `account`,
    `qos`, `constraint`, `gres`, `exclude`, …
    """

    class Options(BaseModel, frozen=True, extra="allow"):
        """What a run asks of the cluster."""

        time: int = Field(1440, ge=1, description="minutes after which SLURM ends a job")
        partition: str | None = Field(None, description="of the cluster")
        cpus: int = Field(1, ge=1, description="cores that a run takes; it computes on one")
        gpus: int | None = Field(
            None, ge=0, description="accelerators that a run takes; by default 1 with --device cuda"
        )
        memory: float | None = Field(None, gt=0, description="GB that a run takes")
        retries: int = Field(3, ge=0, description="how often a run is sent again whose job was ended")
        cluster: Literal["slurm", "local", "debug"] = Field(
            "slurm", description="local and debug make the runs on this machine, to try things out"
        )

    options: Options
    name = "slurm"

    def __init__(self, options: Options, jobs: Sequence[Job], at_a_time: int | None) -> None:
        super().__init__(options, jobs, at_a_time)
        self.retries = options.retries
        self.gpus = options.gpus if options.gpus is not None else int(jobs[0].device.startswith("cuda"))

    def __enter__(self) -> Slurm:
        submitit = imported("submitit", "slurm")
        asked, own = self.options, self.options.model_extra or {}
        folder = Path(self.jobs[0].out, LOGS, FOLDER).absolute()
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=asked.cluster)
            self._executor.update_parameters(
                name="cl-zoo",
                timeout_min=asked.time,
                cpus_per_task=asked.cpus,
                gpus_per_node=self.gpus or None,
                mem_gb=asked.memory,
                slurm_partition=asked.partition,
                **{f"slurm_{key}": value for key, value in own.items()},
            )
        except (RuntimeError, NameError, ValueError) as error:
            raise OptionError(f"--executor slurm: {first_line(error)}") from error
        self._lost, self._failed = submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError
        return self

    def send(self, errand: Errand) -> Any:
        return self._executor.submit(errand)

    def ended(self, handle: Any) -> str | None:
        if not handle.done():
            return None
        error = handle.exception()
        if isinstance(error, self._failed) or not isinstance(error, self._lost | None):
            raise error
        return "" if error is None else f"job {handle.job_id}: {first_line(error)}"

    def cancel(self, handle: Any) -> None:
        handle.cancel(check=False)
