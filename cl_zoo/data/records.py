"""Records of instruction data in the usual formats, and the questions in them.

`llava`      training records: {"image": …, "conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt", "value": …}]}.
             `image` is missing where a question is a text alone. The image token is taken off with the newline beside it: a
             backbone puts the image where its template wants it, which is the front, wherever the token stood.
`sharegpt`   the same with `messages` or `conversations` of {"role": …, "content": …} or {"from": …, "value": …}, and `image`
             or a list `images` of one.
`question`   test records: {"question_id": …, "image": …, "text": …, "answer": …}; also `answer_bbox` with `size` (a box),
             `references` (captions), `answers` (of several people) and `choices`.

A turn of `system` is left out. Of a conversation with more than one question, every question with its answer is a sample of its own,
without the turns before it. Prompts and answers are read as they are. Training records are never told apart by their ids, which
come twice in official files.

Every fault is a `DataError` with file, record (counted from 1) and remedy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cl_zoo.data.faults import REPAIR, EmptyAnswer, Outside, below, fault, halved, kind_of, leaving
from cl_zoo.errors import DataError

TOKEN = "<image>"
ASKING, ANSWERING = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True, slots=True)
class Entry:
    """One question as its record tells it; the image is still a name.

    Attributes:
        id: the record's own, "" where it has none.
        image: as written in the record, `None` for a text alone.
        prompt: without the image token.
        answer: `None` where the record holds none.
        references: sentences that a caption is scored against.
        truth: what a scoring rule needs beyond these, as in `cl_zoo.Sample`.
        record: the record's own id where `id` is no longer that.
    """

    id: str
    image: str | None
    prompt: str
    answer: str | None = None
    references: tuple[str, ...] = ()
    truth: Mapping[str, Any] = field(default_factory=dict)
    record: str = ""


def entries(record: Mapping[str, Any], number: int, file: Path | str, form: str) -> list[Entry]:
    """The questions of one record: one each, but for conversations of several.

    Args:
        record: as `read_records` gives it.
        number: its place in the file, from 1.
        file: where it stands, for messages.
        form: `llava`, `sharegpt` or `question`.

    Raises:
        DataError: a field is missing or of another type, or an answer to learn is empty.
    """
    if form == "question":
        return [_question(record, number, file)]
    image = _image(record, number, file)
    key = "messages" if "messages" in record else "conversations"
    turns = _turns(record.get(key), key, number, file)
    found = []
    for place in range(0, len(turns), 2):
        (asker, asked), (answerer, answer) = turns[place : place + 2]
        if asker not in ASKING or answerer not in ANSWERING:
            says = f"{key} turns {place + 1} and {place + 2} are from {asker!r} and {answerer!r}"
            fault(file, number, says, "let a human's turn and gpt's alternate")
        if not answer.strip():
            fault(file, number, "has an empty answer, which teaches nothing", REPAIR, EmptyAnswer)
        if TOKEN in answer:
            fault(file, number, f"has {TOKEN} in an answer", REPAIR)
        found.append(Entry(_id(record, number, file), image, _prompt(asked, image, number, file), answer))
    return found


def image_path(root: Path, text: str) -> Path:
    """The path of an image that a record names, inside `root` whatever links lie on the way.

    Raises:
        DataError: it is empty.
        Outside: it is absolute, holds `..`, or a link on the way leaves `root`.
    """
    name = PurePosixPath(text)
    remedy = "write paths inside the data folder"
    if not text.strip() or "\0" in text:
        raise DataError(f"image {text!r}: names no file; {remedy}")
    if what := leaving(name):
        raise Outside(f"image {text!r}: {what} and may leave the data folder; {remedy}")
    path = root / name
    if not below(root, path):
        raise Outside(
            f"image {text!r}: leads out of {root} to {os.path.realpath(path)} through a link; move the file into the data folder"
        )
    return path


# Fields of a record


def _question(record: Mapping[str, Any], number: int, file: Path | str) -> Entry:
    image = _image(record, number, file)
    prompt = _text(record, "text", number, file)
    if not prompt.strip():
        fault(file, number, "has an empty 'text'", REPAIR)
    answer = None if record.get("answer") is None else _text(record, "answer", number, file)
    truth: dict[str, Any] = {
        key: list(_texts(record, key, number, file)) for key in ("answers", "choices") if key in record
    }
    if "answer_bbox" in record:
        truth |= _box(record, number, file)
    references = _texts(record, "references", number, file) if "references" in record else ()
    prompt = _prompt(prompt, image, number, file)
    return Entry(_id(record, number, file, needed=True), image, prompt, answer, references, truth)


def _id(record: Mapping[str, Any], number: int, file: Path | str, *, needed: bool = False) -> str:
    for key in ("question_id", "id"):
        value = record.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return _sound(str(value), key, number, file)
        if value is not None:
            fault(file, number, f"'{key}' is {kind_of(value)}, not a text or a whole number", REPAIR)
    if needed:
        fault(file, number, "has no 'question_id'", "number the test records")
    return ""


def _image(record: Mapping[str, Any], number: int, file: Path | str) -> str | None:
    images = record.get("images", [])
    if not isinstance(images, list):
        fault(file, number, f"'images' is {kind_of(images)}, not a list", REPAIR)
    value = record.get("image")
    if isinstance(value, list):
        value, images = None, value
    named = [one for one in (value, *images) if one is not None]
    if len(named) > 1:
        fault(file, number, f"names {len(named)} images where a sample has one", REPAIR)
    if not named:
        return None
    if not isinstance(named[0], str) or not named[0]:
        fault(
            file, number, f"its image is {kind_of(named[0]) if named[0] != '' else 'an empty text'}", REPAIR
        )
    return _sound(named[0], "image", number, file)


def _turns(value: Any, key: str, number: int, file: Path | str) -> list[tuple[str, str]]:
    if not isinstance(value, list):
        what = "has no 'conversations'" if value is None else f"'{key}' is {kind_of(value)}, not a list"
        fault(file, number, what, REPAIR)
    turns = []
    for turn in value:
        if not isinstance(turn, dict):
            fault(file, number, f"'{key}' holds {kind_of(turn)} where a turn is expected", REPAIR)
        who, said = ("from", "value") if "from" in turn else ("role", "content")
        speaker = _text(turn, who, number, file)
        if speaker != "system":
            turns.append((speaker, _text(turn, said, number, file)))
    if not turns or len(turns) % 2:
        fault(file, number, f"has {len(turns)} turns where questions have answers", REPAIR)
    return turns


def _prompt(text: str, image: str | None, number: int, file: Path | str) -> str:
    count = text.count(TOKEN)
    if not count:
        return text
    if count > 1 or image is None:
        says = f"has {count} {TOKEN} in one turn" if image is not None else f"has {TOKEN} but names no image"
        fault(file, number, says, REPAIR)
    return text.replace(TOKEN, "").strip()  # as LLaVA does before it puts the token in front


def _text(record: Mapping[str, Any], key: str, number: int, file: Path | str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        says = f"'{key}' is {kind_of(value)}, not a text" if key in record else f"has no {key!r}"
        fault(file, number, says, REPAIR)
    return _sound(value, key, number, file)


def _sound(text: str, key: str, number: int, file: Path | str) -> str:
    if half := halved(text):
        fault(file, number, f"'{key}' holds half of a character ({half})", REPAIR)
    return text


def _texts(record: Mapping[str, Any], key: str, number: int, file: Path | str) -> tuple[str, ...]:
    value = record[key]
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        fault(file, number, f"'{key}' is not a list of texts", REPAIR)
    return tuple(_sound(one, key, number, file) for one in value)


def _box(record: Mapping[str, Any], number: int, file: Path | str) -> dict[str, Any]:
    """`{"box": [x1, y1, x2, y2], "size": [w, h]}`; the official file writes the box as a text."""
    box, size = record["answer_bbox"], record.get("size")
    try:
        parts = box.replace("[", "").replace("]", "").split(",") if isinstance(box, str) else box
        corners = [float(part) for part in parts]
        sides = [float(side) for side in size or ()]
    except (TypeError, ValueError):
        corners, sides = [], []
    if len(corners) != 4:
        fault(
            file, number, f"'answer_bbox' {box!r} is no box of four numbers", "write it as [x1, y1, x2, y2]"
        )
    if len(sides) != 2 or min(sides) <= 0:
        fault(file, number, f"'size' {size!r} is no size of an image", "write it as [width, height]")
    return {"box": corners, "size": sides}
