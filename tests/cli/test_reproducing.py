"""`cl-zoo reproduce`: what can be run, what is missing, what it costs, and the verdicts of a table that is run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from squares import squares

from cl_zoo.planning.reproducing import read_target, settable
from cl_zoo.published import published, read_published
from cl_zoo.recipe.keys import read_recipe

MINI: dict[str, Any] = {
    "about": "nobody's table on mini.",
    "source": {"paper": "Somebody 2025", "table": "1"},
    "benchmark": "mini",
    "backbone": "mini",
    "order": "RA",
    "tasks": {"Ren.": "rendition", "Ch.": "chart"},
    "setting": {"recipe": "paper", "source": "section 5"},
    "rows": [
        {"method": "Base", "ours": "zeroshot", "protocol": "none", "cells": [20.0, 40.0], "mean": 30.0},
        {"method": "Dodo", "metric": "Last", "mean": 10.0},
    ],
}


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Writes a table with some keys changed."""

    def write(**change: Any) -> Path:
        file = tmp_path / "table.yaml"
        file.write_text(yaml.safe_dump({**MINI, **change}, sort_keys=False))
        return file

    return write


def test_without_a_target_it_lists_all_and_says_why_some_cannot_be_run(cli: Callable[..., Any]):
    ended = cli("reproduce")

    assert ended.code == 0
    lines = {line.split()[0]: line for line in ended.out.splitlines()}
    assert set(lines) == set(published())
    assert lines["hide-table4"].split()[1:] == ["ucit", "hide"]
    assert "cannot be run here: there is no backbone here that is its Vicuna 7B" in lines["coin-history"]


@pytest.mark.parametrize("name", settable())
def test_every_target_names_methods_orders_and_a_recipe_that_are_here(name: str):
    target = read_target(name)

    assert [one for methods, _ in target.groups for one in methods] == list(target.methods)
    assert all("adapter.rank" in recipe for _, recipe in target.groups)
    assert set(target.paper.orders) >= {target.paper.order}


def test_table_4_is_one_method_in_three_orders():
    assert (read_target("hide-table4").methods, read_published("hide-table4").orders) == (
        ("hide",),
        ("RAVICF", "AIRFCV", "IFRCAV"),
    )


def test_methods_of_a_suite_have_recipes_of_their_own_and_others_share_one():
    ((methods, recipe),) = read_target("mcitlib-issue6").groups
    ((together, shared),) = read_target("hide-table1", "ewc,hide").groups

    assert (methods, recipe["adapter.rank"], recipe["global_batch"]) == (["finetune"], 16, 64)
    assert (together, shared) == (["ewc", "hide"], read_recipe("paper"))


def test_what_is_missing_is_named_with_its_cost_and_nothing_is_run(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "data").mkdir()

    ended = cli("reproduce", "hide-table4", "--data", tmp_path / "data", "--out", tmp_path / "runs")
    values = cli("reproduce", "hide-table4", "--data", tmp_path / "data", "--dry-run", "--json")

    assert (ended.code, values.code) == (2, 0)
    data, weights = [line for line in ended.out.splitlines() if line.startswith("missing: ")]
    assert "14 of 14 files of ucit are not in" in data
    assert "hf download llava-hf/llava-1.5-7b-hf" in weights
    assert re.search(r"^  steps +8,913$", ended.out, re.M)
    assert "this for each of 3 orders" in ended.out
    assert not (tmp_path / "runs").exists()
    told = json.loads(values.out)
    assert len(told["missing"]) == 2
    assert told["forecast"][0]["runs"][0]["method"] == "hide"


def test_a_table_of_ones_own_is_run_and_each_of_its_figures_gets_a_verdict(
    cli: Callable[..., Any], table: Callable[..., Path], tmp_path: Path
):
    ended = cli("reproduce", table(), "--limit", 4, "--out", tmp_path / "runs")

    assert ended.code == 1
    assert "Beside " in ended.out
    base, dodo = [line for line in ended.out.splitlines() if line.startswith("not comparable: ")]
    assert base.startswith("not comparable: zeroshot, Last of Base: these runs have 4 samples a split")
    assert dodo == "not comparable: Last of Dodo: no method here is the same"


@pytest.mark.parametrize(("tolerance", "code", "word"), [(100, 0, "reached"), (0, 1, "not reached")])
def test_it_ends_with_0_where_all_that_can_be_run_here_is_reached(
    cli: Callable[..., Any],
    table: Callable[..., Path],
    tmp_path: Path,
    tolerance: int,
    code: int,
    word: str,
):
    """A row of a method that nobody here has says nothing of ours; no answer to the squares is worth 99.99 points."""
    benchmark = squares(tmp_path / "squares")
    of_squares = {
        "benchmark": str(benchmark),
        "order": "CSD",
        "tasks": {"C": "colour", "S": "side", "D": "description"},
    }
    base, dodo = MINI["rows"]
    file = table(**of_squares, rows=[{**base, "cells": [99.99, 99.99, 99.99], "mean": 99.99}, dodo])

    ended = cli("reproduce", file, "--tolerance", tolerance, "--out", tmp_path / "runs")

    assert ended.code == code, ended.out + ended.err
    assert f"\n{word}: zeroshot, Last of Base: " in ended.out
    assert "\nnot comparable: Last of Dodo: no method here is the same\n" in ended.out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"setting": None}, "cannot be run here: how it was trained is not known"),
        ({"backbone": "eagle-7b"}, "cannot be run here: there is no backbone here that is its eagle-7b"),
        ({"rows": [{"method": "Dodo", "mean": 1.0}]}, "cannot be run here: none of its methods is here"),
        ({"setting": {"source": "somewhere"}}, "its setting names a recipe or a suite, one of them"),
    ],
)
def test_a_table_that_cannot_be_run_is_one_sentence(
    cli: Callable[..., Any], table: Callable[..., Path], change: dict[str, Any], says: str
):
    ended = cli("reproduce", table(**change))

    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert says in line


def test_a_method_that_the_table_does_not_have_is_refused(cli: Callable[..., Any]):
    ended = cli("reproduce", "hide-table4", "--methods", "hidee")

    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "hide-table4: has no row of hidee; did you mean 'hide'?" in ended.err
