"""Published figures: complete, with a source, and every printed mean recomputed from its cells."""

from __future__ import annotations

from decimal import Decimal

import pytest
import yaml

from cl_zoo.errors import OptionError
from cl_zoo.names import METHODS, installed
from cl_zoo.published import Publication, published, read_published
from cl_zoo.published.tables import TABLES
from cl_zoo.scoring.matrix import Matrix

NAMES = list(published())
SLIPS = {("hide-table2", "HiDe-LLaVA", "Last"): 63.95, ("hide-table1", "EWC", "Last"): 50.20}
"""Printed means that are not those of their cells; the first is wrong, the second a hundredth too high."""


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def places(number: float) -> int:
    """Decimals of a number as it was printed; two at least."""
    return max(2, -int(Decimal(repr(number)).as_tuple().exponent))


def test_every_printed_mean_is_that_of_its_cells_but_for_the_marked_slips(name):
    paper, slips = read_published(name), {}
    for row in paper.rows:
        if row.mean is None or not row.cells:
            assert row.right is None
            continue
        assert None not in row.cells, f"{row.method} has a printed mean over a cell that is missing"
        mean = sum(row.cells) / len(row.cells)
        if abs(mean - row.mean) > 0.005 + 1e-9:
            slips[name, row.method, row.metric] = row.mean
            assert row.right == pytest.approx(mean, abs=0.005), row
            assert row.note
        else:
            assert row.right is None, row
    for grid in paper.matrices:
        for row, mean in zip(grid.scores, grid.means, strict=bool(grid.means)):
            assert sum(row) / len(row) == pytest.approx(mean, abs=0.5 * 10 ** -places(mean))

    assert slips == {key: mean for key, mean in SLIPS.items() if key[0] == name}


def test_one_published_mean_is_wrong_by_more_than_rounding():
    rows = [row for name in NAMES for row in read_published(name).rows if row.right is not None]

    assert [(row.mean, row.right) for row in rows if abs(row.mean - row.right) > 0.011] == [(63.95, 62.82)]


def test_the_gap_between_zero_shot_and_joint_training_is_the_papers():
    gaps = {}
    for name in ("hide-table1", "hide-table2"):
        bounds = {row.protocol: row.mean for row in read_published(name).rows if row.protocol != "sequential"}
        gaps[name] = round(bounds["joint"] - bounds["none"], 2)

    assert gaps == {"hide-table1": 43.10, "hide-table2": 13.19}


def test_avg_and_last_agree_on_the_task_that_was_learnt_last():
    """Avg counts a task from its own training on, so of the last one it is the final score: the columns are read right."""
    for name, last in (("hide-table1", "Flickr30k"), ("hide-table2", "OCRVQA")):
        paper = read_published(name)
        by = {(row.method, row.metric): paper.scores(row)[last] for row in paper.rows}
        methods = {method for method, metric in by if metric == "Avg"}

        assert len(methods) == 7
        assert all(by[method, "Avg"] == by[method, "Last"] for method in methods)


def test_tables_of_one_paper_agree_where_they_give_the_same_figure():
    first, orders, layers = (read_published(f"hide-table{n}") for n in (1, 4, 3))
    means = {(row.metric, first.order): row.mean for row in first.rows if row.ours == "hide"}

    assert means == {(row.metric, row.order): row.mean for row in orders.rows if row.order == "RAVICF"}
    assert {(metric, mean) for (metric, _), mean in means.items()} == {
        (row.metric, row.mean) for row in layers.rows if row.ours == "hide" and row.metric != "Param. (M)"
    }
    seventh = read_published("hide-table7")
    for row in seventh.rows:
        if row.ours == "hide":
            full = next(one for one in first.rows if (one.ours, one.metric) == ("hide", row.metric))
            assert seventh.scores(row).items() <= first.scores(full).items()


def test_branchlora_takes_coins_final_rows_and_their_means_are_known():
    """MoELoRA's ACC over eight tasks leaves 63.09 for the one whose accuracy is not in the repository."""
    grid = next(one for one in read_published("coin-history").matrices if one.ours == "moelora")
    acc = next(
        row.mean
        for row in read_published("branchlora").rows
        if (row.method, row.metric) == ("MoELoRA", "ACC")
    )

    assert 8 * acc - sum(grid.scores[-1][1:]) == pytest.approx(63.09, abs=0.04)


def test_maa_and_avg_of_one_matrix_are_two_figures():
    grid = read_published("mcitlib-issue6").matrices[0]
    matrix = Matrix.from_rows(grid.scores)

    assert (round(matrix.maa, 2), round(matrix.avg, 2), round(matrix.last, 2)) == (72.90, 62.73, 56.73)


def test_tasks_orders_and_methods_are_those_that_are_installed(name):
    paper = read_published(name)
    listed = yaml.safe_load(
        (TABLES.parents[1] / f"benchmarks/cl_zoo_bench_{paper.benchmark}/{paper.benchmark}.yaml").read_text()
    )
    known = {task["name"]: task["letter"] for task in listed["tasks"]}

    assert set(paper.tasks.values()) == set(known)
    for order in (paper.order, *(row.order for row in paper.rows if row.order)):
        assert sorted(order) == sorted(known.values())
    assert "".join(known.values()) == paper.order
    for row in (*paper.rows, *paper.matrices):
        assert row.ours is None or row.ours.partition("[")[0] in {one.name for one in installed(METHODS)}


def test_a_publication_of_ones_own_is_read_from_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    about = {"about": "mine", "source": {"paper": "Mine", "table": "1"}, "benchmark": "mini"}
    about |= {"backbone": "mini", "order": "RC", "tasks": {"R": "rendition", "C": "chart"}}
    row = {"method": "X", "ours": "finetune", "metric": "Last", "cells": [10.0, 20.0], "mean": 15.0}
    file.write_text(yaml.safe_dump({**about, "rows": [row]}, sort_keys=False))

    paper = read_published(file)

    assert paper.scores(paper.rows[0]) == {"rendition": 10.0, "chart": 20.0}
    assert paper.cited() == "Mine, table 1"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": [{"method": "X", "cells": [1.0]}]}, "1 cells for 6 tasks"),
        ({"rows": [{"method": "X", "cels": [1.0]}]}, "'rows.0.cels'"),
        ({"source": {"url": "x"}}, "its source names none of paper, repository"),
        ({"matrices": [{"method": "X", "scores": [[1.0, 2.0]]}]}, "no row of k scores"),
    ],
)
def test_what_is_not_written_as_a_publication_is_told_in_a_sentence(tmp_path, change, says):
    content = yaml.safe_load((TABLES / "hide-table1.yaml").read_text())
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**content, **change}))

    with pytest.raises(OptionError, match=says):
        read_published(file)


def test_an_unknown_name_is_told_with_the_nearest_one():
    with pytest.raises(OptionError, match=r"no publication is called 'hide-table8'.*hide-table"):
        read_published("hide-table8")
    assert all(isinstance(read_published(one), Publication) for one in NAMES)
