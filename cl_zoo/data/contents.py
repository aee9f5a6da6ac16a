"""What identifies data: of a file its bytes, of a split what its records say, whatever it is called and wherever it lies."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_zoo.errors import no_file

if TYPE_CHECKING:
    from cl_zoo.data.splits import Split


def learnt(split: Split, count: int) -> str:
    """Identifies what the first samples of a split say, with the pictures that they name; of pictures inside a dataset as `content`, of
    those in a folder of shards their sizes."""
    return _short([*_pictures(split), split.entries.digest_of(count)])


def asked_and_expected(split: Split, count: int) -> tuple[str, str]:
    """Identify what the first samples of a split ask, with the pictures that they name, and what answers are scored against."""
    asked, expected = split.entries.digests_of(count)
    return _short([*_pictures(split), asked]), _short(expected)


def stamp(path: Path) -> tuple[str, int, int, int]:
    """What changes with a file and with who may read it, or with those in a folder."""
    try:
        about = [path.stat()]
        if os.path.isdir(path):
            about += [one.stat() for one in path.rglob("*") if one.is_file()]
    except OSError:  # reading it says why
        return str(path), -1, -1, -1
    sizes = sum(one.st_size for one in about)
    return str(path), sizes, max(one.st_mtime_ns for one in about), max(one.st_ctime_ns for one in about)


@lru_cache(maxsize=256)
def content(path: str, size: int, *times: int) -> str:
    """Digest of a file; of a folder, names and sizes of its files and the content of its small JSON files.

    Args:
        path: of a file as `stamp` gives it, with what shows that it was changed.

    Raises:
        OSError: it cannot be read, or is a pipe or a device.
    """
    if not os.path.isdir(path):
        if what := no_file(path):
            raise OSError(f"{path} {what}")
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(one for one in Path(path).rglob("*") if one.is_file()):
        digest.update(f"{file_path.relative_to(path).as_posix()} {file_path.stat().st_size}\n".encode())
        if file_path.suffix == ".json":
            digest.update(file_path.read_bytes())
    return digest.hexdigest()


def _pictures(split: Split) -> list[Any]:
    """Which pictures the names in a split's records stand for: folders, how they are read, and what a dataset holds inside."""
    plan, inside = split.plan, ""
    if split.shards is not None and os.path.isdir(plan.file):
        len(split)  # reads them; a shard's own size is a multiple of 10,240 bytes and shows little
        inside = split.shards.pictures
    elif not split.of_files:
        inside = content(*stamp(_own_folder(plan.file, plan.split)))
    return [plan.roots.names, plan.faithful, inside]


def _own_folder(dataset: Path, split: str) -> Path:
    """The folder of one split of a dataset where it has one, as `save_to_disk` writes them."""
    return dataset / split if (dataset / split).is_dir() else dataset


def _short(about: Any) -> str:
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
