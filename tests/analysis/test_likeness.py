"""How alike tasks are represented in a backbone that learnt none of them, and along finished runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kept_runs import write_run
from typer.testing import CliRunner

from cl_zoo.analysis.likeness import by_layer, of_backbone, of_runs
from cl_zoo.analysis.outcome import Outcome
from cl_zoo.cli.main import app
from cl_zoo.errors import OptionError, RunError
from cl_zoo.names import Choice

TINY = "cl_zoo.testing:load_tiny"
CKA = [{}, {"cka/0/render~chart": 0.9, "cka/1/render~chart": 0.4, "cka/shuffled/1/render~chart": 0.3}]


def tiny(order: str | None = None, **options: Any) -> Outcome:
    return of_backbone(Choice("cka", {"samples": 8, **options}), benchmark=TINY, order=order, device="cpu")


def test_a_task_is_its_own_like_in_every_layer_and_shuffled_samples_are_less() -> None:
    """The same questions twice: CKA of equal features is 1."""
    rows = tiny("CC").rows

    assert [(row["pair"], row["layer"]) for row in rows] == [("colour~colour#2", layer) for layer in (0, 1)]
    assert [row["likeness"] for row in rows] == pytest.approx([1.0, 1.0])
    assert all(row["shuffled"] < 0.99 for row in rows)


def test_the_backbone_learns_nothing_on_the_way() -> None:
    """Two tasks are as alike whichever was looked at first."""
    there, back = tiny("CS"), tiny("SC")

    assert by_layer(there.rows) == pytest.approx(by_layer(back.rows))
    assert 0 < by_layer(there.rows)[0] < 1


def test_a_probe_without_shuffled_samples_has_no_baseline() -> None:
    found = tiny(permutations=0)

    assert {row["shuffled"] for row in found.rows} == {None}
    assert "shuffled" not in found.sentence


def test_one_task_has_no_pair() -> None:
    with pytest.raises(OptionError, match="at least two tasks"):
        tiny("C")


def test_what_runs_measured_is_told_by_run(tmp_path: Path) -> None:
    write_run(tmp_path, "ewc", measured=CKA, probes=("cka",))

    found = of_runs([tmp_path])

    assert [(row["model"], row["layer"], row["likeness"], row["shuffled"]) for row in found.rows] == [
        ("ewc", 0, 0.9, None),
        ("ewc", 1, 0.4, 0.3),
    ]
    assert found.sentence == (
        "Of 2 layers, counted from the bottom, one pair of tasks is least alike in layer 1 (0.400, 0.300 of shuffled samples)"
        " and most in layer 0 (0.900). The farthest from shuffled samples is layer 1, by +0.100."
    )
    assert [len(line.get_xdata()) for line in found.figure().axes[0].lines] == [2, 2, 1]


def test_runs_without_the_probe_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "ewc")

    with pytest.raises(RunError, match="with a --probe that does"):
        of_runs([tmp_path])


def test_the_command_looks_at_a_backbone_with_the_probe_of_its_name(tmp_path: Path) -> None:
    told = CliRunner().invoke(
        app, ["analyze", "cka", "--benchmark", TINY, "--samples", "8", "-o", "cka.kernel=rbf", "--json"]
    )
    strange = CliRunner().invoke(app, ["analyze", "cka", "--benchmark", TINY, "-o", "drift.samples=8"])

    assert told.exit_code == 0, told.output
    assert {row["pair"] for row in json.loads(told.stdout)["rows"]} == {"colour~side"}
    assert "options are given for 'drift'" in str(strange.exception)
