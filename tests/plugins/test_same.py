"""SAME: values by hand, what may move while an expert is frozen, and a run that goes on as one that was never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cl_zoo_same import SAME, ranked, slowed
from tiny_runs import Watched, learnt

from cl_zoo.batches import Batch, task_loss
from cl_zoo.nn import Told
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Task
from cl_zoo.testing import tiny_backbone, tiny_benchmark

BENCHMARK = tiny_benchmark(3, size=8)
RECIPE = {"adapter.rank": 8, "adapter.dropout": 0}


def options(**given: object) -> SAME.Options:
    return SAME.Options(**given)


def task(index: int) -> Task:
    return Task(index, f"task {index}", "", 8)


def made(folder: Path, **given: object) -> tuple[SAME, Told, Batch]:
    """The method before its first task, in training mode, and a batch with padding."""
    torch.manual_seed(0)
    backbone = tiny_backbone(folder)
    method = SAME(options(experts=3, **given))
    model = method.build_model(backbone, build_recipe(RECIPE)).train()
    for layer in method.layers:
        for up in layer.bank_up.values():
            torch.nn.init.normal_(up, std=0.1)
    method.before_task(task(0))
    return method, model, backbone.batch([data.train[0] for data in BENCHMARK.tasks], answers=True)


def step(method: SAME, model: Told, batch: Batch) -> None:
    model.zero_grad()
    task_loss(model, batch).backward()
    method.before_step()


# --- values by hand -------------------------------------------------------------------------------------------------


def test_scores_rank_the_experts_of_each_layer_from_zero_to_one() -> None:
    assert ranked(torch.tensor([[2.0, 4, 3], [5, 5, 5]])).tolist() == [[0, 1, 0.5], [0, 0, 0]]


@pytest.mark.parametrize(
    ("given", "g"),
    [
        ({"window": 1}, [0.125, 0.5, 1]),
        ({"window": 2}, [0.125, 0.2, 0.8]),
        ({"window": 3}, [0.125, 0.2, 6 / 21]),
        ({"window": 1, "variant": "released"}, [0.8, 0.8, 1]),
    ],
)
def test_a_strong_direction_slows_a_router_more(given: dict[str, object], g: list[float]) -> None:
    """Of σ = 8, 2, 0.5: the inverse of the mean of the last `window`, never above one; released: never below 0.8 of the largest inverse."""
    assert slowed(torch.tensor([8.0, 2.0, 0.5]), options(**given)).tolist() == pytest.approx(g, abs=1e-6)


# --- who takes part -------------------------------------------------------------------------------------------------


def test_a_frozen_expert_neither_answers_nor_gets_a_gradient(tiny_folder: Path) -> None:
    """Once the past belongs to expert 0 and the present to expert 1."""
    method, model, batch = made(tiny_folder)
    method.energy = torch.tensor([1.0, 0, 0.5]).expand_as(method.energy).clone()
    method.before_task(task(1))
    for gate in method.gates:
        gate.sums = torch.tensor([[1.0, 5, 4], [0, 0, 0]])
    with torch.no_grad():
        method.before_step()

    assert method.open.unique(dim=0).tolist() == [[0, 1, 1]]
    step(method, model, batch)
    layer = method.layers[0]
    assert layer.bank_down["e0"].grad is None
    assert layer.bank_up["e0"].grad is None
    assert layer.bank_down["e1"].grad is not None
    with torch.no_grad():
        loss = task_loss(model, batch)
        for one in method.layers:
            one.bank_up["e0"].fill_(7.0)
        assert task_loss(model, batch) == loss
        assert task_loss(model.eval(), batch) != loss  # at inference all answer


def test_in_the_first_task_all_take_part(tiny_folder: Path) -> None:
    method, model, batch = made(tiny_folder)

    step(method, model, batch)

    assert bool(method.open.all())


def test_one_expert_of_a_layer_learns_whatever_the_threshold(tiny_folder: Path) -> None:
    method, model, batch = made(tiny_folder, threshold=1.0)
    step(method, model, batch)
    method.before_task(task(1))

    step(method, model, batch)

    assert bool((method.open.sum(1) >= 1).all())


# --- what is looked at ----------------------------------------------------------------------------------------------


def test_only_every_nth_step_is_looked_at_and_padding_counts_nowhere(tiny_folder: Path) -> None:
    method, model, batch = made(tiny_folder, every=2)
    for _ in range(4):
        step(method, model, batch)

    assert {int(gate.sketch.count) for gate in method.gates} == {2 * batch.tokens}
    assert batch.tokens < batch.inputs["attention_mask"].numel()


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_gradients_in_pieces_become_those_of_the_whole_batch(tiny_folder: Path, variant: str) -> None:
    """Two micro-batches whose losses add up, against one batch."""
    found, opened = [], []
    for pieces in ([[0, 1, 2]], [[0], [1, 2]]):
        method, model, batch = made(tiny_folder, variant=variant)
        step(method, model, batch)
        method.before_task(task(1))
        model.zero_grad()
        for rows in pieces:
            piece = batch.rows(rows)
            (task_loss(model, piece) * piece.answer_mask.sum()).backward()
        method.before_step()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
        opened.append(method.open)

    assert torch.equal(*opened)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-6)


def test_a_stopped_task_goes_on_with_what_was_seen(tiny_folder: Path) -> None:
    """State after a task, then `before_task`, then state within the task: as midway checkpoints are taken up."""
    whole, model, batch = made(tiny_folder, every=2)
    step(whole, model, batch)
    after = whole.state_dict()
    whole.before_task(task(1))
    step(whole, model, batch)
    within = whole.state_dict()
    step(whole, model, batch)

    other, twin, _ = made(tiny_folder, every=2)
    other.load_state_dict(after)
    other.before_task(task(1))
    other.load_state_dict(within)
    step(other, twin, batch)

    gradients = dict(twin.named_parameters())
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            assert torch.equal(gradients[name].grad, weight.grad), name
    assert torch.equal(other.open, whole.open)


# --- runs -----------------------------------------------------------------------------------------------------------


def test_three_tasks_are_learnt_and_told_of(tiny_folder: Path, tmp_path: Path) -> None:
    run = learnt(
        Watched,
        "same[experts=3]",
        BENCHMARK.tasks,
        tiny_backbone(tiny_folder),
        build_recipe(BENCHMARK.recipe, RECIPE),
        tmp_path,
    )

    assert [set(one) for one in run.measured] == [{"same/open", "same/directions"}] * 3
    assert run.measured[0]["same/open"] == 3
    assert all(1 <= one["same/open"] <= 3 for one in run.measured)
    assert all(one["same/directions"] >= 1 for one in run.measured)
