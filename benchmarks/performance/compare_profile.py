"""Where the processor time of a comparison goes: `cl-zoo compare` with all its processes, sampled.

    python benchmarks/performance/compare_profile.py [--methods finetune,hide] [--benchmark mini] [--limit 96] --json FILE

One comparison is made in a temporary folder. In its parent and in every worker a timer of processor time ticks each 10 ms and notes which functions are
being called, and how much was spent since the tick before; a tick belongs to the first of `PARTS` that one of these functions is in. Processor time does not count what a process waits for a core, so
the shares hold on a shared machine too; how long the comparison took (`seconds`) does not.

* `shares` are parts of the processor time of all processes, `processor_seconds`. That of Java is what child processes took that
  are no workers: METEOR and the tokenizer of caption scores.
* `functions` are those of this project in whose calls most was spent, with their shares of all that was; a call counts for all that are around it.

A tick is noted when the interpreter comes back from compiled code, so it falls to the function that called it, however long that took.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from results import carried_out, given, machine, options, positive, versions

from cl_zoo.errors import RunError

ROOT = Path(__file__).parents[2]
PARTS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("imports", (("importlib._bootstrap>", "_find_and_load"),)),
    ("drawing", (("cl_zoo_bench_mini/tasks.py", ""), ("cl_zoo_bench_mini/kept.py", ""))),
    ("tower and encoder features", (("backbones/backbone.py", "encode"), ("features/encoder.py", ""))),
    ("tokenizing and padding", (("backbones/backbone.py", "batch"), ("backbones/wording.py", ""))),
    ("answering", (("engine/answering.py", ""),)),
    ("backward", (("torch/autograd/", "backward"), ("torch/_tensor.py", "backward"))),
    ("optimiser", (("torch/optim/", ""),)),
    ("gradient norm", (("torch/nn/utils/clip_grad.py", ""),)),
    ("forward in training", (("engine/learning.py", "_terms"),)),
    ("around a training step", (("engine/learning.py", ""),)),
    ("hooks besides the loss", (("contract/calls.py", ""), ("contract/plugins.py", ""))),
    ("loading the base", (("runs/prepared.py", "load_backbone"),)),
    ("scoring without Java", (("cl_zoo/scoring/", ""),)),
    ("checkpoints and files", (("engine/folder.py", ""), ("engine/states.py", ""), ("engine/files.py", ""))),
    ("table and report", (("cl_zoo/report/", ""), ("cl_zoo/statistics/", ""))),
)
"""A part by (text in the file's path, function or all of them); the first that any of the called functions is in counts."""
JAVA, REST = "Java of caption scores", "all else"

SAMPLER = """
import atexit, collections, json, os, resource, signal, sys, time

sys.path.remove(os.path.dirname(__file__))
mine = sys.modules.pop("sitecustomize")
try:
    import sitecustomize  # of the environment, which this one stands before
except ImportError:
    pass
finally:
    sys.path.insert(0, os.path.dirname(__file__))
    sys.modules.setdefault("sitecustomize", mine)
seen, until = collections.Counter(), time.process_time()

def tick(number, frame):
    global until
    spent, until = time.process_time() - until, time.process_time()
    calls = []
    while frame is not None:
        calls.append((frame.f_code.co_filename, frame.f_code.co_name))
        frame = frame.f_back
    seen[tuple(calls)] += spent  # compiled code keeps the timer waiting, and only the last of its ticks comes through

def note(*_):
    signal.setitimer(signal.ITIMER_PROF, 0)
    used = {"own": resource.RUSAGE_SELF, "children": resource.RUSAGE_CHILDREN}
    spent = {name: sum(resource.getrusage(who)[:2]) for name, who in used.items()}
    file = os.path.join(os.environ["CL_ZOO_PROFILE"], f"{os.getpid()}.json")
    with open(file, "w") as out:
        json.dump({**spent, "parent": os.getppid(), "calls": list(seen.items())}, out)

def ended(*_):
    note()
    os._exit(143)

if "torch.distributed" not in " ".join(sys.argv):
    signal.signal(signal.SIGPROF, tick)
    signal.signal(signal.SIGTERM, ended)  # as a comparison ends its workers
    atexit.register(note)
    signal.setitimer(signal.ITIMER_PROF, 0.01, 0.01)
"""


def part_of(calls: Sequence[Sequence[str]]) -> str:
    """The part that a tick belongs to.

    Args:
        calls: (file, function) of every function that was being called, the innermost first.
    """
    for name, places in PARTS:
        for file, function in calls:
            if any(place in file and called in ("", function) for place, called in places):
                return name
    return REST


def shares(noted: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Processor seconds by part, the largest first; what no tick has noted is spread over the parts.

    Args:
        noted: what the processes wrote; that of the comparison itself has the others as children.
    """
    seconds: dict[str, float] = {}
    for one in noted:
        ticks: dict[str, float] = {}
        for calls, spent in one["calls"]:
            part = part_of(calls)
            ticks[part] = ticks.get(part, 0.0) + spent
        for name, spent in ticks.items():
            seconds[name] = seconds.get(name, 0.0) + one["own"] * spent / sum(ticks.values())
    workers = sum(one["own"] for one in noted if one["parent"] in {other["process"] for other in noted})
    seconds[JAVA] = max(sum(one["children"] for one in noted) - workers, 0.0)
    return dict(sorted(seconds.items(), key=lambda one: -one[1]))


def functions(noted: Sequence[Mapping[str, Any]], most: int = 40) -> dict[str, float]:
    """Shares of what the ticks noted in whose calls a function of this project was, the largest first."""
    found: dict[str, float] = {}
    ticks = [(calls, spent) for one in noted for calls, spent in one["calls"]]
    for calls, spent in ticks:
        for name in set(_ours(calls)):
            found[name] = found.get(name, 0.0) + spent
    total = sum(spent for _, spent in ticks)
    largest = sorted(found.items(), key=lambda one: -one[1])[:most]
    return {name: round(spent / total, 4) for name, spent in largest}


def _ours(calls: Sequence[Sequence[str]]) -> Iterator[str]:
    for file, function in calls:
        if file.startswith(str(ROOT)) and "/site-packages/" not in file:
            yield f"{Path(file).relative_to(ROOT)}:{function}"


def compared(asked: Any, folder: Path) -> tuple[list[dict[str, Any]], float]:
    """One comparison: what its processes noted, and the seconds that it took.

    Raises:
        RunError: it failed; its own words stand before.
    """
    notes, sampler = folder / "notes", folder / "sampler"
    notes.mkdir()
    sampler.mkdir()
    (sampler / "sitecustomize.py").write_text(SAMPLER, encoding="utf-8")
    path = os.pathsep.join([str(sampler), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "cl_zoo", "compare", "--benchmark", asked.benchmark, "--json"]
    command += ["--out", str(folder / "runs"), "--device", "cpu"]
    command += ["--methods", asked.methods] if asked.methods else []
    command += ["--limit", str(asked.limit)] if asked.limit else []
    environment = {**os.environ, "PYTHONPATH": path, "CL_ZOO_PROFILE": str(notes)}
    began = time.perf_counter()
    done = subprocess.run(command, check=False, env=environment, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RunError(f"the comparison ended with code {done.returncode}; mend what it says above")
    found = [
        {**json.loads(file.read_text(encoding="utf-8")), "process": int(file.stem)}
        for file in notes.iterdir()
    ]
    return found, seconds


def as_table(seconds: Mapping[str, float]) -> str:
    """The parts with their shares, as Markdown."""
    total = sum(seconds.values())
    rows = [f"| {name} | {one:.1f} | {100 * one / total:.1f} % |" for name, one in seconds.items()]
    return "\n".join(["| part | processor seconds | share |", "|---|---|---|", *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the comparison, print the table and write the file; returns the exit code, 2 where the user can put something right."""
    parser = options(__doc__)
    parser.add_argument("--benchmark", default="mini", help="as for cl-zoo compare")
    parser.add_argument("--methods", help="as for cl-zoo compare; default: the benchmark's")
    parser.add_argument("--limit", type=positive, help="samples per split")
    asked = given(parser, "compare_profile.py", arguments)
    return carried_out(asked, measure, lambda result: as_table(result["processor_seconds"]))


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """The complete result."""
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        noted, seconds = compared(asked, Path(folder))
    by_part = shares(noted)
    return {
        "command": asked.command,
        "machine": machine(),
        "versions": versions(["cl-zoo", "torch", "transformers", "peft"]),
        "load_before": load,
        "seconds": round(seconds, 1),
        "processor_seconds": {name: round(one, 2) for name, one in by_part.items()},
        "shares": {name: round(one / sum(by_part.values()), 4) for name, one in by_part.items()},
        "functions": functions(noted),
    }


if __name__ == "__main__":
    raise SystemExit(main())
