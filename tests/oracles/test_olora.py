"""O-LoRA against its paper, against what its authors' code computes and against that of a later library: penalty, forward, sum."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cl_zoo_olora import OLoRA, overlap
from oracles.layers import (
    EXACT,
    SHAPES,
    Bare,
    Literal,
    Shape,
    assert_equal,
    base,
    learning,
    stirred,
    through,
    token_by_token,
)
from peft import LoraConfig, get_peft_model
from torch import Tensor

from cl_zoo.batches import forward
from cl_zoo.nn import BankLayer, ExpertBank
from cl_zoo.tasks import Task


def task(index: int) -> Task:
    return Task(index, f"task {index}", "", 8)


def placed(shape: Shape, tasks: int = 3, **options: Any) -> tuple[OLoRA, ExpertBank]:
    """The method while the last of some tasks is learnt, every expert at random."""
    method = OLoRA(OLoRA.Options(**options))
    bank = method.build_model(Bare(shape), shape.recipe())
    for index in range(tasks):
        method.before_task(task(index))
        stirred(bank, shape.seed)
    method.before_task(task(tasks - 1))  # what it holds of the old ones is as they are now
    return method, bank


def names(tasks: int) -> list[str]:
    return [f"t{index}" for index in range(tasks)]


# --- the penalty ----------------------------------------------------------------------------------------------------


def paper_overlap(bank: ExpertBank, tasks: int) -> Tensor:
    """Σ_i<t Σ_jk (A_i A_tᵀ)_jk², entry by entry."""
    entries = []
    for layer in bank.layers:
        for old in names(tasks - 1):
            for a in layer.bank_down[old].detach():
                for b in layer.bank_down[f"t{tasks - 1}"]:
                    entries.append(sum(x * y for x, y in zip(a, b, strict=True)) ** 2)
    return sum(entries)


def released_overlap(bank: ExpertBank, tasks: int) -> Tensor:
    """The authors' code keeps all old A in one matrix and sums |A_old A_newᵀ| over the linears."""
    total = torch.zeros((), dtype=torch.float64)
    for layer in bank.layers:
        old = torch.cat([layer.bank_down[name].detach() for name in names(tasks - 1)], dim=0)
        total = total + torch.mm(old, layer.bank_down[f"t{tasks - 1}"].T).abs().sum()
    return total


def library_overlap(bank: ExpertBank, tasks: int) -> Tensor:
    """The later library goes from task to task, with the new A on the left; there the old A is no constant."""
    total = torch.zeros((), dtype=torch.float64)
    for layer in bank.layers:
        new = layer.bank_down[f"t{tasks - 1}"]
        for old in names(tasks - 1):
            total = total + torch.mm(new, layer.bank_down[old].T).abs().sum()
    return total


@pytest.mark.parametrize("trains", ["stacked", "new"])
@pytest.mark.parametrize(
    ("penalty", "literal"),
    [("squared", paper_overlap), ("absolute", released_overlap), ("absolute", library_overlap)],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_overlap_and_its_gradient_are_those_of(
    shape: Shape, penalty: Any, literal: Any, trains: Any
) -> None:
    tasks = 2 + shape.seed % 3
    method, bank = placed(shape, tasks, strength=0.25, penalty=penalty, trains=trains)

    terms = method.loss(task(tasks - 1))

    assert set(terms) == {"olora"}
    assert_equal(terms["olora"], 0.25 * literal(bank, tasks), learning(bank))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_old_a_is_a_constant_as_in_the_authors_code(shape: Shape) -> None:
    """In the later library it is none: there the same sum would move it."""
    method, bank = placed(shape, 2)
    old = [layer.bank_down["t0"] for layer in bank.layers]

    method.loss(task(1))["olora"].backward()

    assert all(down.grad is None for down in old)
    for down in old:
        down.requires_grad_(True)
    assert any(one.any() for one in torch.autograd.grad(library_overlap(bank, 2), old))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_norms_and_their_gradients_are_the_authors(shape: Shape) -> None:
    """λ2 Σ over linears of ‖A_t‖ + ‖B_t‖, the root of the sum of all squares, of the new expert alone."""
    method, bank = placed(shape, 2, strength=0, l2=0.1)

    terms = method.loss(task(1))

    norms = []
    for layer in bank.layers:
        for matrix in (layer.bank_down["t1"], layer.bank_up["t1"]):
            norms.append(sum(entry**2 for row in matrix for entry in row) ** 0.5)
    assert set(terms) == {"olora/l2"}
    assert_equal(terms["olora/l2"], 0.1 * sum(norms), learning(bank))


@pytest.mark.parametrize("penalty", ["squared", "absolute"])
def test_the_overlap_is_summed_over_both_matrices_rows_whatever_their_ranks(penalty: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for rank in range(1, 5):
        for ranks in range(1, 7):
            new, old = (torch.randn(r, 5, generator=generator).double() for r in (rank, ranks))
            literal = 0.0
            for a in old.tolist():
                for b in new.tolist():
                    entry = sum(x * y for x, y in zip(a, b, strict=True))
                    literal += entry**2 if penalty == "squared" else abs(entry)
            assert float(overlap(new, old, penalty)) == pytest.approx(literal, abs=1e-10)


# --- the forward ----------------------------------------------------------------------------------------------------


def paper(scale: float, experts: list[str]) -> Literal:
    """y = W x + s Σ_i B_i A_i x, one token and one expert after the other."""

    def one(layer: BankLayer, x: Tensor) -> Tensor:
        y = base(layer, x)
        for name in experts:
            y = y + scale * (layer.bank_up[name] @ (layer.bank_down[name] @ x))
        return y

    return token_by_token(one)


def concatenated(scale: float, experts: list[str]) -> Literal:
    """Both codes put the A of several tasks on top of each other and their B beside each other; the authors' add the new one to it."""

    def layer_of(layer: BankLayer, x: Tensor) -> Tensor:
        *old, new = experts
        y = base(layer, x)
        if old:
            A = torch.cat([layer.bank_down[name] for name in old], dim=0)
            B = torch.cat([layer.bank_up[name] for name in old], dim=1)
            y = y + x @ A.T @ B.T * scale
        return y + x @ layer.bank_down[new].T @ layer.bank_up[new].T * scale

    return layer_of


@pytest.mark.parametrize("transcription", [paper, concatenated])
@pytest.mark.parametrize("trains", ["stacked", "new"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_in_learning_are_those_of(
    shape: Shape, trains: Any, transcription: Any
) -> None:
    """The authors stack the new expert on the frozen old ones, the later library trains it alone."""
    _, bank = placed(shape, 3, trains=trains)
    x, part = shape.states(), names(3) if trains == "stacked" else ["t2"]

    ours = forward(bank, shape.batch(x)).logits

    assert set(learning(bank)) == {
        name for name, _ in bank.named_parameters() if name.endswith((".bank_down.t2", ".bank_up.t2"))
    }
    assert_equal(ours, through(bank, transcription(shape.scale, part), x), {"x": x, **learning(bank)})


@pytest.mark.parametrize("transcription", [paper, concatenated])
@pytest.mark.parametrize("trains", ["stacked", "new"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_answers_are_those_of(shape: Shape, trains: Any, transcription: Any) -> None:
    """Both codes add up the experts of all tasks so far."""
    method, bank = placed(shape, 3, trains=trains)
    x = shape.states()

    model = method.build_inference_model([task(index) for index in range(3)]).eval()

    theirs = through(bank, transcription(shape.scale, names(3)), x)
    torch.testing.assert_close(forward(model, shape.batch(x)).logits, theirs, **EXACT)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_merged_weights_and_answers_are_those_of_stock_peft_with_all_adapters(shape: Shape) -> None:
    plain = copy.deepcopy(Bare(shape).model)
    method, bank = placed(shape, 3)
    rank = shape.rank
    config = LoraConfig(r=rank, lora_alpha=shape.scale * rank, target_modules=Bare.linears)
    stock = get_peft_model(plain, config, adapter_name="t0")
    for name in ("t1", "t2"):
        stock.add_adapter(name, config)
    stock.base_model.set_adapter(names(3))
    stock.double()
    found = [module for module in stock.modules() if hasattr(module, "lora_A")]
    for layer, theirs in zip(bank.layers, found, strict=True):
        for name in names(3):
            theirs.lora_A[name].weight.data.copy_(layer.bank_down[name])
            theirs.lora_B[name].weight.data.copy_(layer.bank_up[name])
    x, model = shape.states(), method.build_inference_model([task(index) for index in range(3)]).eval()

    torch.testing.assert_close(forward(model, shape.batch(x)).logits, stock.eval()(x=x).logits, **EXACT)
    stock.merge_adapter()
    for layer, theirs in zip(bank.layers, found, strict=True):
        merged = layer.base_layer.weight + layer.delta()
        torch.testing.assert_close(merged.detach(), theirs.base_layer.weight.detach(), **EXACT)
