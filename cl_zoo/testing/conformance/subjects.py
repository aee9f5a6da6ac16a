"""A method under check: its trials, made once for all promises, and what it answers when asked in one way or another."""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import SkipTest

import torch
from PIL import Image
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import prepare
from cl_zoo.contract.calls import package
from cl_zoo.contract.plugins import Plugins, load_class
from cl_zoo.engine.answering import generated
from cl_zoo.names import Choice
from cl_zoo.tasks import Sample
from cl_zoo.testing.conformance.mistakes import told
from cl_zoo.testing.conformance.moments import ConformanceError
from cl_zoo.testing.conformance.trials import STREAM, Watched, tasks, trial

CLOSE, SURE = 1e-4, 1e-3
"""Largest difference of two logits that are meant to be one, and the margin above which a token is decided."""


Reply = tuple[Tensor, list[int]]
"""To one sample: logits at the first position of the answer, and the answer's tokens."""


class Undecided(SkipTest):
    """A promise does not apply, or cannot be told while another one is broken.

    Attributes:
        cause: the broken promise that hides it, `None` where it does not apply.
    """

    def __init__(self, sentence: str, cause: ConformanceError | None = None) -> None:
        super().__init__(sentence)
        self.cause = cause

    @classmethod
    def behind(cls, cause: ConformanceError) -> Undecided:
        """What a broken promise hides."""
        return cls(f"cannot be told, since another promise is broken: {cause.promise}", cause)


class Bare:
    """No hook at all: the default model, to see what a probe adds to it."""


class Subject:
    """A stack with the trials that its promises share.

    Args:
        choices: the stack; plugins whose class says `probe` become probes.

    Raises:
        ClZooError: it cannot be made as described.
    """

    def __init__(self, choices: Sequence[Choice]) -> None:
        self.choices = tuple(
            replace(choice, probe=bool(getattr(load_class(choice.name), "probe", False)))
            for choice in choices
        )
        self.label = "+".join(choice.label for choice in self.choices)
        self.protocol = Plugins(self.choices).protocol
        self._root = Path(tempfile.mkdtemp(prefix="cl-zoo-check-"))
        atexit.register(shutil.rmtree, self._root, ignore_errors=True)
        self._count = itertools.count()
        self._replies: dict[tuple[str, ...], list[Reply]] = {}
        self._verdicts: dict[str, ConformanceError | Undecided | None] = {}

    def verdict(self, promise: Callable[[Subject], None]) -> ConformanceError | Undecided | None:
        """What came of a promise: broken, undecided, or `None` where it holds; each is checked once."""
        name = promise.__name__
        if name not in self._verdicts:
            self._verdicts[name] = None
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as in every run: sums of several threads need not end in the same bits
            try:
                promise(self)
            except Undecided as undecided:
                self._verdicts[name] = undecided
            except ConformanceError as broken:
                self._verdicts[name] = broken if broken.promise == name else Undecided.behind(broken)
            except Exception as error:  # a stranger's module may raise anything when it is asked
                self._verdicts[name] = ConformanceError(name, f"{self.label}: {self.told(error)}", error)
            finally:
                torch.set_num_threads(threads)
        return self._verdicts[name]

    @cached_property
    def outcome(self) -> Watched | ConformanceError:
        """The trial on the whole stream, or the promise that ended it."""
        try:
            return trial(self.choices, self.folder("whole"))
        except ConformanceError as broken:
            return broken
        except Exception as error:  # a stranger's hook may raise anything
            return ConformanceError("streams", f"{self.label}, tasks {STREAM}: {self.told(error)}", error)

    @property
    def whole(self) -> Watched:
        """The trial on the whole stream.

        Raises:
            ConformanceError: it ended early; the promise is not always the one that is being checked.
        """
        if isinstance(self.outcome, ConformanceError):
            raise self.outcome
        return self.outcome

    @cached_property
    def silent(self) -> Watched:
        """The same without answers in between; those are asked for at the end only.

        Raises:
            ConformanceError: the trial on the whole stream ended early, or this one does.
        """
        _ = self.whole
        return self.again("without answering in between", "answering", silent=True)

    @cached_property
    def recut(self) -> Watched | None:
        """The silent trial's way again, in micro-batches of 3 and 1 and with gradient checkpointing; `None` where it fails."""
        try:
            follow = self.silent.record.gradients
            return self.again(
                "cut", "micro_batches", follow=follow, silent=True, micro_batch=3, checkpointing=True
            )
        except ConformanceError:
            return None

    def folder(self, name: str) -> Path:
        """A new folder for one trial."""
        return self._root / f"{next(self._count)}-{name}"

    def again(self, name: str, promise: str, **changes: Any) -> Watched:
        """A further trial; whatever goes wrong in it breaks the given promise."""
        try:
            choices, root = changes.pop("choices", self.choices), changes.pop("root", None)
            return trial(choices, root or self.folder(name.partition(" ")[0]), **changes)
        except Exception as error:
            what = error.sentence if isinstance(error, ConformanceError) else self.told(error)
            said = what.removeprefix(f"{self.label}, ")
            raise ConformanceError(promise, f"{self.label}, {name}: {said}") from error

    def told(self, error: BaseException) -> str:
        """An error out of the stack as the end of a sentence."""
        packages = {package(load_class(choice.name)) for choice in self.choices}
        said = told(error, packages)
        behind = next((mark for mark in (": ", ", ", " ") if said.startswith(self.label + mark)), "")
        return said.removeprefix(self.label + behind) if behind else said

    def copied(self, name: str) -> Path:
        """A copy of the whole trial's folder."""
        root = self.folder(name)
        shutil.copytree(self.whole.folder.final.parent, root)
        return root

    @cached_property
    def questions(self) -> list[Sample]:
        """Short and long prompts, with and without image, of both tasks, told apart by their ids."""
        asked = [
            replace(sample, id=f"q{place}{row}")
            for place, task in enumerate(tasks("CS"))
            for row, sample in enumerate(task.test)
        ]
        words = "large small one two three and red green blue grey left right"
        more = [None, asked[0].image]
        return [*asked, *(Sample(f"r{i}", image, words) for i, image in enumerate(more))]

    def replies(self, asked: Sequence[Sample]) -> list[Reply]:
        """What the whole trial answers to some of the questions in one batch; each batch is asked once for all promises."""
        batch = tuple(sample.id for sample in asked)
        if batch not in self._replies:
            self._replies[batch] = asking(self.whole, asked)
        return self._replies[batch]


def asking(run: Watched, samples: Sequence[Sample], model: nn.Module | None = None) -> list[Reply]:
    """What a run answers to one batch; by a fresh inference model where none is given."""
    if model is None:
        with run.answering() as fresh:
            return asking(run, samples, fresh)
    tokens = said(model, run.backbone, samples)
    return list(zip(logits(model, run.backbone, samples), tokens, strict=True))


def agree(
    subject: Subject,
    promise: str,
    sample: Sample,
    here: Reply,
    there: Reply,
    where: str,
    run: Watched | None = None,
) -> None:
    """Two replies to one sample are the same, up to rounding.

    Raises:
        ConformanceError: the logits lie further apart than `CLOSE`, or a token differs whose margin is above `SURE`.
    """
    asked = f"{subject.label}, asked {sample.prompt!r} {'with' if sample.image else 'without'} an image"
    apart = float((here[0] - there[0]).abs().max())
    if not apart <= CLOSE:
        raise ConformanceError(promise, f"{asked}: the logits are {apart:.2g} off {where}")
    if here[1] != there[1]:
        same = next(
            (i for i, pair in enumerate(zip(here[1], there[1], strict=False)) if len(set(pair)) > 1),
            min(len(here[1]), len(there[1])),
        )
        run = run or subject.whole
        with run.answering() as model:
            decided = margin(model, run.backbone, sample, there[1][:same])
        if decided > SURE:
            raise ConformanceError(
                promise,
                f"{asked}: token {same} of the answer changes {where}, with a margin of {decided:.2g}",
            )


def logits(model: nn.Module, backbone: Backbone, samples: Sequence[Sample]) -> Tensor:
    """At the first position of the answer, (samples, vocabulary)."""
    batch = backbone.batch(samples, answers=False)
    prepare(model, batch)
    found: Tensor = model(**batch.inputs).logits[:, -1].float()
    return found


def said(model: nn.Module, backbone: Backbone, samples: Sequence[Sample], count: int = 4) -> list[list[int]]:
    """Answer tokens of every sample up to the end token, greedily."""
    batch = backbone.batch(samples, answers=False)
    prepare(model, batch)
    end = backbone.tokenizer.eos_token_id
    rows = generated(model, backbone, batch, count).tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def margin(model: nn.Module, backbone: Backbone, sample: Sample, tokens: Sequence[int]) -> float:
    """How far the best token lies before the second best behind the first `tokens` of an answer."""
    batch = backbone.batch([sample], answers=False)
    prepare(model, batch)
    more = torch.tensor([list(tokens)], dtype=torch.long)
    inputs = dict(batch.inputs)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(more)], 1)
    first, second = model(**inputs).logits[0, -1].float().topk(2).values.tolist()
    return float(first - second)


def filed(sample: Sample, path: Path) -> Sample:
    """The sample with its image in a file of that name."""
    if not isinstance(sample.image, Image.Image):
        return sample
    sample.image.save(path)
    return replace(sample, image=path)
