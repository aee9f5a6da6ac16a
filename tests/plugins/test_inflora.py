"""InfLoRA in a run: what learns and how wide, what old inputs see of a new task, what is kept. Equations: `tests/oracles/test_inflora.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cl_zoo_inflora import InfLoRA, Space, taken
from tiny_runs import Watched, learnt

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.engine.ledger import tensors_in
from cl_zoo.engine.streams import TaskBatches
from cl_zoo.nn.budget import budget
from cl_zoo.nn.inputs import input_products
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Task
from cl_zoo.testing import tiny_backbone, tiny_benchmark

BENCHMARK = tiny_benchmark(2, size=8)
RECIPE = {"adapter.rank": 4, "adapter.dropout": 0}


def trained(text: str, folder: Path, root: Path) -> Watched:
    recipe = build_recipe(BENCHMARK.recipe, RECIPE)
    return learnt(Watched, text, BENCHMARK.tasks, tiny_backbone(folder), recipe, root)


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """After two tasks."""
    return trained("inflora", tiny_folder, tmp_path_factory.mktemp("inflora"))


def test_b_alone_learns_and_it_is_as_wide_as_the_budget_lets_it(run: Watched, tiny: Backbone) -> None:
    """4 · (240 + 256) / 256 = 7.75 on each of two decoder layers: rank 7."""
    assert {layer.bank_up["t0"].shape[1] for layer in run.model.layers} == {7}
    learnt_in_a_task = run.ledger.tasks[1].trained["adapters"]
    assert learnt_in_a_task == 7 * 2 * 256 <= budget(tiny, build_recipe(RECIPE))
    first, second = run.kept
    for name, weight in second.items():
        if "bank_down.t0" in name or "bank_up.t0" in name:
            assert torch.equal(weight, first[name])
        if name.endswith("bank_up.t1"):
            assert weight.any()


def test_published_budget_gives_the_recipes_rank(tiny: Backbone) -> None:
    bank = InfLoRA(InfLoRA.Options()).build_model(tiny, build_recipe({**RECIPE, "budget": "published"}))

    assert {layer.bank_up["t0"].shape[1] for layer in bank.layers} == {4}


def test_a_new_expert_reads_directions_at_right_angles_or_nothing(run: Watched) -> None:
    for layer in run.model.layers:
        rows = layer.bank_down["t1"].detach()
        lengths = rows.norm(dim=1)
        assert all(min(abs(float(one)), abs(float(one) - 1)) < 1e-4 for one in lengths)
        torch.testing.assert_close(rows @ rows.T, torch.diag(lengths**2), rtol=0, atol=1e-4)


def test_what_lies_in_the_memory_is_answered_as_before(tiny: Backbone) -> None:
    """Inputs that the first task has taken: B of the second one, however large, adds nothing to them."""
    method, recipe = InfLoRA(InfLoRA.Options(epsilon=0.9)), build_recipe(RECIPE)
    bank = method.build_model(tiny, recipe)
    for place, task in enumerate(BENCHMARK.tasks):
        method.before_task(bank, Task(place, task.name, "", 8), TaskBatches(tiny, task.train, recipe))
        if place == 0:
            method.after_task(bank, Task(0, task.name, "", 8), TaskBatches(tiny, task.train, recipe))
    for layer in bank.layers:
        space = method.spaces[layer.path]
        assert 0 < taken(space) < 1
        inside = torch.eye(layer.in_features) - space.basis @ space.basis.T if space.free else space.basis
        layer.bank_up["t1"].data.fill_(3.0)
        layer._active_adapter = ["t1"]
        with torch.no_grad():
            torch.testing.assert_close(layer(inside.T), layer.base_layer(inside.T), rtol=0, atol=1e-3)


def test_the_memory_is_counted_for_continuing_and_old_directions_stay_taken(run: Watched) -> None:
    method = run.plugins.method
    assert isinstance(method, InfLoRA)

    assert run.ledger.stored["continuing"]["plugins"] == tensors_in(method.state_dict()) > 0
    assert set(method.spaces) == {layer.path for layer in run.model.layers}
    first, second = (measured["inflora/taken"] for measured in run.measured)
    assert 0 < first <= second < 1


def test_a_state_comes_back(run: Watched, tiny: Backbone) -> None:
    again = InfLoRA(InfLoRA.Options())
    again.build_model(tiny, build_recipe(RECIPE))

    again.load_state_dict(run.plugins.method.state_dict())

    assert again.bank.describe() == run.plugins.method.bank.describe()
    for path, space in run.plugins.method.spaces.items():
        assert again.spaces[path].free == space.free
        assert torch.equal(again.spaces[path].basis, space.basis)


def test_inputs_are_counted_without_padding(tiny: Backbone) -> None:
    """The trace of Σ x xᵀ in the first linear of a batch with padding is that of its samples one by one."""
    recipe = build_recipe({**RECIPE, "micro_batch": 8})
    bank = InfLoRA(InfLoRA.Options()).build_model(tiny, recipe)
    together = TaskBatches(tiny, BENCHMARK.tasks[0].train, recipe)
    alone = TaskBatches(tiny, BENCHMARK.tasks[0].train, build_recipe({**RECIPE, "micro_batch": 1}))

    found, wanted = (input_products(bank, bank.layers, data) for data in (together, alone))

    for layer, products in found.items():
        torch.testing.assert_close(products, wanted[layer], rtol=1e-3, atol=1e-3)


def test_a_memory_of_half_the_directions_or_more_is_kept_as_what_is_left() -> None:
    assert taken(Space(torch.eye(4)[:, :1])) == 0.25
    assert taken(Space(torch.eye(4)[:, :1], free=True)) == 0.75


def test_options_say_what_is_out_of_range() -> None:
    for options in ({"epsilon": 0}, {"epsilon": 1.1}, {"horizon": 0}, {"samples": 0}, {"variant": "mine"}):
        with pytest.raises(ValueError, match="validation error"):
            InfLoRA.Options(**options)  # type: ignore[arg-type]


def test_linears_that_read_the_same_have_one_memory(run: Watched) -> None:
    """Queries, keys and values of a layer, and gate and up; each basis is counted once."""
    method = run.plugins.method
    for layer in ("0", "1"):
        named = {
            path.rpartition(".")[2]: s for path, s in method.spaces.items() if f"layers.{layer}." in path
        }
        assert named["q_proj"] is named["k_proj"] is named["v_proj"]
        assert named["gate_proj"] is named["up_proj"]
        assert len({id(space) for space in named.values()}) == 4
    assert len(method.state_dict()["spaces"]) == 8
