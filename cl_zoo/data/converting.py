"""`cl-zoo data convert`: a benchmark as it was understood, written as JSON lines with a YAML file that describes them.

Training and validation are written as `llava`, test as `question`, with references and all else that answers are scored against in the
records, and as `llava` where its questions have turns before them. Images keep the names that they have; the new YAML file starts from the
same data folder (`--data`). Pictures inside a dataset or in memory are written as PNG files, below `pictures/` beside the YAML file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from cl_zoo.data.benchmarks import Described
from cl_zoo.data.splits import Split
from cl_zoo.data.turns import TOKEN
from cl_zoo.errors import DataError, OptionError, full_disk_named
from cl_zoo.features.encoder import open_image
from cl_zoo.tasks import Benchmark, Sample, TaskData, without_image
from cl_zoo.videos import frame_of

SPLITS = ("train", "validation", "test")
PICTURES = "pictures"
KNOWN = ("answers", "choices", "box", "size")
"""Keys of `truth` that a record has a place for."""


def convert(benchmark: Benchmark, plugin: Any, out: Path, say: Callable[[str], None] = print) -> Path:
    """Write all records of a benchmark and a description of them.

    Args:
        benchmark: as `plugin` made it.
        plugin: what it was loaded by.
        out: a folder that is empty or not there.
        say: told each file that is written.

    Returns:
        The YAML file.

    Raises:
        OptionError: the folder holds something.
        DataError: a record or an image cannot be used; the first one ends it.
        RunError: the disk is full.
    """
    if os.path.exists(out) and (not os.path.isdir(out) or os.listdir(out)):
        raise OptionError(f"--out {out}: holds something already; pass a new folder")
    with full_disk_named(out):
        out.mkdir(parents=True, exist_ok=True)
        tasks = [_task(task, out, say) for task in benchmark.tasks]
        if isinstance(plugin, Described):
            for written, source in zip(tasks, plugin.description.tasks, strict=True):
                written["images"] = _with_pictures(source.images)
                for split in SPLITS:
                    if split in written and (own := getattr(source, split).images):
                        written[split]["images"] = _with_pictures(own)
        about = {
            "name": benchmark.name,
            "version": benchmark.version,
            "methods": list(benchmark.default_methods),
            "backbone": benchmark.default_backbone,
            "recipe": json.loads(json.dumps(dict(benchmark.recipe))),
            "images": [".", PICTURES],
            "orders": dict(benchmark.orders),
            "tasks": tasks,
        }
        if isinstance(plugin, Described):
            about["pictures"] = plugin.description.pictures
        file = out / f"{benchmark.name}.yaml"
        file.write_text(yaml.safe_dump(about, sort_keys=False, allow_unicode=True), encoding="utf-8")
    say(f"{file}: {len(tasks)} {'task' if len(tasks) == 1 else 'tasks'}")
    return file


def _with_pictures(folders: Sequence[str]) -> list[str]:
    return [*folders, *([PICTURES] if PICTURES not in folders else [])]


def _task(task: TaskData, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the splits of a task; what the YAML file says about it."""
    about: dict[str, Any] = {
        key: getattr(task, key) for key in ("name", "letter", "instruction", "metric", "max_new_tokens")
    }
    for split in SPLITS:
        samples: Sequence[Sample] = getattr(task, split)
        if not len(samples):
            continue
        name = f"{_plain(task.name)}_{split}.jsonl"
        form, write = "llava", _talk
        if split == "test":
            talks = any(without_image(samples, place).before for place in range(len(samples)))
            form, write = ("llava", _tested_talk) if talks else ("question", _question)
        learns, kept = set[bool](), set[str]()
        with (out / name).open("w", encoding="utf-8") as file:
            for place, images in enumerate(_images(samples, out, Path(_plain(task.name)) / split)):
                sample = without_image(samples, place)
                file.write(json.dumps(write(sample, images), ensure_ascii=False) + "\n")
                learns |= {sample.learns_before} if sample.before else set()
                kept |= sample.truth.keys() - set(KNOWN)
        say(f"{out / name}: {len(samples):,} {'record' if len(samples) == 1 else 'records'}")
        about[split] = {"files": [name], "format": form, "count": len(samples)}
        if len(learns) > 1:
            says = f"task {task.name}, {split}: of some samples all answers are learnt and of others the last"
            raise DataError(f"{says}, which one file has no place for; leave this benchmark a plugin")
        if False in learns:
            about[split]["turns"] = "last"
        if kept:
            about[split]["truth"] = sorted(kept)
    return about


def _talk(sample: Sample, images: Sequence[str]) -> dict[str, Any]:
    said = [*sample.before, (sample.prompt, sample.answer)]
    first, free = said[0][0], len(images) - sum(text.count(TOKEN) for text in sample.questions)
    # With tokens as LLaVA has them, but where taking one off would take white space of the question with it.
    if first == first.strip():
        said[0] = (f"{TOKEN}\n" * free + first, said[0][1])
    turns = [
        {"from": speaker, "value": text}
        for turn in said
        for speaker, text in zip(("human", "gpt"), turn, strict=True)
    ]
    return {"id": sample.id, **_named(images), "conversations": turns}


def _tested_talk(sample: Sample, images: Sequence[str]) -> dict[str, Any]:
    if sample.answer is None or sample.references or sample.truth:
        says = f"sample {sample.id!r}: is scored against other things than an answer, which a conversation has no place for"
        raise DataError(f"{says}; leave this benchmark a plugin")
    return _talk(sample, images)


def _named(images: Sequence[str]) -> dict[str, Any]:
    if len(images) > 1:
        return {"images": list(images)}
    return {"image": images[0]} if images else {}


def _question(sample: Sample, images: Sequence[str]) -> dict[str, Any]:
    truth = dict(sample.truth)
    kept = {key: truth.pop(key) for key in sorted(truth.keys() - set(KNOWN))}
    if unknown := [key for key, value in kept.items() if not isinstance(value, str)]:
        says = f"sample {sample.id!r}: its truth holds {unknown[0]!r}, which a record has no place for"
        raise DataError(f"{says}; leave this benchmark a plugin")
    record: dict[str, Any] = {**kept, "question_id": sample.id, **_named(images)}
    record["text"] = sample.prompt
    if sample.answer is not None:
        record["answer"] = sample.answer
    if sample.references:
        record["references"] = list(sample.references)
    if "box" in truth:
        record["answer_bbox"] = truth.pop("box")
    return record | truth


def _images(samples: Sequence[Sample], out: Path, folder: Path) -> Iterator[Sequence[str]]:
    """The names of the images; pictures that are no files of the data folder are written below `pictures/`."""
    for place in range(len(samples)):
        if isinstance(samples, Split) and samples.of_files:
            yield samples.entries[place][1].images
            continue
        names = []
        for number, image in enumerate(samples[place].images):
            if isinstance(image, Path) and frame_of(image) is not None:
                image = open_image(image)
            suffix = ".png" if isinstance(image, Image.Image) else image.suffix
            name = folder / f"{place:06}{f'-{number}' if number else ''}{suffix}"
            (out / PICTURES / folder).mkdir(parents=True, exist_ok=True)
            if isinstance(image, Image.Image):
                image.save(out / PICTURES / name)
            else:
                shutil.copyfile(image, out / PICTURES / name)
            names.append(name.as_posix())
        yield names


def _plain(name: str) -> str:
    return name.replace("/", "-")
