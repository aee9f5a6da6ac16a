"""Java for captions, started while jobs are still checked, or a model loads, learns or answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_zoo.data.benchmarks import load_benchmark
from cl_zoo.engine.folder import MANIFEST, run_id
from cl_zoo.runs.job import Job
from cl_zoo.scoring.rules import of_files
from cl_zoo.scoring.scorer import Scorer
from cl_zoo.tasks import TaskData


class Ahead:
    """Starts a scorer's Java for runs that have captions: at once, or, where a run may be finished, when it begins to work.

    Args:
        jobs: whose events are heard.
        scorer: what will score them.
    """

    def __init__(self, jobs: Sequence[Job], scorer: Scorer) -> None:
        self._scorer, self._begun, self._wanted = scorer, False, False
        self._jobs = [(job, load_benchmark(job.benchmark, job.data)) for job in jobs]
        self._captions = {
            task.name for _, benchmark in self._jobs for task in benchmark.tasks if of_files(task.metric)
        }

    def begin(self) -> None:
        """Start Java now where some job has captions and was never finished.

        Raises:
            ClZooError: there is no Java.
        """
        if any(
            any(of_files(task.metric) and _asked(task, job.order) for task in benchmark.tasks)
            and not _again(job, benchmark.name)
            for job, benchmark in self._jobs
        ):
            self._warm_up()

    def heard(self, event: Mapping[str, Any]) -> None:
        """Take note of an event of a run.

        Raises:
            ClZooError: there are captions and no Java.
        """
        phase = event.get("phase")
        if phase == "start":
            self._wanted = self._wanted or bool(self._captions & set(event["tasks"]))
        elif phase and self._wanted:
            self._warm_up()

    def waits_for(self, metrics: Sequence[str]) -> str:
        """What the scores of these rules will wait for, in words."""
        return self._scorer.waits_for() if any(map(of_files, metrics)) else ""

    def _warm_up(self) -> None:
        if not self._begun:
            self._scorer.warm_up()
            self._begun = True


def _asked(task: TaskData, order: str | None) -> bool:
    """Whether a task may be in an order, of letters or of names."""
    return order is None or task.letter in order or task.name in order


def _again(job: Job, benchmark: str) -> bool:
    """Whether this may be a finished run, told from its name alone: one of the same benchmark and label is there.

    Of whatever seed: what nothing is drawn for is one run for all seeds.
    """
    like = run_id({"benchmark": {"name": benchmark}}, job.label, job.seed).rpartition("-s")[0]
    return any(Path(job.out).glob(f"{like}-s*/{MANIFEST}"))
