"""Samples and batches that are made when they are asked for, so that no task has to fit into memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

from torch import Tensor

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch
from cl_zoo.recipe.recipe import Recipe
from cl_zoo.tasks import OnDemand, Part, Sample, TaskData, origin, without_image

Record = TypeVar("Record")


class Share(Part[Sample]):
    """Every n-th sample of a sequence: what one process answers."""

    def __init__(self, samples: Sequence[Sample], rank: int, size: int) -> None:
        super().__init__(samples, range(rank, len(samples), size))

    def merged(self, gather: Callable[[list[Any]], list[Any]], records: Sequence[Record]) -> list[Record]:
        """What all processes made of their samples, one record each, in the order of the whole sequence.

        Args:
            gather: gives the things of all processes to each of them.
            records: this process's.
        """
        everything = gather(list(zip(self.places, records, strict=True)))
        return [record for _, record in sorted(everything, key=lambda one: one[0])]


class Union(OnDemand[Sample]):
    """Several sequences of samples, one after the other, none of them read before it is asked for."""

    def __init__(self, sequences: Sequence[Sequence[Sample]]) -> None:
        self._sequences = sequences
        self._ends = list(accumulate(len(sequence) for sequence in sequences))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def make(self, place: int) -> Sample:
        which = bisect_right(self._ends, place)
        sequence = self._sequences[which]
        return sequence[place - self._ends[which] + len(sequence)]


class TaskBatches(OnDemand[Batch]):
    """A task's training data as batches in the order of the data; each is made when it is asked for, its tensors
    when they are."""

    def __init__(self, backbone: Backbone, samples: Sequence[Sample], recipe: Recipe) -> None:
        self._backbone, self._samples, self._recipe = backbone, samples, recipe
        self._size = recipe.micro_batch or recipe.global_batch

    def __len__(self) -> int:
        return -(-len(self._samples) // self._size)

    def make(self, place: int) -> Batch:
        samples = range(len(self._samples))[place * self._size : (place + 1) * self._size]
        return Later(Part(self._samples, samples), self._backbone)

    def take(self, places: Sequence[int]) -> TaskBatches:
        """Batches of some of the samples alone, in the given order."""
        return TaskBatches(self._backbone, Part(self._samples, places), self._recipe)


class Later(Batch):
    """A batch whose tensors are made when they are asked for: who looks at samples only pays for no image features."""

    def __init__(self, samples: Sequence[Sample], backbone: Backbone) -> None:
        self.samples, self._backbone = tuple(samples), backbone

    @cached_property
    def _made(self) -> Batch:
        return self._backbone.batch(self.samples, answers=True)

    @property
    def inputs(self) -> dict[str, Any]:  # type: ignore[override]
        return self._made.inputs

    @property
    def targets(self) -> Tensor | None:  # type: ignore[override]
        return self._made.targets

    @property
    def spans(self) -> tuple[int, ...]:  # type: ignore[override]
        return self._made.spans


def expected(task: TaskData) -> Iterator[dict[str, Any]]:
    """What the answers to a task are scored against, one record per test sample, with its place, where it comes from and
    the turns before its question."""
    for i in range(len(task.test)):
        sample = without_image(task.test, i)
        named: dict[str, Any] = {"id": sample.id, "place": i, **origin(task.test, i)}
        if sample.before:
            named |= {"before": [list(turn) for turn in sample.before]}
        wanted = {**named, "answer": sample.answer, "references": list(sample.references)}
        yield {**wanted, "truth": dict(sample.truth)} if sample.truth else wanted
