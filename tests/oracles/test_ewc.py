"""EWC: Fisher information and penalty against Eq. 3 of the paper, its online form, and what a public implementation computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import cl_zoo_ewc
import pytest
import torch
from cl_zoo_ewc import EWC, diagonal_fisher
from hypothesis import given
from hypothesis import strategies as st
from oracles.shapes import CASES, SEEDS, SMALL, WIDTHS, assert_equal, draws, normal
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch, task_loss
from cl_zoo.nn.placing import adapters
from cl_zoo.processes import drawn
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample
from cl_zoo.testing import tiny_benchmark

Places = dict[str, Tensor]


class Reader(nn.Module):
    """Logits (W + B A) x at each of K places: the smallest model with an A and a B."""

    def __init__(self, generator: torch.Generator, d: int, vocabulary: int, rank: int) -> None:
        super().__init__()
        self.W = nn.Parameter(normal(generator, vocabulary, d), requires_grad=False)
        self.A = nn.Parameter(normal(generator, rank, d))
        self.B = nn.Parameter(normal(generator, vocabulary, rank))

    def forward(self, x: Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=x @ (self.W + self.B @ self.A).T)


def data(generator: torch.Generator, d: int, vocabulary: int, sizes: Sequence[int]) -> list[Batch]:
    """Batches of samples with one to three answer tokens each."""
    made = []
    for size in sizes:
        targets = torch.randint(vocabulary, (size, 3), generator=generator)
        longest = torch.randint(1, 4, (size,), generator=generator)
        for row in range(size):
            targets[row, : 3 - longest[row]] = -100
        rows = tuple(Sample(str(row), None, "?", "!") for row in range(size))
        inputs = {"x": normal(generator, size, 3, d), "input_ids": torch.zeros(size, 3, dtype=torch.long)}
        made.append(Batch(rows, inputs, targets))
    return made


def slopes(model: Reader, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, int]:
    """∂/∂A and ∂/∂B of the *sum* of −log p over one sample's answer tokens, and how many there are.

    With p = softmax((W + BA) x) and e the answer's one-hot: ∂/∂B = (p − e)(A x)ᵀ, ∂/∂A = Bᵀ(p − e) xᵀ.
    """
    to_a, to_b, count = torch.zeros_like(model.A), torch.zeros_like(model.B), 0
    for one, answer in zip(x, targets.tolist(), strict=True):
        if answer == -100:
            continue
        logits = [float(row @ one) for row in (model.W + model.B @ model.A)]
        powers = [math.exp(logit - max(logits)) for logit in logits]
        miss = torch.tensor([power / sum(powers) for power in powers], dtype=torch.float64)
        miss[answer] -= 1
        to_b += torch.outer(miss, model.A @ one)
        to_a += torch.outer(model.B.T @ miss, one)
        count += 1
    return to_a, to_b, count


@torch.no_grad()
def literal_fisher(model: Reader, batches: Sequence[Batch], samples: int) -> Places:
    """Mean over the drawn samples of the squared gradient of each one's mean −log p over its answer tokens."""
    squares: Places = {"A": torch.zeros_like(model.A), "B": torch.zeros_like(model.B)}
    seen = 0
    for batch in drawn(batches, samples):
        for x, targets in zip(batch.inputs["x"], batch.targets, strict=True):
            to_a, to_b, count = slopes(model, x, targets)
            squares["A"] += (to_a / count) ** 2
            squares["B"] += (to_b / count) ** 2
            seen += 1
    assert seen == min(samples, sum(map(len, batches)))
    return {name: one / seen for name, one in squares.items()}


@torch.no_grad()
def prism_fisher(model: Reader, batches: Sequence[Batch]) -> Places:
    """As a public implementation does: row by row, each row's mean loss times its share of the batch's answer tokens, the
    gradients added up over the batch, squared, and averaged over batches."""
    squares: Places = {"A": torch.zeros_like(model.A), "B": torch.zeros_like(model.B)}
    for batch in batches:
        in_all = sum(int(one != -100) for one in batch.targets.flatten().tolist())
        to_a, to_b = torch.zeros_like(model.A), torch.zeros_like(model.B)
        for x, targets in zip(batch.inputs["x"], batch.targets, strict=True):
            of_a, of_b, count = slopes(model, x, targets)
            to_a += of_a / count * (count / in_all)
            to_b += of_b / count * (count / in_all)
        squares["A"] += to_a**2
        squares["B"] += to_b**2
    return {name: one / len(batches) for name, one in squares.items()}


SIZES = st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(1, 3)).map(
    lambda n: [n[0]] * n[1] + [min(n[0], n[2])]  # all but the last have one size
)


@CASES
@given(SEEDS, WIDTHS, SMALL, SIZES, st.integers(1, 9))
def test_the_fisher_is_the_mean_of_squared_gradients_sample_by_sample(
    seed: int, widths: list[int], rank: int, sizes: list[int], samples: int
) -> None:
    """Of those drawn, however they stand in batches; the loss is taken in fp32."""
    generator = draws(seed)
    model, batches = Reader(generator, *widths, rank), data(generator, *widths, sizes)

    fisher = diagonal_fisher(model, batches, samples)

    expected = literal_fisher(model, batches, samples)
    assert set(fisher) == {"A", "B"}  # the frozen W has none
    for name, one in expected.items():
        torch.testing.assert_close(fisher[name].double(), one, rtol=1e-4, atol=1e-9)


@CASES
@given(SEEDS, WIDTHS, SMALL, st.integers(1, 10), st.integers(1, 2))
def test_the_fisher_of_batches_is_prisms(
    seed: int, widths: list[int], rank: int, size: int, many: int
) -> None:
    """Over batches of up to eight, what is more in a batch by itself."""
    generator = draws(seed)
    model, batches = Reader(generator, *widths, rank), data(generator, *widths, [size] * many)
    eights = [one.rows(part) for one in batches for part in (range(min(size, 8)), range(8, size)) if part]

    fisher = diagonal_fisher(model, batches, size * many, per="batch")

    for name, one in prism_fisher(model, eights).items():
        torch.testing.assert_close(fisher[name].double(), one, rtol=1e-4, atol=1e-9)


def test_the_fisher_of_batches_cuts_the_last_one_too() -> None:
    generator = draws(0)
    model, (three,) = Reader(generator, 4, 5, 2), data(generator, 4, 5, [3])

    fisher = diagonal_fisher(model, [three], samples=2, per="batch")

    for name, one in prism_fisher(model, drawn([three], 2)).items():
        torch.testing.assert_close(fisher[name].double(), one, rtol=1e-4, atol=1e-9)


# --- the penalty --------------------------------------------------------------------------------------------------------


def eighths(generator: torch.Generator, *shape: int) -> Tensor:
    """Numbers between −2 and 2 whose products are exact in fp32, in which F and θ* are kept."""
    return torch.randint(-16, 17, shape, generator=generator).double() / 8


class Taught:
    """The method after some tasks whose Fisher information and weights were drawn."""

    def __init__(self, seed: int, o: EWC.Options, widths: Sequence[int], many: int) -> None:
        generator = draws(seed)
        self.model, self.method = Reader(generator, *widths, 2), EWC(o)
        self.fishers: list[Places] = []
        self.anchors: list[Places] = []
        with pytest.MonkeyPatch.context() as patch:
            for _ in range(many):
                self.move(generator)
                F = {name: eighths(generator, *one.shape).abs() for name, one in self.places().items()}
                patch.setattr(
                    cl_zoo_ewc, "diagonal_fisher", lambda *_, F=F: {n: one.float() for n, one in F.items()}
                )
                self.fishers.append(F)
                self.anchors.append(self.places())
                self.method.after_task(self.model, [])
        self.move(generator)

    def move(self, generator: torch.Generator) -> None:
        for weight in (self.model.A, self.model.B):
            weight.data = eighths(generator, *weight.shape)

    def places(self) -> Places:
        return {name: getattr(self.model, name).detach().clone() for name in ("A", "B")}

    def assert_penalty(self, fishers: Sequence[Places], anchors: Sequence[Places]) -> None:
        """Σ_k Σ_i λ/2 F_ki (θ_i − θ*_ki)² over all entries, and the gradient λ Σ_k F_ki (θ_i − θ*_ki) that Prism adds to `.grad`."""
        terms, strength = self.method.loss(self.model), self.method.strength
        assert terms is not None
        terms["ewc"].backward()
        value = 0.0
        for name, theta in self.places().items():
            slope = torch.zeros_like(theta)
            for F, anchor in zip(fishers, anchors, strict=True):
                for place in range(theta.numel()):
                    gap = float(theta.flatten()[place] - anchor[name].flatten()[place])
                    value += strength / 2 * float(F[name].flatten()[place]) * gap**2
                    slope.view(-1)[place] += strength * float(F[name].flatten()[place]) * gap
            assert_equal(getattr(self.model, name).grad, slope)
        assert_equal(terms["ewc"], torch.tensor(value, dtype=torch.float64))


@CASES
@given(SEEDS, WIDTHS, SMALL, st.sampled_from([0.5, 5000.0]))
def test_the_penalty_has_a_parabola_for_every_task(
    seed: int, widths: list[int], many: int, strength: float
) -> None:
    run = Taught(seed, EWC.Options(strength=strength), widths, many)

    run.assert_penalty(run.fishers, run.anchors)


@CASES
@given(SEEDS, WIDTHS, SMALL, st.sampled_from([0.0, 0.5, 1.0]))
def test_the_online_penalty_has_one_running_fisher_and_the_latest_anchor(
    seed: int, widths: list[int], many: int, decay: float
) -> None:
    """F̃ ← γ F̃ + F_k, written out as Σ_k γ^(T−k) F_k."""
    run = Taught(seed, EWC.Options(mode="online", decay=decay), widths, many)
    running: Places = {}
    for name in ("A", "B"):
        running[name] = torch.zeros_like(run.fishers[0][name])
        for k, F in enumerate(run.fishers):
            running[name] += decay ** (many - 1 - k) * F[name]

    run.assert_penalty([running], run.anchors[-1:])


def test_the_penalty_by_hand() -> None:
    """λ/2 Σ F (θ − θ*)²: with F = (2, 0), θ − θ* = (3, 100), λ = 0.5 it is 4.5; its gradient is λF(θ − θ*) = (3, 0)."""
    model, method = nn.Linear(2, 1, bias=False), EWC(EWC.Options(strength=0.5))
    model.weight.data.copy_(torch.tensor([[1.0, 2]]))
    F, anchor = torch.tensor([[2.0, 0.0]]), torch.tensor([[-2.0, -98]])
    method.importance, method.pull = {"weight": F}, {"weight": F * anchor}
    method.offset = {"weight": (F * anchor**2).sum()}

    terms = method.loss(model)

    assert terms is not None
    assert terms["ewc"].item() == pytest.approx(4.5)
    terms["ewc"].backward()
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [[3, 0]]


def test_the_fisher_of_a_real_model_is_that_of_samples_one_by_one(tiny: Backbone) -> None:
    """Squared gradients of each sample's own batch, unpadded, averaged."""
    torch.manual_seed(0)
    model = adapters(tiny, build_recipe({"adapter.rank": 2, "adapter.dropout": 0}))
    for layer in model.layers:
        nn.init.normal_(layer.bank_up["shared"], std=0.1)
    samples = [*tiny_benchmark(3).tasks[0].train[:2], *tiny_benchmark(3).tasks[2].train[:1]]

    fisher = diagonal_fisher(model, [tiny.batch(samples, answers=True)], samples=3)

    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    expected = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for sample in samples:
        loss = task_loss(model.eval(), tiny.batch([sample], answers=True))
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            expected[name] += gradient**2 / 3
    assert fisher.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(fisher[name], expected[name], rtol=1e-3, atol=1e-9)
    assert max(float(value.max()) for value in fisher.values()) > 0
