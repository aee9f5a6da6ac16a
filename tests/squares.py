"""The tiny benchmark as files that a test may edit: a YAML file, pictures, and for each task records to learn and to ask."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cl_zoo.testing import tiny_benchmark

Change = Callable[[list[dict[str, Any]]], Any]


def squares(folder: Path, size: int = 8) -> Path:
    """Write three tasks (C, S, D) into a folder; returns the YAML file."""
    benchmark, tasks = tiny_benchmark(3, size), []
    (folder / "pictures").mkdir(parents=True)
    for task in benchmark.tasks:
        train = [
            {
                "id": f"{task.name}-{sample.id}",
                "image": _picture(folder, sample),
                "conversations": [
                    {"from": "human", "value": f"<image>\n{sample.prompt}"},
                    {"from": "gpt", "value": sample.answer},
                ],
            }
            for sample in task.train
        ]
        test = [
            {
                "question_id": sample.id,
                "image": _picture(folder, sample),
                "text": sample.prompt,
                "answer": sample.answer,
                **({"references": list(sample.references)} if sample.references else {}),
            }
            for sample in task.test
        ]
        for split, records in (("train", train), ("test", test)):
            (folder / f"{task.name}_{split}.json").write_text(json.dumps(records))
        tasks.append(
            {
                "name": task.name,
                "letter": task.letter,
                "instruction": task.instruction,
                "metric": "exact",  # no Java is started for captions
                "max_new_tokens": task.max_new_tokens,
                "train": {"files": [f"{task.name}_train.json"], "format": "llava"},
                "test": {"files": [f"{task.name}_test.json"], "format": "question"},
            }
        )
    about = {
        "name": "squares",
        "version": "1",
        "methods": ["finetune"],
        "backbone": "cl_zoo.testing:load_tiny_backbone",
        "recipe": dict(benchmark.recipe),
        "images": ["pictures"],
        "tasks": tasks,
    }
    file = folder / "squares.yaml"
    file.write_text(yaml.safe_dump(about, sort_keys=False))
    return file


def edited(benchmark: Path, name: str, change: Change) -> None:
    """Change the records of a file beside the YAML file: `colour_train.json`."""
    file = benchmark.parent / name
    records = json.loads(file.read_text(encoding="utf-8-sig"))
    change(records)
    file.write_text(json.dumps(records))


def _picture(folder: Path, sample: Any) -> str:
    name = f"{sample.id}.png"
    sample.image.save(folder / "pictures" / name)
    return name
