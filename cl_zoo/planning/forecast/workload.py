"""What a planned run has to do: samples and tokens of each task, from the data itself or from its description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from PIL import Image

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.templates import around
from cl_zoo.data.benchmarks import Described, Description, benchmark_loader, load_benchmark
from cl_zoo.data.needs import NEEDS, REFERENCES
from cl_zoo.data.schema import TaskSource
from cl_zoo.errors import DataError, OptionError
from cl_zoo.tasks import Benchmark, OnDemand, Sample, TaskData, as_named

CHARACTERS = 4.0
"""Characters of a token, where there is no tokenizer to count with."""
QUESTION, ANSWER, CAPTION = 25, 3, 12
"""Tokens of a question beside its instruction, of an answer and of a caption, where there is no data to count in."""
PICTURE = (640, 480)
"""Pixels of an image, for a model whose tokens depend on them."""
PROBED = 127
"""Samples of a split that are counted in, evenly spread over it; a prime, as data may repeat with a period."""


@dataclass(frozen=True)
class TaskLoad:
    """One task as work.

    Attributes:
        train, test: samples.
        prompt, answer: mean tokens of a training prompt with its image, and of its answer with the end token.
        question: mean tokens of a test prompt with its image.
        train_images, test_images: images of all samples.
    """

    name: str
    train: int
    test: int
    prompt: float
    answer: float
    question: float
    train_images: float
    test_images: float
    max_new_tokens: int

    @property
    def tokens(self) -> float:
        """Tokens of a training sequence; the end token is learnt and not read."""
        return self.prompt + self.answer - 1

    @property
    def written(self) -> float:
        """Tokens of an answer: as long as those of training."""
        return min(self.answer, float(self.max_new_tokens))


def distinct(stream: Sequence[TaskLoad]) -> list[TaskLoad]:
    """Each task once, however often it comes."""
    return list({task.name: task for task in stream}.values())


@dataclass(frozen=True)
class Look:
    """What an image costs: `tokens` in the prompt, `patches` in the tower, `features` that are kept of it."""

    tokens: int
    patches: int
    features: int


def planned(name: str, data: str | None, limit: int | None) -> tuple[Benchmark, list[str]]:
    """A benchmark to plan with: read where it is there, else as its description says it is.

    Returns:
        The benchmark, and what was assumed in the place of data.

    Raises:
        OptionError: nobody says how many samples a task has.
        ClZooError: no such benchmark, or its data cannot be used.
    """
    loader = benchmark_loader(name)
    if data is None and isinstance(loader, Described):
        try:
            return loader(None), []
        except DataError:
            about = loader.description
        said = f"no data: the sizes are the description's; a question has {QUESTION} tokens beside its instruction, an answer {ANSWER} (a caption {CAPTION}) and the end token"
        return _assumed(about, limit), [said]
    return load_benchmark(name, data), []


def loads(
    stream: Sequence[TaskData], backbone: Backbone, *, assumed: bool
) -> tuple[list[TaskLoad], Look, list[str]]:
    """The tasks of a stream as work for a backbone, what an image costs there, and what was assumed.

    Args:
        assumed: whether the samples only stand for data; they are not tokenized then.

    Raises:
        DataError: a sample cannot be read.
    """
    seen = look(backbone)
    counts = backbone.tokenizer is not None and not assumed
    found: dict[int, TaskLoad] = {}
    for task in stream:
        if id(task) not in found:  # a task may come again
            found[id(task)] = _load(task, backbone, seen, counts)
    notes = (
        []
        if counts
        else [f"no tokenizer or no data: {CHARACTERS:g} characters are a token, with the template"]
    )
    if counts and any(len(task.train) > PROBED or len(task.test) > PROBED for task in stream):
        notes.append(f"tokens are means over {PROBED} samples of each split")
    if backbone.cost(*PICTURE):
        notes.append(f"an image has {PICTURE[0]} × {PICTURE[1]} pixels, {seen.tokens} tokens")
    return [found[id(task)] for task in stream], seen, notes


@torch.no_grad()
def look(backbone: Backbone) -> Look:
    """What one image costs a backbone, with or without weights."""
    if told := backbone.cost(*PICTURE):
        return Look(*told)
    side = backbone.model.config.vision_config.image_size
    side = side if isinstance(side, int) else side[0]
    pixels = torch.zeros(1, 3, side, side, device=backbone.device, dtype=backbone.model.dtype)
    (features,) = backbone.look([{"pixel_values": pixels}])
    _, tokens, _ = backbone.show([features])
    return Look(backbone.image_width(tokens[0]), features.numel() // features.shape[-1], features.numel())


def _load(task: TaskData, backbone: Backbone, seen: Look, counts: bool) -> TaskLoad:
    train, test = _probe(task.train), _probe(task.test)
    count = _tokenized if counts else _by_length
    prompt, answer = count(backbone, train, seen, True)
    question, _ = count(backbone, test, seen, False)
    return TaskLoad(
        task.name,
        len(task.train),
        len(task.test),
        prompt,
        answer,
        question,
        len(task.train) * sum(len(one.images) for one in train) / len(train),
        len(task.test) * sum(len(one.images) for one in test) / len(test),
        task.max_new_tokens,
    )


def _probe(split: Sequence[Sample]) -> list[Sample]:
    count = min(PROBED, len(split))
    return [as_named(split, place * len(split) // count) for place in range(count)]


def _tokenized(
    backbone: Backbone, samples: Sequence[Sample], seen: Look, answers: bool
) -> tuple[float, float]:
    batch = backbone.batch(samples, answers=answers)
    answer = int(batch.answer_mask.sum()) if answers else 0
    ends = len(samples) if answers else 0
    return (batch.tokens - answer + ends) / len(samples), answer / len(samples)


def _by_length(
    backbone: Backbone, samples: Sequence[Sample], seen: Look, answers: bool
) -> tuple[float, float]:
    framing = sum(len(text) for text in around(backbone.template)) / CHARACTERS + 1  # and a start token
    image = sum(len(text) for text in backbone.image_frame) / CHARACTERS + seen.tokens
    prompts = [framing + _read(one, answers) / CHARACTERS + image * len(one.images) for one in samples]
    learnt = [text or "" for one in samples if answers for text in one.learnt]
    answer = sum(ceil(len(text) / CHARACTERS) + 1 for text in learnt)
    return sum(prompts) / len(samples), answer / len(samples)


def _read(sample: Sample, answers: bool) -> int:
    """Characters that are read and not learnt: questions, and answers of turns before that are context alone."""
    context = not (answers and sample.learns_before)
    earlier = sum(len(asked) + context * len(answer) for asked, answer in sample.before)
    return earlier + len(sample.prompt)


class Assumed(OnDemand[Sample]):
    """Samples that stand for data of a known size."""

    def __init__(self, size: int, sample: Sample) -> None:
        self._size, self._sample = size, sample

    def __len__(self) -> int:
        return self._size

    def make(self, place: int) -> Sample:
        return self._sample


def _assumed(about: Description, limit: int | None) -> Benchmark:
    def task(source: TaskSource) -> TaskData:
        length = CAPTION if NEEDS.get(source.metric) == REFERENCES else ANSWER
        prompt = "x" * round(QUESTION * CHARACTERS) + f"\n{source.instruction}"
        sample = Sample("0", Image.new("RGB", PICTURE), prompt, "x" * round(length * CHARACTERS))
        return TaskData(
            source.name,
            source.letter,
            source.instruction,
            source.metric,
            source.max_new_tokens,
            Assumed(_count(about, source, "train", limit), sample),
            test=Assumed(_count(about, source, "test", limit), sample),
        )

    tasks = tuple(task(source) for source in about.tasks)
    return Benchmark(
        about.name, about.version, tasks, about.methods, about.backbone, "assumed", about.recipe, about.orders
    )


def _count(about: Description, source: TaskSource, split: str, limit: int | None) -> int:
    count: int | None = getattr(source, split).count
    if count is None and limit is None:
        raise OptionError(
            f"benchmark {about.name}, task {source.name}: nobody says how many {split} records it has; pass --data DIR, or --limit N"
        )
    return count if count is not None else limit or 0
