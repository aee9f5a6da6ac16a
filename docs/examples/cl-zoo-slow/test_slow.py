"""Slow: its equations by hand, and every promise of the contract."""

from __future__ import annotations

import pytest
import torch
from cl_zoo_slow import Slow
from torch import nn

from cl_zoo.testing import check_method


def line(weight: float, bias: float) -> nn.Linear:
    """The smallest model: y = wx + b."""
    model = nn.Linear(1, 1)
    model.weight.data[:], model.bias.data[:] = weight, bias
    return model


def test_the_slow_weights_are_the_mean_of_where_the_tasks_ended() -> None:
    """Weights 1, 4 and 7 after three tasks have the averages 1, 2.5 and 4."""
    method, model = Slow(Slow.Options()), line(1.0, 0.0)
    averages = []
    for weight in (1.0, 4.0, 7.0):
        model.weight.data[:] = weight
        method.after_task(model)
        averages.append(method.average["weight"].item())
    assert averages == [1.0, 2.5, 4.0]


def test_the_pull_is_the_squared_distance_to_them() -> None:
    """λ Σ (θ − θ̄)²: with λ = 0.5 and θ − θ̄ = (3, 4) it is 12.5, and in the first task there is no θ̄."""
    method, model = Slow(Slow.Options(strength=0.5)), line(1.0, 2.0)
    assert method.loss(model) is None
    method.after_task(model)
    model.weight.data += 3
    model.bias.data += 4
    terms = method.loss(model)
    assert terms is not None
    assert terms["slow/pull"].item() == pytest.approx(12.5)


def test_a_weight_that_comes_later_begins_its_own_average() -> None:
    """Learning in the second task only, the bias has that task's end as its average, not half of it."""
    method, model = Slow(Slow.Options()), line(1.0, 2.0)
    model.bias.requires_grad_(False)
    method.after_task(model)
    model.bias.requires_grad_(True)
    model.weight.data[:] = 3
    method.after_task(model)
    assert torch.equal(method.average["weight"], torch.tensor([[2.0]]))
    assert torch.equal(method.average["bias"], torch.tensor([2.0]))


def test_it_keeps_every_promise() -> None:
    check_method("slow")
