"""The main job on files in the official formats: a comparison on UCIT and on CoIN, from folders to a table, on a tiny LLaVA."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from official_files import write_coin, write_ucit
from safetensors.torch import load_file, save_file

import cl_zoo
from cl_zoo.testing.pytest import Ended


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA that soon comes to the end of an answer, of which the benchmarks allow up to 1024 tokens."""
    folder = Path(shutil.copytree(tiny_folder / "llava", tmp_path_factory.mktemp("model") / "llava"))
    tensors = load_file(folder / "model.safetensors")
    (head,) = [name for name in tensors if name.endswith("lm_head.weight")]
    tensors[head][-1] *= 30  # the end token is the last one of the tiny vocabulary
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


SMALL = {"recipe": {"global_batch": 4, "precision": "fp32", "checkpointing": False}, "device": "cpu"}
FLAGS = "--set global_batch=4 --set precision=fp32 --set checkpointing=false --device cpu".split()


def test_a_comparison_on_ucit_needs_nothing_but_the_folders_of_data_and_model(
    model: Path, tiny_folder: Path, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    """Six tasks of six and four samples, two methods: every task has a score of all its answers."""
    write_ucit(tmp_path / "data")
    ended = cli(
        *("compare", "--benchmark", "ucit", "--data", tmp_path / "data", "--methods", "finetune,hide"),
        *("--backbone", model, "--features", tiny_folder / "clip", *FLAGS, "--cells", "last"),
        *("--out", tmp_path / "runs", "--jobs", 1, "--json"),
    )

    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)["runs"]
    assert [row["label"] for row in rows] == ["finetune", "hide"]
    for folder in (one for one in (tmp_path / "runs").iterdir() if (one / "manifest.json").is_file()):
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["tasks"] == ["ImageNet-R", "ArxivQA", "VizWiz", "IconQA", "CLEVR-Math", "Flickr30k"]
        assert {score["count"] for score in manifest["scores"].values()} == {4}
        assert list(manifest["scores"]) == [f"5-{place}" for place in range(6)]
        captions = [score for cell, score in manifest["scores"].items() if cell[2] in "25"]
        assert all(set(score["parts"]) >= {"METEOR", "CIDEr", "Bleu_4", "ROUGE_L"} for score in captions)


def test_a_run_on_coin_learns_questions_without_an_image_and_scores_boxes(
    model: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    write_coin(tmp_path / "data")
    result = cl_zoo.run(
        "hide",
        benchmark="coin",
        data=tmp_path / "data",
        backbone=model,
        features=str(tiny_folder / "clip"),
        order="ScienceQA,Grounding,TextVQA",
        out=tmp_path / "runs",
        **SMALL,
    )

    answers = [
        json.loads(line) for line in (result.folder / "answers" / "2-0.jsonl").read_text().splitlines()
    ]
    assert all(len(answer["route"]) == 3 for answer in answers)
    assert list(result.manifest["scores"]) == ["0-0", "1-0", "1-1", "2-0", "2-1", "2-2"]
    assert {score["metric"].partition("/")[0] for score in result.manifest["scores"].values()} == {
        "scienceqa",
        "grounding",
        "textvqa",
    }


def test_an_image_that_breaks_off_in_training_ends_one_run_with_its_name_and_loses_nothing_else(
    model: Path, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    """The second task's image is cut: told before the first step, or else met in the second task, behind which the first one stays."""
    write_ucit(tmp_path / "data")
    victim = sorted((tmp_path / "data" / "datasets" / "ArxivQA" / "images").iterdir())[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    command = [
        *(
            "run",
            "finetune",
            "--benchmark",
            "ucit",
            "--data",
            tmp_path / "data",
            "--backbone",
            model,
        ),
        *(*FLAGS, "--out", tmp_path / "runs", "--json", "--order", "RA"),
    ]
    ended = cli(*command)

    assert ended.code == 2
    assert str(victim) in ended.err
    assert not list((tmp_path / "runs").glob("*.partial/state-*"))

    ended = cli(*command, "--no-preflight")

    assert ended.code == 2
    assert str(victim) in ended.err
    (partial,) = [one for one in (tmp_path / "runs").iterdir() if one.suffix == ".partial"]
    assert (partial / "state-1").is_dir()

    victim.write_bytes(whole)
    assert cli(*command).code == 0
    assert not os.path.exists(partial)
