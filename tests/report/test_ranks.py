"""Marks and intervals of a table follow from tests, not from means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cl_zoo.report.ranks import Ranks
from cl_zoo.report.rows import Row
from cl_zoo.report.table import Table
from cl_zoo.scoring.matrix import Matrix
from cl_zoo.statistics.measured import Measured


def row(label: str, seed: int, value: float, protocol: str = "sequential", scores: bool = True) -> Row:
    stages = 2 if protocol == "sequential" else 1
    cells = np.full((stages, 2), value)
    measured = Measured(("a", "b"), seed, cells)
    told = (lambda scoring: measured) if scores else None
    return Row(label, protocol, seed, ("a", "b"), Matrix.from_rows(cells.tolist()), scores=told)


def ranks(**values: tuple[float, ...]) -> Ranks:
    rows = [row(label, seed, value) for label, found in values.items() for seed, value in enumerate(found)]
    return Ranks(Table(rows).methods)


def test_a_higher_mean_alone_is_no_rank():
    """60, 80, 70 against 61, 79, 72 differ by less than their seeds do."""
    found = ranks(one=(60.0, 80.0, 70.0), other=(61.0, 79.0, 72.0), third=(10.0, 10.5, 9.9))

    assert found.marked("last", {"one": 70.0, "other": 70.67, "third": 10.13}) == (
        {"one", "other"},
        {"third"},
    )
    assert found.marked("last", {"one": 70.0, "other": 70.67}) == (set(), set())


def test_bounds_have_intervals_and_no_rank():
    rows = [row("zeroshot", seed, 20.0 + seed, "none") for seed in range(3)]
    rows += [row("one", seed, 60.0 + seed) for seed in range(3)]
    found = Ranks(Table(rows).methods)

    assert found.interval("zeroshot", "last").mean == 21.0
    assert found.interval("zeroshot", "bwt") is None
    assert found.interval("one", "last:b").mean == found.interval("one", "avg:b").mean == 61.0
    assert found.pairs("last") == []


def test_bounds_of_one_seed_that_learnt_in_two_orders_are_two_runs():
    """Older versions learnt all tasks at once in the order that was asked for."""
    one = row("multitask", 0, 60.0, "joint", scores=False)
    table = Table([one, replace(one, tasks=("b", "a"), order="ba"), row("one", 0, 50.0)])

    assert Ranks(table.methods).interval("multitask", "last").units == 2


def test_runs_of_which_no_samples_are_known_are_compared_by_their_cells():
    rows = [row("one", seed, 60.0 + seed, scores=False) for seed in range(3)]
    rows += [row("two", seed, 70.0 + seed, scores=False) for seed in range(3)]
    found = Ranks(Table(rows).methods)

    assert found.interval("one", "last").sampled is False
    assert found.pairs("last")[0].told_apart
    assert Ranks(Table([row("one", 0, 60.0, scores=False), row("two", 0, 70.0)]).methods).to_json() == []


def test_a_test_tells_how_many_seeds_its_difference_would_need():
    """Differences 1, 3, 2 of the seeds: mean 2, s = 1, so a difference of two standard deviations: 5 pairs for a power of 0.8."""
    (pair,) = ranks(one=(60.0, 70.0, 65.0), other=(59.0, 67.0, 63.0)).to_json()

    assert (pair["first"], pair["second"], pair["units"]) == ("one", "other", 3)
    assert pair["difference"] == pytest.approx(2.0)
    assert pair["p"] == pytest.approx(0.0742, abs=1e-4)  # t = 2√3 at two degrees of freedom
    assert not pair["told_apart"]
    assert pair["units_needed"] == 5
