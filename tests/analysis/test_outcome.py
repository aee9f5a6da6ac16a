"""An analysis says, writes and draws what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cl_zoo.analysis.outcome import Outcome
from cl_zoo.cli.analyzing import telling
from cl_zoo.errors import OptionError
from cl_zoo.report.figures import new_axes


def outcome() -> Outcome:
    def draw():
        axes = new_axes(2, 2)
        axes.plot([0, 1], [0, 1])
        return axes

    rows = [{"task": "chart", "score": 25.0}, {"task": "icon", "score": 50.0, "seed": 1}]
    return Outcome("scores", "icon is higher", rows, draw, text="a table\n")


def test_an_outcome_is_told_written_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    telling(str(tmp_path / "rows.csv"), str(tmp_path / "figure.svg"), as_json=False)(outcome())

    assert capsys.readouterr().out == "icon is higher\n\na table\n"
    assert (tmp_path / "rows.csv").read_text() == "task,score,seed\nchart,25.0,\nicon,50.0,1\n"
    assert "<svg" in (tmp_path / "figure.svg").read_text()


def test_as_json_there_is_nothing_else_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    telling(None, None, as_json=True)(outcome())

    told = json.loads(capsys.readouterr().out)
    assert told == {"analysis": "scores", "sentence": "icon is higher", "rows": list(outcome().rows)}


@pytest.mark.parametrize(
    ("csv", "figure", "says"),
    [
        ("missing/rows.csv", None, "--csv .*there is no folder"),
        (None, "figure.pdf", "end the name in one of them"),
        (None, "missing/figure.png", "--figure .*there is no folder"),
    ],
)
def test_files_that_cannot_be_written_are_found_before_anything_is_computed(
    tmp_path: Path, csv: str | None, figure: str | None, says: str
) -> None:
    places = [None if one is None else str(tmp_path / one) for one in (csv, figure)]

    with pytest.raises(OptionError, match=says):
        telling(*places, as_json=False)
