"""Intervals, tests and ranks, against closed forms, hand calculations and simulations whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_zoo.errors import DataError
from cl_zoo.report.estimates import estimate
from cl_zoo.scoring.matrix import Matrix
from cl_zoo.statistics.measured import FIGURES, Drawn, Measured, avg_of, draw, last, last_of
from cl_zoo.statistics.pairs import Pair, all_pairs, holm, mcnemar, tiers
from cl_zoo.statistics.power import least_seen, power, units_needed
from cl_zoo.statistics.spread import Spread, difference, spread

ORDERS = (("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b"))


def plain(value: float, seed: int = 0, order: tuple[str, ...] = ("a", "b")) -> Drawn:
    """A run whose final scores are all `value`."""
    return draw([Measured(order, seed, np.full((len(order), len(order)), value))])[0]


def simulated(
    source: np.random.Generator,
    orders: int,
    seeds: int,
    *,
    of_orders: list[float],
    seed: float,
    one: float,
    main: dict,
) -> list[Measured]:
    """Runs with a true mean of 60: every order and every sample has its own effect, equal for all methods; seeds and single answers vary."""
    runs = []
    for n, order in enumerate(ORDERS[:orders]):
        for number in range(seeds):
            moved = 60 + of_orders[n] + source.normal(0, seed)
            samples = {
                place: np.tile(moved + main[task] + source.normal(0, one, 100), (3, 1))
                for place, task in enumerate(order)
            }
            cells = np.stack([samples[place].mean(axis=1) for place in range(3)], axis=1)
            runs.append(Measured(order, number, cells, samples))
    return runs


def effects(source: np.random.Generator, order: float, sample: float) -> tuple[list[float], dict]:
    return list(source.normal(0, order, 3)), {task: source.normal(0, sample, 100) for task in "abc"}


@given(
    st.integers(2, 5).flatmap(
        lambda t: st.lists(st.lists(st.floats(0, 100), min_size=t, max_size=t), min_size=t, max_size=t)
    )
)
def test_figures_of_arrays_are_those_of_the_matrix(scores):
    matrix = Matrix.from_rows(scores)
    names = tuple(f"task {n}" for n in range(len(scores)))
    cells = np.array([scores, scores])

    for name, figure in FIGURES.items():
        assert figure(cells, names) == pytest.approx([getattr(matrix, name)] * 2)
    assert [float(last_of(n)(cells[0], names)) for n in names] == pytest.approx(matrix.last_i)
    assert [float(avg_of(n)(cells[0], names)) for n in names] == pytest.approx(matrix.avg_i)


def test_a_cell_that_was_not_measured_leaves_no_figure():
    lower = np.array([[50.0, np.nan], [40.0, 60.0]])
    only_last = np.array([[np.nan, np.nan], [40.0, 60.0]])

    assert spread(draw([Measured(("a", "b"), 0, lower)]), FIGURES["bwt"]).mean == -5.0
    assert spread(draw([Measured(("a", "b"), 0, only_last)]), FIGURES["bwt"]) is None


def test_seeds_of_one_order_without_samples_have_students_interval():
    found, wanted = (
        spread([plain(v, seed) for seed, v in enumerate((60.0, 62.0, 67.0))], last),
        estimate([60.0, 62.0, 67.0]),
    )

    assert (found.mean, found.low, found.high) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    assert (found.runs, found.units, found.sampled) == (3, 3, False)


def test_orders_are_the_units_where_there_are_several():
    """Means of the orders 61 and 66: mean 63.5, s = 5/√2, error 2.5, t(0.975, 1) = 12.7062."""
    runs = [plain(60.0, 0), plain(62.0, 1), plain(67.0, 0, ("b", "a")), plain(65.0, 1, ("b", "a"))]
    found = spread(runs, last)

    assert (found.mean, found.runs, found.units, found.error) == pytest.approx((63.5, 4, 2, 2.5))
    assert found.half == pytest.approx(2.5 * 12.7062, abs=1e-3)


def test_of_one_run_its_samples_tell_and_without_them_nothing_is_known():
    """1 of 4 right, 100 times: error √(0.25 · 0.75 / 400) of 100 points, on one task; 0 on the other whose answers are all right."""
    right = np.tile([100.0, 0.0, 0.0, 0.0], (2, 100))
    samples = {0: right, 1: np.full((2, 50), 100.0)}
    run = Measured(("a", "b"), 0, np.array([[25.0, 0.0], [25.0, 100.0]]), samples)
    found = spread(draw([run], 4000), last)

    assert (found.mean, found.units, found.sampled) == (62.5, 1, True)
    assert found.error == pytest.approx(100 * math.sqrt(0.25 * 0.75 / 400) / 2, rel=0.05)
    alone = spread([plain(62.5)], last)
    assert (alone.error, alone.low, alone.p) == (None, None, None)


def test_a_cell_keeps_its_official_score_where_that_is_no_mean_of_samples():
    samples = {0: np.tile([1.0, 3.0], (1, 50))}

    assert spread(draw([Measured(("a",), 0, np.array([[70.0]]), samples)]), last).mean == 70.0


def test_equal_runs_differ_by_nothing_and_shifted_ones_by_the_shift():
    source = np.random.default_rng(0)
    of_orders, main = effects(source, 3, 30)
    runs = simulated(source, 2, 2, of_orders=of_orders, seed=2, one=30, main=main)
    higher = [Measured(r.order, r.seed, r.cells + 5, {p: s + 5 for p, s in r.samples.items()}) for r in runs]

    same, more = difference(draw(runs), draw(runs), last), difference(draw(higher), draw(runs), last)
    assert (same.mean, same.error, same.p) == (0.0, 0.0, 1.0)
    assert more.mean == pytest.approx(5.0)
    assert more.p < 1e-6


def test_what_learns_in_no_order_is_the_partner_of_every_order():
    bound = draw([Measured(("a", "b"), 0, np.array([[20.0, 30.0]]))])[0]
    learner = [plain(60.0, 0), plain(70.0, 0, ("b", "a")), plain(99.0, 1)]

    between = difference(learner, [bound], last)
    assert (between.mean, between.runs, between.units) == (40.0, 2, 2)
    assert difference([bound], [bound], last).mean == 0.0
    assert difference([plain(1.0, 5)], [plain(1.0, 6)], last) is None


def test_two_runs_of_one_order_and_seed_are_refused():
    with pytest.raises(DataError, match="two runs have seed 1"):
        spread([plain(1.0, 1), plain(2.0, 1)], last)
    with pytest.raises(DataError, match="at least one seed"):
        spread([], last)
    with pytest.raises(DataError, match="score the run again"):
        Measured(("a", "b"), 0, np.zeros((2, 3)))


def test_holm_corrects_as_by_hand():
    """0.01 · 3, 0.03 · 2, then 0.04 · 1 which may not be less than 0.06."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_mcnemar_counts_the_questions_that_one_alone_has_right():
    """1 against 9: 2 · (1 + 10) / 2¹⁰."""
    first = [True] * 9 + [False] * 1 + [True] * 5
    second = [False] * 9 + [True] * 1 + [True] * 5

    assert mcnemar(first, second) == pytest.approx(22 / 1024)
    assert mcnemar(first, first) == 1.0
    assert mcnemar([True], [False]) == 1.0


def pair(first: str, second: str, adjusted: float) -> Pair:
    return Pair(first, second, Spread(1.0, 3, 3, 1.0, 2.0), adjusted, adjusted)


def test_the_best_share_their_rank_with_all_that_cannot_be_told_from_them():
    means = {"a": 90.0, "b": 89.0, "c": 70.0, "d": 50.0}
    pairs = [pair("a", "b", 0.9), pair("a", "c", 0.01), pair("a", "d", 0.01), pair("b", "c", 0.2)]
    pairs += [pair("b", "d", 0.02), pair("c", "d", 0.03)]

    assert tiers(means, pairs) == ({"a", "b"}, {"c"})
    assert tiers({"a": 1.0, "b": 2.0}, [pair("a", "b", 0.01)], lowest=True) == ({"a"}, {"b"})


def test_nobody_is_marked_where_all_are_alike_or_nothing_is_known():
    assert tiers({"a": 90.0, "b": 89.0}, [pair("a", "b", 0.9)]) == (set(), set())
    assert tiers({"a": 90.0, "b": 89.0}, []) == (set(), set())
    assert tiers({"a": 90.0}, []) == (set(), set())


def test_all_pairs_are_corrected_together():
    methods = {
        name: [plain(v + 10 * n, s) for s, v in enumerate((0.0, 1.0, 0.4))] for n, name in enumerate("abc")
    }
    methods["c"] = [plain(v, s) for s, v in enumerate((20.0, 25.0, 21.0))]
    found = all_pairs(methods, last)

    assert [(one.first, one.second) for one in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [one.adjusted for one in found] == holm([one.p for one in found])
    assert all_pairs({"a": [plain(1.0)], "b": [plain(2.0)]}, last) == []


def test_power_is_that_of_the_tables_of_students_paired_test():
    """One standard deviation needs 10 pairs for 0.8 (power 0.8031), half of one 34 (Cohen 1988; G*Power 3.1)."""
    assert power(1.0, 1.0, 10) == pytest.approx(0.8031, abs=1e-3)
    ten = Spread(1.0, 3, 3, 1 / math.sqrt(3), 2.0, 1 / math.sqrt(3))
    assert (units_needed(ten), units_needed(ten, 0.5)) == (10, 34)
    assert power(0.0, 1.0, 5) == pytest.approx(0.025, abs=1e-6)


def test_what_can_just_be_seen_needs_the_units_at_hand():
    between = Spread(0.3, 6, 6, 2 / math.sqrt(6), 5.0, 2 / math.sqrt(6))
    delta = least_seen(between)

    assert power(delta, 2.0, 6) == pytest.approx(0.8, abs=1e-6)
    assert units_needed(between, delta * 1.0001) == 6
    assert units_needed(Spread(1.0, 1, 1, None, 0.0)) is None
    assert least_seen(Spread(1.0, 1, 1, None, 0.0)) is None


@pytest.mark.slow
@pytest.mark.parametrize(("orders", "seeds"), [(1, 1), (1, 3), (3, 1), (3, 3)])
def test_intervals_cover_the_truth_as_often_as_they_say(orders, seeds):
    """600 simulated comparisons of a true mean of 60: 95 % within what 600 trials and few units allow."""
    source, hits = np.random.default_rng(orders * 10 + seeds), 0
    for _ in range(600):
        of_orders, main = effects(source, 3 if orders > 1 else 0, 30)
        seed = 2 if orders * seeds > 1 else 0
        runs = simulated(source, orders, seeds, of_orders=of_orders, seed=seed, one=30, main=main)
        found = spread(draw(runs, 300), last)
        hits += found.low <= 60 <= found.high
    print(f"{orders} orders, {seeds} seeds: {hits / 6:.1f} % covered")

    assert 0.91 <= hits / 600 <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize(("orders", "seeds"), [(1, 1), (1, 3), (3, 3)])
def test_two_copies_of_one_method_are_not_told_apart(orders, seeds):
    """600 times two copies of a method: in at most 5 % and what 600 trials allow is one called better."""
    source, wins = np.random.default_rng(orders * 10 + seeds), 0
    for _ in range(600):
        of_orders, main = effects(source, 3, 30)
        seed = 2 if orders * seeds > 1 else 0
        copies = {
            name: draw(
                simulated(source, orders, seeds, of_orders=of_orders, seed=seed, one=30, main=main), 300
            )
            for name in ("one", "other")
        }
        wins += all_pairs(copies, last)[0].told_apart
    print(f"{orders} orders, {seeds} seeds: {wins / 6:.1f} % told apart")

    assert wins / 600 <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 600)
