"""How right one answer is in MLLM-CL's tasks: small pure functions as in `cl_zoo.scoring.judges`.

The official ones are lenient (a short right answer stands in many a text) and keep their slips; `cl_zoo.scoring.rules` names the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from cl_zoo.data.needs import texts
from cl_zoo.scoring.judges import Expected

EXACT_IMAGES = ("AI2D", "TQA", "VQA", "SciVerse")
"""What names of images begin with, up to the first underscore, whose questions want the very answer."""
LISTED = "Which states"
"""In a question that wants a list of names."""
FORMULAS = "Handwritten Mathematical Expression Recognition"
"""The kind of OCRBench's questions whose answers are compared with case and without spaces."""


def bare(text: str) -> str:
    """In lower case without spaces, newlines and full stops."""
    return text.strip().lower().translate({ord(sign): None for sign in " \n."})


# Finance


def equal_bare(answer: str, expected: Expected) -> float:
    """The answer without spaces and full stops equals the right one as it is; what holds `Unanswerable` is wrong."""
    given = answer.lower().replace(" ", "").replace(".", "")
    return float("Unanswerable" not in answer and given == expected.text.lower())


def both_bare(answer: str, expected: Expected) -> float:
    """Both without spaces, newlines and full stops are equal; an empty answer is never right."""
    return float(bool(bare(answer)) and bare(answer) == bare(expected.text))


# Visual perception


def contains_bare(answer: str, expected: Expected) -> float:
    """The right answer stands in the answer, both without spaces, newlines and full stops."""
    return float(bare(expected.text) in bare(answer))


# Science


def by_image(answer: str, expected: Expected) -> float:
    """Equality for some images, else the share of the listed states that the answer lists, or that the right answer stands in it."""
    if "Unanswerable" in answer:
        return 0.0
    given, wanted = answer.lower(), expected.text.lower()
    if _exact(expected):
        return float(given == wanted)
    if LISTED in expected.truth["text"]:
        told = given.split(",")  # with their spaces: " ohio" is not "ohio"
        names = wanted.split(",")
        return sum(name in told for name in names) / len(names)
    return float(wanted in given)


def by_image_strictly(answer: str, expected: Expected) -> float:
    """Equality; of listed states those in both lists over those in one of them, whatever the spaces."""
    if not _exact(expected) and LISTED in expected.truth["text"]:
        told, wanted = _names(answer), _names(expected.text)
        return len(told & wanted) / len(told | wanted) if told | wanted else 0.0
    return float(bool(answer) and answer.lower() == expected.text.strip().lower())


def _exact(expected: Expected) -> bool:
    return PurePosixPath(expected.truth["image"]).name.split("_")[0] in EXACT_IMAGES


def _names(text: str) -> set[str]:
    return {name.strip().lower() for name in text.split(",") if name.strip()}


# Text in images


def contains_any(answer: str, expected: Expected) -> float:
    """One of the right texts stands in the answer without newlines; case and spaces count by the kind of the question."""
    given = _plain(answer, expected)
    return float(any(_plain(one, expected) in given for one in right_ones(expected)))


def equals_any(answer: str, expected: Expected) -> float:
    """The answer is one of the right texts, in the same form; an empty one is never right."""
    given = _plain(answer, expected)
    return float(bool(given) and any(_plain(one, expected) == given for one in right_ones(expected)))


def right_ones(expected: Expected) -> Sequence[str]:
    """All right answers of a sample, be they several or one."""
    answers = expected.truth.get("answers")
    return tuple(answers or ()) if texts(answers) else (expected.text,)


def _plain(text: str, expected: Expected) -> str:
    if expected.truth["answer_type"] == FORMULAS:
        return text.strip().replace(" ", "").replace("\n", "")
    return text.lower().strip().replace("\n", "")
