"""Forecasts: against the ledger of real runs, and against counts made by hand for models that are too large to run here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from sequences import PARTS, PLACES, reads_as

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.checkpoints import backbone_parts
from cl_zoo.errors import BackboneError, OptionError
from cl_zoo.features.shelves import STRIDE
from cl_zoo.names import parse_stack
from cl_zoo.nn.fourbit import FourBit
from cl_zoo.planning.forecast import outlook
from cl_zoo.planning.forecast.gpus import GPUS, find_gpu
from cl_zoo.planning.forecast.outlook import plan, totals
from cl_zoo.planning.forecast.planner import (
    ANSWER_BYTES,
    CLIP,
    OF_BANDWIDTH,
    Forecast,
    Planner,
    planned_backbone,
)
from cl_zoo.planning.forecast.weights import weights
from cl_zoo.planning.forecast.workload import Assumed, Look, TaskLoad, look
from cl_zoo.planning.sizes import shapes
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.runs.prepared import load_backbone
from cl_zoo.tasks import Sample

TINY = ("cl_zoo.testing:load_tiny", "cl_zoo.testing:load_tiny_backbone")
LAYERS = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)
"""Parameters of the decoder layers of LLaVA-1.5-7B: four square projections, three of the MLP, two norms."""
LORA, PROJECTOR = 8 * 2_498_560, 20_979_712


def birds(tmp_path: Path, count: str = ", count: 23998") -> str:
    """A benchmark that is described and has no data: two tasks, questions and captions."""
    task = "metric: {0}, letter: {1}, instruction: Say it., max_new_tokens: {2}, train: {{files: [a], format: llava{3}}}, test: {{files: [b], format: question{4}}}"
    test = count and ", count: 3000"
    lines = ["name: birds", 'version: "1"', "methods: [finetune]", "backbone: llava-1.5-7b", "tasks:"]
    lines += [f"  - {{name: A, {task.format('exact', 'A', 128, count, test)}}}"]
    lines += [f"  - {{name: B, {task.format('caption', 'B', 5, ', count: 40000', ', count: 3000')}}}"]
    file = tmp_path / "birds.yaml"
    file.write_text("\n".join(lines))
    return str(file)


@cache
def llava() -> Backbone:
    """Planning leaves a backbone as it is, so all tests share one."""
    return shapes("llava-1.5-7b")


def planner(**changes: Any) -> Planner:
    """LLaVA-1.5-7B on two tasks of round numbers."""
    stream = (
        TaskLoad("a", 1000, 100, 640.0, 10.0, 630.0, 1000, 100, 128),
        TaskLoad("b", 2001, 200, 600.0, 3.0, 620.0, 2001, 200, 2),
    )
    recipe = build_recipe({"precision": "bf16", **changes.pop("recipe", {})})
    settings = {"cells": "lower", "gpu": find_gpu("A100"), "efficiency": 0.5, **changes}
    return Planner(llava(), stream, Look(576, 577, 577 * 1024), recipe, **settings)


def of(stack: str, **changes: Any) -> Forecast:
    return _of(stack, json.dumps(changes, sort_keys=True))


@cache
def _of(stack: str, changes: str) -> Forecast:
    return planner(**json.loads(changes)).forecast(parse_stack(stack))


# Against real runs


@pytest.mark.parametrize("method", ["finetune", "hide", "moelora", "multitask", "zeroshot"])
def test_a_forecast_is_what_the_ledger_of_the_run_says(run_tiny: Callable[..., Any], method: str) -> None:
    """Steps, samples, tokens, FLOPs and parameters are exact where all samples are counted in."""
    recipe = {"global_batch": 5, "epochs": 2, "adapter.rank": 8}
    run = run_tiny(method, recipe=recipe)
    prepared, _, assumed = plan(*TINY, recipe)
    forecast = prepared.forecast(parse_stack(method))
    ledger = run.manifest["ledger"]

    for planned, real in zip(forecast.tasks, ledger["tasks"], strict=True):
        for key in ("task", "steps", "samples", "tokens", "answer_tokens", "flops", "trained"):
            assert getattr(planned, key) == real[key], key
    assert forecast.trained == ledger["trained"]
    last = forecast.sizes[-1]
    assert {"inference": dict(last.inference), "continuing": dict(last.continuing)} == ledger["stored"]
    assert sum(last.active.values()) == ledger["active"]
    answers = sum(len(file.read_text().splitlines()) for file in (run.folder / "answers").iterdir())
    assert forecast.answers == answers
    assert assumed == []


@pytest.mark.slow
def test_a_forecast_of_mini_is_close_where_samples_are_counted_in(run_tiny: Callable[..., Any]) -> None:
    """With more samples than are counted in, tokens are means: FLOPs within 3 % per task; the rest stays exact."""
    run = run_tiny("finetune", benchmark="mini", backbone="mini", order="RI", limit=240)
    prepared, _, assumed = plan("mini", None, {}, order="RI", limit=240)
    forecast = prepared.forecast(parse_stack("finetune"))

    for planned, real in zip(forecast.tasks, run.manifest["ledger"]["tasks"], strict=True):
        assert (planned.steps, planned.samples, planned.trained) == (
            real["steps"],
            real["samples"],
            real["trained"],
        )
        assert planned.flops == pytest.approx(real["flops"], rel=0.03)
    assert assumed == ["tokens are means over 127 samples of each split"]


# Work, by hand


def test_work_of_a_described_benchmark_needs_no_data(tmp_path: Path) -> None:
    """Steps of 23,998 and 40,000 samples at 96: 250 and 417. A prompt of 25 + 2 tokens, 576 of the image, and the template."""
    prepared, methods, assumed = plan(birds(tmp_path), None, {"global_batch": 96})
    forecast = prepared.forecast(parse_stack("finetune"))

    assert [(task.steps, task.samples) for task in forecast.tasks] == [(250, 23_998), (417, 40_000)]
    assert methods == ["finetune"]
    first, second = prepared.stream
    assert (first.answer, second.answer) == (3 + 1, 12 + 1)
    template = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. USER:  ASSISTANT:"
    assert (
        first.prompt
        == first.question
        == pytest.approx(1 + 576 + (len(template) + 1 + 100 + 1 + 7) / 4, abs=1)
    )
    assert forecast.tasks[0].tokens == round(23_998 * (first.prompt + 3))
    assert any("the sizes are the description's" in sentence for sentence in assumed)


def test_training_flops_follow_the_ledgers_rule() -> None:
    """4 per frozen weight of the layers and token, 6 per trained one: LoRA of rank 8 and the projector."""
    forecast = of("finetune")
    tokens = 1000 * 649, 2001 * 602

    assert [task.tokens for task in forecast.tasks] == list(tokens)
    assert [task.flops for task in forecast.tasks] == [
        n * (4 * LAYERS + 6 * (LORA + PROJECTOR)) for n in tokens
    ]
    assert forecast.flops["training"] == sum(task.flops for task in forecast.tasks)
    assert forecast.flops["recomputed"] == 0
    again = of("finetune", recipe={"checkpointing": True}).flops["recomputed"]
    assert again == sum(tokens) * 2 * (LAYERS + LORA + PROJECTOR)


@pytest.mark.parametrize(
    ("cells", "method", "answers"),
    [
        ("lower", "finetune", 2 * 100 + 200),
        ("last", "finetune", 100 + 200),
        ("full", "finetune", 2 * (100 + 200)),
        ("lower", "multitask", 100 + 200),
        ("lower", "zeroshot", 100 + 200),
    ],
)
def test_answers_are_those_of_the_cells(cells: str, method: str, answers: int) -> None:
    forecast = of(method, cells=cells)

    assert forecast.answers == answers
    assert forecast.disk["answers"] == answers * ANSWER_BYTES


def test_answering_reads_the_prompt_and_writes_an_answer_as_long_as_in_training() -> None:
    """2 per weight and token; task b may write 2 tokens only. Zero-shot has no adapters."""
    expected = 2 * LAYERS * (100 * (630 + 10) + 200 * (620 + 2))

    assert of("zeroshot").flops["answering"] == expected
    assert of("multitask").flops["answering"] == pytest.approx(expected * (1 + (LORA + PROJECTOR) / LAYERS))


def test_images_pass_through_the_tower_once_where_their_features_are_kept() -> None:
    """3,301 images of 577 × 1024 bf16 are 3.6 GiB: too many for memory, so each use counts; on a shelf each image does."""
    parameters = sum(weight.numel() for weight in llava().vision_tower.parameters())
    each = 2 * parameters * 577

    assert of("finetune").flops["tower"] == each * (3001 + 2 * 100 + 200)
    assert of("zeroshot").flops["tower"] == each * (100 + 200)
    shelved = of("finetune", shelved=True)
    assert shelved.flops["tower"] == each * (3001 + 300)
    assert shelved.disk["features"] == 3301 * (577 * 1024 * 2 + STRIDE)
    assert of("zeroshot", shelved=True).disk["features"] == 300 * (577 * 1024 * 2 + STRIDE)
    assert of("finetune").disk["features"] == 0


def test_a_limit_holds_a_share_of_the_images_and_the_others_are_looked_at_at_every_use() -> None:
    """Half the bytes hold half the images: (3301 + 3401) / 2 looks, where without a shelf each of 3,401 uses is one."""
    parameters = sum(weight.numel() for weight in llava().vision_tower.parameters())
    whole = of("finetune", shelved=True).shelf
    assert whole == of("finetune").shelf == 3301 * (577 * 1024 * 2 + STRIDE)

    half = of("finetune", shelved=True, limit=whole / 2)
    assert half.disk["features"] == whole / 2
    assert half.flops["tower"] == pytest.approx(2 * parameters * 577 * (3301 + 3401) / 2)
    assert of("finetune", shelved=True, limit=2 * whole).disk["features"] == whole
    (says,) = [line for line in outlook_of(half, limit=whole / 2) if "features of all images" in line]
    assert says == (
        "features of all images: 3.6 GiB in a --cache that all runs share; --cache-limit holds 50% of them, the others are computed at every use"
    )


def outlook_of(found: Forecast, **changes: Any) -> list[str]:
    return outlook.text([found], planner(shelved=True, **changes), seeds=1, gpus=1, assumed=()).splitlines()


@pytest.mark.parametrize(
    ("limit", "shelved", "says"),
    [
        (0.0, True, "--cache-limit 0: is no size; give GiB"),
        (float("nan"), True, "--cache-limit nan: is no size; give GiB"),
        (5.0, False, "--cache-limit 5: there is no cache to limit; add --cache DIR"),
    ],
)
def test_a_limit_that_is_none_is_refused(limit: float, shelved: bool, says: str) -> None:
    with pytest.raises(OptionError, match=re.escape(says)):
        plan(*TINY, {}, shelved=shelved, cache_limit=limit)


def test_who_looks_through_the_encoder_holds_and_stores_its_features_too() -> None:
    """HiDe compares 3,301 images and as many prompts by features of width 768 in fp32; L2P has keys of that width."""
    hide = of("hide", shelved=True)
    extra = 2 * 3301 * (4 * 768 + STRIDE)

    assert hide.disk["features"] == of("finetune", shelved=True).disk["features"] + extra
    assert of("finetune").memory["encoder"] == 0
    assert hide.memory["encoder"] == of("l2p").memory["encoder"] == 4 * CLIP
    assert hide.peak_memory > 4 * CLIP + hide.memory["weights"]


def test_the_encoder_that_stands_in_is_as_large_as_that_of_the_papers() -> None:
    import open_clip

    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config("ViT-L-14-336"))
    assert sum(weight.numel() for weight in model.parameters()) == CLIP


def test_an_encoder_that_is_there_is_counted_itself(tiny: Backbone) -> None:
    prepared, _, _ = plan(*TINY, {})
    planned = prepared.forecast(parse_stack("hide"))

    assert planned.memory["encoder"] == 4 * tiny.features.size
    assert tiny.features.size == sum(weight.numel() for weight in tiny.features._model.parameters())
    assert prepared.forecast(parse_stack("finetune")).memory["encoder"] == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llava-1.5-7b", Look((336 // 14) ** 2, 577, 577 * 1024)),
        ("internvl3-8b-hf", Look(1024 // 4, 1025, 1025 * 1024)),
        ("qwen2.5-vl-7b", Look(23 * 17, 23 * 17 * 4, 23 * 17 * 4 * 1280)),
        ("qwen3-vl-8b", Look(20 * 15, 20 * 15 * 4, 20 * 15 * 4 * 1152 * 4)),
        ("smolvlm2-2.2b", Look(13 * 83 - 1, 13 * 729, (13 * 729 + 1) * 1152)),
        ("llava-v1.6-mistral-7b", Look(576 + 36 * 49, 5 * 577, (5 * 577 + 1) * 1024)),
        ("llava-onevision-qwen2-7b", Look(729 + 40 * 55, 5 * 729, (5 * 729 + 1) * 1152)),
        ("internvl3.5-8b", Look(1024 // 4, 1025, 1025 * 1024)),
    ],
)
def test_what_an_image_costs(name: str, expected: Look) -> None:
    """An image of 640 × 480: Qwen2.5-VL makes a token of 28 × 28 pixels, Qwen3-VL one of 32 × 32, and keeps four layers; SmolVLM2 cuts
    3 × 4 tiles of 81 tokens and two marks, and the whole. LLaVA-NeXT and LLaVA-OneVision make 2 × 2 tiles of it, 48 and 54 patches on
    each side, of which 36 and 40 rows are not padding alone, and keep a row that tells the size."""
    assert look(shapes(name)) == expected


def test_a_task_may_have_a_batch_and_epochs_of_its_own() -> None:
    forecast = of("finetune", recipe={"global_batch": 10, "tasks.b.global_batch": 100, "tasks.b.epochs": 3})

    assert [(task.steps, task.samples) for task in forecast.tasks] == [
        (100, 1000),
        (ceil(2001 / 100) * 3, 6003),
    ]


# Memory, by hand


def test_memory_is_the_sum_that_the_module_states() -> None:
    recipe = {"micro_batch": 4, "eval_batch": 8}
    plain, saving = (of("finetune", recipe={**recipe, "checkpointing": c}).memory for c in (False, True))
    every = sum(weight.numel() for weight in llava().model.parameters())
    # 34 h + 9 f; beside them the norms' roots, the softmax's sums, the mask of 649 tokens, and rank 8 of seven linears
    layer = 34 * 4096 + 9 * 11008 + 8 + 4 * 32 + 2 * 649 + 2 * 8 * 7
    once = 4 * 649 * 2 * 2 * 128 + 4 * 10 * (2 + 4) * 32064
    copies = 2 * (LORA + PROJECTOR)

    assert plain["weights"] == 2 * every
    assert plain["learning"] == 16 * (LORA + PROJECTOR)
    assert plain["kept"] == 0
    assert plain["activations"] == 4 * 649 * (32 * layer + 4 * 4096 + 22 * 4096) + once + copies
    assert saving["activations"] == 4 * 649 * (32 * 2 * 4096 + layer + 8 * 4096 + 2 * 11008) + once
    assert plain["answering"] == 8 * (630 + 10) * 2 * 32 * 4096 * 2
    assert plain["features"] == 2**30


def test_a_base_in_four_bits_takes_what_its_codes_take_and_one_matrix_in_full() -> None:
    """The linears of the layers alone: 4 bits a number, 8 for each 64, 32 for each 16,384; a mean and 256 levels for each matrix."""
    recipe = {"micro_batch": 4, "eval_batch": 64}
    plain, packed = (of("finetune", recipe={**recipe, "quantization": q}) for q in ("none", "nf4"))
    square, wide = 4096 * 4096, 4096 * 11008
    linears = 32 * (4 * square + 3 * wide)
    every = sum(weight.numel() for weight in llava().model.parameters())
    codes = linears // 2 + linears // 64 + 4 * linears // 16384 + 32 * 7 * 4 * (1 + 256)

    assert packed.memory["weights"] == 2 * (every - linears) + codes
    assert 8 * codes / linears == pytest.approx(4.127, abs=5e-4)
    assert packed.memory["written out"] == 2 * wide
    assert "written out" not in plain.memory
    for part in plain.memory.keys() - {"weights"}:
        assert packed.memory[part] == plain.memory[part], part
    saved = 2 * linears - codes - 2 * wide
    assert plain.peak_memory - packed.peak_memory == saved
    assert packed.flops == plain.flops
    # A token of an answer reads the codes, and writes and reads what they stand for.
    tokens = 2 * ceil(100 / 64) * 10 + ceil(200 / 64) * 2
    more = packed.memory["weights"] + 4 * linears - plain.memory["weights"]
    assert packed.seconds["answering"] - plain.seconds["answering"] == pytest.approx(
        tokens * more / (OF_BANDWIDTH * 2039e9)
    )


def test_a_forecast_of_a_base_in_four_bits_is_what_the_model_takes(tiny_folder: Path) -> None:
    """Weights and buffers of the real one, but the frequencies of its positions and the places of the tower's patches."""
    pytest.importorskip("bitsandbytes")
    name, recipe = f"llava:{tiny_folder / 'llava'}", build_recipe({"quantization": "nf4"})
    real = load_backbone(backbone_parts(name), recipe, torch.device("cpu"))
    packed = [one for one in real.model.buffers() if one.dtype == torch.uint8]
    held = sum(one.numel() * one.element_size() for one in [*real.model.parameters(), *packed])

    assert weights(shapes(name), recipe).held == held
    assert weights(shapes(name), recipe).written_out == max(
        4 * one.weight.numel() for one in real.layers.modules() if isinstance(one, FourBit)
    )


def test_what_a_forecast_assumes_of_four_bits_is_said() -> None:
    found = planner(recipe={"quantization": "nf4"})
    told = outlook.assumptions(found, ())

    assert sum("4.127 bits a weight" in one for one in told) == 1
    assert not any("4.127" in one for one in outlook.assumptions(planner(), ()))


def test_activations_and_answering_take_turns() -> None:
    forecast = of("finetune", recipe={"micro_batch": 8})
    parts = forecast.memory

    assert parts["activations"] > parts["answering"] > 0
    assert forecast.peak_memory == sum(parts.values()) - parts["answering"]


def test_what_is_kept_and_does_not_learn_counts_four_bytes() -> None:
    """O-LoRA keeps the first task's LoRA beside the second one's."""
    assert of("olora").memory["kept"] == 4 * LORA


def test_fp32_takes_twice_the_weights_and_another_peak() -> None:
    half, full = of("finetune"), of("finetune", recipe={"precision": "fp32"})

    for part in ("weights", "answering"):
        assert full.memory[part] == 2 * half.memory[part]
    assert (
        1.5 < full.memory["activations"] / half.memory["activations"] < 2
    )  # norms keep fp32 in both, masks a byte
    assert full.seconds["training"] == pytest.approx(half.seconds["training"] * 312 / 19.5)


# Time


def test_time_is_flops_over_what_a_gpu_reaches() -> None:
    forecast = of("finetune", recipe={"eval_batch": 64})

    assert forecast.seconds["training"] == pytest.approx(forecast.flops["training"] / (0.5 * 312e12))
    assert sum(task.seconds for task in forecast.tasks) == pytest.approx(forecast.seconds["training"])
    written = 2 * ceil(100 / 64) * 10 + ceil(200 / 64) * 2  # tokens that are written one after the other
    adapted = 1 + (LORA + PROJECTOR) / LAYERS
    read = 2 * LAYERS * adapted * (2 * 100 * 630 + 200 * 620)
    expected = read / (0.5 * 312e12) + written * forecast.memory["weights"] / (OF_BANDWIDTH * 2039e9)
    assert forecast.seconds["answering"] == pytest.approx(expected)


def test_several_gpus_share_the_runs_and_a_run_stays_on_one() -> None:
    found = [of("finetune"), of("zeroshot")]
    each = [sum(one.seconds.values()) / 3600 for one in found]

    assert totals(found, seeds=3, gpus=2)[0] == pytest.approx(3 * sum(each) / 2)
    assert totals(found, seeds=1, gpus=8)[0] == pytest.approx(max(each))


def test_a_gpu_is_a_name_or_a_number() -> None:
    assert find_gpu("RTX 4090") == find_gpu("rtx-4090") == GPUS["rtx-4090"]
    half = find_gpu("156")
    assert (half.bf16, half.fp32, half.bandwidth) == (156e12, 9.75e12, 2039e9 / 2)
    for text, sentence in [
        ("A10O", "--gpu A10O; did you mean 'a100'"),
        ("-3", "must be positive"),
        ("inf", "must be"),
    ]:
        with pytest.raises(OptionError, match=sentence):
            find_gpu(text)


# Planning


def test_planning_one_method_leaves_no_trace_on_the_next() -> None:
    prepared, _, _ = plan(*TINY, {})

    alone = prepared.forecast(parse_stack("hide"))
    prepared.forecast(parse_stack("l2p"))
    assert prepared.forecast(parse_stack("hide")) == alone


def test_a_task_that_comes_twice_is_learnt_twice(tmp_path: Path) -> None:
    prepared, _, _ = plan(birds(tmp_path), None, {}, order="ABA", limit=50)
    forecast = prepared.forecast(parse_stack("finetune"))

    assert [(task.task, task.samples) for task in forecast.tasks] == [("A", 50), ("B", 50), ("A", 50)]
    assert forecast.answers == 50 * (1 + 2 + 3)


def test_a_size_that_nobody_says_has_to_be_given(tmp_path: Path) -> None:
    file = birds(tmp_path, count="")

    with pytest.raises(
        OptionError, match="birds, task A: nobody says how many train records it has; pass --data DIR, or"
    ):
        plan(file, None, {})
    prepared, _, _ = plan(file, None, {}, limit=70)
    assert [(task.train, task.test) for task in prepared.stream] == [(70, 70), (70, 70)]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"cells": "lowr"}, "--cells lowr; did you mean 'lower'"),
        ({"efficiency": 0.0}, "--efficiency 0.0: must lie above 0"),
        ({"efficiency": 1.5}, "--efficiency 1.5: must lie above 0 and not above 1"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        plan(*TINY, {}, **settings)


def test_a_backbone_without_weights_is_answered_with_the_published_shapes() -> None:
    with pytest.raises(
        BackboneError, match=r"llava needs a checkpoint; or name one of the published shapes: .*llava-1\.5-7b"
    ):
        planned_backbone("llava")


def test_a_checkpoint_folder_is_shaped_without_its_weights(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shapes"
    folder.mkdir()
    (folder / "config.json").write_text((tiny_folder / "llava" / "config.json").read_text())

    for name in (str(folder), f"llava:{folder}"):
        assert planned_backbone(name).device.type == "meta"


# Command line


def test_the_sheet_says_what_it_assumes(cli: Callable[..., Any], tmp_path: Path) -> None:
    ended = cli(
        "forecast",
        "--benchmark",
        birds(tmp_path),
        "--recipe",
        "released",
        "--methods",
        "finetune,zeroshot",
        "--seeds",
        2,
    )

    assert ended.code == 0
    assert "all runs (2 methods × 2 seeds): " in ended.out
    assert "all fit into the 75 GiB of one A100" in ended.out
    for sentence in (
        "4 characters are a token",
        "35% of 312 TFLOP/s (A100, bf16)",
        "neither share was measured",
    ):
        assert sentence in ended.out
    assert "40,968,192" in ended.out


def test_a_gpu_that_is_too_small_is_named(cli: Callable[..., Any], tmp_path: Path) -> None:
    ended = cli("forecast", "--benchmark", birds(tmp_path), "--recipe", "paper", "--gpu", "rtx-4090")

    assert "too large or tight for the 22 GiB of one RTX-4090: finetune; lower micro_batch" in ended.out


def test_its_numbers_as_json(cli: Callable[..., Any]) -> None:
    told = json.loads(
        cli(
            "forecast",
            "--benchmark",
            TINY[0],
            "--backbone",
            TINY[1],
            "--methods",
            "finetune",
            "--gpus",
            3,
            "--json",
        ).out
    )

    assert (told["gpu"]["name"], told["gpu"]["count"], told["all"]["runs"]) == ("A100", 3, 1)
    assert [task["steps"] for task in told["runs"][0]["tasks"]] == [3, 3]
    assert told["runs"][0]["memory"]["peak"] > 0
    assert told["assumed"]


@given(PLACES, PARTS)
def test_samples_that_stand_for_data_read_as_a_list_of_one_sample(index: int, part: slice) -> None:
    sample = Sample("0", None, "Who?")

    reads_as(Assumed(7, sample), [sample] * 7, index, part)
