"""MoELoRA against the CoIN paper's mixture, token by token and expert by expert, and against what its code computes."""

from __future__ import annotations

import math

import pytest
import torch
from cl_zoo_moelora import MoELoRA
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
from torch.nn import functional as F

from cl_zoo.nn import BankLayer, ExpertBank


def placed(shape: Shape, **settings: object) -> ExpertBank:
    method = MoELoRA(MoELoRA.Options(experts=shape.experts))
    return stirred(method.build_model(Bare(shape), shape.recipe(**settings)), shape.seed)


def paper(scale: float) -> Literal:
    """y = W x + s · Σ_e g_e(x) B_e A_e x,  g(x) = softmax(W_g x)."""

    def one(layer: BankLayer, x: Tensor) -> Tensor:
        router = layer.bank_mix.router.weight
        y = base(layer, x)
        for e, gate in enumerate(softmax([row @ x for row in router])):
            A, B = layer.bank_down[f"e{e}"], layer.bank_up[f"e{e}"]
            y = y + scale * gate * (B @ (A @ x))
        return y

    return token_by_token(one)


def released(scale: float, drop: float = 0.0) -> Literal:
    """All tokens at once, expert after expert: the router sees x, the experts see x with a share of it dropped."""

    def layer_of(layer: BankLayer, x: Tensor) -> Tensor:
        gates = torch.softmax(x @ layer.bank_mix.router.weight.T, dim=2)
        seen = F.dropout(x, drop)  # theirs draws again for each expert; here the mask of the layer
        y = base(layer, x)
        for e in range(gates.shape[2]):
            update = seen @ layer.bank_down[f"e{e}"].T @ layer.bank_up[f"e{e}"].T
            y = y + update * scale * gates[:, :, e].unsqueeze(2)
        return y

    return layer_of


@pytest.mark.parametrize("transcription", [paper, released])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_are_those_of(shape: Shape, transcription: object) -> None:
    bank, x = placed(shape), shape.states()

    ours = bank(x=x).logits
    theirs = through(bank, transcription(shape.scale), x)

    assert len(bank.layers[0].experts) == shape.experts
    assert_equal(ours, theirs, {"x": x, **learning(bank)})


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_with_dropout_all_experts_of_a_layer_see_one_mask_and_the_router_none(shape: Shape) -> None:
    bank, x = placed(shape, dropout=0.5).train(), shape.states()

    torch.manual_seed(1)
    ours = bank(x=x).logits
    torch.manual_seed(1)
    theirs = through(bank, released(shape.scale, 0.5), x)

    assert_equal(ours, theirs, {"x": x, **learning(bank)})


def test_it_starts_as_theirs_does() -> None:
    """A ~ N(0, 0.01²), B = 0, and a router as any linear layer of torch: within 1/√d_in, a third of that squared on the mean."""
    shape = Shape(0, 1, 2, (0,), (400, 300), 4, 8, 2.0, False)
    (layer,) = MoELoRA(MoELoRA.Options(experts=4)).build_model(Bare(shape), shape.recipe()).layers

    downs = torch.cat([down.detach() for down in layer.bank_down.values()])
    assert downs.mean().abs() < 5 * 0.01 / math.sqrt(downs.numel())
    assert downs.std().item() == pytest.approx(0.01, rel=0.02)
    assert all(not up.any() for up in layer.bank_up.values())
    router = layer.bank_mix.router
    assert isinstance(router, nn.Linear)
    assert router.bias is None
    assert router.weight.abs().max() <= 1 / math.sqrt(400)
    assert router.weight.square().mean().item() == pytest.approx(1 / 400 / 3, rel=0.1)


def test_there_is_no_further_term() -> None:
    """No balance of the load, no noise: the objective is the task's alone."""
    assert not hasattr(MoELoRA, "loss")
