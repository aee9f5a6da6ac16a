"""Frames of short videos as images: which frames stand for a video, and what one is called.

A frame is an image of its own and goes by a path: `clip.mp4/frame-3-of-8` is the frame in the middle of the third of eight equal parts of
`clip.mp4`. So it is named, remembered and kept as the path of a picture is, and nothing is decoded before it is needed; whoever opens an
image reads it (`cl_zoo.images.frames`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

FRAMES = 8
"""Frames of a video where nothing else is said."""
NAME = re.compile(r"frame-([1-9]\d{0,5})-of-([1-9]\d{0,5})", re.ASCII)


class Frame(NamedTuple):
    """A frame of a video: the middle of the part `number`, from 1, of `parts` equal ones."""

    video: Path
    number: int
    parts: int

    def place(self, total: int) -> int:
        """Which frame it is of `total`, from 0: ⌊(2·number − 1)·total / (2·parts)⌋; some come more than once where there are fewer than parts."""
        return (2 * self.number - 1) * total // (2 * self.parts)


def frame_of(image: PurePath) -> Frame | None:
    """Which frame a path names; `None` for the path of a picture."""
    found = NAME.fullmatch(image.name)
    if found is None or not image.parent.name:
        return None
    number, count = map(int, found.groups())
    return Frame(Path(str(image.parent)), number, count) if number <= count else None


def file_of(image: Path) -> Path:
    """The file that an image lies in: of a frame its video."""
    frame = frame_of(image)
    return image if frame is None else frame.video


def called(image: PurePath) -> str:
    """What an image or its video is in a sentence: `image a.png`, `video a.mp4`."""
    frame = frame_of(image)
    return f"image {image}" if frame is None else f"video {frame.video}"


def file_names(images: Iterable[PurePath]) -> Iterator[str]:
    """Names of images for people: a video once for all of its frames in a row."""
    last = None
    for image in images:
        frame = frame_of(image)
        if frame is None or frame.video != last:
            yield str(image if frame is None else frame.video)
        last = None if frame is None else frame.video
