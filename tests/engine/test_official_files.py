"""The main job on files in the official formats: a comparison on UCIT and on CoIN, from folders to a table, on a tiny LLaVA."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from conftest import Ended
from official_files import write_coin, write_ucit

import cl_zoo

SMALL = {"recipe": {"global_batch": 4, "precision": "fp32", "checkpointing": False}, "device": "cpu"}
FLAGS = "--set global_batch=4 --set precision=fp32 --set checkpointing=false --device cpu".split()


def test_a_comparison_on_ucit_needs_nothing_but_the_folders_of_data_and_model(
    tiny_folder: Path, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    """Six tasks of six and four samples, two methods: every cell of the lower triangle has a score of all its answers."""
    write_ucit(tmp_path / "data")
    model, clip = tiny_folder / "llava", tiny_folder / "clip"
    ended = cli(
        *("compare", "--benchmark", "ucit", "--data", tmp_path / "data", "--methods", "finetune,hide"),
        *("--backbone", model, "--features", clip, *FLAGS, "--out", tmp_path / "runs", "--jobs", 2, "--json"),
    )

    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)["runs"]
    assert [row["label"] for row in rows] == ["finetune", "hide"]
    for folder in (one for one in (tmp_path / "runs").iterdir() if (one / "manifest.json").is_file()):
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["tasks"] == ["ImageNet-R", "ArxivQA", "VizWiz", "IconQA", "CLEVR-Math", "Flickr30k"]
        assert {score["count"] for score in manifest["scores"].values()} == {4}
        assert len(manifest["scores"]) == 21
        captions = [score for cell, score in manifest["scores"].items() if cell[2] in "25"]
        assert all(set(score["parts"]) >= {"METEOR", "CIDEr", "Bleu_4", "ROUGE_L"} for score in captions)


def test_a_run_on_coin_learns_questions_without_an_image_and_scores_boxes(
    tiny_folder: Path, tmp_path: Path
) -> None:
    write_coin(tmp_path / "data")
    result = cl_zoo.run(
        "hide",
        benchmark="coin",
        data=tmp_path / "data",
        backbone=tiny_folder / "llava",
        features=str(tiny_folder / "clip"),
        order="ScienceQA,Grounding,TextVQA",
        out=tmp_path / "runs",
        **SMALL,
    )

    answers = [
        json.loads(line) for line in (result.folder / "answers" / "2-0.jsonl").read_text().splitlines()
    ]
    assert all(len(answer["route"]) == 3 for answer in answers)
    assert {score["metric"].partition("/")[0] for score in result.manifest["scores"].values()} == {
        "scienceqa",
        "grounding",
        "textvqa",
    }


def test_an_image_that_breaks_off_in_training_ends_one_run_with_its_name_and_loses_nothing_else(
    tiny_folder: Path, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    """The second task's image is cut after the comparison was planned; what was learnt before it stays for the next try."""
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
            tiny_folder / "llava",
        ),
        *(*FLAGS, "--out", tmp_path / "runs", "--json", "--order", "RA"),
    ]
    ended = cli(*command)

    assert ended.code == 2
    assert str(victim) in ended.err
    (partial,) = [one for one in (tmp_path / "runs").iterdir() if one.suffix == ".partial"]
    assert (partial / "state-1").is_dir()

    victim.write_bytes(whole)
    assert cli(*command).code == 0
    assert not os.path.exists(partial)
