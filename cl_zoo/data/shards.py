"""Shards of WebDataset: tar files in which what belongs together stands together, `000123.jpg` beside `000123.json`.

Nothing is unpacked: a shard's headers are read once, the texts with them, and a picture by its place in the file when it is asked for. Names of
members are keys and never paths. Of a sample `.json` (an object), `.txt` and one picture are read; other endings are left alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from cl_zoo.data.faults import unread
from cl_zoo.errors import DataError, cut, no_file

PACKED = ("datasets", "webdataset")
"""Formats that hold pictures beside their records."""
PICTURES = ("bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp")
MOST = {"json": 1 << 24, "txt": 1 << 24, **dict.fromkeys(PICTURES, 1 << 28)}
"""Endings that are read, and how many bytes a member of each may have."""
NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
"""Key and ending of a member: the ending begins at the first full stop of the last part."""
SPLITS = ("train", "validation", "test")
AGAIN = "write the shard again"


class Member(NamedTuple):
    """Part of a sample: the name up to its ending, the ending, and where it lies in the shard, in bytes."""

    key: str
    ending: str
    start: int
    size: int


class Shards:
    """The samples of a split in tar files.

    Args:
        place: a tar file, or a folder of them.
        split: of a folder, the shards whose names begin so; all of them where no name begins with a split's.

    Raises:
        DataError: there is no such shard.
    """

    def __init__(self, place: Path, split: str) -> None:
        self.files = _files(place, split)
        self._shards, self._starts, self._sizes = array("Q"), array("Q"), array("Q")

    @property
    def fingerprint(self) -> str:
        """Changes with the shards' names, sizes and times."""
        about = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]
        return hashlib.sha256(repr(about).encode()).hexdigest()

    @property
    def pictures(self) -> str:
        """Digest of the pictures' sizes, once the shards are read; their content is not read for it."""
        return hashlib.sha256(self._sizes.tobytes()).hexdigest()

    def read(self, columns: Mapping[str, str]) -> list[dict[str, Any]]:
        """A record for each sample: what its `.json` says, `txt`, the name of its picture as `image`, its key where it has no id.

        Args:
            columns: keys of a record to the keys that stand for them in the shards.

        Raises:
            DataError: a shard cannot be read, is cut off or damaged, or a member is a link, too large or no record.
        """
        records, renamed = [], {there: key for key, there in columns.items()}
        self._shards, self._starts, self._sizes = array("Q"), array("Q"), array("Q")
        for place, file in enumerate(self.files):
            for key, members in groupby(_members(file), lambda one: one.key):
                said, picture = _sample(file, key, list(members))
                record = {renamed.get(name, name): value for name, value in said.items()}
                if record.get("question_id") is None and record.get("id") is None:
                    record["question_id"] = key
                if picture is not None:
                    record.pop("images", None)
                    record["image"] = f"{key}.{picture.ending}"
                records.append(record)
                self._shards.append(place)
                self._starts.append(picture.start if picture else 0)
                self._sizes.append(picture.size if picture else 0)
        return records

    def picture(self, number: int) -> bytes | None:
        """The file of a sample's picture, by the sample's number from 1; `None` where it has none."""
        start, size = self._starts[number - 1], self._sizes[number - 1]
        return _part(self.files[self._shards[number - 1]], start, size) if start else None


def _files(place: Path, split: str) -> Sequence[Path]:
    if place.is_file():
        return [place]
    shards = sorted(file for file in place.glob("*.tar") if file.is_file())
    if any(file.name.startswith(SPLITS) for file in shards) or split not in SPLITS:
        shards = [file for file in shards if file.name.startswith(split)]
    if not shards:
        raise DataError(f"{place}: holds no shard {split}*.tar; put the tar files there, or name one of them")
    return shards


def _members(file: Path) -> Iterator[Member]:
    """Those that are read, in their order."""
    try:
        if what := no_file(file):
            raise DataError(f"{file}: {what}; name a tar file")
        end = file.stat().st_size
        with tarfile.open(file, "r:") as shard:
            for one in shard:
                found = NAME.fullmatch(one.name)
                if one.isdir() or found is None or (ending := found[2].lower()) not in MOST:
                    continue
                if not one.isreg() or one.issparse():
                    _refuse(file, one.name, "is a link, a device or a file with holes", "write plain files")
                if one.size > MOST[ending]:
                    says = f"has {one.size:,} bytes where .{ending} may have {MOST[ending]:,}"
                    _refuse(file, one.name, says, "leave it out")
                if one.offset_data + one.size > end:
                    _refuse(file, one.name, "is cut off", "fetch the shard again")
                yield Member(found[1], ending, one.offset_data, one.size)
            rest = _part(file, shard.offset, tarfile.BLOCKSIZE)
    except tarfile.TarError as error:
        remedy = "fetch it again, or unpack it where it is compressed"
        raise DataError(f"{file}: is no tar archive, or a damaged one ({error}); {remedy}") from None
    except OSError as error:
        raise DataError(f"{file}: {unread(error)}") from None
    if rest.strip(b"\0"):  # the reader takes a header that it cannot read for the end
        raise DataError(f"{file}: is damaged from byte {shard.offset:,} on; fetch the shard again")


def _sample(file: Path, key: str, members: Sequence[Member]) -> tuple[dict[str, Any], Member | None]:
    """What the texts of a sample say, and its picture."""
    said: dict[str, Any] = {}
    pictures = [one for one in members if one.ending in PICTURES]
    if len(pictures) > 1:
        _refuse(file, key, f"has {len(pictures)} pictures where a sample has one", "leave the others out")
    for one in members:
        if one.ending in PICTURES:
            continue
        try:
            text = _part(file, one.start, one.size).decode("utf-8-sig")
            value = json.loads(text) if one.ending == "json" else {"txt": text}
        except (ValueError, RecursionError):
            kind = "JSON" if one.ending == "json" else "UTF-8 text"
            _refuse(file, f"{key}.{one.ending}", f"is no {kind}", AGAIN)
        if not isinstance(value, dict):
            _refuse(file, f"{key}.{one.ending}", "is no object", "write the record as one")
        said |= value
    return said, pictures[0] if pictures else None


def _part(file: Path, start: int, size: int) -> bytes:
    with open(file, "rb") as opened:
        opened.seek(start)
        return opened.read(size)


def _refuse(file: Path, member: str, says: str, remedy: str) -> NoReturn:
    raise DataError(f"{file}, member {cut(member)}: {says}; {remedy}")
