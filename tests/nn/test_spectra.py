"""The second moment of a layer's inputs, kept by a sketch, against the matrix itself; which directions are principal, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cl_zoo.nn import Sketch, along, directions, principal
from cl_zoo.nn.spectra import spectrum

ALL = torch.ones(40, 1)


def inputs(rows: int, width: int, rank: int, seed: int = 0) -> Tensor:
    """Inputs that span `rank` directions."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, rank, generator=generator) @ torch.randn(rank, width, generator=generator)


def sketched(*pieces: Tensor, width: int, number: int) -> Sketch:
    sketch = Sketch(directions(width, number))
    for piece in pieces:
        sketch.add(piece, ALL[: len(piece)])
        sketch.take_in()
    return sketch


@pytest.mark.parametrize(("width", "number", "rank"), [(6, 64, 6), (6, 6, 3), (20, 8, 5)])
def test_the_moment_of_few_directions_is_kept_exactly(width: int, number: int, rank: int) -> None:
    """C = 1/n Σ x xᵀ where m = d, or where the inputs span at most m directions."""
    x = inputs(40, width, rank)

    V, sigma = sketched(x, width=width, number=number).spectrum()

    scale = (x.T @ x / 40).norm()
    torch.testing.assert_close(V @ sigma.diag() @ V.T, x.T @ x / 40, rtol=0, atol=1e-5 * float(scale))
    assert (sigma[:-1] >= sigma[1:]).all()
    torch.testing.assert_close(V[:, :rank].T @ V[:, :rank], torch.eye(rank), rtol=0, atol=1e-5)
    assert (sigma[rank:] <= 1e-4 * sigma[0]).all()


def test_a_strong_direction_is_found_among_more_than_are_kept() -> None:
    strong = torch.nn.functional.normalize(torch.arange(1.0, 41.0), dim=0)
    x = (
        inputs(40, 40, 40) * 0.01
        + 5 * torch.randn(40, 1, generator=torch.Generator().manual_seed(1)) * strong
    )

    V, sigma = sketched(x, width=40, number=4).spectrum()

    assert abs(float(V[:, 0] @ strong)) == pytest.approx(1, abs=1e-2)
    assert sigma[0] == pytest.approx(float((x.T @ x / 40 @ strong) @ strong), rel=1e-2)


def test_what_was_seen_in_pieces_is_what_was_seen_at_once() -> None:
    x = inputs(30, 6, 6)

    whole, parts = sketched(x, width=6, number=4), sketched(x[:7], x[7:], width=6, number=4)

    torch.testing.assert_close(parts.moments, whole.moments)
    assert parts.count == whole.count == 30


def test_inputs_that_are_not_real_count_nowhere() -> None:
    x = inputs(3, 5, 5)
    sketch = Sketch(directions(5, 5))

    sketch.add(torch.cat([x, torch.full((2, 5), 7.0)]), torch.tensor([1.0, 1, 1, 0, 0])[:, None])
    sketch.take_in()

    torch.testing.assert_close(sketch.moments, sketched(x, width=5, number=5).moments)
    assert sketch.count == 3


def test_anew_takes_the_covariance_of_the_latest_alone() -> None:
    x = inputs(30, 4, 4) + 3
    sketch = sketched(inputs(10, 4, 4, seed=1), width=4, number=4)

    sketch.add(x, ALL[:30])
    sketch.take_in(anew=True)
    V, sigma = sketch.spectrum()

    torch.testing.assert_close(V @ sigma.diag() @ V.T, torch.cov(x.T), rtol=1e-4, atol=1e-4)


def test_nothing_seen_has_no_direction_and_no_nan() -> None:
    V, sigma = Sketch(directions(5, 3)).spectrum()

    assert not V.any()
    assert not sigma.any()


def test_the_directions_of_a_width_are_always_the_same_and_orthonormal() -> None:
    omega = directions(9, 4)

    assert torch.equal(omega, directions(9, 4))
    torch.testing.assert_close(omega.T @ omega, torch.eye(4))
    assert directions(3, 64).shape == (3, 3)
    assert directions(3, 2, device="meta").is_meta


def test_shapes_are_known_without_values() -> None:
    V, sigma = spectrum(torch.empty(5, 3, device="meta"), torch.empty(5, 3, device="meta"))

    assert (V.shape, sigma.shape) == ((5, 3), (3,))


@pytest.mark.parametrize(("share", "k"), [(0.5, 1), (0.63, 1), (0.64, 2), (0.95, 2), (0.97, 3), (1.0, 3)])
def test_the_principal_directions_hold_a_share_of_the_squares(share: float, k: int) -> None:
    """Of σ = 8, 5.7, 2 the squares are 64, 32.49 and 4: of 100.49 the first holds 0.637, the first two 0.960."""
    V, sigma = principal(torch.eye(3), torch.tensor([8.0, 5.7, 2.0]), share)

    assert sigma.tolist() == pytest.approx([8.0, 5.7, 2.0][: len(sigma)])
    assert V.shape == (3, len(sigma))
    assert len(sigma) == k


def test_a_gradient_is_scaled_along_the_given_directions_by_hand() -> None:
    """Along the first axis by 3, along the third by 5, elsewhere by 2."""
    V = torch.tensor([[1.0, 0], [0, 0], [0, 1]])

    found = along(torch.tensor([[1.0, 10, 100]]), V, torch.tensor([3.0, 5.0]), 2.0)

    assert found.tolist() == [[3, 20, 500]]
