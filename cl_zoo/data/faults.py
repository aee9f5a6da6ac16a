"""What may be wrong with a file, a record or a text: errors that a check of data tells apart, and words for a message."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from cl_zoo.errors import DataError, first_line

REPAIR = "repair or drop the record"


class Outside(DataError):
    """A path leads out of the data folder."""


class Undecoded(DataError):
    """A picture inside a dataset cannot be decoded."""


class EmptyAnswer(DataError):
    """An answer to learn holds nothing."""


def unread(error: OSError, otherwise: str = "check the data folder") -> str:
    """Why a file cannot be read and what to do about it, to follow its name in a sentence.

    Args:
        error: what the system said.
        otherwise: what to do where it is not a matter of rights.
    """
    reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or first_line(error)
    return f"{reason}; {'check who may read it' if isinstance(error, PermissionError) else otherwise}"


def leaving(name: PurePosixPath) -> str | None:
    """Why a path may lead out of the folder that it starts from, to follow it in a sentence; `None` where it does not."""
    if name.is_absolute():
        return "is absolute"
    return "holds '..'" if ".." in name.parts else None


def below(folder: Path, path: Path) -> bool:
    """Whether a path lies in a folder whatever links lie on the way."""
    return os.path.realpath(path).startswith(os.path.realpath(folder).rstrip(os.sep) + os.sep)


def halved(text: str) -> str | None:
    """Half of a character that a text holds, as JSON may write it: no tokenizer takes it; `None` in a sound text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return ascii(text[error.start])
    return None


def fault(
    file: Path | str, number: int, says: str, remedy: str, error: type[DataError] = DataError
) -> NoReturn:
    """Refuse one record.

    Raises:
        DataError: always, of the given kind.
    """
    raise error(f"{file}, record {number}: {says}; {remedy}")


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}
    return kinds.get(type(value), "an object")
