"""What a comparison of many runs costs beside the runs: seconds for each, and whether the memory of the parent stays flat.

    python benchmarks/performance/many_runs.py [--runs 1000] [--processes 2] [--executor local] --json FILE

One comparison of N real runs, as small as they come: a method without training on the tests' tiny LLaVA, which learns nothing and answers six
questions for each of two tasks, or `--method finetune`, which also learns them in six steps. The runs differ in their seeds, and a zero-shot run
is one run for all seeds, so `zeroshot` stands with an option of its own here: a plugin that this script writes, with a number that changes
nothing. The comparison is made in a temporary folder.

* `seconds_per_run` is the whole comparison, without looking the runs up, divided by their number; `at_work` is how long a run takes inside its worker, from its
  first event to its answers; the rest, times processes, is `overhead`: handing out, reading events, scoring, writing the manifest.
* `planning_seconds` is what it took to look all runs up before the first began.
* `parent_mib` is the resident memory of the parent when 10 % of the runs have ended, in the middle and at the end; `growth_kib_per_run` is what came
  between the first and the last of these, per run. Results stay in memory for the table, so it is no zero.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import given, machine, options, positive, versions, write

import cl_zoo

PLUGIN = '''
from pydantic import BaseModel

class Still:
    """Learns nothing; a number that changes nothing makes runs of it."""

    protocol = "none"

    class Options(BaseModel, frozen=True, extra="forbid"):
        number: int = 0

    def __init__(self, options):
        pass
'''


class Watched:
    """Hears the plan and all events; notes times and memory."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.planned = self.ended = self.failed = self.runs = 0
        self.memory: dict[int, float] = {}
        self.begins: dict[Any, float] = {}
        self.at_work = self.planning = 0.0

    def told(self, plan: Any) -> None:
        """All is looked up; now the runs begin."""
        self.runs, self.planning = len(plan.left), time.perf_counter() - self.began
        self.began = time.perf_counter()

    def __call__(self, event: dict[str, Any]) -> None:
        key = event["label"], event["seed"]
        if event.get("phase") == "begin":
            self.begins[key] = event["at"]
        elif event.get("phase") == "score":
            self.at_work += event["at"] - self.begins.pop(key)
        elif event["event"] in ("finished", "failed"):
            self.ended += 1
            self.failed += event["event"] == "failed"
            if self.ended in (self.runs // 10, self.runs // 2, self.runs):
                self.memory[self.ended] = _mib()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit code."""
    asked = _parse(arguments)
    asked.json.parent.mkdir(parents=True, exist_ok=True)  # before minutes are spent
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), asked.runs, asked.method, asked.processes, asked.executor)
    setting = {key: getattr(asked, key) for key in ("runs", "method", "processes", "executor")}
    result = {
        "command": asked.command,
        **found,
        "setting": setting,
        "machine": {**machine(), "load_before": load_before, "load_after": os.getloadavg()},
        "versions": versions(("cl-zoo", "torch", "transformers")),
    }
    write(asked.json, result)
    print(json.dumps(found, indent=1))
    return 1 if found["failed"] else 0


def measure(folder: Path, runs: int, method: str, processes: int, executor: str | None) -> dict[str, Any]:
    """One comparison of so many runs: seconds, and MiB of this process."""
    file, watched = folder / "still.py", Watched()
    file.write_text(PLUGIN)
    grid: dict[str, Any] = {"methods": [method], "seeds": runs}
    if method == "zeroshot":
        name = f"{file}:Still"
        grid = {"methods": [name], "vary": {name: {"number": range(runs)}}}
    tiny = {"benchmark": "cl_zoo.testing:load_tiny", "backbone": "cl_zoo.testing:load_tiny_backbone"}
    cl_zoo.compare(
        **grid,
        **tiny,
        device="cpu",
        out=folder / "runs",
        processes=processes,
        executor=executor,
        watch=watched,
        told=watched.told,
    )
    whole, done = time.perf_counter() - watched.began, max(watched.ended - watched.failed, 1)
    counts = sorted(watched.memory)
    grown = (watched.memory[counts[-1]] - watched.memory[counts[0]]) * 1024 / max(counts[-1] - counts[0], 1)
    return {
        "planning_seconds": round(watched.planning, 2),
        "seconds": round(whole, 2),
        "seconds_per_run": round(whole / runs, 4),
        "at_work": round(watched.at_work / done, 4),
        "overhead": round(max(whole * processes - watched.at_work, 0) / runs, 4),
        "parent_mib": {str(count): watched.memory[count] for count in counts},
        "growth_kib_per_run": round(grown, 2),
        "failed": watched.failed,
    }


def _mib() -> float:
    """Resident memory of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(lines["VmRSS"].split()[0]) / 1024, 1)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--runs", type=positive, default=1000, help="at least 10")
    parser.add_argument("--method", choices=("zeroshot", "finetune"), default="zeroshot")
    parser.add_argument("--processes", type=positive, default=2)
    parser.add_argument("--executor", help="as for cl-zoo compare; default: local")
    return given(parser, "many_runs.py", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
