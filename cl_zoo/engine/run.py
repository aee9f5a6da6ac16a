"""One run: learn every task of a stream in order, answer all tasks seen so far after each.

The engine knows tasks, batches, backbones and the loop. It knows no method and no benchmark by name.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from typing import Any

from torch import nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import seed_everything, shard
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.answering import answers
from cl_zoo.engine.compiled import Compiled
from cl_zoo.engine.folder import RunFolder, cells_of_row
from cl_zoo.engine.further import Further
from cl_zoo.engine.inherited import number, ways_back
from cl_zoo.engine.learning import Learner, Report, assign_parts, recompute_activations
from cl_zoo.engine.ledger import Ledger, TaskCost, active, own_state, peak_memory_mb, stored
from cl_zoo.engine.lessons import Lesson, lessons_of
from cl_zoo.engine.midway import Midway
from cl_zoo.engine.sound import check_weights, numbers, unchanged, unsound, weights
from cl_zoo.engine.states import State, fill, read_state_in, states_in
from cl_zoo.engine.streams import Share, TaskBatches, Union, expected
from cl_zoo.engine.trained import Trained
from cl_zoo.errors import PluginError, RunError
from cl_zoo.nn.budget import budget
from cl_zoo.nn.placing import adapters
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import Recipe
from cl_zoo.tasks import Task, TaskData, in_words, origin


class Run:
    """A stack of plugins on a stream of tasks.

    Args:
        plugins: the stack.
        stream: the tasks in the order of this run.
        backbone: used by this run alone, since methods change its model in place.
        cells: `lower` (all tasks seen so far), `last` (only after the last task) or `full` (future tasks too).
        folder: entered and empty, or holding a checkpoint of the same run.
        trained: states of a training that other runs share; `None` where this one is alone.
        every: minutes between checkpoints within a task, 0 for none.
        compiled: whether decoder layers are compiled while they learn: `on`, `off`, or `auto` for long tasks.
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
        every: float = 0.0,
        compiled: str = "off",
    ) -> None:
        self.plugins, self.stream, self.backbone, self.recipe = plugins, tuple(stream), backbone, recipe
        self.seed, self.cells, self.folder, self.world, self.report = seed, cells, folder, world, report
        self.trained, self.every, self.ledger = trained, every, Ledger(budget=budget(backbone, recipe))
        self.measured: list[dict[str, float]] = []
        self.compiled = Compiled(backbone.layers, compiled)
        self.model = self._build()

    def execute(self) -> None:
        """From the last checkpoint, or from the beginning, to the last answer."""
        done = self._restore()
        if self.world.main:
            self.folder.begin()
            for place, task in enumerate(self.stream):
                self.folder.write_lines(f"expected/{place}.jsonl", expected(task))
        for lesson in self.lessons[done:]:
            self._train(lesson)
            self._answer(lesson)
            self._checkpoint(lesson.task.index + 1)
        if not self.lessons:
            self._answer(None)
            self._account()

    def _build(self) -> nn.Module:
        self._seed("build")
        model = placed(self.plugins, self.backbone, self.recipe)
        self._sound(model, "build_model")
        if self.recipe.checkpointing:
            recompute_activations(self.backbone.model)
        return model

    @cached_property
    def lessons(self) -> list[Lesson]:
        """What is learnt one after the other."""
        return lessons_of(self.plugins.protocol, self.stream)

    def _train(self, lesson: Lesson) -> None:
        """Learn a task, or take over what another run learnt of it."""
        if self.trained is None:
            self._learn(lesson)
        elif not self._take(lesson, self.trained):
            self._learn_for_all(lesson, self.trained)

    def _learn(self, lesson: Lesson) -> None:
        task, recipe = lesson.task, self.recipe.for_task(lesson.task.name)
        self.report(task=task.name, index=task.index, phase="before_task")
        self.plugins.at(in_words(task))
        self.model.train()  # whether the run has just begun, goes on or was resumed
        self._seed("before_task", task)
        batches = TaskBatches(self.backbone, lesson.train, recipe)
        with self._autocast():
            self.plugins.before_task(self.model, task, batches)
        self.model.to(self.backbone.device)  # what the hook has just made may still be elsewhere
        self._sound(self.model, "before_task")
        self._seed("rehearse", task)
        pool = Union([lesson.train, self.plugins.rehearse(task)])
        midway = Midway(self, task)
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
        micros = shard(range(recipe.global_batch), 0, self.world.size, recipe.micro_batch)
        with self.compiled.learning(learner.total * len(micros)) as told:
            cost = learner.run(lambda **facts: self.report(task=task.name, index=task.index, **facts), midway)
        cost.compiled = told
        self.ledger.tasks.append(cost)
        self._sound(self.model, "loss", f"step {cost.steps}, the last one,")
        self.plugins.at(in_words(task))
        self._seed("after_task", task)
        self.report(task=task.name, index=task.index, phase="after_task")
        with self._autocast():
            measured = self.plugins.after_task(
                self.model, task, batches, parts=learner.names, backbone=self.backbone, learn=Further(learner)
            )
        self._sound(self.model, "after_task")
        with self.plugins.told("after_task"):
            self.measured.append(numbers("after_task", measured))

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

    def _answer(self, lesson: Lesson | None) -> None:
        """Write the answers to this row's cells."""
        started = time.perf_counter()
        row = lesson.task.index if lesson else 0
        with self._answering(row) as answering:
            for place in cells_of_row(self.cells, self.plugins.protocol, row, len(self.stream)):
                records = self._write_answers(answering, row, place)
                if lesson:
                    self._measure(self.plugins.after_answers(lesson.task, place, records))
            parts = assign_parts(self.model, self.plugins, self.backbone)
            self.ledger.stored = stored(
                self.model, answering, self.backbone, parts, self.plugins.state_dict(probes=False)
            )
            with self.plugins.calling_module(answers=True):
                self.ledger.active = sum(active(answering, self.ledger.stored["inference"]).values())
        self.ledger.evaluation_seconds += time.perf_counter() - started

    def _answer_again(self, row: int, places: Sequence[int]) -> None:
        """Write answers that were lost; what was measured on them stands in the checkpoint."""
        with self._answering(row) as answering:
            for place in places:
                self._write_answers(answering, row, place)

    @contextmanager
    def _answering(self, row: int) -> Iterator[nn.Module]:
        """What answers in a row of the matrix; the model's weights must be the same afterwards."""
        seen = [lesson.task for lesson in self.lessons if lesson.task.index <= row]
        self.plugins.at(f"answers after {in_words(seen[-1])}" if seen else "answers")
        with self.plugins.told("build_inference_model"), unchanged(self.model, self.backbone):
            with self._autocast():
                answering = answering_model(self.plugins, self.model, seen, self.seed)
            yield answering

    def _measure(self, measured: Mapping[str, Any]) -> None:
        """Add to the measurements of the task just learnt."""
        with self.plugins.told("after_answers"):
            found = numbers("after_answers", measured)
        for name, value in found.items():
            if name in self.measured[-1]:
                raise PluginError(f"{name!r} was measured twice after one task; rename one")
            self.measured[-1][name] = value

    def _write_answers(self, answering: nn.Module, row: int, place: int) -> list[dict[str, Any]]:
        """Answer the test samples at a place of the stream; returns the records of all processes in their order."""
        task = self.stream[place]
        self.report(phase="answer", task=task.name, index=row, cell=place)
        mine = Share(task.test, self.world.rank, self.world.size)
        with self._autocast():
            records = list(
                answers(
                    answering,
                    self.backbone,
                    mine,
                    max_new_tokens=task.max_new_tokens,
                    batch=self.recipe.eval_batch,
                    guard=self.plugins.calling_module(answers=True),
                    static=self.recipe.static_cache,
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
                {"ledger": self.ledger.to_json(), "measured": self.measured, "data": self.folder.data},
            )
        self.world.wait()

    def _account(self) -> None:
        self.ledger.hooks = dict(self.plugins.seconds)
        self.ledger.peak_memory_mb = max(self.ledger.peak_memory_mb, peak_memory_mb(self.backbone.device))

    def _restore(self) -> int:
        """Go on from the newest checkpoint; returns how many tasks are done.

        Lost answers are made again by the model that made them, from a state that was kept or by learning once more.
        """
        found = self.folder.load_state(str(self.backbone.device))
        if found is None:
            return 0
        done, protocol, tasks = int(found[2]["done"]), self.plugins.protocol, len(self.stream)
        lost = self.folder.lost({row: cells_of_row(self.cells, protocol, row, tasks) for row in range(done)})
        kept = [number(state) for state in states_in(self.folder.partial)]
        for row, state, places in ways_back(lost, kept):
            if state:
                earlier = read_state_in(self.folder.partial / f"state-{state}", str(self.backbone.device))
                put_back(earlier, self.plugins, self.model, self.backbone, self.folder.partial)
            for lesson in self.lessons[places.start : places.stop]:
                self._train(lesson)
            self._answer_again(row, lost[row])
        notes = put_back(found, self.plugins, self.model, self.backbone, self.folder.partial)
        self.ledger = Ledger.from_json(notes["ledger"])
        self.plugins.seconds.update(self.ledger.hooks)
        self.measured = notes["measured"]
        if lost and self.world.main:
            self.folder.list_again(done)
        return done

    def _sound(self, model: nn.Module, hook: str, behind: str = "") -> None:
        """Whether what a hook or a task has left behind are numbers."""
        with self.plugins.told(hook):
            check_weights(model, self.backbone, behind or hook)

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
    backbone.train_projector(learns and recipe.projector == "sequential")
    return model.to(backbone.device)


def put_back(found: State, plugins: Plugins, model: nn.Module, backbone: Backbone, place: object) -> Any:
    """Give a model that was just placed, and its plugins, what a checkpoint holds; returns its notes.

    Raises:
        RunError: the checkpoint's tensors are not those of the model, or no numbers.
        PluginFault: a plugin cannot take its state.
    """
    tensors, state, notes = found
    plugins.at(f"checkpoint in {place}")
    plugins.load_state_dict(state)
    model.to(backbone.device)
    fill(own_state(model, backbone), tensors, str(place))
    if bad := unsound(weights(model, backbone)):
        raise RunError(f"checkpoint in {place}: the weight {bad}; delete the folder to start the run again")
    plugins.at("")
    return notes


def answering_model(plugins: Plugins, model: nn.Module, seen: Sequence[Task], seed: int) -> nn.Module:
    """What answers after the tasks seen so far, in evaluation mode."""
    model.eval()  # a module that answers may hold the model without registering it
    seed_phase(seed, "build_inference_model", seen[-1] if seen else None)
    return plugins.build_inference_model(model, seen).eval()
