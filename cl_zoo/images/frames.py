"""Frames of videos as pictures, read by PyAV: a frame is looked up by its time, so that no more is decoded than from the key frame before it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from cl_zoo.errors import DataError, OptionError, printable
from cl_zoo.videos import FRAMES, Frame

MISSING = "reading a video takes the package av; pip install 'cl-zoo[video]'"


class BadVideo(Exception):
    """A video cannot be used.

    Attributes:
        fault: `no image`, `truncated` or `unreadable`.
        words: why, to follow the file's name in a sentence.
    """

    def __init__(self, fault: str, words: str) -> None:
        super().__init__(words)
        self.fault, self.words = fault, words


class Facts(NamedTuple):
    """What is known of a video without decoding more than its first frame.

    Attributes:
        times: when its frames are shown, in order, in the stream's own unit.
        width, height: pixels, as it is stored.
        rotation: degrees that a player turns its frames counterclockwise.
    """

    times: tuple[int, ...]
    width: int
    height: int
    rotation: int


def frames(video: str | Path, count: int = FRAMES) -> list[Path]:
    """The images that stand for a video: the middle frame of each of `count` equal parts, in order, none of them read yet.

    Args:
        video: a file.
        count: how many.

    Raises:
        OptionError: there is to be none.
    """
    if count < 1:
        raise OptionError(f"frames must be at least 1, got {count}")
    return [Path(video) / f"frame-{number}-of-{count}" for number in range(1, count + 1)]


def facts(video: Path) -> Facts:
    """What is known of a video; remembered until its size or time changes.

    Raises:
        BadVideo: it is no video, holds no frame, or is cut off.
        OSError: it cannot be read.
        DataError: PyAV is not installed.
    """
    status = os.stat(video)
    return _facts(str(video), status.st_size, status.st_mtime_ns)


def read_frame(frame: Frame, *, turned: bool = False) -> Image.Image:
    """A frame as RGB.

    Args:
        turned: whether as a player turns it, else as it is stored.

    Raises:
        BadVideo, OSError, DataError: as for `facts`; the frame is damaged.
    """
    known, video = facts(frame.video), str(frame.video)
    place = frame.place(len(known.times))
    wanted = known.times[place]
    found = _decoded(video, wanted, sought=True) or _decoded(video, wanted, sought=False)
    if found is None:
        says = f"ends before frame {place + 1:,} of {len(known.times):,} when it is decoded"
        raise BadVideo("unreadable", says)
    return found.rotate(known.rotation, expand=True) if turned and known.rotation else found


@lru_cache(maxsize=64)
def _facts(video: str, size: int, changed: int) -> Facts:
    with _opened(video) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None:
            raise BadVideo("unreadable", "holds no frame that can be decoded")
        width, height, rotation = first.width, first.height, int(first.rotation)
    with _opened(video) as (container, stream):
        promised = stream.frames
        packets = [one for one in container.demux(stream) if one.size and not one.is_discard]
        times = [one.pts for one in packets if one.pts is not None]
    if len(times) < len(packets):  # a format without times of its own, as some of AVI
        with _opened(video) as (container, stream):
            times = [one.pts for one in container.decode(stream) if one.pts is not None]
    if promised > len(packets) and promised > (held := _held(video)):
        raise BadVideo(
            "truncated",
            f"is truncated: it has {held:,} of the {promised:,} frames that its header names",
        )
    if not times:
        raise BadVideo("unreadable", "does not say when its frames are shown")
    return Facts(tuple(sorted(times)), width, height, rotation)


def _held(video: str) -> int:
    """How many frames a file holds, those among them that a cut without encoding hides."""
    with _opened(video, ignore_editlist="1") as (container, stream):
        return sum(1 for one in container.demux(stream) if one.size)


def _decoded(video: str, wanted: int, *, sought: bool) -> Image.Image | None:
    """The first frame that is shown at a time or later; `None` where there is none, or where seeking led to none that is whole."""
    with _opened(video) as (container, stream):
        if sought:
            container.seek(wanted, stream=stream)
        early = not sought
        for one in container.decode(stream):
            if one.pts is not None and one.pts >= wanted:
                if sought and (one.is_corrupt or not (early or one.pts == wanted)):
                    return None  # where its key frame lies is not known well
                if one.is_corrupt:
                    raise BadVideo("unreadable", "has a damaged frame")
                image: Image.Image = one.to_image()
                return image
            early = True
    return None


@contextmanager
def _opened(video: str, **options: str) -> Iterator[tuple[Any, Any]]:
    """A video and its stream of pictures, with options of its container's reader.

    Raises:
        BadVideo: it is none, or what is read of it inside is damaged.
        DataError: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise DataError(f"video {video}: {MISSING}") from None
    try:
        # no protocol but that of files: a playlist may name addresses
        options = {"protocol_whitelist": "file", **options}
        with av.open(f"file:{os.path.abspath(video)}", options=options) as container:
            if not container.streams.video:
                raise BadVideo("no image", "holds no pictures, only sound or text")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # several videos are read beside one another
            yield container, stream
    except av.FFmpegError as error:
        if isinstance(error, PermissionError | FileNotFoundError):
            raise
        says = str(error.strerror or error).lower()
        raise BadVideo("unreadable", f"cannot be read as a video: {printable(says)}") from None
