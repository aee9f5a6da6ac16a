"""Parameters on models of published size, against counts made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cl_zoo.engine.sizes import Size, sizes
from cl_zoo.errors import BackboneError, PluginError
from cl_zoo.names import parse_stack
from cl_zoo.planning.sizes import as_sheet, published, shapes
from cl_zoo.recipe.recipe import build_recipe

PER_RANK = 32 * (35_584 + 42_496)
"""Inputs and outputs of the seven linears of a layer of LLaVA-1.5-7B, over its 32 layers: parameters of a LoRA of rank 1."""
PROJECTOR = 1024 * 4096 + 4096 + 4096 * 4096 + 4096


def count(
    stack: str, rank: int = 8, tasks: int = 1, backbone: str = "llava-1.5-7b", **recipe: Any
) -> list[Size]:
    return sizes(parse_stack(stack), shapes(backbone), build_recipe({"adapter.rank": rank, **recipe}), tasks)


def test_the_projector_of_llava_has_20_979_712_parameters():
    assert (
        sum(weight.numel() for weight in shapes("llava-1.5-7b").projector.parameters())
        == PROJECTOR
        == 20_979_712
    )


@pytest.mark.parametrize("rank", [1, 8, 128])
def test_a_lora_on_all_linears_of_llava_has_2_498_560_parameters_per_rank(rank: int):
    (size,) = count("finetune", rank)

    assert size.trained == {"adapters": 2_498_560 * rank, "projector": PROJECTOR}
    assert size.inference == size.continuing == size.active == size.trained


def test_experts_on_llava_count_as_coin_counts_them():
    """Eight experts of rank 16, a router of 8 outputs on each of the 224 linears, and the projector: the paper's 350 M."""
    (size,) = count("moelora", 16, budget="published")

    assert size.trained == {"adapters": PER_RANK * 128, "routers": 32 * 35_584 * 8, "projector": PROJECTOR}
    assert sum(size.trained.values()) == 349_904_896
    assert (size.learning.experts, size.learning.rank, size.learning.update_rank) == (8, 16, 128)
    assert size.notes == ("parameters × 8.2", "8 experts of rank 16, update rank 128")


def test_branches_on_llava_count_as_branchlora_counts_them():
    """One A of rank 16, eight B of rank 16, one set of routers, and the projector: the paper's 222 M, 37 % fewer."""
    (size,) = count("branchlora", 16, budget="published")

    assert size.trained["adapters"] == 32 * 16 * (35_584 + 8 * 42_496)
    assert size.trained["keys"] == 2 * 768
    assert sum(size.trained.values()) - size.trained["keys"] == 222_371_840
    assert (size.learning.experts, size.learning.rank, size.learning.update_rank) == (8, 16, 16)


def test_a_method_that_adds_an_expert_per_task_stores_one_more_each_time():
    found = count("olora", tasks=3)

    assert [size.inference["adapters"] for size in found] == [2_498_560 * 8 * n for n in (1, 2, 3)]
    assert [size.trained["adapters"] for size in found] == [2_498_560 * 8] * 3


def test_options_of_the_recipe_are_counted():
    """Twice the entries in the patch of Model Tailor, up to the rounding of each block of columns."""
    once, twice = (
        count("modeltailor", 1, **{"options.modeltailor.keep": keep})[0].inference["adapters"]
        for keep in (0.125, 0.25)
    )

    assert twice == 2 * once


@pytest.mark.parametrize(
    ("name", "projector"),
    [
        # layer norm, 4 · 1024 → 3584 → 3584
        ("internvl3-8b-hf", 2 * 4096 + 4096 * 3584 + 3584 + 3584 * 3584 + 3584),
        # RMS norm of 1280, 4 · 1280 → 5120 → 3584
        ("qwen2.5-vl-7b", 1280 + 5120 * 5120 + 5120 + 5120 * 3584 + 3584),
        # 1152 → 3584 → 3584
        ("llava-onevision-qwen2-7b", 1152 * 3584 + 3584 + 3584 * 3584 + 3584),
    ],
)
def test_a_lora_on_the_7b_qwen_decoder_of_other_families_is_counted(name: str, projector: int):
    """28 layers of q, o (3584 → 3584), k, v (3584 → 512), gate, up (3584 → 18944) and down."""
    (size,) = count("finetune", 1, backbone=name)

    inputs, outputs = 6 * 3584 + 18944, 2 * 3584 + 2 * 512 + 2 * 18944 + 3584
    assert size.trained == {"adapters": 28 * (inputs + outputs), "projector": projector}


@pytest.mark.parametrize(
    ("name", "layers", "sides", "projector"),
    [
        # layer norm of 1152, 4 · 1152 → 4608 → 4096; q, k, v, o, gate, up, down
        (
            "qwen3-vl-8b",
            36,
            [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), *[(4096, 12288)] * 2, (12288, 4096)],
            2 * 1152 + 4608 * 4608 + 4608 + 4608 * 4096 + 4096,
        ),
        # 9 · 1152 → 2048 without a bias
        ("smolvlm2-2.2b", 24, [*[(2048, 2048)] * 4, *[(2048, 8192)] * 2, (8192, 2048)], 9 * 1152 * 2048),
    ],
)
def test_a_lora_on_the_decoders_of_the_newer_families_is_counted(
    name: str, layers: int, sides: list[tuple[int, int]], projector: int
):
    (size,) = count("finetune", 1, backbone=name)

    assert size.trained == {"adapters": layers * sum(map(sum, sides)), "projector": projector}


@pytest.mark.parametrize(
    ("name", "layers", "inner", "projector"),
    [
        # 1024 → 4096 → 4096
        ("llava-v1.6-mistral-7b", 32, 14336, 1024 * 4096 + 4096 + 4096 * 4096 + 4096),
        # layer norm, 4 · 1024 → 4096 → 4096
        ("internvl3.5-8b", 36, 12288, 2 * 4096 + 2 * (4096 * 4096 + 4096)),
    ],
)
def test_a_lora_on_a_decoder_with_eight_heads_for_keys_is_counted(
    name: str, layers: int, inner: int, projector: int
):
    """Layers of q, o (4096 → 4096), k, v (4096 → 1024), gate, up (4096 → inner) and down."""
    (size,) = count("finetune", 1, backbone=name)

    inputs, outputs = 6 * 4096 + inner, 2 * 4096 + 2 * 1024 + 2 * inner + 4096
    assert size.trained == {"adapters": layers * (inputs + outputs), "projector": projector}


def test_a_frozen_projector_is_not_counted():
    (size,) = count("finetune", projector="frozen")

    assert size.trained == {"adapters": 2_498_560 * 8}


def test_the_bounds_are_counted_too():
    assert count("zeroshot", tasks=3)[0].inference == {}
    assert len(count("multitask", tasks=3)) == 1


def test_a_folder_with_a_configuration_is_enough(tiny_folder: Path, tmp_path: Path):
    """The weights are not looked at: a copy of the configuration alone gives the counts of the model itself."""
    (tmp_path / "config.json").write_text((tiny_folder / "llava" / "config.json").read_text())

    (size,) = count("finetune", backbone=str(tmp_path))

    inputs, outputs = 6 * 32 + 48, 5 * 32 + 2 * 48
    assert size.trained["adapters"] == 2 * 8 * (inputs + outputs)


def test_the_count_is_that_of_the_ledger_of_a_run(run_tiny: Callable[..., Any], tiny_folder: Path):
    ran = run_tiny("hide").ledger
    counted = count("hide", tasks=2, backbone=str(tiny_folder / "llava"))[-1]

    assert ran["stored"]["inference"]["adapters"] == counted.inference["adapters"]
    assert ran["tasks"][-1]["trained"] == counted.trained


def test_an_unknown_model_is_named_with_those_that_are_known():
    assert {"internvl3-8b-hf", "llava-1.5-13b", "llava-1.5-7b", "qwen2.5-vl-7b"} <= {*published()}
    assert {
        "llava-v1.6-mistral-7b",
        "llava-onevision-qwen2-7b",
        "internvl3.5-8b",
        "qwen3-vl-8b",
        "smolvlm2-2.2b",
    } <= {*published()}
    with pytest.raises(
        BackboneError, match=r"'llava-1\.5-7'; did you mean 'llava-1\.5-7b'.*or pass a folder"
    ):
        shapes("llava-1.5-7")


def test_a_hook_that_reads_values_is_named(tmp_path: Path):
    (tmp_path / "reads.py").write_text(
        '"""Reads."""\nfrom cl_zoo import hookimpl\n\n\nclass Reads:\n    @hookimpl\n    def after_task(self, model):\n'
        "        return {'reads': float(next(iter(model.parameters())).sum())}\n"
    )
    with pytest.raises(
        PluginError, match=r"reads.py:Reads \(reads.py, line \d+, in \w+\): .*without values and data"
    ):
        count(f"{tmp_path / 'reads.py'}:Reads")


def test_the_command_prints_the_same_as_json_and_as_text(cli: Callable[..., Any]):
    asked = cli("ledger", "finetune", "--set", "adapter.rank=4", "--tasks", "2", "--json")
    printed = json.loads(asked.out)

    assert printed["rank"] == 4
    assert printed["tasks"][0]["trained"] == {
        "adapters": 9_994_240,
        "projector": PROJECTOR,
        "total": 9_994_240 + PROJECTOR,
    }
    assert "9,994,240" in cli("ledger", "finetune", "--set", "adapter.rank=4").out
    assert ["a", "1,000"] in [line.split() for line in as_sheet([Size({"a": 1000}, {}, {}, {})]).splitlines()]
    assert "3 experts of rank 3, update rank 3 (starved: below 4)" in cli("ledger", "branchlora").out


def test_all_methods_stand_side_by_side(cli: Callable[..., Any]):
    lines = {line.split()[0]: line for line in cli("ledger", "--tasks", "2").out.splitlines() if line.strip()}

    assert {"finetune", "moelora", "l2p", "modeltailor", "zeroshot"} <= lines.keys()
    assert lines["finetune"].split() == [
        "finetune",
        "1",
        "8",
        "8",
        "40,968,192",
        "1.00",
        "40,968,192",
        "40,968,192",
    ]
    assert lines["l2p"].split()[1:4] == ["–"] * 3
    assert "parameters × 0.011" in lines["l2p"]
    found = json.loads(cli("ledger", "--tasks", "1", "--budget", "published", "--json").out)
    times = {one["method"]: one["tasks"][0]["learning"]["times"] for one in found}
    assert times["finetune"] == 1
    assert times["moelora"] == pytest.approx(8 + 8 * 35_584 / (8 * 78_080))
