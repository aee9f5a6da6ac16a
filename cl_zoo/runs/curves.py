"""Curves for experiment trackers, through accelerate: what each run says of itself while it learns, and its scores once it has them.

Whoever starts runs hears their events; these become curves here, so that a run itself knows nothing of trackers and its bits do not depend on them.
A tracker that fails is said once and left out from there on; no run stops for it. Nothing leaves the machine unless the user's environment
says so: W&B is started offline, MLflow and trackio write below the folder of the runs.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cl_zoo.engine.files import canonical
from cl_zoo.engine.folder import read_manifest
from cl_zoo.errors import OptionError, first_line, nearest, printable
from cl_zoo.runs.job import Job

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
"""Trackers by name, and the package that each needs."""

FOLDER = "trackers"
"""Below that of all runs."""

PROJECT = "cl-zoo"
"""The project in libraries that have projects; comparisons are groups in it."""

ONE_AT_A_TIME = ("mlflow",)
"""Their library knows one run in a process: what a run says is kept, and written when the run has ended."""

ONE_CLOCK = ("wandb", "trackio")
"""Their steps only go up, so that scores stand behind the last step of training."""

Key = tuple[str, int, str]
"""Label, seed and order."""

Values = dict[str, float]


class Curves:
    """Hears the events of runs and keeps their curves in trackers.

    Args:
        names: of trackers; none keeps nothing.
        jobs: whose events will be heard; what they have in common is the comparison that the curves are grouped by.

    Raises:
        OptionError: there is no such tracker, or its package is not installed.
    """

    def __init__(self, names: Sequence[str], jobs: Sequence[Job]) -> None:
        for name in names:
            _known(name)
        self.comparison, self._out = comparison_of(jobs[0]), Path(jobs[0].out)
        self._names, self._open = tuple(dict.fromkeys(names)), dict[Key, Curve]()
        self._began = False

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take note of an event."""
        if not self._names:
            return
        key = (event["label"], event["seed"], event.get("order", ""))
        phase = event.get("phase")
        if phase == "start" and key not in self._open:
            places = [Place(name, partial(self._started, name, event["run"])) for name in self._names]
            self._open[key] = Curve(event, places)
        elif phase == "train" and key in self._open:
            self._open[key].learns(event)
        elif event["event"] in ("finished", "failed") and key in self._open:
            made = event["event"] == "finished" and event.get("facts")  # none where it was finished before
            self._open.pop(key).ends(self._out / event["run"] if made else None)

    def close(self) -> None:
        """End the curves of runs that were interrupted."""
        for key in list(self._open):
            self._open.pop(key).ends(None)
        if self._began:
            from accelerate import PartialState

            PartialState._reset_state()

    def _started(self, name: str, run: str) -> Any:
        """A run in accelerate's tracker, grouped by comparison as each library has it."""
        from accelerate import PartialState, tracking

        if (
            not PartialState._shared_state
        ):  # no run is in this process; accelerate's own log asks for its state
            PartialState(cpu=True)
            self._began = True
        folder = (self._out / FOLDER).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if name == "tensorboard":
            made = tracking.TensorBoardTracker(run, folder / self.comparison)
        elif name == "wandb":
            os.environ.setdefault("WANDB_MODE", "offline")
            about = {"group": self.comparison, "name": run, "dir": str(folder), "reinit": "create_new"}
            made = tracking.WandBTracker(PROJECT, **about)
        elif name == "mlflow":
            os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
            made = tracking.MLflowTracker(self.comparison, run_name=run)
        else:
            os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
            made = tracking.TrackioTracker(PROJECT, group=self.comparison, name=run)
        made.start()
        return made


class Curve:
    """One run in all trackers.

    Args:
        start: the event with which the run begins.
        places: trackers that are not started yet.
    """

    def __init__(self, start: Mapping[str, Any], places: Sequence[Place]) -> None:
        self._lessons = [steps for _, steps in start.get("work", {}).get("lessons", ())]
        self._places = places

    def learns(self, event: Mapping[str, Any]) -> None:
        """A step: the objective, each of its terms, the learning rate."""
        terms: Mapping[str, float] = event["terms"]
        values = {"loss": sum(terms.values()), **{f"term/{name}": value for name, value in terms.items()}}
        if "rate" in event:
            values["learning rate"] = event["rate"]
        self._log(values, sum(self._lessons[: event["index"]]) + event["step"])

    def ends(self, folder: Path | None) -> None:
        """The end of the run: its scores, where it is finished.

        Args:
            folder: of the finished run.
        """
        if folder is not None:
            for stage, values in _scores(folder):
                self._log(values, stage, scores=True)
        for place in self._places:
            place.ends()

    def _log(self, values: Values, step: int, *, scores: bool = False) -> None:
        for place in self._places:
            behind = sum(self._lessons) if scores and place.name in ONE_CLOCK else 0
            place.log(values, behind + step)


class Place:
    """One run in one tracker, which is started when there is something to log.

    Args:
        name: of the tracker.
        make: makes accelerate's tracker and starts it.
    """

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self.name, self._make = name, make
        self._tracker: Any = None
        self._kept: list[tuple[Values, int]] = []
        self._failed = False

    def log(self, values: Values, step: int) -> None:
        """Values at a step, now or, where the library holds one run at a time, at the end."""
        if self.name in ONE_AT_A_TIME:
            self._kept.append((values, step))
        else:
            self._try(lambda: self._write(values, step))

    def ends(self) -> None:
        """Write what was kept, and end the run there."""
        for values, step in self._kept:
            self._try(lambda values=values, step=step: self._write(values, step))  # type: ignore[misc]
        if self._tracker is not None:
            self._try(self._tracker.finish)

    def _write(self, values: Values, step: int) -> None:
        if self._tracker is None:
            self._tracker = self._make()
        self._tracker.log(values, step=step)

    def _try(self, what: Callable[[], None]) -> None:
        """Whatever a library does wrong is said once; the run goes on without it."""
        if self._failed:
            return
        try:
            what()
        except Exception as error:
            self._failed = True
            says = printable(f"{type(error).__name__}: {first_line(error)}")
            print(
                f"note: the tracker {self.name} failed and is left out of this run ({says})", file=sys.stderr
            )


def comparison_of(job: Job) -> str:
    """What runs are grouped by: benchmark, and a hash of all that runs of one comparison have in common."""
    common = {**job.to_json(), **dict.fromkeys(("choices", "order", "seed", "out", "device", "cache"))}
    common |= dict.fromkeys(("preflight", "keep_states", "checkpoint_every", "sharding"))
    del common["cache_limit"]
    name = "".join(sign if sign.isalnum() or sign in "-_" else "-" for sign in Path(job.benchmark).name)
    return f"{name}-{hashlib.sha256(canonical(common).encode()).hexdigest()[:8]}"


def _scores(folder: Path) -> Iterator[tuple[int, Values]]:
    """The scores of a finished run after each task, numbered from 1: `score/chart`, and `mean score` of the tasks seen."""
    manifest = read_manifest(folder)
    tasks: list[str] = manifest["tasks"]
    names = [
        f"{task} ({n})" if (n := tasks[: place + 1].count(task)) > 1 else task
        for place, task in enumerate(tasks)
    ]
    rows = manifest["matrix"]["scores"]
    for stage, row in enumerate(rows, start=1):
        found = {f"score/{name}": score for name, score in zip(names, row, strict=True) if score is not None}
        seen = [score for score in (row[:stage] if len(rows) > 1 else row) if score is not None]
        yield stage, {**found, **({"mean score": sum(seen) / len(seen)} if seen else {})}


def _known(name: str) -> None:
    """Whether a tracker can be had.

    Raises:
        OptionError: there is no such tracker, or its package is not installed.
    """
    if name not in PACKAGES:
        raise OptionError(f"--tracker {name}{nearest(name, PACKAGES)}")
    if find_spec(PACKAGES[name]) is None:
        raise OptionError(
            f"--tracker {name}: needs the package {PACKAGES[name]}, which is not installed; pip install {PACKAGES[name]}, or leave the tracker out"
        )
