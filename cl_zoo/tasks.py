"""What is learnt: samples, tasks, and a benchmark that puts tasks in order.

Two views of a task are kept apart on purpose. A hook sees a `Task`: index, name, instruction and training size.
The engine holds the `TaskData` behind it, with the splits and the scoring rule, so no method can read a test sample or a
task that has not come yet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from cl_zoo.errors import DataError, OptionError, nearest
from cl_zoo.sequences import OnDemand as OnDemand
from cl_zoo.sequences import Part as Part
from cl_zoo.videos import file_names

ImageSource = Image.Image | Path
"""An image in memory, or the path of the file that it is read from when it is needed; of a frame of a video as `frames` gives it."""
MARK = "<image>"
"""Where an image stands in the text of a sample that has several, or whose question has turns before it."""


@dataclass(frozen=True)
class Sample:
    """One question about one image, or the last one of a conversation about it.

    Attributes:
        id: opaque within its split; says nothing about the task.
        image: an image in memory, a path, or `None` for a question without an image; the first of several.
        prompt: question and instruction, separated by a newline, without image token and chat template.
        answer: the text to learn; `None` where a model has to answer.
        references: for captions, the sentences that an answer is scored against.
        truth: what a scoring rule needs beyond these, as JSON values: a box, the sizes of an image, the answers of ten people.
        before: the turns before the question, (asked, answered) each, which the model reads in training and in answering.
        learns_before: whether in training the answers in `before` are learnt too, as LLaVA's trainer does.
        more_images: the images after the first; families of models that were taught one refuse them.

    Images stand before the first question, in their order. Where there are several, or turns before the question, `<image>` in a question
    says where one stands; those that are more than these marks come first.
    """

    id: str
    image: ImageSource | None
    prompt: str
    answer: str | None = None
    references: tuple[str, ...] = ()
    truth: Mapping[str, Any] = field(default_factory=dict)
    before: tuple[tuple[str, str], ...] = ()
    learns_before: bool = True
    more_images: tuple[ImageSource, ...] = ()

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """All images, in their order."""
        return tuple(image for image in (self.image, *self.more_images) if image is not None)

    @property
    def questions(self) -> tuple[str, ...]:
        """All questions, its own last."""
        return (*(asked for asked, _ in self.before), self.prompt)

    @property
    def learnt(self) -> tuple[str | None, ...]:
        """The answers that are learnt from it in training, in their order."""
        earlier = self.before if self.learns_before else ()
        return (*(answer for _, answer in earlier), self.answer)

    @property
    def words(self) -> str:
        """Its prompt without the marks of images, for who looks at texts alone."""
        return self.prompt.replace(MARK, "").strip() if self.more_images or self.before else self.prompt

    def question_only(self) -> Sample:
        """The sample as a method may see it at inference: nothing of what is expected; the turns before stay, as context."""
        return replace(self, answer=None, references=(), truth={})


@dataclass(frozen=True)
class Task:
    """What a hook may know about the task at hand.

    Attributes:
        index: place in the stream, from 0.
        name: name of the task; the same name may come again later in the stream.
        instruction: the sentence that closes the task's prompts.
        size: number of training samples.
        occurrence: 0 where the name comes for the first time in the stream.
    """

    index: int
    name: str
    instruction: str
    size: int
    occurrence: int = 0


def in_words(task: Task) -> str:
    """A task for a sentence: `task colour`, `task colour, time 2` where its name has come before."""
    return f"task {task.name}" + (f", time {task.occurrence + 1}" if task.occurrence else "")


@dataclass(frozen=True)
class TaskData:
    """A task as the engine holds it.

    Attributes:
        name: unique within the benchmark.
        letter: one capital letter for `--order`, unique within the benchmark.
        instruction: the sentence that closes the task's prompts.
        metric: name of a scoring rule in `cl_zoo.scoring.rules`: `exact`, `caption` and others.
        max_new_tokens: token budget of one answer.
        train, validation, test: the splits; sequences, so that images may be rendered or read when they are asked for.
    """

    name: str
    letter: str
    instruction: str
    metric: str
    max_new_tokens: int
    train: Sequence[Sample]
    validation: Sequence[Sample] = ()
    test: Sequence[Sample] = ()


DEFAULT = "default"
"""The name of a benchmark's own order."""


def letters(stream: Sequence[TaskData]) -> str:
    """An order as `--order` takes it: `RAV`."""
    return "".join(task.letter for task in stream)


@dataclass(frozen=True)
class Benchmark:
    """Tasks in their default order with everything a comparison on them needs.

    Attributes:
        name: as on the command line.
        version: changes whenever a score could change.
        tasks: in default order.
        default_methods: what `cl-zoo compare` runs when no method is named.
        default_backbone: name of the backbone used when none is named.
        recipe: recipe values that replace the general defaults, by dotted key.
        data_hash: identifies the data; part of every run's id.
        orders: orders that a paper gives, letters by name; `default` names that of `tasks`.
    """

    name: str
    version: str
    tasks: tuple[TaskData, ...]
    default_methods: tuple[str, ...]
    default_backbone: str
    data_hash: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    orders: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what in ("name", "letter"):
            values = [getattr(task, what) for task in self.tasks]
            doubles = sorted({value for value in values if values.count(value) > 1})
            if doubles:
                raise DataError(
                    f"benchmark {self.name}: two tasks have the {what} {doubles[0]!r}; rename one"
                )
        known = {one for task in self.tasks for one in (task.name, task.letter)}
        for name, order in self.orders.items():
            if name == DEFAULT or name in known or set(name) <= known:
                raise DataError(
                    f"benchmark {self.name}: the order {name!r} has a name that stands for tasks; rename it"
                )
            try:
                self._chosen(order)
            except OptionError as error:
                raise DataError(f"benchmark {self.name}, order {name}: {error}") from None

    def stream(self, order: str | None = None, limit: int | None = None) -> tuple[TaskData, ...]:
        """The tasks in the wanted order, each split cut to `limit` samples.

        Args:
            order: letters (`"RAV"`), comma-separated names, or the name of an order; a task may come twice; `None` or `"default"`
                for the default order.
            limit: samples per split, or `None` for all.

        Raises:
            OptionError: the order names an unknown task, or none.
            DataError: tasks have no training or no test samples, or splits of them cannot be read; all of them are named.
        """
        chosen = self._chosen(order)
        if not chosen:
            raise OptionError(
                f"--order {order!r}: names no task; {self.name} has {', '.join(t.name for t in self.tasks)}"
            )
        found = (self._unusable(task, split) for task in chosen for split in ("train", "test"))
        faults = {str(error): error for error in found if error is not None}
        if len(faults) == 1:
            raise faults.popitem()[1]
        if faults:
            first = f"{len(faults)} splits of {self.name} cannot be used:"
            raise DataError("\n  ".join([first, *faults]))
        return chosen if limit is None else tuple(_cut(task, limit) for task in chosen)

    def _chosen(self, order: str | None) -> tuple[TaskData, ...]:
        if order is None or order == DEFAULT:
            return self.tasks
        return tuple(self._find(part) for part in _parts(self.orders.get(order, order), self.tasks))

    def _unusable(self, task: TaskData, split: str) -> DataError | None:
        """Why a run cannot use a split; reading it finds out."""
        try:
            if len(getattr(task, split)):
                return None
        except DataError as error:
            return error
        return DataError(
            f"{self.name}, task {task.name}: the {split} split is empty; add samples or drop the task"
        )

    def _find(self, part: str) -> TaskData:
        for task in self.tasks:
            if part in (task.letter, task.name):
                return task
        known = [one for task in self.tasks for one in (task.name, task.letter)] + list(self.orders)
        raise OptionError(f"--order: {self.name} has no task {part!r}{nearest(part, known)}")


def without_image(split: Sequence[Sample], index: int) -> Sample:
    """A sample of a split whose image does not matter; a split that has to decode it may define `without_images` for this."""
    return _looked_up(split, index, "without_images")


def as_named(split: Sequence[Sample], index: int) -> Sample:
    """A sample of a split whose image may be the path of a file that is not there; a split that looks may define `as_named`."""
    return _looked_up(split, index, "as_named")


def undecoded(split: Sequence[Sample], index: int) -> Sample:
    """A sample of a split as `as_named` gives it, its picture not decoded either; a split that has to may define `undecoded`."""
    return _looked_up(split, index, "undecoded")


def whole_of(split: Sequence[Sample]) -> Sequence[Sample]:
    """The sequence that a part was taken from, and a sequence itself."""
    while isinstance(split, Part):
        split = split.whole
    return split


def place_in(split: Sequence[Sample], index: int) -> int:
    """Where in `whole_of(split)` a sample stands."""
    while isinstance(split, Part):
        index = split.places[index]
        split = split.whole
    return index


def origin(split: Sequence[Sample], index: int) -> dict[str, str]:
    """Where a sample comes from, for people: `record`, the record's own id where the sample has another one, and `picture`, the
    name of its image file, of several with a comma between; each where it is known.

    It stands beside a sample and not in it, so no method sees it and no answer depends on it. A split that makes its samples when
    they are asked for is asked by its method `origin`, where it has one; none is made for this.
    """
    split, index = whole_of(split), place_in(split, index)
    look = getattr(split, "origin", None)
    if look is not None:
        return {name: text for name, text in look(index).items() if text}
    images = () if isinstance(split, OnDemand) else split[index].images
    files = file_names(image for image in images if isinstance(image, Path))
    names = ", ".join(Path(file).name for file in files)
    return {"picture": names} if names else {}


def _looked_up(split: Sequence[Sample], index: int, by: str) -> Sample:
    split, index = whole_of(split), place_in(split, index)
    look = getattr(split, by, None) or split.__getitem__
    sample: Sample = look(index)
    return sample


def source_hash(*files: str | Path) -> str:
    """A short hash of the content of some source or data files, in the given order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:16]


def _parts(order: str, tasks: Sequence[TaskData]) -> list[str]:
    names = {task.name for task in tasks}
    return [part.strip() for part in order.split(",")] if "," in order or order in names else list(order)


def _cut(task: TaskData, limit: int) -> TaskData:
    if limit < 1:
        raise OptionError(f"--limit must be at least 1, got {limit}")

    def first(split: Sequence[Sample]) -> Sequence[Sample]:
        return Part(split, range(len(split))[:limit])

    return replace(task, train=first(task.train), validation=first(task.validation), test=first(task.test))
