"""Whether a published figure is reached: above, below, within the tolerance, or not to be compared at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from kept_runs import write_run

from cl_zoo.runs.beside import beside
from cl_zoo.runs.finding import find_runs
from cl_zoo.runs.verdict import Verdict, verdicts

PAPER: dict[str, Any] = {
    "about": "a paper on the zoo.",
    "source": {"paper": "Somebody 2025", "table": "1"},
    "benchmark": "zoo",
    "backbone": "eagle-7b",
    "order": "RC",
    "tasks": {"Ren.": "render", "Ch.": "chart"},
}


def ewc(root: Path, seed: int = 0, last: int = 100, **more: Any) -> None:
    """A run whose Last is the mean of 50 and another score."""
    more = {"backbone": "eagle-7b", **more}
    write_run(root / "runs", "ewc", seed, ([100], [50, last]), facts={"order": "RC"}, **more)


def judged(root: Path, rows: list[dict[str, Any]], tolerance: float = 1.0) -> list[Verdict]:
    """The verdicts on the rows of a paper, with the runs of a folder."""
    file = root / "paper.yaml"
    file.write_text(yaml.safe_dump({**PAPER, "rows": rows}, sort_keys=False))
    (comparison,) = find_runs([root / "runs"]).comparisons
    return list(verdicts(beside(comparison.table(), comparison.results, str(file)), tolerance))


def last(mean: float | None, **more: Any) -> dict[str, Any]:
    """A published row of EWC's Last."""
    return {"method": "EWC", "ours": "ewc", "metric": "Last", "mean": mean, **more}


@pytest.mark.parametrize(
    ("theirs", "word", "why"),
    [
        (75.5, "reached", "75.00 is 0.50 below 75.50"),
        (74.0, "reached", "75.00 is 1.00 above 74.00"),
        (73.9, "not reached", "75.00 is 1.10 above 73.90"),
        (80.0, "not reached", "75.00 is 5.00 below 80.00"),
    ],
)
def test_a_figure_is_reached_within_the_tolerance_from_either_side(
    tmp_path: Path, theirs: float, word: str, why: str
):
    ewc(tmp_path)

    (verdict,) = judged(tmp_path, [last(theirs)])

    assert (verdict.word, verdict.why) == (word, why)
    assert verdict.text() == f"{word}: ewc, RC, Last of EWC: {why}"


def test_a_wide_interval_does_not_make_a_figure_reached_and_is_told(tmp_path: Path):
    for seed, score in ((0, 50), (1, 100)):
        ewc(tmp_path, seed, score)

    (verdict,) = judged(tmp_path, [last(57.5)])

    assert verdict.word == "not reached"
    assert "62.50 is 5.00 above 57.50, which lies in our interval [" in verdict.why


def test_the_right_mean_counts_where_another_was_printed(tmp_path: Path):
    ewc(tmp_path)

    (verdict,) = judged(tmp_path, [last(90.0, cells=[50.0, 100.0], right=75.0)])

    assert (verdict.word, verdict.theirs) == ("reached", 75.0)


def test_a_row_without_a_readable_mean_is_judged_by_its_furthest_cell(tmp_path: Path):
    ewc(tmp_path)

    near, far = (judged(tmp_path, [last(None, cells=[cell, None])])[0] for cell in (50.5, 30.0))

    assert (near.word, far.word) == ("reached", "not reached")
    assert far.why == "1 cells are known, and the furthest is render, +20.00"


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"backbone": "crow-1b"}, "these runs answer with crow-1b"),
        ({"limit": 8}, "these runs have 8 samples a split"),
    ],
)
def test_another_model_or_fewer_samples_are_not_comparable_however_near(
    tmp_path: Path, setting: dict[str, Any], why: str
):
    ewc(tmp_path, **setting)

    (verdict,) = judged(tmp_path, [last(75.0)])

    assert verdict.word == "not comparable"
    assert verdict.why.startswith(why)


def test_a_row_of_a_method_that_is_not_here_is_named_too(tmp_path: Path):
    ewc(tmp_path)

    _, other = judged(tmp_path, [last(75.0), {"method": "Dodo", "metric": "Last", "mean": 10.0}])

    assert other.text() == "not comparable: Last of Dodo: no method here is the same"
