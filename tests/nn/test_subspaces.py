"""Directions of low-rank updates against decompositions of the whole matrix and values written down by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cl_zoo.nn import singular, span, strongest


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("d_in", "d_out", "rank"), [(5, 4, 2), (3, 6, 3), (4, 3, 5)])
def test_singular_vectors_are_those_of_the_whole_update(d_in: int, d_out: int, rank: int) -> None:
    """A rank above both widths too."""
    down, up = normal(rank, d_in), normal(d_out, rank)

    U, sizes, V = singular(down, up)

    whole = torch.linalg.svdvals(up @ down)[: len(sizes)]
    torch.testing.assert_close(sizes, whole)
    torch.testing.assert_close(U @ torch.diag(sizes) @ V, up @ down)
    torch.testing.assert_close(V @ V.T, torch.eye(len(sizes)).double())


def test_a_span_holds_its_columns_and_nothing_more() -> None:
    columns = [normal(5, 1), 2 + normal(5, 1)]

    basis = span(columns)

    assert basis.shape == (5, 2)
    torch.testing.assert_close(basis.T @ basis, torch.eye(2).double())
    for column in columns:
        torch.testing.assert_close(basis @ (basis.T @ column), column)


def chosen(ranks: tuple[int, int], *known: list[float], above: float = 2.5, new: float = 0.5) -> list[float]:
    """The σ of 4, 3, 2, 1 on four axes that become rows of an expert."""
    sizes = torch.tensor([4.0, 3.0, 2.0, 1.0])
    others = [torch.tensor([one]) for one in known]
    down, up = strongest(torch.eye(4), torch.diag(sizes), above=above, known=others, new=new, ranks=ranks)
    torch.testing.assert_close(up.square().sum(0), down.square().sum(1))
    return sorted((round(float(one), 4) for one in down.square().sum(1)), reverse=True)


def test_what_is_strong_is_taken_up_to_the_largest_rank_and_filled_up_to_the_least() -> None:
    """Above 2.5 there are 4 and 3."""
    assert chosen((1, 4)) == [4, 3]
    assert chosen((1, 1)) == [4]
    assert chosen((3, 4)) == [4, 3, 2]
    assert chosen((1, 4), above=9.0) == [4]


def test_what_others_know_is_left_out_as_long_as_there_is_something_else() -> None:
    """The first axis is known: 3 is new, and 4 comes back where three are asked for."""
    first = [1.0, 0.0, 0.0, 0.0]

    assert chosen((1, 4), first) == [3]
    assert chosen((2, 4), first) == [4, 3]
    assert chosen((1, 1), first) == [4]


def test_of_a_direction_that_is_partly_known_the_rest_stands_in_the_expert() -> None:
    """v = (1, 0) beside a known (1, 1)/√2: what is outside, at length one, is (1, −1)/√2."""
    down, up = strongest(
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[2.0], [0.0]]),
        above=0.0,
        known=[torch.ones(1, 2)],
        new=0.0,
        ranks=(1, 1),
    )

    torch.testing.assert_close(up @ down, torch.tensor([[2**0.5, -(2**0.5)], [0.0, 0.0]]))
