"""Estimates over seeds, against hand calculations with the quantiles of Student's t."""

from __future__ import annotations

import pytest

from cl_zoo.errors import DataError
from cl_zoo.report.estimates import Estimate, estimate, paired_difference


def test_three_values_have_the_interval_of_the_hand_calculation():
    """60, 62, 67: mean 63, s² = (9 + 1 + 16)/2 = 13; half width t(0.975, 2)·√(13/3) = 4.302653·2.081666 = 8.956686."""
    result = estimate([60.0, 62.0, 67.0])

    assert result.mean == 63.0
    assert result.n == 3
    assert result.std == pytest.approx(13**0.5)
    assert (result.low, result.high) == pytest.approx((63 - 8.956686, 63 + 8.956686), abs=1e-5)


def test_two_values_use_the_quantile_of_one_degree_of_freedom():
    """1, 3: mean 2, s = √2, half width t(0.975, 1)·√2/√2 = 12.706205."""
    result = estimate([1.0, 3.0])

    assert result.high - result.mean == pytest.approx(12.706205, abs=1e-5)
    assert result.mean - result.low == pytest.approx(12.706205, abs=1e-5)


def test_one_value_has_neither_deviation_nor_interval():
    assert estimate([42.0]) == Estimate(mean=42.0, n=1, std=None, low=None, high=None)


def test_no_value_is_an_error_and_not_a_zero():
    with pytest.raises(DataError, match="at least one seed"):
        estimate([])


def test_a_difference_is_taken_seed_by_seed():
    """Seeds move both methods by tens, yet the difference is 2, 1, 3: mean 2, s = 1, half width 4.302653/√3 = 2.484138."""
    hide, finetune = {0: 52.0, 1: 71.0, 2: 33.0}, {0: 50.0, 1: 70.0, 2: 30.0}

    result = paired_difference(hide, finetune)

    assert result.mean == pytest.approx(2.0)
    assert result.std == pytest.approx(1.0)
    assert (result.low, result.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)


def test_only_seeds_that_both_methods_have_are_compared():
    assert paired_difference({0: 5.0, 1: 9.0}, {1: 4.0, 2: 1.0}) == Estimate(mean=5.0, n=1)


def test_methods_without_a_common_seed_cannot_be_compared():
    with pytest.raises(DataError, match=r"\[0\] and \[1\] have none in common"):
        paired_difference({0: 1.0}, {1: 1.0})
