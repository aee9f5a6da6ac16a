"""The executor that makes each run a task of Ray, on a cluster that is there or on one that is started for the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from cl_zoo.errors import OptionError, PluginError, first_line
from cl_zoo.machine import cores
from cl_zoo.runs.executors.afar import Afar, Errand, imported
from cl_zoo.runs.job import Job

STORE = 80_000_000
"""Bytes of the object store of a cluster that is started here; nothing but small errands passes through it, and Ray takes no less than 75 MiB."""


class Ray(Afar):
    """A task of Ray for each run. `pip install 'cl-zoo[ray]'`

    Without an address a cluster of this machine is started, and stopped at the end. All nodes share the folder of the runs and have cl_zoo
    installed. A run whose node is lost is sent again and goes on after its last checkpoint.
    """

    class Options(BaseModel, frozen=True, extra="forbid"):
        """What a run asks of the cluster."""

        address: str = Field(
            "", description="of a cluster: auto, HOST:PORT or ray://HOST:PORT; none: one is started here"
        )
        cpus: float = Field(1.0, gt=0, description="cores that a run takes; it computes on one")
        gpus: float | None = Field(
            None,
            ge=0,
            description="accelerators that a run takes; by default 1 where the cluster has some and --device is not cpu",
        )
        retries: int = Field(3, ge=0, description="how often a run is sent again whose node was lost")

    options: Options
    name = "ray"

    def __init__(self, options: Options, jobs: Sequence[Job], at_a_time: int | None) -> None:
        super().__init__(options, jobs, at_a_time)
        self.retries, self.gpus, self._ray = options.retries, options.gpus or 0, None

    def __enter__(self) -> Ray:
        ray = imported("ray", "ray")
        if ray.is_initialized():
            raise PluginError(
                "this process is in a Ray cluster already; call ray.shutdown() before the comparison"
            )
        asked = self.options
        where: dict[str, Any] = {"address": asked.address}
        if not asked.address:
            most = round((self.at_a_time or cores()) * asked.cpus) or 1
            where = {
                "address": "local",
                "num_cpus": most,
                "object_store_memory": STORE,
                "include_dashboard": False,
            }
        try:
            ray.init(**where, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray has a class of its own for each way to fail
            what = f"joining {asked.address}" if asked.address else "starting a cluster here"
            raise OptionError(
                f"--executor ray: {what} failed with {type(error).__name__}: {first_line(error)}; name a cluster that runs"
            ) from error
        self._ray = ray
        there = ray.cluster_resources()
        if asked.gpus is None and there.get("GPU") and not self.jobs[0].device.startswith("cpu"):
            self.gpus = 1
        if not asked.address and self.gpus > there.get("GPU", 0):
            self.__exit__()
            raise OptionError(
                f"ray.gpus={self.gpus:g}: this machine has {there.get('GPU', 0):g}; ask for no more"
            )
        self._slots = int(there.get("CPU", 1) / asked.cpus) or 1
        self._task = ray.remote(called).options(num_cpus=asked.cpus, num_gpus=self.gpus, max_retries=0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ray is not None:
            super().__exit__()
            self._ray.shutdown()

    def send(self, errand: Errand) -> Any:
        return self._task.remote(errand)

    def ended(self, handle: Any) -> str | None:
        ray: Any = self._ray
        if not ray.wait([handle], timeout=0)[0]:
            return None
        try:
            ray.get(handle)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            return f"{type(error).__name__}: {first_line(error)}"
        return ""

    def cancel(self, handle: Any) -> None:
        ray: Any = self._ray
        ray.cancel(handle, force=True)


def called(errand: Errand) -> None:
    """What a task does."""
    errand()
