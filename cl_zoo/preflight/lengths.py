"""The samples of one split: their tokens, and the pictures that they name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import pieces
from cl_zoo.errors import DataError, cut
from cl_zoo.preflight.found import Found, where
from cl_zoo.preflight.looks import Look, looks
from cl_zoo.tasks import Sample, TaskData, undecoded
from cl_zoo.videos import called, file_of

PIECE = 1024
"""Samples that are tokenized together."""
UNKNOWN = -1
"""Tokens of a picture that cannot be counted."""
Tokens = dict[str, int]
"""Tokens of picture files in a prompt, by path."""


def split_faults(task: TaskData, split: str, backbone: Backbone, pictures: Tokens, found: Found) -> None:
    """Look through one split.

    Args:
        split: `train`, whose answers count, or `test`.
        pictures: of the files that this task has named so far; filled here.
        found: takes the faults.
    """
    answers = split == "train"
    what = "its image and answer" if answers else "its image"
    for read in _read(task, split, found):
        for place, says in _pictures(read, backbone, pictures):
            found.add(f"{where(task, split, place)}: {says}")
        lengths = backbone.sample_tokens(list(read.values()), answers=answers)
        for (place, sample), length in zip(read.items(), lengths, strict=True):
            tokens = _tokens(sample, backbone, pictures)
            too_long = None if tokens == UNKNOWN else backbone.too_long(length + tokens, what)
            for says in filter(None, (too_long, *_unusable(sample, backbone, answers))):
                found.add(f"{where(task, split, place)}: {says}")


def _read(task: TaskData, split: str, found: Found) -> Iterator[Mapping[int, Sample]]:
    """The samples of a split by place, a piece at a time; one that cannot be read is a fault and left out."""
    samples: Sequence[Sample] = getattr(task, split)
    for piece in pieces(len(samples), PIECE):
        read = {}
        for place in range(len(samples))[piece]:
            try:
                read[place] = undecoded(samples, place)
            except DataError as error:
                found.add(f"task {task.name}, {error}")
        yield read


def _pictures(read: Mapping[int, Sample], backbone: Backbone, pictures: Tokens) -> Iterator[tuple[int, str]]:
    """Faults of the pictures that are named for the first time, with the places of the samples that name them."""
    new: dict[str, int] = {}
    told = set[Path]()  # of a faulty video every frame is
    for place, sample in read.items():
        for image in sample.images:
            if isinstance(image, Path):
                if str(image) not in pictures:
                    new.setdefault(str(image), place)
            elif refused := _count(backbone, *image.size)[1]:
                yield place, f"its image, {image.width} × {image.height}, {refused}"
    for (path, place), look in zip(new.items(), looks(list(new)), strict=True):
        pictures[path], says = _of_file(look, backbone)
        if says and (file := file_of(Path(path))) not in told:
            told.add(file)
            yield place, f"{cut(called(Path(path)))} {says}"


def _of_file(look: Look, backbone: Backbone) -> tuple[int, str]:
    if look.fault:
        return UNKNOWN, f"{look.words}; {look.remedy}"
    tokens, refused = _count(backbone, look.width, look.height)
    return tokens, f"({look.width} × {look.height}) {refused}" if refused else ""


def _count(backbone: Backbone, width: int, height: int) -> tuple[int, str]:
    """Tokens of a picture, and why it is refused."""
    try:
        tokens = backbone.image_tokens(width, height)
    except DataError as error:
        return UNKNOWN, f"is refused by the image processor: {error}; leave it out of the data"
    return UNKNOWN if tokens is None else tokens, ""


def _tokens(sample: Sample, backbone: Backbone, pictures: Tokens) -> int:
    """Tokens of all pictures of a sample; `UNKNOWN` where those of one are."""
    if len(sample.images) > 1 and backbone.tokens_together is not None:
        return backbone.tokens_together * len(sample.images)
    counts = [
        pictures[str(image)] if isinstance(image, Path) else _count(backbone, *image.size)[0]
        for image in sample.images
    ]
    return UNKNOWN if UNKNOWN in counts else sum(counts)


def _unusable(sample: Sample, backbone: Backbone, answers: bool) -> Iterator[str]:
    """What a batch would refuse besides, in words that follow the sample's place."""
    if answers and not all(sample.learnt):
        yield "has no answer to learn; drop it from the training split"
    if says := backbone.misplaced(sample):
        yield says
