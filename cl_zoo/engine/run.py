"""One run: learn every task of a stream in order, answer all tasks seen so far after each.

The engine knows tasks, batches, backbones and the loop. It knows no method and no benchmark by name.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import seed_everything
from cl_zoo.contract import returned
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.answering import answers
from cl_zoo.engine.folder import RunFolder, State, cells_of_row, fill
from cl_zoo.engine.learning import Learner, Report, assign_parts, recompute_activations
from cl_zoo.engine.ledger import Ledger, TaskCost, active, own_state, peak_memory_mb, stored
from cl_zoo.engine.streams import Share, TaskBatches, Union, expected
from cl_zoo.engine.trained import Trained
from cl_zoo.errors import PluginError
from cl_zoo.nn.budget import budget
from cl_zoo.nn.placing import adapters
from cl_zoo.nn.still import standing_still
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import Recipe
from cl_zoo.tasks import Sample, Task, TaskData, origin


class Run:
    """A stack of plugins on a stream of tasks.

    Args:
        plugins: the stack.
        stream: the tasks in the order of this run.
        backbone: used by this run alone, since methods change its model in place.
        cells: `lower` (all tasks seen so far), `last` (only after the last task) or `full` (future tasks too).
        folder: entered and empty, or holding a checkpoint of the same run.
        trained: states of a training that other runs share; `None` where this one is alone.
    """

    def __init__(
        self,
        plugins: Plugins,
        stream: Sequence[TaskData],
        backbone: Backbone,
        recipe: Recipe,
        *,
        seed: int,
        cells: str,
        folder: RunFolder,
        world: World,
        report: Report,
        trained: Trained | None = None,
    ) -> None:
        self.plugins, self.stream, self.backbone, self.recipe = plugins, tuple(stream), backbone, recipe
        self.seed, self.cells, self.folder, self.world, self.report = seed, cells, folder, world, report
        self.trained, self.ledger = trained, Ledger(budget=budget(backbone, recipe))
        self.measured: list[dict[str, float]] = []
        self.model = self._build()

    def execute(self) -> None:
        """From the last checkpoint, or from the beginning, to the last answer."""
        lessons = self.lessons
        done = self._restore()
        if self.world.main:
            self.folder.begin()
            self.folder.check_answers(self._answered(done))
            for place, task in enumerate(self.stream):
                self.folder.write_lines(f"expected/{place}.jsonl", expected(task))
        for lesson in lessons[done:]:
            if self.trained is None:
                self._learn(lesson)
            elif not self._take(lesson, self.trained):
                self._learn_for_all(lesson, self.trained)
            self._answer(lesson, lessons)
            self._checkpoint(lesson.task.index + 1)
        if not lessons:
            self._answer(None, [])
            self._account()

    def _build(self) -> nn.Module:
        self._seed("build")
        model = placed(self.plugins, self.backbone, self.recipe)
        if self.recipe.checkpointing:
            recompute_activations(self.backbone.model)
        return model

    @cached_property
    def lessons(self) -> list[Lesson]:
        """What is learnt one after the other: the tasks, all of them as one, or nothing."""
        if self.plugins.protocol == "none":
            return []
        if self.plugins.protocol == "joint":
            union = Union([task.train for task in self.stream])
            return [Lesson(Task(0, "joint", "", len(union)), union)]
        seen: dict[str, int] = {}
        lessons = []
        for index, data in enumerate(self.stream):
            occurrence = seen.get(data.name, 0)
            seen[data.name] = occurrence + 1
            task = Task(index, data.name, data.instruction, len(data.train), occurrence)
            lessons.append(Lesson(task, data.train))
        return lessons

    def _learn(self, lesson: Lesson) -> None:
        task, recipe = lesson.task, self.recipe.for_task(lesson.task.name)
        self.model.train()  # whether the run has just begun, goes on or was resumed
        self._seed("before_task", task)
        with self._autocast():
            self.plugins.before_task(self.model, task)
        self.model.to(self.backbone.device)  # what the hook has just made may still be elsewhere
        self._seed("rehearse", task)
        pool = Union([lesson.train, self.plugins.rehearse(task)])
        learner = Learner(
            self.model,
            task,
            pool,
            backbone=self.backbone,
            plugins=self.plugins,
            recipe=recipe,
            world=self.world,
            seed=self.seed,
        )
        cost = learner.run(lambda **facts: self.report(task=task.name, index=task.index, **facts))
        self.ledger.tasks.append(cost)
        self._seed("after_task", task)
        self.report(task=task.name, index=task.index, phase="after_task")
        with self._autocast():
            batches = TaskBatches(self.backbone, lesson.train, recipe)
            measured = self.plugins.after_task(
                self.model, task, batches, parts=learner.names, backbone=self.backbone
            )
        self.measured.append({name: float(value) for name, value in measured.items()})  # 0-dim tensors too

    def _take(self, lesson: Lesson, trained: Trained) -> bool:
        """Take over what another run learnt of this task and what that cost; returns whether it was there, in all processes."""
        found = trained.load(lesson.task.index + 1, str(self.backbone.device))
        if self.world.sum(float(found is not None)) < self.world.size or found is None:
            return False
        notes = put_back(found, self.plugins, self.model, self.backbone, trained.folder)
        self.ledger.tasks.append(TaskCost(**notes["cost"]))
        self.ledger.taken += 1
        self.ledger.peak_memory_mb = max(self.ledger.peak_memory_mb, notes["peak_memory_mb"])
        for hook, seconds in notes["hooks"].items():
            self.plugins.seconds[hook] += seconds
        self.measured.append(notes["measured"])
        self.report(phase="taken", task=lesson.task.name, index=lesson.task.index)
        return True

    def _learn_for_all(self, lesson: Lesson, trained: Trained) -> None:
        """Learn a task, and keep what was learnt for the runs that share it."""
        before = dict(self.plugins.seconds)
        self._learn(lesson)
        self._account()
        if trained.keep and self.world.main:
            notes = {
                "cost": asdict(self.ledger.tasks[-1]),
                "measured": self.measured[-1],
                "hooks": {hook: s - before.get(hook, 0.0) for hook, s in self.plugins.seconds.items()},
                "peak_memory_mb": self.ledger.peak_memory_mb,
            }
            own = own_state(self.model, self.backbone)
            trained.save(lesson.task.index + 1, own, self.plugins.state_dict(), notes)
        self.world.wait()

    def _answer(self, lesson: Lesson | None, lessons: Sequence[Lesson]) -> None:
        """Write the answers to this row's cells."""
        started = time.perf_counter()
        seen = [other.task for other in lessons if lesson and other.task.index <= lesson.task.index]
        row = lesson.task.index if lesson else 0
        with unchanged(self.model, self.backbone):
            with self._autocast():
                answering = answering_model(self.plugins, self.model, seen, self.seed)
            for place in cells_of_row(self.cells, self.plugins.protocol, row, len(self.stream)):
                self.report(phase="answer", task=self.stream[place].name, index=row, cell=place)
                records = self._write_answers(answering, row, place)
                if lesson:
                    self._measure(self.plugins.after_answers(lesson.task, place, records))
            parts = assign_parts(self.model, self.plugins, self.backbone)
            self.ledger.stored = stored(
                self.model, answering, self.backbone, parts, self.plugins.state_dict(probes=False)
            )
            self.ledger.active = sum(active(answering, self.ledger.stored["inference"]).values())
        self.ledger.evaluation_seconds += time.perf_counter() - started

    def _answered(self, rows: int) -> dict[str, int]:
        """Number of answers in each file that was written in the first rows."""
        protocol, tasks = self.plugins.protocol, len(self.stream)
        return {
            f"answers/{row}-{place}.jsonl": len(self.stream[place].test)
            for row in range(rows)
            for place in cells_of_row(self.cells, protocol, row, tasks)
        }

    def _measure(self, measured: Mapping[str, Any]) -> None:
        """Add to the measurements of the task just learnt."""
        for name, value in measured.items():
            if name in self.measured[-1]:
                raise PluginError(f"{name!r} was measured twice after one task; rename one")
            self.measured[-1][name] = float(value)

    def _write_answers(self, answering: nn.Module, row: int, place: int) -> list[dict[str, Any]]:
        """Answer the test samples at a place of the stream; returns the records of all processes in their order."""
        task = self.stream[place]
        mine = Share(task.test, self.world.rank, self.world.size)
        with self._autocast():
            records = list(
                answers(
                    answering,
                    self.backbone,
                    mine,
                    max_new_tokens=task.max_new_tokens,
                    batch=self.recipe.eval_batch,
                )
            )
        gathered = mine.merged(self.world.gather, records)
        if self.world.main:
            named = ({"place": n, **origin(task.test, n), **one} for n, one in enumerate(gathered))
            self.folder.write_lines(f"answers/{row}-{place}.jsonl", named)
        return gathered

    def _checkpoint(self, done: int) -> None:
        self._account()
        if self.world.main:
            self.folder.save_state(
                done,
                own_state(self.model, self.backbone),
                self.plugins.state_dict(),
                {"ledger": self.ledger.to_json(), "measured": self.measured},
            )
        self.world.wait()

    def _account(self) -> None:
        self.ledger.hooks = dict(self.plugins.seconds)
        self.ledger.peak_memory_mb = max(self.ledger.peak_memory_mb, peak_memory_mb(self.backbone.device))

    def _restore(self) -> int:
        """Go back to the newest checkpoint; returns how many tasks are done."""
        found = self.folder.load_state(str(self.backbone.device))
        if found is None:
            return 0
        notes = put_back(found, self.plugins, self.model, self.backbone, self.folder.partial)
        self.ledger = Ledger.from_json(notes["ledger"])
        self.plugins.seconds.update(self.ledger.hooks)
        self.measured = notes["measured"]
        return int(notes["done"])

    def _seed(self, phase: str, task: Task | None = None) -> None:
        seed_phase(self.seed, phase, task)

    def _autocast(self) -> Any:
        return self.world.autocast(self.recipe.precision)


def seed_phase(seed: int, phase: str, task: Task | None = None) -> None:
    """Nothing that was drawn before decides what a hook draws."""
    seed_everything(seed, task.name if task else "", task.occurrence if task else 0, phase)


def placed(plugins: Plugins, backbone: Backbone, recipe: Recipe) -> nn.Module:
    """What a stack trains, on the backbone and its device: by default one expert on all linears, or nothing but the model itself."""
    learns = plugins.protocol != "none"
    model = plugins.build_model(backbone, recipe)
    if model is None:
        model = adapters(backbone, recipe) if learns else backbone.model
    else:
        returned.module("build_model", model)
    backbone.train_projector(learns and recipe.projector == "sequential")
    return model.to(backbone.device)


def put_back(found: State, plugins: Plugins, model: nn.Module, backbone: Backbone, place: object) -> Any:
    """Give a model that was just placed, and its plugins, what a checkpoint holds; returns its notes.

    Raises:
        RunError: the checkpoint's tensors are not those of the model.
    """
    tensors, state, notes = found
    plugins.load_state_dict(state)
    model.to(backbone.device)
    fill(own_state(model, backbone), tensors, str(place))
    return notes


def answering_model(plugins: Plugins, model: nn.Module, seen: Sequence[Task], seed: int) -> nn.Module:
    """What answers after the tasks seen so far, in evaluation mode."""
    model.eval()  # a module that answers may hold the model without registering it
    seed_phase(seed, "build_inference_model", seen[-1] if seen else None)
    built = plugins.build_inference_model(model, seen)
    if built is not model:
        returned.module("build_inference_model", built, forward=False)
    return built.eval()


@dataclass(frozen=True)
class Lesson:
    """A task with its training samples."""

    task: Task
    train: Sequence[Sample]


@contextmanager
def unchanged(model: nn.Module, backbone: Backbone) -> Iterator[None]:
    """Answering must not teach: weights are checked, experts, mixes, modes and `requires_grad` put back.

    Raises:
        PluginError: a weight was changed, added or removed.
    """
    before = model.state_dict(keep_vars=True)
    # Writing through `.data` leaves the version as it is, so the method's own, small tensors are compared by value too.
    marks = {name: (id(tensor), tensor._version) for name, tensor in before.items()}
    # On the CPU: what the engine checks is no memory that the method costs.
    values = {
        name: tensor.detach().to("cpu", copy=True) for name, tensor in own_state(model, backbone).items()
    }
    with standing_still(model):
        yield
    after = model.state_dict(keep_vars=True)
    for name in sorted(before.keys() | after.keys()):
        same = name in after and marks.get(name) == (id(after[name]), after[name]._version)
        if not same or (name in values and not torch.equal(values[name], after[name].cpu())):
            raise PluginError(
                f"answering changed {name}; build_inference_model must leave the model's weights as they are"
            )
