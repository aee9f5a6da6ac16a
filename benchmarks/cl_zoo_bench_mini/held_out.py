"""Asks the base model held-out questions of its own pre-training: `python -m cl_zoo_bench_mini.held_out`.

Pictures and questions come from seeds that neither pre-training nor a task uses; answers are generated greedily through the
ordinary processor and `generate`, and have to be right word for word (a description: one of its right wordings).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from cl_zoo_bench_mini.backbone import BASE
from cl_zoo_bench_mini.questions import Question, questions
from cl_zoo_bench_mini.vision import draw_scene

STREAM = 5
"""First word of these questions' seeds."""
BATCH = 128


def draw(count: int) -> list[tuple[Image.Image, Question]]:
    """Held-out questions, three about each picture."""
    asked: list[tuple[Image.Image, Question]] = []
    for index in range((count + 2) // 3):
        rng = np.random.default_rng([STREAM, index])
        scene = draw_scene(rng)
        picture = scene.paint(rng)
        asked.extend((picture, question) for question in questions(scene, rng, 3))
    return asked[:count]


@torch.no_grad()
def answers(folder: Path, asked: list[tuple[Image.Image, Question]]) -> list[str]:
    """What the checkpoint in a folder answers."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    given: list[str] = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        texts = [f"USER: <image>\n{question.prompt} ASSISTANT:" for _, question in part]
        inputs = processor(
            images=[picture for picture, _ in part], text=texts, padding=True, return_tensors="pt"
        )
        tokens = model.generate(**inputs, max_new_tokens=24)
        given.extend(
            processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        )
    return given


def accuracy(asked: list[tuple[Image.Image, Question]], given: list[str]) -> dict[str, tuple[float, int]]:
    """Share of right answers and number of questions: over all, by skill and by form of the answer."""
    right: dict[str, list[bool]] = defaultdict(list)
    for (_, question), answer in zip(asked, given, strict=True):
        for name in ("all", question.skill, f"form: {question.form}"):
            right[name].append(question.accepts(answer))
    return {name: (sum(values) / len(values), len(values)) for name, values in sorted(right.items())}


def main() -> None:
    """Print one line per skill and form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=BASE, help="checkpoint folder")
    parser.add_argument("--questions", type=int, default=6000)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if not (options.base / "config.json").is_file():
        parser.error(f"--base {options.base}: no checkpoint is there; pass a folder that holds config.json")
    torch.set_num_threads(1)
    asked = draw(options.questions)
    table = accuracy(asked, answers(options.base, asked))
    for name, (share, count) in table.items():
        print(f"{name:24} {100 * share:6.1f} %  of {count}")
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
