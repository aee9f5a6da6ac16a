"""The performance script as a user runs it, on the tests' tiny shapes; what is checked is the arithmetic, never a time."""

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

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "performance" / "train_step.py"


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
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
