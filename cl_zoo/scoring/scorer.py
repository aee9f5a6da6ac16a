"""Scores of answer files, as a step of its own.

The engine writes answers, this module scores their files: one `Scorer`, and with it one Java process, serves a whole comparison.

    answers    one JSON object per line: {"id": …, "prompt": …, "answer": …}; further keys are ignored
    expected   one JSON object per line: {"id": …, "answer": …, "references": […], "truth": {…}}; one file per task

The two are joined by id. A missing, extra or repeated id is an error: a score over fewer samples is never given.

The rules are in `cl_zoo.scoring.rules`. A score holds the official value, which is the cell of a table and of a matrix, and the strict
one where the rule has such.

Files of the released evaluation code are read as well: answers with `question_id` and `text` in the place of `id` and `answer`,
and test files (`.json`) in the place of what was expected.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cl_zoo.errors import DataError, OptionError, nearest
from cl_zoo.scoring.captions import Captions, Meteor, caption_parts, tokenize
from cl_zoo.scoring.files import REMEDY, read_answers, read_expected
from cl_zoo.scoring.judges import Expected, Judge
from cl_zoo.scoring.rules import RULES, lacking, of_files

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
    """

    value: float
    parts: dict[str, float]
    metric: str
    count: int
    strict: float | None = None


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
        """Score caption cells: all answers are tokenized together, and so are all references not yet known."""
        if not cells:
            return []
        meteor = self._running_meteor()
        groups = [{sample: [text] for sample, text in answers.items()} for _, answers in cells]
        hypotheses = tokenize(groups)
        self._tokenize_references({cell.expected: tasks[cell.expected] for cell, _ in cells})
        references = [self._references[_content(cell.expected)] for cell, _ in cells]
        parts = [caption_parts(meteor, r, h) for r, h in zip(references, hypotheses, strict=True)]
        metrics = [cell.metric for cell, _ in cells]
        return [
            Score(sum(p.values()) / len(p), p, _versioned(m), len(r))
            for p, r, m in zip(parts, references, metrics, strict=True)
        ]

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

    def share(judge: Judge | None) -> float | None:
        if judge is None:
            return None
        points = math.fsum(judge(answers[sample].strip(), wanted) for sample, wanted in expected.items())
        return 100 * points / len(expected)

    return Score(share(rule.official) or 0.0, {}, _versioned(cell.metric), len(expected), share(rule.strict))


def _versioned(metric: str) -> str:
    return f"{metric}/{METRICS[metric]}"
