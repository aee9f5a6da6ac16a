"""Records of instruction data in the usual formats, and the questions in them.

`llava`      training records: {"image": …, "conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt", "value": …}]}.
             `image` is missing where a question is a text alone, and a list, or `images`, where there are several. The token of a single
             image is taken off with the newline beside it: a backbone puts it where its template wants it, which is the front.
`sharegpt`   the same as others write it (`cl_zoo.data.turns`): `messages` or `conversations` of {"role": …, "content": …} or {"from": …,
             "value": …}, content as a text or as a list of parts, or `texts` of {"user": …, "assistant": …}; and `image` or a list
             `images`.
`question`   test records: {"question_id": …, "image": …, "text": …, "answer": …}; also `answer_bbox` with `size` (a box),
             `references` (captions), `answers` (of several people), `choices`, and `image_id`, which references may go by. A list
             of right answers as `answer` is read as `answers` too; the first stands for all where a rule looks at one.

A turn of `system` is left out, as LLaVA's trainer leaves it out. A conversation of several questions is one sample, the last question with the
turns before it, of which all answers are learnt, as LLaVA's trainer does (`all`), or the last one alone (`last`); or every question with its
answer is a sample of its own, without the turns before it (`split`). A single image stands before the question whose turn holds its token,
the first one where none does; of several each stands where its token does, and those that are more than the tokens come first, in order.
Prompts and answers are read as they are; a number is read as it is written. Training records are never told apart by their ids, which come
twice in official files. A `video`, or a list `videos`, stands for as many images as the description says (`cl_zoo.videos`), which come one behind
the other where its token stands: `<video>`, or `<image>` as in some of LLaVA's records.

Every fault is a `DataError` with file, record (counted from 1) and remedy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from cl_zoo.data.faults import REPAIR, EmptyAnswer, Outside, below, fault, kind_of, leaving
from cl_zoo.data.turns import KEYS, TOKEN, VIDEO, file_name, prompts, sound, talk, written
from cl_zoo.errors import DataError, shown
from cl_zoo.images.frames import frames as frames_of
from cl_zoo.videos import FRAMES


@dataclass(frozen=True, slots=True)
class Entry:
    """One question as its record tells it; the image is still a name.

    Attributes:
        id: the record's own, "" where it has none.
        image: as written in the record, `None` for a text alone; the first of several.
        prompt: without the image token, but where it marks a place as in `cl_zoo.Sample`.
        answer: `None` where the record holds none.
        references: sentences that a caption is scored against.
        truth: what a scoring rule needs beyond these, as in `cl_zoo.Sample`.
        image_id: what references call the image, "" where the record does not say.
        record: the record's own id where `id` is no longer that.
        before, learns_before, more_images: as in `cl_zoo.Sample`.
    """

    id: str
    image: str | None
    prompt: str
    answer: str | None = None
    references: tuple[str, ...] = ()
    truth: Mapping[str, Any] = field(default_factory=dict)
    image_id: str = ""
    record: str = ""
    before: tuple[tuple[str, str], ...] = ()
    learns_before: bool = True
    more_images: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[str, ...]:
        """The names of all images."""
        return () if self.image is None else (self.image, *self.more_images)


UNREAD = Entry("", None, "")
"""Stands for a record that cannot be used, where others are counted by places in the file."""


def entries(
    record: Mapping[str, Any],
    number: int,
    file: Path | str,
    form: str,
    turns: str = "all",
    frames: int = FRAMES,
) -> list[Entry]:
    """What one record asks: one question, but for conversations of several that are split.

    Args:
        record: as `read_records` gives it.
        number: its place in the file, from 1.
        file: where it stands, for messages.
        form: `llava`, `sharegpt` or `question`.
        turns: of a conversation of several questions, `all`, `last` or `split`.
        frames: how many images stand for a video.

    Raises:
        DataError: a field is missing or of another type, or an answer to learn is empty.
    """
    if form == "question":
        return [_question(record, number, file, frames)]
    said = talk(record, number, file, frames)
    asked, answers = [text for text, _ in said.turns], [answer for _, answer in said.turns]
    asked, images, one_video = _shown(record, number, file, frames, asked, said.images)
    for _, answer in said.turns:
        if not answer.strip():
            fault(file, number, "has an empty answer, which teaches nothing", REPAIR, EmptyAnswer)
        if TOKEN in answer:
            fault(file, number, f"has {TOKEN} in an answer", REPAIR)
    first, more = images[0] if images else None, tuple(images[1:])
    start = Entry(_id(record, number, file), first, "", more_images=more)
    if turns == "split" and len(asked) > 1:
        if more and not one_video:
            says = f"asks {len(asked)} questions about {len(images)} images, and which is about which is not said"
            fault(file, number, says, "write 'turns: all', or a record for each question")
        alone = (prompts([text], len(images), number, file)[0] for text in asked)
        return [
            replace(start, prompt=text, answer=answer) for text, answer in zip(alone, answers, strict=True)
        ]
    *earlier, last = prompts(asked, len(images), number, file)
    before = tuple(zip(earlier, answers, strict=False))
    learns = turns == "all" or not before
    return [replace(start, prompt=last, answer=answers[-1], before=before, learns_before=learns)]


def completed(
    entry: Entry,
    record: Mapping[str, Any],
    number: int,
    file: Path | str,
    truth: Iterable[str] = (),
    closing: Mapping[str, str] | None = None,
) -> Entry:
    """A test entry with what its benchmark's scripts read beside it and put behind its prompt.

    Args:
        entry: as `entries` gives it.
        record, number, file: the record, its place in the file, and where it stands.
        truth: keys of the record that a scoring rule reads.
        closing: what the prompt ends in, by the right answer; `*` for all that are not named.

    Raises:
        DataError: the record lacks one of the keys, or holds no text there.
    """
    kept = {key: written(record, key, number, file) for key in truth}
    closing = closing or {}
    end = closing.get(entry.answer or "", closing.get("*", ""))
    return replace(entry, prompt=entry.prompt + end, truth={**entry.truth, **kept}) if kept or end else entry


def other_form(records: Sequence[Mapping[str, Any]], form: str) -> str | None:
    """What is wrong with a whole file whose records are in another format, and what to do; `None` where one is in its own.

    Args:
        records: of a file.
        form: the format that the file is said to be in.
    """
    if not records or any(_looks(record, form) for record in records):
        return None
    for other in ("question", "llava", "sharegpt"):
        if all(_looks(record, other) for record in records):
            return f"its records are in the format {other}, not {form}; write 'format: {other}'"
    keys = ", ".join(map(str, list(records[0])[:6])) or "none"
    return (
        f"none of its {len(records):,} records is in the format {form} (keys of the first: {keys}); write them as llava, sharegpt or "
        "question, or give 'format: datasets' with 'columns'"
    )


def _looks(record: Mapping[str, Any], form: str) -> bool:
    """Whether a record has the keys of a format, be its values right or wrong."""
    if form == "question":
        return "text" in record or ("question_id" in record and not any(key in record for key in KEYS))
    return "conversations" in record if form == "llava" else any(key in record for key in KEYS)


def image_path(root: Path, text: str, trusted: Iterable[Path] = ()) -> Path:
    """The path of an image that a record names, inside `root` or another trusted folder whatever links lie on the way.

    Args:
        root: the folder that the name starts from.
        text: the name.
        trusted: folders that links may lead into.

    Raises:
        DataError: it is empty.
        Outside: it is absolute, holds `..`, or a link on the way leaves all of these folders.
    """
    name = PurePosixPath(text)
    remedy = "write paths inside the data folder"
    if not text.strip() or "\0" in text or not name.parts:  # `.` is the folder itself
        raise DataError(f"image {shown(text)}: names no file; {remedy}")
    if what := leaving(name):
        raise Outside(f"image {shown(text)}: {what} and may leave the data folder; {remedy}")
    path = root / name
    if not any(below(one, path) for one in (root, *trusted)):
        raise Outside(
            f"image {shown(text)}: leads out of {root} to {os.path.realpath(path)} through a link; move the file into the data folder, or list "
            "the linked folder under 'images' of the benchmark's YAML"
        )
    return path


# Fields of a record


def _question(record: Mapping[str, Any], number: int, file: Path | str, frames: int) -> Entry:
    prompt = written(record, "text", number, file)
    if not prompt.strip():
        fault(file, number, "has an empty 'text'", REPAIR)
    truth: dict[str, Any] = {
        key: list(_texts(record, key, number, file)) for key in ("answers", "choices") if key in record
    }
    if isinstance(record.get("answer"), list):
        truth.setdefault("answers", list(_texts(record, "answer", number, file)))
        answer = truth["answers"][0]
    else:
        answer = (
            None if record.get("answer") is None else written(record, "answer", number, file, numbers=True)
        )
    if "answer_bbox" in record:
        truth |= _box(record, number, file)
    references = _texts(record, "references", number, file) if "references" in record else ()
    asked, images, _ = _shown(record, number, file, frames, [prompt])
    (prompt,) = prompts(asked, len(images), number, file)
    name, shown_as = _id(record, number, file, needed=True), _id(record, number, file, ("image_id",))
    image, more = images[0] if images else None, tuple(images[1:])
    return Entry(name, image, prompt, answer, references, truth, shown_as, more_images=more)


def _id(
    record: Mapping[str, Any],
    number: int,
    file: Path | str,
    keys: Sequence[str] = ("question_id", "id"),
    *,
    needed: bool = False,
) -> str:
    for key in keys:
        value = record.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return sound(str(value), key, number, file)
        if value is not None:
            fault(file, number, f"'{key}' is {kind_of(value)}, not a text or a whole number", REPAIR)
    if needed:
        fault(file, number, "has no 'question_id'", "number the test records")
    return ""


def _shown(
    record: Mapping[str, Any],
    number: int,
    file: Path | str,
    frames: int,
    asked: list[str],
    in_turns: Sequence[str] = (),
) -> tuple[list[str], list[str], bool]:
    """The questions of a record and its images, the frames of its videos among them, and whether these are of one video alone."""
    images, videos = _images(record, number, file, in_turns), _videos(record, number, file)
    if not videos:
        if any(VIDEO in text for text in asked):
            fault(file, number, f"has {VIDEO} but names no video", REPAIR)
        return asked, images, False
    if images:
        fault(file, number, "names images and videos beside its turns", "name both as parts of its turns")
    # of LLaVA's records of videos some have the image's token where others have the video's
    whole = [text.replace(VIDEO, TOKEN) for text in asked]
    if sum(text.count(TOKEN) for text in whole) > len(videos):
        names = f"{len(videos)} video{'s' * (len(videos) != 1)}"
        fault(file, number, f"has more {VIDEO} than the {names} that it names", REPAIR)
    asked = [text.replace(TOKEN, TOKEN * frames) for text in whole]
    return asked, [str(one) for video in videos for one in frames_of(video, frames)], len(videos) == 1


def _videos(record: Mapping[str, Any], number: int, file: Path | str) -> list[str]:
    given = [record.get("video"), record.get("videos")]
    each = [one for value in given for one in (value if isinstance(value, list) else [value])]
    return [file_name(one, number, file, "video") for one in each if one is not None]


def _images(
    record: Mapping[str, Any], number: int, file: Path | str, in_turns: Sequence[str] = ()
) -> list[str]:
    images: Any = [] if record.get("images") is None else record["images"]
    if not isinstance(images, list):
        fault(file, number, f"'images' is {kind_of(images)}, not a list", REPAIR)
    value = record.get("image")
    given = [one for one in (value if isinstance(value, list) else [value, *images]) if one is not None]
    named = [file_name(one, number, file) for one in given]
    if named and in_turns and named != list(in_turns):
        fault(file, number, "names other images in its turns than beside them", REPAIR)
    return named or list(in_turns)


def _texts(record: Mapping[str, Any], key: str, number: int, file: Path | str) -> tuple[str, ...]:
    value = record[key]
    kinds = (str, int, float) if key in ("answer", "answers") else (str,)
    if not isinstance(value, list) or not value or not all(type(one) in kinds for one in value):
        fault(file, number, f"'{key}' is not a list of texts", REPAIR)
    return tuple(sound(str(one), key, number, file) for one in value)


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
