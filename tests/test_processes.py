"""What the processes of a run share out and add up; one process here, several in test_processes.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cl_zoo
from cl_zoo import Backbone
from cl_zoo.engine.streams import TaskBatches
from cl_zoo.errors import OptionError
from cl_zoo.processes import World, drawn, share, total
from cl_zoo.recipe.recipe import Recipe
from cl_zoo.testing import tiny_benchmark


@dataclass
class Numbers:
    """A batch of numbers that can be cut."""

    numbers: list[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, places: Any) -> Numbers:
        return Numbers([self.numbers[place] for place in places])


def cut(count: int, size: int) -> list[Any]:
    return [Numbers(list(range(start, min(start + size, count)))) for start in range(0, count, size)]


def shares(batches: Any, world: int, samples: int | None, patch: pytest.MonkeyPatch) -> list[list[int]]:
    """The numbers that each of `world` processes gets."""
    found = []
    for rank in range(world):
        patch.setattr("cl_zoo.processes._distributed", lambda: True)
        patch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        patch.setattr("torch.distributed.get_world_size", lambda: world)
        found.append([number for batch in share(batches, samples) for number in batch.numbers])  # type: ignore[attr-defined]
    return found


@given(
    count=st.integers(0, 30),
    size=st.integers(1, 8),
    world=st.integers(1, 4),
    samples=st.none() | st.integers(1, 40),
)
def test_shares_are_disjoint_and_make_up_what_is_drawn_of_the_task(
    count: int, size: int, world: int, samples: int | None
):
    with pytest.MonkeyPatch.context() as patch:
        parts = shares(cut(count, size), world, samples, patch)

    found = sorted(number for part in parts for number in part)
    assert len(found) == len(set(found)) == min(count, count if samples is None else samples)
    assert set(found) <= set(range(count))


def test_a_draw_is_by_the_seed_of_the_hook_and_by_nothing_else():
    """Another seed draws others; how the task is cut into batches, and what was drawn before, changes nothing."""

    def numbers(seed: int, size: int) -> list[int]:
        torch.manual_seed(seed)
        torch.randn(seed)
        return [number for batch in drawn(cut(40, size), 8) for number in batch.numbers]  # type: ignore[attr-defined]

    assert numbers(1, 5) == numbers(1, 7) == sorted(numbers(1, 5))
    assert numbers(1, 5) != numbers(2, 5)
    assert max(numbers(1, 5)) >= 8


def test_of_a_file_that_is_sorted_by_class_every_class_is_drawn():
    """1000 samples of 10 classes, one after the other: 128 of them miss no class, where the first 128 have two."""
    torch.manual_seed(0)
    found = [number // 100 for batch in drawn(cut(1000, 24), 128) for number in batch.numbers]  # type: ignore[attr-defined]

    assert set(found) == set(range(10))


def test_a_single_process_gets_everything_in_order(tiny: Backbone):
    """Twelve samples in batches of five; seven that are drawn come in the task's order, in batches of five too."""
    train = tiny_benchmark().tasks[0].train
    batches = TaskBatches(tiny, train, Recipe(global_batch=5))

    assert [len(batch) for batch in share(batches)] == [5, 5, 2]
    some = list(share(batches, samples=7))
    assert [len(batch) for batch in some] == [5, 2]
    ids, found = [sample.id for sample in train], [sample.id for batch in some for sample in batch.samples]
    assert found == [id for id in ids if id in found]
    assert some[0].targets is not None


def test_a_tasks_batches_are_made_when_they_are_asked_for(tiny: Backbone, monkeypatch: pytest.MonkeyPatch):
    made = []
    real = tiny.batch
    monkeypatch.setattr(
        tiny, "batch", lambda samples, **known: made.append(len(samples)) or real(samples, **known)
    )
    batches = TaskBatches(tiny, tiny_benchmark().tasks[0].train, Recipe(global_batch=5))

    assert len(batches) == 3
    assert made == []
    assert batches[2].tokens > 0
    assert made == [2]
    with pytest.raises(IndexError):
        batches[3]


def test_who_looks_at_samples_only_makes_no_tensors(tiny: Backbone, monkeypatch: pytest.MonkeyPatch):
    made = []
    real = tiny.batch
    monkeypatch.setattr(
        tiny, "batch", lambda samples, **known: made.append(len(samples)) or real(samples, **known)
    )
    batch = TaskBatches(tiny, tiny_benchmark().tasks[0].train, Recipe(global_batch=5))[1]

    assert [sample.id for sample in batch.samples] == [f"{place:06d}" for place in range(5, 10)]
    assert (len(batch), made) == (5, [])
    assert batch.targets is not None
    assert len(batch.rows([0, 3])) == 2
    assert made == [5]  # and only once


def test_a_total_of_one_process_is_the_tensor_in_fp32_without_its_history():
    weight = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)

    summed = total(weight * 3)

    assert summed.dtype == torch.float32
    assert not summed.requires_grad
    assert summed.tolist() == [3.0, 3.0]
    assert cl_zoo.total is total


def test_terms_of_all_processes_are_added_by_name(monkeypatch: pytest.MonkeyPatch):
    world = World("cpu")
    assert world.sum_by_name({"task": 1.5}) == {"task": 1.5}

    monkeypatch.setattr(world, "gather", lambda records: [*records, {"task": 2.0, "pull": 1.0}, {}])

    assert world.sum_by_name({"task": 1.5}) == {"task": 3.5, "pull": 1.0}


@pytest.mark.parametrize("device", ["cuda:x", "cuda:7"])
def test_a_device_that_is_not_there_is_refused(device: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)

    with pytest.raises(
        OptionError, match=f"--device {device}: there is no such device; there are 2, counted from"
    ):
        World(device)


def test_a_forward_without_a_gradient_does_not_take_the_gradient_from_the_next():
    """Under autocast torch may keep the bf16 copy of a weight; one made without a gradient must not be used again."""
    weight = torch.ones(2, 2, requires_grad=True)
    with World("cpu").autocast("bf16"):
        with torch.no_grad():
            torch.nn.functional.linear(torch.ones(1, 2), weight)
        torch.nn.functional.linear(torch.ones(1, 2), weight).sum().backward()

    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]
