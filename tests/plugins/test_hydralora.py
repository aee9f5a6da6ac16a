"""HydraLoRA against the LoRA it contains: what learns, where it starts, what is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cl_zoo_hydralora import HydraLoRA
from tiny_runs import Watched, learnt, questions
from torch import nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward, task_loss
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.learning import assign_parts
from cl_zoo.names import parse_stack
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.nn.placing import adapters
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.testing import tiny_backbone, tiny_benchmark

RECIPE = build_recipe({"adapter.rank": 2, "budget": "published", "adapter.dropout": 0})


def placed(backbone: Backbone, heads: int = 4) -> ExpertBank:
    """HydraLoRA as it is before the first task, with A and B drawn at random so that heads matter."""
    torch.manual_seed(0)
    bank = HydraLoRA(HydraLoRA.Options(heads=heads)).build_model(backbone, RECIPE)
    for layer in bank.layers:
        for weight in [*layer.bank_down.values(), *layer.bank_up.values()]:
            nn.init.normal_(weight, std=0.2)
    return bank


def test_heads_that_are_all_the_same_give_one_lora_whatever_the_router_says(
    tiny: Backbone, tiny_folder: Path
) -> None:
    """Σ ω_i = 1, so with B_i = B the layer is W + s·BA."""
    bank = placed(tiny, heads=4)
    single = adapters(tiny_backbone(tiny_folder), build_recipe(RECIPE.model_dump(), {"adapter.rank": 2}))
    for one, many in zip(single.layers, bank.layers, strict=True):
        for i in range(1, 4):
            many.bank_up[f"e{i}"].data = many.bank_up["e0"].data.clone()
        one.bank_down["shared"].data = many.bank_down["e0"].data
        one.bank_up["shared"].data = many.bank_up["e0"].data

    batch = questions(tiny)
    with torch.no_grad():
        hydra, lora = forward(bank, batch).logits, forward(single, batch).logits
        plain = forward(tiny_backbone(tiny_folder).model, batch).logits

    torch.testing.assert_close(hydra, lora, rtol=0, atol=1e-4)
    assert not torch.allclose(hydra, plain, atol=1e-2)


def test_the_shared_a_every_head_and_every_router_learn(tiny: Backbone) -> None:
    bank = placed(tiny, heads=4)

    task_loss(bank, questions(tiny)).backward()

    for layer in bank.layers:
        assert layer.experts == ["e0", "e1", "e2", "e3"]
        learning = {name: weight for name, weight in layer.named_parameters() if weight.requires_grad}
        assert learning.keys() == {
            "bank_down.e0",
            *(f"bank_up.e{i}" for i in range(4)),
            "bank_mix.gate.router.weight",
        }
        for name, weight in learning.items():
            assert weight.grad is not None, name
            assert weight.grad.abs().sum() > 0, name


def test_at_the_start_the_model_is_the_untouched_one_and_only_heads_have_a_gradient(
    tiny: Backbone, tiny_folder: Path
) -> None:
    """B = 0: what the router chooses between is zero, and so is what A feeds."""
    batch = questions(tiny)
    plain = forward(tiny_backbone(tiny_folder).model, batch).logits
    bank = HydraLoRA(HydraLoRA.Options()).build_model(tiny, RECIPE)

    assert torch.equal(forward(bank, batch).logits, plain)
    task_loss(bank, batch).backward()

    for layer in bank.layers:
        assert layer.bank_mix.gate.router.bias is None
        assert layer.bank_mix.gate.router.weight.grad.abs().sum() == 0
        assert layer.bank_down["e0"].grad.abs().sum() == 0
        assert all(up.grad.abs().sum() > 0 for up in layer.bank_up.values())


def test_one_a_and_all_heads_are_counted(tiny: Backbone) -> None:
    """Two decoder layers with Σ d_in = 240 and Σ d_out = 256: A of rank 2 and four B of it, a router (4, d_in)."""
    plugins = Plugins(parse_stack("hydralora"))
    model = plugins.build_model(tiny, RECIPE)
    assert model is not None
    named = dict(model.named_parameters())

    sizes = {
        part: sum(named[name].numel() for name in names)
        for part, names in assign_parts(model, plugins, tiny).items()
    }

    assert sizes["adapters"] == 2 * (2 * 240 + 4 * 2 * 256)
    assert sizes["routers"] == 2 * 4 * 240


@pytest.mark.parametrize("stack", ["hydralora", "hydralora+ewc"])
def test_it_trains_over_two_tasks_alone_and_with_a_regulariser(
    tiny_folder: Path, tmp_path: Path, stack: str
) -> None:
    """All heads, the A and the routers have moved from where they started."""
    benchmark = tiny_benchmark(2, size=8)
    recipe = build_recipe(benchmark.recipe)
    run = learnt(Watched, stack, benchmark.tasks, tiny_backbone(tiny_folder), recipe, tmp_path)

    for name, weight in run.model.named_parameters():
        if ".bank_" in name:
            assert not torch.equal(weight, run.start[name]), name
