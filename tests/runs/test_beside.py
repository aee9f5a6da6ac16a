"""Published rows beside ours: what is compared, what is not, and why."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kept_runs import write_run

from cl_zoo.runs.beside import beside
from cl_zoo.runs.finding import find_runs

PAPER = {
    "about": "a paper on the zoo.",
    "source": {"paper": "Somebody 2025", "table": "1"},
    "benchmark": "zoo",
    "backbone": "eagle-7b",
    "order": "RC",
    "tasks": {"Ren.": "render", "Ch.": "chart"},
    "rows": [
        {"method": "Base", "ours": "zeroshot", "protocol": "none", "cells": [20.0, 40.0], "mean": 30.0},
        {"method": "EWC", "ours": "ewc", "metric": "Avg", "cells": [70.0, 80.0], "mean": 75.0},
        {
            "method": "EWC",
            "ours": "ewc",
            "metric": "Last",
            "cells": [40.0, 80.0],
            "mean": 65.0,
            "right": 60.0,
        },
        {"method": "EWC", "ours": "ewc", "metric": "MAA", "mean": 71.0},
        {"method": "EWC", "ours": "ewc", "metric": "Param. (M)", "mean": 44.0},
    ],
}


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    return written(tmp_path / "paper.yaml", {})


def written(file: Path, change: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump({**PAPER, **change}, sort_keys=False))
    return file


def put(root: Path, paper: Path) -> Any:
    (comparison,) = find_runs([root]).comparisons
    return beside(comparison.table(), comparison.results, str(paper))


def ewc(root: Path, seed: int = 0, order: str = "RC", **more: Any) -> None:
    write_run(root, "ewc", seed, ([100], [50, 100]), facts={"order": order}, **more)


def test_avg_and_last_are_compared_task_by_task_with_the_figure_of_their_own_definition(
    tmp_path: Path, paper: Path
):
    ewc(tmp_path / "runs")

    found = {one.metric: one for one in put(tmp_path / "runs", paper).compared}

    assert found["Avg"].differences == {"render": 5.0, "chart": 20.0}
    assert found["Last"].differences == {"render": 10.0, "chart": 20.0}
    assert found["Avg"].difference == 87.5 - 75.0
    assert found["MAA"].difference == pytest.approx((100 + 75) / 2 - 71.0)
    assert set(found) == {"Avg", "Last", "MAA"}


def test_maa_is_compared_with_maa_and_not_with_avg(tmp_path: Path, paper: Path):
    write_run(tmp_path / "runs", "ewc", 0, ([100], [50, 75]), facts={"order": "RC"})

    found = {one.metric: one.mean.mean for one in put(tmp_path / "runs", paper).compared}

    assert found == {"Avg": 75.0, "Last": 62.5, "MAA": 81.25}


def test_a_misprinted_mean_is_shown_and_the_difference_is_to_the_right_one(tmp_path: Path, paper: Path):
    ewc(tmp_path / "runs")

    told = put(tmp_path / "runs", paper)

    (last,) = [one for one in told.compared if one.metric == "Last"]
    assert last.difference == 75.0 - 60.0
    assert "65.00 (right: 60.00)" in told.text()


def test_what_is_no_score_and_what_answers_otherwise_is_said(tmp_path: Path, paper: Path):
    ewc(tmp_path / "runs")
    write_run(tmp_path / "runs", "lwf", facts={"order": "RC"})

    remarks = "\n".join(put(tmp_path / "runs", paper).remarks)

    assert "Param. (M) of" in remarks
    assert "has no row of lwf" in remarks
    assert "with eagle-7b: differences are of the models too" in remarks


def test_another_order_is_not_compared_but_the_untouched_model_is(tmp_path: Path, paper: Path):
    ewc(tmp_path / "runs", order="CR", tasks=("chart", "render"))
    write_run(tmp_path / "runs", "zeroshot", 0, ([25, 50],), protocol="none", facts={"order": "RC"})

    told = put(tmp_path / "runs", paper)

    assert [(one.label, one.differences) for one in told.compared] == [
        ("zeroshot", {"render": 5.0, "chart": 10.0})
    ]
    assert any("ewc learnt the tasks in the order CR and" in one and "has RC" in one for one in told.remarks)


def test_rows_of_a_paper_in_several_orders_stand_beside_those_of_ours(tmp_path: Path):
    rows = [
        {"method": "EWC", "ours": "ewc", "order": order, "metric": "Last", "mean": mean}
        for order, mean in (("RC", 70.0), ("CR", 50.0))
    ]
    paper = written(tmp_path / "paper.yaml", {"rows": rows})
    ewc(tmp_path / "runs")
    ewc(tmp_path / "runs", order="CR", tasks=("chart", "render"))

    told = put(tmp_path / "runs", paper)

    assert {one.order: one.difference for one in told.compared} == {"RC": 5.0, "CR": 25.0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"benchmark": "park"}, "is of park and these runs are of zoo: nothing of them can be compared"),
        (
            {"tasks": {"Ren.": "render", "X": "text"}},
            "has the tasks render, text and these runs render, chart",
        ),
    ],
)
def test_another_benchmark_or_other_tasks_are_one_sentence(tmp_path: Path, change: dict[str, Any], says: str):
    ewc(tmp_path / "runs")

    told = put(tmp_path / "runs", written(tmp_path / "paper.yaml", change))

    assert not told.compared
    assert says in told.remarks[0]


def test_the_final_row_of_a_matrix_stands_beside_last_and_missing_cells_are_left_out(tmp_path: Path):
    grid = {"method": "EWC", "ours": "ewc", "scores": [[90.0], [None, 80.0]]}
    ewc(tmp_path / "runs")

    told = put(tmp_path / "runs", written(tmp_path / "paper.yaml", {"rows": [], "matrices": [grid]}))

    (one,) = told.compared
    assert (one.metric, one.differences, one.difference) == ("Last", {"chart": 20.0}, None)
    assert "EWC, Last: the final row of its matrix" in told.remarks


def test_a_variant_stands_beside_the_method_and_that_is_said(tmp_path: Path, paper: Path):
    write_run(tmp_path / "runs", "ewc[strength=3]", facts={"order": "RC"})

    told = put(tmp_path / "runs", paper)

    assert {one.row.method for one in told.compared} == {"EWC"}
    assert "ewc[strength=3] stands beside EWC, which is ewc here" in told.remarks


def test_the_report_prints_it_and_writes_it_to_its_files(
    cli: Callable[..., Any], tmp_path: Path, paper: Path
):
    for seed in (0, 1):
        ewc(tmp_path / "runs", seed)
    json_file, markdown = tmp_path / "r.json", tmp_path / "r.md"

    ended = cli("report", tmp_path / "runs", "--beside", paper, "--json", json_file, "--markdown", markdown)

    assert ended.code == 0
    assert f"Beside {paper} (Somebody 2025, table 1):" in ended.out
    (avg, *_) = [line for line in ended.out.splitlines() if line.startswith("  difference")]
    assert avg.split() == ["difference", "+5.00", "+20.00", "+12.50"]
    assert "| difference | +5.00 | +20.00 | +12.50 |" in markdown.read_text()
    (table,) = json.loads(json_file.read_text())["tables"]
    first = table["beside"][0]["compared"][0]
    assert (first["metric"], first["mean"]["difference"], first["ours"]["render"]["n"]) == ("Avg", 12.5, 2)
    assert cli("report", tmp_path / "runs", "--beside", "nobody").code == 2


def test_the_page_and_latex_have_the_same_rows_and_remarks(
    cli: Callable[..., Any], tmp_path: Path, paper: Path
):
    ewc(tmp_path / "runs")
    write_run(tmp_path / "runs", "x<i>", 0, ([100], [50, 100]), facts={"order": "RC"})
    page, latex = tmp_path / "r.html", tmp_path / "r.tex"

    assert cli("report", tmp_path / "runs", "--beside", paper, "--html", page, "--latex", latex).code == 0

    part = page.read_text().partition('id="c1-beside">')[2].partition("</section>")[0]
    (last,) = [one for one in re.findall(r"<tbody.*?</tbody>", part, flags=re.S) if ">Last<" in one]
    assert re.findall(r"<td>(.*?)</td>", last)[-3:] == ["+10.00", "+20.00", "+15.00"]
    assert 'data-label="ewc"' in last
    assert f"{paper} has no row of x&lt;i&gt;" in part
    assert r"difference & +10.00 & +20.00 & +15.00 \\" in latex.read_text()
    assert "c1-beside" not in unasked(cli, tmp_path)


def unasked(cli: Callable[..., Any], folder: Path) -> str:
    """The page without `--beside`."""
    cli("report", folder / "runs", "--html", folder / "plain.html")
    return (folder / "plain.html").read_text()
