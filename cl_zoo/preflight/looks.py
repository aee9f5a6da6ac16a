"""Image files looked at in parallel: is each one there, an image, and complete to its end; which are the same.

A look reads a file's header and its last bytes. That finds a file that is missing, empty, no image, or cut off: a JPEG must
end with its EOI marker, a PNG with its IEND chunk, a GIF with its trailer, and a WebP or BMP must be as long as its header
says. It does not find damage between header and end (a bad sector, a hole that a broken copy left, a wrong checksum), nor a
cut in other formats, which are only opened: those take `decode=True`, which decodes every pixel.

Of a frame of a video (`cl_zoo.videos`) the video is looked at: its first frame is decoded, and as many frames must be there as its header says.

Equal files are found without reading all of all files: only those that agree in length and in their last bytes are read whole.
Processes are spawned, and load neither torch nor any model.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from PIL import Image, UnidentifiedImageError

from cl_zoo.errors import RunError, no_file
from cl_zoo.images.frames import BadVideo, facts, read_frame
from cl_zoo.images.kinds import kinds
from cl_zoo.videos import Frame, file_of, frame_of

FOUND = TypeVar("FOUND")
Advance = Callable[[int], None]
"""Told how many more files are done."""

CHUNK = 256
"""Files per message to a process: enough to hide the message, few enough for a bar that moves."""
TAIL = 1 << 12
SEARCHED = 1 << 16
"""Bytes at the end in which an end marker may stand: cameras and editors append bytes of their own."""
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB\x60\x82"}
OUTLINE = 16
"""Perceptual hashes have 16 × 16 bits; with the usual 8 × 8, rendered scenes and icons that differ come out equal."""


REMEDIES = {"missing": "fetch it, or drop the record", "forbidden": "check who may read it"}


class Look(NamedTuple):
    """What one file is.

    Attributes:
        fault: empty where the file is fine, else `missing`, `forbidden`, `empty`, `no image`, `truncated` or `unreadable`.
        words: what is wrong, to follow the file's name in a sentence.
        size: bytes, of a frame those of its video.
        tail: hash of the last bytes; equal files have equal ones.
        outline: perceptual hash, 32 bytes; `None` where none was wanted or the picture is of one tone.
        width, height: pixels, as the file has them.
        kinds: of `cl_zoo.images.kinds.KINDS`.
    """

    fault: str
    words: str
    size: int = 0
    tail: bytes = b""
    outline: bytes | None = None
    width: int = 0
    height: int = 0
    kinds: tuple[str, ...] = ()

    @property
    def remedy(self) -> str:
        """What to do about a fault."""
        return REMEDIES.get(self.fault, "fetch the file again")


def looks(
    paths: Sequence[str],
    *,
    decode: bool = False,
    outline: bool = False,
    processes: int = 1,
    advance: Advance | None = None,
) -> list[Look]:
    """Look at every file; the order and the result do not depend on the number of processes.

    Args:
        paths: files, each once.
        decode: decode every pixel.
        outline: also compute perceptual hashes, which decodes too.
        processes: 1 works in this process.
        advance: told how many more files are done.

    Raises:
        RunError: a process died.
    """
    return _spread(partial(_look_at_all, decode=decode, outline=outline), paths, processes, advance)


def equal_files(paths: Sequence[str], found: Sequence[Look], processes: int = 1) -> dict[str, str]:
    """For every file that equals another one byte by byte: the name of its group, a hash of the content.

    Args:
        paths: files.
        found: what `looks` said about them, in the same order.
        processes: as in `looks`.
    """
    alike: dict[tuple[int, bytes], list[str]] = defaultdict(list)
    for path, look in zip(paths, found, strict=True):
        if not look.fault:
            alike[look.size, look.tail].append(path)
    candidates = [path for group in alike.values() if len(group) > 1 for path in group]
    digests = _spread(_digest_all, candidates, processes, None)
    groups: dict[str, list[str]] = defaultdict(list)
    for path, digest in zip(candidates, digests, strict=True):
        groups[digest].append(path)
    return {path: digest for digest, group in groups.items() if len(group) > 1 for path in group}


def near_pairs(left: Sequence[bytes], right: Sequence[bytes], distance: int) -> Iterator[tuple[int, int]]:
    """Places (in `left`, in `right`) of perceptual hashes that differ in at most `distance` of their 256 bits.

    Every pair is compared: first 64 of the bits, then all of them where those agree well enough.
    """
    if not left or not right:
        return
    import numpy as np

    rows = np.frombuffer(b"".join(left), np.uint64).reshape(len(left), -1)  # (left, 4)
    columns = np.frombuffer(b"".join(right), np.uint64).reshape(len(right), -1)  # (right, 4)
    for place, row in enumerate(rows):
        (near,) = np.nonzero(np.bitwise_count(columns[:, 0] ^ row[0]) <= distance)
        if len(near):
            exact = np.bitwise_count(columns[near] ^ row).sum(1, dtype=np.int64) <= distance
            yield from ((place, int(other)) for other in near[exact])


def outline_of(image: Image.Image) -> bytes | None:
    """A picture's perceptual hash (32 bytes), `None` where it has one tone and so no outline."""
    import imagehash
    import numpy as np

    small = image.convert("L")
    low, high = small.getextrema()
    if low == high:
        return None
    return np.packbits(imagehash.phash(small, hash_size=OUTLINE).hash).tobytes()


def _spread(
    work: Callable[[Sequence[str]], list[FOUND]],
    paths: Sequence[str],
    processes: int,
    advance: Advance | None,
) -> list[FOUND]:
    """`work` on chunks of the paths, in this process or in several; results in the order of the paths."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    found: list[list[FOUND]] = [[] for _ in chunks]
    for place, results in _results(work, chunks, min(processes, len(chunks))):
        found[place] = results
        if advance is not None:
            advance(len(results))
    return [one for results in found for one in results]


def _results(
    work: Callable[[Sequence[str]], list[FOUND]], chunks: Sequence[Sequence[str]], processes: int
) -> Iterator[tuple[int, list[FOUND]]]:
    if processes <= 1:
        yield from ((place, work(chunk)) for place, chunk in enumerate(chunks))
        return
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        waiting = {pool.submit(work, chunk): place for place, chunk in enumerate(chunks)}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    except BrokenProcessPool as error:
        raise RunError(
            "a process that read images died, perhaps for want of memory; run the same command with --jobs 1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _look_at_all(paths: Sequence[str], decode: bool, outline: bool) -> list[Look]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow finds odd but reads
        return [_look_at(path, decode, outline) for path in paths]


def _look_at(path: str, decode: bool, outline: bool) -> Look:
    frame = frame_of(Path(path))
    place = path if frame is None else str(frame.video)
    try:
        if what := no_file(place):
            return Look("no image", what)
        with open(place, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                return Look("empty", "has no content")
            if frame is not None:
                return _of_video(frame, file, size, decode, outline)
            return _open(file, size, decode, outline)
    except (FileNotFoundError, NotADirectoryError):
        return Look("missing", "is missing")
    except PermissionError:
        return Look("forbidden", "may not be read")
    except OSError as error:
        return Look("unreadable", f"cannot be read: {error.strerror or error}")


def _open(file: IO[bytes], size: int, decode: bool, outline: bool) -> Look:
    """Open an image and, where wanted, decode it. Damaged files raise nearly anything, SyntaxError included."""
    fault = _too_short(file, size)
    if fault:
        return Look("truncated", fault)
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        return Look("no image", "is no image that Pillow knows")
    except Image.DecompressionBombError:
        return Look("unreadable", "has more pixels than Pillow opens")
    except Exception as error:
        return Look("unreadable", f"cannot be opened: {_words(error)}")
    # Pillow stops behind a JPEG's header, so a thumbnail inside it cannot lend its own end marker.
    start = min(file.tell(), size) if image.format == "JPEG" else 0
    file.seek(max(0, size - TAIL))
    end = file.read()
    fault = _endless(file, image.format or "", size, start, end)
    if fault:
        return Look("truncated", fault)
    tail = hashlib.blake2b(end, digest_size=16).digest()
    about = (image.width, image.height, kinds(image))
    if not (decode or outline):
        return Look("", "", size, tail, None, *about)
    try:
        file.seek(0)
        if not decode:
            image.draft("L", (4 * OUTLINE, 4 * OUTLINE))  # a JPEG decodes at an eighth of its size
        image.load()
        return Look("", "", size, tail, outline_of(image) if outline else None, *about)
    except Exception as error:
        kind = "truncated" if "truncated" in str(error) else "unreadable"
        return Look(kind, f"cannot be decoded: {_words(error)}")


def _of_video(frame: Frame, file: IO[bytes], size: int, decode: bool, outline: bool) -> Look:
    try:
        known = facts(frame.video)
        image = read_frame(frame) if decode or outline else None
    except BadVideo as error:
        return Look(error.fault, error.words)
    file.seek(max(0, size - TAIL))
    about = f"{frame.number} {frame.parts}".encode()
    tail = hashlib.blake2b(file.read() + about, digest_size=16).digest()
    looks_as = outline_of(image) if outline and image is not None else None
    odd = ["turned"] * bool(known.rotation) + ["short video"] * (len(known.times) < frame.parts)
    return Look("", "", size, tail, looks_as, known.width, known.height, tuple(odd))


def _too_short(file: IO[bytes], size: int) -> str:
    """What says that a WebP or BMP is shorter than its header says; empty where nothing does."""
    head = file.read(12)
    file.seek(0)
    said = 0
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        said = int.from_bytes(head[4:8], "little") + 8
    elif head[:2] == b"BM":
        said = int.from_bytes(head[2:6], "little")
    return f"is truncated: it has {size:,} of the {said:,} bytes that its header names" if said > size else ""


def _endless(file: IO[bytes], kind: str, size: int, start: int, end: bytes) -> str:
    """What says that a JPEG, PNG or GIF ends too early; empty where nothing does.

    Args:
        size: bytes of the file.
        start: where the header ends.
        end: the file's last bytes.
    """
    if kind in ENDS and ENDS[kind] not in end[max(0, start - (size - len(end))) :]:
        file.seek(max(start, size - SEARCHED))
        if ENDS[kind] not in file.read():
            return f"is truncated: the {kind} ends without its end marker"
    if kind == "GIF" and not end.rstrip(b"\0").endswith(b";"):
        return "is truncated: the GIF ends without its trailer"
    return ""


def _digest_all(paths: Sequence[str]) -> list[str]:
    return [_digest(path) for path in paths]


def _digest(path: str) -> str:
    frame = frame_of(Path(path))
    with open(file_of(Path(path)), "rb") as file:
        digest = hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()
    return digest if frame is None else f"{digest} {frame.number} {frame.parts}"


def _words(error: Any) -> str:
    return " ".join(str(error).split()) or type(error).__name__
