"""What the mixes are told of a forward: padding, beams and decoding steps, and that a recomputed one comes by again."""

from __future__ import annotations

import torch
from torch import nn

from cl_zoo.batches import Batch
from cl_zoo.nn import Tokens


def told(*mask: list[int]) -> Tokens:
    tokens = Tokens()
    tokens.start(Batch((), {"attention_mask": torch.tensor(mask)}))
    return tokens


def test_padding_is_not_real_for_any_beam_of_its_row() -> None:
    real = told([0, 1, 1], [1, 1, 1]).real(torch.zeros(4, 3, 5))

    assert real[..., 0].tolist() == [[0, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]]


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
