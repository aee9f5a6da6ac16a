"""Files of a run: written whole, listed with size and SHA-256, and told from damaged ones when they are read.

A list cannot hold its own digest, so a file that lists others is sealed: it holds the SHA-256 of its own text without that line,
and its text is the only spelling of what it says. Every changed bit of it shows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cl_zoo.errors import RunError, first_line

LIST = "files.json"
"""The list in a state's folder."""

SEAL = "seal"

Entry = Mapping[str, Any]
"""Size in bytes and SHA-256 of a file: `{"size": 512, "sha256": "3f…"}`."""


def canonical(value: Any) -> str:
    """JSON in one spelling only."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def entry(file: Path) -> Entry:
    """Size and digest of a file, read once and in pieces."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256")
        return {"size": opened.tell(), "sha256": digest.hexdigest()}


def entry_of(content: bytes) -> Entry:
    """The same of what a file is going to hold."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def damage(file: Path, wanted: Entry) -> str | None:
    """What is wrong with a listed file, as the end of a sentence that begins with its name; `None` where it is whole."""
    if not file.is_file():
        return "is missing"
    try:
        size = file.stat().st_size
        if size != wanted["size"]:
            return f"holds {size} of {wanted['size']} bytes"
        if entry(file)["sha256"] != wanted["sha256"]:
            return "is not what was written (its SHA-256 differs)"
    except OSError as error:
        return f"cannot be read ({first_line(error)})"
    return None


def remedy(folder: Path) -> str:
    """What to do about a damaged file in a run's folder."""
    return f"`cl-zoo verify {folder} --repair` takes out what is damaged, and the command that made the run makes it anew"


def write_json(path: Path, value: Any, *, sort: bool = True) -> None:
    """Write a JSON file under its final name in one go, its keys in alphabetical order or as they are."""
    write_text(path, _text(value, sort))


def write_text(path: Path, text: str) -> None:
    """Write a file under its final name in one go; where that fails nothing is left."""
    draft = path.with_name(path.name + ".draft")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object that shows when it was changed."""
    plain = json.loads(json.dumps(value))  # keys as they come back: sorted as texts
    write_json(path, {**plain, SEAL: _digest(plain)})


def read_sealed(path: Path, folder: Path) -> dict[str, Any]:
    """The object without its seal; one that was written before there were seals is taken as it is.

    Args:
        folder: of the run, for messages.

    Raises:
        FileNotFoundError: there is none.
        RunError: it cannot be read, or was changed since it was written.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        value = json.loads(text)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({first_line(error)}); {remedy(folder)}") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} holds no object; {remedy(folder)}")
    seal = value.pop(SEAL, None)
    whole = seal == _digest(value) and text == _text({**value, SEAL: seal}) if seal else "files" not in value
    if not whole:
        raise RunError(f"{path} was changed after it was written; {remedy(folder)}")
    return value


def _text(value: Any, sort: bool = True) -> str:
    return json.dumps(value, indent=1, sort_keys=sort, ensure_ascii=False) + "\n"


def _digest(value: Any) -> str:
    return hashlib.sha256(_text(value).encode()).hexdigest()
