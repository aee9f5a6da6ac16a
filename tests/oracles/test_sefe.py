"""SEFE's RegLoRA against its paper and against what its authors' code computes: key elements, their penalty, merged weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cl_zoo_sefe import SEFE, key_elements
from oracles.layers import EXACT, SHAPES, Bare, Literal, Shape, assert_equal, learning, stirred, through
from torch import Tensor
from torch.nn import functional as F

from cl_zoo.batches import forward
from cl_zoo.nn import BankLayer, ExpertBank
from cl_zoo.tasks import Task


def task(index: int) -> Task:
    return Task(index, f"task {index}", "", 8)


def placed(shape: Shape, tasks: int = 3, **options: Any) -> tuple[SEFE, ExpertBank]:
    """The method while the last of some tasks is learnt; each was at random when it ended."""
    method = SEFE(SEFE.Options(**{"share": 0.2, "strength": 3.0, **options}))
    bank = method.build_model(Bare(shape), shape.recipe())
    for index in range(tasks):
        method.before_task(task(index))
        stirred(bank, shape.seed)  # the same numbers again for the experts that were there
        if index < tasks - 1:
            method.after_task(task(index))
    return method, bank


def largest(update: Tensor, share: float) -> list[tuple[int, int]]:
    """Places (i, j) of the largest entries of |BA|, found by sorting all of them; rounded down."""
    places = [(i, j) for i in range(update.shape[0]) for j in range(update.shape[1])]
    places.sort(key=lambda place: -abs(float(update[place])))
    return places[: int(share * len(places))]


def held(layer: BankLayer, tasks: int, share: float) -> list[tuple[int, int]]:
    """The lists of all earlier tasks joined, with repeats."""
    found: list[tuple[int, int]] = []
    for index in range(tasks - 1):
        update = layer.bank_up[f"t{index}"] @ layer.bank_down[f"t{index}"]
        found += largest(update.detach(), share)
    return found


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_key_elements_are_the_largest_entries_of_an_update_without_its_scale(
    shape: Shape, share: float
) -> None:
    """As rows and columns; below one place theirs keep none, and ours one."""
    _, bank = placed(shape, 1)
    for layer in bank.layers:
        A, B = layer.bank_down["t0"].detach(), layer.bank_up["t0"].detach()

        found = key_elements(A, B, share).tolist()

        expected = largest(B @ A, share) or largest(B @ A, 1.0)[:1]
        assert [divmod(place, layer.in_features) for place in found] == expected


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_term_and_its_gradients_are_the_authors(shape: Shape, tasks: int) -> None:
    """λ · mean over linears of mean over the joined places of |(B A)_ij|, each entry a product of a row of B and a column of A."""
    method, bank = placed(shape, tasks)

    terms = method.loss(task(tasks - 1))

    means = []
    for layer in bank.layers:
        A, B = layer.bank_down[f"t{tasks - 1}"], layer.bank_up[f"t{tasks - 1}"]
        places = held(layer, tasks, 0.2) or [largest(B @ A, 1.0)[0]]
        sizes = [sum(B[i, k] * A[k, j] for k in range(A.shape[0])).abs() for i, j in places]
        means.append(sum(sizes) / len(sizes))
    assert terms is not None
    assert set(terms) == {"sefe"}
    # the means are taken in fp32
    torch.testing.assert_close(terms["sefe"].double(), 3.0 * sum(means) / len(means), rtol=1e-6, atol=0)
    tensors = learning(bank)
    assert set(tensors) == {name for name, _ in bank.named_parameters() if name.endswith(f".t{tasks - 1}")}
    ours = torch.autograd.grad(terms["sefe"], list(tensors.values()))
    theirs = torch.autograd.grad(3.0 * sum(means) / len(means), list(tensors.values()))
    for mine, other in zip(ours, theirs, strict=True):
        assert other.any()
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


def test_a_place_that_two_tasks_hold_counts_twice() -> None:
    """Else the test above could not tell joined lists from sets."""
    assert any(
        len(set(places)) < len(places)
        for shape in SHAPES
        for layer in placed(shape, 3)[1].layers
        for places in [held(layer, 3, 0.2)]
    )


def merged(layer: BankLayer, scale: float, tasks: int) -> Tensor:
    """W after the updates of some tasks were written into it, one after the other, as the authors' script does."""
    weight = layer.base_layer.weight.detach().clone()
    for index in range(tasks):
        weight += scale * (layer.bank_up[f"t{index}"] @ layer.bank_down[f"t{index}"]).detach()
    return weight


def on_the_merged(scale: float, tasks: int, drop: float = 0.0) -> Literal:
    """A layer with the earlier tasks in its weight and one LoRA on it, which sees x with a share of it dropped."""

    def layer_of(layer: BankLayer, x: Tensor) -> Tensor:
        A, B = layer.bank_down[f"t{tasks - 1}"], layer.bank_up[f"t{tasks - 1}"]
        y = F.linear(x, merged(layer, scale, tasks - 1), layer.base_layer.bias)
        return y + scale * F.linear(F.linear(F.dropout(x, drop), A), B)

    return layer_of


@pytest.mark.parametrize("tasks", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_in_learning_are_those_on_merged_weights(shape: Shape, tasks: int) -> None:
    _, bank = placed(shape, tasks)
    x = shape.states()

    ours = forward(bank.train(), shape.batch(x)).logits

    assert_equal(ours, through(bank, on_the_merged(shape.scale, tasks), x), {"x": x, **learning(bank)})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_answers_are_those_of_the_merged_weights(shape: Shape) -> None:
    method, bank = placed(shape, 3)
    x = shape.states()

    model = method.build_inference_model([task(index) for index in range(3)]).eval()

    def layer_of(layer: BankLayer, x: Tensor) -> Tensor:
        return F.linear(x, merged(layer, shape.scale, 3), layer.base_layer.bias)

    theirs = through(bank, layer_of, x)
    torch.testing.assert_close(forward(model, shape.batch(x)).logits, theirs, **EXACT)
    for layer in bank.layers:
        ours = layer.base_layer.weight + layer.delta()
        torch.testing.assert_close(ours.detach(), merged(layer, shape.scale, 3), **EXACT)


def test_with_dropout_merged_tasks_see_what_the_learning_one_sees() -> None:
    """On merged weights they would see all of x; so does the first task, which has none merged."""
    shape = SHAPES[0]
    for tasks, same in ((1, True), (2, False)):
        method = SEFE(SEFE.Options())
        bank = method.build_model(Bare(shape), shape.recipe(dropout=0.5))
        for index in range(tasks):
            method.before_task(task(index))
        stirred(bank, shape.seed).train()
        x = shape.states()
        torch.manual_seed(1)
        ours = forward(bank, shape.batch(x)).logits
        torch.manual_seed(1)
        theirs = through(bank, on_the_merged(shape.scale, tasks, 0.5), x)

        assert torch.allclose(ours, theirs, **EXACT) == same
