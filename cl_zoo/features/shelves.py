"""Features on disk, computed once for all methods, seeds and processes.

A shelf is two files. `NAME.data` holds the numbers of all tensors, one after the other, and is read through a memory map;
`NAME.index` holds one record of fixed size per tensor: key, place, type, shape and checksums. Writers take a lock on the index,
write the data first and the record last, so a record never tells of data that is not there. What a killed writer left
behind the last record is overwritten by the next one. Readers take no lock and look at the index again only for a key
that they do not know.

A feature that was computed in a batch of other images may differ from one computed now in its last bits. A run that reads
a shelf therefore repeats another bit for bit only where both read the same shelf: it is used where a user asks for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import re
import shutil
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cl_zoo.errors import RunError

MAGIC = b"cl-zoo shelf 1\n\0"
HEADER = len(MAGIC) + 16
"""Bytes before the first record: what the file is, and a random number that no other shelf has."""
RECORD = struct.Struct("<32sQQ8sB3x6II")
"""Digest of the key, offset, bytes, type, axes, shape, checksum of the data; its own checksum (4 bytes) follows."""
STRIDE = RECORD.size + 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST_AXES = 6
RESERVE = 2**30
"""Bytes of a disk that are left to checkpoints and answers."""


class Place(NamedTuple):
    """Where a tensor lies in the data file, and how to read it."""

    offset: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    checksum: int


class Shelf:
    """Tensors by key in a folder, for any number of processes at a time.

    Args:
        folder: made where it is missing.
        name: says what computed the tensors; a shelf never mixes encoders.
        limit_bytes: size of all shelves of the folder together after which nothing more is stored here; `None` fills the disk up to
            `RESERVE`. Each process looks before it writes, so they may pass it by a tensor each.

    Raises:
        RunError: the folder cannot be used, or the index is damaged.
    """

    def __init__(self, folder: Path, name: str, limit_bytes: int | None = None) -> None:
        stem = file_stem(name)
        self.index, self.data = folder / f"{stem}.index", folder / f"{stem}.data"
        self.limit_bytes = limit_bytes
        self._places: dict[bytes, Place] = {}
        self._read, self._end, self._number = 0, 0, b""
        self._map: mmap.mmap | None = None
        self._storing = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._refresh()
        except OSError as error:
            raise RunError(f"--cache {folder}: {error.strerror}; pass a folder that can be written") from None

    def __len__(self) -> int:
        self._refresh()
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        """Whether the index tells of a key; its data is not read."""
        digest = _digest(key)
        if digest not in self._places:
            self._refresh()
        return digest in self._places

    def get(self, key: bytes) -> Tensor | None:
        """A copy of the tensor on the CPU; `None` where the key is unknown or its data was lost with the machine's power.

        Raises:
            RunError: the index is damaged.
        """
        digest = _digest(key)
        if digest not in self._places:
            self._refresh()
        place = self._places.get(digest)
        if place is None:
            return None
        content = self._content(place)
        if len(content) < place.size or zlib.crc32(content) != place.checksum:
            del self._places[digest]  # computed again and stored under a later record, which then counts
            return None
        if not content:
            return torch.empty(place.shape, dtype=place.dtype)
        return torch.frombuffer(content, dtype=place.dtype).reshape(place.shape)

    def put(self, key: bytes, tensor: Tensor) -> None:
        """Store a tensor, unless another process just did, the limit is reached or the disk is full.

        Raises:
            ValueError: neither fp32, bf16 nor fp16, or more than six axes.
            RunError: the index is damaged.
        """
        if tensor.dtype not in NAMES or tensor.ndim > MOST_AXES:
            raise ValueError(
                f"a shelf holds fp32, bf16 and fp16 of up to {MOST_AXES} axes, not {tensor.dtype} of {tensor.ndim}"
            )
        if not self._storing:
            return
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        content = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        try:
            with self._locked() as (index, data):
                self._append(_digest(key), tensor, content, index, data)
        except (
            OSError
        ) as error:  # no space, a quota, a folder that may only be read: the run itself can go on
            self._stop(str(error.strerror))

    def _append(self, digest: bytes, tensor: Tensor, content: bytes, index: int, data: int) -> None:
        """Data first, record last; the lock is held."""
        self._refresh()
        if digest in self._places:
            return
        if self.limit_bytes is not None and self._taken() + len(content) + STRIDE > self.limit_bytes:
            self._stop(
                f"the shelves of this folder reach the limit of {self.limit_bytes / 2**30:.4g} GiB; raise --cache-limit or delete what no run needs (cl-zoo clean --cache)"
            )
            return
        if shutil.disk_usage(self.data.parent).free < len(content) + RESERVE:
            self._stop("the disk is almost full")
            return
        _write(data, content, self._end)
        shape = (*tensor.shape, *[0] * (MOST_AXES - tensor.ndim))
        about = NAMES[tensor.dtype].encode(), tensor.ndim, *shape, zlib.crc32(content)
        record = RECORD.pack(digest, self._end, len(content), *about)
        _write(index, record + zlib.crc32(record).to_bytes(4, "little"), self._read)
        self._refresh()

    @contextmanager
    def _locked(self) -> Iterator[tuple[int, int]]:
        """Descriptors of index and data while no other process writes; opened anew, as a forked child shares old ones' locks."""
        index = os.open(self.index, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(index, fcntl.LOCK_EX)
            if os.fstat(index).st_size < HEADER:
                _write(index, MAGIC + os.urandom(HEADER - len(MAGIC)), 0)
            data = os.open(self.data, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                yield index, data
            finally:
                os.close(data)
        finally:
            os.close(index)

    def _taken(self) -> int:
        """Bytes of all shelves of the folder, those of other encoders and of older code among them."""
        with os.scandir(self.data.parent) as files:
            return sum(file.stat().st_size for file in files if file.name.endswith((".data", ".index")))

    def _stop(self, reason: str) -> None:
        self._storing = False
        warnings.warn(f"{self.data}: {reason}; no further features are stored, the run goes on", stacklevel=3)

    def _refresh(self) -> None:
        """Read what was added to the index since the last look."""
        try:
            stream = self.index.open("rb")
        except FileNotFoundError:
            self._forget(b"")
            return
        with stream:
            size, header = os.fstat(stream.fileno()).st_size, stream.read(HEADER)
            if len(header) < HEADER:
                self._forget(b"")
                return
            if not header.startswith(MAGIC):
                raise RunError(f"{self.index}: not an index of features; {self._remedy}")
            if header != self._number or size < self._read:
                self._forget(header)
            if size - self._read >= STRIDE:
                stream.seek(self._read)
                self._learn(stream.read())

    def _learn(self, content: bytes) -> None:
        for start in range(0, len(content) - STRIDE + 1, STRIDE):
            record, mark = content[start : start + RECORD.size], content[start + RECORD.size : start + STRIDE]
            if zlib.crc32(record) != int.from_bytes(mark, "little"):
                if start + 2 * STRIDE > len(content):
                    return  # the last one: a writer is at it, or was killed there
                number = (self._read - HEADER) // STRIDE + 1
                raise RunError(f"{self.index}: record {number} is damaged; {self._remedy}")
            digest, offset, size, dtype, axes, *rest = RECORD.unpack(record)
            kind = DTYPES[dtype.rstrip(b"\0").decode()]
            self._places[digest] = Place(offset, size, kind, tuple(rest[:axes]), rest[MOST_AXES])
            self._end = max(self._end, offset + size)
            self._read += STRIDE

    def _forget(self, number: bytes) -> None:
        """The files are new: somebody deleted the old ones."""
        self._places.clear()
        self._read, self._end, self._number, self._map = HEADER, 0, number, None

    def _content(self, place: Place) -> bytearray:
        end = place.offset + place.size
        if self._map is None or len(self._map) < end:
            try:
                with self.data.open("rb") as stream:
                    self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):  # gone, or empty
                return bytearray()
        return bytearray(memoryview(self._map)[place.offset : end])

    @property
    def _remedy(self) -> str:
        return f"delete {self.index.name} and {self.data.name}, what they held is computed again"


def file_stem(name: str) -> str:
    """A file name for any text; two texts never share one."""
    plain = re.sub(r"[^\w.-]", "_", name)
    if plain == name and not name.startswith("."):
        return name
    return f"{plain}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=32).digest()


def _write(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        done = os.pwrite(descriptor, view, offset)
        view, offset = view[done:], offset + done
