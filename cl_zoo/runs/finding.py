"""Runs that are there already, as comparisons: found by folder or pattern and read; what cannot be read is named.

Runs are compared where they learn the same tasks of the same data, in one order or in several. Runs of one label are one line over seeds only where
they agree in everything but the seed: where they do not, what differs stands behind the label, `finetune {lr.adapters=0.001}`. A run whose
setting is not that of most others is stamped with what differs.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cl_zoo.engine.files import canonical
from cl_zoo.errors import ClZooError, OptionError, RunError, cut, first_line
from cl_zoo.runs.comparison import Comparison
from cl_zoo.runs.execute import TRAINED
from cl_zoo.runs.faults import LOGS
from cl_zoo.runs.listing import DAMAGED, is_run, look
from cl_zoo.runs.result import Result, load_result
from cl_zoo.runs.tidy import records

OWN = ("stack", "sources", "probes")
"""Parts of an identity that belong to a method and not to the setting that all methods share."""

RANK = "adapter.rank"
"""A setting that the table stamps by itself where it differs."""

KEYS = 3
"""Settings that a label or a stamp names."""

HASH = 6
"""Signs of a hash that a label shows."""


@dataclass(frozen=True)
class LeftOut:
    """A run that no table shows, and the reason in one sentence."""

    folder: Path
    why: str

    def __str__(self) -> str:
        return f"{self.folder}: {self.why}"


@dataclass(frozen=True)
class Found:
    """Finished runs side by side, and those that are not.

    Attributes:
        comparisons: one for each benchmark, in whatever orders its tasks were learnt.
        left_out: unfinished and damaged runs.
    """

    comparisons: tuple[Comparison, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def results(self) -> tuple[Result, ...]:
        """All runs that can be read."""
        return tuple(result for one in self.comparisons for result in one.results)


def find_runs(places: Iterable[str | Path]) -> Found:
    """The runs in folders of runs, and the runs that are named themselves.

    Args:
        places: folders of runs, of folders of runs, or patterns: `runs`, `runs/mini-hide-*`.

    Raises:
        OptionError: nothing is there.
    """
    results: dict[str, Result] = {}
    left = []
    for folder in run_folders(places):
        try:
            result = _read(folder)
        except ClZooError as error:
            left.append(LeftOut(folder, _sentence(str(error), folder)))
            continue
        first = results.setdefault(result.manifest["id"], result)
        if first is not result:
            left.append(LeftOut(folder, f"is another copy of {first.folder}"))
    groups: dict[str, list[Result]] = {}
    for result in results.values():
        groups.setdefault(stream_of(result.manifest), []).append(result)
    return Found(tuple(Comparison(tuple(told_apart(group))) for group in groups.values()), tuple(left))


def run_folders(places: Iterable[str | Path]) -> list[Path]:
    """Folders of runs, finished or not, each once, in the order of the places and then by name.

    Raises:
        OptionError: a place is no folder, or no run is in any of them.
    """
    asked = list(places)
    found: dict[Path, Path] = {}
    for place in asked:
        paths = (
            [Path(place)] if os.path.exists(place) else [Path(one) for one in sorted(glob.glob(str(place)))]
        )
        if not any(path.is_dir() for path in paths):
            raise OptionError(f"{place}: no such folder; pass folders of runs, as `--out` named them")
        for path in paths:
            for run in [path] if is_run(path) else _below(path):
                found.setdefault(run.resolve(), run)
    if not found:
        raise OptionError(
            f"{', '.join(map(str, asked))}: no run is there; pass folders that `run` or `compare` has made"
        )
    return list(found.values())


def stream_of(manifest: Mapping[str, Any]) -> str:
    """What runs of one comparison have in common: benchmark, its version, tasks with their rules and test data, and limit."""
    return canonical({**manifest["identity"]["benchmark"], "order": None})


def told_apart(results: Sequence[Result]) -> list[Result]:
    """The runs of one stream with labels under which all but the seed is equal, and stamps of unusual settings."""
    labels: dict[str, list[Result]] = {}
    for one in results:
        labels.setdefault(one.label, []).append(one)
    settings = {id(one): dict(_leaves(_setting(one))) for one in results}
    common = _most_common([dict(_leaves(_shared(one))) for one in results])
    named = []
    for one in results:
        mine = settings[id(one)]
        keys = _differing([settings[id(other)] for other in labels[one.label]])
        label = f"{one.label} {{{_pairs(mine, keys)}}}" if keys else one.label
        unusual = [
            key
            for key in dict(_leaves(_shared(one)))
            if key not in (*keys, RANK) and mine[key] != common.get(key)
        ]
        stamps = (f"set otherwise: {_pairs(mine, unusual)}",) if unusual else ()
        named.append(replace(one, label=label, stamps=(*one.stamps, *stamps)))
    return _once(named)


def _read(folder: Path) -> Result:
    """A finished run whose scores are those of its answers.

    Raises:
        ClZooError: it is not finished, or damaged.
    """
    state = look(folder)
    if state.state in ("in part", "locked"):
        far = (
            f"{state.done} of {state.tasks} tasks are learnt"
            if state.tasks is not None
            else "nothing is learnt yet"
        )
        work = "; another process works on it" if state.state == "locked" else ""
        raise RunError(f"not finished, {far}{work}")
    try:
        result = load_result(folder)
        one = Comparison((result,))
        one.table()  # compares answers with their list
        for kind in ("runs", "cells"):
            list(records(one.results, kind))
        stream_of(result.manifest)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ClZooError):
            raise
        raise RunError(
            f"its manifest is not what this program writes ({first_line(error)}); do not use the folder"
        ) from None
    return result


def _below(folder: Path) -> Iterator[Path]:
    """Runs below a folder at any depth, links not followed."""
    for root, inside, _ in os.walk(folder):
        paths = {name: Path(root) / name for name in sorted(inside)}
        runs = [path for path in paths.values() if not path.is_symlink() and is_run(path)]
        yield from runs
        skipped = {path.name for path in runs} | {TRAINED, LOGS}
        inside[:] = [
            name
            for name in paths
            if name not in skipped and not name.startswith(".") and not name.endswith(DAMAGED)
        ]


def _setting(result: Result) -> dict[str, Any]:
    """All that decides a run beside its benchmark and its seed, which decide the chain as well."""
    identity = result.manifest["identity"]
    return {key: value for key, value in identity.items() if key not in ("benchmark", "seed", "chain")}


def _shared(result: Result) -> dict[str, Any]:
    """The part of it that all methods of a fair comparison have in common."""
    return {key: value for key, value in _setting(result).items() if key not in OWN}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted name; a plugin of a list goes by its name, and the recipe's keys go without `recipe`."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves(one, f"{name}.{key}".removeprefix(".").removeprefix("recipe."))
    elif (
        isinstance(value, list) and value and all(isinstance(one, Mapping) and "name" in one for one in value)
    ):
        for one in value:
            yield from _leaves(one.get("options", {}), str(one["name"]))
            yield f"{name}.{one['name']}", True
    else:
        yield name, value


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if len({canonical(one.get(key)) for one in settings}) > 1]


def _most_common(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    keys = dict.fromkeys(key for one in settings for key in one)
    found = {}
    for key in keys:
        values = [one.get(key) for one in settings]
        most = Counter(canonical(value) for value in values).most_common(1)[0][0]
        found[key] = next(value for value in values if canonical(value) == most)
    return found


def _pairs(setting: Mapping[str, Any], keys: Sequence[str]) -> str:
    """`lr.adapters=0.001, epochs=2`, the first few of them; of a hash its first signs."""
    shown = [f"{key}={_short(setting.get(key))}" for key in keys[:KEYS]]
    return ", ".join(shown) + (f" and {len(keys) - KEYS} more" if len(keys) > KEYS else "")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical(value)
    if len(text) >= 12 and all(sign in "0123456789abcdef" for sign in text):
        return text[:HASH]
    return cut(text) if len(text) <= 40 else f"{text[:39]}…"


def _once(results: Sequence[Result]) -> list[Result]:
    """Labels that still stand for two runs of one seed get the end of the run's id."""
    counts = Counter((one.label, one.seed, tuple(one.manifest["tasks"])) for one in results)
    doubled = {label for (label, _, _), count in counts.items() if count > 1}
    return [
        replace(one, label=f"{one.label} {{{one.manifest['id'][-12:]}}}") if one.label in doubled else one
        for one in results
    ]


def _sentence(text: str, folder: Path) -> str:
    """An error without the name of the folder that stands before it anyway."""
    return text.removeprefix(str(folder)).lstrip("/: ")
