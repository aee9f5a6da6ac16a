"""The performance scripts as a user runs them, on the tests' tiny shapes; what is checked is the arithmetic, never a time."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cl_zoo.testing import tiny_backbone, tiny_benchmark

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "performance" / "train_step.py"


def run_script(*arguments: object, script: str = SCRIPT.name) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT.with_name(script)), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("performance") / "results" / "tiny.json"
    done = run_script(
        "--size", "tiny", "--shapes", "testing", "--steps", 2, "--rounds", 2, "--methods", "finetune", "--json", file
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "finetune/bare" in done.stdout
    assert [path.name for path in file.parent.iterdir()] == ["tiny.json"]
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_a_result_says_what_ran_where_and_with_what(result):
    assert set(result["versions"]) == {"python", "cl-zoo", "torch", "transformers", "peft", "accelerate"}
    assert result["machine"]["threads"] == 1
    assert result["machine"]["accelerator"] is None
    assert result["machine"]["cores"] >= 1
    assert "--size tiny --shapes testing --steps 2 --rounds 2 --methods finetune" in result["command"]
    setting = result["setting"]
    assert (setting["shapes_of"], setting["hidden"], setting["layers"]) == ("cl_zoo.testing", 32, 2)
    assert (setting["batch"], setting["image_tokens"], setting["recipe"]["adapter"]["rank"]) == (4, 4, 8)
    assert setting["tokens"] > setting["image_tokens"]


def test_every_contender_took_the_same_number_of_steps(result):
    assert set(result["steps"]) == set(result["cpu_steps"]) == {"bare", "finetune"}
    for times in (*result["steps"].values(), *result["cpu_steps"].values()):
        assert np.shape(times) == (2, 2)
        assert np.min(times) > 0
    assert {one["samples_per_step"] for one in result["contenders"].values()} == {4}


def test_the_plain_loop_and_the_engine_compute_the_same_objective(result):
    """B = 0 at the start, so neither the draws of A nor dropout decide the first loss."""
    losses = {name: one["first_loss"] for name, one in result["contenders"].items()}
    assert losses["finetune"] == pytest.approx(losses["bare"], rel=1e-5)


@pytest.mark.parametrize(("steps", "prefix"), [("steps", ""), ("cpu_steps", "cpu_")])
def test_ratios_are_the_medians_of_the_recorded_pairs(result, steps, prefix):
    pairs = np.array(result[steps]["finetune"]) / np.array(result[steps]["bare"])
    assert list(result[prefix + "ratios"]) == ["finetune/bare"]
    assert result[prefix + "ratios"]["finetune/bare"] == pytest.approx(np.median(pairs))
    spread = result[prefix + "spread"]["finetune/bare"]
    assert spread["rounds"] == pytest.approx(np.median(pairs, axis=1))
    assert [spread["q1"], spread["q3"]] == pytest.approx(np.quantile(pairs, [0.25, 0.75]))


def test_medians_and_quartiles_are_those_of_the_recorded_steps(result):
    for name, one in result["contenders"].items():
        q1, median, q3 = np.quantile(result["steps"][name], [0.25, 0.5, 0.75])
        assert one["seconds"] == pytest.approx({"median": median, "q1": q1, "q3": q3})


def test_7b_without_a_gpu_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("train_step")
    file = tmp_path / "7b.json"
    code = script.main(["--size", "7b", "--device", "cpu", "--methods", "finetune", "--json", str(file)])
    assert code == 2
    assert capsys.readouterr().err.strip() == "--size 7b needs a CUDA device, got cpu; take --size small"
    assert not file.exists()


def test_a_method_without_a_second_task_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("train_step")
    arguments = ["--size", "tiny", "--methods", "multitask", "--json", str(tmp_path / "tiny.json")]
    assert script.main(arguments) == 2
    assert "multitask: its protocol is 'joint'" in capsys.readouterr().err


def test_flips_are_counted_over_the_samples_of_every_task(tmp_path, monkeypatch, capsys):
    """Four questions of each task of mini: no answer flips, and no way computes fewer tokens than one by one."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("flips")
    file = tmp_path / "flips.json"

    assert script.main(["--limit", "4", "--batch", "2", "--json", str(file)]) == 0

    found = json.loads(file.read_text())
    assert "flips.py --limit 4 --batch 2" in found["command"]
    assert len(found["tasks"]) == 6
    for task in found["tasks"].values():
        ways = task["ways"]
        assert (task["samples"], list(ways)) == (4, ["alone", "in-order", "grouped", "static"])
        assert {one["flips"] for one in ways.values()} == {0}
        assert ways["alone"]["tokens"] <= ways["grouped"]["tokens"] <= ways["in-order"]["tokens"]
        assert ways["static"]["tokens"] == ways["grouped"]["tokens"]
    assert "0 of 24 flip (0.00%)" in capsys.readouterr().out


def test_an_answer_that_another_batch_changes_is_a_flip(tmp_path, monkeypatch):
    """A model that answers with the number of rows of its batch: of five questions in batches of two all but the last flip."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("flips")
    backbone = tiny_backbone(tmp_path)
    task = tiny_benchmark(5).tasks[0]

    found = script.Asking(Rows(), backbone, task, list(task.test)[:5], 2).measure(["in-order", "grouped"])

    assert {way: one["flips"] for way, one in found["ways"].items()} == {
        "alone": 0,
        "in-order": 4,
        "grouped": 4,
    }


class Rows(nn.Module):
    def generate(self, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        return torch.cat([input_ids, torch.full_like(input_ids[:, :1], 10 + len(input_ids))], 1)


def run_parts(folder: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """The script for an accelerator, on shapes and a device that every machine has."""
    small = {
        "SIZE": "tiny",
        "DEVICE": "cpu",
        "SHAPES": "testing",
        "METHODS": "finetune,hide",
        "PAIRS": "hide/finetune",
    }
    small |= {
        "BATCHES": 2,
        "WIDE": 4,
        "STEPS": 1,
        "ROUNDS": 1,
        "JOBS": 1,
        "PYTHON": sys.executable,
        **settings,
    }
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        **{name: str(value) for name, value in small.items()},
    }
    command = ["bash", str(SCRIPT.with_name("gpu.sh")), str(folder)]
    root = SCRIPT.parents[2]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=root)


@pytest.mark.slow
def test_the_script_for_an_accelerator_runs_every_part_and_keeps_what_each_measured(tmp_path):
    done = run_parts(tmp_path / "out", PATIENCE=20)
    assert done.returncode == 0, done.stdout + done.stderr
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == {
        "tiny-cpu.json", "memory-cpu.json", "answers-4-cpu.json", "answers-1-cpu.json", "log.txt", "summary.txt"
    }  # fmt: skip
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert [line.split()[1] for line in summary.splitlines() if ": exit code 0 after" in line] == [
        "tiny-cpu:", "memory-cpu:", "answers-4-cpu:", "answers-1-cpu:", "answers:", "tests:"
    ]  # fmt: skip
    table = json.loads((tmp_path / "out" / "tiny-cpu.json").read_text())
    assert set(table["ratios"]) == {"finetune/bare", "hide/finetune"}
    wide, alone = (
        json.loads((tmp_path / "out" / f"answers-{batch}-cpu.json").read_text())["contenders"]["finetune"]
        for batch in (4, 1)
    )
    assert (wide["samples_per_step"], alone["samples_per_step"]) == (4, 1)
    ratio = 4 * alone["seconds"]["median"] / wide["seconds"]["median"]
    assert f"in a batch of 4, {1 / alone['seconds']['median']:.2f} alone; ratio {ratio:.2f}" in summary


def test_a_part_for_which_no_time_is_left_is_left_out_and_said(tmp_path):
    done = run_parts(tmp_path / "out", SECONDS_IN_ALL=1)
    assert done.returncode == 1
    lines = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert lines[0] == "== tiny-cpu: left out, the time is spent"
    assert len(lines) == 7
    assert lines[-1].startswith("== all parts: ")


def test_a_step_waits_for_the_pictures_that_its_workers_have_not_read(monkeypatch):
    """Four pictures of 1 s: one worker needs 4 s, two 2 s, four 1 s; beside a step of 2 s that is 2 s of waiting, or none."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("feeding")
    assert script.stall([1.0], 0.0, 2.0, 1) == pytest.approx(2 / 4)
    assert script.stall([1.0], 0.0, 2.0, 2) == script.stall([1.0], 0.0, 2.0, 4) == 0
    assert script.stall([1.0], 0.5, 2.0, 4) == pytest.approx(0.5 / 2.5)
    # 3, 1, 3, 1 on two workers: 3 + 1 and 1 + 3, one waits 1 s; then 1, 3, 1, 3: 1 + 1 + 3 and 3, 2 s; 1.5 s on average
    assert script.stall([3.0, 1.0], 0.0, 3.0, 2) == pytest.approx(1.5 / 4.5)
    found = script.computed([1.0], 0.0, 2.0)
    assert (found["workers_needed"], found["cores_busy"]) == (2, 2.0)


def test_a_step_of_7b_is_the_ledgers_flops_over_the_share_of_the_peak(monkeypatch):
    """2560 tokens x (4 x 6,476,005,376 + 6 x (19,988,480 + 20,979,712)) / (0.35 x 790e12) = 0.2421 s."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("feeding")
    assert script.step_seconds(2560, 0.35) == pytest.approx(
        2560 * (4 * 6_476_005_376 + 6 * (19_988_480 + 20_979_712)) / (0.35 * 790e12)
    )


def test_the_share_of_the_peak_is_the_ledgers_rule_over_the_seconds(result):
    """Real tokens are all tokens here: every sample of a batch is as long as the longest, or padded to it."""
    peak, one = result["machine"]["peak"], result["contenders"]["finetune"]
    assert (peak["side"], peak["dtype"]) == (512, "float32")
    assert one["share_of_peak"] == pytest.approx(
        one["flops"] / one["seconds"]["median"] / peak["flops_per_second"]
    )
    assert one["flops"] == result["contenders"]["bare"]["flops"]


@pytest.mark.slow
def test_a_batch_of_another_size_is_what_the_steps_take(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("train_step")
    file = tmp_path / "tiny.json"
    arguments = [
        "--size",
        "tiny",
        "--shapes",
        "testing",
        "--methods",
        "finetune",
        "--steps",
        "1",
        "--rounds",
        "1",
    ]
    assert script.main([*arguments, "--batch", "6", "--checkpointing", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert {one["samples_per_step"] for one in found["contenders"].values()} == {6}
    assert found["setting"]["recipe"]["checkpointing"] is True


def test_memory_is_forecast_beside_what_is_measured(tmp_path, monkeypatch):
    """On a CPU nothing counts it: the rows hold the forecast alone, which activations that are computed again lower."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("memory")
    file = tmp_path / "memory.json"
    arguments = ["--size", "tiny", "--shapes", "testing", "--batches", "2", "--steps", "1", "--device", "cpu"]
    assert script.main([*arguments, "--json", str(file)]) == 0
    kept, again = json.loads(file.read_text())["rows"]
    assert [row["checkpointing"] for row in (kept, again)] == [False, True]
    assert kept["measured"] is kept["off"] is None
    assert kept["fits"] is True
    assert 0 < again["forecast"]["activations"] < kept["forecast"]["activations"]


# Growth over tasks, and memory of a step


@pytest.fixture(scope="module")
def growth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("growth")
    file, figure = folder / "growth.json", folder / "growth.svg"
    asked = ("--methods", "olora,hydralora", "--tasks-only", "--rounds", 1, "--steps", 1)
    done = run_script(*asked, "--json", file, "--figure", figure, script="growth.py")
    assert done.returncode == 0, done.stderr
    assert "olora" in figure.read_text()
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_a_method_stands_at_three_tasks_six_ranks_and_four_numbers_of_experts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("growth")
    common = [
        (1, 8, None),
        (6, 8, None),
        (20, 8, None),
        *((2, rank, None) for rank in (4, 8, 16, 32, 64, 128)),
    ]
    asked = {
        name: [(one.task, one.rank, one.experts) for one in script.points_of(name, 8)]
        for name in ("olora", "hydralora")
    }
    assert asked == {"olora": common, "hydralora": [*common, *((2, 16, heads) for heads in (2, 4, 8, 16))]}


def test_growth_counts_parameters_as_the_formula_has_them(growth):
    """A LoRA of rank 8 on both layers (width 32, inner 48) has 8 · 992 numbers, olora keeps one for each task; the projector has 1,600."""
    layers = 2 * (4 * (32 + 32) + 3 * (32 + 48))
    projector = 16 * 32 + 32 + 32 * 32 + 32
    for one, task in zip(growth["methods"]["olora"], (1, 6, 20), strict=True):
        assert one["trained"] == 8 * layers + projector
        assert one["stored"] == task * 8 * layers + projector


def test_who_keeps_a_stack_of_experts_grows_and_who_keeps_one_mixture_is_flat(growth):
    assert growth["flat"]["hydralora"] == {"operations": True, "memory": True, "stored": True}
    assert not growth["flat"]["olora"]["memory"]
    assert not growth["flat"]["olora"]["stored"]


def test_a_method_that_learns_at_once_has_no_growth(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("growth")
    assert script.main(["--methods", "multitask", "--json", str(tmp_path / "growth.json")]) == 2
    told = capsys.readouterr().err.strip()
    assert told == "--methods multitask: it does not learn task after task; leave it out"


def test_memory_of_a_step_is_followed_until_nobody_has_it(monkeypatch):
    """y = x + x has 400 bytes, relu(y) as many; y is let go before z + z is made, a view takes nothing."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    tensors = importlib.import_module("tensors")
    x = torch.ones(100)
    with tensors.Held() as held:
        y = x + x
        z = y.relu()
        assert (held.now, held.peak) == (800, 800)
        del y
        w = (z + z).view(10, 10)
        assert (held.now, held.peak) == (800, 800)
        del z
        w.add_(1)
    assert (held.now, held.peak) == (400, 800)


def test_the_forecast_of_memory_is_what_a_step_of_published_size_holds(tmp_path, monkeypatch, capsys):
    """Within 5 % with and without checkpointing, on tensors without values."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("kept")
    file = tmp_path / "kept.json"
    arguments = ["--shapes", "smolvlm2-2.2b", "--tokens", "256", "--families", "", "--json", str(file)]
    assert script.main(arguments) == 0, capsys.readouterr().err
    rows = json.loads(file.read_text())["rows"]
    assert [(one["micro_batch"], one["checkpointing"]) for one in rows] == [(4, False), (4, True)]
    for one in rows:
        assert one["ratio"] == pytest.approx(one["forecast"] / one["counted"], rel=1e-6)
        assert one["ratio"] == pytest.approx(1, abs=0.05)
    assert rows[0]["counted"] > 5 * rows[1]["counted"]


FLAT = "branchlora clmoe disco ewc finetune hide hydralora l2p lwf merging modalprompt modeltailor moelora mrlora pgp same si smolora"
"""Methods whose step does not grow with the tasks; where branches or experts freeze (`branchlora`, `same`) it may shrink."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAT.split())
def test_a_step_of_a_flat_method_launches_and_holds_no_more_at_the_sixth_task_than_at_the_third(
    name, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script, ground = importlib.import_module("growth"), importlib.import_module("ground")
    made = ground.make_ground("tiny", "testing", script.World("cpu"), tmp_path)
    third, sixth = (script.made(name, script.Point(task, 8), made, 3) for task in (3, 6))
    for engine in (third, sixth):
        engine.step(0)
    assert script.operations(sixth) <= script.operations(third)
    assert script.memory(sixth) <= 1.01 * script.memory(third)


def test_answers_are_not_measured_compiled(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("train_step")
    arguments = ["--size", "tiny", "--phase", "answer", "--compile", "--json", str(tmp_path / "tiny.json")]
    assert script.main(arguments) == 2
    assert "--compile: answers are not computed by compiled layers" in capsys.readouterr().err


@pytest.mark.slow
def test_a_method_is_held_against_itself_with_compiled_layers(tmp_path):
    file = tmp_path / "tiny.json"
    done = run_script(
        "--size", "tiny", "--shapes", "testing", "--steps", 1, "--rounds", 2, "--methods", "finetune", "--compile", "--json", file
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert list(found["ratios"]) == ["finetune/bare", "finetune compiled/finetune"]
    told = {name: one["compiled"] for name, one in found["contenders"].items()}
    assert (told["bare"], told["finetune"]) == ({}, {})
    assert told["finetune compiled"]["graphs"] > told["finetune compiled"]["breaks"] == 0
