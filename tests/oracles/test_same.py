"""SAME against its paper's equations and against what its released code computes: layers, changed gradients, scores."""

from __future__ import annotations

import pytest
import torch
from cl_zoo_same import MOMENTUM, SAME
from oracles.layers import (
    SHAPES,
    Bare,
    Literal,
    Shape,
    assert_equal,
    base,
    learning,
    softmax,
    stirred,
    through,
    token_by_token,
)
from torch import Tensor, nn

from cl_zoo.nn import BankLayer
from cl_zoo.tasks import Task

NEAR = {"rtol": 1e-3, "atol": 1e-6}
"""Sums over processes are taken in fp32."""
DELTA, MU, TAU, WINDOW = 0.9, 0.9, 0.1, 3
VARIANTS = ("paper", "released")


def task(index: int) -> Task:
    return Task(index, f"task {index}", "", 4)


def placed(shape: Shape, variant: str, **options: object) -> tuple[SAME, nn.Module]:
    method = SAME(SAME.Options(variant=variant, experts=shape.experts, **options))
    model = method.build_model(Bare(shape), shape.recipe())
    stirred(model.bank, shape.seed)
    method.before_task(task(0))
    return method, model.train()


def half_open(method: SAME, shape: Shape) -> Tensor:
    """Ones and zeros (layers, E), the last expert of every layer among the ones."""
    draw = torch.rand(len(method.gates), shape.experts, generator=torch.Generator().manual_seed(shape.seed))
    opened = (draw > 0.4).double()
    opened[:, -1] = 1
    for gate, row in zip(method.gates, opened, strict=True):
        gate.open = row
    return opened


# --- the forward ----------------------------------------------------------------------------------------------------


def paper(shape: Shape, opened: dict[str, Tensor]) -> Literal:
    """h = W x + s · Σ_i ω_i(x) B_i A_i x, without the experts that are frozen."""

    def one(layer: BankLayer, x: Tensor) -> Tensor:
        parts = softmax([row @ x for row in layer.bank_mix.router.weight])
        taking = [part * is_open for part, is_open in zip(parts, opened[layer.path], strict=True)]
        y = base(layer, x)
        for e, gate in enumerate(taking):
            A, B = layer.bank_down[f"e{e}"], layer.bank_up[f"e{e}"]
            y = y + shape.scale * gate / sum(taking) * (B @ (A @ x))
        return y

    return token_by_token(one)


def released(shape: Shape, opened: dict[str, Tensor], *, answers: bool = False) -> Literal:
    """One weight per expert for a row: the mean over its tokens; it goes before the sum of the As and before that of the Bs.

    In answers the scores are divided by E, and the two best of the mean share the row.
    """

    def layer_of(layer: BankLayer, x: Tensor) -> Tensor:
        weight, number, rows = layer.bank_mix.router.weight, shape.experts, []
        for row, wide in zip(x, shape.padding, strict=True):
            probable = torch.softmax(row[wide:] @ weight.T / (number if answers else 1), dim=-1).mean(0)
            if answers:
                best = sorted(range(number), key=lambda e, p=probable: float(-p[e]))[:2]
                kept = [probable[e] if e in best else torch.zeros_like(probable[e]) for e in range(number)]
            else:
                kept = [part * is_open for part, is_open in zip(probable, opened[layer.path], strict=True)]
            w = [one / sum(kept) for one in kept]
            down = sum(w[e] * (row @ layer.bank_down[f"e{e}"].T) for e in range(number))
            up = sum(w[e] * (down @ layer.bank_up[f"e{e}"].T) for e in range(number))
            rows.append(base(layer, row) + shape.scale * up)
        return torch.stack(rows)

    return layer_of


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients_of_a_training_forward_are_those_of(shape: Shape, variant: str) -> None:
    (method, model), x = placed(shape, variant), shape.states()
    opened = dict(zip([layer.path for layer in method.layers], half_open(method, shape), strict=True))
    model.prepare(shape.batch(x))

    ours = model(x=x).logits
    literal = (paper if variant == "paper" else released)(shape, opened)

    assert_equal(ours, through(model.bank, literal, x), {"x": x, **learning(model.bank)})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_experts_answer_or_the_two_best_of_a_row(shape: Shape, variant: str) -> None:
    (method, model), x = placed(shape, variant), shape.states()
    half_open(method, shape)
    all_open = {layer.path: torch.ones(shape.experts).double() for layer in method.layers}
    model.eval().prepare(shape.batch(x))

    ours = model(x=x).logits
    literal = paper(shape, all_open) if variant == "paper" else released(shape, all_open, answers=True)

    assert_equal(ours, through(model.bank, literal, x), {"x": x})


# --- what gradients become ------------------------------------------------------------------------------------------


def eigen(tokens: Tensor, variant: str) -> tuple[Tensor, Tensor, int]:
    """All V, all σ and k: of the mean of x xᵀ, or standard deviations about the mean."""
    n, width = tokens.shape
    C = torch.zeros(width, width, dtype=torch.float64)
    mean = tokens.mean(0) if variant == "released" else torch.zeros(width, dtype=torch.float64)
    for x in tokens:
        C += torch.outer(x - mean, x - mean) / (n if variant == "paper" else n - 1)
    values, vectors = torch.linalg.eigh(C)
    values, V = values.flip(0).clamp(min=0), vectors.flip(1)
    sigma = values if variant == "paper" else values.sqrt()
    energy, k = 0.0, 0
    while energy < DELTA * float((sigma**2).sum()):
        energy, k = energy + float(sigma[k] ** 2), k + 1
    return V, sigma, k


def routed(gradient: Tensor, tokens: Tensor, variant: str) -> Tensor:
    """∇W_G V_∥ g(Σ) V_∥ᵀ + ∇W_G V_⊥ V_⊥ᵀ."""
    V, sigma, k = eigen(tokens, variant)
    smooth = [float(sum(sigma[max(0, i - WINDOW + 1) : i + 1]) / min(WINDOW, i + 1)) for i in range(k)]
    if variant == "paper":
        g = [min(1.0, 1 / one) for one in smooth]
    else:  # the inverse over the largest inverse, then no further than a fifth from one
        inverse = [1 / (one + 1e-6) for one in smooth]
        g = [min(1.2, max(0.8, one / max(inverse))) for one in inverse]
    inside, outside = V[:, :k], V[:, k:]
    return gradient @ inside @ torch.tensor(g).double().diag() @ inside.T + gradient @ outside @ outside.T


def curved(gradient: Tensor, tokens: Tensor, variant: str) -> Tensor:
    """∇A_i (V_k (Σ_k + μ)⁻¹ V_kᵀ + (I − V_k V_kᵀ) / μ)."""
    V, sigma, k = eigen(tokens, variant)
    inverse = V[:, :k] @ (sigma[:k] + MU).reciprocal().diag() @ V[:, :k].T
    inverse += (torch.eye(len(V)).double() - V[:, :k] @ V[:, :k].T) / MU
    return gradient @ inverse


def one_step(
    method: SAME, model: nn.Module, shape: Shape, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of a step before the method changes them, by name, and what each layer saw of real tokens, by path."""
    seen: dict[str, Tensor] = {}

    def note(layer: BankLayer, args: tuple[Tensor, ...]) -> None:
        rows = zip(args[0].detach(), shape.padding, strict=True)
        seen[layer.path] = torch.cat([row[wide:] for row, wide in rows])

    handles = [layer.register_forward_pre_hook(note) for layer in method.layers]
    x = 3 * Shape.states(shape).detach().roll(seed, dims=2)
    model.zero_grad()
    model.prepare(shape.batch(x))
    logits = model(x=x).logits
    draw = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (logits * draw).sum().backward()
    for handle in handles:
        handle.remove()
    return {name: weight.grad.clone() for name, weight in learning(model.bank).items()}, seen


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_routers_and_experts_become_those_of(shape: Shape, variant: str) -> None:
    """In the second task: a router's by all that was seen, or by the latest step; an expert's by what the first task saw."""
    method, model = placed(shape, variant, freezing=False)
    _, first = one_step(method, model, shape, 0)
    method.before_step()
    method.before_task(task(1))
    raw, second = one_step(method, model, shape, 1)
    method.before_step()

    new = learning(model.bank)
    for layer in method.layers:
        router, prefix = (
            next(n for n in new if f"{layer.path}.bank_mix" in n),
            f"model.{layer.path}.bank_down",
        )
        past, here = first[layer.path], second[layer.path]
        seen = torch.cat([past, here]) if variant == "paper" else here
        if len(past) > 1:
            torch.testing.assert_close(new[router].grad, routed(raw[router], seen, variant), **NEAR)
        for e in range(shape.experts):
            name = f"{prefix}.e{e}"
            if len(past) > 1:
                torch.testing.assert_close(new[name].grad, curved(raw[name], past, variant), **NEAR)
            up = name.replace("bank_down", "bank_up")
            assert torch.equal(new[up].grad, raw[up])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_in_the_first_task_no_expert_is_scaled(shape: Shape, variant: str) -> None:
    method, model = placed(shape, variant, freezing=False, routing=False)
    raw, _ = one_step(method, model, shape, 0)
    method.before_step()

    for name, weight in learning(model.bank).items():
        assert torch.equal(weight.grad, raw[name])


# --- who stands still -----------------------------------------------------------------------------------------------


def from_zero_to_one(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) for value in values]


def probable(layer: BankLayer, tokens: Tensor) -> Tensor:
    """ω (tokens, E) before anyone is left out."""
    return torch.softmax(tokens @ layer.bank_mix.router.weight.T, dim=-1).detach()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_experts_below_the_score_stand_still(shape: Shape, variant: str) -> None:
    """After a step of the second task: U of that step, F of the first task, or of both steps with the weights of a running mean."""
    method, model = placed(shape, variant)
    _, first = one_step(method, model, shape, 0)
    method.before_step()
    method.before_task(task(1))
    _, second = one_step(method, model, shape, 1)
    before = [gate.open.clone() for gate in method.gates]
    method.before_step()

    for place, layer in enumerate(method.layers):
        assert bool(before[place].all())
        old, new = (probable(layer, seen[layer.path]) for seen in (first, second))
        past, here = (
            (p * seen[layer.path].square().sum(1, keepdim=True)).mean(0)
            for p, seen in ((old, first), (new, second))
        )
        importance = past if variant == "paper" else MOMENTUM * (1 - MOMENTUM) * past + (1 - MOMENTUM) * here
        use = from_zero_to_one(new.mean(0).tolist())
        score = [u - f for u, f in zip(use, from_zero_to_one(importance.tolist()), strict=True)]
        best = max(
            range(shape.experts), key=lambda e: (round(score[e], 4), use[e])
        )  # of equal ones the most used
        kept = best if variant == "paper" else min(1, shape.experts - 1)
        wanted = [float(one >= TAU or e == kept) for e, one in enumerate(score)]
        assert method.gates[place].open.tolist() == wanted
