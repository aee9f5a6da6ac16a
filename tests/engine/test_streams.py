"""What the engine hands out on demand: a process's share, several sequences as one, a task's batches."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sequences import PARTS, PLACES, reads_as

from cl_zoo import Batch, Sample
from cl_zoo.backbones.backbone import Backbone
from cl_zoo.engine.streams import Share, TaskBatches, Union
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import OnDemand
from cl_zoo.testing import tiny_benchmark

SAMPLES = list(tiny_benchmark(2, size=8).tasks[0].train)


class Counted(OnDemand[Any]):
    """So many items, which remember that they were made."""

    def __init__(self, size: int) -> None:
        self.size, self.made = size, list[int]()

    def __len__(self) -> int:
        return self.size

    def make(self, place: int) -> Any:
        self.made.append(place)
        return place


@given(st.integers(0, 8), st.integers(1, 3), PLACES, PARTS)
def test_the_shares_of_all_processes_read_as_every_nth_sample(
    size: int, world: int, index: int, part: slice
) -> None:
    for rank in range(world):
        reads_as(Share(SAMPLES[:size], rank, world), SAMPLES[:size][rank::world], index, part)


@given(st.integers(0, 8), st.integers(1, 3))
def test_what_the_processes_made_of_their_shares_comes_back_in_the_order_of_the_samples(
    size: int, world: int
) -> None:
    shares = [Share(SAMPLES[:size], rank, world) for rank in range(world)]
    everything: list[Any] = []
    for share in shares:
        share.merged(lambda mine: everything.extend(mine) or [], [sample.id for sample in share])  # type: ignore[func-returns-value]

    merged = shares[0].merged(lambda mine: everything, [sample.id for sample in shares[0]])
    assert merged == [sample.id for sample in SAMPLES[:size]]


@given(st.lists(st.integers(0, 3), max_size=4), PLACES, PARTS)
def test_a_union_reads_as_its_sequences_one_after_the_other(
    sizes: list[int], index: int, part: slice
) -> None:
    pieces = [SAMPLES[:size] for size in sizes]

    reads_as(Union(pieces), [sample for piece in pieces for sample in piece], index, part)


def test_a_union_and_its_slices_read_nothing_before_it_is_asked_for() -> None:
    last = Counted(3)
    union = Union([SAMPLES[:1], [], last, SAMPLES[1:3]])

    part = union[1:4]
    assert (len(union), len(part)) == (6, 3)
    assert not last.made
    assert union[3] == 2  # type: ignore[comparison-overlap]
    assert part[-2] == 1  # type: ignore[comparison-overlap]
    assert last.made == [2, 1]


@given(st.integers(1, 8), st.integers(1, 4), PLACES, PARTS)
def test_a_tasks_batches_read_as_its_samples_in_pieces(
    size: int, length: int, index: int, part: slice
) -> None:
    """No batch asks its backbone for tensors here, so there need not be one."""
    recipe = build_recipe({"global_batch": 4, "micro_batch": length})
    batches = TaskBatches(None, SAMPLES[:size], recipe)  # type: ignore[arg-type]
    wanted = [tuple(SAMPLES[:size][start : start + length]) for start in range(0, size, length)]

    def samples(batch: Batch) -> tuple[Sample, ...]:
        return batch.samples

    reads_as(batches, wanted, index, part, seen=samples)


def test_a_batch_reads_its_own_samples_and_makes_its_tensors_when_they_are_asked_for(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    build = tiny.batch
    monkeypatch.setattr(
        tiny, "batch", lambda samples, answers: made.append(1) or build(samples, answers=answers)
    )
    batches = TaskBatches(tiny, SAMPLES, build_recipe({"global_batch": 6, "micro_batch": 3}))

    last = batches[-1]
    assert last.samples == tuple(SAMPLES[6:])
    assert not made
    assert last.inputs["input_ids"].shape[0] == len(last) == 2
    assert made == [1]
