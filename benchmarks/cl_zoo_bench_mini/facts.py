"""What a fact is: something that is true of a scene, with ways to ask for it and wrong alternatives."""

from __future__ import annotations

from dataclasses import dataclass

YES_NO = ("yes", "no")
NUMBERS = tuple(str(number) for number in range(13))
HOURS = NUMBERS[1:]


@dataclass(frozen=True)
class Fact:
    """Something that is true of a scene.

    Attributes:
        skill: what answering takes; accuracy is reported by skill.
        asks: ways to ask for it.
        answer: in its canonical form: digits, common names.
        pool: the answers that could have been, for options; the true one among them.
        sentence: a whole sentence with `{}` in the place of the answer.
    """

    skill: str
    asks: tuple[str, ...]
    answer: str
    pool: tuple[str, ...]
    sentence: str
