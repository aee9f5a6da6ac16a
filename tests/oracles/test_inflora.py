"""InfLoRA against its paper and what its authors' code computes: A of a new task, the memory in both of its forms, the layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from cl_zoo_inflora import InfLoRA, Space, directions, outside, widened
from hypothesis import given
from hypothesis import strategies as st
from oracles.layers import (
    SHAPES,
    Bare,
    Shape,
    assert_equal,
    base,
    learning,
    stirred,
    through,
    token_by_token,
)
from oracles.shapes import CASES, SEEDS, draws, normal
from torch import Tensor

from cl_zoo.batches import forward
from cl_zoo.nn import BankLayer
from cl_zoo.tasks import Task

Array = Any
NEAR: dict[str, Any] = {"rtol": 0, "atol": 1e-7}


def inputs(generator: torch.Generator, d: int) -> Tensor:
    """H (d, n) of a task: many tokens in a few directions, and a little in all."""
    few = int(torch.randint(1, d, (), generator=generator))
    mixed = normal(generator, d, few) @ normal(generator, few, 3 * d)
    return mixed + 0.05 * normal(generator, d, 3 * d)


def projector(space: Space) -> Tensor:
    """Onto what old tasks have taken."""
    onto = space.basis @ space.basis.T
    return torch.eye(len(onto), dtype=onto.dtype) - onto if space.free else onto


# --- the paper, on H itself -------------------------------------------------------------------------------------------


class Paper:
    """M as columns, and never its complement."""

    def __init__(self, d: int) -> None:
        self.M = np.zeros((d, 0))

    def left(self, H: Array) -> Array:
        return H - self.M @ self.M.T @ H

    def directions(self, H: Array, rank: int) -> Array:
        return np.linalg.svd(self.left(H))[0][:, :rank].T

    def learn(self, H: Array, epsilon: float) -> None:
        U, S, _ = np.linalg.svd(self.left(H))
        whole = (H**2).sum()
        k = 0
        while ((self.M.T @ H) ** 2).sum() + (S[:k] ** 2).sum() < epsilon * whole:
            k += 1
        self.M = np.hstack([self.M, U[:, :k]])


# --- the authors' code, on H Hᵀ ---------------------------------------------------------------------------------------


class Released:
    """`feature_list` and `project_type` of one layer, as `update_DualGPM` changes them, and lora_A as `_train` sets it."""

    def __init__(self) -> None:
        self.feature: Array = None
        self.kind = ""

    def projected(self, C: Array) -> Array:
        if self.feature is None:
            return C
        part = self.feature @ self.feature.T @ C
        return C - part if self.kind == "remove" else part

    def directions(self, C: Array, rank: int) -> Array:
        U, _, _ = np.linalg.svd(self.projected(C))
        return U[:, :rank].T / math.sqrt(3)

    def learn(self, C: Array, threshold: float) -> None:
        whole = (np.linalg.svd(C)[1] ** 2).sum()
        U, S, _ = np.linalg.svd(self.projected(C))
        shares = S**2 / whole
        if self.feature is None:
            r = int((np.cumsum(shares) < threshold).sum())
            self.feature, self.kind = U[:, : max(r, 1)], "remove"
        elif self.kind == "remove":
            held, r = 1 - shares.sum(), 0
            while r < len(shares) and held < threshold:
                held, r = held + shares[r], r + 1
            if r:
                self.feature = np.hstack([self.feature, U[:, :r]])[:, : len(U)]
        else:
            left, r = shares.sum(), 0
            while r < len(shares) and left >= 1 - threshold:
                left, r = left - shares[r], r + 1
            if r:
                rest = self.feature - U[:, :r] @ U[:, :r].T @ self.feature
                columns = max(self.feature.shape[1] - r, 0)
                self.feature = np.linalg.svd(rest)[0][:, :columns]
        if self.kind == "remove" and self.feature.shape[1] > len(C) / 2:
            self.feature = np.linalg.svd(self.feature)[0][:, self.feature.shape[1] :]
            self.kind = "retain"


def assert_rows(found: Tensor, wanted: Array) -> None:
    """Row by row, up to the sign that a singular vector has by chance."""
    for ours, theirs in zip(found, torch.from_numpy(np.ascontiguousarray(wanted)), strict=True):
        if float(ours @ theirs) < 0:
            ours = -ours
        torch.testing.assert_close(ours, theirs, **NEAR)


EPSILON = st.sampled_from([0.5, 0.8, 0.95, 0.99])


@CASES
@given(SEEDS, st.integers(3, 8), st.integers(1, 5), EPSILON)
def test_what_a_task_reads_and_what_is_remembered_are_the_papers(
    seed: int, d: int, tasks: int, epsilon: float
) -> None:
    """Over tasks, from the first one to a memory that has turned to its complement."""
    generator = draws(seed)
    paper, space = Paper(d), None
    for _ in range(tasks):
        H = inputs(generator, d)
        left = d - paper.M.shape[1]
        assert_rows(directions(H @ H.T, space, min(2, left)), paper.directions(H.numpy(), min(2, left)))

        space = widened(H @ H.T, space, epsilon)
        paper.learn(H.numpy(), epsilon)

        torch.testing.assert_close(projector(space), torch.from_numpy(paper.M @ paper.M.T), **NEAR)
        assert space.basis.shape[1] <= d / 2
        if paper.M.shape[1] == d:
            return


@CASES
@given(SEEDS, st.integers(3, 8), st.integers(1, 5), EPSILON)
def test_what_a_task_reads_and_what_is_remembered_are_the_codes(
    seed: int, d: int, tasks: int, epsilon: float
) -> None:
    generator = draws(seed)
    theirs, space = Released(), None
    for _ in range(tasks):
        H = inputs(generator, d)
        C = H @ H.T / H.shape[1]
        left = d if space is None else round(d - float(projector(space).trace()))
        if left == 0:
            return
        rank = min(2, left)
        assert_rows(directions(C, space, rank, "released"), theirs.directions(C.numpy(), rank))

        space = widened(C, space, epsilon, "released")
        theirs.learn(C.numpy(), epsilon)

        ours = Space(torch.from_numpy(theirs.feature.copy()), theirs.kind == "retain")
        assert space.free == ours.free
        torch.testing.assert_close(projector(space), projector(ours), **NEAR)


def test_by_hand() -> None:
    """H Hᵀ = diag(4, 3, 2, 1) of 10. With ε = 0.6 the first task takes e1 and e2 (0.7). Of diag(1, 1, 5, 3) it holds 0.2 then, with e3
    0.7. That is three of four, so what is kept is e4. A third task reads e4, and what is over is zero."""
    first = widened(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])), None, 0.6)
    assert first.basis.abs().tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]
    assert not first.free

    products = torch.diag(torch.tensor([1.0, 1.0, 5.0, 3.0]))
    assert directions(products, first, 2).abs().tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]
    second = widened(products, first, 0.6)
    assert second.free
    torch.testing.assert_close(second.basis.abs(), torch.tensor([[0.0], [0.0], [0.0], [1.0]]))

    third = directions(torch.ones(4, 4), second, 2)
    torch.testing.assert_close(third.abs(), torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    assert float(outside(torch.eye(4), second).trace()) == pytest.approx(1)


# --- the layer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_are_those_of_all_experts_with_the_last_b_learning(shape: Shape) -> None:
    """y = W x + s Σ_i B_i A_i x, task by task; what learns is B of the last one alone."""
    method = InfLoRA(InfLoRA.Options())
    bank = method.build_model(Bare(shape), shape.recipe())
    for index in range(3):
        method.before_task(bank, Task(index, f"{index}", "", 8), [])
        stirred(bank, shape.seed)

    def summed(layer: BankLayer, x: Tensor) -> Tensor:
        y = base(layer, x)
        for name in ("t0", "t1", "t2"):
            for column in range(shape.rank):
                read = sum(a * b for a, b in zip(layer.bank_down[name][column], x, strict=True))
                y = y + shape.scale * read * layer.bank_up[name][:, column]
        return y

    x = shape.states()
    ours = forward(bank, shape.batch(x)).logits

    learns = learning(bank)
    assert set(learns) == {name for name, _ in bank.named_parameters() if name.endswith("bank_up.t2")}
    assert_equal(ours, through(bank, token_by_token(summed), x), learns)
