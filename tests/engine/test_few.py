"""As on an accelerator: a learner whose mixes take few operations has the gradients of one whose results keep their bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.learning import Learner, recompute_activations
from cl_zoo.names import parse_stack
from cl_zoo.nn.gated import ByToken
from cl_zoo.nn.trunk import ByRow
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Task
from cl_zoo.testing import tiny_backbone, tiny_benchmark

SAMPLES = list(tiny_benchmark().tasks[0].train)
FUNCTIONS = {
    "moelora": ByToken,
    "hydralora": ByToken,
    "clmoe": ByToken,
    "branchlora": ByRow,
    "finetune": None,
}


def first_step(folder: Path, method: str, by_rows: bool, **recipe: Any) -> dict[str, Tensor]:
    """The gradients of a first step in fp64, before they are clipped."""
    tiny, plugins = tiny_backbone(folder), Plugins(parse_stack(method))
    tiny.model.double()
    task, world = Task(0, "colour", "", 12), World("cpu")
    torch.manual_seed(0)
    model = plugins.build_model(tiny, chosen := build_recipe({"global_batch": 4, "clip": "none", **recipe}))
    assert model is not None
    for name, weight in model.named_parameters():
        if "bank_up" in name:
            nn.init.normal_(weight, std=0.05)
    model.double()
    plugins.before_task(model, task, [])
    learner = Learner(
        model, task, SAMPLES, backbone=tiny, plugins=plugins, recipe=chosen, world=world, seed=0
    )
    model.train()
    if chosen.checkpointing:
        recompute_activations(tiny.model)
    learner.by_rows = by_rows
    found: dict[str, Tensor] = {}

    def look(*_: Any) -> None:
        found.update({n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None})

    learner.optimizer.register_step_pre_hook(look)
    torch.manual_seed(1)
    learner.step([0, 1, 2, 3])
    return found


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("method", FUNCTIONS)
def test_gradients_are_the_same(
    method: str, p: float, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"adapter.dropout": p, "micro_batch": 2}
    wanted = first_step(tiny_folder, method, True, **recipe)
    function, calls = FUNCTIONS[method], []
    if function is not None:
        real = function.apply
        monkeypatch.setattr(function, "apply", lambda *given: (calls.append(1), real(*given))[1])

    found = first_step(tiny_folder, method, False, **recipe)

    assert bool(calls) == (function is not None)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-7, atol=1e-12, msg=name)


def test_on_the_cpu_results_keep_their_bits(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a learner takes none of these functions."""
    monkeypatch.setattr(ByToken, "apply", None)
    assert first_step(tiny_folder, "moelora", True, **{"adapter.dropout": 0.0})


@pytest.mark.parametrize("method", ["moelora", "branchlora"])
def test_activations_that_are_recomputed_give_the_same_gradients(method: str, tiny_folder: Path) -> None:
    recipe = {"adapter.dropout": 0.1}
    once = first_step(tiny_folder, method, False, **recipe)
    again = first_step(tiny_folder, method, False, **recipe, checkpointing=True)
    for name, gradient in again.items():
        torch.testing.assert_close(gradient, once[name], rtol=1e-7, atol=1e-12, msg=name)
