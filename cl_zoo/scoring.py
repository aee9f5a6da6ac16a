"""Scores of answer files, as a step of its own.

The engine writes answers, this module reads them: one `Scorer`, and with it one Java process, serves a whole comparison.

    answers    one JSON object per line: {"id": …, "prompt": …, "answer": …}; further keys are ignored
    expected   one JSON object per line: {"id": …, "answer": …, "references": […]}; one file per task

The two are joined by id. A missing, extra or repeated id is an error: a score over fewer samples is never given.

Rules, by the name that a task gives as its metric:

`exact`    `answer.strip().upper() == expected.upper()`, UCIT's released rule. No normalisation: "B." is not "B". The HiDe
           paper writes `answer.upper() in expected.upper()`, which counts an empty answer as right; it is not used.
`caption`  mean of BLEU-1 to BLEU-4, METEOR, ROUGE-L and CIDEr, each times 100, over PTB tokens without punctuation
           (UCIT's released rule). All seven are scores of the whole file; CIDEr weighs n-grams by the references of
           this file. CIDEr alone lies between 0 and 1000, so that a score above 100 is possible. An empty answer
           matches nothing and counts. `cl_zoo.captions` computes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cl_zoo.captions import Captions, Meteor, caption_parts, tokenize
from cl_zoo.errors import DataError, OptionError, nearest

METRICS = {"exact": 1, "caption": 1}
"""Version of each rule; changes whenever the same answers would get another score, and stands in every score."""

REMEDY = "delete the file and run the same command again, which writes it anew"

V = TypeVar("V")


@dataclass(frozen=True)
class Cell:
    """One cell of the score matrix: the answers to one task and what was expected.

    Attributes:
        metric: a name in `METRICS`.
        answers, expected: files of JSON lines.
    """

    metric: str
    answers: Path
    expected: Path


@dataclass(frozen=True)
class Score:
    """The score of one cell.

    Attributes:
        value: 0 to 100 (for captions see above).
        parts: what `value` is the mean of, on the same scale; empty for `exact`.
        metric: rule and version, `exact/1`.
        count: number of samples.
    """

    value: float
    parts: dict[str, float]
    metric: str
    count: int


class Scorer:
    """Scores cells and holds METEOR's Java process, started when first needed and ended on exit.

    A context manager, for one thread.
    """

    def __init__(self) -> None:
        self._meteor: Meteor | None = None
        self._references: dict[str, Captions] = {}

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warm_up(self) -> None:
        """Start METEOR's Java and return at once; it reads its tables while something else is computed."""
        self._running_meteor()

    def close(self) -> None:
        """End the Java process; a later `score` starts another."""
        if self._meteor is not None:
            self._meteor.close()
            self._meteor = None

    def score(self, cells: Sequence[Cell]) -> list[Score]:
        """Score cells, in their order.

        All captions of one call share one tokenizer process: one call for many cells is the quick way.

        Raises:
            OptionError: a cell names an unknown rule.
            DataError: a file cannot be read, or its ids are not the expected ones.
            ClZooError: there is no Java, or it ended before the scores came back.
        """
        for cell in cells:
            if cell.metric not in METRICS:
                hint = nearest(cell.metric, METRICS)
                raise OptionError(f"{cell.expected}: no scoring rule is called {cell.metric!r}{hint}")
        tasks = {path: read_expected(path) for path in {cell.expected: None for cell in cells}}
        answers = [read_answers(cell.answers, tasks[cell.expected]) for cell in cells]
        captions = [n for n, cell in enumerate(cells) if cell.metric == "caption"]
        scores = dict(
            zip(captions, self._captions([(cells[n], answers[n]) for n in captions], tasks), strict=True)
        )
        for n, cell in enumerate(cells):
            if cell.metric == "exact":
                scores[n] = _exact(cell, answers[n], tasks[cell.expected])
        return [scores[n] for n in range(len(cells))]

    def _captions(
        self, cells: Sequence[tuple[Cell, dict[str, str]]], tasks: Mapping[Path, dict[str, Expected]]
    ) -> list[Score]:
        """Score caption cells: all answers are tokenized together, and so are all references not yet known."""
        if not cells:
            return []
        meteor = self._running_meteor()
        groups = [{sample: [text] for sample, text in answers.items()} for _, answers in cells]
        hypotheses = tokenize(groups)
        self._tokenize_references({cell.expected: tasks[cell.expected] for cell, _ in cells})
        references = [self._references[_content(cell.expected)] for cell, _ in cells]
        parts = [caption_parts(meteor, r, h) for r, h in zip(references, hypotheses, strict=True)]
        return [_caption(p, len(r)) for p, r in zip(parts, references, strict=True)]

    def _tokenize_references(self, tasks: Mapping[Path, dict[str, Expected]]) -> None:
        """Tokenize the references of each file, equal files once."""
        new = [path for path in tasks if _content(path) not in self._references]
        groups = [{sample: list(e.references) for sample, e in tasks[path].items()} for path in new]
        for path, tokens in zip(new, tokenize(groups), strict=True):
            for sample, sentences in tokens.items():
                if not any(sentences):
                    raise DataError(
                        f"{path}, sample {sample!r}: no reference contains a word; give it at least one"
                    )
            # a reference of punctuation alone matches an empty answer in ROUGE-L, so it is left out
            worded = {sample: [s for s in sentences if s] for sample, sentences in tokens.items()}
            self._references[_content(path)] = worded

    def _running_meteor(self) -> Meteor:
        if self._meteor is None or not self._meteor.running:
            self.close()
            self._meteor = Meteor()
        return self._meteor


# Files


@dataclass(frozen=True)
class Expected:
    """What was expected of one sample; `references` for captions."""

    answer: str | None
    references: tuple[str, ...]


def read_expected(path: Path) -> dict[str, Expected]:
    """What was expected, by sample id, in the order of the file.

    Raises:
        DataError: the file is missing, empty or broken, or repeats an id.
    """
    expected: dict[str, Expected] = {}
    for place, record in _records(path):
        answer, references = record.get("answer"), record.get("references") or []
        if not (answer is None or isinstance(answer, str)):
            raise DataError(f"{place}: 'answer' must be a text, got {answer!r}; {REMEDY}")
        if not (isinstance(references, list) and all(isinstance(r, str) for r in references)):
            raise DataError(f"{place}: 'references' must be a list of texts, got {references!r}; {REMEDY}")
        _add(expected, record["id"], Expected(answer, tuple(references)), place)
    if not expected:
        raise DataError(f"{path}: no sample is expected, so there is nothing to score; {REMEDY}")
    return expected


def read_answers(path: Path, expected: Mapping[str, Expected]) -> dict[str, str]:
    """The answers by sample id.

    Raises:
        DataError: the file is missing or broken, repeats an id, or holds other ids than the expected ones.
    """
    answers: dict[str, str] = {}
    for place, record in _records(path):
        if not isinstance(record.get("answer"), str):
            raise DataError(f"{place}: 'answer' must be a text, got {record.get('answer')!r}; {REMEDY}")
        if record["id"] not in expected:
            raise DataError(f"{place}: sample {record['id']!r} belongs to another task or data set; {REMEDY}")
        _add(answers, record["id"], record["answer"], place)
    missing = [sample for sample in expected if sample not in answers]
    if missing:
        share = f"{len(missing)} of {len(expected)} samples have no answer, first {missing[0]!r}"
        raise DataError(f"{path}: {share}; {REMEDY}")
    return answers


def _records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its place for messages and a text as `id`."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: an answer may hold U+2028
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); {REMEDY}") from error
    records = []
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, start=1):
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{place}: is cut off or no JSON ({error.msg}): {line[:60]!r}; {REMEDY}"
            ) from error
        if not (isinstance(record, dict) and isinstance(record.get("id"), str)):
            raise DataError(f"{place}: must be an object with a text as 'id', got {line[:60]!r}; {REMEDY}")
        records.append((place, record))
    return records


def _add(table: dict[str, V], sample: str, value: V, place: str) -> None:
    if sample in table:
        raise DataError(f"{place}: sample {sample!r} comes a second time; {REMEDY}")
    table[sample] = value


def _content(path: Path) -> str:
    """Every run of a comparison has its own copy of the same references."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Rules


def _exact(cell: Cell, answers: Mapping[str, str], expected: Mapping[str, Expected]) -> Score:
    right = 0
    for sample, wanted in expected.items():
        if wanted.answer is None:
            raise DataError(f"{cell.expected}, sample {sample!r}: exact scoring needs an 'answer'; {REMEDY}")
        right += answers[sample].strip().upper() == wanted.answer.upper()
    return Score(100 * right / len(expected), {}, _versioned("exact"), len(expected))


def _caption(parts: dict[str, float], count: int) -> Score:
    return Score(sum(parts.values()) / len(parts), parts, _versioned("caption"), count)


def _versioned(metric: str) -> str:
    return f"{metric}/{METRICS[metric]}"
