"""What the mixes are told of a forward: padding, beams and decoding steps, and that a recomputed one comes by again."""

from __future__ import annotations

import torch
from torch import nn

from cl_zoo.batches import Batch
from cl_zoo.nn import BankConfig, ExpertBank, Tokens, Told


def told(*mask: list[int]) -> Tokens:
    tokens = Tokens()
    tokens.start(Batch((), {"attention_mask": torch.tensor(mask)}))
    return tokens


def test_padding_is_not_real_for_any_beam_of_its_row() -> None:
    real = told([0, 1, 1], [1, 1, 1]).real(torch.zeros(4, 3, 5))

    assert real.shape == (4, 3, 1)
    assert real[..., 0].tolist() == [[0, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]]


def test_ones_and_zeros_are_of_the_type_that_they_are_multiplied_with() -> None:
    x = torch.zeros(1, 3, 5, dtype=torch.float64)

    assert told([0, 1, 1]).real(x).dtype == told([0, 1]).real(x).dtype == torch.float64


def test_a_decoding_step_has_no_padding() -> None:
    assert told([0, 1, 1]).real(torch.zeros(1, 1, 5)).tolist() == [[[1]]]


def test_where_nobody_was_told_all_tokens_are_real() -> None:
    assert Tokens().real(torch.zeros(2, 3, 5)).shape == (2, 3, 1)
    assert bool(Tokens().real(torch.zeros(2, 3, 5)).all())


def test_a_module_is_first_once_in_a_forward() -> None:
    tokens, one, other = told([1]), nn.Identity(), nn.Identity()

    assert [tokens.first(one), tokens.first(other), tokens.first(one)] == [True, True, False]
    tokens.start(Batch((), {"attention_mask": torch.ones(1, 1)}))
    assert tokens.first(one)


def test_a_bank_that_is_told_knows_the_padding_of_each_batch() -> None:
    bank = ExpertBank(nn.Sequential(nn.Linear(2, 2)), BankConfig(target_modules="0"), "only")
    model, seen = Told(bank), nn.Identity()
    for mask in ([[0, 1]], [[1, 1]]):
        model.prepare(Batch((), {"attention_mask": torch.tensor(mask)}))

        assert model.tokens.real(torch.zeros(1, 2, 2))[..., 0].tolist() == mask
        assert model.tokens.first(seen)
