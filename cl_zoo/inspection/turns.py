"""What each way to learn conversations of several questions makes of a split, as a remark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from cl_zoo.inspection.findings import Finding, counted

if TYPE_CHECKING:
    from cl_zoo.inspection.readings import Reading


def several_turns(reading: Reading, questions: Mapping[int, int], turns: str) -> Iterator[Finding]:
    """Samples, learnt answers and steps of an epoch under `turns: all`, `last` and `split`; nothing where all ask one question.

    Args:
        reading: the split.
        questions: of each record that can be used, by its number.
        turns: what the description says.
    """
    several = sum(count > 1 for count in questions.values())
    if not several:
        return
    whole, each = len(questions), sum(questions.values())
    # samples and learnt answers
    ways = {"all": (whole, each), "last": (whole, whole), "split": (each, each)}
    parts = []
    for name, (samples, answers) in ways.items():
        made = f"'{name}' {counted(samples, 'sample', 'samples')}"
        if reading.split != "train":
            context = "without the turns before" if name == "split" else "with the turns before"
            parts.append(f"{made} {context}")
            continue
        steps = (
            "" if reading.batch is None else f" in {counted(-(-samples // reading.batch), 'step', 'steps')}"
        )
        parts.append(f"{made} with {counted(answers, 'learnt answer', 'learnt answers')}{steps}")
    epoch = (
        "" if reading.batch is None or reading.split != "train" else f"; a step has {reading.batch} samples"
    )
    words = f"{several:,} of {whole:,} records hold several questions; 'turns' is '{turns}': {', '.join(parts)}{epoch}"
    yield replace(reading.finding("turns", f"{reading.task}, {reading.split}: {words}"), count=several)
