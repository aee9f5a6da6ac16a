"""How long things take on this machine: measured by finished runs and by those under way, and nothing said before that.

A rate is seconds per unit of something that a run does (`cl_zoo.runs.work`). The nearest measurement counts: of the run's own label
and task, else of its label, of the same plugins with other options, and at last of whatever else was measured on the same ground.
"""

from __future__ import annotations

import heapq
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cl_zoo.engine.files import canonical
from cl_zoo.engine.folder import MANIFEST
from cl_zoo.runs.work import Kind, Part

PACING = (
    "global_batch",
    "micro_batch",
    "eval_batch",
    "static_cache",
    "precision",
    "quantization",
    "checkpointing",
    "adapter",
)
"""Keys of a recipe on which the time of a step or an answer depends."""

MACHINE = ("processor", "cores", "accelerator")
"""What of a manifest's environment says on which machine a run was made."""

NEEDED = ("step", "answer")
"""Without a rate of these nothing is said; of the others, which take little, nothing is expected until they were measured."""

NEWEST = 100
"""Finished runs that are looked at, those of the newest manifests."""

KEPT = 0.9
"""What an earlier measurement weighs beside the next one: a machine that others use is not always as fast."""

AROUND = ("build_model", "before_task", "rehearse", "after_task")
"""Hooks whose seconds stand beside those of steps and answers in a ledger."""

Name = tuple[str, str]
"""Of a run: its label and its plugins without options."""


def ground(identity: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """Equal for runs whose steps and answers may be compared in time: same machine, benchmark, backbone and batches."""
    backbone, recipe = identity["backbone"], identity["recipe"]
    return canonical(
        {
            "benchmark": identity["benchmark"]["name"],
            "backbone": [backbone["name"], backbone["revision"]],
            "device": identity["device"],
            "compile": identity.get("compile"),
            "recipe": {key: recipe.get(key) for key in PACING},
            "machine": {key: environment.get(key) for key in MACHINE},
        }
    )


class Pace:
    """Seconds per unit, by kind and by whose they are."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, kind: Kind, task: str, seconds: float, units: float, name: Name) -> None:
        """Take note of some units of a kind and the seconds that they took."""
        if units > 0:
            for key in _keys(kind, task, name):
                before = self._sums[key]
                self._sums[key] = [KEPT * before[0] + seconds, KEPT * before[1] + units]

    def rate(self, kind: Kind, task: str, name: Name) -> float | None:
        """Seconds per unit, `None` where nothing of the kind was measured."""
        found = next((key for key in _keys(kind, task, name) if key in self._sums), None)
        return None if found is None else self._sums[found][0] / self._sums[found][1]

    def knows(self, name: Name) -> bool:
        """Whether something was measured of the run's own plugins, with whatever options."""
        return any((kind, "plugins", name[1]) in self._sums for kind in NEEDED)

    def seconds(self, parts: Iterable[Part], name: Name) -> float | None:
        """What the parts of a run will take together; `None` where something that matters was never measured."""
        total = 0.0
        for kind, task, units in parts:
            rate = self.rate(kind, task, name) if units else 0.0
            if rate is None and kind in NEEDED:
                return None
            total += units * (rate or 0.0)
        return total

    def learn(self, manifest: Mapping[str, Any]) -> None:
        """Take note of a finished run."""
        ledger, name, besides = manifest["ledger"], _named(manifest), manifest["besides"].items()
        for task in ledger["tasks"]:
            self.add("step", task["task"], task["seconds"], task["steps"], name)
        around = sum(ledger["hooks"].get(hook, 0.0) for hook in AROUND)
        self.add("hook", "", around, sum(task["steps"] for task in ledger["tasks"]), name)
        answers = sum(score["count"] for score in manifest["scores"].values())
        self.add("answer", "", ledger["evaluation_seconds"], answers, name)
        for kind, seconds in besides:
            self.add(kind, "", seconds, 1, name)


def measured(out: Path, wanted: str) -> tuple[Pace, int]:
    """The pace of the finished runs in a folder that stand on a ground, and how many they are."""
    pace, count = Pace(), 0
    for manifest in _newest(out):
        with suppress(KeyError, TypeError, AttributeError):  # of an older version, which says less
            if ground(manifest["identity"], manifest["environment"]) == wanted:
                pace.learn(manifest)
                count += 1
    return pace, count


def together(seconds: Sequence[float], behind: Sequence[int | None], processes: int) -> float:
    """Seconds until the last of some runs has ended.

    Args:
        seconds: of each, in the order in which they begin.
        behind: the place of the run that must have ended before it begins, if any.
        processes: runs at a time.
    """
    after: dict[int, list[int]] = defaultdict(list)
    for place, learner in enumerate(behind):
        if learner is not None:
            after[learner].append(place)
    ready = [place for place, learner in enumerate(behind) if learner is None]
    later: list[tuple[float, int]] = []
    free, last = [0.0] * max(processes, 1), 0.0
    while ready or later:
        now = heapq.heappop(free)
        while later and later[0][0] <= now:
            heapq.heappush(ready, heapq.heappop(later)[1])
        begins, place = (now, heapq.heappop(ready)) if ready else heapq.heappop(later)
        ends = begins + seconds[place]
        for follower in after[place]:
            heapq.heappush(later, (ends, follower))
        heapq.heappush(free, ends)
        last = max(last, ends)
    return last


def _keys(kind: Kind, task: str, name: Name) -> list[tuple[str, ...]]:
    """Whose measurements count, the nearest first."""
    label, plugins = name
    of_task = [(kind, "label", label, task), (kind, "plugins", plugins, task)] if task else []
    others = [(kind, "task", task)] if task else []
    return [*of_task, (kind, "label", label), (kind, "plugins", plugins), *others, (kind,)]


def _named(manifest: Mapping[str, Any]) -> Name:
    return manifest["label"], "+".join(one["name"] for one in manifest["identity"]["stack"])


def _newest(out: Path) -> Iterator[dict[str, Any]]:
    """Manifests of finished runs, the newest last."""
    files = []
    for file in out.glob(f"*/{MANIFEST}"):
        with suppress(OSError):
            files.append((file.stat().st_mtime, file))
    for _, file in sorted(files)[-NEWEST:]:
        with suppress(OSError, ValueError):  # damaged: whoever shows it says so
            found = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                yield found
