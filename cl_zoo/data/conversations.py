"""How many conversations of several questions a split holds, and what is learnt of them, without looking at an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cl_zoo.data.records import Entry
from cl_zoo.data.splits import Split
from cl_zoo.tasks import Sample, place_in, whole_of


def conversations(split: Sequence[Sample]) -> Mapping[str, int]:
    """Counts of a split; nothing where no conversation asks more than once, or where samples are drawn when they are asked for.

    Returns:
        `records`, the `samples` made of them, the `questions` in them and the `answers` that are learnt.
    """
    whole, found = whole_of(split), list[tuple[int, Entry | Sample]]()
    if isinstance(whole, Split):
        entries = whole.entries
        if not entries.several and entries.records == len(entries):
            return {}
        found += [entries[place_in(split, index)] for index in range(len(split))]
    elif isinstance(whole, list | tuple):
        found += enumerate(split)
    else:
        return {}
    records = len({number for number, _ in found})
    questions = sum(1 + len(one.before) for _, one in found)
    if questions == records:
        return {}
    answers = sum(1 + len(one.before) * one.learns_before for _, one in found)
    return {"records": records, "samples": len(found), "questions": questions, "answers": answers}
