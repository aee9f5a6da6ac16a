"""Mine: its equation by hand, and every promise of the contract."""

from __future__ import annotations

import pytest
import torch
from cl_zoo_mine import Mine
from torch import nn

from cl_zoo.testing import check_method

pytest_plugins = ["cl_zoo.testing.pytest"]  # run_tiny, tiny, squares, …


def test_the_pull_is_the_squared_distance() -> None:
    """λ Σ (θ − θ*)²: with λ = 0.5 and θ − θ* = (3, 4) it is 12.5, and nothing before there is a θ*."""
    model, method = nn.Linear(2, 1, bias=False), Mine(Mine.Options(strength=0.5))
    assert method.loss(model) is None
    method.after_task(model)
    model.weight.data += torch.tensor([[3.0, 4.0]])
    terms = method.loss(model)
    assert terms is not None
    assert terms["mine/pull"].item() == pytest.approx(12.5)


def test_without_strength_it_is_fine_tuning(run_tiny) -> None:
    free = run_tiny("mine", options={"mine": {"strength": 0}})
    assert free.matrix == run_tiny("finetune").matrix


def test_it_keeps_every_promise() -> None:
    check_method("mine")
