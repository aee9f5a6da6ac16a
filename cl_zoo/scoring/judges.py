"""How right one answer is: small pure functions (stripped answer, what was expected) -> 0 to 1.

Some do what released evaluation code does, slips included, and some are correct ones for the same data; `cl_zoo.scoring.rules`
pairs them, names their origin, and says what is wrong with the former.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from cl_zoo.data.needs import PEOPLE, texts

LETTERS = "ABCDE"
"""Options of ScienceQA."""


@dataclass(frozen=True)
class Expected:
    """What was expected of one sample.

    Attributes:
        answer: the right answer.
        references: for captions.
        truth: what a rule needs beyond these: `answers` (texts), `box` (x1, y1, x2, y2 in 0 to 1 of the padded square) with
            `size` (width, height in pixels), `choices` (the options of a question).
    """

    answer: str | None = None
    references: tuple[str, ...] = ()
    truth: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The right answer, where `lacking` has found one."""
        return self.answer or ""


Judge = Callable[[str, Expected], float]
"""(stripped answer, what was expected) -> 0 to 1."""


# One text against another


def equal(answer: str, expected: Expected) -> float:
    """Equality in upper case, nothing else: "B." is not "B" and "2.0" is not "2"."""
    return float(answer.upper() == expected.text.upper())


def equal_stripped(answer: str, expected: Expected) -> float:
    """Equality whatever the case and the space around; an empty answer is never right."""
    return float(bool(answer) and answer.upper() == expected.text.strip().upper())


def contained(answer: str, expected: Expected) -> float:
    """The answer stands somewhere in the expected text."""
    return float(answer.upper() in expected.text.upper())


def either_contains(answer: str, expected: Expected) -> float:
    """One of both texts stands in the other; case counts."""
    return float(expected.text in answer or answer in expected.text)


def answerable(answer: str, expected: Expected) -> float:
    """Equality in lower case, but what holds `Unanswerable` is wrong."""
    return float("Unanswerable" not in answer and answer.lower() == expected.text.lower())


def without_stops(answer: str, expected: Expected) -> float:
    """The answer in lower case without full stops at its end equals the expected text as it is."""
    return float(answer.rstrip(".").lower() == expected.text)


def contains(answer: str, expected: Expected) -> float:
    """The expected text stands somewhere in the answer; what holds `Unanswerable` is wrong."""
    return float("Unanswerable" not in answer and expected.text.lower() in answer.lower())


def contains_bounded(answer: str, expected: Expected) -> float:
    """As `contains`; one expected word needs a border on one side where the answer has several words."""
    if "Unanswerable" in answer:
        return 0.0
    given, wanted = answer.lower(), expected.text.lower()
    if " " in wanted:
        return float(wanted in given)
    wanted = wanted.replace(".", "")
    if " " not in given:
        return float(wanted in given)
    return float(any(part in given for part in (f" {wanted}", f"{wanted} ", f"{wanted}.", f"{wanted},")))


# Letters of ScienceQA


def letter_by_first_character(answer: str, expected: Expected) -> float:
    """Without a letter at the beginning, the first word of one character is the letter: "a dog" says A."""
    single = re.search(r"\b\w\b", answer)
    letter = _plain_letter(answer) or (single.group().upper() if single else "")
    return _chosen(letter, expected)


def letter_by_phrase(answer: str, expected: Expected) -> float:
    """Without a letter at the beginning, `The answer is X` and one more character, found exactly once, gives it."""
    found = re.findall(r"The answer is ([A-Z]).", answer)  # any character, so "The answer is Bob" says B
    return _chosen(_plain_letter(answer) or (found[0] if len(found) == 1 else ""), expected)


def letter(answer: str, expected: Expected) -> float:
    """A letter that stands alone, begins the answer as a list would, or is named once by `answer is`.

    "B", "b", "(B)", "B.", "B) a lake" and "the answer is B" say B; "a dog" and "The answer is Bob" say nothing.
    """
    alone = re.fullmatch(r"\(?([A-Za-z])[).:]{0,2}", answer)
    listed = re.match(r"\(([A-Z])\)\s|([A-Z])[.):]\s", answer)
    named = re.findall(r"\banswer is:?\s*\(?([A-Z])\b", answer, re.IGNORECASE)
    if alone:
        return _chosen(alone[1].upper(), expected)
    if listed:
        return _chosen(listed[1] or listed[2], expected)
    letters = {one for one in named if one.isupper()}
    return _chosen(letters.pop() if len(letters) == 1 else "", expected)


def _plain_letter(answer: str) -> str:
    """The letter of `B` or `B. …`, else nothing; only these begin both official parsers."""
    listed = len(answer) >= 3 and answer[1:3] == ". "
    return answer[0] if answer[:1] and answer[0] in LETTERS and (len(answer) == 1 or listed) else ""


def _chosen(letter: str, expected: Expected) -> float:
    choices = expected.truth.get("choices")
    options = LETTERS[: len(choices)] if choices else LETTERS
    return float(bool(letter) and letter in options and letter == expected.text)


# What a person would let pass


def in_content(answer: str, expected: Expected) -> float:
    """The right answer in another form: a letter with its text, digits for a number word, another case, other signs.

    "(B) a lake" and "the answer is B" say B; "B. otter", "An otter." and "the answer is otter" say otter; "two", "2" and "2.0"
    are one number. It scores nothing: it counts the answers that a rule refuses for their form alone.
    """
    wanted = expected.text.strip()
    if re.fullmatch("[A-Z]", wanted):
        return letter(answer, Expected(wanted, truth=expected.truth))
    said = re.sub(r"^(the )?answer is:?\s+", "", answer, flags=re.IGNORECASE)
    unlisted = re.sub(r"^\(?[A-Z][.):]+\s+", "", said)
    return float(any(bool(text) and _same_words(text, wanted) for text in (said, unlisted)))


def _same_words(first: str, second: str) -> bool:
    ours, theirs = never_empty(first), never_empty(second)
    try:
        return ours == theirs or float(ours) == float(theirs)
    except ValueError:
        return False


# Answers of ten people

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
ARTICLES = ("a", "an", "the")
SHORTENED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've "
    "he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't "
    "not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll "
    "somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd "
    "there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're "
    "what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't "
    "would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've"
).split()
APOSTROPHES = {
    whole[:place] + whole[place + 1 :]: whole
    for whole in SHORTENED
    for place, sign in enumerate(whole)
    if sign == "'"
} | {"somebody'd": "somebodyd"}
"""Shortened words with one apostrophe forgotten, and the one word that EvalAI changes the other way."""


@lru_cache(maxsize=1 << 12)  # the ten answers to a question are looked at once for each of them
def normalised(text: str) -> str:
    """A text as EvalAI compares it: no articles, no punctuation, digits for number words, apostrophes put back.

    Taken from the behaviour of `EvalAIAnswerProcessor`, its slips included: a sign of punctuation that touches no space
    becomes a space, and at most 32 full stops go, since a flag stands where their number belongs.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    plain = text
    for sign in PUNCTUATION:
        if sign in text:
            touches_space = f"{sign} " in text or f" {sign}" in text
            plain = plain.replace(sign, "" if touches_space else " ")
    if "." in plain:
        plain = re.sub(r"\.(?!\d)", "", plain, count=int(re.UNICODE))
    words = [NUMBERS.get(word, word) for word in plain.split()]
    return " ".join(APOSTROPHES.get(word, word) for word in words if word not in ARTICLES)


def never_empty(text: str) -> str:
    """As `normalised`, but a text of articles and signs alone stays what it is: "A" is an answer, "" is none."""
    return normalised(text) or text.strip().lower()


def agreement(answer: str, people: Sequence[str]) -> float:
    """Share of an answer that the others agree with: mean over the people of min(1, agreeing others / 3).

    Args:
        answer, people: already normalised.

    Returns:
        0 where nobody gave the answer, else with 10 people 0.3, 0.6, 0.9 and 1 for 1, 2, 3 and more who gave it.
    """
    return _shared(tuple([one == answer for one in people]))


@lru_cache(maxsize=1 << 10)  # all there are with ten people
def _shared(agrees: tuple[bool, ...]) -> float:
    """The mean over the people, of whom some agree with an answer."""
    same = sum(agrees)
    scores = [min(1.0, (same - one) / 3) for one in agrees]
    return sum(scores) / len(scores) if same else 0.0


@lru_cache(maxsize=1 << 4)  # one question is asked about once for every answer to it
def _all(form: Callable[[str], str], people: tuple[str, ...]) -> list[str]:
    return [form(one) for one in people]


def by_people(answer: str, expected: Expected) -> float:
    """Soft accuracy over the ten answers."""
    return agreement(normalised(answer), _all(normalised, tuple(expected.truth["answers"])))


def by_people_strictly(answer: str, expected: Expected) -> float:
    """Soft accuracy over the ten answers; an empty answer is never right."""
    people = _all(never_empty, tuple(expected.truth["answers"]))
    return agreement(never_empty(answer), people) if answer else 0.0


def by_people_or_equal(answer: str, expected: Expected) -> float:
    """Soft accuracy over ten answers where they are known, else equality of the normalised texts."""
    answers = expected.truth.get("answers") or ()
    if texts(answers) and len(answers) == PEOPLE:
        return by_people_strictly(answer, expected)
    return float(bool(answer) and never_empty(answer) == never_empty(expected.text))


# Edit distance


def likeness(answer: str, expected: Expected) -> float:
    """1 minus edits per length of the longer text, whatever the case; the best of the right answers."""
    answers = expected.truth.get("answers") or ()
    wanted = [one.strip() for one in (answers if texts(answers) else (expected.text,))]
    if answer and any(answer.lower() == one.lower() for one in wanted):
        return 1.0  # before the edits to all others are counted
    return max(_alike(answer, one) for one in wanted)


def likeness_above_half(answer: str, expected: Expected) -> float:
    """The same, but 0 below one half."""
    value = likeness(answer, expected)
    return value if value >= 0.5 else 0.0


def _alike(first: str, second: str) -> float:
    if not (first and second):
        return float(first == second)
    edits = 0 if first.lower() == second.lower() else _edits(first.lower(), second.lower())
    return 1.0 - edits / max(len(first), len(second))


def _edits(first: str, second: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(second) + 1))
    for here, sign in enumerate(first, start=1):
        above, row = row, [here]
        for place, other in enumerate(second, start=1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (sign != other)))
    return row[-1]


# Boxes


def box_sliced(answer: str, expected: Expected) -> float:
    """IoU above 0.5, of what is left when the first and the last character of the numbers are deleted."""
    bare = answer.replace("[", "").replace("]", "")[1:-1]
    try:
        box = [float(number) for number in bare.split(",")]
    except ValueError:
        return 0.0
    return _overlaps(box, expected)


def box(answer: str, expected: Expected) -> float:
    """IoU above 0.5, of the four numbers of the answer."""
    numbers = re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", answer)
    return _overlaps([float(number) for number in numbers], expected)


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2); no pixel is added to a side."""
    sides = [min(first[2 + n], second[2 + n]) - max(first[n], second[n]) for n in (0, 1)]
    common = max(0, sides[0]) * max(0, sides[1])
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (first, second)]
    union = areas[0] + areas[1] - common
    return common / union if union > 0 else 0.0


def _overlaps(box: Sequence[float], expected: Expected) -> float:
    if len(box) != 4:
        return 0.0
    scale = max(expected.truth["size"])  # changes nothing but the last bit, where the official code has it
    return float(iou([scale * n for n in box], [scale * n for n in expected.truth["box"]]) > 0.5)
