"""CL-MoE against its paper and against what its authors' scripts compute: mixture, roles, momentum, both routers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cl_zoo_clmoe import CLMoE
from oracles.layers import (
    EXACT,
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
from torch import Tensor
from torch.nn import functional as F

from cl_zoo.batches import Batch, forward
from cl_zoo.nn import BankLayer, ExpertBank
from cl_zoo.tasks import Sample

Experts = dict[str, Tensor]
"""A and B by name."""


def placed(shape: Shape, **options: Any) -> tuple[CLMoE, ExpertBank]:
    """The method before its first task, everything at random; a task has half of the experts."""
    half = max(1, shape.experts // 2)
    settings = {"experts": shape.experts, "top": half, "samples": 999, "momentum": 0.75, **options}
    method = CLMoE(CLMoE.Options(**settings))
    return method, stirred(method.build_model(Bare(shape), shape.recipe()), shape.seed)


def data(shape: Shape, kind: int) -> list[Batch]:
    """Two batches of a task; every third sample has no image."""
    generator = torch.Generator().manual_seed(100 * shape.seed + kind)
    found = []
    for part in range(2):
        x = torch.randn(shape.states().shape, generator=generator, dtype=torch.float64) + kind - 1
        names = [f"{kind}-{part}-{row}" for row in range(shape.rows)]
        images = [Path(f"{name}.png") if (row + part) % 3 else None for row, name in enumerate(names)]
        rows = [
            Sample(name, image, f"question {name}", "yes") for name, image in zip(names, images, strict=True)
        ]
        found.append(shape.batch(x, rows))
    return found


def weights(bank: ExpertBank) -> Experts:
    return {
        name: one.detach().clone()
        for name, one in bank.named_parameters()
        if ".bank_down." in name or ".bank_up." in name
    }


def mixture(scale: float, task: Sequence[Sequence[Tensor]] | None = None, beta: float = 1.0) -> Literal:
    """y = W x + s · Σ_i (β G^I(x)_i + (1 − β) G^T_i) B_i A_i x; `task` has G^T by layer, for all rows."""

    def layer_of(layer: BankLayer, x: Tensor) -> Tensor:
        def one(layer: BankLayer, token: Tensor) -> Tensor:
            y = base(layer, token)
            for i, gate in enumerate(softmax([row @ token for row in layer.bank_mix.router.weight])):
                both = gate if task is None else beta * gate + (1 - beta) * task[layer.depth][i]
                y = y + scale * both * (layer.bank_up[f"e{i}"] @ (layer.bank_down[f"e{i}"] @ token))
            return y

        return token_by_token(one)(layer, x)

    return layer_of


def released(scale: float) -> Literal:
    """All tokens at once, expert after expert; their second router is commented out."""

    def layer_of(layer: BankLayer, x: Tensor) -> Tensor:
        gates = torch.softmax(F.linear(x, layer.bank_mix.router.weight), dim=2)
        y = base(layer, x)
        for i in range(gates.shape[2]):
            update = F.linear(F.linear(x, layer.bank_down[f"e{i}"]), layer.bank_up[f"e{i}"])
            y = y + update * scale * gates[:, :, i].unsqueeze(2)
        return y

    return layer_of


@torch.no_grad()
def mean_gates(bank: ExpertBank, batches: Sequence[Batch], shape: Shape) -> list[list[float]]:
    """Mean of G^I over the real tokens of all samples, each looked at alone, by layer and expert."""
    sums = [[0.0] * shape.experts for _ in bank.layers]
    tokens = 0
    for batch in batches:
        for row, wide in zip(batch.inputs["x"], shape.padding, strict=True):
            state = row[None, wide:]
            tokens += state.shape[1]
            for line, layer in zip(sums, bank.layers, strict=True):
                for token in state[0]:
                    gates = softmax([w @ token for w in layer.bank_mix.router.weight])
                    for i, gate in enumerate(gates):
                        line[i] += float(gate)
                state = torch.tanh(released(shape.scale)(layer, state))
    return [[value / tokens for value in line] for line in sums]


def most_active(means: Sequence[Sequence[float]], count: int) -> list[list[int]]:
    """The experts with the largest mean gates, in each layer."""
    return [sorted(range(len(line)), key=lambda i: -line[i])[:count] for line in means]


def paper_merge(
    old: Experts, new: Experts, before: list[list[int]], now: list[list[int]], γ: float
) -> Experts:
    """θ_t = λ ∘ θ_{t−1} + (1 − λ) ∘ φ_t: λ = 1 − γ for an expert that the new task alone uses, γ for all others."""
    merged = {}
    for name in new:
        layer, expert = int(name.split("layers.")[1].split(".")[0]), int(name.rpartition(".e")[2])
        λ = 1 - γ if expert in now[layer] and expert not in before[layer] else γ
        merged[name] = λ * old[name] + (1 - λ) * new[name]
    return merged


def script_merge(
    old: Experts, new: Experts, before: list[list[int]], now: list[list[int]], α: float
) -> Experts:
    """As both scripts mean it: an expert that the old task alone used takes α of the new, every other α of the old."""
    merged = dict(new)
    for name, weight in old.items():
        layer, expert = int(name.split("layers.")[1].split(".")[0]), int(name.rpartition(".e")[2])
        exclusive = [i for i in before[layer] if i not in now[layer]]
        if expert in exclusive:
            merged[name] = (1 - α) * weight + α * new[name]
        else:
            merged[name] = α * weight + (1 - α) * new[name]
    return merged


def two_tasks(
    method: CLMoE, bank: ExpertBank, shape: Shape
) -> tuple[Experts, Experts, list[list[list[float]]]]:
    """Learn two tasks by putting other numbers into what learns; θ after the first, φ of the second, the mean gates of both."""
    means, kept = [], []
    for kind in range(2):
        method.before_task()
        stirred(bank, 1000 + 10 * shape.seed + kind)
        means.append(mean_gates(bank, data(shape, kind), shape))
        kept.append(weights(bank))
        method.after_task(data(shape, kind))
        if kind == 0:
            assert all(torch.equal(one, kept[0][name]) for name, one in weights(bank).items())
    return kept[0], kept[1], means


@pytest.mark.parametrize("transcription", [mixture, released])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_in_learning_are_those_of(shape: Shape, transcription: Any) -> None:
    bank, x = placed(shape)[1], shape.states()

    ours = forward(bank, shape.batch(x)).logits

    assert_equal(ours, through(bank, transcription(shape.scale), x), {"x": x, **learning(bank)})


@pytest.mark.parametrize(("variant", "merge"), [("paper", paper_merge), ("released", script_merge)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_merged_weights_and_the_gates_of_tasks_are_those_of(shape: Shape, variant: str, merge: Any) -> None:
    method, bank = placed(shape, variant=variant)
    count = method.options.top

    old, new, means = two_tasks(method, bank, shape)

    uses = [most_active(one, count) for one in means]
    expected = merge(old, new, *uses, 0.75)
    for name, weight in weights(bank).items():
        torch.testing.assert_close(weight, expected[name], **EXACT)
    for kept, one, used in zip(method.gates, means, uses, strict=True):
        literal = [
            [line[i] / sum(line[j] for j in places) if i in places else 0.0 for i in range(shape.experts)]
            for line, places in zip(one, used, strict=True)
        ]
        # they are summed up in fp32
        torch.testing.assert_close(kept.double(), torch.tensor(literal).double(), rtol=0, atol=1e-6)


def test_both_variants_meet_every_role() -> None:
    """Else the test above could not tell them apart: experts of the old task alone, of the new one alone, of both, of none."""
    roles = set()
    for shape in SHAPES:
        method, bank = placed(shape)
        two_tasks(method, bank, shape)
        before, now = method.gates[0] > 0, method.gates[1] > 0
        roles |= {(bool(a), bool(b)) for a, b in zip(before.flatten(), now.flatten(), strict=True)}

    assert len(roles) == 4


@pytest.mark.parametrize("momentum", [0.7, 0.75])
def test_mixing_a_and_b_each_by_itself_leaves_products_of_old_and_new(momentum: float) -> None:
    """(λB + μB′)(λA + μA′) = λ² BA + μ² B′A′ + λμ (BA′ + B′A): no mixture of the two updates."""
    shape = SHAPES[0]
    method, bank = placed(shape, momentum=momentum, top=shape.experts)  # all are shared: λ = γ
    old, new, _ = two_tasks(method, bank, shape)
    λ, μ = momentum, 1 - momentum

    for name in (name for name in new if ".bank_up." in name):
        down = name.replace(".bank_up.", ".bank_down.")
        B, A, B_, A_ = old[name], old[down], new[name], new[down]
        merged = weights(bank)[name] @ weights(bank)[down]
        by_hand = λ**2 * B @ A + μ**2 * B_ @ A_ + λ * μ * (B @ A_ + B_ @ A)
        torch.testing.assert_close(merged, by_hand, rtol=0, atol=1e-6)  # λ is a number in fp32
        assert not torch.allclose(merged, λ * B @ A + μ * B_ @ A_, atol=0.01)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_momentum_and_second_router_it_is_what_the_published_code_computes(shape: Shape) -> None:
    """There the merge finds no expert, so φ_t stays, and tokens find their experts by themselves."""
    method, bank = placed(shape, momentum=0, top=shape.experts, beta=1)
    _, new, _ = two_tasks(method, bank, shape)
    x = shape.states()
    learnt = through(bank, released(shape.scale), x)

    answered = forward(method.build_inference_model().eval(), shape.batch(x)).logits

    assert all(torch.equal(one, new[name]) for name, one in weights(bank).items())
    torch.testing.assert_close(answered, learnt, **EXACT)


def cosine(a: Tensor, b: Tensor) -> float:
    norms = float((a * a).sum() * (b * b).sum()) ** 0.5
    return float((a * b).sum()) / norms if norms else 0.0


def nearest(method: CLMoE, sample: Sample, tasks: Sequence[Sequence[Batch]]) -> int:
    """The task whose mean image and mean text lie nearest, by the sum of both cosines; of two equal ones the later."""
    features = Bare(SHAPES[0]).features
    scores = []
    for batches in tasks:
        rows = [one for batch in batches for one in batch.samples]
        images = [features.images([one.image])[0] for one in rows if one.image is not None]
        texts = [features.texts([one.prompt])[0] for one in rows]
        image = sum(images) / len(images) if images else torch.zeros(features.width)
        scores.append(
            cosine(features.images([sample.image])[0], image)
            + cosine(features.texts([sample.prompt])[0], sum(texts) / len(texts))
        )
    return max(range(len(scores)), key=lambda place: (scores[place], place))


@pytest.mark.parametrize("beta", [0.5, 0.25, 0.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_answer_adds_the_weights_of_the_nearest_task_to_those_of_the_token(
    shape: Shape, beta: float
) -> None:
    method, bank = placed(shape, beta=beta)
    tasks = [data(shape, kind) for kind in range(3)]
    for batches in tasks:
        method.anchors.add(batches)
    generator = torch.Generator().manual_seed(shape.seed)
    method.gates = [
        torch.rand(len(bank.layers), shape.experts, generator=generator, dtype=torch.float64).softmax(1)
        for _ in tasks
    ]
    x = shape.states()
    batch = shape.batch(x, [tasks[row % 3][0].samples[0] for row in range(shape.rows)])
    model = method.build_inference_model().eval()

    ours = forward(model, batch).logits

    chosen = [nearest(method, one, tasks) for one in batch.samples]
    theirs = [
        through(bank, mixture(shape.scale, method.gates[t], beta), row[None])
        for row, t in zip(x, chosen, strict=True)
    ]
    assert model.route.tolist() == [[float(one == place) for place in range(3)] for one in chosen]
    torch.testing.assert_close(ours, torch.cat(theirs), **EXACT)
