"""How many images a second `cl-zoo data check` looks at: whole checks of a folder of rendered pictures.

    python benchmarks/performance/data_check.py [--images 200000] [--jobs 1 2] --json FILE

Writes the pictures (JPEG and PNG in turn, 480 × 320; each file is another one by a few bytes behind its end), training and test
records and a description into a temporary folder, then checks it in each of the ways below, every time the same work as the command does: records read, every
image opened, contents compared. The files have just been written, so the disk's cache holds them: what is measured is
processor time, and a slow disk comes on top. `images_per_second_per_core` is images by wall-clock time and process, `images_per_cpu_second` by processor time of all
processes, which does not count waiting for a core on a shared machine.
`headers` opens images without comparing them, `exact` is the command's default, `perceptual` and `decode` take fewer images.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw
from results import given, machine, options, positive, versions, write

from cl_zoo.data.benchmarks import Described
from cl_zoo.inspection.check import inspect

WAYS: dict[str, dict[str, Any]] = {
    "headers": {"overlap": "none"},
    "exact": {"overlap": "exact"},
    "perceptual": {"overlap": "perceptual"},
    "decode": {"overlap": "exact", "decode": True},
}
SLOW_SHARE = 50
"""`perceptual` and `decode` take this part of the images."""
RENDERED = 1000
"""Different pictures; an even number, so that a name's suffix fits its picture."""
LIBRARIES = ("cl-zoo", "pillow", "imagehash", "numpy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit code."""
    asked = _parse(arguments)
    asked.json.parent.mkdir(parents=True, exist_ok=True)  # before minutes are spent
    result = measure(asked)
    write(asked.json, result)
    print(json.dumps(result["ways"], indent=1))
    return 0


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """The complete result."""
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        fast = _write(Path(folder) / "all", asked.images)
        slow = _write(Path(folder) / "some", max(2, asked.images // SLOW_SHARE))
        ways: dict[str, Any] = {}
        for name, settings in WAYS.items():
            description, count = fast if name in ("headers", "exact") else slow
            ways[name] = {f"jobs {jobs}": _check(description, count, jobs, settings) for jobs in asked.jobs}
        size = sum(path.stat().st_size for path in (Path(folder) / "all").glob("*.*g"))
    return {
        "command": asked.command,
        "ways": ways,
        "setting": {"images": asked.images, "mean_bytes": size // asked.images, "formats": ["JPEG", "PNG"]},
        "machine": {**machine(), "load_before": load, "load_after": os.getloadavg()},
        "versions": versions(LIBRARIES),
    }


def _check(description: Path, count: int, jobs: int, settings: dict[str, Any]) -> dict[str, Any]:
    began, worked = time.perf_counter(), _processor_seconds()
    report = inspect(Described(description, beside=True), None, processes=jobs, **settings)
    seconds, worked = time.perf_counter() - began, _processor_seconds() - worked
    if not report.ok or report.images["checked"] != count:
        raise SystemExit(f"the rendered data are not as they should be: {report.lines()}")
    rate = count / seconds
    return {
        "images": count,
        "seconds": round(seconds, 6),
        "images_per_second": round(rate, 1),
        "images_per_second_per_core": round(rate / jobs, 1),
        "cpu_seconds": round(worked, 3),
        "images_per_cpu_second": round(count / worked, 1),
    }


def _processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _write(folder: Path, count: int) -> tuple[Path, int]:
    """Pictures, records and a description; one record per picture, every tenth of them in the test file."""
    folder.mkdir()
    train, test = [], []
    for number in range(count):
        name = f"{number:06d}.{'jpg' if number % 2 else 'png'}"
        (folder / name).write_bytes(encoded(number % RENDERED) + number.to_bytes(8))
        prompt = "How many shapes are there?\nAnswer the question using a single word or phrase."
        if number % 10:
            turns = [{"from": "human", "value": f"<image>\n{prompt}"}, {"from": "gpt", "value": "3"}]
            train.append({"id": number, "image": name, "conversations": turns})
        else:
            test.append({"question_id": number, "image": name, "text": prompt, "answer": "3"})
    splits = {"train": (train, "llava"), "test": (test, "question")}
    task: dict[str, Any] = {"name": "shapes", "letter": "S", "instruction": "", "metric": "exact"}
    for split, (records, form) in splits.items():
        (folder / f"{split}.json").write_text(json.dumps(records))
        task[split] = {"files": [f"{split}.json"], "format": form, "count": len(records)}
    about = {"name": "shapes", "version": "1", "methods": ["finetune"], "backbone": "llava"}
    description = folder / "shapes.yaml"
    description.write_text(yaml.safe_dump({**about, "tasks": [{**task, "max_new_tokens": 8}]}))
    return description, count


@lru_cache(maxsize=RENDERED)
def encoded(number: int) -> bytes:
    """The file of the picture of a number: JPEG where it is odd, else PNG."""
    file = io.BytesIO()
    _picture(number).save(file, "JPEG" if number % 2 else "PNG")
    return file.getvalue()


def _picture(number: int) -> Image.Image:
    """A ground that runs from one colour to another, and shapes whose places and colours are the number's."""
    steps = Image.linear_gradient("L").resize((480, 320)).rotate(number % 360)
    picture = Image.merge("RGB", (steps, steps.transpose(Image.Transpose.ROTATE_180), steps))
    draw = ImageDraw.Draw(picture)
    for place in range(12):
        value = (number * 2654435761 + place * 40503) % 2**32
        x, y, side = value % 440, value // 440 % 280, 12 + value // 7 % 60
        colour = (value >> 3 & 255, value >> 11 & 255, value >> 19 & 255)
        (draw.ellipse if place % 2 else draw.rectangle)((x, y, x + side, y + side), fill=colour)
    return picture


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--images", type=positive, default=200_000)
    parser.add_argument("--jobs", type=positive, nargs="+", default=[1, 2], help="processes, one check each")
    return given(parser, "data_check.py", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
