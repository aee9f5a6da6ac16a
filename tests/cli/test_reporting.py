"""`report`, `runs` and `clean` on the command line, and the files that a report writes."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kept_runs import begin_run, write_run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two methods of two seeds, and a run that is not finished."""
    root = tmp_path / "runs"
    for seed in (0, 1):
        write_run(root, "ewc", seed, ([100], [50, 100]))
        write_run(root, "hide[top_k=1 & 100 %]", seed)
    begin_run(root, "lwf")
    return root


def test_a_report_prints_the_table_and_the_matrices_and_names_what_it_leaves_out(
    cli: Callable[..., Any], out: Path
):
    ended = cli("report", out)

    assert ended.code == 0
    assert "  ewc                    75.00 ± 0.00" in ended.out
    matrices = ended.out.partition("Scores on each task after each task:")[2]
    assert "  after chart           25.00 ± 0.00   75.00 ± 0.00\n" in matrices
    (line,) = ended.err.splitlines()
    assert re.fullmatch(r"left out: .*zoo-lwf-s0-\w+\.partial: not finished, 1 of 2 tasks are learnt", line)


def test_a_report_writes_what_is_asked_for(cli: Callable[..., Any], out: Path, tmp_path: Path):
    files = {name: tmp_path / f"r.{name}" for name in ("markdown", "csv", "latex", "json")}

    ended = cli("report", out, *(word for name, file in files.items() for word in (f"--{name}", file)))

    assert ended.code == 0
    assert all(f"wrote {file}" in ended.err for file in files.values())
    with files["csv"].open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 4 * 3
    assert {row["score"] for row in rows if row["label"] == "ewc" and row["stage"] == "1"} == {
        "50.0",
        "100.0",
    }
    told = json.loads(files["json"].read_text())
    (table,) = told["tables"]
    assert table["title"] == "zoo, version 1: render → chart"
    assert {run["label"] for run in table["runs"]} == {"ewc", "hide[top_k=1 & 100 %]"}
    assert [Path(one["run"]).name[:7] for one in told["left_out"]] == ["zoo-lwf"]
    markdown = files["markdown"].read_text()
    assert markdown.startswith("# zoo, version 1: render → chart\n")
    assert "| after chart | 50.00 ± 0.00 | 100.00 ± 0.00 |" in markdown


def test_latex_escapes_names_and_has_as_many_columns_in_each_line(
    cli: Callable[..., Any], out: Path, tmp_path: Path
):
    file = tmp_path / "t.tex"

    cli("report", out, "--latex", file)

    text = file.read_text()
    assert r"hide{[}top\_k=1 \& 100 \%{]}" in text
    assert r"75.00 $\pm$ 0.00" in text
    for piece in text.split(r"\begin{tabular}")[1:]:
        columns = len(re.match(r"\{(l?r*)\}", piece)[1])
        lines = [line for line in piece.split(r"\end{tabular}")[0].splitlines() if " & " in line]
        assert lines
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {columns}


def test_a_table_by_the_other_rules_and_an_unknown_one(cli: Callable[..., Any], out: Path):
    assert "Bounds" not in cli("report", out, "--scoring", "strict").out
    assert cli("report", out, "--scoring", "lenient").code == 2


def test_a_file_in_a_folder_that_is_not_there_is_a_sentence(
    cli: Callable[..., Any], out: Path, tmp_path: Path
):
    ended = cli("report", out, "--csv", tmp_path / "no" / "r.csv")

    assert ended.code == 2
    assert "there is no folder" in ended.err


def test_runs_are_listed_as_text_and_as_data(cli: Callable[..., Any], out: Path):
    assert "4 finished, 1 in part" in cli("runs", out).out
    found = json.loads(cli("runs", out, "--json").out)

    assert {one["label"]: one["done"] for one in found if one["seed"] == 0} == {
        "ewc": 2,
        "hide[top_k=1 & 100 %]": 2,
        "lwf": 1,
    }
    assert cli("runs", out / "none").code == 2


def test_cleaning_shows_first_and_removes_with_yes(cli: Callable[..., Any], out: Path):
    shown = cli("clean", out, "--partial")

    assert "1 of 1 would be removed" in shown.out
    assert len(list(out.glob("*.partial"))) == 1

    assert "removed 1 of 1" in cli("clean", out, "--partial", "--yes").out
    assert not list(out.glob("*.partial"))
    assert len(list(out.glob("zoo-*"))) == 4


def test_cleaning_without_a_name_removes_nothing(cli: Callable[..., Any], out: Path):
    ended = cli("clean", out, "--yes")

    assert ended.code == 2
    assert "removes only what is named" in ended.err
