"""The hook `after_step`: what a plugin is told of an optimiser step, and that nothing is copied where none looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_zoo import hookimpl
from cl_zoo.backbones.backbone import Backbone
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.learning import Learner
from cl_zoo.engine.watching import Watch
from cl_zoo.names import Choice
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Task
from cl_zoo.testing import tiny_benchmark

TASK = Task(0, "colour", "", 12)
RECIPE = {"adapter.dropout": 0, "global_batch": 4, "micro_batch": 2, "clip": "norm", "clip_norm": 1e-3}


class Looks:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Mapping[str, Tensor], Mapping[str, Tensor], dict[str, Tensor], Task]] = []

    @hookimpl
    def loss(self, model: nn.Module) -> dict[str, Tensor]:
        ups = [weight for name, weight in model.named_parameters() if "bank_up" in name]
        return {"small": torch.stack([(up - 1).pow(2).sum() for up in ups]).sum()}

    @hookimpl
    def after_step(
        self, model: nn.Module, task: Task, gradients: Mapping[str, Tensor], before: Mapping[str, Tensor]
    ) -> None:
        behind = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        self.told.append((gradients, before, behind, task))


def test_a_step_is_told_once_with_the_gradient_of_the_whole_objective_before_it_is_clipped(
    tiny: Backbone,
) -> None:
    """Of two micro-batches together; the weights go from `before` to where the model has them."""
    plugins = Plugins([Choice("finetune"), Choice(f"{__file__}:Looks")])
    recipe = build_recipe(RECIPE)
    model = plugins.build_model(tiny, recipe)
    assert model is not None
    stood = {
        name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad
    }
    learner = Learner(
        model,
        TASK,
        list(tiny_benchmark().tasks[0].train),
        backbone=tiny,
        plugins=plugins,
        recipe=recipe,
        world=World("cpu"),
        seed=0,
    )

    learner.step([0, 1, 2, 3])

    ((gradients, before, behind, task),) = plugins.instances[f"{__file__}:Looks"].told
    assert task == TASK
    assert before.keys() == stood.keys()
    assert all(torch.equal(before[name], one) for name, one in stood.items())
    assert any(not torch.equal(behind[name], one) for name, one in before.items())
    up = next(name for name in gradients if "bank_up" in name)
    assert gradients[up].mean().item() == pytest.approx(-2, abs=0.1)  # B is zero, and the pull to 1 is a term
    named = dict(model.named_parameters())
    clipped = named[up].grad
    assert clipped is not None
    assert clipped.norm() < 1e-2 < gradients[up].norm()


def test_without_a_plugin_that_looks_nothing_is_copied() -> None:
    class Blank(nn.Module):
        def named_parameters(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("asked for weights")

    done = []
    with Watch()(Plugins([Choice("finetune")]), Blank(), TASK):
        done.append("step")

    assert done == ["step"]
