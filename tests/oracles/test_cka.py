"""CKA against Appendix B of HiDe-LLaVA, the U-statistic, the feature form of Kornblith et al., and the released script, in loops."""

from __future__ import annotations

import itertools
import math
from statistics import median

import pytest
import torch
from cl_zoo_cka import CKA, centred, cka, grams, paired, pooled, rbf, shuffled
from hypothesis import given
from hypothesis import strategies as st
from oracles.shapes import CASES, SEEDS, assert_equal, draws, normal
from torch import Tensor

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.tasks import Sample
from cl_zoo.testing import tiny_benchmark

SIZES = st.tuples(st.integers(4, 9), st.integers(1, 5), st.integers(1, 5))
"""n samples, and the widths of X and Y."""
KERNELS, ESTIMATORS = st.sampled_from(["linear", "rbf"]), st.sampled_from(["biased", "unbiased"])
Rows = list[list[float]]


def product(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def literal_kernel(X: Tensor, kernel: str) -> Rows:
    """K, entry by entry."""
    rows, n = X.tolist(), len(X)
    if kernel == "linear":
        return [[product(a, b) for b in rows] for a in rows]
    apart = [[sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    middle = median(apart[i][j] for i in range(n) for j in range(n) if apart[i][j] > 0)
    return [[math.exp(-apart[i][j] / (2 * middle)) for j in range(n)] for i in range(n)]


def biased(K: Rows, L: Rows) -> float:
    """B 1 and B 2: tr(K̂ L̂) / (n − 1)² with K̂ = H K H, H = I − 1/n, both products in loops."""
    n = len(K)
    H = [[(1.0 if i == j else 0.0) - 1 / n for j in range(n)] for i in range(n)]
    both = [times(times(H, M), H) for M in (K, L)]
    return sum(times(*both)[i][i] for i in range(n)) / (n - 1) ** 2


def times(A: Rows, B: Rows) -> Rows:
    n = range(len(A))
    return [[sum(A[i][k] * B[k][j] for k in n) for j in n] for i in n]


def unbiased(K: Rows, L: Rows) -> float:
    """HSIC₁ as the U-statistic that Song et al. sum up in closed form, over distinct indices:

    1/(n)_2 Σ_(i,j) K_ij L_ij + 1/(n)_4 Σ_(i,j,q,r) K_ij L_qr − 2/(n)_3 Σ_(i,j,q) K_ij L_iq.
    """
    n = len(K)
    pairs = sum(K[i][j] * L[i][j] for i, j in itertools.permutations(range(n), 2))
    threes = sum(K[i][j] * L[i][q] for i, j, q in itertools.permutations(range(n), 3))
    fours = sum(K[i][j] * L[q][r] for i, j, q, r in itertools.permutations(range(n), 4))
    return pairs / math.perm(n, 2) + fours / math.perm(n, 4) - 2 * threes / math.perm(n, 3)


HSIC = {"biased": biased, "unbiased": unbiased}


def hsic(X: Tensor, Y: Tensor, kernel: str, estimator: str) -> float:
    return HSIC[estimator](literal_kernel(X, kernel), literal_kernel(Y, kernel))


def literal(X: Tensor, Y: Tensor, kernel: str, estimator: str, block: int) -> float:
    """B 3, HSIC summed over blocks of samples before the division."""
    least = 2 if estimator == "biased" else 4
    parts = [(x, y) for x, y in zip(X.split(block), Y.split(block), strict=True) if len(x) >= least]
    crossed = sum(hsic(x, y, kernel, estimator) for x, y in parts)
    alone = [sum(hsic(part[side], part[side], kernel, estimator) for part in parts) for side in (0, 1)]
    scale = alone[0] * alone[1]
    return max(-1.0, min(1.0, crossed / math.sqrt(scale))) if scale > 0 else 0.0


def compared(X: Tensor, Y: Tensor, kernel: str, estimator: str, block: int = 10**6) -> Tensor:
    sides = [[rows[None] @ rows[None].mT for rows in Z.split(block)] for Z in (X, Y)]
    return cka(paired(*sides, kernel, estimator))[0]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def drawn(seed: int, sizes: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """X and Y that have something in common."""
    generator = draws(seed)
    X = normal(generator, sizes[0], sizes[1])
    return X, normal(generator, sizes[0], sizes[2]) + X[:, :1]


@CASES
@given(SEEDS, SIZES, KERNELS, ESTIMATORS)
def test_hsic_is_its_definition(seed: int, sizes: tuple[int, int, int], kernel: str, estimator: str) -> None:
    """Both of its parts, not only the ratio of three."""
    X, Y = drawn(seed, sizes)
    K, L = (Z @ Z.T if kernel == "linear" else rbf(Z @ Z.T) for Z in (X, Y))

    found = (centred(K, estimator) * centred(L, estimator)).sum()

    assert_equal(found, scalar(hsic(X, Y, kernel, estimator)))


@CASES
@given(SEEDS, SIZES, KERNELS, ESTIMATORS, st.integers(4, 9))
def test_cka_is_its_definition_over_blocks(
    seed: int, sizes: tuple[int, int, int], kernel: str, estimator: str, block: int
) -> None:
    X, Y = drawn(seed, sizes)

    assert_equal(
        compared(X, Y, kernel, estimator, block), scalar(literal(X, Y, kernel, estimator, block)), 1e-8
    )


@CASES
@given(SEEDS, SIZES)
def test_linear_cka_is_the_form_over_features(seed: int, sizes: tuple[int, int, int]) -> None:
    """Kornblith et al., 3: ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖) with centred columns."""
    X, Y = drawn(seed, sizes)
    x, y = X - X.mean(0), Y - Y.mean(0)
    norms = (x.T @ x).norm() * (y.T @ y).norm()

    assert_equal(compared(X, Y, "linear", "biased"), (y.T @ x).norm() ** 2 / norms)


@CASES
@given(SEEDS, SIZES)
def test_the_closed_form_of_the_docstring_is_the_same(seed: int, sizes: tuple[int, int, int]) -> None:
    X, Y = drawn(seed, sizes)
    n, K, L = len(X), X @ X.T, Y @ Y.T
    found = (centred(K, "unbiased") * centred(L, "unbiased")).sum()
    K, L = K - K.diag().diag(), L - L.diag().diag()
    closed = (K @ L).trace() + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (K @ L).sum()

    assert_equal(found, closed / (n * (n - 3)))


@CASES
@given(SEEDS, SIZES, KERNELS)
def test_the_released_script_has_the_same_value(seed: int, sizes: tuple[int, int, int], kernel: str) -> None:
    """There: Σ of the entrywise product of two H K H without a factor, its square roots in the denominator."""
    X, Y = drawn(seed, sizes)
    n, both = len(X), {}
    H = torch.eye(n).double() - torch.ones(n, n).double() / n
    for name, Z in (("x", X), ("y", Y)):
        G = Z @ Z.T
        if kernel == "rbf":
            apart = (G.diag() - G) + (G.diag() - G).T
            apart.fill_diagonal_(0)  # up to rounding
            G = torch.exp(apart * -0.5 / median(apart[apart != 0].tolist()))
        both[name] = H @ G @ H
    crossed, x, y = ((both[a] * both[b]).sum() for a, b in (("x", "y"), ("x", "x"), ("y", "y")))

    assert_equal(compared(X, Y, kernel, "biased"), crossed / (x.sqrt() * y.sqrt()), 1e-9)


def test_three_samples_by_hand() -> None:
    """X = (1, −1, 0)ᵀ, Y = (2, −1, −1)ᵀ, both centred: CKA = (X·Y)² / (|X|² |Y|²) = 9 / (2 · 6) = 3/4."""
    X, Y = torch.tensor([[1.0], [-1], [0]]), torch.tensor([[2.0], [-1], [-1]])

    assert float(compared(X, Y, "linear", "biased")) == pytest.approx(0.75)


def test_two_samples_by_hand() -> None:
    """Of two samples nothing is left but their distance: K̂ = d²/4 · (1, −1; −1, 1), and any two are alike."""
    X, Y = torch.tensor([[1.0, 2], [4, 6]]), torch.tensor([[0.0], [-2]])
    K = centred(X @ X.T, "biased")

    assert K.tolist() == [[6.25, -6.25], [-6.25, 6.25]]
    assert float(compared(X, Y, "linear", "biased")) == pytest.approx(1)


def test_orthogonal_representations_have_nothing_in_common() -> None:
    """(1, −1, 0)·(1, 1, −2) = 0."""
    X, Y = torch.tensor([[1.0], [-1], [0]]), torch.tensor([[1.0], [1], [-2]])

    assert float(compared(X, Y, "linear", "biased")) == pytest.approx(0)


def test_the_kernel_is_gaussian_with_the_median_distance() -> None:
    """Rows 0, 0, 1, 3: squared distances 0, 1, 9, 1, 9, 4, so σ² = median(1, 9, 1, 9, 4) = 4; K_03 = exp(−9/8)."""
    rows = torch.tensor([[0.0], [0], [1], [3]], dtype=torch.float64)
    K = rbf(rows @ rows.T)

    assert K[0].tolist() == pytest.approx([1, 1, math.exp(-1 / 8), math.exp(-9 / 8)])
    assert float(K[2, 3]) == pytest.approx(math.exp(-4 / 8))


@CASES
@given(SEEDS, SIZES, KERNELS, ESTIMATORS)
def test_the_baseline_is_the_mean_over_shuffled_pairings(
    seed: int, sizes: tuple[int, int, int], kernel: str, estimator: str
) -> None:
    """Rows of Y in another order and the measure taken anew, over the same draws."""
    X, Y = drawn(seed, sizes)
    generator, values = torch.Generator().manual_seed(0), []
    for _ in range(3):
        order = torch.randperm(len(Y), generator=generator)
        values.append(literal(X, Y[order], kernel, estimator, len(Y)))

    pairs = paired([(X @ X.T)[None]], [(Y @ Y.T)[None]], kernel, estimator)

    assert_equal(shuffled(pairs, 3)[0], scalar(sum(values) / 3), 1e-8)


# --- what is read of a model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", ["layer", "mlp"])
def test_a_row_is_the_mean_over_a_questions_own_tokens(tiny: Backbone, reads: str) -> None:
    """Of a layer's output or of its MLP's, sample by sample without padding and without an answer; X Xᵀ from these rows."""
    data = tiny_benchmark(3, size=8).tasks
    samples = [data[0].train[0], data[2].train[1], Sample("t", None, "Say one colour .", "red")]
    seen: list[Tensor] = []
    at = [layer if reads == "layer" else layer.mlp for layer in tiny.layers]
    handles = [one.register_forward_hook(lambda _m, _i, out: seen.append(out)) for one in at]
    rows = []
    with torch.no_grad():
        for sample in samples:
            seen.clear()
            alone = tiny.batch([sample], answers=False)
            tiny.model(**alone.inputs)
            count = alone.inputs["input_ids"].shape[1]
            rows.append([sum(state[0, token] for token in range(count)) / count for state in seen])
    for handle in handles:
        handle.remove()
    expected = torch.stack([torch.stack(one) for one in rows]).transpose(0, 1).double()
    together = tiny.batch(samples, answers=True)

    with torch.no_grad():
        found = pooled(tiny.model, tiny.layers, together, reads)
    (gram,) = grams(tiny.model, tiny.layers, [together], CKA.Options(reads=reads))

    assert_equal(found, expected, 1e-5)
    for layer, of_layer in enumerate(expected):
        for i, j in itertools.product(range(3), repeat=2):
            assert float(gram[layer, i, j]) == pytest.approx(
                product(of_layer[i].tolist(), of_layer[j].tolist()), rel=1e-4, abs=1e-4
            )
