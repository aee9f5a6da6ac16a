"""Conversations as the field writes them, read as turns: who speaks, what is said, and which pictures are named on the way.

conversations   [{"from": "human", "value": "<image>\\nWho?"}, {"from": "gpt", "value": "me"}]                LLaVA, ShareGPT
messages        [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "me"}]                  OpenAI, TRL, Qwen
                content may be a list: {"type": "text", "text": …}, {"type": "image"} (the picture stands in the record's `images`),
                {"type": "image", "image": "a.jpg"} (Qwen), {"type": "image_url", "image_url": {"url": "a.jpg"}} (OpenAI),
                {"type": "video", "video": "a.mp4"} (Qwen), {"type": "video"} (the video stands in the record's `videos`)
texts           [{"user": "Who?", "assistant": "me", "source": …}]                                             the_cauldron
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cl_zoo.data.faults import REPAIR, fault, halved, kind_of
from cl_zoo.images.frames import frames
from cl_zoo.tasks import MARK
from cl_zoo.videos import FRAMES

TOKEN = MARK
VIDEO = "<video>"
"""Where a video stands in a question; its frames stand there as images."""
KEYS = ("messages", "conversations", "texts")
"""Keys that a conversation may stand under; the first that is there is read."""
ASKING, ANSWERING = ("human", "user"), ("gpt", "assistant", "model", "chatgpt")
TEXT_PARTS, IMAGE_PARTS = ("text", "input_text", "output_text"), ("image", "image_url", "input_image")
VIDEO_PARTS = ("video", "video_url")
NEVER_A_PATH = {
    "http://": "is a web address; fetch the picture and write its path",
    "https://": "is a web address; fetch the picture and write its path",
    "data:": "is the picture itself; write it to a file and its path here",
}


class Named(list[str]):
    """The images that are named in turns so far; `frames` stand for a video."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames


class Talk(NamedTuple):
    """A conversation.

    Attributes:
        turns: (asked, answered), the image token where a picture stands.
        images: pictures that stand in the turns themselves, as they are named, and the frames of videos that do.
        system: what the system says; empty where it says nothing.
    """

    turns: list[tuple[str, str]]
    images: list[str]
    system: str


def talk(record: Mapping[str, Any], number: int, file: Path | str, frames: int = FRAMES) -> Talk:
    """The conversation of a record.

    Args:
        record: as `read_records` gives it.
        number: its place in the file, from 1.
        file: where it stands, for messages.
        frames: how many images stand for a video.

    Raises:
        DataError: there is none, or questions and answers do not alternate.
    """
    key = next((one for one in KEYS if one in record), "conversations")
    value = record.get(key)
    if not isinstance(value, list):
        what = "has no 'conversations'" if value is None else f"'{key}' is {kind_of(value)}, not a list"
        fault(file, number, what, REPAIR)
    said: list[tuple[str, str]] = []
    system: list[tuple[str, str]] = []
    images = Named(frames)
    for turn in value:
        if not isinstance(turn, dict):
            fault(file, number, f"'{key}' holds {kind_of(turn)} where a turn is expected", REPAIR)
        for speaker, text in _spoken(turn, key, images, number, file):
            (system if speaker == "system" else said).append((speaker, text))
    if not said or len(said) % 2:
        fault(file, number, f"has {len(said)} turns where questions have answers", REPAIR)
    turns = []
    for place in range(0, len(said), 2):
        (asker, asked), (answerer, answer) = said[place : place + 2]
        if asker not in ASKING or answerer not in ANSWERING:
            says = f"{key} turns {place + 1} and {place + 2} are from {asker!r} and {answerer!r}"
            fault(file, number, says, "let a human's turn and gpt's alternate")
        turns.append((asked, answer))
    return Talk(turns, list(images), "\n".join(text for _, text in system))


def has_system(record: Mapping[str, Any]) -> bool:
    """Whether a turn of a record is the system's, which is left out."""
    turns = next((record[one] for one in KEYS if one in record), None)
    if not isinstance(turns, list):
        return False
    return any(isinstance(turn, dict) and "system" in (turn.get("from"), turn.get("role")) for turn in turns)


def written(
    record: Mapping[str, Any], key: str, number: int, file: Path | str, *, numbers: bool = False
) -> str:
    """A field that is a text.

    Args:
        record, key: what holds the field.
        number, file: its place, for messages.
        numbers: whether it may be a number, as answers are; it is read as it is written.

    Raises:
        DataError: it is missing or something else, or holds half of a character.
    """
    value = record.get(key)
    if numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        says = f"'{key}' is {kind_of(value)}, not a text" if key in record else f"has no {key!r}"
        fault(file, number, says, REPAIR)
    return sound(value, key, number, file)


def sound(text: str, key: str, number: int, file: Path | str) -> str:
    """A text that tokenizers take.

    Raises:
        DataError: it holds half of a character.
    """
    if half := halved(text):
        fault(file, number, f"'{key}' holds half of a character ({half})", REPAIR)
    return text


def _spoken(
    turn: Mapping[str, Any], key: str, images: Named, number: int, file: Path | str
) -> list[tuple[str, str]]:
    if key == "texts":
        pair = (("user", False), ("assistant", True))
        return [(who, written(turn, who, number, file, numbers=number_too)) for who, number_too in pair]
    who, said = ("from", "value") if "from" in turn else ("role", "content")
    speaker = written(turn, who, number, file)
    if not isinstance(turn.get(said), list):
        return [(speaker, written(turn, said, number, file, numbers=speaker in ANSWERING))]
    parts = [_part(part, said, images, number, file) for part in turn[said]]
    return [(speaker, "\n".join(parts))]


def _part(part: Any, key: str, images: Named, number: int, file: Path | str) -> str:
    """The text of one part of a content list, the image token for a picture and each frame of a video; names go to `images` where there are some."""
    if isinstance(part, str):
        return sound(part, key, number, file)
    if not isinstance(part, dict):
        fault(file, number, f"'{key}' holds {kind_of(part)} where a part is expected", REPAIR)
    kind = part.get("type") or next((one for one in ("text", "image", "video") if one in part), None)
    if kind in TEXT_PARTS:
        return written(part, "text", number, file)
    if kind not in (*IMAGE_PARTS, *VIDEO_PARTS):
        says = f"'{key}' holds a part of type {kind!r}"
        fault(file, number, says, "only texts, images and videos are read; convert or drop the record")
    what = "video" if kind in VIDEO_PARTS else "image"
    places: Sequence[str] = (what, f"{what}_url", "path", "url")
    named = next((part[one] for one in places if part.get(one) is not None), None)
    if isinstance(named, dict):
        named = named.get("url") or named.get("path")
    if what == "video":
        if named is None:
            return VIDEO
        images.extend(map(str, frames(file_name(named, number, file, what), images.frames)))
        return TOKEN * images.frames
    if named is not None:
        images.append(file_name(named, number, file))
    return TOKEN


def file_name(value: Any, number: int, file: Path | str, what: str = "image") -> str:
    """The path of a picture as a record names it.

    Args:
        value: what stands there.
        number, file: its place, for messages.
        what: `image` or `video`.

    Raises:
        DataError: it is no text, or an address or the picture itself.
    """
    if not isinstance(value, str) or not value:
        fault(file, number, f"its {what} is {kind_of(value) if value != '' else 'an empty text'}", REPAIR)
    for start, says in NEVER_A_PATH.items():
        if value.startswith(start):
            wrong, _, remedy = (says if what == "image" else says.replace("picture", what)).partition("; ")
            fault(file, number, f"{what} {value[:40]!r} {wrong}", remedy)
    return sound(value.removeprefix("file://"), what, number, file)


def prompts(asked: Sequence[str], images: int, number: int, file: Path | str) -> list[str]:
    """The questions of a record as samples have them: image tokens only where they mark a place, see `cl_zoo.Sample`.

    The token of a single image is taken off the first question with the white space around it, and put in front of a later one, as
    LLaVA does. Of several images those that a record begins with need no token.

    Args:
        asked: questions of one conversation.
        images: how many the record names.

    Raises:
        DataError: there are more tokens than images.
    """
    counts = [text.count(TOKEN) for text in asked]
    if sum(counts) > images:
        says = f"has {sum(counts)} {TOKEN} and names {images or 'no'} image{'s' * (images != 1)}"
        if not images:
            says = f"has {TOKEN} but names no image"
        elif len(asked) == 1 and images == 1:
            says = f"has {sum(counts)} {TOKEN} in one turn"
        remedy = f"write 'turns: split', or {REPAIR}" if images == 1 and max(counts) == 1 else REPAIR
        fault(file, number, says, remedy)
    made = []
    for place, (text, count) in enumerate(zip(asked, counts, strict=True)):
        if images == 1 and count:
            text = f"{TOKEN}{text.replace(TOKEN, '').strip()}"
        if count:
            rest, front = text.strip(), ""
            while rest.startswith(TOKEN):
                rest, front = rest.removeprefix(TOKEN).lstrip(), front + TOKEN
            text = rest if not place else front + rest
        made.append(text)
    return made
