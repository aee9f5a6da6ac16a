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

    assert result.matrix.last == 100
    assert result.ledger["tasks"][1]["rehearsed"] == 12 * 4  # in every epoch
    lines = (result.folder / "expected" / "0.jsonl").read_text().splitlines()
    assert [json.loads(line)["picture"] for line in lines] == ["red.mp4", "blue.mp4"]


def test_a_run_answers_about_a_video_and_several_images_by_command_and_in_python(
    run_tiny: Callable[..., Any], films: Path, tmp_path: Path, cli: Any
) -> None:
    """The same answers from a video, from its frames as files, and from pictures in memory."""
    recipe = {"epochs": 12, "global_batch": 4, "lr.adapters": 1e-2}
    folder = tiny_qwen(tmp_path / "model")
    result = run_tiny(
        "finetune", benchmark=str(films), order="F", backbone=f"qwen2.5-vl:{folder}", recipe=recipe
    )
    frames = cl_zoo.frames(films.parent / "red.mp4", 2)
    pictures = [cl_zoo.open_image(one) for one in frames]
    for place, picture in enumerate(pictures):
        picture.save(tmp_path / f"{place}.png")
    files = [str(tmp_path / f"{place}.png") for place in range(2)]

    assert (
        result.generate([frames, pictures, files], [ASKED, ASKED, f"<image>\n<image>\n{ASKED}"])
        == ["red"] * 3
    )

    def said(*arguments: Any) -> list[str]:
        ended = cli("predict", result.folder, *arguments, "--device", "cpu")
        assert ended.code == 0, ended.err
        return ended.out.splitlines()

    videos = [films.parent / f"{colour}.mp4" for colour in COLOURS]
    assert said("--video", videos[1], "--frames", 2, "--prompt", ASKED) == ["blue"]
    each = [part for video in videos for part in ("--video", video, "--prompt", ASKED)]
    assert said(*each, "--frames", 2) == ["red", "blue"]
    assert said("--image", files[0], "--image", files[1], "--prompt", ASKED) == ["red"]
    asked = [{"image": files, "prompt": ASKED}, {"video": str(videos[1]), "prompt": ASKED}]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    records = list(map(json.loads, said("--input", tmp_path / "asked.jsonl", "--frames", 2)))
    assert [(one["image"], one.get("video"), one["answer"]) for one in records] == [
        (files, None, "red"),
        (None, str(videos[1]), "blue"),
    ]
    with pytest.raises(
        OptionError, match="image 0 is a int; pass a PIL image, the path of a file, a list of these"
    ):
        result.generate([[frames[0], 3]], [ASKED])
    with pytest.raises(DataError, match="prompt 0: marks 3 places of images with <image> and has 2"):
        result.generate([frames], ["<image><image><image>Who ?"])


def test_a_model_that_was_taught_one_image_takes_one_frame_and_refuses_more_before_the_first_step(
    run_tiny: Callable[..., Any], films: Path
) -> None:
    with pytest.raises(
        DataError, match=r"train\.json, record 1: has 2 images where backbone .* was taught one"
    ):
        run_tiny("finetune", benchmark=str(films))

    films.write_text(films.read_text().replace("frames: 2", "frames: 1"))
    result = run_tiny("finetune", benchmark=str(films), order="F", recipe={"epochs": 1, "global_batch": 4})
    assert result.ledger["tasks"][0]["samples"] == 4


def test_a_video_that_is_damaged_is_told_once_before_the_first_step(
    run_tiny: Callable[..., Any], films: Path, tmp_path: Path
) -> None:
    (films.parent / "red.mp4").write_bytes(b"no video at all")

    with pytest.raises(DataError) as caught:
        run_tiny("finetune", benchmark=str(films), backbone=f"qwen2.5-vl:{tiny_qwen(tmp_path / 'model')}")
    assert (
        str(caught.value).count("red.mp4 cannot be read as a video: invalid data found") == 2
    )  # a task each
