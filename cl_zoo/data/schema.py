"""Benchmarks that a YAML file describes: `--benchmark my.yaml`, and those of a package, `load = Described(HERE / "mine.yaml")`.

    name: birds                         # as in tables and folders of runs
    version: "1"                        # change it whenever a score could change
    methods: [finetune, ewc, hide]      # what `cl-zoo compare` runs when no method is named
    backbone: llava-1.5-7b              # used when none is named
    recipe: {epochs: 2, lr: {adapters: 1.0e-4}}    # in place of the general recipe
    orders: {reversed: CS}              # orders of a paper, for --order reversed
    images: [pictures, .]               # folders that image paths start from; those that are there are tried in this order
    pictures: official                  # how they become RGB: as Pillow converts them, or faithful (`cl_zoo.images.kinds`)
    frames: 8                           # images that stand for a video: the middle of each of so many equal parts
    folders:                            # names for folders whose name differs from copy to copy
      texts: [instructions, annotations, .]
    options:                            # choices of the user: --benchmark 'my.yaml[language=german]'
      language:
        default: english
        values: {english: [en], german: [de, de_DE]}
    tasks:
      - name: species
        letter: S                       # for --order
        instruction: Answer the question using a single word or phrase.
        metric: exact                   # a scoring rule
        max_new_tokens: 16
        train: {files: ["{texts}/{language}/species_train.json"], format: llava, count: 1200}
        test: {files: ["{texts}/{language}/species_test.jsonl"], format: question, count: 300}
      - name: scenes
        letter: C
        instruction: Describe the bird.
        metric: caption
        tokenizer: char                 # for Chinese, Japanese and Korean captions; default: ptb
        max_new_tokens: 64
        train: {files: [scenes], format: datasets, split: train, columns: {text: question, answer: sentence}}
        validation: {files: [scenes], format: datasets, split: validation, columns: {text: question, answer: sentence}}
        test: {files: [scenes_test.json], format: question}
        references: {files: [scenes_coco.json], format: coco, per_sample: 5}
        sources:                        # for `cl-zoo data fetch`
          - {what: the images, hub: someone/birds, patterns: ["*.zip"], into: pictures, unpack: true}
          - {what: the texts, page: "https://example.org/birds", into: instructions, steps: unpack the archive there}

`files` are candidates: the first that is there is read. They start from the data folder (`--data`), else from the folder of the YAML
file. `format` is one of `cl_zoo.data.records`, `datasets` for a folder saved by `save_to_disk` or one of parquet files, or `webdataset` for shards. A name in
braces stands for each of its folders in turn; `{task}` for the task's `folders.task`, else its name. `count` is the official number
of records, for `cl-zoo data check`. A task without `validation` has none. `turns` says what is learnt of a conversation of several
questions: `all` answers in one sequence, as LLaVA's trainer does (default); the `last` answer, with the turns before it as context; or `split`, each
question with its answer as a sample of its own. In a test split `all` and `last` ask the last question with the turns before it.

A split may have `images` of its own, where training and test pictures of one name lie in two folders. `truth` names keys of a test record that the
scoring rule reads, `closing` what a benchmark's script puts behind the prompts of its test file: `closing: {"Yes": " Say yes or no.", "*": " Name the letter."}`
goes by the right answer, as scripts do.

A source is a dataset repository on the Hugging Face hub (`hub`, with `revision` and `patterns` where not all of its newest files are
wanted) or a `page` for a person to go to. Files go `into` a folder below the data folder. With `unpack: true` zip and tar archives
among the fetched files are unpacked into the folder in which each lies, and kept; without it they stay packed, and `steps` should say
what to do with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import PurePosixPath
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator

from cl_zoo.data.faults import halved, leaving
from cl_zoo.errors import DataError, OptionError, nearest
from cl_zoo.videos import FRAMES


def _inside(path: str) -> str:
    """The path itself.

    Raises:
        ValueError: it may lead out of the folder that it starts from.
    """
    if what := leaving(PurePosixPath(path)):
        raise ValueError(f"{what} and may leave the data folder; write a path inside it")
    return path


def _sound(text: str) -> str:
    """The text itself.

    Raises:
        ValueError: no tokenizer takes it.
    """
    if half := halved(text):
        raise ValueError(f"holds half of a character ({half}); write it whole")
    return text


Sound = Annotated[str, AfterValidator(_sound)]
Text = Annotated[Sound, StringConstraints(min_length=1)]
Inside = Annotated[Text, AfterValidator(_inside)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]
Paths = Annotated[tuple[Inside, ...], Field(min_length=1)]
Folders = Mapping[str, Paths]


class Part(BaseModel, frozen=True, extra="forbid"):
    """A piece of a description; an unknown key is an error."""


class Source(Part):
    """Where something that a benchmark needs is fetched from: a repository on the Hugging Face hub, or a page for a person."""

    what: Text = Field(description="what is there, for people: 'images of ArxivQA'")
    hub: Text | None = Field(None, description="id of a dataset repository on the hub")
    revision: Text | None = Field(None, description="branch, tag or commit there; default: the newest")
    patterns: tuple[Text, ...] = Field((), description="which files, as glob patterns; default: all")
    into: Inside = Field(".", description="folder below the data folder where it belongs")
    unpack: bool = Field(False, description="whether archives among them are unpacked where they lie")
    page: Text | None = Field(None, description="page where a person downloads it")
    steps: Text | None = Field(None, description="what to do with it then")

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if (self.hub is None) == (self.page is None):
            raise ValueError("give either 'hub' or 'page'")
        return self


class SplitSource(Part):
    """The file of one split."""

    files: Paths = Field(description="candidates, the first that is there is read")
    format: Literal["llava", "sharegpt", "question", "datasets", "webdataset"] = Field(
        description="how it is written"
    )
    count: int | None = Field(None, ge=1, description="official number of records")
    repeats: bool = Field(
        False, description="whether ids may come twice; samples are told apart by place then"
    )
    turns: Literal["all", "last", "split"] = Field(
        "all",
        description="of conversations with several questions all answers are learnt in one sequence, or the last one, or each question is a sample",
    )
    split: Text | None = Field(
        None, description="split of a folder of datasets or shards; default: the split's own name"
    )
    columns: Mapping[Text, Text] = Field(
        default_factory=dict,
        description="text, answer, image, question_id, conversations, … to columns of a folder of datasets or shards",
    )
    images: tuple[Inside, ...] = Field(
        (), description="folders that its image paths start from; default: the task's"
    )
    truth: tuple[Text, ...] = Field(
        (), description="keys of a test record that its scoring rule reads beside the answer"
    )
    closing: Mapping[Text, Sound] = Field(
        default_factory=dict,
        description="what is put behind the prompts of test records, by the right answer, * for all others",
    )

    @model_validator(mode="after")
    def _of_test_records(self) -> Self:
        if self.format in ("llava", "sharegpt") and (self.truth or self.closing):
            raise ValueError(f"truth and closing are of test records, and the format is {self.format}")
        return self


class ReferenceSource(Part):
    """The file of what answers are scored against."""

    files: Paths = Field(description="candidates, the first that is there is read")
    format: Literal["coco", "textvqa", "gqa", "scienceqa"] = Field(description="how it is written")
    per_sample: int | None = Field(None, ge=1, description="official number of references per test record")
    optional: bool = Field(False, description="whether the test file's own answers do where it is missing")
    note: str = Field("", description="what is known about broken copies; closes the error message")


class TaskSource(Part):
    """One task."""

    name: Text = Field(description="unique within the benchmark")
    letter: Annotated[str, StringConstraints(pattern="^[A-Z]$")] = Field(
        description="one capital, unique within the benchmark; for --order"
    )
    instruction: Sound = Field("", description="sentence that closes the task's prompts; it is not added")
    metric: Text = Field(description="name of a scoring rule")
    tokenizer: Literal["ptb", "char"] = Field(
        "ptb", description="words of captions; char: Chinese, Japanese, Korean characters are words"
    )
    max_new_tokens: int = Field(ge=1, description="token budget of one answer")
    train: SplitSource = Field(description="what is learnt")
    test: SplitSource = Field(description="what is asked")
    validation: SplitSource | None = Field(None, description="held out of training; default: none")
    references: ReferenceSource | None = Field(
        None, description="what answers to the test split are scored against"
    )
    images: tuple[Inside, ...] = Field(
        (), description="folders that image paths start from; default: the benchmark's"
    )
    folders: Folders = Field(default_factory=dict, description="names for folders, over the benchmark's")
    sources: tuple[Source, ...] = Field((), description="where its files are fetched from")

    @model_validator(mode="after")
    def _captions_have_words(self) -> Self:
        if self.tokenizer == "char" and not self.metric.startswith("caption"):
            raise ValueError(f"tokenizer char cuts captions, and the metric is {self.metric!r}; leave it out")
        return self


class Choices(Part):
    """An option of a benchmark and the folders that each of its values stands for."""

    default: Text = Field(description="the value when none is chosen")
    values: Folders = Field(description="values, each with candidates of a folder")

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.default not in self.values:
            raise ValueError(f"no value {self.default!r}{nearest(self.default, self.values)}")
        return self


class Description(Part):
    """A benchmark as a file describes it."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="as in tables and folders of runs"
    )
    version: Text = Field(description="changes whenever a score could change")
    methods: Texts = Field(description="compared when no method is named")
    backbone: Text = Field(description="used when none is named")
    recipe: Mapping[str, Any] = Field(default_factory=dict, description="recipe values over the general ones")
    images: Paths = Field((".",), description="folders that image paths start from")
    pictures: Literal["official", "faithful"] = Field(
        "official", description="how they become RGB: as Pillow converts them, or as a person sees them"
    )
    frames: int = Field(
        FRAMES,
        ge=1,
        description="images that stand for a video: the middle frame of each of so many equal parts",
    )
    folders: Folders = Field(
        default_factory=dict, description="names for folders that differ from copy to copy"
    )
    options: Mapping[Text, Choices] = Field(default_factory=dict, description="choices of the user")
    sources: tuple[Source, ...] = Field((), description="where files of several tasks are fetched from")
    orders: Mapping[Text, Text] = Field(
        default_factory=dict, description="orders that a paper gives, letters by name; for --order"
    )
    tasks: Annotated[tuple[TaskSource, ...], Field(min_length=1)] = Field(description="in default order")

    def chosen(self, options: Mapping[str, Any]) -> Description:
        """The description with every name in braces replaced by its folders, and `images` in every task.

        Raises:
            OptionError: an option or its value is unknown.
            DataError: a name in braces stands for nothing.
        """
        folders, name = dict(self.folders), self.name
        for key in options:
            if key not in self.options:
                raise OptionError(f"benchmark {self.name} has no option {key!r}{nearest(key, self.options)}")
        for key, choices in self.options.items():
            value = str(options.get(key, choices.default))
            if value not in choices.values:
                raise OptionError(
                    f"benchmark {self.name}: {key}={value} is unknown{nearest(value, choices.values)}"
                )
            folders[key] = choices.values[value]
            name += "" if value == choices.default else f"-{value}"
        tasks = tuple(_expanded(task, self, folders) for task in self.tasks)
        return self.model_copy(update={"name": name, "tasks": tasks})


def _expanded(task: TaskSource, about: Description, folders: Mapping[str, tuple[str, ...]]) -> TaskSource:
    known = {**folders, "task": (task.name,), **task.folders}

    def every(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path for name in names for path in _filled(name, known, about, task)))

    changes: dict[str, Any] = {"images": every(task.images or about.images)}
    if task.tokenizer == "char":
        changes["metric"] = "caption-char"
    for key in ("train", "validation", "test", "references"):
        one = getattr(task, key)
        if one is not None:
            paths = {"files": every(one.files)}
            if isinstance(one, SplitSource):
                paths["images"] = every(one.images)
            changes[key] = one.model_copy(update=paths)
    return task.model_copy(update=changes)


def _filled(
    name: str, folders: Mapping[str, tuple[str, ...]], about: Description, task: TaskSource
) -> Iterator[str]:
    try:
        keys = list(dict.fromkeys(key for _, key, _, _ in Formatter().parse(name) if key is not None))
    except ValueError:
        keys = [name]
    if any(re.fullmatch(r"\d+\.\.\d+", key) for key in keys):
        raise DataError(
            f"benchmark {about.name}, task {task.name}: {name!r} is a list of shards; name the folder that they lie in"
        )
    if unknown := [key for key in keys if key not in folders]:
        raise DataError(
            f"benchmark {about.name}, task {task.name}: {name!r} names no folders by {unknown[0]!r}"
            f"{nearest(unknown[0], folders)}"
        )
    for values in product(*(folders[key] for key in keys)):
        path = str(PurePosixPath(name.format(**dict(zip(keys, values, strict=True)))))
        try:
            yield _inside(path)  # the name of a task, or parts that are harmless alone
        except ValueError as error:
            raise DataError(
                f"benchmark {about.name}, task {task.name}: {name!r} stands for {path!r}, which {error}"
            ) from None
