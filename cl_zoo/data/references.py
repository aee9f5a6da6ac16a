"""What the answers to a test file are scored against, where it stands in a file of its own.

`coco`       captions: {"annotations": [{"image_id": …, "caption": …}, …], "images": [{"id": …, "file_name": …}, …]}. Image ids are places in
             the test file, from 1: the official scorer numbers the answers in their order. Nothing else joins the two files.
`textvqa`    ten people's answers: {"data": [{"question_id": …, "image_id": …, "question": …, "answers": […]}, …]}, by question id; where
             a test file gives image ids for question ids, by image id and question.
`gqa`        {question id: {"answer": …}, …}
`scienceqa`  `problems.json`: {problem id: {"choices": […], "answer": place}, …}; the answer becomes a letter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from cl_zoo.data.faults import halved
from cl_zoo.data.files import read_json
from cl_zoo.data.records import Entry
from cl_zoo.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FEW = 5


def referred(asked: Sequence[Entry], path: Path, form: str, note: str = "") -> list[Entry]:
    """The test entries with what they are scored against.

    Args:
        asked: all entries of the test file, in its order.
        path: the file of references.
        form: `coco`, `textvqa`, `gqa` or `scienceqa`.
        note: what is known about broken copies of this file; closes the message.

    Raises:
        DataError: the file is broken, or an entry has no reference in it.
    """
    content = read_json(path)
    try:
        return READERS[form](asked, content, path)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        says = f"{path}: not in the format {form} ({type(error).__name__}: {error}); fetch the file again"
    except DataError as error:
        says = str(error)
    raise DataError(f"{says} ({note})" if note else says)


def _coco(asked: Sequence[Entry], content: Any, path: Path) -> list[Entry]:
    captions: dict[int, list[str]] = {}
    for place, annotation in enumerate(content["annotations"], 1):
        captions.setdefault(int(annotation["image_id"]), []).append(_caption(annotation, place, path))
    wanted = range(1, len(asked) + 1)
    if missing := [number for number in wanted if number not in captions]:
        given = len(asked) - len(missing)
        raise DataError(
            f"{path}: annotates {given:,} of the {len(asked):,} test records by place (1 to {len(asked)}), none for "
            f"{_few(missing)}; fetch the file that belongs to this test file"
        )
    if extra := sorted(captions.keys() - set(wanted)):
        raise DataError(
            f"{path}: annotates {_few(extra)}, but the test file has {len(asked):,} records; fetch both again"
        )
    _same_order(asked, content.get("images", []), path)
    return [
        replace(entry, references=tuple(captions[number]))
        for number, entry in zip(wanted, asked, strict=True)
    ]


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


def _same_order(asked: Sequence[Entry], images: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Refuse references that are about other images than the test records of their places: scores would be wrong.

    Where most names of the references' images do not occur in the test file, names follow another scheme and prove nothing.
    """
    names = {int(image["id"]): PurePosixPath(str(image.get("file_name") or "")).name for image in images}
    ours = [PurePosixPath(entry.image or "").name for entry in asked]
    pairs = [(number, names.get(number, ""), name) for number, name in enumerate(ours, 1)]
    pairs = [one for one in pairs if one[1] and one[2]]
    known = set(ours)
    if 2 * sum(theirs in known for _, theirs, _ in pairs) < len(pairs):
        return
    wrong = [one for one in pairs if one[1] != one[2]]
    if wrong:
        number, theirs, name = wrong[0]
        more = f", and {len(wrong) - 1:,} more differ" if len(wrong) > 1 else ""
        moved = sorted(one[1] for one in wrong) == sorted(one[2] for one in wrong)
        remedy = "restore the test file's order" if moved else "fetch the files that belong together"
        raise DataError(
            f"{path}: image {number} is {theirs}, but test record {number} is about {name}{more}; {remedy}"
        )


def _textvqa(asked: Sequence[Entry], content: Any, path: Path) -> list[Entry]:
    by_id = {str(one["question_id"]): one for one in content["data"]}
    by_question = {(str(one["image_id"]), one["question"].lower()): one for one in content["data"]}

    def truth(entry: Entry) -> Entry | None:
        question = entry.prompt.splitlines()[0].lower()
        found = by_question.get((entry.id, question)) or by_id.get(entry.id)
        if found is None:
            return None
        return replace(
            entry, truth={**entry.truth, "answers": [_sound(a, entry, path) for a in found["answers"]]}
        )

    return _each(asked, truth, path)


def _gqa(asked: Sequence[Entry], content: Any, path: Path) -> list[Entry]:
    def truth(entry: Entry) -> Entry | None:
        if entry.id not in content:
            return None
        return replace(entry, answer=_sound(content[entry.id]["answer"], entry, path))

    return _each(asked, truth, path)


def _scienceqa(asked: Sequence[Entry], content: Any, path: Path) -> list[Entry]:
    def truth(entry: Entry) -> Entry | None:
        if entry.id not in content:
            return None
        problem = content[entry.id]
        letters = list(LETTERS[: len(problem["choices"])])
        return replace(entry, answer=letters[problem["answer"]], truth={**entry.truth, "choices": letters})

    return _each(asked, truth, path)


def _each(asked: Sequence[Entry], truth: Callable[[Entry], Entry | None], path: Path) -> list[Entry]:
    found = [truth(entry) for entry in asked]
    if missing := [entry.id for entry, one in zip(asked, found, strict=True) if one is None]:
        raise DataError(
            f"{path}: has nothing for {len(missing):,} of the {len(asked):,} test records ({_few(missing)}); "
            "fetch the file that belongs to this test file"
        )
    return [one for one in found if one is not None]


def _sound(answer: Any, entry: Entry, path: Path) -> str:
    if half := halved(str(answer)):
        says = f"an answer to question {entry.id!r} holds half of a character ({half})"
        raise DataError(f"{path}: {says}; repair it")
    return str(answer)


def _few(numbers: Sequence[int] | Sequence[str]) -> str:
    more = f" and {len(numbers) - FEW:,} more" if len(numbers) > FEW else ""
    return ", ".join(map(str, numbers[:FEW])) + more


READERS: Mapping[str, Callable[[Sequence[Entry], Any, Path], list[Entry]]] = {
    "coco": _coco,
    "textvqa": _textvqa,
    "gqa": _gqa,
    "scienceqa": _scienceqa,
}
