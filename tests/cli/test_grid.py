"""The grid on the command line: the plan is printed and nothing is run; what cannot be meant is refused before anything starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cl_zoo.cli.flags import vary
from cl_zoo.errors import OptionError

TINY = ("--benchmark", "cl_zoo.testing:load_tiny", "--device", "cpu")
BACKBONE = ("--backbone", "cl_zoo.testing:load_tiny_backbone")


def test_values_to_vary_have_the_types_that_they_are_written_in() -> None:
    found = vary(["hide.coefficient=0.1,1e-3,2", "hide.modality=both,text", "mine.py:Mine.sizes=[1,2],[3]"])

    assert found == {
        "hide": {"coefficient": [0.1, 1e-3, 2], "modality": ["both", "text"]},
        "mine.py:Mine": {"sizes": [[1, 2], [3]]},
    }


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        (["coefficient=1"], "--vary coefficient=1: write it as METHOD.option=value,value"),
        (["hide.coefficient"], "--vary hide.coefficient: write it as"),
        (["hide.alpha=1", "hide.alpha=2"], "--vary hide.alpha is given twice"),
    ],
)
def test_what_is_no_list_of_values_is_refused(pairs: list[str], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        vary(pairs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--orders", 2, "--order", "SC"), "--order SC and --orders 2 are both given; use one of them"),
        (("--orders", 3), "--orders 3: the 2 tasks of tiny have 1 to 2 orders"),
        (("--order", "SC", "--order", "side,colour"), "--order SC stands twice among the orders"),
        (("--vary", "lwf.strength=1"), "options of 'lwf' are varied, which is in no stack"),
    ],
)
def test_a_grid_that_cannot_be_meant_starts_nothing(
    cli: Callable[..., Any], tmp_path: Path, arguments: tuple[Any, ...], said: str
) -> None:
    ended = cli("compare", "--methods", "finetune", *TINY, *arguments, "--out", tmp_path / "runs")

    assert ended.code == 2
    assert said in ended.err
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_prints_the_plan_and_runs_nothing(cli: Callable[..., Any], tmp_path: Path) -> None:
    methods = ("--methods", "zeroshot,hide", "--vary", "hide.coefficient=0.3,0.5", "--jobs", 1)
    ended = cli(
        *("compare", *TINY, *BACKBONE, *methods, "--orders", 2, "--seeds", 2, "--out", tmp_path),
        *("--dry-run", "--json"),
    )
    plan = json.loads(ended.out)

    assert ended.code == 0
    assert plan["asked"] == 12
    assert plan["orders"] == ["CS", "SC"]
    assert len(plan["runs"]) == 9, "zeroshot is one run for both orders and seeds"
    assert sum(one["learns"] for one in plan["runs"] if one["label"] != "zeroshot") == 4
    assert plan["forecast"]["seconds"] is None
    assert plan["forecast"]["processes"] == 1
    assert not list(tmp_path.glob("tiny-*"))
