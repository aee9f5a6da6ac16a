"""Faults as they are found: all are counted, the first ones are told."""

from __future__ import annotations

from collections.abc import Sequence

from cl_zoo.data import places
from cl_zoo.data.splits import Split
from cl_zoo.errors import shown
from cl_zoo.tasks import Sample, TaskData, place_in, whole_of

SHOWN = 20


class Found:
    """Faults, one sentence each; of a hundred thousand the first few are kept.

    Attributes:
        count: of all.
        first: the sentences that are told.
    """

    def __init__(self) -> None:
        self.count, self.first = 0, list[str]()

    def add(self, sentence: str) -> None:
        """One more."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(sentence)

    def told(self) -> str:
        """A line that counts them, then a line for each of the first."""
        one = "1 fault stands" if self.count == 1 else f"{self.count:,} faults stand"
        it = "it" if self.count == 1 else "them"
        lines = [
            f"{one} in the way of this run; mend {it}, or run all the same with --no-preflight:",
            *self.first,
        ]
        if self.count > len(self.first):
            lines.append(f"… and {self.count - len(self.first):,} more")
        return "\n  ".join(lines)


def where(task: TaskData, split: str, index: int) -> str:
    """Task, file, record from 1 and its id, as a sentence about a sample begins."""
    samples: Sequence[Sample] = getattr(task, split)
    whole, place = whole_of(samples), place_in(samples, index)
    if isinstance(whole, Split):
        stands = places.where(whole, place)
    else:
        stands = f"{split} sample {place + 1} (id {shown(samples[index].id)})"
    return f"task {task.name}, {stands}"
