"""Declared ablations as a grid of runs and a table."""

from __future__ import annotations

from pathlib import Path

import pytest
from kept_runs import write_run

from cl_zoo.analysis.ablations import ablate, outcome, wanted
from cl_zoo.errors import OptionError
from cl_zoo.runs.comparison import Comparison, load_result

METHOD = '''
"""Pulled: fine-tuning whose options do nothing."""

from typing import Literal

from pydantic import BaseModel


class Pulled:
    class Options(BaseModel, frozen=True, extra="forbid"):
        strength: float = 1.0
        way: Literal["slow", "fast"] = "slow"

    answering = ("strength", "way")
    ablations = {
        "whole": {"options": {}, "source": "Table 2", "published": {"last": 60.0, "maa": 70.0}, "on": "birds"},
        "no pull": {"options": {"strength": 0.0}, "source": "Table 2", "published": {"last": 55.5}, "on": "birds"},
        "again": {"options": {}, "source": "Figure 3"},
        "fast": {"options": {"way": "fast"}, "source": "Figure 3"},
    }

    def __init__(self, options):
        self.options = options
'''


@pytest.fixture
def method(tmp_path: Path) -> str:
    file = tmp_path / "pulled.py"
    file.write_text(METHOD)
    return f"{file}:Pulled"


def test_rows_of_equal_options_are_one_run(method: str) -> None:
    chosen = wanted(method)

    assert [row.name for row in chosen.rows] == ["whole", "no pull", "again", "fast"]
    assert chosen.choices == [method, f"{method}[strength=0.0]", f"{method}[way=fast]"]
    assert [row.name for row in wanted(method, ["Figure 3"]).rows] == ["again", "fast"]
    assert [row.name for row in wanted(method, ["no pull"]).rows] == ["no pull"]


def test_an_option_of_all_rows_is_in_each_label_and_in_no_choice(method: str) -> None:
    chosen = wanted(method, ["Table 2"], {"way": "fast"})

    assert chosen.choices == [method, f"{method}[strength=0.0]"]
    assert chosen.labels == (f"{method}[way=fast]", f"{method}[strength=0.0,way=fast]")


def test_what_cannot_be_run_is_told(method: str) -> None:
    with pytest.raises(OptionError, match="finetune declares no ablations"):
        wanted("finetune")
    with pytest.raises(OptionError, match="has no ablation 'Table 3'; did you mean 'Table 2'"):
        wanted(method, ["Table 3"])
    with pytest.raises(OptionError, match=r"strength is set for all rows, but the row 'no pull' sets it"):
        wanted(method, [], {"strength": 2})


def test_the_table_has_the_declared_order_the_changes_and_the_papers_figures(
    tmp_path: Path, method: str
) -> None:
    """Last is 50 whole and 25 without the pull; the run of `fast` is not there, and its row has no figures."""
    chosen, out = wanted(method), tmp_path / "runs"
    folders = [
        write_run(out, chosen.labels[1], 0, ([100], [25, 25]), epochs=2),
        write_run(out, chosen.labels[0], 0, ([100], [25, 75])),
    ]
    found = outcome(chosen, Comparison(tuple(load_result(folder) for folder in folders)))

    assert [(row["ablation"], row["last"], row["change"]) for row in found.rows] == [
        ("whole", 50.0, 0.0),
        ("no pull", 25.0, -25.0),
        ("again", 50.0, 0.0),
        ("fast", None, None),
    ]
    assert [row["published_change"] for row in found.rows] == [0.0, -4.5, None, None]
    lines = found.text.splitlines()
    assert (
        lines[0].split()
        == "row source options avg last bwt maa Δ last published last published maa Δ".split()
    )
    assert (
        lines[2].split()
        == "no pull Table 2 strength=0.0 43.75 25.00 -37.50 62.50 -25.00 55.50 – -4.50".split()
    )
    assert "Table 2: whole has Last 50.00; against it no pull -25.00 (published -4.50)." in found.sentence
    assert found.figure().axes


@pytest.mark.slow
def test_ablations_run_as_one_comparison(tmp_path: Path, method: str) -> None:
    """On tiny tasks; options that do nothing change nothing."""
    found = ablate(
        method,
        benchmark="cl_zoo.testing:load_tiny",
        backbone="cl_zoo.testing:load_tiny_backbone",
        device="cpu",
        limit=4,
        processes=1,
        out=tmp_path / "runs",
    )

    assert [(row["runs"], row["change"]) for row in found.rows] == [(1, 0.0)] * 4
    assert len(list((tmp_path / "runs").glob("*-s0-*"))) == 3
