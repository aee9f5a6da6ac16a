"""What stands in a training mix: texts and pictures of record files and of folders, read as they come.

A mix is a file of records (`.json`, `.jsonl`), or a folder in which all such files and all picture files count, at any depth. Of a record every text
counts, whatever its key; a text that ends as a picture's name does names one: from the folder of the record file, from one of `images`, or
the one picture in the folders of the mix whose path ends so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cl_zoo.data.files import read_records
from cl_zoo.errors import OptionError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
RECORDS = (".json", ".jsonl")
WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation."""
    return WORD.findall(text.lower())


def grams(said: Sequence[str], length: int) -> list[str]:
    """All runs of `length` words; none where there are fewer."""
    return [" ".join(said[start : start + length]) for start in range(len(said) - length + 1)]


@dataclass(frozen=True)
class Record:
    """A record of a mix.

    Attributes:
        place: file and number from 1.
        texts: every text in it.
        pictures: files of its pictures that are there.
        missing: number of those that are not.
    """

    place: str
    texts: tuple[str, ...]
    pictures: tuple[str, ...]
    missing: int = 0


@dataclass(frozen=True)
class Mix:
    """Record files and pictures.

    Attributes:
        files: of records.
        loose: pictures in folders, named by a record or not.
        images: folders that names in records start from, after the record file's own.
    """

    files: tuple[Path, ...]
    loose: tuple[str, ...]
    images: tuple[Path, ...]

    @cached_property
    def records(self) -> list[Record]:
        """All records, read once.

        Raises:
            DataError: a file holds no records.
        """
        return [one for file in self.files for one in self._read(file)]

    @property
    def pictures(self) -> list[str]:
        """All pictures that are there, each once."""
        named = (picture for record in self.records for picture in record.pictures)
        return list(dict.fromkeys([*self.loose, *named]))

    @property
    def missing(self) -> int:
        """How many pictures records name that are not there."""
        return sum(record.missing for record in self.records)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self.loose:
            found.setdefault(Path(path).name, []).append(path)
        return found

    def _read(self, file: Path) -> Iterator[Record]:
        bases = (file.parent, *self.images)
        for number, record in enumerate(read_records(file), 1):
            texts = [text for text in _texts(record) if text]
            named = [text for text in texts if text.lower().endswith(PICTURES) and "\n" not in text]
            found = [path for name in named if (path := self._found(name, bases)) is not None]
            said = tuple(text for text in texts if text not in named)
            yield Record(f"{file}, record {number}", said, tuple(found), len(named) - len(found))

    def _found(self, name: str, bases: Sequence[Path]) -> str | None:
        """The picture of a name, `None` where it is not there or several end so."""
        for base in bases:
            if os.path.isfile(path := base / name):  # false for what is too long to be a name
                return str(path.resolve())
        ends = "/" + name.lstrip("./")
        alike = [path for path in self._by_name.get(Path(name).name, ()) if path.endswith(ends)]
        return alike[0] if len(alike) == 1 else None


def read_mix(places: Sequence[str | Path], images: Sequence[str | Path] = ()) -> Mix:
    """The mix in some files and folders.

    Args:
        images: further folders that picture names in records start from.

    Raises:
        OptionError: a place is not there, or nothing that counts is in any of them.
    """
    files, loose = [], []
    for place in map(Path, places):
        if not place.exists():
            raise OptionError(f"--mix {place}: there is no such file or folder")
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.suffix.lower() in RECORDS or (path == place and path.is_file()):
                files.append(path)
            elif path.suffix.lower() in PICTURES and path.is_file():
                loose.append(str(path.resolve()))
    if not files and not loose:
        kinds = ", ".join((*RECORDS, *PICTURES))
        raise OptionError(
            f"--mix {', '.join(map(str, places))}: holds neither records nor pictures ({kinds})"
        )
    return Mix(tuple(files), tuple(loose), tuple(map(Path, images)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
