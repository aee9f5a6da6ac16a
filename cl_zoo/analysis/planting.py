"""How much of what stands in a mix is found: duplicates are planted in one that is known, and found or not.

Every test sample of a benchmark gets one change of its picture and one of its text, in turn, and goes into a mix beside training samples
of the benchmark; the samples of the kind `not planted` do not, and whatever is found of them is a false alarm.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from cl_zoo.analysis.columns import columns
from cl_zoo.analysis.mixes import read_mix
from cl_zoo.analysis.outcome import Outcome
from cl_zoo.analysis.overlap import NEAR, WORDS, Asked, asked_of, find
from cl_zoo.errors import OptionError
from cl_zoo.features.encoder import open_image
from cl_zoo.tasks import Benchmark, ImageSource, Sample, TaskData
from cl_zoo.videos import frame_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEFT_OUT, COPIED = "not planted", "copied"


def _reworded(said: list[str]) -> list[str]:
    """Every tenth word is another one."""
    return ["changed" if place % 10 == 9 else word for place, word in enumerate(said)]


def _shuffled(said: list[str]) -> list[str]:
    mixed = list(said)
    random.Random(len(said)).shuffle(mixed)
    return mixed


def _half(image: Image.Image) -> Image.Image:
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)))


def _cropped(image: Image.Image) -> Image.Image:
    """A tenth of the width and of the height is cut off."""
    return image.crop((0, 0, image.width - image.width // 10, image.height - image.height // 10))


CHANGES: Mapping[str, tuple[str, Callable[[Image.Image], Image.Image], dict[str, Any]]] = {
    COPIED: (".png", lambda image: image, {}),
    "saved as PNG": (".png", lambda image: image, {}),
    "JPEG of quality 75": (".jpg", lambda image: image, {"quality": 75}),
    "JPEG of quality 30": (".jpg", lambda image: image, {"quality": 30}),
    "half the size": (".png", _half, {}),
    "cropped by a tenth": (".png", _cropped, {}),
    "mirrored": (".png", ImageOps.mirror, {}),
}
"""What may be done to a picture: the ending of its file, the change, and how it is written."""

EDITS: Mapping[str, Callable[[list[str]], list[str]]] = {
    "as it is": list,
    "capitals and punctuation": lambda said: [f"{word.capitalize()}," for word in said],
    "one word in ten changed": _reworded,
    "in another order": _shuffled,
}
"""What may be done to the words of a text."""


def planting(
    benchmark: Benchmark,
    *,
    length: int = WORDS,
    bits: int = NEAR,
    limit: int | None = None,
    processes: int = 1,
) -> Outcome:
    """Plant changed test samples of a benchmark in a mix, look for them, and count what is found of each change.

    Args:
        length, bits: as for `cl_zoo.analysis.overlap.overlap`.
        limit: test samples of each task.
        processes: that read pictures.

    Raises:
        OptionError: the benchmark has no picture and no text that is long enough.
    """
    pictures, texts = [*CHANGES, LEFT_OUT], [*EDITS, LEFT_OUT]
    asked: list[tuple[Asked, str, str]] = []
    with tempfile.TemporaryDirectory() as place:
        records = []
        for task in benchmark.tasks:
            records += _background(task, Path(place), limit)
            for number, sample in enumerate(task.test if limit is None else task.test[:limit]):
                change, edit = pictures[number % len(pictures)], texts[number % len(texts)]
                asked.append((asked_of(sample, task.name, task.instruction, length), change, edit))
                records.append(_planted(sample, task, change, edit, Path(place) / f"{task.letter}-{number}"))
        Path(place, "mix.json").write_text(json.dumps(records), encoding="utf-8")
        find([one for one, _, _ in asked], read_mix([place]), length, bits, processes)
    seen = [(one, change) for one, change, _ in asked if one.files or one.outlines]
    said = [(one, edit) for one, _, edit in asked if one.runs]
    if not seen and not said:
        raise OptionError(
            f"{benchmark.name} has no picture and no text of {length} words; pass fewer --words"
        )
    rows = [_rate("picture", kind, seen, {"exact", "near"}) for kind in pictures]
    rows += [_rate("text", kind, said, {"text"}) for kind in texts]
    rows = [row for row in rows if row["samples"]]
    heads = {"of": "of", "change": "change", "samples": "samples", "found": "found", "percent": "percent"}
    told = ", ".join(f"{row['of']} {row['change']} {row['percent']:.0f} %" for row in rows)
    return Outcome(
        "planting",
        f"{benchmark.name}: found of what was planted: {told}.",
        rows,
        lambda: _draw(rows),
        columns(rows, heads),
    )


def _planted(sample: Sample, task: TaskData, change: str, edit: str, stem: Path) -> dict[str, Any]:
    """The record of a sample as it goes into the mix, with its changed picture beside it."""
    record: dict[str, Any] = {}
    if change != LEFT_OUT and sample.image is not None:
        ending, made, how = CHANGES[change]
        if change == COPIED and isinstance(sample.image, Path) and frame_of(sample.image) is None:
            ending = sample.image.suffix
            shutil.copy(sample.image, stem.with_suffix(ending))
        else:
            made(_opened(sample.image)).save(stem.with_suffix(ending), **how)
        record["image"] = stem.with_suffix(ending).name
    if edit != LEFT_OUT:
        question = sample.prompt.replace(task.instruction, " ") if task.instruction else sample.prompt
        texts = [question, *([sample.answer] if sample.answer else []), *sample.references]
        record["texts"] = [" ".join(EDITS[edit](text.split())) for text in texts]
    return record


def _background(task: TaskData, place: Path, limit: int | None) -> list[dict[str, Any]]:
    """As many training samples as are asked about, as they are."""
    count = min(len(task.train), len(task.test) if limit is None else limit)
    records = []
    for number in range(count):
        sample = task.train[number]
        record: dict[str, Any] = {"texts": [sample.prompt, sample.answer or ""]}
        if sample.image is not None:
            name = f"{task.letter}-train-{number}.png"
            _opened(sample.image).save(place / name)
            record["image"] = name
        records.append(record)
    return records


def _opened(image: ImageSource) -> Image.Image:
    if isinstance(image, Path):
        if frame_of(image) is not None:
            return open_image(image)
        with Image.open(image) as file:
            return file.convert("RGB")
    return image.convert("RGB")


def _rate(of: str, kind: str, asked: Sequence[tuple[Asked, str]], names: set[str]) -> dict[str, Any]:
    own = [one for one, change in asked if change == kind]
    found = sum(bool(one.found & names) for one in own)
    return {
        "of": of,
        "change": kind,
        "samples": len(own),
        "found": found,
        "percent": 100 * found / max(len(own), 1),
    }


def _draw(rows: Sequence[Mapping[str, Any]]) -> Axes:
    from cl_zoo.report import colours
    from cl_zoo.report.figures import new_axes

    axes = new_axes(6.4, 1.0 + 0.32 * len(rows))
    colour = [colours.of_method(row["change"] == LEFT_OUT)[0] for row in rows]
    axes.barh(range(len(rows)), [row["percent"] for row in rows], color=colour)
    axes.set_yticks(range(len(rows)), [f"{row['of']}: {row['change']}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("Percent found")
    drawn: Axes = axes
    return drawn
