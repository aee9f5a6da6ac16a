"""Sequential fine-tuning against the layer of stock PEFT: outputs, gradients, dropout, and the weights after optimiser steps."""

from __future__ import annotations

import copy

import pytest
import torch
from cl_zoo_finetune import FineTune
from oracles.layers import (
    EXACT,
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
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from cl_zoo.nn import BankLayer, ExpertBank


def both(shape: Shape, drop: float = 0.0) -> tuple[ExpertBank, nn.Module]:
    """Ours at random, and stock PEFT on the same chain with the same A and B, α = s · r."""
    backbone = Bare(shape)
    plain = copy.deepcopy(backbone.model)
    bank = stirred(FineTune().build_model(backbone, shape.recipe(dropout=drop)), shape.seed)
    rank = shape.rank
    config = LoraConfig(r=rank, lora_alpha=shape.scale * rank, lora_dropout=drop, target_modules=Bare.linears)
    stock = get_peft_model(plain, config)
    with torch.no_grad():
        for layer, theirs in zip(bank.layers, layers(stock), strict=True):
            (down,), (up,) = layer.bank_down.values(), layer.bank_up.values()
            theirs.lora_A["default"].weight.copy_(down)
            theirs.lora_B["default"].weight.copy_(up)
    return bank, stock.double()


def layers(stock: nn.Module) -> list[nn.Module]:
    return [module for module in stock.modules() if hasattr(module, "lora_A")]


def pairs(bank: ExpertBank, stock: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Every A and B of ours beside that of PEFT."""
    found = []
    for layer, theirs in zip(bank.layers, layers(stock), strict=True):
        found += zip(layer.bank_down.values(), [theirs.lora_A["default"].weight], strict=True)
        found += zip(layer.bank_up.values(), [theirs.lora_B["default"].weight], strict=True)
    return found


def assert_same_step(bank: ExpertBank, stock: nn.Module, x: Tensor) -> None:
    """Equal outputs, and equal gradients of a loss on them, left in `grad`; dropout draws the same in both."""
    outputs = []
    for model in (bank, stock):
        torch.manual_seed(1)
        outputs.append(model(x=x).logits)
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(*outputs, **EXACT)
    for ours, theirs in pairs(bank, stock):
        assert theirs.grad.any()
        torch.testing.assert_close(ours.grad, theirs.grad, **EXACT)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_layer_is_the_papers_equation(shape: Shape) -> None:
    """h = W x + α/r · B A x, one token after the other."""
    bank, x = both(shape)[0], shape.states()

    def one(layer: BankLayer, token: Tensor) -> Tensor:
        (A,), (B,) = layer.bank_down.values(), layer.bank_up.values()
        return base(layer, token) + shape.scale * (B @ (A @ token))

    assert_equal(bank(x=x).logits, through(bank, token_by_token(one), x), {"x": x, **learning(bank)})


@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_are_those_of_stock_peft(shape: Shape, drop: float) -> None:
    bank, stock = both(shape, drop)

    assert_same_step(bank.train(), stock.train(), shape.states())


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_ten_steps_of_an_optimiser_end_where_those_of_stock_peft_do(shape: Shape) -> None:
    """Over two tasks that follow each other: nothing is reset in between."""
    bank, stock = both(shape)
    optimizers = [
        torch.optim.AdamW([pair[side] for pair in pairs(bank, stock)], lr=0.01, weight_decay=0)
        for side in (0, 1)
    ]
    before = [ours.detach().clone() for ours, _ in pairs(bank, stock)]
    for step in range(10):
        x = torch.randn_like(shape.states()) * (1 if step < 5 else -3)
        for optimizer in optimizers:
            optimizer.zero_grad()
        assert_same_step(bank, stock, x)
        for optimizer in optimizers:
            optimizer.step()

    for (ours, theirs), start in zip(pairs(bank, stock), before, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
        assert not torch.equal(ours, start)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_merged_weights_are_those_of_stock_peft(shape: Shape) -> None:
    bank, stock = both(shape)
    plain = [theirs.base_layer.weight.detach().clone() for theirs in layers(stock)]

    stock.merge_adapter()

    for layer, theirs, before in zip(bank.layers, layers(stock), plain, strict=True):
        torch.testing.assert_close(
            before + layer.delta().detach(), theirs.base_layer.weight.detach(), **EXACT
        )
