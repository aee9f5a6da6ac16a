"""A run's folder on disk: its id, checkpoints, answers, manifest.

A run is written to `<id>.partial` and renamed to `<id>` when its manifest, the last file, is there. The id is a hash of
everything that decides the result, so the same command finds its own run again: finished, it is reported; unfinished, it
goes on after the last finished task. Every file is listed with size and SHA-256 when it is written (see `cl_zoo.engine.files`): in
the newest state while the run is not finished, in the manifest when it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from cl_zoo.engine.files import (
    LIST,
    Entry,
    canonical,
    damage,
    entry,
    entry_of,
    read_sealed,
    remedy,
    write_json,
    write_sealed,
)
from cl_zoo.engine.states import State, read_list, read_state, states_in, steps_in, write_list, write_state
from cl_zoo.errors import RunError, RunHeld, first_line

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST, IDENTITY, FACTS = "manifest.json", "identity.json", "facts.json"


def run_id(identity: Mapping[str, Any], label: str, seed: int) -> str:
    """`mini-hide-s0-3f2a…`: readable parts, then a hash of the whole identity."""
    digest = hashlib.sha256(canonical(identity).encode()).hexdigest()[:12]
    slug = re.sub(r"[^A-Za-z0-9]+", "_", label).strip("_")[:60]
    return f"{identity['benchmark']['name']}-{slug}-s{seed}-{digest}"


def cells_of_row(cells: str, protocol: str, row: int, tasks: int) -> list[int]:
    """Places of the stream that are asked about after learning the task at `row`.

    Args:
        cells: `lower` (all tasks seen so far), `last` (only after the last task) or `full` (future tasks too).
        protocol: of the method; where tasks are not learnt one after the other there is one row, of all tasks.
        tasks: length of the stream.
    """
    if protocol != "sequential" or cells == "full":
        return list(range(tasks))
    if cells == "last":
        return list(range(tasks)) if row == tasks - 1 else []
    return list(range(row + 1))


class RunFolder:
    """The folder of one run, held by one process at a time.

    Args:
        root: folder of all runs.
        run: id of the run.
        identity: what the id was made from; a folder with another identity is refused.
        keep: whether all states stay; otherwise the newest two, and the last one of a finished run.
        data: folders of the run's data, as they were named; a plugin's state may hold paths in them.

    Attributes:
        files: size and SHA-256 of every file of the run by name, as it was written.
    """

    def __init__(
        self,
        root: Path,
        run: str,
        identity: Mapping[str, Any],
        *,
        keep: bool = False,
        data: Iterable[str] = (),
    ) -> None:
        self.final, self.partial = root / run, root / f"{run}.partial"
        self.keep, self.data = keep, sorted(data)
        self.identity = json.loads(canonical(identity))
        self.files: dict[str, Entry] = {}
        self._held = ExitStack()

    def __enter__(self) -> RunFolder:
        with ExitStack() as held:
            held.enter_context(locked(self.final))
            self._check_identity()
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    @contextmanager
    def reading(self) -> Iterator[RunFolder]:
        """For the other processes of a run: the main one holds the folder."""
        yield self

    @property
    def finished(self) -> bool:
        return (self.final / MANIFEST).is_file()

    def begin(self) -> None:
        """Make the partial folder and say in it what it is going to hold."""
        self.partial.mkdir(parents=True, exist_ok=True)
        if not (self.partial / IDENTITY).exists():
            write_json(self.partial / IDENTITY, self.identity)
        self.files[IDENTITY] = entry(self.partial / IDENTITY)

    def save_state(
        self, done: int, tensors: Mapping[str, Tensor], plugins: Mapping[str, Any], notes: Mapping[str, Any]
    ) -> None:
        """Checkpoint after `done` tasks; the former one stays for the case that this one is damaged, all others go unless all are kept."""
        target, draft = self.partial / f"state-{done}", self._draft()
        self.files = self._written()
        made = write_state(draft, done, tensors, plugins, notes, self.files)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        self.files |= {f"{target.name}/{name}": one for name, one in made.items()}
        for other in steps_in(self.partial):
            shutil.rmtree(other)
        for other in states_in(self.partial):
            if not self.keep and other.name not in (target.name, f"state-{done - 1}"):
                shutil.rmtree(other)

    def save_step(
        self,
        done: int,
        step: int,
        tensors: Mapping[str, Tensor],
        plugins: Mapping[str, Any],
        notes: Mapping[str, Any],
    ) -> None:
        """Checkpoint within the task after `done` others; the former one of this task goes when this one is whole."""
        target, draft = self.partial / f"state-{done}-step-{step}", self._draft()
        write_state(draft, done, tensors, plugins, notes)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        for other in steps_in(self.partial, done):
            if other != target:
                shutil.rmtree(other)

    def load_state(self, device: str = "cpu") -> State | None:
        """The newest checkpoint of the unfinished run, see `read_state`; from then on its list is that of the folder.

        Raises:
            RunError: it is damaged.
        """
        states = states_in(self.partial)
        if states:
            listed = read_list(states[-1])
            if listed is None:
                raise RunError(f"checkpoint {states[-1]}: {LIST} is missing; {remedy(self.partial)}")
            self.files = dict(listed["run"])
            self._list_state(states[-1], listed["files"])
        return read_state(self.partial, device)

    def write_lines(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Write JSON lines under their final name in one go."""
        target = self.partial / name
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(".draft")
        content = "".join(f"{canonical(record)}\n" for record in records).encode()
        draft.write_bytes(content)
        draft.rename(target)
        self.files[name] = entry_of(content)

    def lost(self, rows: Mapping[int, Iterable[int]]) -> dict[int, list[int]]:
        """Which answers of an interrupted run are not listed any more, because they were found damaged and moved away.

        Args:
            rows: places by row, of all answers that were written before the checkpoint.

        Returns:
            The same of those that are lost.

        Raises:
            RunError: a listed file is missing or damaged.
        """
        gone: dict[int, list[int]] = {}
        for row, place in ((row, place) for row, places in rows.items() for place in places):
            name = f"answers/{row}-{place}.jsonl"
            if name not in self.files:
                gone.setdefault(row, []).append(place)
            elif wrong := damage(self.partial / name, self.files[name]):
                raise RunError(f"{self.partial / name} {wrong}; {remedy(self.partial)}")
        return gone

    def list_again(self, done: int) -> None:
        """Write the list of a checkpoint anew, after lost answers were made again."""
        place = self.partial / f"state-{done}"
        made = (read_list(place) or {"files": {}})["files"]
        write_list(place, made, self._written())
        self._list_state(place, made)

    def note(self, facts: Mapping[str, Any]) -> None:
        """Keep the facts for the manifest until the answers are scored."""
        write_json(self.partial / FACTS, facts)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Drop drafts and what is not kept of former checkpoints, write the manifest last, with the list of all files, and give the folder its name.

        Args:
            manifest: with `files`, where another process has listed them.
        """
        shutil.rmtree(self.partial / "state.draft", ignore_errors=True)
        for former in [*states_in(self.partial)[: 0 if self.keep else -1], *steps_in(self.partial)]:
            shutil.rmtree(former)
        for leftover in self.partial.rglob("*.draft"):
            leftover.unlink()
        (self.partial / FACTS).unlink(missing_ok=True)
        files = self._all(manifest.get("files") or self.files)
        write_sealed(self.partial / MANIFEST, {**manifest, "files": files})
        if self.final.exists():
            raise RunError(f"run {self.final}: the folder exists without a manifest; move it away")
        self.partial.rename(self.final)

    def _all(self, listed: Mapping[str, Entry]) -> dict[str, Entry]:
        """Entries of all files that are here: as they were listed, or else as they are."""
        kinds = ("*.json", "answers/*.jsonl", "expected/*.jsonl", "scores/*.jsonl", "state-*/*")
        files = sorted(file for kind in kinds for file in self.partial.glob(kind) if file.is_file())
        named = {str(file.relative_to(self.partial)): file for file in files}
        return {name: listed.get(name) or entry(file) for name, file in named.items() if name != MANIFEST}

    def _draft(self) -> Path:
        """An empty folder to write a checkpoint into."""
        draft = self.partial / "state.draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        return draft

    def _written(self) -> dict[str, Entry]:
        """What is listed beside the checkpoints."""
        return {name: one for name, one in self.files.items() if not name.startswith("state-")}

    def _list_state(self, place: Path, made: Mapping[str, Entry]) -> None:
        listed = {**made, LIST: entry(place / LIST)}
        self.files |= {f"{place.name}/{name}": one for name, one in listed.items()}

    def _check_identity(self) -> None:
        for folder in (self.final, self.partial):
            if not folder.exists():
                continue
            if folder == self.partial and not (folder / IDENTITY).exists():
                continue  # `begin` writes it; the folder's name holds the identity's hash
            found = read_identity(folder)
            if found != self.identity:
                raise RunError(
                    f"run folder {folder} holds another configuration; move it away or use another --out"
                )


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run's folder, finished or not, against all other processes.

    Raises:
        RunHeld: another one holds it.
    """
    run.parent.mkdir(parents=True, exist_ok=True)
    path = run.parent / f".{run.name}.lock"
    with path.open("w") as lock:
        # Whoever only lists runs holds it for a moment.
        if not any(_held(lock, path, wait) for wait in (0.0, 0.02, 0.1)):
            raise RunHeld(f"run {run}: another process is working on it; wait for it or use another --out")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _held(lock: IO[str], path: Path, wait: float) -> bool:
    """Whether this process holds the lock now, tried after some seconds."""
    time.sleep(wait)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it may have removed the file since it was opened: a lock on that one guards nothing.
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except OSError:
        return False


def read_identity(folder: Path) -> Any:
    """What decides the result of the run in a folder.

    Raises:
        RunError: it is missing or cannot be read.
    """
    try:
        return json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"run folder {folder} has no {IDENTITY}; {remedy(folder)}") from None
    except (OSError, ValueError) as error:
        raise RunError(f"run folder {folder}: {IDENTITY}: {first_line(error)}; {remedy(folder)}") from None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished run.

    Raises:
        RunError: there is none, or it is damaged.
    """
    try:
        return read_sealed(folder / MANIFEST, folder)
    except FileNotFoundError:
        raise RunError(
            f"{folder} has no {MANIFEST}, so it is no finished run; finish it with the command that began it"
        ) from None


def check_answers(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Whether what a finished run's scores were made from is as it was written; a run from before there were lists passes.

    Raises:
        RunError: a file is missing or damaged.
    """
    for name, wanted in manifest.get("files", {}).items():
        if not name.startswith("state-") and (wrong := damage(folder / name, wanted)):
            raise RunError(f"{folder / name} {wrong}; {remedy(folder)}")
