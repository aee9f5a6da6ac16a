"""What the answers to a test file are scored against, where it stands in a file of its own.

`coco`       captions: {"annotations": [{"image_id": …, "caption": …}, …], "images": [{"id": …, "file_name": …}, …]}. Test records are joined to
             them by their own `image_id`; else by the name of the image, where `images` names all that is annotated; else by
             `question_id`. Only where nothing of these is on both sides, and as many images are annotated as there are
             records, image ids are places in the test file, from 1, as the official scorer numbers the answers.
`textvqa`    ten people's answers: {"data": [{"question_id": …, "image_id": …, "question": …, "answers": […]}, …]}, by question id; where
             a test file gives image ids for question ids, by image id and question.
`gqa`        {question id: {"answer": …}, …}
`scienceqa`  `problems.json`: {problem id: {"choices": […], "answer": place}, …}; the answer becomes a letter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cl_zoo.data.faults import halved, kind_of
from cl_zoo.data.files import read_json
from cl_zoo.data.records import UNREAD, Entry
from cl_zoo.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FEW = 5
EXAMPLES = 3
"""Records that a message about two files names which belong together in part."""
TOGETHER = "fetch the files that belong together"


class Referred(NamedTuple):
    """Test entries with their references.

    Attributes:
        entries: in the order of the test file.
        by: what joined the two files, in words.
    """

    entries: list[Entry]
    by: str


def referred(asked: Sequence[Entry], path: Path, form: str, note: str = "") -> Referred:
    """The test entries with what they are scored against.

    Args:
        asked: all entries of the test file, in its order; an empty one stands for a record that cannot be read.
        path: the file of references.
        form: `coco`, `textvqa`, `gqa` or `scienceqa`.
        note: what is known about broken copies of this file; closes the message.

    Raises:
        DataError: the file is broken, an entry has no reference in it, or it belongs to the test file in part only.
    """
    content = read_json(path)
    try:
        return READERS[form](asked, content, path)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        says = str(error)
        if not isinstance(error, DataError):
            says = f"{path}: not in the format {form} ({type(error).__name__}: {error}); fetch the file again"
    raise DataError(f"{says} ({note})" if note else says)


# Captions

Keys = list[str | None]
"""For each test entry the image id that it stands for in the file of references; `None` for a record that cannot be read."""


def _coco(asked: Sequence[Entry], content: Any, path: Path) -> Referred:
    captions: dict[str, list[str]] = {}
    for place, annotation in enumerate(content["annotations"], 1):
        captions.setdefault(_number(annotation["image_id"]), []).append(_caption(annotation, place, path))
    names = {_number(one["id"]): _name(one.get("file_name")) for one in content.get("images", [])}
    keys, by = _joined(asked, captions, names, path)
    _same_images(asked, keys, names, path)
    found = [
        entry if key is None else replace(entry, references=tuple(captions[key]))
        for key, entry in zip(keys, asked, strict=True)
    ]
    return Referred(found, by)


def _joined(
    asked: Sequence[Entry], captions: Mapping[str, Any], names: Mapping[str, str], path: Path
) -> tuple[Keys, str]:
    """The image ids of the entries, and what they were joined by.

    Raises:
        DataError: the first thing that is on both sides joins some of the entries and not others, or nothing is and places do not fit.
    """
    places = {name: key for key, name in names.items() if name}
    if any(not names.get(key) for key in captions) or len(places) < len([*filter(None, names.values())]):
        places = {}  # not all have names of their own
    ways: list[tuple[str, list[str], Callable[[str], str]]] = [
        ("image_id", [_number(entry.image_id) for entry in asked], str),
        ("the name of the image", [_name(entry.image) for entry in asked], lambda name: places.get(name, "")),
        ("question_id", [_number(entry.id) for entry in asked], str),
    ]
    for by, own, to_key in ways:
        keys = [None if entry == UNREAD else to_key(one) for entry, one in zip(asked, own, strict=True)]
        lacking = [place for place, key in enumerate(keys) if key is not None and key not in captions]
        if not any(keys) or (by != "image_id" and len(lacking) == sum(key is not None for key in keys)):
            continue  # nothing of it is on both sides
        if lacking:
            few = ", ".join(f"record {place + 1}: {own[place] or 'none'}" for place in lacking[:EXAMPLES])
            given = f"{len(asked) - len(lacking):,} of the {len(asked):,} test records"
            raise DataError(f"{path}: annotates {given} by {by}, none for {few}; {TOGETHER}")
        return keys, by
    return _by_place(
        asked, captions, path
    ), "place, since neither image_id nor names nor question_id stand in both"


def _by_place(asked: Sequence[Entry], captions: Mapping[str, Any], path: Path) -> Keys:
    wanted = [str(number) for number in range(1, len(asked) + 1)]
    neither = "no image_id, image name or question_id of the test file stands in it"
    if missing := [number for number in wanted if number not in captions]:
        given = len(asked) - len(missing)
        raise DataError(
            f"{path}: annotates {given:,} of the {len(asked):,} test records by place (1 to {len(asked)}), none for "
            f"{_few(missing)}, and {neither}; fetch the file that belongs to this test file"
        )
    if extra := [key for key in captions if key not in set(wanted)]:
        raise DataError(
            f"{path}: annotates {_few(extra)}, but the test file has {len(asked):,} records, and {neither}; fetch both again"
        )
    return [*wanted]


def _number(value: Any) -> str:
    """An id as a text; 391895 and "000000391895" are one."""
    if not isinstance(value, str | int):
        raise TypeError(f"an id is {kind_of(value)}")
    text = str(value)
    return str(int(text)) if text.isascii() and text.isdigit() else text


def _name(path: Any) -> str:
    return PurePosixPath(str(path or "")).name


def _caption(annotation: Mapping[str, Any], place: int, path: Path) -> str:
    """The sentence of an annotation.

    Raises:
        DataError: it is none.
    """
    caption = annotation["caption"]
    says = ""
    if not isinstance(caption, str):
        says = "is null" if caption is None else "is no text"
    elif not caption.strip():
        says = "is blank"
    elif half := halved(caption):
        says = f"holds half of a character ({half})"
    if says:
        name = f"annotation {place} (id {annotation.get('id')!r})"
        raise DataError(f"{path}, {name}: its caption {says}; write a sentence, or fetch the file again")
    return str(caption)


def _same_images(asked: Sequence[Entry], keys: Keys, names: Mapping[str, str], path: Path) -> None:
    """Refuse references that are about other images than the test records they are joined to: scores would be wrong.

    Where most names of the references' images do not occur in the test file, names follow another scheme and prove nothing.
    """
    ours = [_name(entry.image) for entry in asked]
    pairs = [
        (number, names.get(key or "", ""), name)
        for number, (key, name) in enumerate(zip(keys, ours, strict=True), 1)
    ]
    pairs = [one for one in pairs if one[1] and one[2]]
    known = set(ours)
    if 2 * sum(theirs in known for _, theirs, _ in pairs) < len(pairs):
        return
    wrong = [one for one in pairs if one[1] != one[2]]
    if wrong:
        shown = ", ".join(
            f"test record {n} is about {name} and joined to {theirs}" for n, theirs, name in wrong[:EXAMPLES]
        )
        more = f", and {len(wrong) - EXAMPLES:,} more differ" if len(wrong) > EXAMPLES else ""
        moved = sorted(one[1] for one in wrong) == sorted(one[2] for one in wrong)
        raise DataError(
            f"{path}: {shown}{more}; {'restore the order of the test file' if moved else TOGETHER}"
        )


# Answers


def _textvqa(asked: Sequence[Entry], content: Any, path: Path) -> Referred:
    by_id = {str(one["question_id"]): one for one in content["data"]}
    if len(by_id) < len(content["data"]):
        ids = Counter(str(one["question_id"]) for one in content["data"])
        raise DataError(
            f"{path}: question_id {ids.most_common(1)[0][0]!r} stands in it twice; fetch the file again"
        )
    by_question = {(str(one["image_id"]), one["question"].lower()): one for one in content["data"]}

    def truth(entry: Entry) -> Entry | None:
        question = entry.prompt.splitlines()[0].lower()
        found = by_question.get((entry.image_id or entry.id, question)) or by_id.get(entry.id)
        if found is None:
            return None
        return replace(
            entry, truth={**entry.truth, "answers": [_sound(a, entry, path) for a in found["answers"]]}
        )

    return _each(asked, truth, path, "question_id, or by image and question")


def _gqa(asked: Sequence[Entry], content: Any, path: Path) -> Referred:
    def truth(entry: Entry) -> Entry | None:
        if entry.id not in content:
            return None
        return replace(entry, answer=_sound(content[entry.id]["answer"], entry, path))

    return _each(asked, truth, path)


def _scienceqa(asked: Sequence[Entry], content: Any, path: Path) -> Referred:
    def truth(entry: Entry) -> Entry | None:
        if entry.id not in content:
            return None
        problem = content[entry.id]
        letters = list(LETTERS[: len(problem["choices"])])
        return replace(entry, answer=letters[problem["answer"]], truth={**entry.truth, "choices": letters})

    return _each(asked, truth, path)


def _each(
    asked: Sequence[Entry], truth: Callable[[Entry], Entry | None], path: Path, by: str = "question_id"
) -> Referred:
    found = [entry if entry == UNREAD else truth(entry) for entry in asked]
    if missing := [entry.id for entry, one in zip(asked, found, strict=True) if one is None]:
        raise DataError(
            f"{path}: has nothing for {len(missing):,} of the {len(asked):,} test records ({_few(missing)}); "
            "fetch the file that belongs to this test file"
        )
    return Referred([one for one in found if one is not None], by)


def _sound(answer: Any, entry: Entry, path: Path) -> str:
    if half := halved(str(answer)):
        says = f"an answer to question {entry.id!r} holds half of a character ({half})"
        raise DataError(f"{path}: {says}; repair it")
    return str(answer)


def _few(numbers: Sequence[int] | Sequence[str]) -> str:
    more = f" and {len(numbers) - FEW:,} more" if len(numbers) > FEW else ""
    return ", ".join(map(str, numbers[:FEW])) + more


READERS: Mapping[str, Callable[[Sequence[Entry], Any, Path], Referred]] = {
    "coco": _coco,
    "textvqa": _textvqa,
    "gqa": _gqa,
    "scienceqa": _scienceqa,
}
