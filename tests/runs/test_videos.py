"""Runs on short videos: what is learnt and answered from their frames, by which commands, and what is refused before the first step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from films import film
from PIL import Image

import cl_zoo
from cl_zoo.errors import DataError, OptionError
from cl_zoo.testing import tiny_internvl, tiny_llava_onevision, tiny_qwen, tiny_qwen3, tiny_smolvlm

WRITERS = {
    "internvl": tiny_internvl,
    "llava-onevision": tiny_llava_onevision,
    "qwen2.5-vl": tiny_qwen,
    "qwen3-vl": tiny_qwen3,
    "smolvlm2": tiny_smolvlm,
}
"""Families that were taught several images, and who writes a tiny one of each."""
COLOURS = ("red", "blue")
ASKED = "What colour is it ?"


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Two tasks about two films that begin alike, in grey, and end in colours of their own."""
    for colour in COLOURS:
        grey = Image.new("RGB", (32, 32), "grey")
        film(tmp_path / f"{colour}.mp4", [grey] * 3 + [Image.new("RGB", (32, 32), colour)] * 3)
    turns = {
        colour: [{"from": "human", "value": f"<video>\n{ASKED}"}, {"from": "gpt", "value": colour}]
        for colour in COLOURS
    }
    learnt = [{"video": f"{colour}.mp4", "conversations": turns[colour]} for colour in COLOURS * 2]
    asked = [
        {"question_id": colour, "video": f"{colour}.mp4", "text": ASKED, "answer": colour}
        for colour in COLOURS
    ]
    (tmp_path / "train.json").write_text(json.dumps(learnt))
    (tmp_path / "test.json").write_text(json.dumps(asked))
    task = {
        "metric": "exact",
        "max_new_tokens": 3,
        "train": {"files": ["train.json"], "format": "llava"},
        "test": {"files": ["test.json"], "format": "question"},
    }
    about = {"name": "films", "version": "1", "methods": ["finetune"], "backbone": "mini", "frames": 2}
    about["tasks"] = [{"name": "first", "letter": "F", **task}, {"name": "second", "letter": "S", **task}]
    (tmp_path / "films.yaml").write_text(yaml.safe_dump(about))
    return tmp_path / "films.yaml"


@pytest.mark.parametrize("family", sorted(WRITERS))
def test_what_a_video_shows_late_is_learnt_and_answered(
    run_tiny: Callable[..., Any], films: Path, tmp_path: Path, family: str
) -> None:
    """The first frame is the same in both films, so a right answer comes from the second."""
    result = run_tiny(
        "finetune",
        benchmark=str(films),
        with_=["replay"],
        backbone=f"{family}:{WRITERS[family](tmp_path / 'model')}",
        recipe={"epochs": 12, "global_batch": 4, "lr.adapters": 1e-2},
    )

    print(result.matrix, [t["seconds"] for t in result.ledger["tasks"]])
    assert result.matrix.last == 100
