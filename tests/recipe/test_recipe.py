"""The recipe: layers of dotted keys, bounds, files, and what a wrong key or value is answered with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cl_zoo.contract.plugins import Plugins
from cl_zoo.errors import OptionError
from cl_zoo.names import Choice
from cl_zoo.recipe.keys import flatten, parse_pairs, read_recipe, recipe_settings, recipes
from cl_zoo.recipe.recipe import Recipe, build_recipe

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


def test_a_methods_own_rate_goes_before_the_parts_and_that_before_the_adapters():
    recipe = build_recipe({"lr": {"adapters": 1e-3, "prompts": 0.03, "l2p": {"prompts": 0.5}}})

    assert recipe.lr == {"adapters": 1e-3, "projector": 2e-5, "prompts": 0.03, "l2p.prompts": 0.5}
    assert recipe.rate("prompts", "l2p") == 0.5
    assert recipe.rate("prompts", "modalprompt") == 0.03
    assert recipe.rate("keys", "l2p") == 1e-3
    assert recipe.rate("prompts") == 0.03


def test_who_sets_the_rate_of_a_part_means_it_for_all_methods():
    """`--recipe paper --set lr.prompts=0.1` also replaces what the recipe says of L2P's prompts; the rate of adapters is no part's."""
    file = {"lr.l2p.prompts": 0.5, "lr.l2p.keys": 0.2, "lr.prompts": 0.3}

    asked = build_recipe(file, {"lr.prompts": 0.1, "lr.adapters": 1e-3})
    assert (asked.rate("prompts", "l2p"), asked.rate("keys", "l2p")) == (0.1, 0.2)
    assert build_recipe(file, {"lr.l2p.prompts": 0.1}).rate("prompts", "l2p") == 0.1
    assert build_recipe({"lr.prompts": 0.1, "lr.l2p.prompts": 0.5}).rate("prompts", "l2p") == 0.5


def test_a_method_in_a_file_may_have_a_rate_and_options_of_its_own():
    recipe = build_recipe({"lr.my.file.py:Mine.keys": 0.5, "options.my.file.py:Mine.strength": 2})

    assert recipe.rate("keys", "my.file.py:Mine") == 0.5
    assert recipe.options == {"my.file.py:Mine": {"strength": 2}}
    assert build_recipe(flatten(recipe.model_dump(mode="json"))) == recipe


def test_like_names_of_two_methods_are_not_taken_for_one():
    recipe = build_recipe({"lr.moelora.adapters": 0.1, "lr.olora.adapters": 0.2, "lr.l2p.keys": 0.3})

    assert [recipe.rate("adapters", name) for name in ("moelora", "olora", "hide")] == [0.1, 0.2, 2e-4]


def test_a_recipe_without_options_of_methods_is_written_without_the_word():
    """What is hashed into a run's id does not change because methods' options may be named."""
    assert "options" not in build_recipe({"epochs": 2}).model_dump(mode="json")
    written = build_recipe({"options": {"olora": {"strength": 0.05, "trains": "new"}}}).model_dump(
        mode="json"
    )
    assert written["options"] == {"olora": {"strength": 0.05, "trains": "new"}}
    later = build_recipe(
        {"options.olora.strength": 0.05}, {"options.olora.strength": 0.1, "options.ewc.samples": 3}
    )
    assert later.options == {"olora": {"strength": 0.1}, "ewc": {"samples": 3}}


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
        ({"lr.l2p.prompts": 1, "lr.l2p.prompt": 1}, r"recipe has no key 'lr.l2p.prompt'; .*'lr.l2p.prompts'"),
        ({"lr.l2p.keys": 1, "lr.key": 1}, r"recipe has no key 'lr.key'"),
        (
            {"lr.modalprompt.keys": 1, "lr.modalpromt.keys": 2},
            r"'lr.modalpromt.keys'; .*'lr.modalprompt.keys'",
        ),
        ({"lr.olora.adapter": 1}, r"recipe has no key 'lr.olora.adapter'"),
        ({"lr.l2p.keys": 1, "lr.l2p": 2}, r"recipe has no key 'lr.l2p'"),
        ({"lr.l2p.keys": -1}, r"recipe.lr.l2p.keys: .*greater than or equal to 0, got -1"),
        ({"options.olora": 1}, r"recipe has no key 'options.olora'"),
        ({"options": 1}, r"recipe.options: .*dictionary, got 1"),
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
        (None, "no such file or directory.*; pass a readable YAML file"),
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


# Single tasks


def test_a_task_may_have_a_batch_and_epochs_of_its_own():
    recipe = build_recipe({"global_batch": 64, "tasks": {"Med": {"epochs": 3}, "RS": {"global_batch": 16}}})
    med, rs, other = (recipe.for_task(name) for name in ("Med", "RS", "Sci"))

    assert [(one.epochs, one.global_batch) for one in (med, rs, other)] == [(3, 64), (1, 16), (1, 64)]
    assert med == build_recipe({"global_batch": 64, "epochs": 3})
    assert build_recipe({"tasks.Med.epochs": 3}).for_task("Med").epochs == 3


def test_who_sets_a_value_means_it_for_all_tasks():
    """`--recipe coin --set global_batch=8` trains every task with 8."""
    file = {"global_batch": 384, "tasks.GQA.global_batch": 96, "tasks.GQA.epochs": 2}
    assert build_recipe(file).for_task("GQA").global_batch == 96

    asked = build_recipe(file, {"global_batch": 8}).for_task("GQA")
    assert (asked.global_batch, asked.epochs) == (8, 2)
    assert build_recipe(file, {"tasks.GQA.global_batch": 4}).for_task("GQA").global_batch == 4


def test_a_recipe_for_all_tasks_alike_is_written_without_the_word():
    """What is hashed into a run's id does not change because single tasks may be named."""
    assert "tasks" not in Recipe().model_dump(mode="json")
    assert build_recipe({"tasks.Med.epochs": 3}).model_dump(mode="json")["tasks"] == {
        "Med": {"epochs": 3, "global_batch": None}
    }


def test_the_name_of_a_task_may_have_dots():
    nested = {"tasks": {"OCR v1.5": {"epochs": 2}, "v2.": {"global_batch": 7}}}
    recipe = build_recipe(nested, {"tasks.OCR v1.5.global_batch": 5})

    assert recipe.for_task("OCR v1.5") == build_recipe({"epochs": 2, "global_batch": 5})
    assert recipe.for_task("v2.").global_batch == 7
    assert recipe.tasks.keys() == {"OCR v1.5", "v2."}
    assert build_recipe(flatten(recipe.model_dump(mode="json"))) == recipe


def test_a_bound_of_prompts_stands_in_a_recipe_only_where_it_is_set():
    """What is hashed into a run's id does not change because prompts may be bounded."""
    assert "max_tokens" not in build_recipe({"epochs": 2, "max_tokens": None}).model_dump(mode="json")
    assert build_recipe({"max_tokens": 2048}).model_dump(mode="json")["max_tokens"] == 2048
    assert build_recipe(read_recipe("paper"), {"max_tokens": None}).max_tokens is None
    assert "static_cache" not in build_recipe({"static_cache": False}).model_dump(mode="json")
    assert build_recipe({"static_cache": True}).model_dump(mode="json")["static_cache"] is True
    assert "quantization" not in build_recipe({"quantization": "none"}).model_dump(mode="json")
    assert build_recipe({"quantization": "nf4"}).model_dump(mode="json")["quantization"] == "nf4"
    with pytest.raises(OptionError, match=r"recipe\.max_tokens: .*greater than or equal to 1, got 0"):
        build_recipe({"max_tokens": 0})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"tasks.epochs": 1}, r"recipe has no key 'tasks.epochs'"),
        ({"tasks.Med.epoch": 1}, r"recipe has no key 'tasks.Med.epoch'; did you mean 'tasks.Med.epochs'\?"),
        ({"tasks.Med": 1}, r"recipe has no key 'tasks.Med'"),
        ({"tasks": 1}, r"recipe.tasks: .*dictionary, got 1"),
        ({"tasks.Med.epochs": 0}, r"recipe.tasks.Med.epochs: .*greater than or equal to 1, got 0"),
        ({"tasks.Med.lr.adapters": 1}, r"recipe has no key 'tasks.Med.lr.adapters'"),
    ],
)
def test_a_wrong_value_of_a_task_is_one_sentence(values: dict[str, Any], sentence: str):
    with pytest.raises(OptionError, match=sentence):
        build_recipe(values)


def test_a_task_that_the_benchmark_does_not_have_is_named():
    recipe = build_recipe({"tasks.TextVQAs.epochs": 3})

    recipe.check_tasks(["TextVQAs", "GQA"], "mine")
    with pytest.raises(
        OptionError, match=r"recipe.tasks names 'TextVQAs', which mine does not have; did you mean 'TextVQA'"
    ):
        recipe.check_tasks(["TextVQA", "GQA"], "mine")


# Recipes with a name


def test_every_value_of_a_named_recipe_has_a_source():
    """Nothing is left to a default, so that nothing stands without a source."""
    for name, about in recipes().items():
        settings = recipe_settings(name)
        of_all = {one.key for one in settings if not re.match(r"tasks\.|options\.|lr\.\w+\.", one.key)}

        assert of_all == {*flatten(Recipe().model_dump()), "max_tokens"}
        assert all(len(setting.source) > 20 for setting in settings), name
        assert about.endswith(".")
        build_recipe(read_recipe(name))


def test_the_named_recipes_hold_the_numbers_of_their_sources():
    """Steps per task of UCIT at 96 are those counted by hand: 250 of 23,998 samples, 417 of 40,000."""
    paper, released, mcitlib, coin = (
        build_recipe(read_recipe(n)) for n in ("paper", "released", "mcitlib", "coin")
    )

    assert [one.global_batch for one in (paper, released, mcitlib)] == [24, 96, 64]
    assert [one.adapter.rank for one in (paper, released, mcitlib, coin)] == [8, 48 // 6, 16, 128]
    assert {one.adapter.scale for one in (paper, released, mcitlib, coin)} == {2.0}
    assert [one.clip for one in (paper, released, mcitlib, coin)] == ["none", "none", "none", "norm"]
    assert [-(-size // released.global_batch) for size in (23_998, 40_000)] == [250, 417]
    # per device × 8 GPUs × 8 accumulated
    assert {name: coin.for_task(name).global_batch // 64 for name in coin.tasks} == {
        "ScienceQA": 14,
        "TextVQA": 14,
        "ImageNet": 16,
        "GQA": 6,
        "VizWiz": 14,
        "Grounding": 6,
        "VQAv2": 8,
        "OCRVQA": 10,
    }
    for one in (paper, released, mcitlib, coin):
        assert one.lr["adapters"] == 2e-4
        assert (one.epochs, one.warmup, one.weight_decay) == (1, 0.03, 0.0)
        assert one.max_tokens == 2048
        assert (one.precision, one.checkpointing, one.adapter.dropout) == ("bf16", True, 0.05)


def test_the_file_that_coin_gives_deepspeed_leaves_neither_cosine_nor_a_rate_of_the_projector():
    settings = {name: build_recipe(read_recipe(name)) for name in ("paper", "released", "mcitlib", "coin")}

    assert {name: (one.lr["projector"], one.schedule) for name, one in settings.items()} == {
        "paper": (2e-5, "cosine"),
        "released": (2e-5, "cosine"),
        "mcitlib": (2e-5, "cosine"),
        "coin": (2e-4, "constant"),
    }


def test_named_recipes_have_the_rates_of_the_authors_of_prompts_and_keys():
    """L2P's 0.03 is for a batch of 256: 0.03 · 96 / 256 = 0.01125."""
    settings = {name: build_recipe(read_recipe(name)) for name in ("paper", "released", "mcitlib", "coin")}

    for part in ("prompts", "keys"):
        assert {name: one.rate(part, "l2p") for name, one in settings.items()} == {
            "paper": 0.0028125,
            "released": 0.01125,
            "mcitlib": 0.0075,
            "coin": 0.045,
        }
        assert {one.rate(part, "modalprompt") for one in settings.values()} == {2e-4}


def test_the_options_in_named_recipes_are_those_of_installed_methods():
    for name in recipes():
        recipe = build_recipe(read_recipe(name))
        for method, options in recipe.options.items():
            filled = Plugins([Choice(method)], recipe.options).options()[0]["options"]
            assert {key: filled[key] for key in options} == options, name
        assert recipe.options["olora"]["strength"] == 0.05


def test_a_file_may_name_its_sources(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "about: mine\nepochs: {value: 2, source: our paper}\nadapter:\n  rank: {value: 4}\nlr.adapters: 0.1\n"
    )

    assert recipe_settings(str(file)) == [
        ("epochs", 2, "our paper"),
        ("adapter.rank", 4, ""),
        ("lr.adapters", 0.1, ""),
    ]
    assert build_recipe(read_recipe(file)).adapter.rank == 4


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with pytest.raises(
        OptionError,
        match=r"no recipe is called 'relased'; did you mean 'released'\? known: coin, mcitlib, paper, released; or pass a YAML file",
    ):
        read_recipe("relased")
