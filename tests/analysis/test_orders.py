"""What of the spread of a figure is the order's and what the seed's, by runs whose scores are known."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_runs import write_run
from typer.testing import CliRunner

from cl_zoo.analysis.orders import orders, spreads
from cl_zoo.cli.main import app
from cl_zoo.errors import RunError

BACK = ("chart", "render")


def written(root: Path) -> None:
    """Two seeds of each order: Last is 50 and 100, and 25 and 25 where the chart comes first."""
    for seed, last in enumerate((50, 100)):
        write_run(root, "ewc", seed, ([100], [last, last]))
    for seed in (0, 1):
        write_run(root, "ewc", seed, ([100], [25, 25]), tasks=BACK)


def test_figures_are_put_side_by_side_by_order(tmp_path: Path) -> None:
    written(tmp_path)

    rows = [row for row in orders([tmp_path]).rows if row["figure"] == "last"]

    by_order = {row["order"]: (row["mean"], row.get("std"), row["seeds"]) for row in rows}
    assert by_order["render, chart"] == (75.0, pytest.approx(35.355, abs=1e-3), 2)
    assert by_order["chart, render"] == (25.0, 0.0, 2)
    assert by_order[None] == (50.0, None, 4)


def test_the_spread_over_orders_is_split_into_the_seeds_part_and_the_rest(tmp_path: Path) -> None:
    """Means 75 and 25: 35.36 apart; within the orders √((1250 + 0) / 2) = 25; what is left is √(1250 − 625 / 2) = 30.62."""
    written(tmp_path)

    (whole,) = (row for row in orders([tmp_path]).rows if row["figure"] == "last" and row["order"] is None)

    assert [whole[name] for name in ("over_orders", "over_seeds", "by_order")] == pytest.approx(
        [35.355, 25.0, 30.619], abs=1e-3
    )


@given(st.lists(st.lists(st.floats(0, 100), min_size=2, max_size=4), min_size=2, max_size=4))
def test_the_parts_of_the_spread_are_no_more_than_the_whole(groups: list[list[float]]) -> None:
    found = spreads({str(n): group for n, group in enumerate(groups)})

    assert found["over_orders"] == pytest.approx(statistics.stdev(map(statistics.fmean, groups)))
    assert 0 <= found["by_order"] <= found["over_orders"] + 1e-9
    if all(len(set(group)) == 1 for group in groups):
        assert found["by_order"] == pytest.approx(found["over_orders"], abs=1e-6)


def test_seeds_that_vary_more_than_orders_leave_nothing_to_the_order() -> None:
    assert spreads({"one": [0.0, 100.0], "two": [1.0, 101.0]})["by_order"] == 0.0


def test_one_seed_of_each_order_says_nothing_of_the_seed() -> None:
    assert spreads({"one": [50.0], "two": [60.0]}) == {
        "over_orders": pytest.approx(7.071, abs=1e-3),
        "over_seeds": None,
        "by_order": None,
    }


def test_the_sentence_names_both_spreads_and_who_is_best(tmp_path: Path) -> None:
    written(tmp_path)
    write_run(tmp_path, "hide", 0, ([100], [75, 100]))
    write_run(tmp_path, "hide", 0, ([100], [75, 100]), tasks=BACK)
    write_run(tmp_path, "zeroshot", scores=([25, 50],), protocol="none")

    found = orders([tmp_path])

    assert found.sentence.startswith(
        "Over 2 orders Last varies by 17.68 points, over the seeds of one order by 25.00 (standard"
    )
    assert found.sentence.endswith("hide is best in every one of them.")
    assert "zeroshot" not in found.text
    assert "75.00 ± 35.36" in found.text
    assert len(found.figure().axes[0].lines) == 2


def test_one_order_is_no_comparison_of_orders(tmp_path: Path) -> None:
    write_run(tmp_path, "ewc")

    with pytest.raises(RunError, match="run `compare` with --orders"):
        orders([tmp_path])


def test_runs_of_other_tasks_are_left_out(tmp_path: Path) -> None:
    written(tmp_path)
    write_run(tmp_path, "ewc", 0, ([100],), tasks=("render",))

    assert {row["order"] for row in orders([tmp_path]).rows} == {"render, chart", "chart, render", None}


def test_the_command_prints_the_table(tmp_path: Path) -> None:
    written(tmp_path)

    done = CliRunner().invoke(app, ["analyze", "orders", str(tmp_path)])
    told = json.loads(CliRunner().invoke(app, ["analyze", "orders", str(tmp_path), "--json"]).stdout)

    assert done.exit_code == 0, done.output
    assert "over orders  over seeds  by order" in done.stdout
    assert len(told["rows"]) == 6
