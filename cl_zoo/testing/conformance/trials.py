"""Trials of a method: real runs on a tiny stream, watched step by step.

Nothing is mocked: the engine's own `Run` learns and answers. `Watched` keeps what it learnt after each task; what sees
single steps (`cl_zoo.testing.conformance.observers`) stands where the engine takes plugins and processes from outside.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.engine.folder import RunFolder
from cl_zoo.engine.ledger import own_state
from cl_zoo.engine.lessons import Lesson
from cl_zoo.engine.run import Run
from cl_zoo.engine.trained import Trained
from cl_zoo.errors import PluginError
from cl_zoo.names import Choice
from cl_zoo.nn.still import standing_still
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample, TaskData
from cl_zoo.testing.conformance.modes import modes
from cl_zoo.testing.conformance.moments import (
    ConformanceError,
    Moment,
    check_states,
    differing,
    flat,
    place_of,
)
from cl_zoo.testing.conformance.observers import Observed, Observer, Record
from cl_zoo.testing.streams import tiny_backbone, tiny_benchmark, tiny_files

RECIPE = {
    "global_batch": 4,
    "adapter.rank": 8,
    "adapter.dropout": 0,
    "lr.adapters": 1e-2,
    "lr.projector": 1e-3,
    "lr.prompts": 1e-1,
    "lr.keys": 1e-2,
}
"""Without dropout, so that two ways to cut one global batch have one gradient."""

STREAM = "CSC"
"""Two tasks, and the first one again."""


EVERY_STEP = 1e-9
"""Minutes between checkpoints within a task, of which one is written after every step then."""


class Stopped(Exception):
    """A trial ended behind the task, or the step, behind which it was told to end."""


class Watched(Run):
    """A run that keeps what was learnt after each task.

    Attributes:
        record: what was seen.
        stop: ends by `Stopped` behind this many tasks; 0 for never.
        silent: answers after the last task only, and builds no inference model before.
    """

    record: Record
    stop = 0
    silent = False

    def execute(self) -> None:
        self.record = self._observe()
        super().execute()
        if not self.lessons:
            self._look()

    def restore(self) -> None:
        """Go back to the checkpoint in the folder and learn nothing."""
        self.record = self._observe()
        self._restore()

    @property
    def label(self) -> str:
        """The stack as a user names it."""
        return "+".join(choice.label for choice in self.plugins.choices)

    @property
    def files(self) -> dict[str, bytes]:
        """The answer files by name."""
        return {file.name: file.read_bytes() for file in (self.folder.partial / "answers").iterdir()}

    @contextmanager
    def answering(self) -> Iterator[nn.Module]:
        """A fresh inference model after all tasks; the trained model is as before afterwards."""
        seen = [lesson.task for lesson in self.lessons]
        with standing_still(self.model), torch.no_grad():
            self.model.eval()
            self._seed("build_inference_model", seen[-1] if seen else None)
            yield self.plugins.build_inference_model(self.model, seen).eval()

    def _observe(self) -> Record:
        world, plugins = self.world, self.plugins
        if not isinstance(world, Observer) or not isinstance(plugins, Observed):
            raise TypeError("a watched run needs an Observer and Observed plugins")
        world.model, plugins.world, plugins.backbone = self.model, world, self.backbone
        owned = [(n, t) for n, t in self.model.state_dict(keep_vars=True).items() if self.backbone.owns(t)]
        self._origin = [(name, tensor, tensor.detach().clone()) for name, tensor in owned]
        return world.record

    def _answer(self, lesson: Lesson | None) -> None:
        if self.silent and lesson is not None and lesson is not self.lessons[-1]:
            return
        before, standing = self._moment(), modes(self.model)
        error: PluginError | None = None
        try:
            super()._answer(lesson)
        except PluginError as raised:  # the engine's own check of the weights, or a fault of the plugin
            error = raised
        changed = differing(self._moment(), before) or differing(modes(self.model), standing)
        if changed:
            where = place_of(self.label, lesson.task) if lesson else self.label
            raise ConformanceError(
                "answering",
                f"{where}: answering changed {changed.removeprefix('model/')}; leave the model as it is, and answer with experts of the bank or with cl_zoo.nn.OtherWeights",
            ) from error
        if error is not None:
            raise error

    def _checkpoint(self, done: int) -> None:
        check_states(self.plugins.state_dict())
        self._look()
        super()._checkpoint(done)
        if done == self.stop:
            raise Stopped

    def _look(self) -> None:
        self.record.moments.append(self._moment())
        for name, tensor, before in self._origin:
            if not torch.equal(tensor, before):
                raise ConformanceError(
                    "frozen", f"{self.label}: {name} belongs to the frozen backbone but moved"
                )

    def _moment(self) -> Moment:
        model = own_state(self.model, self.backbone)
        return {
            **{f"model/{name}": tensor.detach().clone() for name, tensor in model.items()},
            **flat(self.plugins.state_dict(), "plugins"),
        }


# --- making trials --------------------------------------------------------------------------------------------------


@cache
def pristine(folder: Path) -> Backbone:
    """The tiny backbone, loaded once; trials work on copies of its model."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    backbone = tiny_backbone(folder)
    _ = backbone.features
    return backbone


def fresh_backbone(folder: Path) -> Backbone:
    """A copy nobody has touched; the frozen feature encoder is shared."""
    made = pristine(folder)
    return made.with_model(copy.deepcopy(made.model))


def tasks(order: str = STREAM) -> tuple[TaskData, ...]:
    """Coloured squares with short and long prompts, answers of one to three words, samples without an image, and conversations.

    Nine training samples in batches of four leave a last batch of one.
    """
    stream = tiny_benchmark(2, size=9).stream(order)
    return tuple(
        replace(task, train=[*map(mixed, task.train)], test=[*map(mixed, task.test)]) for task in stream
    )


def mixed(sample: Sample) -> Sample:
    """The sample, longer, without its image or with a turn before it by its number."""
    place = int(sample.id)
    prompt = f"Say in short and with one word .\n{sample.prompt}" if place % 2 else sample.prompt
    answer = f"a {sample.answer} square" if place % 3 == 2 else sample.answer
    before = (("Where is the square ?", "left side"),) if place % 5 == 4 else ()
    image = None if place % 4 == 3 else sample.image
    return replace(sample, prompt=prompt, answer=answer, image=image, before=before)


def trial(
    choices: Sequence[Choice],
    root: Path,
    *,
    order: str = STREAM,
    follow: Sequence[Mapping[str, Tensor | None]] | None = None,
    stop: int = 0,
    within: tuple[int, int] | None = None,
    silent: bool = False,
    run: bool = True,
    files: Path | None = None,
    trained: Trained | None = None,
    **recipe: Any,
) -> Watched:
    """Run a stack on the tiny stream, from the checkpoint in `root` where there is one.

    Args:
        choices: the stack.
        order: letters of the tasks.
        follow: gradients of another trial to compare with and to go along with.
        stop, silent: as in `Watched`.
        within: ends within this lesson, behind so many of its steps, with a checkpoint within the task.
        run: whether to execute; otherwise it is made only.
        files: the tiny model's, where another process has made them.
        trained: states of a training that other trials share.
        recipe: replaces values of `RECIPE`.
    """
    world = Observer(follow)
    folder = RunFolder(root, "run", {})

    with folder if world.main else folder.reading():
        made = Watched(
            Observed(choices),
            tasks(order),
            fresh_backbone(files or tiny_files()),
            build_recipe(RECIPE, recipe),
            seed=0,
            cells="lower",
            folder=folder,
            world=world,
            report=partial(_heard, world.record, within),
            trained=trained,
            every=EVERY_STEP if within else 0.0,
        )
        made.stop, made.silent = stop, silent
        if run:
            with suppress(Stopped):
                made.execute()
    return made


def _heard(record: Record, within: tuple[int, int] | None, **facts: Any) -> None:
    """What a trial reports, see `trial` of `within`; a checkpoint within a task must not be passed over."""
    phase = facts.get("phase")
    if phase == "train":
        record.reported.append(facts["terms"])
    elif phase == "passed":
        raise ConformanceError("resuming", facts["message"])
    elif phase == "kept" and (facts["index"], facts["step"]) == within:
        raise Stopped
