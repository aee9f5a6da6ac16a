"""The learning rates of `mini`, chosen on the validation splits: `python -m cl_zoo_bench_mini.tuning --out FILE`.

A part gets four trials with each method that trains it, one seed; the test splits are not touched. Adapters and projector are tried
in multi-task training, the upper bound, so that no continual-learning method is served; soft prompts and keys, for which nobody has
published a rate that could be taken over, in the methods that have them. The rate of a part is the one with the best Last, mean over
its methods, the smaller one where two are equal; it holds for every method alike.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cl_zoo
from cl_zoo import Benchmark
from cl_zoo_bench_mini import load

SEED = 0
START = {"lr.projector": 2e-4, "lr.prompts": 3e-2, "lr.keys": 1e-3}
"""The rates of parts that are not chosen yet: those of the first edition of `mini`."""
TRIALS: Mapping[str, tuple[str | None, Sequence[str], Sequence[float]]] = {
    "adapters": (None, ("multitask",), (2.5e-4, 5e-4, 1e-3, 2e-3)),
    "projector": (None, ("multitask",), (2e-5, 6e-5, 2e-4, 6e-4)),
    "prompts": ("RAV", ("l2p", "modalprompt"), (3e-3, 1e-2, 3e-2, 1e-1)),
    "keys": ("RAV", ("l2p", "modalprompt", "branchlora"), (1e-3, 3e-3, 1e-2, 3e-2)),
}
"""Part -> the tasks that are learnt (`None`: all), the methods that train it, and the rates that are tried."""


def load_validation(data: Path | None = None) -> Benchmark:
    """`mini` with its validation splits in the place of the test splits."""
    benchmark = load(data)
    tasks = tuple(replace(task, test=task.validation, validation=()) for task in benchmark.tasks)
    return replace(benchmark, name="mini-validation", tasks=tasks)


def tune(out: str) -> dict[str, Any]:
    """All trials, part after part; a part is tried at the rates already chosen for those before it."""
    chosen = dict(START)
    trials = []
    for part, (order, methods, rates) in TRIALS.items():
        found = {rate: _last(methods, order, {**chosen, f"lr.{part}": rate}, out) for rate in rates}
        trials += [{"part": part, "order": order, "rate": rate, "Last": found[rate]} for rate in rates]
        chosen[f"lr.{part}"] = best(found)
        print(json.dumps({"part": part, "Last": found, "chosen": chosen[f"lr.{part}"]}), file=sys.stderr)
    return {"seed": SEED, "split": "validation", "start": START, "trials": trials, "chosen": chosen}


def best(found: Mapping[float, Mapping[str, float]]) -> float:
    """The rate with the best Last, mean over the methods; the smaller one where two are equal."""
    return max(sorted(found), key=lambda rate: statistics.fmean(found[rate].values()))


def _last(
    methods: Sequence[str], order: str | None, recipe: Mapping[str, float], out: str
) -> dict[str, float]:
    compared = cl_zoo.compare(
        list(methods),
        benchmark="cl_zoo_bench_mini.tuning:load_validation",
        seeds=[SEED],
        order=order,
        recipe=recipe,
        out=out,
    )
    for failed in compared.failed:
        raise SystemExit(f"{failed.label}, {dict(recipe)} failed: {failed.error}")
    return {label: float(matrix.last or 0) for (label, _), matrix in compared.matrix.items()}


def main() -> None:
    """Run all trials and write their log."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="file of the log")
    parser.add_argument("--runs", help="folder of the runs; default: a temporary one")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = tune(asked.runs or folder)
    command = shlex.join(["python", "-m", "cl_zoo_bench_mini.tuning", "--out", str(asked.out)])
    asked.out.write_text(json.dumps({"command": command, **log}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
