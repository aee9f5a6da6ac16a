"""SI: path integral, importance and penalty against Eq. 3 to 5 of the paper, and what two public implementations compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cl_zoo_si import SI
from hypothesis import given
from hypothesis import strategies as st
from oracles.shapes import CASES, SEEDS, SMALL, assert_equal, draws, normal
from torch import Tensor, nn

from cl_zoo.tasks import Task

RATE = 0.05


class Weights(nn.Module):
    """Two tensors that learn."""

    def __init__(self, generator: torch.Generator, size: int) -> None:
        super().__init__()
        self.A = nn.Parameter(normal(generator, size, 2))
        self.B = nn.Parameter(normal(generator, size))

    def flat(self) -> Tensor:
        return torch.cat([self.A.flatten(), self.B])


Loss = Callable[[Tensor], Tensor]


def valleys(generator: torch.Generator, size: int, tasks: int) -> list[Loss]:
    """A loss a task, of all weights in one vector: not convex, so that some steps raise it along some weights."""

    def valley(centre: Tensor, steep: Tensor) -> Loss:
        return lambda theta: (
            (steep * (theta - centre) ** 2).sum() + (2 * theta).sin().sum() * theta.cos().prod()
        )

    return [valley(normal(generator, 3 * size), normal(generator, 3 * size).exp()) for _ in range(tasks)]


def learn(options: SI.Options, model: Weights, losses: list[Loss], steps: int) -> tuple[SI, list[Tensor]]:
    """Every task by gradient descent with momentum on norms clipped to 1, called as the engine calls the method.

    Returns it, and all weights after every step.
    """
    method, path = SI(options), []
    for number, loss in enumerate(losses):
        task = Task(number, str(number), "", 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.5)
        for _ in range(steps):
            optimizer.zero_grad()
            terms = method.loss(model) or {}
            (loss(model.flat()) + sum(terms.values(), torch.zeros(()))).backward()
            named = dict(model.named_parameters())
            gradients = {name: grad(weight).clone() for name, weight in named.items()}
            before = {name: weight.detach().clone() for name, weight in named.items()}
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            method.after_step(model, gradients, before)
            path.append(model.flat().detach().clone())
        assert task.index == number
        method.after_task(model)
    return method, path


def grad(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None
    return weight.grad


class Literal:
    """Eq. 3 to 5 on one vector, as mammoth has them: the task's gradient, the penalty's added to it in closed form, the step,
    then ω += g · (θ before − θ after)."""

    def __init__(self, theta: Tensor, c: float, xi: float, cut: bool) -> None:
        self.theta, self.c, self.xi, self.cut = theta.clone(), c, xi, cut
        self.big: Tensor | None = None
        self.checkpoint = theta.clone()
        self.small = torch.zeros_like(theta)

    def learn(self, loss: Loss, steps: int) -> list[Tensor]:
        speed, path = torch.zeros_like(self.theta), []
        for number in range(steps):
            theta = self.theta.clone().requires_grad_()
            (own,) = torch.autograd.grad(loss(theta), theta)
            whole = own.clone()
            if self.big is not None:
                whole += 2 * self.c * self.big * (self.theta - self.checkpoint)
            whole *= min(1.0, 1.0 / (float(whole.norm()) + 1e-6))
            speed = whole if number == 0 else 0.5 * speed + whole
            after = self.theta - RATE * speed
            self.small += own * (self.theta - after)
            self.theta = after
            path.append(after.clone())
        return path

    def end(self) -> None:
        added = self.small / ((self.theta - self.checkpoint) ** 2 + self.xi)
        self.big = added if self.big is None else self.big + added
        if self.cut:  # the authors' code, on the running sum
            self.big = torch.where(self.big > 0, self.big, 0.0)
        self.checkpoint, self.small = self.theta.clone(), torch.zeros_like(self.theta)


def in_one(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([values["A"].flatten(), values["B"]])


@CASES
@given(SEEDS, SMALL, SMALL, st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([1e-3, 0.1]), st.booleans())
def test_the_weights_that_are_learnt_are_those_of_the_public_code(
    seed: int, size: int, many: int, c: float, xi: float, cut: bool
) -> None:
    """After every step of every task; at its end Ω and θ̃."""
    generator = draws(seed)
    model, losses = Weights(generator, size), valleys(generator, size, many)
    literal = Literal(model.flat().detach(), c, xi, cut)
    options: dict[str, Any] = {"variant": "released"} if cut else {}

    method, path = learn(SI.Options(strength=c, damping=xi, **options), model, losses, 4)

    wanted = []
    for loss in losses:
        wanted += literal.learn(loss, 4)
        literal.end()
    assert literal.big is not None
    for found, step in zip(path, wanted, strict=True):
        assert_equal(
            found, step, 1e-6 if cut else 1e-7
        )  # closed forms that differ in rounding, on a path that enlarges it
    assert_equal(in_one(method.importance), literal.big, 1e-8)
    assert_equal(in_one(method.anchor), literal.checkpoint, 1e-8)


@CASES
@given(SEEDS, SMALL)
def test_omega_is_minus_the_gradient_of_the_task_alone_times_the_step(seed: int, size: int) -> None:
    """One step of a second task: the penalty's share of the gradient is not in ω."""
    generator = draws(seed)
    model, (loss, other) = Weights(generator, size), valleys(generator, size, 2)
    method, _ = learn(SI.Options(strength=3.0), model, [loss], 3)
    model.A.data += normal(generator, size, 2)  # away from θ̃, so that the penalty pulls
    start = model.flat().detach().requires_grad_()
    (slope,) = torch.autograd.grad(other(start), start)

    model.zero_grad()
    terms = method.loss(model)
    assert terms is not None
    (other(model.flat()) + terms["si"]).backward()
    gradients = {name: grad(weight) for name, weight in model.named_parameters()}
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    step = normal(generator, 3 * size)
    with torch.no_grad():
        model.A += step[: 2 * size].view(size, 2)
        model.B += step[2 * size :]
    method.after_step(model, gradients, before)

    assert_equal(in_one(method.path), -slope * step, 1e-8)
    assert_equal(in_one(method.moved), step, 1e-12)


def test_by_hand() -> None:
    """g = (3, −1) and a step of (−0.5, −0.25): ω = (1.5, −0.25); with ξ = 0.25 and Δ² = (0.25, 0.0625), Ω = (3, −0.8).
    At (1, 2) beyond θ̃ the penalty with c = 2 is 2 · (3 · 1 − 0.8 · 4) = −0.4, cut off at zero 6."""
    for variant, importance, penalty in (("paper", [3.0, -0.8], -0.4), ("released", [3.0, 0.0], 6.0)):
        model = nn.Linear(2, 1, bias=False).double()
        method = SI(SI.Options(strength=2, damping=0.25, variant=variant))  # type: ignore[arg-type]
        before = {"weight": model.weight.detach().clone()}
        step = torch.tensor([[-0.5, -0.25]], dtype=torch.float64)
        model.weight.data += step

        method.after_step(model, {"weight": torch.tensor([[3.0, -1.0]], dtype=torch.float64)}, before)
        measured = method.after_task(model)

        assert measured["si/lowered"].item() == 1.25
        assert_equal(method.importance["weight"], torch.tensor([importance], dtype=torch.float64))
        model.weight.data += torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        terms = method.loss(model)
        assert terms is not None
        assert_equal(terms["si"], torch.tensor(penalty, dtype=torch.float64))
