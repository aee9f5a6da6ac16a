"""PGP: components and spaces by whole decompositions and by the authors' loop, and the gradients that are left."""

from __future__ import annotations

import torch
from cl_zoo_pgp import PGP, HeldPool, components, kept_out, widened
from hypothesis import given
from hypothesis import strategies as st
from oracles.shapes import CASES, SEEDS, Stage, batch, draws, normal, samples
from torch import Tensor

from cl_zoo.recipe.recipe import Recipe

SHARES = st.sampled_from([0.1, 0.5, 0.9, 0.97])


def projector(space: Tensor) -> Tensor:
    """F Fᵀ, which says all of a space: its directions may be turned among each other."""
    return (space @ space.T).double()


def authors(representation: Tensor, share: float, feature: Tensor | None) -> Tensor:
    """Their `update_memory` with a whole d × d decomposition; the first space too is what their loop makes from nothing."""
    whole = representation @ representation.T
    total = float((torch.linalg.svd(whole).S ** 2).sum())
    left = whole if feature is None else whole - feature @ feature.T @ whole
    U, S, _ = torch.linalg.svd(left)
    accumulated, r = (total - float((S**2).sum())) / total, 0
    for value in S:
        if accumulated >= share:
            break
        accumulated += float(value**2) / total
        r += 1
    joined = U[:, :r] if feature is None else torch.cat([feature, U[:, :r]], 1)
    return joined[:, : len(representation)]


@CASES
@given(SEEDS, st.integers(2, 9), st.integers(1, 12), st.integers(1, 5))
def test_components_are_those_of_the_matrix_that_is_never_formed(
    seed: int, d: int, n: int, count: int
) -> None:
    """U S of Z (d, n) by its own decomposition; the largest entry of each is positive."""
    Z = normal(draws(seed), d, n)
    U, S, _ = torch.linalg.svd(Z)
    S = torch.cat([S, S.new_zeros(max(0, d - n))])

    found = components(Z @ Z.T, count)

    assert found.shape == (d, min(count, d))
    for column, u, s in zip(found.T, U.T, S, strict=False):
        sign = 1 if float(u[u.abs().argmax()]) > 0 else -1
        torch.testing.assert_close(column, sign * s * u, rtol=0, atol=1e-6)


@CASES
@given(SEEDS, st.integers(6, 12), st.integers(1, 4), st.lists(SHARES, min_size=1, max_size=4))
def test_spaces_of_one_task_after_the_other_are_those_of_the_authors_loop(
    seed: int, d: int, count: int, shares: list[float]
) -> None:
    generator, theirs = draws(seed), None
    ours = torch.empty(d, 0, dtype=torch.float64)
    for place, share in enumerate(shares, 1):
        representation = normal(generator, d, count)

        theirs, ours = authors(representation, share, theirs), widened(ours, representation, share)

        assert ours.shape == (d, min(d, place * count))
        used = ours.abs().amax(0) > 0
        assert int(used.sum()) == theirs.shape[1]
        assert used[: int(used.sum())].all()
        torch.testing.assert_close(projector(ours), projector(theirs), rtol=0, atol=1e-5)


@CASES
@given(SEEDS, st.integers(3, 8), SHARES)
def test_a_space_holds_the_share_and_no_smaller_one_of_its_directions_does(
    seed: int, d: int, share: float
) -> None:
    """The criterion to the letter: ‖F Fᵀ R Rᵀ‖² ≥ ε ‖R Rᵀ‖², and one direction less is too few."""
    R = normal(draws(seed), d, 3)
    F = widened(R[:, :0], R, share).double()
    r = int((F.abs().amax(0) > 0).sum())

    def held(columns: int) -> float:
        part = F[:, :columns]
        return float((part @ part.T @ R @ R.T).norm() ** 2 / (R @ R.T).norm() ** 2)

    assert held(r) >= share - 1e-5
    assert held(r - 1) < share


@CASES
@given(SEEDS, st.integers(2, 7), st.integers(1, 3))
def test_what_is_left_of_a_gradient_is_orthogonal_to_the_space(seed: int, d: int, columns: int) -> None:
    """∇ − ∇ F Fᵀ entry by entry; the weight itself is the same to the last bit."""
    generator = draws(seed)
    weight, g = normal(generator, 4, 2, d).requires_grad_(), normal(generator, 4, 2, d)
    F = torch.linalg.qr(normal(generator, d, min(columns, d))).Q

    held = kept_out(weight, F)
    held.backward(g)

    assert torch.equal(held, weight)
    assert weight.grad is not None
    for i in range(4):
        for j in range(2):
            row = g[i, j].clone()
            for direction in F.T:
                row -= float(g[i, j] @ direction) * direction
            torch.testing.assert_close(weight.grad[i, j], row, rtol=0, atol=1e-12)
    torch.testing.assert_close(weight.grad @ F, torch.zeros(4, 2, F.shape[1]).double(), rtol=0, atol=1e-12)


@CASES
@given(SEEDS)
def test_prompts_and_keys_of_a_model_get_what_is_left(seed: int) -> None:
    """Of a loss on what is read and of the pull, against those of the same pool without spaces."""
    gradients = []
    generator = draws(seed)
    spaces = {part: torch.linalg.qr(normal(generator, d, 2)).Q for part, d in (("prompts", 6), ("keys", 5))}
    for held in (False, True):
        method = PGP(PGP.Options(pool=4, length=2, top=2))
        model: HeldPool = method.build_model(Stage(seed, 1, 6, 4), Recipe()).double()
        drawn = draws(seed)
        for weight in (model.prompts, model.keys):
            weight.data = normal(drawn, *weight.shape)
        method.spaces = spaces if held else {}
        method.before_task()
        model.prepare(batch(samples(drawn, 3, "asked")))
        read = model.soft_prompts()
        loss = (read * normal(drawn, *read.shape)).sum() + method.loss()["pgp/pull"].sum()
        gradients.append(torch.autograd.grad(loss, [model.prompts, model.keys]))

    for part, plain, left in zip(spaces, *gradients, strict=True):
        assert plain.any()
        torch.testing.assert_close(left, plain - plain @ projector(spaces[part]), rtol=0, atol=1e-12)
