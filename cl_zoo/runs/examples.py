"""A few samples of each task with their picture and what every method answered after each task, first those that most methods forgot.

Pictures come from the benchmark where its data are at hand and are those that the runs were made on. A benchmark is loaded when it is an
installed one or a YAML file: what a run's folder names is not run.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cl_zoo.data.benchmarks import load_benchmark
from cl_zoo.errors import ClZooError, no_file
from cl_zoo.images.frames import read_frame
from cl_zoo.images.kinds import as_rgb, faithfully
from cl_zoo.names import BENCHMARKS, installed
from cl_zoo.runs.answered import Asked, answered
from cl_zoo.runs.chain import data_of
from cl_zoo.runs.result import Result
from cl_zoo.tasks import Benchmark, ImageSource, Sample, TaskData, as_named
from cl_zoo.videos import file_of, frame_of

SIDE = 144
"""Pixels of a thumbnail's longer side."""

GAP = 4
"""Pixels between pictures of one sample."""

LONGEST = 400
"""Signs of a question or an answer that are shown."""


@dataclass(frozen=True)
class Said:
    """What one method answered: by stage an answer and its score, `None` where it was not asked."""

    label: str
    answers: tuple[dict[str, Any] | None, ...]
    forgotten: bool


@dataclass(frozen=True)
class Example:
    """A test sample.

    Attributes:
        place: in the task's test split.
        question: behind the turns before it, a line each.
        picture: a data URI, of several pictures side by side; empty where there is none at hand.
        said: of each method.
    """

    task: str
    place: int
    question: str
    expected: str
    said: tuple[Said, ...]
    picture: str = ""

    @property
    def first(self) -> int:
        """The stage at which it was asked for the first time."""
        asked = [n for one in self.said for n, said in enumerate(one.answers) if said is not None]
        return min(asked, default=0)

    @property
    def forgotten(self) -> int:
        """How many methods were right on it and are wrong now."""
        return sum(one.forgotten for one in self.said)


def examples(results: Sequence[Result], count: int) -> list[Example]:
    """Examples of one order of tasks, without pictures: of every label the run of its lowest seed.

    Args:
        results: finished runs of one stream; those whose samples have no scores on disk are left out.
        count: for each task.
    """
    first: dict[str, Result] = {}
    for one in sorted(results, key=lambda one: one.seed):
        if _scored(one):
            first.setdefault(one.label, one)
    asked: dict[tuple[int, int], dict[str, Asked]] = {}
    for one in results:
        if first.get(one.label) is one and one.folder is not None and count:
            for sample in answered(one.folder):
                asked.setdefault((sample.task_place, sample.about["place"]), {})[one.label] = sample
    made = [_example(by_label, len(results[0].manifest["lessons"])) for by_label in asked.values()]
    places: dict[int, list[Example]] = {}
    for (task, _), example in zip(asked, made, strict=True):
        places.setdefault(task, []).append(example)
    return [
        one
        for task in sorted(places)
        for one in sorted(places[task], key=lambda one: (-one.forgotten, one.place))[:count]
    ]


def pictures(
    found: Sequence[Example], manifest: Mapping[str, Any], data: str | None = None
) -> tuple[list[Example], str]:
    """The examples with their thumbnails, and why there are none, where there are none.

    Args:
        manifest: of one of the runs.
        data: the folder of the benchmark's data; default: the one that the run was made with.
    """
    if not found:
        return [], ""
    try:
        tasks = _tasks(manifest, data)
    except ClZooError as error:
        return list(found), f"Pictures are not shown: {error}."
    shown = []
    for one in found:
        images = _images(tasks[one.task].test, one.place)
        shown.append(Example(one.task, one.place, one.question, one.expected, one.said, thumbnail(*images)))
    return shown, ""


def thumbnail(*images: ImageSource) -> str:
    """Small pictures side by side as a data URI; empty where there is none, or none can be read."""
    small = [one for one in map(_small, images) if one is not None]
    if not small:
        return ""
    wide = sum(one.width + GAP for one in small) - GAP
    strip, left = Image.new("RGB", (wide, max(one.height for one in small)), "white"), 0
    for one in small:
        strip.paste(one, (left, 0))
        left += one.width + GAP
    held = io.BytesIO()
    strip.save(held, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"


def _small(image: ImageSource) -> Image.Image | None:
    """A picture as it is shown; `None` where it cannot be read."""
    try:
        if isinstance(image, Path):
            if no_file(file_of(image)):
                return None
            if (frame := frame_of(image)) is not None:
                small = read_frame(frame, turned=faithfully(image))
            else:
                with Image.open(image) as opened:
                    small = as_rgb(opened, faithful=faithfully(image))
        else:
            small = as_rgb(image)
        small.thumbnail((SIDE, SIDE))
    except Exception:  # Pillow's readers raise whatever a broken file leads them to
        return None
    return small


def _images(split: Sequence[Sample], place: int) -> Sequence[ImageSource]:
    """Those of a sample; none where a picture is damaged or there is no such sample."""
    try:
        return as_named(split, place).images if place < len(split) else ()
    except ClZooError:
        return ()


def _tasks(manifest: Mapping[str, Any], data: str | None) -> dict[str, TaskData]:
    """The tasks of the very data that a run was made on, by name.

    Raises:
        ClZooError: they are not at hand.
    """
    job, about = manifest["job"], manifest["identity"]["benchmark"]
    name = str(job["benchmark"])
    known = {one.name for one in installed(BENCHMARKS)}
    plain = name.partition("[")[0]
    if plain not in known and not plain.endswith((".yaml", ".yml")):
        raise ClZooError(f"{name} is no installed benchmark, and a run's folder runs no code")
    benchmark: Benchmark = load_benchmark(name, data or job.get("data"))
    tasks = benchmark.stream(",".join(about.get("order", ())) or None, about.get("limit"))
    here = {task.name: data_of(benchmark, task).asked for task in tasks}
    asked = {task: one["asked"] for task, one in about.get("tests", {}).items()}
    same = here == asked if asked else benchmark.data_hash == about["data"]
    if not same or benchmark.version != about["version"]:
        raise ClZooError(f"the data of {name} that are here are not those that the runs were made on")
    return {task.name: task for task in tasks}


def _scored(result: Result) -> bool:
    """Whether the score of every answer is on disk, so that none has to be made."""
    folder = result.folder
    return folder is not None and all(
        (folder / "scores" / f"{cell}.jsonl").is_file() for cell in result.manifest["scores"]
    )


def _example(asked: Mapping[str, Asked], stages: int) -> Example:
    one = next(iter(asked.values()))
    expected = one.expected if isinstance(one.expected, str) else " | ".join(one.expected or ())
    said = tuple(
        Said(label, tuple(_by_stage(sample, stages)), sample.forgotten) for label, sample in asked.items()
    )
    question = [*(f"{_cut(asked)} → {_cut(answer)}" for asked, answer in one.before), _cut(one.question)]
    return Example(one.task, one.about["place"], "\n".join(question), _cut(expected), said)


def _by_stage(sample: Asked, stages: int) -> Iterator[dict[str, Any] | None]:
    by_stage = {said["stage"]: said for said in sample.answers}
    for stage in range(stages):
        said = by_stage.get(stage)
        yield {"answer": _cut(said["answer"]), "score": said["score"]} if said else None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1].rstrip()}…"
