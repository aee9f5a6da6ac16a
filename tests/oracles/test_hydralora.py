"""HydraLoRA against its paper's equation, token by token and head by head, and against what its authors' layer computes."""

from __future__ import annotations

import pytest
import torch
from cl_zoo_hydralora import HydraLoRA
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
from torch import Tensor
from torch.nn import functional as F

from cl_zoo.nn import BankLayer, ExpertBank


def placed(shape: Shape, **settings: object) -> ExpertBank:
    method = HydraLoRA(HydraLoRA.Options(heads=shape.experts))
    return stirred(method.build_model(Bare(shape), shape.recipe(**settings)), shape.seed)


def paper(scale: float) -> Literal:
    """y = W x + s · Σ_i ω_i B_i A x,  ω = softmax(W_g x)."""

    def one(layer: BankLayer, x: Tensor) -> Tensor:
        (A,) = layer.bank_down.values()  # one for all
        y = base(layer, x)
        for i, weight in enumerate(softmax([row @ x for row in layer.bank_mix.gate.router.weight])):
            y = y + scale * weight * (layer.bank_up[f"e{i}"] @ (A @ x))
        return y

    return token_by_token(one)


def released(scale: float, drop: float = 0.0) -> Literal:
    """All tokens at once, head after head: the router sees x, A sees x with a share of it dropped."""

    def layer_of(layer: BankLayer, x: Tensor) -> Tensor:
        weights = torch.softmax(x @ layer.bank_mix.gate.router.weight.T, dim=2)
        seen = F.dropout(x, drop)  # theirs draws again for each head; here the mask of the layer
        y = base(layer, x)
        for i, up in enumerate(layer.bank_up.values()):
            y = y + weights[:, :, i].unsqueeze(2) * (seen @ layer.bank_down["e0"].T @ up.T) * scale
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
def test_with_dropout_all_heads_of_a_layer_see_one_mask_and_the_router_none(shape: Shape) -> None:
    bank, x = placed(shape, dropout=0.5).train(), shape.states()

    torch.manual_seed(1)
    ours = bank(x=x).logits
    torch.manual_seed(1)
    theirs = through(bank, released(shape.scale, 0.5), x)

    assert_equal(ours, theirs, {"x": x, **learning(bank)})


def test_their_own_rank_and_scale_can_be_had_from_the_recipe() -> None:
    """r = 4 in A and in each of four heads, α = 32: s = 8."""
    shape = Shape(0, 2, 3, (0, 1), (6, 5, 7), 4, 4, 32 / 4, False)
    bank, x = placed(shape), shape.states()

    assert_equal(bank(x=x).logits, through(bank, released(8.0), x), {"x": x, **learning(bank)})


def test_there_is_no_further_term() -> None:
    """Their forward hands on a term for the balance of the load, which is always zero."""
    assert not hasattr(HydraLoRA, "loss")
