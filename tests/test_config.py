"""The recipe: layers of dotted keys, bounds, files, and what a wrong key or value is answered with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cl_zoo.config import Recipe, build_recipe, flatten, parse_pairs, read_recipe
from cl_zoo.errors import OptionError

KEY = st.from_regex(r"[a-z]{1,6}", fullmatch=True)
NESTED = st.recursive(
    st.integers() | st.booleans() | st.text(max_size=5),
    lambda inner: st.dictionaries(KEY, inner, min_size=1, max_size=3),
    max_leaves=8,
)


# Layers


def test_the_defaults_are_the_ucit_recipe():
    recipe = Recipe()

    assert (recipe.epochs, recipe.global_batch, recipe.schedule, recipe.warmup) == (1, 24, "cosine", 0.03)
    assert recipe.lr == {"adapters": 2e-4, "projector": 2e-5}
    assert (recipe.adapter.rank, recipe.adapter.scale) == (8, 2.0)


def test_later_layers_replace_earlier_ones_key_by_key():
    recipe = build_recipe({"epochs": 2, "adapter": {"rank": 4}}, {"adapter.rank": 16, "lr.projector": 0})

    assert (recipe.epochs, recipe.adapter.rank, recipe.adapter.scale) == (2, 16, 2.0)
    assert recipe.lr == {"adapters": 2e-4, "projector": 0.0}


def test_a_part_learns_at_its_own_rate_or_at_that_of_the_adapters():
    recipe = build_recipe({"lr.adapters": 1e-3, "lr.prompts": 0.03})

    assert recipe.rate("prompts") == 0.03
    assert recipe.rate("routers") == 1e-3


def test_a_recipe_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().epochs = 3  # type: ignore[misc]


@given(st.dictionaries(KEY, NESTED, max_size=4))
def test_flattening_twice_changes_nothing(nested: dict[str, Any]):
    flat = flatten(nested)

    assert flatten(flat) == flat
    assert not any(isinstance(value, dict) for value in flat.values())


@given(st.integers(1, 9), st.integers(1, 512), st.floats(0, 0.5), st.floats(0, 1))
def test_a_recipe_survives_its_dotted_keys(epochs: int, batch: int, dropout: float, rate: float):
    recipe = build_recipe(
        {"epochs": epochs, "global_batch": batch, "adapter.dropout": dropout, "lr.keys": rate}
    )

    assert build_recipe(flatten(recipe.model_dump(mode="json"))) == recipe


# Wrong keys and values


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"epoch": 1},
            r"recipe has no key 'epoch'; did you mean 'epochs'\? known: adapter.dropout, .*, warmup",
        ),
        ({"adapter.rnk": 1}, r"recipe has no key 'adapter.rnk'; did you mean 'adapter.rank'\?"),
        ({"adapters.rank": 1}, r"recipe has no key 'adapters.rank'; did you mean 'adapter.rank'\?"),
        ({"lr.projecto": 1}, r"recipe has no key 'lr.projecto'; did you mean 'lr.projector'\?"),
        ({"lr.adapter": 1}, r"recipe has no key 'lr.adapter'; did you mean 'lr.adapters'\?"),
        ({"epochs.more": 1}, r"recipe has no key 'epochs.more'"),
        ({"epochs": 0}, r"recipe.epochs: .*greater than or equal to 1, got 0"),
        ({"epochs": "few"}, r"recipe.epochs: .*valid integer.*, got 'few'"),
        ({"global_batch": -3}, r"recipe.global_batch: .*got -3"),
        ({"adapter.rank": 0}, r"recipe.adapter.rank: .*got 0"),
        ({"adapter.dropout": 1.0}, r"recipe.adapter.dropout: .*less than 1, got 1.0"),
        ({"lr.adapters": -1e-4}, r"recipe.lr.adapters: .*greater than or equal to 0, got -0.0001"),
        ({"lr.adapters": float("inf")}, r"recipe.lr.adapters: .*finite number, got inf"),
        ({"lr": 0.1}, r"recipe.lr: .*dictionary, got 0.1"),
        ({"betas": [0.9, 1.0]}, r"recipe.betas.1: .*less than 1, got 1.0"),
        ({"schedule": "linear"}, r"recipe.schedule: .*'cosine' or 'constant', got 'linear'"),
        ({"clip": "value"}, r"recipe.clip: .*'none' or 'norm', got 'value'"),
        ({"precision": "fp16"}, r"recipe.precision: .*'fp32' or 'bf16', got 'fp16'"),
        ({"projector": True}, r"recipe.projector: .*'sequential' or 'frozen', got True"),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence_with_place_and_value(values: dict[str, Any], sentence: str):
    with pytest.raises(OptionError, match=sentence) as raised:
        build_recipe(values)

    assert "\n" not in str(raised.value)


# Files and flags


@pytest.mark.parametrize(
    "text",
    [
        "epochs: 3\nlr:\n  adapters: 2e-4\nadapter: {rank: 4}\n",
        "epochs: 3\nlr.adapters: 2e-4\nadapter.rank: 4\n",
    ],
)
def test_a_recipe_file_is_nested_or_dotted(tmp_path: Path, text: str):
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = build_recipe(read_recipe(tmp_path / "recipe.yaml"))

    assert (recipe.epochs, recipe.lr["adapters"], recipe.adapter.rank) == (3, 2e-4, 4)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "No such file or directory.*; pass a readable YAML file"),
        (b"epochs: [1\n", "pass a readable YAML file"),
        (b"\xff\xfe\x00", "pass a readable YAML file"),
        (b"", "holds no mapping of recipe keys"),
        (b"- epochs\n", "holds no mapping of recipe keys"),
        (b"!!python/object/apply:os.getcwd []\n", "pass a readable YAML file"),
    ],
)
def test_an_unusable_recipe_file_is_named(tmp_path: Path, content: bytes | None, sentence: str):
    file = tmp_path / "recipe.yaml"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(OptionError, match=rf"--recipe {file}: .*{sentence}") as raised:
        read_recipe(file)
    assert "\n" not in str(raised.value)


def test_values_of_flags_get_their_types():
    pairs = [
        "epochs=3",
        "warmup=0.1",
        "lr.adapters=2e-4",
        "checkpointing=true",
        "schedule=constant",
        "betas=[0.8, 0.9]",
    ]

    assert parse_pairs(pairs, "--set") == {
        "epochs": 3,
        "warmup": 0.1,
        "lr.adapters": 2e-4,
        "checkpointing": True,
        "schedule": "constant",
        "betas": [0.8, 0.9],
    }


def test_text_that_is_no_yaml_stays_text():
    assert parse_pairs(["path=a: b: c", "odd=[1", "sum=1=2"], "--set") == {
        "path": "a: b: c",
        "odd": "[1",
        "sum": "1=2",
    }


@pytest.mark.parametrize("pair", ["epochs", "=3", " =3", ""])
def test_a_pair_without_key_or_value_is_shown(pair: str):
    with pytest.raises(OptionError, match=r"--set .*: write it as key=value"):
        parse_pairs([pair], "--set")
