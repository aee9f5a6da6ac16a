"""What `cl-zoo show` says of recipes, benchmarks and backbones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cl_zoo.cli.catalogue import aligned
from cl_zoo.cli.keys import MODELS
from cl_zoo.cli.showing import show
from cl_zoo.recipe.keys import flatten
from cl_zoo.recipe.recipe import Recipe
from cl_zoo.scoring.rules import RULES

DESCRIPTION = """
name: birds
version: "3"
methods: [finetune]
backbone: llava-1.5-7b
recipe: {epochs: 2, lr: {adapters: 1.0e-4}}
tasks:
  - name: species
    letter: S
    instruction: Answer with one word.
    metric: exact
    max_new_tokens: 16
    train: {files: [species/train.json], format: llava, count: 23998}
    test: {files: [species/test.json], format: question}
"""


def test_show_recipe_prints_key_value_and_source(cli: Callable[..., Any]) -> None:
    shown = cli("show", "recipe", "paper").out.splitlines()

    assert shown[0].startswith("paper: the UCIT recipe")
    header, *rows = shown[2:]
    assert header.split() == ["key", "value", "source"]
    keys = {row.split()[0] for row in rows}
    assert keys > set(flatten(Recipe(max_tokens=1).model_dump()))
    assert {"lr.l2p.prompts", "options.olora.strength"} < keys
    (rank,) = (row for row in rows if row.startswith("adapter.rank"))
    assert rank.split()[1] == "8"
    assert rank.endswith("HiDe-LLaVA paper, section 5.1, implementation details")
    assert len({row.index(row.split(maxsplit=1)[1]) for row in rows}) == 1


def test_show_recipe_lists_the_named_ones(cli: Callable[..., Any]) -> None:
    shown = cli("show", "recipe").out.splitlines()

    assert [line.split()[0] for line in shown] == ["coin", "mcitlib", "paper", "released"]
    assert all(line.endswith(".") for line in shown)


def test_show_takes_a_method_with_and_without_its_kind(cli: Callable[..., Any]) -> None:
    assert cli("show", "method", "ewc").out == cli("show", "ewc").out != ""


def test_show_benchmark_needs_no_data_where_a_file_describes_it(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "birds.yaml"
    file.write_text(DESCRIPTION)
    shown = cli("show", "benchmark", file).out

    assert "S  species  23,998  –     exact   16      species/train.json, species/test.json" in shown
    assert "version 3, 1 tasks" in shown
    assert "methods   finetune\nbackbone  llava-1.5-7b\nrecipe    epochs=2, lr.adapters=0.0001" in shown


def test_show_benchmark_counts_what_is_made_on_the_spot(cli: Callable[..., Any]) -> None:
    shown = cli("show", "benchmark", "cl_zoo.testing:load_tiny").out

    assert "C  colour  12     6     exact   4" in shown


def test_show_backbone_says_what_its_loader_takes(cli: Callable[..., Any]) -> None:
    shown = cli("show", "backbone", "llava").out

    assert "LlavaForConditionalGeneration" in shown
    assert "loader    cl_zoo.backbones.llava:load" in shown
    assert "Raises" not in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("recip", "paper"), "show recip paper: 'recip' is no kind; did you mean 'recipe'?"),
        (("recipe", "papr"), "no recipe is called 'papr'; did you mean 'paper'?"),
        (("benchmark", "mni"), "no benchmark is called 'mni'; did you mean 'mini'?"),
        (("backbone", "lava"), "no backbone is called 'lava'; did you mean 'llava'?"),
        (("hid",), "no method is called 'hid'; did you mean 'hide'?"),
    ],
)
def test_what_is_not_there_is_answered_with_the_nearest(
    cli: Callable[..., Any], arguments: tuple[str, ...], sentence: str
) -> None:
    ended = cli("show", *arguments)

    assert (ended.code, ended.out) == (2, "")
    assert sentence in ended.err


def test_columns_are_as_wide_as_their_longest_entry() -> None:
    assert (
        aligned([("a", "bbb", "c"), ("aa", "b", "long"), ("", "b", "")]) == "a   bbb  c\naa  b    long\n    b"
    )
    assert aligned([]) == ""


def test_what_a_benchmark_s_file_may_say_stands_in_show_and_in_the_page_on_data():
    """Every key, every format and every metric; a letter is one capital."""
    shown = show("benchmark", None)
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    metrics = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")

    for model in MODELS.values():
        for key in model.model_fields:
            assert re.search(rf"\b{key} ", shown), key
            assert f"`{key}`" in page, key
    for form in ("llava", "sharegpt", "question", "datasets", "coco", "textvqa", "gqa", "scienceqa"):
        assert f"`{form}`" in page
        assert form in shown
    for metric in RULES:
        assert re.search(rf"^ *(metric)? +{metric}  ", shown, re.MULTILINE), metric
        assert f"`{metric}`" in metrics, metric
    assert re.search(r"letter +needed +one capital", shown)
