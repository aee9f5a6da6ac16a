"""What lies in a folder of runs: finished runs, unfinished ones, and how far each has come. Nothing is computed and no model is read."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_zoo.engine.folder import IDENTITY, MANIFEST, read_identity, read_manifest
from cl_zoo.engine.states import states_in
from cl_zoo.errors import OptionError, RunError, printable
from cl_zoo.report.sheets import NOTES, Entry, Line, Section, Sheet, as_text

PARTIAL, DAMAGED = ".partial", ".damaged"
NAMED = re.compile(r".+-s(?P<seed>\d+)-[0-9a-f]{12}")
"""How a run's folder is called."""

SPANS = (("d", 86_400), ("h", 3_600), ("min", 60))
SIZES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@dataclass(frozen=True)
class Listed:
    """A run on disk.

    Attributes:
        state: `finished`, `in part`, `locked` (a living process works on it), `damaged`, or `set aside` by `verify --repair`.
        done, tasks: tasks learnt so far, of how many; `None` where the folder does not say.
        why: what is damaged.
        order: names of the tasks in the order of the stream.
        size: bytes of all its files.
        age: seconds since its newest file was written.
    """

    folder: Path
    state: str
    label: str
    seed: int | None
    benchmark: str
    order: tuple[str, ...]
    done: int | None
    tasks: int | None
    size: int
    age: float
    why: str = ""

    @property
    def words(self) -> str:
        """The state as a person reads it: `in part: 3 of 6 tasks`."""
        if self.why:
            return f"{self.state}: {self.why}"
        if self.state in ("in part", "locked") and self.tasks is not None:
            return f"{self.state}: {self.done} of {self.tasks} tasks"
        return self.state

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**plain, "folder": str(self.folder), "order": list(self.order), "age": round(self.age)}


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, finished or not."""
    if folder.name.endswith(DAMAGED):
        return False
    return folder.is_dir() and (
        any((folder / name).is_file() for name in (MANIFEST, IDENTITY)) or folder.name.endswith(PARTIAL)
    )


def listed(out: Path) -> list[Listed]:
    """The runs in a folder of runs, by name.

    Raises:
        OptionError: there is no such folder.
    """
    if not out.is_dir():
        raise OptionError(f"{out}: no such folder; pass the one that `--out` named, by default `runs`")
    inside = sorted(path for path in out.iterdir() if path.is_dir() and not path.is_symlink())
    aside = [path for path in inside if path.name.endswith(DAMAGED)]
    runs = [look(path) for path in inside if is_run(path)]
    return runs + [_entry(path, "set aside", {}, None) for path in aside]


def look(folder: Path) -> Listed:
    """One run, finished or not."""
    held = in_use(folder)
    try:
        if (folder / MANIFEST).is_file():
            manifest = read_manifest(folder)
            wrong = _missing(folder, manifest)
            tasks = len(manifest["lessons"]) if "lessons" in manifest else None
            state = "locked" if held else "damaged" if wrong else "finished"
            return _entry(folder, state, manifest["identity"], tasks, tasks, wrong, manifest["label"])
        if not (folder / IDENTITY).is_file():
            return _entry(folder, "locked" if held else "in part", {}, None)
        identity = read_identity(folder)
        states = states_in(folder)
        done = int(states[-1].name.removeprefix("state-")) if states else 0
        total = len(identity.get("chain", ())) or len(identity["benchmark"]["order"])
        return _entry(folder, "locked" if held else "in part", identity, done, total)
    except RunError as error:
        return _entry(folder, "damaged", {}, None, why=str(error).removeprefix(str(folder)).lstrip("/: "))
    except (KeyError, TypeError, AttributeError, ValueError):
        return _entry(folder, "damaged", {}, None, why="its files are not what this program writes")


def in_use(folder: Path) -> bool:
    """Whether a living process holds a run; the file of a lock that nobody holds says nothing."""
    lock = folder.parent / f".{folder.name.removesuffix(PARTIAL)}.lock"
    try:
        with lock.open() as file:
            # shared, so that two who look at a time do not take each other for a run
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def size_and_time(place: Path) -> tuple[int, float]:
    """Bytes of a file or of all files below a folder, links not followed, and when the newest was written."""
    size, newest = 0, place.lstat().st_mtime
    if place.is_dir() and not place.is_symlink():
        for root, _, files in os.walk(place):
            for name in files:
                about = os.lstat(os.path.join(root, name))
                if stat.S_ISREG(about.st_mode):
                    size, newest = size + about.st_size, max(newest, about.st_mtime)
    else:
        size = place.lstat().st_size
    return size, newest


def as_size(count: float) -> str:
    """Bytes as people write them: `9.0 MB`."""
    return next((f"{count / one:.1f} {name}" for name, one in SIZES if count >= one), f"{count:.0f} B")


def as_age(seconds: float) -> str:
    """A span as people say it: `3 h`."""
    return next(
        (f"{seconds / one:.0f} {name}" for name, one in SPANS if seconds >= one), f"{max(seconds, 0):.0f} s"
    )


def text(runs: list[Listed]) -> str:
    """A line for each run, the orders in words below."""
    orders = list(dict.fromkeys((one.benchmark, one.order) for one in runs if one.order))
    lines = []
    for one in runs:
        order = str(orders.index((one.benchmark, one.order)) + 1) if one.order else "–"
        values = (
            one.label,
            "–" if one.seed is None else str(one.seed),
            order,
            as_size(one.size),
            as_age(one.age),
            one.words,
        )
        lines.append(Line(printable(one.folder.name), tuple(Entry(printable(value)) for value in values)))
    columns = ("Label", "Seed", "Order", "Size", "Age", NOTES)  # sentences stand left under this name
    told = as_text(Sheet(columns, (Section("", tuple(lines)),))).replace(NOTES, "State", 1)
    legend = [
        f"order {n} of {printable(name)}: {printable(','.join(order))}"
        for n, (name, order) in enumerate(orders, start=1)
    ]
    counts = {
        state: sum(one.state == state for one in runs) for state in dict.fromkeys(o.state for o in runs)
    }
    total = as_size(sum(one.size for one in runs))
    closing = f"{len(runs)} runs, {total}: " + ", ".join(f"{n} {state}" for state, n in counts.items())
    return told + "\n" + "\n".join([*legend, closing]) + "\n"


def _missing(folder: Path, manifest: Mapping[str, Any]) -> str:
    """What of a finished run's list is not there or of another size; its contents are for `verify`, and checkpoints may be gone."""
    for name, wanted in manifest.get("files", {}).items():
        file = folder / name
        if name.startswith("state-") and not file.parent.is_dir():
            continue
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != wanted["size"]:
            return f"{name} holds {file.stat().st_size} of {wanted['size']} bytes"
    return ""


def _entry(
    folder: Path,
    state: str,
    identity: Mapping[str, Any],
    done: int | None,
    tasks: int | None = None,
    why: str = "",
    label: str = "",
) -> Listed:
    benchmark = identity.get("benchmark", {})
    size, newest = size_and_time(folder)
    name = folder.name.removesuffix(PARTIAL).removesuffix(DAMAGED)
    named = NAMED.fullmatch(name)
    slug = re.sub(r"-s\d+-[0-9a-f]{12}$", "", name).partition("-")[2] or name
    return Listed(
        folder=folder,
        state=state,
        label=label or slug,
        seed=int(named["seed"]) if named else identity.get("seed"),
        benchmark=benchmark.get("name", ""),
        order=tuple(benchmark.get("order", ())),
        done=done,
        tasks=tasks,
        size=size,
        age=time.time() - newest,
        why=why,
    )
