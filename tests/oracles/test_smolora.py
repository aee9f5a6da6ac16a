"""SMoLoRA against its equations, sample by sample, token by token and block by block, and against what its authors' code computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from cl_zoo_smolora import Separated, SMoLoRA
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
)
from torch import Tensor

from cl_zoo.batches import IGNORED, Batch, forward
from cl_zoo.nn import BankLayer
from cl_zoo.tasks import Sample

ABLATION: list[dict[str, Any]] = [
    {},
    {"fusion": "mean"},
    {"modules": "visual"},
    {"modules": "instruction"},
    {"top_k": 2},
    {"text": "prompt"},
]


def fitting(shape: Shape, options: dict[str, Any]) -> Shape:
    """The shape, with enough blocks for two of each module where two are to be chosen."""
    return replace(shape, experts=4 + shape.experts % 2) if options.get("top_k") == 2 else shape


def placed(shape: Shape, **options: Any) -> Separated:
    method = SMoLoRA(SMoLoRA.Options(**{"experts": shape.experts, **options}))
    model = method.build_model(Bare(shape), shape.recipe())
    stirred(model.bank, shape.seed)
    return model


def samples(count: int) -> list[Sample]:
    """Questions of two lines, of which the second comes again."""
    return [
        Sample(str(i), None, f"question {i}\nSay it {('so', 'thus')[i % 2]}.", "yes") for i in range(count)
    ]


def asked(shape: Shape, x: Tensor) -> Batch:
    return shape.batch(x, samples(len(x)))


def kept(logits: list[Tensor], k: int) -> list[Tensor | None]:
    """softmax(top_k(…)): over the k largest alone, the others have no block."""
    best = sorted(range(len(logits)), key=lambda i: -float(logits[i].detach()))[:k]
    gates = dict(zip(best, softmax([logits[i] for i in best]), strict=True))
    return [gates.get(i) for i in range(len(logits))]


def paper(model: Separated, scale: float, means: Sequence[Sequence[int]], texts: Sequence[str]) -> Literal:
    """y = W x + α x^vu + β x^if for each token, with the blocks of its sample.

    Args:
        means: places of the tokens that are averaged, by row.
    """
    options, features = model.options, model._backbone.features

    def module(layer: BankLayer, token: Tensor, gates: Sequence[Tensor | None], first: int) -> Tensor:
        out = torch.zeros(layer.out_features, dtype=torch.float64)
        for i, gate in enumerate(gates):
            if gate is not None:
                A, B = layer.bank_down[f"e{first + i}"], layer.bank_up[f"e{first + i}"]
                out = out + scale * gate * (B @ (A @ token))
        return out

    def layer_of(layer: BankLayer, x: Tensor) -> Tensor:
        mix, rows = layer.bank_mix, []
        for row, places, text in zip(x, means, texts, strict=True):
            average = sum(row[place] for place in places) / len(places)
            seen = {"visual": average, "instruction": features.texts([text])[0]}
            gates = {
                name: kept([weights @ seen[name] for weights in router.weight], options.top_k)
                for name, router in mix.routers.items()
            }
            tokens = []
            for token in row:
                outs, first = [], 0
                for of_module in gates.values():
                    outs.append(module(layer, token, of_module, first))
                    first += len(of_module)
                weights = [torch.tensor(1 / len(outs), dtype=torch.float64)] * len(outs)
                if options.fuses:
                    weights = softmax(
                        [own @ out for own, out in zip(mix.importance.weight, outs, strict=True)]
                    )
                tokens.append(base(layer, token) + sum(w * out for w, out in zip(weights, outs, strict=True)))
            rows.append(torch.stack(tokens))
        return torch.stack(rows)

    return layer_of


def released(scale: float, row_of_table: Tensor) -> Literal:
    """All tokens at once: the mean over all positions, the largest logit as a one in a row of zeros, block after block.

    Args:
        row_of_table: the embedding that the number of the task picks, one for the whole batch.
    """

    def layer_of(layer: BankLayer, x: Tensor) -> Tensor:
        mix = layer.bank_mix
        vu, ins = mix.routers["visual"].weight, mix.routers["instruction"].weight
        by_seen, by_asked = x.mean(1) @ vu.T, ins @ row_of_table
        ones = torch.zeros(len(x), len(vu) + len(ins), dtype=x.dtype)
        for row in range(len(x)):
            ones[row, int(by_seen[row].argmax())] = 1.0
            ones[row, len(vu) + int(by_asked.argmax())] = 1.0
        halves = []
        for blocks in (range(len(vu)), range(len(vu), len(vu) + len(ins))):
            half: Any = 0.0
            for i in blocks:
                block = x @ layer.bank_down[f"e{i}"].T @ layer.bank_up[f"e{i}"].T
                half = half + block * scale * ones[:, i, None, None]
            halves.append(half)
        scores = [half @ own for half, own in zip(halves, mix.importance.weight, strict=True)]
        weights = torch.softmax(torch.stack(scores, -1), -1)
        return base(layer, x) + weights[..., :1] * halves[0] + weights[..., 1:] * halves[1]

    return layer_of


def real(shape: Shape) -> list[list[int]]:
    return [list(range(wide, shape.tokens)) for wide in shape.padding]


@pytest.mark.parametrize("options", ABLATION, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_are_the_papers(shape: Shape, options: dict[str, Any]) -> None:
    """With left padding, which takes no part in the average."""
    shape = fitting(shape, options)
    model, x = placed(shape, **options), shape.states()
    texts = [one.prompt if "text" in options else one.prompt.split("\n")[1] for one in samples(shape.rows)]

    ours = forward(model.train(), asked(shape, x)).logits
    theirs = through(model.bank, paper(model, shape.scale, real(shape), texts), x)

    assert_equal(ours, theirs, {"x": x, **learning(model.bank)})


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_answers_take_part_in_the_average_as_released_alone(shape: Shape, variant: str) -> None:
    """The last token of each row and, in the first row, another before it belong to an answer: targets stand one place earlier."""
    shape = fitting(replace(shape, tokens=6), {"top_k": 2})
    model, x = placed(shape, variant=variant, top_k=2), shape.states()
    batch = asked(shape, x)
    batch.targets = torch.tensor([[IGNORED, 5, 6]] * shape.rows)
    batch.targets[0] = torch.tensor([4, 5, 6])
    means = [
        [place for place in row if variant == "released" or place < (4 if number == 0 else 5)]
        for number, row in enumerate(real(shape))
    ]
    texts = [one.prompt.split("\n")[1] for one in samples(shape.rows)]

    ours = forward(model.train(), batch).logits
    theirs = through(model.bank, paper(model, shape.scale, means, texts), x)

    assert_equal(ours, theirs, {"x": x, **learning(model.bank)})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_are_those_of_the_released_code(shape: Shape) -> None:
    """Without padding and for one task, where theirs and ours see the same."""
    shape = replace(shape, padding=(0,) * shape.rows)
    model, x = placed(shape, variant="released"), shape.states()
    same = [Sample(str(i), None, f"question {i}\nSay it so.", "yes") for i in range(shape.rows)]
    table = model._backbone.features.texts(["Say it so."])

    ours = forward(model.train(), shape.batch(x, same)).logits
    theirs = through(model.bank, released(shape.scale, table[0]), x)

    assert_equal(ours, theirs, {"x": x, **learning(model.bank)})


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_of_one_block_a_module_the_papers_softmax_leaves_routers_without_a_gradient(
    shape: Shape, k: int
) -> None:
    shape = replace(shape, experts=6)
    model, x = placed(shape, top_k=k), shape.states()
    texts = [one.prompt.split("\n")[1] for one in samples(shape.rows)]
    routers = [weight for name, weight in model.named_parameters() if ".routers." in name]
    assert all(weight.requires_grad == (k > 1) for weight in routers)
    for weight in routers:
        weight.requires_grad_()

    theirs = through(model.bank, paper(model, shape.scale, real(shape), texts), x)

    for gradient in torch.autograd.grad(theirs.square().sum(), routers):
        assert (gradient.abs().max() > 1e-8) == (k > 1)


def test_it_starts_as_theirs_does() -> None:
    """A ~ N(0, 0.01²), B = 0; routers and I as any linear layer of torch, uniform within 1/√width. So α = β = 1/2."""
    shape = Shape(0, 1, 2, (0,), (400, 300), 8, 8, 2.0, False)
    model = SMoLoRA(SMoLoRA.Options()).build_model(Bare(shape), shape.recipe())
    (layer,), (mix,) = model.bank.layers, model.mixes

    assert len(layer.experts) == 8
    downs = torch.cat([down.detach() for down in layer.bank_down.values()])
    assert downs.std().item() == pytest.approx(0.01, rel=0.02)
    assert all(not up.any() for up in layer.bank_up.values())
    shapes = {"visual": (4, 400), "instruction": (4, 6)}
    assert {name: tuple(router.weight.shape) for name, router in mix.routers.items()} == shapes
    for linear in (*mix.routers.values(), mix.importance):
        assert linear.bias is None
        assert linear.weight.abs().max() <= 1 / math.sqrt(linear.in_features)
    for linear in (mix.routers["visual"], mix.importance):
        square = linear.weight.square().mean().item()
        assert square == pytest.approx(1 / 3 / linear.in_features, rel=0.15)
    half = torch.full((1, 2, 2), 0.5, dtype=torch.float64)
    z = torch.randn(1, 2, 64, dtype=torch.float64)
    torch.testing.assert_close(mix.fusion(z, [32, 32]), half, **EXACT)


def test_there_is_no_further_term_and_nothing_happens_between_tasks() -> None:
    assert not any(hasattr(SMoLoRA, hook) for hook in ("loss", "before_task", "after_task"))
