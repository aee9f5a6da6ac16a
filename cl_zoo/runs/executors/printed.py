"""The executor that makes nothing: it says which commands would make the runs."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import yaml

from cl_zoo.runs.executors.contract import Event, Executor
from cl_zoo.runs.job import Job
from cl_zoo.runs.plan import Planned

FLAGS = {
    field.name: f"--{field.name.replace('_', '-')}"
    for field in fields(Job)
    if field.name not in ("choices", "recipe", "seed", "preflight")
}
"""The flag of each field of a job that is a text or a number."""


class Printed(Executor):
    """A command of the shell for each run that is not finished; nothing is run.

    The commands make the same runs, wherever and in whatever order they are called, each in the folder of this one. When they are finished the comparison
    finds them and prints its table.
    """

    def __exit__(self, *_: object) -> None:
        """Nothing runs."""

    def run(self, runs: Sequence[Planned]) -> Iterator[tuple[int, Event]]:
        for place, one in enumerate(runs):
            yield place, {"event": "left", "command": command(one.job)}


def command(job: Job) -> str:
    """The line that makes a job's run with its id."""
    plugins = [choice for choice in job.choices if not choice.probe]
    words = ["cl-zoo", "run", "+".join(choice.name for choice in plugins)]
    for choice in job.choices:
        words += ["--probe", choice.name] if choice.probe else []
        words += [
            word
            for key, value in choice.options.items()
            for word in ("-o", f"{choice.name}.{key}={_yaml(value)}")
        ]
    words += [word for key, value in job.recipe.items() for word in ("--set", f"{key}={_yaml(value)}")]
    words += ["--seed", str(job.seed)] if job.seed else []
    usual = Job((), "mini")
    for name, flag in FLAGS.items():
        value = getattr(job, name)
        words += [flag, str(value)] if value != getattr(usual, name) else []
    return shlex.join([*words, *([] if job.preflight else ["--no-preflight"])])


def _yaml(value: Any) -> str:
    """A value on one line, as `key=value` reads it."""
    plain = json.loads(json.dumps(value))  # without tuples
    return (
        yaml.safe_dump(plain, default_flow_style=True, width=math.inf, allow_unicode=True)
        .removesuffix("\n...\n")
        .strip()
    )
