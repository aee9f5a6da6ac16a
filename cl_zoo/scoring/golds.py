"""Golds put through their own rule: the right answer of a test sample, as if a model had said it, must score full marks.

Where it does not, no model can, and a low score says nothing about the model. What the official script does stays the official score; what
is found here is told before a run and by `cl-zoo data check`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cl_zoo.data.needs import texts
from cl_zoo.scoring.captions import Captions, plainly_worded, wordless
from cl_zoo.scoring.judges import Expected, Judge
from cl_zoo.scoring.rules import RULES, lacking, of_files

SHOWN = 60
"""Letters of a gold that a sentence shows."""
KEPT = 1 << 14
"""Different golds of a split that are remembered at a time."""
LETTER = re.compile(r"\W*([A-Za-z])\W*")


@dataclass(frozen=True)
class Mismatch:
    """What keeps the gold of one sample from full marks.

    Attributes:
        says: what is wrong, to follow the record's place in a sentence.
        remedy: what to do; empty where nothing in the data can be mended, since it is a slip of the official rule.
        ceiling: the highest score that any gold of the sample reaches by the official rule, 0 to 1.
    """

    says: str
    remedy: str
    ceiling: float


WORDLESS = Mismatch("no reference contains a word for the caption scorer", "give it at least one", 0.0)
"""What `Golds.wordless` finds."""


def golds(metric: str, expected: Expected) -> tuple[str, ...]:
    """The texts that a model may answer with to be right: one, for `textvqa`, `anls` and `ocrbench` those of several people, for captions all.

    Args:
        metric: a name in `RULES`.
        expected: with what the rule needs.
    """
    if of_files(metric):
        return expected.references
    if metric == "grounding":
        return (f"[{', '.join(map(str, expected.truth['box']))}]",)
    people = expected.truth.get("answers")
    if metric in ("textvqa", "anls", "ocrbench") and texts(people):
        return tuple(people or ())
    return (expected.text,)


class Golds:
    """The golds of one test split, each put through its rule; an answer that comes often is looked at once.

    Args:
        metric: a name in `RULES`; of an unknown one nothing is said.
        max_new_tokens: the task's budget of one answer. Without a tokenizer a word is at least one token, which is a lower bound.
    """

    def __init__(self, metric: str, max_new_tokens: int | None = None) -> None:
        self._metric, self._budget = metric, max_new_tokens
        self._known = dict[tuple[str | None, int], Mismatch | None]()
        self._doubtful: Captions = {}

    def mismatch(self, place: int, expected: Expected) -> Mismatch | None:
        """Why a gold does not score full marks, or is longer than an answer may be; `None` where all is well.

        Args:
            place: of the sample; of captions that hold no plain word, `wordless` tells.
            expected: what is expected of it; where it lacks what the rule needs, nothing is said.
        """
        told = expected.references
        if of_files(self._metric) and told and not any(map(plainly_worded, told)):
            self._doubtful[str(place)] = list(told)
        if (key := _same(expected)) is None:
            return _mismatch(self._metric, expected, self._budget)
        if key not in self._known:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[key] = _mismatch(self._metric, expected, self._budget)
        return self._known[key]

    def wordless(self) -> list[int]:
        """Places of the samples looked at in whose references the caption scorer finds no word; all are cut together.

        Raises:
            ClZooError: only the tokenizer can tell, and there is no Java, or it failed.
        """
        if not self._doubtful:
            return []
        return [int(place) for place in wordless(self._doubtful, RULES[self._metric].words)]


def _same(expected: Expected) -> tuple[str | None, int] | None:
    """What two samples with the same finding have in common; `None` for what hardly ever comes twice: people's answers, boxes, captions, images."""
    if expected.references or expected.truth.keys() - {"choices"}:
        return None
    return expected.answer, len(expected.truth.get("choices") or ())


def _mismatch(metric: str, expected: Expected, max_new_tokens: int | None) -> Mismatch | None:
    rule = RULES.get(metric)
    if rule is None or lacking(rule, expected) is not None:
        return None
    told = golds(metric, expected)
    if rule.official is not None and (found := _scored(metric, expected, told)):
        return found
    if max_new_tokens is not None:
        words = min(len(one.split()) for one in told)
        if words > max_new_tokens:
            says = f"its answer has {words} words, which no {max_new_tokens} tokens (max_new_tokens) can say"
            return Mismatch(says, f"raise max_new_tokens above {words}", 1.0)
    return None


def _scored(metric: str, expected: Expected, told: tuple[str, ...]) -> Mismatch | None:
    rule = RULES[metric]
    official = _best(rule.official, told, expected)
    if official >= 1:
        return None
    if metric == "textvqa":  # people who disagree: nothing to mend, and no rule is at fault
        return Mismatch(f"no answer scores more than {official:.2f}, since people disagree", "", official)
    strict = official if rule.strict is None else _best(rule.strict, told, expected)
    shown = told[0] if len(told[0]) <= SHOWN else f"{told[0][:SHOWN]}…"
    says = f"its answer {shown!r} scores {official:.2f} by the rule {metric} when a model says it"
    if told == (expected.text,) and (better := next(_mended(metric, expected, strict), None)) is not None:
        return Mismatch(f"{says}, as by the official script", f"write {better!r}", official)
    if rule.strict is not None and strict >= 1:
        return Mismatch(
            f"{says}, which is a slip of the official script (strict: {strict:.2f})", "", official
        )
    return Mismatch(f"{says}, as by the official script", _remedy(metric, expected), official)


def _remedy(metric: str, expected: Expected) -> str:
    choices = expected.truth.get("choices")
    if metric.startswith("scienceqa"):
        return f"write one capital of the {len(choices)} options" if choices else "write one capital, A to E"
    if metric == "grounding":
        return "write the box as [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
    return "write an answer of letters or digits, or choose another metric"


def _best(judge: Judge | None, told: tuple[str, ...], expected: Expected) -> float:
    """As the scorer does it: what is generated is stripped. What most people say comes first, and is often right in full."""
    best = 0.0
    for text, _ in Counter(one.strip() for one in told).most_common():
        if judge is None or (best := max(best, judge(text, expected))) >= 1:
            break
    return best


def _mended(metric: str, expected: Expected, least: float) -> Iterator[str]:
    """Other writings of a gold that score full marks by the official rule and no less by the strict one, the nearest first."""
    rule, bare = RULES[metric], expected.text.strip()
    plain = bare.lower()
    while plain != (shorter := plain.strip().rstrip(".")):
        plain = shorter
    single = LETTER.fullmatch(bare)
    letter = single[1].upper() if single else ""
    for text in (letter, bare, plain):
        other = replace(expected, answer=text)
        strict = least if rule.strict is None or not text else rule.strict(text, other)
        if text and rule.official is not None and rule.official(text, other) >= 1 and strict >= least:
            yield text
