"""A run's folder on disk: its id, checkpoints, answers, manifest.

A run is written to `<id>.partial` and renamed to `<id>` when its manifest, the last file, is there. The id is a hash of
everything that decides the result, so the same command finds its own run again: finished, it is reported; unfinished, it
goes on after the last finished task. Tensors are safetensors, everything else is JSON; nothing is ever pickled.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cl_zoo.errors import RunError, first_line

if TYPE_CHECKING:
    from torch import Tensor

State = tuple[dict[str, "Tensor"], dict[str, Any], dict[str, Any]]
"""A checkpoint: model tensors by name, plugin state, notes."""

MANIFEST, IDENTITY, FACTS = "manifest.json", "identity.json", "facts.json"


def run_id(identity: Mapping[str, Any], label: str, seed: int) -> str:
    """`mini-hide-s0-3f2a…`: readable parts, then a hash of the whole identity."""
    digest = hashlib.sha256(canonical(identity).encode()).hexdigest()[:12]
    slug = re.sub(r"[^A-Za-z0-9]+", "_", label).strip("_")[:60]
    return f"{identity['benchmark']['name']}-{slug}-s{seed}-{digest}"


def canonical(value: Any) -> str:
    """JSON in one spelling only."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


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
    """

    def __init__(self, root: Path, run: str, identity: Mapping[str, Any]) -> None:
        self.final, self.partial = root / run, root / f"{run}.partial"
        self.identity = json.loads(canonical(identity))
        self._lock_path = root / f".{run}.lock"
        self._lock: Any = None

    def __enter__(self) -> RunFolder:
        self.final.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._lock_path.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the file since it was opened: a lock on that one guards nothing.
            held = os.path.samestat(os.fstat(self._lock.fileno()), self._lock_path.stat())
        except OSError:
            held = False
        if not held:
            self._lock.close()
            raise RunError(
                f"run {self.final}: another process is working on it; wait for it or use another --out"
            )
        try:
            self._check_identity()
        except RunError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock_path.unlink(missing_ok=True)
        self._lock.close()

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

    def save_state(
        self, done: int, tensors: Mapping[str, Tensor], plugins: Mapping[str, Any], notes: Mapping[str, Any]
    ) -> None:
        """Checkpoint after `done` tasks; the former one goes when this one is complete."""
        target, draft = self.partial / f"state-{done}", self.partial / "state.draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        write_state(draft, done, tensors, plugins, notes)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        for other in self.partial.glob("state-*"):
            if other != target:
                shutil.rmtree(other)

    def load_state(self, device: str = "cpu") -> State | None:
        """The newest checkpoint of the unfinished run, see `read_state`."""
        return read_state(self.partial, device)

    def write_lines(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Write JSON lines under their final name in one go."""
        target = self.partial / name
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(".draft")
        draft.write_text("".join(f"{canonical(record)}\n" for record in records), encoding="utf-8")
        draft.rename(target)

    def check_answers(self, sizes: Mapping[str, int]) -> None:
        """Whether the answers of an interrupted run are all there, before anything more is learnt.

        Args:
            sizes: number of answers by name of the file, for all that were written.

        Raises:
            RunError: a file is missing or has another number of lines.
        """
        for name, size in sizes.items():
            file = self.partial / name
            lines = file.read_bytes().count(b"\n") if file.is_file() else 0
            if lines != size:
                raise RunError(
                    f"{file}: holds {lines} of {size} answers; delete {self.partial} and run the same command again, which begins anew"
                )

    def note(self, facts: Mapping[str, Any]) -> None:
        """Keep the facts for the manifest until the answers are scored."""
        write_json(self.partial / FACTS, facts)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Drop the checkpoint's drafts, write the manifest last and give the folder its name."""
        shutil.rmtree(self.partial / "state.draft", ignore_errors=True)
        for leftover in self.partial.rglob("*.draft"):
            leftover.unlink()
        (self.partial / FACTS).unlink(missing_ok=True)
        write_json(self.partial / MANIFEST, manifest)
        if self.final.exists():
            raise RunError(f"run {self.final}: the folder exists without a manifest; move it away")
        self.partial.rename(self.final)

    def _check_identity(self) -> None:
        for folder in (self.final, self.partial):
            if not folder.exists():
                continue
            try:
                found = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                if folder == self.partial and not any(folder.iterdir()):
                    continue
                raise RunError(
                    f"run folder {folder}: {IDENTITY}: {first_line(error)}; move the folder away"
                ) from None
            if found != self.identity:
                raise RunError(
                    f"run folder {folder} holds another configuration; move it away or use another --out"
                )


def read_state(folder: Path, device: str = "cpu") -> State | None:
    """The newest checkpoint in a run's folder as (model tensors, plugin state, notes), or `None` where there is none.

    Raises:
        RunError: it is there but cannot be read.
    """
    states = sorted(folder.glob("state-*"), key=lambda path: int(path.name.removeprefix("state-")))
    return read_state_in(states[-1], device) if states else None


def write_state(
    place: Path,
    done: int,
    tensors: Mapping[str, Tensor],
    plugins: Mapping[str, Any],
    notes: Mapping[str, Any],
) -> None:
    """Write the files of a state after `done` tasks into an empty folder."""
    from safetensors.torch import save_file

    flat: dict[str, Tensor] = {}
    tree = _split_tensors(plugins, "", flat)
    for name, held in (("model", tensors), ("plugins", flat)):
        copies = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in held.items()}
        save_file(copies, place / f"{name}.safetensors")
    write_json(place / "state.json", {"done": done, "plugins": tree, **notes})


def read_state_in(place: Path, device: str = "cpu") -> State:
    """What `write_state` wrote.

    Raises:
        RunError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        notes = json.loads((place / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(place / "model.safetensors", device=device)
        kept = load_file(place / "plugins.safetensors", device=device)
        # Copies: in the file a tensor lies anywhere, and matrix products of unaligned memory end in other last bits.
        kept = {name: tensor.clone() for name, tensor in kept.items()}
        plugins = _join_tensors(notes.pop("plugins"), kept)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(
            f"checkpoint {place}: {first_line(error)}; delete {place.parent} to start the run again"
        ) from None
    return tensors, plugins, notes


def fill(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], place: str) -> None:
    """Copy tensors into a model, strictly by name and shape.

    Raises:
        RunError: a tensor is missing, extra, or of another shape.
    """
    import torch

    for name in sorted(targets.keys() ^ tensors.keys()):
        what = "lacks" if name in targets else "holds an unknown"
        raise RunError(
            f"checkpoint in {place} {what} tensor {name}; delete the folder to start the run again"
        )
    with torch.no_grad():
        for name, target in targets.items():
            if target.shape != tensors[name].shape:
                raise RunError(
                    f"checkpoint in {place}: {name} has shape {tuple(tensors[name].shape)}, the model wants {tuple(target.shape)}; delete the folder to start the run again"
                )
            target.copy_(tensors[name])


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished run.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{folder} has no {MANIFEST}, so it is no finished run; finish it with the command that began it"
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / MANIFEST}: {first_line(error)}; delete the folder and run again") from None
    return manifest


def write_json(path: Path, value: Any, *, sort: bool = True) -> None:
    """Write a JSON file under its final name in one go, its keys in alphabetical order or as they are."""
    draft = path.with_name(path.name + ".draft")
    text = json.dumps(value, indent=1, sort_keys=sort, ensure_ascii=False) + "\n"
    try:
        draft.write_text(text, encoding="utf-8")
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


def _split_tensors(value: Any, path: str, flat: dict[str, Tensor]) -> Any:
    """JSON with `{"$tensor": path}` in place of every tensor, which goes to `flat` under its JSON pointer (RFC 6901)."""
    from torch import Tensor as TensorType

    if isinstance(value, TensorType):
        flat[path] = value
        return {"$tensor": path}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key == "$tensor":
                raise RunError(
                    f"plugin state {path or '/'}: the key {key!r} would not come back as it is; use other strings as keys"
                )
        escaped = {key: key.replace("~", "~0").replace("/", "~1") for key in value}
        return {key: _split_tensors(item, f"{path}/{escaped[key]}", flat) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_split_tensors(item, f"{path}/{place}", flat) for place, item in enumerate(value)]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise RunError(
        f"plugin state {path or '/'}: a {type(value).__name__} is neither JSON nor a tensor; store numbers, strings, lists, tensors"
    )


def _join_tensors(value: Any, flat: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return (
            flat[value["$tensor"]]
            if set(value) == {"$tensor"}
            else {key: _join_tensors(item, flat) for key, item in value.items()}
        )
    return [_join_tensors(item, flat) for item in value] if isinstance(value, list) else value
