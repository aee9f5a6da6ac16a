"""A state on disk: what a run has learnt after some of its tasks, or of a task's steps, as tensors and JSON with a list of both.

Tensors are safetensors, everything else is JSON; nothing is ever pickled. The list says what each file holds, and what the run had
written before, so that a run that is not finished is checked as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_zoo.engine.files import LIST, Entry, damage, entry, read_sealed, remedy, write_json, write_sealed
from cl_zoo.errors import RunError, first_line

if TYPE_CHECKING:
    from torch import Tensor

State = tuple[dict[str, "Tensor"], dict[str, Any], dict[str, Any]]
"""A checkpoint: model tensors by name, plugin state, notes."""


def states_in(folder: Path) -> list[Path]:
    """Folders of the states in a run's folder, the newest last."""
    found = [path for path in folder.glob("state-*") if path.name.removeprefix("state-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("state-")))


def steps_in(folder: Path, done: int | None = None) -> list[Path]:
    """Folders of the states within a task in a run's folder, the newest last; of the task after `done` others, or of all."""
    found = {
        path: re.fullmatch(r"state-(\d+)-step-(\d+)", path.name) for path in folder.glob("state-*-step-*")
    }
    places = {path: (int(read[1]), int(read[2])) for path, read in found.items() if read}
    return sorted((path for path, at in places.items() if done in (None, at[0])), key=places.__getitem__)


def read_state(folder: Path, device: str = "cpu") -> State | None:
    """The newest checkpoint in a run's folder as (model tensors, plugin state, notes), or `None` where there is none.

    Raises:
        RunError: it is there but damaged.
    """
    states = states_in(folder)
    return read_state_in(states[-1], device) if states else None


def write_state(
    place: Path,
    done: int,
    tensors: Mapping[str, Tensor],
    plugins: Mapping[str, Any],
    notes: Mapping[str, Any],
    written: Mapping[str, Entry] | None = None,
) -> dict[str, Entry]:
    """Write the files of a state after `done` tasks into an empty folder.

    Args:
        written: the run's other files so far, by name; they go into the list too.

    Returns:
        The entries of all files in the folder, by name.
    """
    from safetensors.torch import save_file

    flat: dict[str, Tensor] = {}
    tree = split_tensors(plugins, "", flat)
    for name, held in (("model", tensors), ("plugins", flat)):
        copies = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in held.items()}
        save_file(copies, place / f"{name}.safetensors")
    write_json(place / "state.json", {"done": done, "plugins": tree, **notes})
    made = {file.name: entry(file) for file in sorted(place.iterdir())}
    write_list(place, made, written or {})
    return {**made, LIST: entry(place / LIST)}


def write_list(place: Path, made: Mapping[str, Entry], written: Mapping[str, Entry]) -> None:
    """Write the list of a state's folder: its own files, and those that the run had written before."""
    write_sealed(place / LIST, {"files": made, "run": written})


def read_list(place: Path) -> dict[str, dict[str, Entry]] | None:
    """The list in a state's folder; `None` where the state is from before there were lists.

    Raises:
        RunError: it is damaged.
    """
    try:
        found = read_sealed(place / LIST, place.parent)
    except FileNotFoundError:
        return None
    return {"files": found["files"], "run": found["run"]}


def read_state_in(place: Path, device: str = "cpu") -> State:
    """What `write_state` wrote.

    Raises:
        RunError: it is damaged or cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name, wanted in (read_list(place) or {"files": {}})["files"].items():
        if wrong := damage(place / name, wanted):
            raise RunError(f"checkpoint {place}: {name} {wrong}; {remedy(place.parent)}")
    try:
        notes = json.loads((place / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(place / "model.safetensors", device=device)
        kept = load_file(place / "plugins.safetensors", device=device)
        # Copies: in the file a tensor lies anywhere, and matrix products of unaligned memory end in other last bits.
        kept = {name: tensor.clone() for name, tensor in kept.items()}
        plugins = _join_tensors(notes.pop("plugins"), kept)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(f"checkpoint {place}: {first_line(error)}; {remedy(place.parent)}") from None
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


def split_tensors(value: Any, path: str, flat: dict[str, Tensor]) -> Any:
    """JSON with `{"$tensor": path}` in place of every tensor, which goes to `flat` under its JSON pointer (RFC 6901).

    A matrix that lies column by column in memory, as what is made of experts that learn together, is told to: sums go through it in that order.
    """
    from torch import Tensor as TensorType

    if isinstance(value, TensorType):
        flat[path] = value
        turned = value.ndim == 2 and value.T.is_contiguous() and not value.is_contiguous()
        return {"$tensor": path, **({"turned": True} if turned else {})}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key == "$tensor":
                raise RunError(
                    f"plugin state {path or '/'}: the key {key!r} would not come back as it is; use other strings as keys"
                )
        escaped = {key: key.replace("~", "~0").replace("/", "~1") for key in value}
        return {key: split_tensors(item, f"{path}/{escaped[key]}", flat) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [split_tensors(item, f"{path}/{place}", flat) for place, item in enumerate(value)]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise RunError(
        f"plugin state {path or '/'}: a {type(value).__name__} is neither JSON nor a tensor; store numbers, strings, lists, tensors"
    )


def _join_tensors(value: Any, flat: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "$tensor" in value:
            found = flat[value["$tensor"]]
            return found.T.contiguous().T if value.get("turned") else found
        return {key: _join_tensors(item, flat) for key, item in value.items()}
    return [_join_tensors(item, flat) for item in value] if isinstance(value, list) else value
