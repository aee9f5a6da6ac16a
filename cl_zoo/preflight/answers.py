"""The right answers of a test split: whether a model may say them, and whether the scorer can score by them."""

from __future__ import annotations

from collections.abc import Sequence

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import pieces
from cl_zoo.preflight.found import Found, where
from cl_zoo.preflight.lengths import PIECE
from cl_zoo.scoring.golds import WORDLESS, Golds, golds
from cl_zoo.scoring.judges import Expected
from cl_zoo.scoring.rules import RULES, lacking
from cl_zoo.tasks import Sample, TaskData, without_image


def answer_faults(task: TaskData, backbone: Backbone, found: Found) -> None:
    """Put every right answer through the task's rule and hold it against `max_new_tokens`; one faults each.

    Args:
        found: takes the faults.
    """
    if task.metric not in RULES:
        return  # a run is refused for that before
    through = Golds(task.metric)  # how long an answer is, its tokens say
    for piece in pieces(len(task.test), PIECE):
        places = range(len(task.test))[piece]
        asked = [_expected(without_image(task.test, place)) for place in places]
        for place, says in zip(places, _faults(task, through, places, asked, backbone), strict=True):
            if says:
                found.add(f"{where(task, 'test', place)}: {says}")
    for place in through.wordless():
        found.add(f"{where(task, 'test', place)}: {WORDLESS.says}; {WORDLESS.remedy}")


def _faults(
    task: TaskData, through: Golds, places: Sequence[int], asked: Sequence[Expected], backbone: Backbone
) -> list[str]:
    """A sentence for each sample, empty where nothing is wrong."""
    says = [_by_rule(task.metric, through, place, one) for place, one in zip(places, asked, strict=True)]
    texts = {
        place: golds(task.metric, one)
        for place, one in enumerate(asked)
        if not says[place] and not _short(golds(task.metric, one), task.max_new_tokens)
    }
    said = [backbone.answer_lead + text for those in texts.values() for text in those]
    counted = iter(backbone.text_tokens(said) if said else ())
    for place, those in texts.items():
        least = min(next(counted) for _ in those)
        if least > task.max_new_tokens:
            what = "its answer has" if len(those) == 1 else "the shortest of its answers has"
            says[place] = (
                f"{what} {least} tokens, more than the task's max_new_tokens {task.max_new_tokens}, so that no model "
                f"can give it; raise max_new_tokens to {least}, or shorten the answer"
            )
    return says


def _by_rule(metric: str, through: Golds, place: int, expected: Expected) -> str:
    """Why an answer cannot be scored or never scores full marks, with what to do about it in the data."""
    if what := lacking(RULES[metric], expected):
        return f"{metric} scoring needs {what}; give it for every test sample or choose another metric"
    wrong = through.mismatch(place, expected)
    return f"{wrong.says}; {wrong.remedy}" if wrong is not None and wrong.remedy else ""


def _short(texts: Sequence[str], most: int) -> bool:
    """Whether one of the texts has no more bytes than an answer may have tokens, so that nothing needs to be counted."""
    return any(len(text.encode()) < most for text in texts)


def _expected(sample: Sample) -> Expected:
    return Expected(sample.answer, sample.references, sample.truth)
