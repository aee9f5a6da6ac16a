"""JSON lists and JSON lines, read whole, with or without a byte-order mark; a file that is missing, cut off or no JSON is named with place and remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from cl_zoo.data.faults import REPAIR, fault, kind_of, unread
from cl_zoo.errors import DataError, no_file

LFS = b"version https://git-lfs.github.com/spec/"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
OTHERS = {
    b"PAR1": "is a Parquet file; write 'format: datasets'",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"\x1f\x8b": "is a gzip file; unpack it",
}
"""What files of other kinds begin with, and what to do about them."""
TAR = slice(257, 262)
"""Where a tar archive says that it is one."""
NUMBER = re.compile(r"-|\.|[eE][+-]?")
"""What may be left over of a number that is cut."""
LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON list or of JSON lines, whatever the name ends in.

    Raises:
        DataError: the file cannot be read, is broken or truncated, or holds something else than objects.
    """
    text = read_text(path)
    records: Any
    if path.suffix == ".jsonl" and not text.lstrip().startswith("["):
        records = _lines(path, text)
    else:
        try:
            records = json.loads(text)
        except ValueError as error:
            if not (text.lstrip().startswith("{") and str(error).startswith("Extra data")):
                _broken(path, text, error)
            records = _lines(path, text)
        except RecursionError:
            raise DataError(f"{path}: nested too deeply to be records; fetch the file again") from None
    if not isinstance(records, list):
        kind = kind_of(records)
        raise DataError(
            f"{path}: holds {kind} where a list of records is expected; pass the instruction file itself"
        )
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            fault(path, number, f"is {kind_of(record)}, not an object", REPAIR)
    return records


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: the file cannot be read, is broken or truncated.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        _broken(path, text, error)
    except RecursionError:
        raise DataError(f"{path}: nested too deeply; fetch the file again") from None


def lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a file of JSON lines that are not blank, with their numbers from 1.

    Only a newline ends a line: inside a JSON text U+2028, U+0085 and the like are letters as others are.
    """
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def read_text(path: Path) -> str:
    """A UTF-8 file, or one of UTF-16 that says so by its byte-order mark.

    Raises:
        DataError: it is missing, empty, no text, or only stands for the file (a Git LFS pointer).
    """
    try:
        if what := no_file(path):
            raise DataError(f"{path}: {what}; pass the path of a file")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {unread(error)}") from None
    if content.startswith(LFS):
        raise DataError(f"{path}: is a Git LFS pointer, not the data; fetch the file itself")
    for start, says in OTHERS.items():
        if content.startswith(start):
            raise DataError(f"{path}: {says}")
    if content[TAR] == b"ustar":
        raise DataError(f"{path}: is a tar archive; write 'format: webdataset' for shards, else unpack it")
    if not content.strip():
        raise DataError(f"{path}: is empty; fetch the file again")
    try:
        return content.decode("utf-16" if content.startswith(UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        reason = "is truncated" if error.reason == "unexpected end of data" else "is no UTF-8 text"
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: {reason}; fetch the file again") from None


def _lines(path: Path, text: str) -> list[Any]:
    found, numbered = [], list(lines(text))
    for number, line in numbered:
        try:
            found.append(json.loads(line))
        except ValueError as error:
            _broken(path, line, error, line=number, whole=number == numbered[-1][0])
    return found


def _broken(
    path: Path, text: str, error: ValueError, *, line: int | None = None, whole: bool = True
) -> NoReturn:
    if not isinstance(error, json.JSONDecodeError):  # a number of thousands of digits
        raise DataError(f"{path}: {error}; fetch the file again") from None
    place = f"line {line or error.lineno}, column {error.colno}"
    if whole and _truncated(text, error):
        raise DataError(f"{path}, {place}: the file is truncated; fetch it again") from None
    raise DataError(f"{path}, {place}: broken JSON ({error.msg}); repair or fetch the file again") from None


def _truncated(text: str, error: json.JSONDecodeError) -> bool:
    """Whether reading failed because the text ends, not because of what it says."""
    rest = text[error.pos :].strip()
    if error.msg.startswith("Unterminated string") or not rest or NUMBER.fullmatch(rest):
        return True
    if error.msg.startswith("Invalid \\"):
        return len(rest) <= 6 and '"' not in rest
    return any(word.startswith(rest) for word in LITERALS)
