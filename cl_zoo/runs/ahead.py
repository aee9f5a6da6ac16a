"""Java for captions, started while a model still loads, learns or answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cl_zoo.data.benchmarks import load_benchmark
from cl_zoo.runs.job import Job
from cl_zoo.scoring.rules import of_files
from cl_zoo.scoring.scorer import Scorer


class Ahead:
    """Starts a scorer's Java when the first run that has captions begins; one that may be finished has to begin to work first.

    Args:
        jobs: whose events are heard.
        scorer: what will score them.
    """

    def __init__(self, jobs: Sequence[Job], scorer: Scorer) -> None:
        self._scorer, self._begun = scorer, False
        benchmarks = {(job.benchmark, job.data) for job in jobs}
        self._captions = {
            task.name
            for name, data in benchmarks
            for task in load_benchmark(name, data).tasks
            if of_files(task.metric)
        }
        self._wanted = False

    def heard(self, event: Mapping[str, Any]) -> None:
        """Take note of an event of a run.

        Raises:
            ClZooError: there are captions and no Java.
        """
        phase = event.get("phase")
        if phase == "load":
            self._wanted = self._wanted or bool(self._captions & set(event["tasks"]))
        works = phase not in (None, "load", "start") or (phase == "load" and not event["again"])
        if works and self._wanted and not self._begun:
            self._begun = True
            self._scorer.warm_up()

    def waits_for(self, metrics: Sequence[str]) -> str:
        """What the scores of these rules will wait for, in words."""
        return self._scorer.waits_for() if any(map(of_files, metrics)) else ""
