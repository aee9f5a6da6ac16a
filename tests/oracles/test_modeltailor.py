"""Model Tailor: scores and compensation against Optimal Brain Surgeon with explicit inverses, least squares, and the released code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cl_zoo_modeltailor import ModelTailor, decoration, hessians, root, size, tailored, z
from hypothesis import given
from hypothesis import strategies as st
from oracles.shapes import CASES, SEEDS, draws, normal, recipe
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward
from cl_zoo.nn.layer import BankLayer
from cl_zoo.processes import drawn as chosen_of
from cl_zoo.tasks import Sample
from cl_zoo.testing import tiny_benchmark

SHAPES = st.tuples(st.integers(2, 5), st.integers(3, 11))
"""d_out and d_in; a row of one column has no score, and of two columns all rows have the same."""

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""The root of the inverse Hessian is kept in fp32."""


def options(**settings: Any) -> ModelTailor.Options:
    return ModelTailor.Options(**{"damping": 1e-12, **settings})


def drawn(seed: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Δ, the tuned weight, and calibration inputs with their H."""
    generator = draws(seed)
    x = normal(generator, 3 * columns + 5, columns)
    x = x @ (torch.eye(columns) + 0.4 * normal(generator, columns, columns))  # columns that hang together
    return (
        normal(generator, rows, columns),
        normal(generator, rows, columns),
        x,
        2 * x.T @ x + 0.1 * torch.eye(columns).double(),
    )


def patch(change: Tensor, tuned: Tensor, H: Tensor, o: ModelTailor.Options) -> tuple[Tensor, Tensor]:
    """Places and values, from weights in fp32 as the method has them."""
    places, values = tailored(change.float(), tuned.float(), H.float(), o)
    return places, values.double()


def dense(shape: Sequence[int], places: Tensor, values: Tensor) -> Tensor:
    flat = torch.zeros(shape[0] * shape[1], dtype=values.dtype)
    flat[places] = values
    return flat.view(*shape)


# --- Optimal Brain Surgeon, row by row and column by column ------------------------------------------------------------


def damped(H: Tensor, o: ModelTailor.Options) -> Tensor:
    """H with a 1 where an input is always zero, and the damping on its diagonal."""
    H = H.clone()
    for m in range(len(H)):
        if H[m, m] == 0:
            H[m, m] = 1
    return H + o.damping * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)


OMEGA, SIGN = {"paper": 0.5, "released": 0.8}, {"paper": 1.0, "released": -1.0}
"""The variant's ω where none is given, and what becomes of the compensation."""
VARIANTS = st.sampled_from(["paper", "released"])


def standing(values: Tensor, place: int) -> float:
    """z of one entry of a row: what it is above the mean, in standard deviations (of the row itself)."""
    mean = sum(values.tolist()) / len(values)
    spread = (sum((one - mean) ** 2 for one in values.tolist()) / len(values)) ** 0.5
    return (float(values[place]) - mean) / spread


def literal(change: Tensor, tuned: Tensor, H: Tensor, o: ModelTailor.Options) -> Tensor:
    """The decorated patch, with the Hessian of the columns still to come inverted anew for each column."""
    rows, columns = change.shape
    omega = OMEGA[o.variant] if o.salience is None else o.salience
    H = damped(H, o)
    now, weight, out = change.clone(), tuned.clone(), torch.zeros_like(change)
    for start in range(0, columns, o.block):
        stop = min(start + o.block, columns)
        salience, sensitivity = change[:, start:stop].abs(), torch.zeros_like(change[:, start:stop])
        for m in range(start, stop):
            inverse = torch.linalg.inv(H[m:, m:])
            sensitivity[:, m - start] = weight[:, m] ** 2 / inverse[0, 0]
        scores = []
        for row in range(rows):
            for m in range(stop - start):
                fused = omega * standing(salience[row], m) + (1 - omega) * standing(sensitivity[row], m)
                scores.append((fused, row, start + m))
        stays = {(row, m) for _, row, m in sorted(scores, reverse=True)[: round(o.keep * len(scores))]}
        for m in range(start, stop):
            inverse = torch.linalg.inv(H[m:, m:])
            for row in range(rows):
                if (row, m) in stays:
                    out[row, m] = now[row, m]
                else:
                    step = SIGN[o.variant] * now[row, m] / inverse[0, 0] * inverse[0]
                    now[row, m:] -= step
                    weight[row, m:] -= step
    return out


@CASES
@given(SEEDS, SHAPES, st.integers(3, 12), st.floats(0, 1), st.sampled_from([None, 0.0, 0.3, 1.0]), VARIANTS)
def test_tailoring_is_its_literal_transcription(
    seed: int, shape: tuple[int, int], block: int, keep: float, salience: float | None, variant: str
) -> None:
    if shape[1] % block in (1, 2):
        block = shape[1]
    change, tuned, _, H = drawn(seed, *shape)
    o = options(block=block, keep=keep, salience=salience, damping=0.01, variant=variant)

    places, values = patch(change, tuned, H, o)

    expected = literal(change, tuned, H, o)
    assert places.tolist() == expected.flatten().nonzero().squeeze(1).tolist()
    torch.testing.assert_close(dense(shape, places, values), expected, **CLOSE)
    layer = BankLayer(nn.Linear(shape[1], shape[0], bias=False), "layers.0.x", 2.0, 0.0)
    assert len(values) == size(layer, o)


@CASES
@given(SEEDS, st.integers(2, 8), st.integers(0, 7))
def test_the_root_is_that_of_the_damped_inverse(seed: int, columns: int, dead: int) -> None:
    """UᵀU = (H + 0.1 · mean diag)⁻¹; an input that is always zero has a diagonal of 1 before that. Of the columns from m on,
    [H⁻¹]_mm is U_mm² and row m of H⁻¹ is U_mm U_m,:."""
    _, _, x, _ = drawn(seed, 1, columns)
    x[:, dead % columns] = 0
    H = 2 * x.T @ x

    U = root(H, 0.1).double()

    expected = damped(H, options(damping=0.1))
    assert torch.equal(U, U.triu())
    torch.testing.assert_close(U.T @ U, torch.linalg.inv(expected), **CLOSE)
    for m in range(columns):
        inverse = torch.linalg.inv(expected[m:, m:])
        torch.testing.assert_close(U[m, m] * U[m, m:], inverse[0], **CLOSE)


@CASES
@given(SEEDS, SHAPES, st.floats(1e-3, 1e3))
def test_a_hessian_of_another_scale_makes_the_same_patch(
    seed: int, shape: tuple[int, int], scale: float
) -> None:
    """The released code divides H by the number of samples."""
    change, tuned, _, H = drawn(seed, *shape)
    o = options(keep=0.4, damping=0.01)

    places, values = patch(change, tuned, H, o)

    others, again = patch(change, tuned, scale * H, o)
    assert torch.equal(places, others)
    torch.testing.assert_close(values, again, **CLOSE)


# --- the released code --------------------------------------------------------------------------------------------------


def released(
    tuned: Tensor, pre: Tensor, H: Tensor, *, sparsity: float, block: int, omega: float, sign: int
) -> Tensor:
    """What `fasterprune` of the released code leaves of tuned − pre, in its own terms: W, the upper root of H⁻¹, one error per
    column, z by the sample's standard deviation, and a threshold. `sign` is +1 there and −1 in Optimal Brain Surgeon."""
    W, columns = tuned.clone(), tuned.shape[1]
    damp = 0.01 * H.diagonal().mean()
    inverse = torch.linalg.inv(H + damp * torch.eye(columns).double())
    U = torch.linalg.cholesky(inverse, upper=True)
    changes, mask = (tuned - pre).abs(), torch.zeros_like(tuned, dtype=torch.bool)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        part = slice(start, stop)
        sensitivity = W[:, part] ** 2 / U.diagonal()[part] ** 2
        scores = []
        for one in (changes[:, part], sensitivity):
            scores.append((one - one.mean(1, keepdim=True)) / one.std(1, keepdim=True))
        score = omega * scores[0] + (1 - omega) * scores[1]
        threshold = score.flatten().sort().values[int(score.numel() * sparsity)]
        mask[:, part] = score <= threshold
        for i in range(start, stop):
            w = W[:, i].clone()
            kept = torch.where(mask[:, i], pre[:, i], w)
            error = (w - kept) / U[i, i]
            W[:, i] = kept
            W[:, i + 1 :] += sign * error[:, None] * U[i, i + 1 :][None]
    return W - pre


@CASES
@given(SEEDS, SHAPES, VARIANTS, st.floats(0.2, 0.9))
def test_the_released_variant_leaves_the_released_codes_patch(
    seed: int, shape: tuple[int, int], variant: str, sparsity: float
) -> None:
    """And the other one that of the same loop with the surgeon's sign and the ω of the copy that does not run.

    Of n scores it removes int(n · sparsity) + 1, so that many fewer are kept here; ours is z by the row's own deviation.
    """
    change, tuned, _, H = drawn(seed, *shape)
    count = shape[0] * shape[1]
    stays, omega, sign = count - int(count * sparsity) - 1, OMEGA[variant], -int(SIGN[variant])

    theirs = released(tuned, tuned - change, H, sparsity=sparsity, block=128, omega=omega, sign=sign)

    o = options(keep=stays / count, damping=0.01, variant=variant)
    places, values = patch(change, tuned, H, o)
    assert len(places) == stays
    torch.testing.assert_close(dense(shape, places, values), theirs, **CLOSE)


@CASES
@given(SEEDS, SHAPES)
def test_the_released_sign_widens_the_gap_that_the_surgeons_closes(seed: int, shape: tuple[int, int]) -> None:
    """In the outputs on the calibration inputs, of one column removed: H is theirs without damping."""
    change, _, x, _ = drawn(seed, *shape)
    H, kept = 2 * x.T @ x, torch.ones(shape, dtype=torch.bool)
    kept[:, 0] = False
    cut = torch.where(kept, change, 0.0)

    U = root(H, 1e-12).double()

    after, added = (change - decoration(change, kept, U, sign) for sign in (1.0, -1.0))

    ours, none = gap(x, after * kept, change), gap(x, cut, change)
    added = added * kept
    assert ours <= none * 1.0001
    assert gap(x, added, change) >= none * 0.9999


def gap(x: Tensor, patch: Tensor, change: Tensor) -> float:
    return float(((x @ (patch - change).T) ** 2).sum())


# --- compensation against least squares ---------------------------------------------------------------------------------


def least_squares(x: Tensor, change: Tensor, free: Sequence[int], fixed: Tensor) -> Tensor:
    """The row closest to `change` in its outputs on x, where only the `free` entries of `fixed` may move."""
    free = list(free)
    held = fixed.clone()
    held[free] = 0
    held[free] = torch.linalg.lstsq(x[:, free], x @ (change - held)).solution
    return held


@CASES
@given(SEEDS, st.integers(3, 8), st.integers(1, 7))
def test_what_stays_makes_up_for_the_first_columns_as_least_squares_does(
    seed: int, columns: int, removed: int
) -> None:
    change, _, x, _ = drawn(seed, 1, columns)
    removed = min(removed, columns - 1)
    kept = torch.ones(1, columns, dtype=torch.bool)
    kept[0, :removed] = False

    after = change[0] - decoration(change, kept, root(2 * x.T @ x, 1e-12).double())[0]

    expected = least_squares(x, change[0], range(removed, columns), torch.zeros(columns).double())
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-3)


@CASES
@given(SEEDS, st.integers(3, 8), st.integers(0, 6))
def test_a_column_in_the_middle_is_made_up_for_by_those_after_it(
    seed: int, columns: int, middle: int
) -> None:
    """Those before it are settled: least squares over the later ones only."""
    change, _, x, _ = drawn(seed, 1, columns)
    middle = min(middle, columns - 2)
    kept = torch.ones(1, columns, dtype=torch.bool)
    kept[0, middle] = False

    after = change[0] - decoration(change, kept, root(2 * x.T @ x, 1e-12).double())[0]

    fixed = torch.where(kept[0], change[0], 0.0)
    expected = least_squares(x, change[0], range(middle + 1, columns), fixed)
    assert torch.equal(after[:middle], change[0, :middle])
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-3)


# --- scores by hand -----------------------------------------------------------------------------------------------------


def test_with_inputs_of_one_size_the_largest_changes_stay_and_nothing_is_made_up_for() -> None:
    """H = I and ω = 1: of the changes 3, -1, 2, 0.5 half stay, the two largest, as they are."""
    change = torch.tensor([[3.0, -1.0, 2.0, 0.5]])

    places, values = tailored(change, change, torch.eye(4), options(keep=0.5, salience=1))

    assert places.tolist() == [0, 2]
    assert values.tolist() == [3.0, 2.0]


def test_sensitivity_is_the_tuned_weight_squared_over_the_inverse_hessian() -> None:
    """ω = 0, tuned weights 1, 2, 3 and H = diag(16, 1, 1): w² H = 16, 4, 9, so the first and the last stay.

    The changes are 5, 6, 7; the inputs are independent, so nothing is made up for.
    """
    change, tuned = torch.tensor([[5.0, 6.0, 7.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    H = torch.diag(torch.tensor([16.0, 1.0, 1.0]))

    places, values = tailored(change, tuned, H, options(keep=2 / 3, salience=0))

    assert places.tolist() == [0, 2]
    assert values.tolist() == [5.0, 7.0]


def test_the_score_weighs_both_as_z_scores_of_a_row() -> None:
    """|Δ| = (0, 0, 3), z = (-1, -1, 2)/√2; w² = (6, 0, 0), z = (2, -1, -1)/√2: ω decides which one stays."""
    change, tuned = torch.tensor([[0.0, 0.0, 3.0]]), torch.tensor([[6**0.5, 0.0, 0.0]])

    assert z(change).tolist()[0] == pytest.approx([-(0.5**0.5), -(0.5**0.5), 2**0.5])
    for omega, stays in [(0.4, 0), (0.6, 2)]:
        places, _ = tailored(change, tuned, torch.eye(3), options(keep=1 / 3, salience=omega))
        assert places.tolist() == [stays]


def test_rows_of_equal_values_have_no_score() -> None:
    assert z(torch.full((2, 3), 5.0)).tolist() == [[0.0] * 3] * 2


def test_the_released_code_adds_what_the_equations_subtract() -> None:
    """H = [[2, 1], [1, 2]], so [H⁻¹]_01 / [H⁻¹]_00 = −1/2. Of the changes 4 and 10 the second stays: 10 + 4 / 2 = 12, which least
    squares gives too, and with the sign turned round 10 − 4 / 2 = 8."""
    change, H = torch.tensor([[4.0, 10.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])

    for variant, value in (("paper", 12.0), ("released", 8.0)):
        places, values = tailored(change, change, H, options(keep=0.5, salience=1, variant=variant))
        assert places.tolist() == [1]
        assert values.tolist() == pytest.approx([value])


def test_the_weight_of_salience_is_the_variants_unless_it_is_given() -> None:
    """z of the changes (5, 4, 0, 0) is 1.21 at the first, −0.99 at the last; z of w² (0, 0, 0, 6) is −0.58 and 1.73. The last wins by
    0.37 to 0.32 at ω = 0.5, the first by 0.85 to −0.44 at 0.8."""
    change, tuned = torch.tensor([[5.0, 4.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 6**0.5]])

    for settings, stays in (
        ({}, 3),
        ({"variant": "released"}, 0),
        ({"variant": "released", "salience": 0.5}, 3),
        ({"salience": 0.8}, 0),
    ):
        places, _ = tailored(change, tuned, torch.eye(4), options(keep=0.25, **settings))
        assert places.tolist() == [stays], settings


def test_entries_compete_within_a_block_of_columns() -> None:
    """Blocks (9, 8 | 5, 4): one of each stays; over the whole row 9 and 8 would."""
    change = torch.tensor([[9.0, 8.0, 5.0, 4.0]])

    places, _ = tailored(change, change, torch.eye(4), options(keep=0.5, salience=1, block=2))

    assert places.tolist() == [0, 2]


# --- the Hessian in a model ---------------------------------------------------------------------------------------------


def test_the_hessian_leaves_padding_out_and_looks_at_what_is_drawn(tiny: Backbone) -> None:
    """2 Σ x xᵀ over the tokens of each sample's own, unpadded batch; of three samples two are looked at."""
    model = ModelTailor(ModelTailor.Options()).build_model(tiny, recipe(2))
    train = tiny_benchmark(3, size=8).tasks
    samples = [train[0].train[0], Sample("t", None, "Say one colour .", "red"), train[1].train[0]]
    layers = model.layers[:2]
    expected = {layer: torch.zeros(layer.in_features, layer.in_features) for layer in layers}
    seen: dict[nn.Module, Tensor] = {}
    handles = [layer.register_forward_pre_hook(lambda m, x: seen.update({m: x[0][0]})) for layer in layers]
    batches = [tiny.batch(samples, answers=True)]
    chosen = [sample for batch in chosen_of(batches, 2) for sample in batch.samples]
    assert len(chosen) == 2
    model.eval()
    with torch.no_grad():
        for sample in chosen:
            forward(model, tiny.batch([sample], answers=True))
            for layer, x in seen.items():
                expected[layer] += 2 * sum((torch.outer(one, one) for one in x), torch.zeros(()))
    for handle in handles:
        handle.remove()

    found = hessians(model.train(), layers, batches, samples=2)

    assert model.training
    for layer in layers:
        torch.testing.assert_close(found[layer], expected[layer], rtol=1e-3, atol=1e-4)
