"""Drift against its definition: W-sized matrices written out, and every entry of every other tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from cl_zoo_drift import Drift, Learning, distance
from hypothesis import given
from hypothesis import strategies as st
from oracles.shapes import CASES, SEEDS, SMALL, WIDTHS, Stage, assert_equal, draws, normal, recipe, tasks
from torch import Tensor, nn

from cl_zoo.nn import bank_parts
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.nn.placing import adapters

SCALE = 3.0
FP32 = 1e-5
"""Copies from before a task, and what is measured, are in fp32."""


def update(A: Tensor, B: Tensor) -> list[list[float]]:
    """s · B A, entry by entry."""
    down, up = A.tolist(), B.tolist()
    return [
        [SCALE * sum(row[k] * down[k][column] for k in range(len(down))) for column in range(len(down[0]))]
        for row in up
    ]


def apart(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """‖one − other‖²_F."""
    return sum((x - y) ** 2 for a, b in zip(one, other, strict=True) for x, y in zip(a, b, strict=True))


@CASES
@given(SEEDS, WIDTHS, SMALL)
def test_the_distance_of_two_adapters_is_that_of_their_products(
    seed: int, widths: list[int], rank: int
) -> None:
    generator = draws(seed)
    A, A0 = normal(generator, rank, widths[0]), normal(generator, rank, widths[0])
    B, B0 = normal(generator, widths[1], rank), normal(generator, widths[1], rank)

    found = distance(A0, B0, Learning(SCALE, A, B, A0, B0))

    expected = torch.tensor(apart(update(A, B), update(A0, B0)))
    assert_equal(found.double(), expected.double(), FP32)


class Run:
    """A random bank with experts that learn, one that reads another's A, one that stands still, and two tensors beside it."""

    def __init__(self, seed: int, widths: Sequence[int], rank: int, learn: Sequence[bool]) -> None:
        self.generator = draws(seed)
        stage = Stage(seed, 2, *widths)
        self.bank: ExpertBank = adapters(stage, recipe(rank, SCALE), "t0")
        self.bank.add("t1")
        self.bank.add("branch", reads="t0")
        names = ["t0", "t1", "branch"]
        self.bank.use(names, trainable=[one for one, yes in zip(names, learn, strict=True) if yes])
        self.bank.extra = nn.Parameter(normal(self.generator, 3, 2))
        self.bank.still = nn.Parameter(normal(self.generator, 2), requires_grad=False)
        shared = learn[0] or learn[2]  # both move with the A that they share
        self.learns = {"t0": shared, "t1": learn[1], "branch": shared}
        for weight in self.bank.parameters():
            weight.data = normal(self.generator, *weight.shape)

    def move(self) -> None:
        for weight in self.bank.parameters():
            if weight.requires_grad:
                weight.data = weight.data + normal(self.generator, *weight.shape)

    def updates(self) -> dict[tuple[str, str], list[list[float]]]:
        """s · B A of every expert of every layer that can change."""
        return {
            (layer.path, name): update(layer.bank_down[layer.reads[name]], layer.bank_up[name])
            for layer in self.bank.layers
            for name, yes in self.learns.items()
            if yes
        }

    def parts(self) -> Mapping[str, list[str]]:
        return {**bank_parts(self.bank), "keys": ["extra", "still"]}


@CASES
@given(SEEDS, WIDTHS, SMALL, st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_every_part_moves_by_the_norm_of_its_change(
    seed: int, widths: list[int], rank: int, learn: tuple[bool, bool, bool]
) -> None:
    """Over two tasks: each from its beginning; the adapters from nothing, the other tensors from where they first learnt."""
    run, probe = Run(seed, widths, rank, learn), Drift()
    first = run.bank.extra.detach().clone()
    for _ in tasks(2):
        probe.before_task(model=run.bank)
        before, extra = run.updates(), run.bank.extra.detach().clone()
        run.move()

        measured = probe.after_task(parts=run.parts())

        after = run.updates()
        moved = sum(apart(after[one], before[one]) for one in after)
        nothing = {one: [[0.0] * len(rows[0])] * len(rows) for one, rows in after.items()}
        far = sum(apart(after[one], nothing[one]) for one in after)
        now = run.bank.extra.tolist()
        expected = {
            "drift/keys": apart(now, extra.tolist()) ** 0.5,
            "drift/keys/from_start": apart(now, first.tolist()) ** 0.5,
        }
        if any(learn):
            expected |= {"drift/adapters": moved**0.5, "drift/adapters/from_start": far**0.5}
        assert set(measured) == set(expected)
        for name, value in expected.items():
            assert_equal(measured[name].double(), torch.tensor(value).double(), FP32)
