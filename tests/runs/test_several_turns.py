"""Runs on conversations of several questions and on several images: what is learnt in how many steps, and what is written of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cl_zoo.errors import DataError
from cl_zoo.runs.answered import answered as answers_of
from cl_zoo.testing import square, tiny_internvl, tiny_qwen, tiny_qwen3, tiny_smolvlm

ASKED = ("What colour is it ?", "Where is the square ?", "Say side in short .")
SAID = {"split": (18, 18), "all": (6, 18), "last": (6, 6)}
"""Samples and answers of six records of three questions, by `turns`."""

WRITERS = {
    "internvl": tiny_internvl,
    "qwen2.5-vl": tiny_qwen,
    "qwen3-vl": tiny_qwen3,
    "smolvlm2": tiny_smolvlm,
}
"""Families that were taught several images, and who writes a tiny one of each."""


@pytest.fixture
def talks(tmp_path: Path) -> Callable[[str], str]:
    """Two tasks of six conversations about an image, and a test split that asks with the turns before."""
    records = []
    for number in range(6):
        image, colour, side = square(number)
        image.save(tmp_path / f"{number}.png")
        texts = [
            text for asked, said in zip(ASKED, (colour, side, side), strict=True) for text in (asked, said)
        ]
        speakers = ["human", "gpt"] * 3
        turns = [{"from": who, "value": text} for who, text in zip(speakers, texts, strict=True)]
        records.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (tmp_path / "talks.json").write_text(json.dumps(records))

    def write(turns: str) -> str:
        about: dict[str, Any] = {"name": "talks", "version": "1", "methods": ["finetune"]}
        about |= {
            "backbone": "cl_zoo.testing:load_tiny_backbone",
            "recipe": {"global_batch": 3, "lr.adapters": 1e-2},
        }
        said = {"files": ["talks.json"], "format": "llava"}
        task = {
            "instruction": "",
            "metric": "exact",
            "max_new_tokens": 3,
            "train": {**said, "turns": turns},
            "test": said,
        }
        about["tasks"] = [{"name": "first", "letter": "F", **task}, {"name": "second", "letter": "S", **task}]
        (tmp_path / "talks.yaml").write_text(yaml.safe_dump(about))
        return str(tmp_path / "talks.yaml")

    return write


@pytest.mark.parametrize("turns", sorted(SAID))
def test_a_stack_learns_conversations_and_the_manifest_counts_them(
    run_tiny: Callable[..., Any], talks: Callable[[str], str], turns: str
) -> None:
    """With a teacher, a memory, a Fisher information and a probe, all of which see several answers in a sequence."""
    result = run_tiny(
        "lwf",
        benchmark=talks(turns),
        with_=["ewc", "replay"],
        probes=["cka"],
        recipe={"epochs": 1, "micro_batch": 2},
    )

    samples, answers = SAID[turns]
    first, second = result.ledger["tasks"]
    assert (first["samples"], first["steps"]) == (samples, samples // 3)
    assert second["rehearsed"] == samples
    assert first["answer_tokens"] == 2 * answers  # a word each, and its end
    counted = {"records": 6, "samples": samples, "questions": 18, "answers": answers}
    assert result.manifest["conversations"] == {"first": counted, "second": counted}
    (answered, *_) = (result.folder / "answers" / "1-1.jsonl").read_text().splitlines()
    assert json.loads(answered)["prompt"] == ASKED[-1]
    (sample, *_) = list(answers_of(result.folder, "second"))
    assert (sample.before, sample.question) == (((ASKED[0], "red"), (ASKED[1], "left")), ASKED[-1])


def test_nothing_is_said_of_conversations_where_all_ask_once(run_tiny: Callable[..., Any]) -> None:
    assert "conversations" not in run_tiny("zeroshot").manifest


@pytest.mark.parametrize("family", sorted(WRITERS))
def test_several_images_are_learnt_rehearsed_answered_and_named(
    run_tiny: Callable[..., Any], talks: Callable[[str], str], tmp_path: Path, family: str
) -> None:
    folder = WRITERS[family](tmp_path / "model")
    records = json.loads(Path(talks("all")).with_name("talks.json").read_text())
    for number, record in enumerate(records):
        record["images"] = [record.pop("image"), f"{(number + 1) % 6}.png", "0.png"][: 1 + number % 3]
    (tmp_path / "talks.json").write_text(json.dumps(records))

    result = run_tiny(
        "finetune",
        benchmark=str(tmp_path / "talks.yaml"),
        with_=["replay"],
        backbone=f"{family}:{folder}",
        recipe={"epochs": 1, "micro_batch": 2},
    )

    assert result.ledger["tasks"][1]["rehearsed"] == 6
    expected = [
        json.loads(line) for line in (result.folder / "expected" / "0.jsonl").read_text().splitlines()
    ]
    assert [one["picture"] for one in expected[:3]] == ["0.png", "1.png, 2.png", "2.png, 3.png, 0.png"]


def test_one_image_too_many_is_told_before_the_first_step(
    run_tiny: Callable[..., Any], talks: Callable[[str], str], tmp_path: Path
) -> None:
    records = json.loads(Path(talks("all")).with_name("talks.json").read_text())
    records[4]["images"] = [records[4].pop("image"), "0.png"]
    (tmp_path / "talks.json").write_text(json.dumps(records))

    with pytest.raises(
        DataError, match=r"talks\.json, record 5 \(id '4'\): has 2 images where backbone .* was taught one"
    ):
        run_tiny("finetune", benchmark=str(tmp_path / "talks.yaml"))
