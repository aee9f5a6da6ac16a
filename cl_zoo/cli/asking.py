"""What `cl-zoo predict` is asked: prompts with their images and videos, from flags or from a file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cl_zoo.data.faults import halved
from cl_zoo.data.files import lines
from cl_zoo.errors import DataError, OptionError, first_line
from cl_zoo.images.frames import frames

LINE = '{"image": FILE, list of FILES or null, "video": FILE, "prompt": TEXT}'


class Question(NamedTuple):
    """A prompt and the files of what it is about, images before the frames of a video."""

    prompt: str
    images: tuple[str, ...] = ()
    video: str | None = None

    def shown(self, count: int) -> list[str]:
        """All images, so many of a video."""
        return [*self.images, *(map(str, frames(self.video, count)) if self.video is not None else ())]

    @property
    def told(self) -> dict[str, Any]:
        """The files as an answer's record names them."""
        image = list(self.images) if len(self.images) > 1 else next(iter(self.images), None)
        return {"image": image} | ({} if self.video is None else {"video": self.video})


def asked(
    images: Sequence[str], videos: Sequence[str], prompts: Sequence[str], file: str | None
) -> list[Question]:
    """The questions of the flags or of the file: one prompt with all images, or several with one image or video each.

    Raises:
        OptionError: both are given, neither is, or which image belongs to which prompt is not said.
        DataError: the file cannot be used.
    """
    if file is not None:
        if images or videos or prompts:
            raise OptionError(
                f"--input {file}: holds images and prompts; leave out --image and --prompt, --video too"
            )
        return _lines(file)
    if not prompts:
        raise OptionError("nothing is asked; pass --image FILE --prompt TEXT, or --input FILE.jsonl")
    for text in prompts:
        if half := halved(text):
            raise OptionError(f"--prompt {text!r}: holds half of a character ({half}); write it in UTF-8")
    if len(prompts) == 1 and len(videos) <= 1:
        return [Question(prompts[0], tuple(images), next(iter(videos), None))]
    for flag, given in (("--image", images), ("--video", videos)):
        if given and len(given) != len(prompts):
            raise OptionError(
                f"there are {len(given)} {flag} and {len(prompts)} --prompt; pass one prompt with all of its images, one {flag} per "
                "prompt, or none at all"
            )
    return [
        Question(text, tuple(images[place : place + 1]), videos[place] if videos else None)
        for place, text in enumerate(prompts)
    ]


def _lines(file: str) -> list[Question]:
    """The records of a file of JSON lines; paths are relative to the working folder.

    Raises:
        DataError: it cannot be read, or a line is no such record.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--input {file}: {first_line(error)}; pass a file of JSON lines") from None
    found = [_line(line, f"--input {file}, line {number}") for number, line in lines(text)]
    if not found:
        raise DataError(f"--input {file}: holds no line; write one JSON object per prompt")
    return found


def _line(line: str, place: str) -> Question:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: {first_line(error)}; write one JSON object") from None
    record = record if isinstance(record, dict) else {}
    prompt, image, video = record.get("prompt"), record.get("image"), record.get("video")
    images = image if isinstance(image, list) else [] if image is None else [image]
    texts = [*images, *([] if video is None else [video])]
    if not isinstance(prompt, str) or not all(isinstance(one, str) for one in texts):
        raise DataError(f"{place}: is no {LINE}; give each line a prompt and files that are texts")
    if half := next(filter(None, map(halved, [prompt, *texts])), None):
        raise DataError(f"{place}: holds half of a character ({half}); repair the line")
    return Question(prompt, tuple(images), video)
