"""Removing what a user names from a folder of runs: never a run that a process works on, never anything behind a link.

What is removed is known by its name and place; every other file and folder stays where it is. A run's folder is held against other
processes while something of it is removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cl_zoo.engine.folder import MANIFEST, locked
from cl_zoo.engine.states import states_in
from cl_zoo.errors import OptionError, RunError
from cl_zoo.runs.execute import TRAINED
from cl_zoo.runs.faults import LOGS
from cl_zoo.runs.listing import DAMAGED, NAMED, PARTIAL, as_size, in_use, size_and_time

KINDS = {
    "partial": "unfinished runs",
    "damaged": "what `cl-zoo verify --repair` has set aside",
    "states": "checkpoints of finished runs; their scores stay, their models go",
    "trained": "trainings that several runs share",
    "preflight": "what preflight remembers",
    "logs": "logs of workers and of plugins that made a run fail",
}
"""What can be named, and what it is."""

SHELF = b"cl-zoo shelf 1\n\0"
"""How the index of a shelf of features begins, `cl_zoo.features.shelves`."""


@dataclass(frozen=True)
class Item:
    """One thing that was named.

    Attributes:
        kind: a key of `KINDS`, or `cache`.
        held: folders of the runs that must not be in use while it is removed.
        kept: why it stays; empty where it can go.
    """

    path: Path
    kind: str
    size: int
    held: tuple[Path, ...] = ()
    kept: str = ""

    def text(self) -> str:
        """One line: path, size, and why it stays."""
        return f"{self.path}  {as_size(self.size)}" + (f"  stays: {self.kept}" if self.kept else "")


def named(out: Path, kinds: Sequence[str], cache: Path | None = None) -> list[Item]:
    """What is there of the kinds that were named.

    Args:
        cache: a folder of image features, whose shelves are named too.

    Raises:
        OptionError: nothing is named, or a folder is not there.
    """
    if not kinds and cache is None:
        flags = ", ".join(f"--{kind}" for kind in KINDS)
        raise OptionError(f"clean removes only what is named; pass one or more of {flags}, --cache DIR")
    for folder in (out, *([cache] if cache else [])):
        if not folder.is_dir():
            raise OptionError(f"{folder}: no such folder; pass the one that `--out` or `--cache` named")
    found = [_item(path, kind, held, out) for kind in kinds for path, held in _places(out, kind)]
    return found + [_item(path, "cache", (), out) for path in (_shelves(cache) if cache else ())]


def remove(items: Sequence[Item]) -> Iterator[Item]:
    """Remove them one after the other; yields each as it ended, with `kept` where it stays after all."""
    for item in items:
        if item.kept:
            yield item
            continue
        try:
            with ExitStack() as holding:
                for run in item.held:
                    holding.enter_context(locked(run))
                _gone(item.path)
        except (OSError, RunError) as error:
            yield Item(item.path, item.kind, item.size, item.held, " ".join(str(error).split()))
            continue
        yield item


def _places(out: Path, kind: str) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """What is there of a kind, each with the runs that it belongs to."""
    inside = sorted(out.iterdir())
    if kind in ("partial", "damaged"):
        end = PARTIAL if kind == "partial" else DAMAGED
        for path in inside:
            name = path.name.removesuffix(end)
            if path.name.endswith(end) and NAMED.fullmatch(name):
                yield path, (out / name,)
    elif kind == "states":
        for run in inside:
            if NAMED.fullmatch(run.name) and not run.is_symlink() and (run / MANIFEST).is_file():
                yield from ((state, (run,)) for state in states_in(run))
    else:
        folder, pattern = {
            "trained": (TRAINED, "*"),
            "preflight": ("preflight", "*.gz"),
            "logs": (LOGS, "*.log"),
        }[kind]
        if (out / folder).is_dir() and not (out / folder).is_symlink():
            paths = sorted((out / folder).glob(pattern))
            yield from ((path, ()) for path in paths if kind != "trained" or NAMED.fullmatch(path.name))


def _shelves(cache: Path) -> Iterator[Path]:
    """The two files of each shelf, the index last: an index without its data reads as an empty shelf."""
    for index in sorted(cache.glob("*.index")):
        if index.is_symlink() or not index.is_file():
            continue
        with index.open("rb") as opened:
            shelf = opened.read(len(SHELF)) == SHELF
        data = index.with_suffix(".data")
        if shelf:
            yield from (file for file in (data, index) if file.is_file())


def _item(path: Path, kind: str, held: tuple[Path, ...], out: Path) -> Item:
    size, _ = size_and_time(path)
    return Item(path, kind, size, held, _reason(path, held, out))


def _reason(path: Path, held: tuple[Path, ...], out: Path) -> str:
    """Why a thing stays; empty where it can go."""
    if path.is_symlink():
        return "it is a link"
    if any(in_use(run) for run in held):
        return "a process works on this run"
    if not held and (busy := next(_busy(out), None)):
        return f"a process works on {busy}"
    return ""


def _busy(out: Path) -> Iterator[str]:
    """Runs of the folder that a living process holds: what all runs share is theirs too."""
    for lock in sorted(out.glob(".*.lock")):
        run = lock.name.removeprefix(".").removesuffix(".lock")
        if in_use(out / run):
            yield run


def _gone(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)  # links in it are removed, not followed
    else:
        path.unlink()
