"""Answer files and what was expected, read and joined by id."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cl_zoo.data.files import read_records
from cl_zoo.data.needs import KEPT
from cl_zoo.data.records import completed, entries
from cl_zoo.errors import DataError
from cl_zoo.scoring.judges import Expected

REMEDY = "get or write the whole file again"

READ = tuple({key: None for keys in KEPT.values() for key in keys})
"""Keys of a released test file that some rule reads beside the answer."""
EXAMPLES = 3
"""Samples without an answer that a message names."""

V = TypeVar("V")


def read_expected(path: Path, remedy: str = REMEDY) -> dict[str, Expected]:
    """What was expected, by sample id, in the order of the file.

    Raises:
        DataError: the file is missing, empty or broken, or repeats an id.
    """
    expected: dict[str, Expected] = {}
    for place, sample, wanted in _released(path) if path.suffix == ".json" else _written(path, remedy):
        _add(expected, sample, wanted, place, remedy)
    if not expected:
        raise DataError(f"{path}: no sample is expected, so there is nothing to score; {remedy}")
    return expected


def read_answers(path: Path, expected: Mapping[str, Expected], remedy: str = REMEDY) -> dict[str, str]:
    """The answers by sample id.

    Raises:
        DataError: the file is missing or broken, repeats an id, or holds other ids than the expected ones.
    """
    answers: dict[str, str] = {}
    for place, record in lines(path, remedy):
        if not isinstance(record.get("answer"), str):
            raise DataError(f"{place}: 'answer' must be a text, got {record.get('answer')!r}; {remedy}")
        if record["id"] not in expected:
            raise DataError(f"{place}: sample {record['id']!r} belongs to another task or data set; {remedy}")
        _add(answers, record["id"], record["answer"], place, remedy)
    missing = [sample for sample in expected if sample not in answers]
    if missing:
        few = ", ".join(map(repr, missing[:EXAMPLES]))
        share = f"{len(missing)} of {len(expected)} samples have no answer, first {few}"
        raise DataError(f"{path}: {share}; {remedy}")
    return answers


def lines(path: Path, remedy: str = REMEDY) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its place for messages and a text as `id`.

    Raises:
        DataError: the file is missing or broken.
    """
    try:
        texts = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: an answer may hold U+2028
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); {remedy}") from error
    records = []
    for number, line in enumerate(texts[:-1] if texts[-1] == "" else texts, start=1):
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{place}: is cut off or no JSON ({error.msg}): {line[:60]!r}; {remedy}"
            ) from error
        if isinstance(record, dict) and "id" not in record and "question_id" in record:
            record = {"id": str(record["question_id"]), "answer": record.get("text")}
        if not (isinstance(record, dict) and isinstance(record.get("id"), str)):
            raise DataError(f"{place}: must be an object with a text as 'id', got {line[:60]!r}; {remedy}")
        records.append((place, record))
    return records


def _released(path: Path) -> Iterator[tuple[str, str, Expected]]:
    """(place, id, what was expected) of a test file of the released data."""
    for number, record in enumerate(read_records(path), start=1):
        kept = [key for key in READ if isinstance(record.get(key), str)]
        for one in entries(record, number, path, "question"):
            entry = completed(one, record, number, path, kept)
            yield f"{path}, record {number}", entry.id, Expected(entry.answer, entry.references, entry.truth)


def _written(path: Path, remedy: str) -> Iterator[tuple[str, str, Expected]]:
    """The same of a file that a run has written."""
    for place, record in lines(path, remedy):
        answer, references = record.get("answer"), record.get("references") or []
        if not (answer is None or isinstance(answer, str)):
            raise DataError(f"{place}: 'answer' must be a text, got {answer!r}; {remedy}")
        if not (isinstance(references, list) and all(isinstance(r, str) for r in references)):
            raise DataError(f"{place}: 'references' must be a list of texts, got {references!r}; {remedy}")
        truth = record.get("truth") or {}
        if not isinstance(truth, dict):
            raise DataError(f"{place}: 'truth' must be an object, got {truth!r}; {remedy}")
        yield place, record["id"], Expected(answer, tuple(references), truth)


def _add(table: dict[str, V], sample: str, value: V, place: str, remedy: str) -> None:
    if sample in table:
        raise DataError(f"{place}: sample {sample!r} comes a second time; {remedy}")
    table[sample] = value
