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

from cl_zoo.data.records import Entry, read_json
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
    for annotation in content["annotations"]:
        captions.setdefault(int(annotation["image_id"]), []).append(str(annotation["caption"]))
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


def _same_order(asked: Sequence[Entry], images: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Refuse a test file whose images are those of the references in another order: every score would be wrong."""
    names = {int(image["id"]): PurePosixPath(str(image.get("file_name", ""))).name for image in images}
    theirs = [names.get(number) for number in range(1, len(asked) + 1)]
    ours = [PurePosixPath(entry.image or "").name for entry in asked]
    if theirs != ours and sorted(map(str, theirs)) == sorted(ours):
        number = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True), 1) if a != b)
        raise DataError(
            f"{path}: image {number} is {theirs[number - 1]}, but test record {number} is about {ours[number - 1]}; "
            "restore the test file's order"
        )


def _textvqa(asked: Sequence[Entry], content: Any, path: Path) -> list[Entry]:
    by_id = {str(one["question_id"]): one for one in content["data"]}
    by_question = {(str(one["image_id"]), one["question"].lower()): one for one in content["data"]}

    def truth(entry: Entry) -> Entry | None:
        question = entry.prompt.splitlines()[0].lower()
        found = by_question.get((entry.id, question)) or by_id.get(entry.id)
        return found and replace(entry, truth={**entry.truth, "answers": [str(a) for a in found["answers"]]})

    return _each(asked, truth, path)


def _gqa(asked: Sequence[Entry], content: Any, path: Path) -> list[Entry]:
    def truth(entry: Entry) -> Entry | None:
        return replace(entry, answer=str(content[entry.id]["answer"])) if entry.id in content else None

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


def _few(numbers: Sequence[int] | Sequence[str]) -> str:
    more = f" and {len(numbers) - FEW:,} more" if len(numbers) > FEW else ""
    return ", ".join(map(str, numbers[:FEW])) + more


READERS: Mapping[str, Callable[[Sequence[Entry], Any, Path], list[Entry]]] = {
    "coco": _coco,
    "textvqa": _textvqa,
    "gqa": _gqa,
    "scienceqa": _scienceqa,
}
