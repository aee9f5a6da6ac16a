"""Small but real tasks for tests, one to three about coloured squares, and the tiny LLaVA and CLIP that go with them.

Nothing here is mocked: the models are those of `cl_zoo.testing.tiny_models`, and training moves real weights.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.llava import load as load_llava
from cl_zoo.tasks import Benchmark, Sample, TaskData
from cl_zoo.testing.tiny_models import tiny_checkpoint, tiny_clip

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "grey": (128, 128, 128)}
"""Colours of the tiny benchmark's squares by name, as RGB."""

TEMPLATE = "USER: {prompt} ASSISTANT:"
"""Chat template of the tiny backbone."""


def tiny_backbone(
    folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32, **options: Any
) -> Backbone:
    """A fresh tiny backbone with a feature encoder; the files are made in `folder` where they are not there yet."""
    if not (folder / "llava" / "config.json").is_file():
        tiny_checkpoint(folder / "llava", **options)
        tiny_clip(folder / "clip")
    where = torch.device(device)
    return load_llava(
        folder / "llava", where, dtype, name="tiny", template=TEMPLATE, features=str(folder / "clip")
    )


def tiny_benchmark(tasks: int = 2, size: int = 12) -> Benchmark:
    """Tasks about one image of a coloured square: its colour, its side, both in a caption (letters C, S, D)."""
    makers = [("colour", "C", "exact"), ("side", "S", "exact"), ("description", "D", "caption")]
    made = tuple(
        TaskData(
            name=name,
            letter=letter,
            instruction="Answer with one word .",
            metric=metric,
            max_new_tokens=4,
            train=_split(name, size, 0),
            validation=_split(name, 4, 1000),
            test=_split(name, max(4, size // 2), 2000),
        )
        for name, letter, metric in makers[:tasks]
    )
    return Benchmark(
        "tiny",
        "1",
        made,
        ("finetune",),
        "cl_zoo.testing:load_tiny_backbone",
        "tiny-1",
        {"global_batch": 4, "lr.adapters": 1e-2},
    )


def square(place: int) -> tuple[Image.Image, str, str]:
    """Image number `place` with its colour and its side."""
    colour, side = list(COLOURS)[place % 4], ("left", "right")[place // 4 % 2]
    image = Image.new("RGB", (16, 16), (250, 250 - place % 50, 250))
    image.paste(COLOURS[colour], (1, 4, 7, 12) if side == "left" else (9, 4, 15, 12))
    return image, colour, side


def _split(task: str, size: int, start: int) -> Sequence[Sample]:
    samples = []
    references: tuple[str, ...]
    for place in range(start, start + size):
        image, colour, side = square(place)
        if task == "colour":
            question, answer, references = "What colour is it ?", colour, ()
        elif task == "side":
            question, answer, references = "Where is the square ?", side, ()
        else:
            question, answer = "Say what is in it .", f"a {colour} square"
            references = (f"a {colour} square", f"one {colour} square", f"a {colour} square {side}")
        samples.append(
            Sample(f"{place:06d}", image, f"{question}\nAnswer with one word .", answer, references)
        )
    return samples


def load_tiny(data: Path | None = None) -> Benchmark:
    """`--benchmark cl_zoo.testing:load_tiny`: two tasks that train in seconds."""
    return tiny_benchmark()


def load_tiny_backbone(path: Path | None, device: torch.device, dtype: torch.dtype) -> Backbone:
    """`--backbone cl_zoo.testing:load_tiny_backbone`: the tiny backbone, its files in a temporary folder of this process."""
    return tiny_backbone(path or tiny_files(), device=str(device), dtype=dtype)


@cache
def tiny_files() -> Path:
    """Folder of the tiny backbone's files, made once in a process; other processes are told where it is."""
    folder = Path(tempfile.mkdtemp(prefix="cl-zoo-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tiny_backbone(folder)
    return folder
