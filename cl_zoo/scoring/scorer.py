"""Scores of answer files, as a step of its own.

The engine writes answers, this module scores their files: one `Scorer`, and with it one Java process, serves a whole comparison.

    answers    one JSON object per line: {"id": …, "prompt": …, "answer": …}; further keys are ignored
    expected   one JSON object per line: {"id": …, "answer": …, "references": […], "truth": {…}}; one file per task

The two are joined by id. A missing, extra or repeated id is an error: a score over fewer samples is never given.

The rules are in `cl_zoo.scoring.rules`. A score holds the official value, which is the cell of a table and of a matrix, the strict
one where the rule has such, what a reader has to know of it, and the score of each sample.

Files of the released evaluation code are read as well: answers with `question_id` and `text` in the place of `id` and `answer`,
and test files (`.json`) in the place of what was expected.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cl_zoo.errors import DataError, OptionError, nearest
from cl_zoo.scoring.captions import (
    Captions,
    Meteor,
    Ptb,
    caption_parts,
    characters,
    foregone,
    tokenize,
)
from cl_zoo.scoring.files import REMEDY, read_answers, read_expected
from cl_zoo.scoring.judges import Expected
from cl_zoo.scoring.rules import RULES, lacking, of_files

Java = TypeVar("Java", Meteor, Ptb)

METRICS = {name: rule.version for name, rule in RULES.items()}
"""Version of each rule; changes whenever the same answers would get another score, and stands in every score."""


@dataclass(frozen=True)
class Cell:
    """One cell of the score matrix: the answers to one task and what was expected.

    Attributes:
        metric: a name in `METRICS`.
        answers, expected: files of JSON lines.
        remedy: what a message about these files tells to do.
    """

    metric: str
    answers: Path
    expected: Path
    remedy: str = REMEDY


@dataclass(frozen=True)
class Score:
    """The score of one cell.

    Attributes:
        value: by the official rule, 0 to 100; captions can be above (see `cl_zoo.scoring.rules`).
        parts: what `value` is the mean of, on the same scale; for captions only.
        metric: rule and version, `exact/1`.
        count: number of samples.
        strict: by the strict rule, 0 to 100; `None` where the official one has no fault.
        empty: percent of the answers that hold nothing.
        form: percent of the answers that the official rule gives nothing for their form alone, see `judges.in_content`;
            `None` where it minds no form.
        notes: sentences about a value that could not be otherwise, whatever was answered.
        samples: `{"id", "score"}` of each sample, in the order of what was expected, 0 to 100, with `strict` where the rule has
            such, `form` (true) where the form alone is wrong, and the `parts` of a caption's score.
    """

    value: float
    parts: dict[str, float]
    metric: str
    count: int
    strict: float | None = None
    empty: float = 0.0
    form: float | None = None
    notes: tuple[str, ...] = ()
    samples: tuple[dict[str, Any], ...] = field(default=(), repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """What a manifest holds: all but the samples."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "samples"}
        return {**values, "notes": list(self.notes)}


class Scorer:
    """Scores cells and holds the Java processes of captions, started when first needed and ended on exit.

    A context manager, for one thread.
    """

    def __init__(self) -> None:
        self._meteor: Meteor | None = None
        self._ptb: Ptb | None = None
        self._references: dict[tuple[str, str], Captions] = {}

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warm_up(self) -> None:
        """Start both Java programs and return at once; they load while something else is computed."""
        self._running_meteor()
        self._started_ptb()

    def waits_for(self) -> str:
        """What captions will wait for, in words; nothing where METEOR has read its tables."""
        if self._meteor is None or not self._meteor.running:
            return "waits for METEOR, a Java program that starts now and reads its word tables first"
        if self._meteor.ready:
            return ""
        return f"waits for METEOR, a Java program that is still reading its word tables ({self._meteor.age:.0f} s so far)"

    def close(self) -> None:
        """End the Java processes; a later `score` starts others."""
        for program in (self._meteor, self._ptb):
            if program is not None:
                program.close()
        self._meteor = self._ptb = None

    def score(self, cells: Sequence[Cell]) -> list[Score]:
        """Score cells, in their order.

        All captions of one call share one tokenizer process: one call for many cells is the quick way.

        Raises:
            OptionError: a cell names an unknown rule.
            DataError: a file cannot be read, its ids are not the expected ones, or a rule needs more than is expected.
            ClZooError: there is no Java, or it ended before the scores came back.
        """
        for cell in cells:
            if cell.metric not in METRICS:
                hint = nearest(cell.metric, METRICS)
                raise OptionError(f"{cell.expected}: no scoring rule is called {cell.metric!r}{hint}")
        remedies = {cell.expected: cell.remedy for cell in cells}
        tasks = {path: read_expected(path, remedy) for path, remedy in remedies.items()}
        answers = [read_answers(cell.answers, tasks[cell.expected], cell.remedy) for cell in cells]
        captions = [n for n, cell in enumerate(cells) if of_files(cell.metric)]
        scores = dict(
            zip(captions, self._captions([(cells[n], answers[n]) for n in captions], tasks), strict=True)
        )
        for n, cell in enumerate(cells):
            if n not in scores:
                scores[n] = _judged(cell, answers[n], tasks[cell.expected])
        return [scores[n] for n in range(len(cells))]

    def _captions(
        self, cells: Sequence[tuple[Cell, dict[str, str]]], tasks: Mapping[Path, dict[str, Expected]]
    ) -> list[Score]:
        """Score caption cells: all answers and all references not yet known are tokenized together."""
        if not cells:
            return []
        meteor = self._running_meteor()
        hypotheses, references = self._tokens(cells, tasks)
        found = []
        for (cell, answers), ours, theirs in zip(cells, hypotheses, references, strict=True):
            whole, each = caption_parts(meteor, theirs, ours)
            samples = [
                {
                    "id": sample,
                    "score": _rounded(sum(parts.values()) / len(parts)),
                    "parts": _all_rounded(parts),
                }
                for sample, parts in zip(theirs, each, strict=True)
            ]
            found.append(
                Score(
                    sum(whole.values()) / len(whole),
                    whole,
                    _versioned(cell.metric),
                    len(theirs),
                    empty=_empty(answers),
                    notes=foregone(theirs, RULES[cell.metric].words),
                    samples=tuple(samples),
                )
            )
        return found

    def _tokens(
        self, cells: Sequence[tuple[Cell, dict[str, str]]], tasks: Mapping[Path, dict[str, Expected]]
    ) -> tuple[list[Captions], list[Captions]]:
        """Answers and references of each cell as words; the references of equal files are cut once."""
        keys = [(_content(cell.expected), RULES[cell.metric].words) for cell, _ in cells]
        new = {
            key: cell.expected
            for key, (cell, _) in zip(keys, cells, strict=True)
            if key not in self._references
        }
        ours = [{sample: [text] for sample, text in answers.items()} for _, answers in cells]
        theirs = [
            {sample: list(one.references) for sample, one in tasks[path].items()} for path in new.values()
        ]
        words = self._cut([*ours, *theirs], [words for _, words in (*keys, *new)])
        for (key, path), tokens in zip(new.items(), words[len(ours) :], strict=True):
            self._references[key] = _worded(tokens, path)
        return words[: len(ours)], [self._references[key] for key in keys]

    def _cut(self, groups: Sequence[Captions], ways: Sequence[str]) -> list[Captions]:
        """Groups cut into words, each in its own way; one process for all that need Java."""
        ptb = [n for n, way in enumerate(ways) if way == "ptb"]
        by_java = {}
        if ptb:
            program, self._ptb = self._started_ptb(), None
            by_java = dict(zip(ptb, tokenize([groups[n] for n in ptb], program), strict=True))
        return [by_java[n] if n in by_java else characters([group])[0] for n, group in enumerate(groups)]

    def _started_ptb(self) -> Ptb:
        self._ptb = _running(self._ptb, Ptb)
        return self._ptb

    def _running_meteor(self) -> Meteor:
        self._meteor = _running(self._meteor, Meteor)
        return self._meteor


def _running(program: Java | None, start: Callable[[], Java]) -> Java:
    """A Java program that waits for lines: the one at hand, or a new one where it has ended or there is none."""
    if program is not None and program.running:
        return program
    if program is not None:
        program.close()
    return start()


def score_file(answers: Path, expected: Path, metric: str) -> Score:
    """Score one file of answers, for example a published one.

    Args:
        answers: JSON lines, ours or those of the released evaluation code.
        expected: `expected/….jsonl` of a run, or a test file of the released data (`.json`). Captions need the former, or
            JSON lines with `references`, because the released files number them by place.
        metric: a name in `METRICS`.

    Raises:
        OptionError: there is no such rule.
        DataError: a file is incomplete or broken, or the rule needs more than it holds.
    """
    with Scorer() as scorer:
        return scorer.score([Cell(metric, answers, expected)])[0]


def _content(path: Path) -> str:
    """Every run of a comparison has its own copy of the same references."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _judged(cell: Cell, answers: Mapping[str, str], expected: Mapping[str, Expected]) -> Score:
    rule = RULES[cell.metric]
    for sample, wanted in expected.items():
        if what := lacking(rule, wanted):
            raise DataError(
                f"{cell.expected}, sample {sample!r}: {cell.metric} scoring needs {what}; "
                "the benchmark has to give it for every test sample"
            )

    points = {
        name: [judge(answers[sample].strip(), wanted) for sample, wanted in expected.items()]
        for name, judge in (("score", rule.official), ("strict", rule.strict), ("form", rule.content))
        if judge is not None
    }
    if "form" in points:  # right in content, and nothing for it
        points["form"] = [
            float(right > 0 >= got) for right, got in zip(points["form"], points["score"], strict=True)
        ]
    percent = {name: 100 * math.fsum(values) / len(expected) for name, values in points.items()}
    return Score(
        percent["score"],
        {},
        _versioned(cell.metric),
        len(expected),
        percent.get("strict"),
        empty=_empty(answers),
        form=percent.get("form"),
        samples=tuple(_sampled(expected, points)),
    )


def _sampled(
    expected: Mapping[str, Expected], points: Mapping[str, Sequence[float]]
) -> Iterator[dict[str, Any]]:
    """The records of `Score.samples`."""
    for place, sample in enumerate(expected):
        got = {name: _rounded(100 * points[name][place]) for name in ("score", "strict") if name in points}
        yield {"id": sample, **got, **({"form": True} if "form" in points and points["form"][place] else {})}


def _rounded(value: float) -> float:
    """Four digits behind the point, so that files of equal runs on two machines are equal."""
    return round(value, 4)


def _all_rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: _rounded(value) for name, value in values.items()}


def _empty(answers: Mapping[str, str]) -> float:
    return 100 * sum(not text.strip() for text in answers.values()) / len(answers)


def _worded(tokens: Captions, path: Path) -> Captions:
    """References that hold a word: one of punctuation alone would match an empty answer in ROUGE-L.

    Raises:
        DataError: a sample has none.
    """
    for sample, sentences in tokens.items():
        if not any(sentences):
            raise DataError(f"{path}, sample {sample!r}: no reference contains a word; give it at least one")
    return {sample: [s for s in sentences if s] for sample, sentences in tokens.items()}


def _versioned(metric: str) -> str:
    return f"{metric}/{METRICS[metric]}"
