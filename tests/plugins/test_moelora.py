"""MoELoRA against the LoRA it contains: what learns, what is counted, who answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cl_zoo_moelora import MoELoRA, router
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
from cl_zoo.tasks import Task
from cl_zoo.testing import tiny_backbone, tiny_benchmark

RECIPE = build_recipe({"adapter.rank": 2, "budget": "published", "adapter.dropout": 0})


def placed(backbone: Backbone, experts: int = 4) -> ExpertBank:
    """MoELoRA as it is before the first task, with A and B drawn at random so that experts matter."""
    torch.manual_seed(0)
    bank = MoELoRA(MoELoRA.Options(experts=experts)).build_model(backbone, RECIPE)
    for layer in bank.layers:
        for weight in [*layer.bank_down.values(), *layer.bank_up.values()]:
            nn.init.normal_(weight, std=0.2)
    return bank


def trained(stack: str, folder: Path, root: Path) -> Watched:
    """A run over both tiny tasks."""
    benchmark = tiny_benchmark(2, size=8)
    return learnt(
        Watched, stack, benchmark.tasks, tiny_backbone(folder), build_recipe(benchmark.recipe), root
    )


def test_a_router_that_prefers_no_expert_gives_one_lora_of_the_summed_rank_at_scale_s_over_e(
    tiny: Backbone, tiny_folder: Path
) -> None:
    """g_e = 1/4 for all experts: s · Σ 1/4 B_e A_e = (s/4) · [B_0 … B_3][A_0; …; A_3]."""
    bank = placed(tiny, experts=4)
    for layer in bank.layers:
        nn.init.zeros_(layer.bank_mix.router.weight)
    single = adapters(
        tiny_backbone(tiny_folder),
        build_recipe(RECIPE.model_dump(), {"adapter.scale": RECIPE.adapter.scale / 4, "adapter.rank": 8}),
    )
    for one, many in zip(single.layers, bank.layers, strict=True):
        one.bank_down["shared"].data = torch.cat([many.bank_down[f"e{e}"].data for e in range(4)], dim=0)
        one.bank_up["shared"].data = torch.cat([many.bank_up[f"e{e}"].data for e in range(4)], dim=1)

    batch = questions(tiny)
    with torch.no_grad():
        ours, lora = forward(bank, batch).logits, forward(single, batch).logits
        plain = forward(tiny_backbone(tiny_folder).model, batch).logits

    torch.testing.assert_close(ours, lora, rtol=0, atol=1e-4)
    assert not torch.allclose(ours, plain, atol=1e-2)


def test_every_expert_and_every_router_learns(tiny: Backbone) -> None:
    bank = placed(tiny, experts=4)

    task_loss(bank, questions(tiny)).backward()

    for layer in bank.layers:
        assert layer.experts == ["e0", "e1", "e2", "e3"]
        learning = {name: weight for name, weight in layer.named_parameters() if weight.requires_grad}
        assert learning.keys() == {
            *(f"bank_down.e{e}" for e in range(4)),
            *(f"bank_up.e{e}" for e in range(4)),
            "bank_mix.router.weight",
        }
        for name, weight in learning.items():
            assert weight.grad is not None, name
            assert weight.grad.abs().sum() > 0, name
        assert layer.bank_down["e3"].shape == (2, layer.in_features)


def test_the_gate_has_no_bias_and_no_gradient_of_its_own_before_the_experts_have_learnt(
    tiny: Backbone,
) -> None:
    """B = 0 at the start, so what a gate chooses between is zero."""
    bank = MoELoRA(MoELoRA.Options(experts=2)).build_model(tiny, RECIPE)

    task_loss(bank, questions(tiny)).backward()

    for layer in bank.layers:
        assert layer.bank_mix.router.bias is None
        assert layer.bank_mix.router.weight.grad.abs().sum() == 0
        assert layer.bank_up["e0"].grad.abs().sum() > 0


def test_routers_are_counted_as_routers(tiny: Backbone) -> None:
    """Two decoder layers with 7 linears: Σ d_in = 6 · 32 + 48 = 240, Σ d_out = 4 · 32 + 2 · 48 + 32 = 256."""
    plugins = Plugins(parse_stack("moelora"))
    model = plugins.build_model(tiny, RECIPE)
    assert model is not None
    named = dict(model.named_parameters())

    sizes = {
        part: sum(named[name].numel() for name in names)
        for part, names in assign_parts(model, plugins, tiny).items()
    }

    assert sizes["adapters"] == 2 * 8 * 2 * (240 + 256)  # eight experts of rank 2
    assert sizes["routers"] == 2 * 8 * 240


def test_a_router_stands_where_the_layer_stands(tiny: Backbone) -> None:
    layer = placed(tiny).layers[0].to("meta")

    assert router(layer, 3).weight.device.type == "meta"
    assert router(layer, 3).weight.shape == (3, layer.in_features)


@pytest.mark.parametrize("stack", ["moelora", "moelora+ewc"])
def test_all_experts_and_routers_move_on_every_task(tiny_folder: Path, tmp_path: Path, stack: str) -> None:
    run = trained(stack, tiny_folder, tmp_path)

    first, second = run.kept
    for name, weight in first.items():
        if ".bank_" in name:
            assert not torch.equal(weight, second[name]), name
    if stack == "moelora+ewc":
        assert all(measured["ewc/fisher_trace"] > 0 for measured in run.measured)


def test_the_model_that_has_just_learnt_answers(tiny_folder: Path, tmp_path: Path) -> None:
    run = trained("moelora", tiny_folder, tmp_path)

    assert run.plugins.build_inference_model(run.model, [Task(0, "colour", "", 12)]) is run.model
