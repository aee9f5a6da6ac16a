"""What a scoring rule needs of a test sample, known where samples are read as well as where answers are scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

ANSWER, REFERENCES = "answer", "references"
NEEDS = {
    "caption": REFERENCES,
    "caption-char": REFERENCES,
    "textvqa": "answers",
    "grounding": "box",
    "sci-mixed": "image",
    "ocrbench": "answer_type",
}
"""What a rule needs, by its name, where that is not the answer alone: `references`, or a key of `truth`."""
KEPT = {"image": ("image", "text"), "answer_type": ("answer_type",)}
"""Keys of a test record that a rule reads beside the answer, by the value of `NEEDS` that stands for them."""
PEOPLE = 10
"""Answers to a question of VQAv2 and TextVQA."""


def lack(needs: str, answer: str | None, references: Sequence[str], truth: Mapping[str, Any]) -> str | None:
    """What a sample does not have although its rule needs it, in words; `None` where nothing is missing.

    Args:
        needs: `answer` or a value of `NEEDS`.
        answer, references, truth: as in `cl_zoo.Sample`.
    """
    if needs == ANSWER and answer is None:
        return "an 'answer'"
    if needs == REFERENCES and not references:
        return "'references'"
    if needs == "answers" and not (texts(truth.get("answers")) and len(truth["answers"]) == PEOPLE):
        return f"{PEOPLE} texts as 'answers' in its 'truth'"
    if needs in KEPT:
        if answer is None:
            return "an 'answer'"
        for key in KEPT[needs]:
            if not isinstance(truth.get(key), str):
                return f"a text as {key!r} in its 'truth'"
    if needs == "box" and not numbers(truth.get("box"), 4):
        return "four numbers as 'box' in its 'truth'"
    if needs == "box" and not numbers(truth.get("size"), 2):
        return "two numbers as 'size' in its 'truth'"
    return None


def texts(value: Any) -> bool:
    """Whether it is a list of texts, at least one."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str) for one in value)


def numbers(value: Any, count: int) -> bool:
    """Whether it is a list of so many finite numbers."""
    if not isinstance(value, list | tuple) or len(value) != count:
        return False
    return all(
        isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in value
    )
