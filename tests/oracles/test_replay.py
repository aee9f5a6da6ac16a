"""Replay against the memory files of CoIN: what can be drawn and how likely, and whose memory a task learns."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations

import pytest
import torch
from cl_zoo_replay import Replay

from cl_zoo.batches import Batch
from cl_zoo.nn import draw_samples as draw
from cl_zoo.tasks import Sample


def task(name: str, size: int, batch: int) -> list[Batch]:
    """The task's samples in batches, the last one short where they do not fill it."""
    samples = [Sample(f"{name} {i}", None, f"{name}, question {i}", "yes") for i in range(size)]
    return [Batch(tuple(samples[start : start + batch]), {}) for start in range(0, size, batch)]


def literal(batches: list[Batch], count: int, seed: int) -> list[Sample]:
    """So many places of the whole task, none twice: the first of an order at random, put back into the task's order."""
    everything = [sample for batch in batches for sample in batch.samples]
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed)).tolist()
    return [everything[place] for place in sorted(order[:count])]


@pytest.mark.parametrize("seed", range(30))
def test_a_draw_is_one_from_the_whole_task_however_it_is_cut_into_batches(seed: int) -> None:
    shape = random.Random(seed)
    size, batch, count = shape.randint(1, 40), shape.randint(1, 9), shape.randint(1, 50)
    batches = task("a", size, batch)

    torch.manual_seed(seed)
    drawn = draw(batches, count)

    assert drawn == literal(batches, count, seed)
    assert len({sample.id for sample in drawn}) == len(drawn) == min(size, count)


def test_every_set_of_samples_is_as_likely_as_every_other() -> None:
    """As `numpy.random.choice(n, k, replace=False)` draws. 20 sets of 3 out of 6, 4000 draws: χ² with 19 degrees is below 43.8 in 999 of 1000."""
    batches = task("a", 6, 4)
    seen: Counter[tuple[str, ...]] = Counter()
    for seed in range(4000):
        torch.manual_seed(seed)
        seen[tuple(sample.id for sample in draw(batches, 3))] += 1

    every = [tuple(f"a {i}" for i in places) for places in combinations(range(6), 3)]
    assert set(seen) == set(every)
    assert sum((seen[one] - 200) ** 2 / 200 for one in every) < 43.8


def test_a_task_learns_the_memory_of_all_tasks_before_it_and_nothing_of_its_own() -> None:
    """Their files: before stage t the memories of stages 1 … t − 1, each drawn from its own data set."""
    method = Replay(Replay.Options(samples=5))
    memories: list[Sample] = []
    for index, (name, size) in enumerate((("a", 12), ("b", 7), ("c", 30))):
        assert list(method.rehearse()) == memories

        batches = task(name, size, 4)
        torch.manual_seed(index)
        measured = method.after_task(batches)

        memories += literal(batches, 5, index)
        assert measured == {"replay/memory": 5 * (index + 1)}
    assert list(method.rehearse()) == memories
    assert Counter(one.id.split()[0] for one in memories) == {"a": 5, "b": 5, "c": 5}


def test_a_task_with_fewer_samples_is_kept_whole() -> None:
    """Where theirs fails: it asks for more than there are, without repetition."""
    method = Replay(Replay.Options(samples=5))

    method.after_task(task("a", 3, 2))

    assert [sample.id for sample in method.rehearse()] == ["a 0", "a 1", "a 2"]
