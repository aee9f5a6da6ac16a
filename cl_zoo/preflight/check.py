"""Every task of a stream checked with the run's own tokenizer, image processor, template and scorer, before the first step.

`cl-zoo data check` reads files alone; what is asked here takes a backbone: how many tokens a record has, whether the image
processor takes a picture's proportions, whether an answer may be as long as the right one. Texts are tokenized in batches,
pictures are known from their headers and their tokens are counted from their sizes. Splits that draw their samples when they
are asked for are left to their own checks.

All faults are told at once, one sentence each. A task without faults is remembered (`cl_zoo.preflight.remembered`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.errors import ClZooError, DataError
from cl_zoo.preflight.answers import answer_faults
from cl_zoo.preflight.found import Found
from cl_zoo.preflight.lengths import split_faults
from cl_zoo.preflight.remembered import Remembered
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import Recipe
from cl_zoo.scoring.captions import JAVA_REMEDY, find_java, java_version
from cl_zoo.scoring.rules import of_files
from cl_zoo.tasks import Sample, TaskData, whole_of

Watch = Callable[[str], None]
"""Told the name of the task that is looked at."""


def preflight(
    stream: Sequence[TaskData],
    backbone: Backbone,
    recipe: Recipe,
    *,
    processes: int = 1,
    memory: Path | None = None,
    watch: Watch = lambda task: None,
) -> Found:
    """What stands in the way of a run.

    Args:
        stream: the tasks of the run, as long as it uses them.
        backbone: with or without weights; its tokenizer, image processor, template and limits are the run's.
        recipe: of the run.
        processes: that learn together.
        memory: folder in which tasks without faults are remembered; `None` remembers nothing.
        watch: told how far the check is.
    """
    found = Found()
    batches(stream, recipe, processes, found)
    if any(of_files(task.metric) for task in stream):
        _java(found)
    for task in {id(task): task for task in stream}.values():  # one may come twice
        splits = [split for split in (task.train, task.test) if legible(split)]
        if splits:
            watch(task.name)
            _task(task, backbone, memory, found)
    return found


def refuse(found: Found) -> None:
    """Let a run begin, or say all that stands in its way.

    Raises:
        DataError: something does.
    """
    if found.count:
        raise DataError(found.told())


def agreed(world: World, check: Callable[[], None]) -> None:
    """Let the main process check; no other one goes on where it does not.

    Raises:
        ClZooError: what the main process found.
    """
    error: ClZooError | None = None
    if world.main:
        try:
            check()
        except ClZooError as raised:
            error = raised
    if world.sum(float(error is not None)):
        raise error or DataError("the main process found what stands in the way of the run; see its message")


def batches(stream: Sequence[TaskData], recipe: Recipe, processes: int, found: Found) -> None:
    """A process that would never get a sample of a step waits for the others in every one of them."""
    for task in {task.name: task for task in stream}.values():
        size = recipe.for_task(task.name).global_batch
        if size < processes:
            found.add(
                f"task {task.name}: a step has {size} samples (global_batch) for {processes} processes, of which "
                f"{processes - size} would never get one; start {size} at most, or set global_batch={processes}"
            )


def _java(found: Found) -> None:
    """Scores of captions come after all answers, so that their Java is run before the first step."""
    try:
        java = find_java()
    except ClZooError as error:
        found.add(str(error))
        return
    try:
        java_version(java)
    except ClZooError as error:
        found.add(f"caption scores need Java, and {error}; {JAVA_REMEDY}")


def legible(split: Sequence[Sample]) -> bool:
    """Whether all of a split can be read in no time: it is a list, or it can be asked for samples without their pictures."""
    whole = whole_of(split)
    return isinstance(whole, list | tuple) or hasattr(whole, "undecoded")


def _task(task: TaskData, backbone: Backbone, memory: Path | None, found: Found) -> None:
    remembered = Remembered(memory, task, backbone)
    if remembered.known:
        return
    before = found.count
    pictures: dict[str, int] = {}
    if legible(task.train):
        split_faults(task, "train", backbone, pictures, found)
    if legible(task.test):
        split_faults(task, "test", backbone, pictures, found)
        answer_faults(task, backbone, found)
    if found.count == before:
        remembered.keep(pictures)
