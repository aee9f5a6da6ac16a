"""Merging against the papers' rules, written out entry by entry on flat task vectors, and against what PEFT's own functions return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cl_zoo_merging import Merging, dropped
from oracles.layers import EXACT, SHAPES, Bare, Literal, Shape, assert_equal, stirred, through
from peft.utils import merge_utils as peft
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo.batches import forward
from cl_zoo.nn import BankLayer, ExpertBank
from cl_zoo.tasks import Task

RULES = ["average", "arithmetic", "ties", "dare", "dare-ties"]


def tasks(count: int) -> list[Task]:
    return [Task(index, f"task {index}", "", 8) for index in range(count)]


def placed(shape: Shape, count: int, **options: Any) -> tuple[Merging, ExpertBank]:
    """The method after some tasks, with experts at random."""
    method = Merging(Merging.Options(**{"density": 0.4, "drop": 0.3, **options}))
    bank = method.build_model(Bare(shape), shape.recipe())
    for one in tasks(count):
        method.before_task(one)
    return method, stirred(bank, shape.seed)


def factors(layer: BankLayer, name: str) -> tuple[Tensor, Tensor]:
    return layer.bank_down[name].detach(), layer.bank_up[name].detach()


def vector(bank: ExpertBank, name: str) -> list[float]:
    """τ_t: what a task adds to all weights of the model, one after the other, each entry a sum over the rank."""
    entries = []
    for layer in bank.layers:
        A, B = factors(layer, name)
        for i in range(layer.out_features):
            for j in range(layer.in_features):
                entries.append(layer.scale * sum(float(B[i, k]) * float(A[k, j]) for k in range(A.shape[0])))
    return entries


def left_by_dare(method: Merging, names: list[str], vectors: list[list[float]]) -> list[list[float]]:
    """(1 − m) τ / (1 − p), with the method's own masks, which are told by what it leaves of ones."""
    p, kept = method.options.drop, [list[float]() for _ in names]
    for layer in method.bank.layers:
        ones = torch.ones(len(names), layer.out_features, layer.in_features)
        left = dropped(ones, p, [f"{method.seed} {layer.path} 0 {name}" for name in names])
        for row, mask in zip(kept, left.flatten(1).tolist(), strict=True):
            row += [float(one > 0) for one in mask]
    return [
        [one * entry / (1 - p) for one, entry in zip(mask, vector, strict=True)]
        for mask, vector in zip(kept, vectors, strict=True)
    ]


def ties(vectors: list[list[float]], density: float, factor: float) -> list[float]:
    """Trim, elect sign, disjoint mean, as in the paper's algorithm."""
    trimmed = []
    for entries in vectors:
        order = sorted(range(len(entries)), key=lambda place: -abs(entries[place]))
        largest = set(order[: int(density * len(entries))])
        trimmed.append([entry if place in largest else 0.0 for place, entry in enumerate(entries)])
    merged = []
    for column in zip(*trimmed, strict=True):
        elected = sum(column)
        agree = [entry for entry in column if entry * elected > 0]
        merged.append(factor * sum(agree) / len(agree) if agree else 0.0)
    return merged


def merged(method: Merging, count: int, factor: float) -> list[float]:
    """τ of the rule, written out."""
    options, names = method.options, [f"t{index}" for index in range(count)]
    vectors = [vector(method.bank, name) for name in names]
    if options.rule.startswith("dare"):
        vectors = left_by_dare(method, names, vectors)
    if options.rule.endswith("ties"):
        return ties(vectors, options.density, factor)
    return [factor * sum(column) for column in zip(*vectors, strict=True)]


def in_weights(bank: ExpertBank, entries: list[float]) -> Literal:
    """A chain's linears with a flat vector added to their weights."""
    changes, rest = {}, entries
    for layer in bank.layers:
        size = layer.out_features * layer.in_features
        own, rest = rest[:size], rest[size:]
        changes[layer] = torch.tensor(own, dtype=torch.float64).view(layer.out_features, layer.in_features)
    return lambda layer, x: F.linear(x, layer.base_layer.weight + changes[layer], layer.base_layer.bias)


def answers(model: nn.Module, shape: Shape, x: Tensor) -> Tensor:
    logits: Tensor = forward(model.eval(), shape.batch(x)).logits
    return logits


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES[:6], ids=str)
def test_answers_are_those_of_the_weights_with_the_merged_vector_added(
    shape: Shape, rule: str, count: int
) -> None:
    method, bank = placed(shape, count, rule=rule, coefficient=0.7)
    x = shape.states()

    ours = answers(method.build_inference_model(tasks(count)), shape, x)

    literal = in_weights(bank, merged(method, count, 1 / count if rule == "average" else 0.7))
    assert_equal(ours, through(bank, literal, x), {"x": x})


@pytest.mark.parametrize(
    ("rule", "factor"),
    [("average", 1 / 3), ("arithmetic", 0.4), ("dare", 0.4), ("ties", 1), ("dare-ties", 1)],
)
def test_where_none_is_given_a_rule_has_its_own_coefficient(rule: str, factor: float) -> None:
    shape = SHAPES[1]
    method, bank = placed(shape, 3, rule=rule)
    x = shape.states()

    ours = answers(method.build_inference_model(tasks(3)), shape, x)

    assert_equal(ours, through(bank, in_weights(bank, merged(method, 3, factor)), x), {"x": x})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_trimming_each_linear_is_what_peft_makes_of_updates(shape: Shape) -> None:
    """Its `ties` before the singular value decomposition of `ties_svd`."""
    method, bank = placed(shape, 3, rule="ties", trim="linear", coefficient=0.7)
    x = shape.states()

    ours = answers(method.build_inference_model(tasks(3)), shape, x)

    def layer_of(layer: BankLayer, x: Tensor) -> Tensor:
        updates = [layer.delta([f"t{index}"]).detach() for index in range(3)]
        change = peft.ties(updates, torch.full((3,), 0.7, dtype=torch.float64), 0.4)
        return F.linear(x, layer.base_layer.weight + change, layer.base_layer.bias)

    torch.testing.assert_close(ours, through(bank, layer_of, x), **EXACT)


def peft_merges(rule: str, stack: list[Tensor], weights: Tensor) -> Tensor:
    """What PEFT makes of matrices that DARE has been through already where the rule has it."""
    if rule == "ties":
        return peft.ties(stack, weights, 0.4)
    if rule == "dare-ties":
        return peft.ties(stack, weights, 1.0)  # `dare_ties` behind its pruning
    return peft.task_arithmetic(stack, weights)


@pytest.mark.filterwarnings("ignore:The density 1.0")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_of_factors_it_is_the_adapter_that_peft_adds(shape: Shape, rule: str) -> None:
    """A and B by PEFT's functions, with √(λ s) for each, and a scaling of one: `add_weighted_adapter` with its own names of the rules."""
    density = 1.0 if rule == "dare-ties" else 0.4
    options = {"rule": rule, "of": "factors", "trim": "linear", "density": density, "coefficient": 0.7}
    method, bank = placed(shape, 3, **options)
    x, names = shape.states(), ["t0", "t1", "t2"]
    factor = 1 / 3 if rule == "average" else 0.7

    ours = answers(method.build_inference_model(tasks(3)), shape, x)

    def layer_of(layer: BankLayer, x: Tensor) -> Tensor:
        made = []
        for place, stack in enumerate(zip(*(factors(layer, name) for name in names), strict=True)):
            held = torch.stack(stack)
            if rule.startswith("dare"):
                held = dropped(held, 0.3, [f"{method.seed} {layer.path} {place} {name}" for name in names])
            weights = torch.full((3,), (factor * layer.scale) ** 0.5, dtype=torch.float64)
            made.append(peft_merges(rule, list(held), weights))
        A, B = made
        return F.linear(x, layer.base_layer.weight + B @ A, layer.base_layer.bias)

    assert_equal(ours, through(bank, layer_of, x), {"x": x})


def test_pefts_random_pruning_drops_and_rescales_by_the_same_law() -> None:
    """A share p of zeros, and 1/(1 − p) times what is left."""
    one, p = torch.ones(1, 200, 200), 0.3
    torch.manual_seed(0)
    theirs, ours = peft.random_pruning(one[0], 1 - p, rescale=True), dropped(one, p, ["a"])[0]

    for left in (theirs, ours):
        assert float((left == 0).float().mean()) == pytest.approx(p, abs=0.01)
        assert left[left != 0].unique().tolist() == pytest.approx([1 / (1 - p)])


def test_the_authors_of_ties_keep_one_entry_more() -> None:
    """Theirs keeps what is at least the (d − ⌊density · d⌋)-th smallest magnitude, counted from one."""
    shape = SHAPES[0]
    method, bank = placed(shape, 2, rule="ties")
    flat = torch.tensor(vector(bank, "t0"), dtype=torch.float64)
    d = len(flat)

    theirs = flat.abs() >= flat.abs().kthvalue(d - int(0.4 * d)).values

    assert int(theirs.sum()) == int(0.4 * d) + 1
    for layer in bank.layers:
        layer.bank_up["t1"].data.zero_()  # so that what is merged is the first task's trimmed vector
    changes = method.build_inference_model(tasks(2)).changes
    assert sum(int((change.dense() != 0).sum()) for change in changes) == int(0.4 * d)
