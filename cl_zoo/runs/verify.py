"""Whether a run's folder is whole: every listed file as it was written, the scores those of its answers; and what to do if not."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_zoo.engine.files import LIST, Entry, damage, write_json
from cl_zoo.engine.folder import IDENTITY, MANIFEST, locked, read_identity, read_manifest
from cl_zoo.engine.inherited import number, ways_back
from cl_zoo.engine.states import read_list, states_in, steps_in, write_list
from cl_zoo.errors import ClZooError, RunError, first_line
from cl_zoo.runs.manifest import score_cells, scored
from cl_zoo.scoring.scorer import METRICS, Scorer

FILES = re.compile(r"(?:(?:answers|expected|scores|state-\d+(?:-step-\d+)?)/)?[\w.-]+", re.ASCII)
"""Names of files in a run's folder; a list may come from anybody, and what it names is moved when it is damaged."""


@dataclass(frozen=True)
class Verified:
    """What was found in a run's folder.

    Attributes:
        files: how many were compared with their list.
        damaged: what is wrong with a file, by its name in the folder.
        notes: what could not be told, and why.
    """

    folder: Path
    files: int
    damaged: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """A line for each damaged file, or one that says what was compared."""
        if self.damaged:
            return "\n".join(f"{self.folder / name} {wrong}" for name, wrong in self.damaged.items())
        return f"{self.folder}: whole, {self.files} files" + "".join(f"; {note}" for note in self.notes)

    def to_json(self) -> dict[str, Any]:
        return {
            "run": str(self.folder),
            "files": self.files,
            "damaged": dict(self.damaged),
            "notes": list(self.notes),
        }


def verify(folder: Path, scorer: Scorer) -> Verified:
    """Compare every file of a run, finished or not, with the lists, and the scores with those of the answers.

    Raises:
        RunError: there is no run in the folder.
    """
    if not any((folder / name).exists() for name in (MANIFEST, IDENTITY)) and not states_in(folder):
        raise RunError(f"{folder} holds no run; pass a folder that `run` or `compare` has made")
    try:
        return _compared(folder, scorer)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{folder}: its manifest or a list is not what this program writes ({first_line(error)}); do not use the folder"
        ) from None


def _compared(folder: Path, scorer: Scorer) -> Verified:
    manifest, damaged = _manifest(folder)
    listed = _listed(folder, manifest, damaged)
    for name, wanted in listed.items():
        if not FILES.fullmatch(name) or ".." in name:
            raise RunError(
                f"{folder}: its list names {name!r}, which is no file of a run; do not use the folder"
            )
        made_anew = folder.name.endswith(".partial") and name.startswith((IDENTITY, "expected/"))
        if name in damaged or (made_anew and not (folder / name).exists()):
            continue
        if wrong := damage(folder / name, wanted):
            damaged[name] = wrong
    unlisted = manifest is not None and "files" not in manifest
    notes = ["it is from before files were listed, so only its scores can be told"] if unlisted else []
    if manifest is not None:
        if IDENTITY not in damaged and (wrong := _other_identity(folder, manifest)):
            damaged[IDENTITY] = wrong
        if not any(name.startswith(("answers/", "expected/")) for name in damaged):
            notes += _rescore(folder, manifest, scorer, damaged)
    return Verified(folder, len(listed), dict(sorted(damaged.items())), tuple(notes))


def repair(found: Verified) -> str:
    """Take damaged files out of a run's folder, with what depends on them, so that the command that made it makes them anew.

    What the manifest holds a copy of is written from it. A finished run that lacks more is an unfinished one again.

    Returns:
        One sentence on what was moved and what the command is going to do.

    Raises:
        RunError: another process works on the run, or it stands there a second time, unfinished.
    """
    folder = found.folder
    final = folder.with_name(folder.name.removesuffix(".partial"))
    partial, away = final.with_name(f"{final.name}.partial"), final.with_name(f"{final.name}.damaged")
    with locked(final):
        if folder == final and partial.exists():
            raise RunError(f"{partial} stands beside {final}; move one of them away")
        moved = list(found.damaged)
        left = [name for name in moved if not _from_manifest(folder, name, away)]
        if not left:
            return f"{folder}: wrote {', '.join(moved)} anew from the manifest; what was damaged is in {away}"
        unmade = _take_out(folder, left, away)
        if folder == final:
            _move(folder, MANIFEST, away)
            folder.rename(partial)
    return f"{folder}: moved {', '.join(moved)} to {away}; the command that made the run {unmade}"


def _manifest(folder: Path) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """The manifest of a finished run, and what is wrong with it."""
    if not (folder / MANIFEST).exists():
        missing = {} if folder.name.endswith(".partial") else {MANIFEST: "is missing"}
        return None, missing
    try:
        return read_manifest(folder), {}
    except RunError:
        return None, {MANIFEST: "was changed after it was written"}


def _listed(folder: Path, manifest: Mapping[str, Any] | None, damaged: dict[str, str]) -> dict[str, Entry]:
    """Entries by name from the manifest, or else from the lists of the states; a list that cannot be read is damage."""
    listed: dict[str, Entry] = {}
    for state in [*states_in(folder), *steps_in(folder)]:
        name = f"{state.name}/{LIST}"
        try:
            found = read_list(state)
        except RunError:
            damaged[name] = "was changed after it was written"
            continue
        if found is not None:
            listed |= {**found["run"], **{f"{state.name}/{one}": it for one, it in found["files"].items()}}
        elif manifest is None:
            damaged[name] = "is missing"
    return listed if manifest is None else dict(manifest.get("files", {}))


def _other_identity(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    try:
        return None if read_identity(folder) == manifest["identity"] else "is not that of the manifest"
    except RunError:
        return "is missing or cannot be read"


def _rescore(folder: Path, manifest: Mapping[str, Any], scorer: Scorer, damaged: dict[str, str]) -> list[str]:
    """Score the answers again; another score is damage of the manifest. Returns why it could not be told."""
    old = {score["metric"] for score in manifest["scores"].values()}
    now = {f"{name}/{version}" for name, version in METRICS.items()}
    if other := sorted(old - now):
        return [
            f"its scores are by {', '.join(other)}, which this version has no longer, and stand as they are"
        ]
    try:
        scores = score_cells(folder, manifest, manifest["identity"]["cells"], scorer)
    except ClZooError as error:
        damaged[MANIFEST] = f"holds scores that its answers do not give: {error}"
        return []
    found = scored(scores, manifest)
    for cell, score in found["scores"].items():
        stored = manifest["scores"].get(cell, {})
        if not _same(stored.get("value"), score["value"]):
            damaged[MANIFEST] = (
                f"gives {stored.get('value')} for cell {cell}, its answers score {score['value']:.2f}"
            )
            return []
    for name in ("matrix", "strict"):
        if not _same(found.get(name), manifest.get(name)):
            damaged[MANIFEST] = f"holds a matrix ({name}) that is not that of its answers"
    return []


def _same(first: Any, second: Any) -> bool:
    """Equal up to the last digits of numbers, which differ between processors."""
    if isinstance(first, float | int) and isinstance(second, float | int):
        return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-9)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(first == second)


def _from_manifest(folder: Path, name: str, away: Path) -> bool:
    """Write a file anew whose content a whole manifest holds: the identity, or the list of a state."""
    manifest, _ = _manifest(folder)
    files = {} if manifest is None else manifest.get("files", {})
    if name != IDENTITY and not (name.endswith(f"/{LIST}") and name in files):
        return False
    if manifest is None:
        return False
    _move(folder, name, away)
    if name == IDENTITY:
        write_json(folder / IDENTITY, manifest["identity"])
    else:
        state = name.removesuffix(LIST)
        own = {
            one.removeprefix(state): it for one, it in files.items() if one.startswith(state) and one != name
        }
        rest = {one: it for one, it in files.items() if not one.startswith(("state-", "scores/"))}
        write_list(folder / state, own, rest)
    return True


def _take_out(folder: Path, damaged: Sequence[str], away: Path) -> str:
    """Move damaged files away, a state as a whole; returns what the run's command is going to do."""
    states = {name.partition("/")[0] for name in damaged if name.startswith("state-")}
    answers = [name for name in damaged if name.startswith("answers/")]
    newest = next(reversed(states_in(folder)), None)
    for name in (*sorted(states), *(name for name in damaged if not name.startswith("state-"))):
        _move(folder, name, away)
    left = states_in(folder)
    for state in left if answers else ():
        listed = read_list(state) or {"files": {}, "run": {}}
        kept = {name: one for name, one in listed["run"].items() if name not in answers}
        write_list(state, listed["files"], kept)
    done = number(left[-1]) if left else 0
    if not left or newest not in left:
        return f"learns from task {done + 1} on"
    rows = {int(name.removeprefix("answers/").partition("-")[0]) for name in answers}
    again = [place + 1 for *_, places in ways_back(rows, list(map(number, left))) for place in places]
    whole = again and again == list(range(again[0], again[-1] + 1))
    named = f"{again[0]} to {again[-1]}" if whole else ", ".join(map(str, again))
    learns = f"learns tasks {named} once more, " if again else ""
    made = f"makes {len(answers)} answer files anew and " if answers else ""
    return f"{learns}{made}goes on after task {done}"


def _move(folder: Path, name: str, away: Path) -> None:
    """Move a file or a state out of the folder, beside what was moved before; one that is missing stays so."""
    if not (folder / name).exists():
        return
    target, number = away / name, 1
    while target.exists():
        target, number = away / f"{name}.{number}", number + 1
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder / name, target)
