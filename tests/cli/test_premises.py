"""`cl-zoo analyze leakage`, `screen`, `ablate` and `retention` on the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kept_runs import write_run
from squares import squares


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An untouched model, one trained on all tasks, and a run that was interrupted."""
    root = tmp_path / "runs"
    write_run(root, "untouched", 0, [[25, 75]], protocol="none")
    write_run(root, "all", 0, [[100, 75]], protocol="joint")
    return root


def test_leakage_of_runs_is_printed_written_and_drawn(cli: Callable[..., Any], out: Path, tmp_path: Path):
    ended = cli("analyze", "leakage", out, "--csv", tmp_path / "gaps.csv", "--figure", tmp_path / "gaps.svg")

    assert ended.code == 0
    assert ended.out.startswith("zoo: 37.50 points from zero-shot to multi-task (50.00 to 87.50)")
    with (tmp_path / "gaps.csv").open() as file:
        assert [row["gap"] for row in csv.DictReader(file)] == ["75.0", "0.0", "37.5"]
    assert "<svg" in (tmp_path / "gaps.svg").read_text()


def test_screen_takes_other_bounds(cli: Callable[..., Any], out: Path):
    told = [
        cli("analyze", "screen", out, *more).out.splitlines()[0]
        for more in ([], ["--gain", 0, "--zero-shot", 75])
    ]

    assert told == [
        "zoo: 1 of 2 tasks qualify: render (zero-shot at most 54, gain at least 15).",
        "zoo: 2 of 2 tasks qualify: render, chart (zero-shot at most 75, gain at least 0).",
    ]


def test_screen_answers_a_benchmark_untouched_where_there_is_no_run_yet(
    cli: Callable[..., Any], tmp_path: Path
):
    bench = squares(tmp_path / "squares", size=4)
    asked = (
        "analyze",
        "screen",
        "--benchmark",
        bench,
        "--device",
        "cpu",
        "--out",
        tmp_path / "runs",
        "--json",
    )

    told = json.loads(cli(*asked).out)

    assert [row["task"] for row in told["rows"]] == ["colour", "side", "description"]
    assert all(row["multi_task"] is None for row in told["rows"])


def test_a_benchmark_beside_a_mix_that_holds_its_test_pictures(cli: Callable[..., Any], tmp_path: Path):
    """The pictures of the tiny benchmark lie in one folder, so as a mix it holds every one of them."""
    bench = squares(tmp_path / "squares", size=4)

    ended = cli("analyze", "leakage", "--benchmark", bench, "--mix", bench.parent / "pictures")

    assert ended.out.startswith("squares: of 12 test samples stand in a mix of 0 records and ")
    assert "12 exact, 0 near, 0 text, 0 both" in ended.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["leakage"], "one of RUNS, --published, --mix, --planted says what to look at, got none"),
        (["leakage", "--published", "--planted"], "got --published and --planted"),
        (["screen"], "one of RUNS, --published, --benchmark says what to screen, got none"),
        (["ablate", "finetune"], "finetune declares no ablations"),
        (["ablate", "hide", "--only", "Table 4"], "hide has no ablation 'Table 4'; did you mean 'Table 3'"),
        (["ablate", "hide", "-o", "ewc.strength=1"], "only options of hide can be set here"),
        (["retention", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(cli: Callable[..., Any], arguments: list[str], says: str):
    ended = cli("analyze", *arguments)

    assert ended.code == 2
    assert says in ended.err
    assert ended.out == ""


def test_show_names_the_ablations_that_a_method_declares(cli: Callable[..., Any]):
    lines = cli("show", "branchlora").out.splitlines()

    assert lines[-1] == (
        "ablations ablation on LLaVA-1.5-7B: dense mixture, + shared A, + sparse selection, + freezing, + task routers"
    )
