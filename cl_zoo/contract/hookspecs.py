"""The contract: what the engine asks of a plugin.

A plugin is a class. Its instance implements any of the nine hooks below, decorated with `hookimpl`, with any subset of
the arguments. Besides hooks it may have

    Options            a frozen pydantic model; the instance is made with it
    answering          names of options that answers alone read: what is learnt, kept and measured is the same at any value, so that
                       runs which differ in nothing else share one training
    ablations          rows of its paper's ablations that options express, see `cl_zoo.contract.ablations`
    protocol           "sequential" (default), "joint" (all tasks at once) or "none" (nothing is trained)
    probe              True for a plugin that only measures
    parts(model)       part -> names of parameters; every trainable tensor belongs to one part
    state_dict()       JSON values and tensors that are not in the model; never pickle
    load_state_dict()  recreates experts and modules, so that the model's tensors can be filled by name, in place of whatever
                       the instance holds; one needs the other

In a stack a hook of several plugins is called in the order in which they are named, the method first; after a task the
probes come first, so that they see what was trained before a method fuses or prunes it.

Every hook leaves the model in the mode in which it finds it, since the engine and the other plugins of the stack rely on it.
Train/eval mode is the engine's: training mode from `before_task` to `after_task`, evaluation mode for answers. What learns
(`requires_grad`), which experts answer and through which mixes is the method's to choose, in `build_model`, `before_task` and
`after_task`; between them, in `rehearse`, `loss`, `before_step`, `after_step` and `state_dict`, all of it and the route stay as they are. A hook that runs
the model in another state does so inside `with cl_zoo.nn.standing_still(model):`, which puts everything back. An interrupted
run goes on with `build_model`, `load_state_dict` and `before_task`, so `before_task` chooses anew whatever was chosen before.

A run that was interrupted within a task does the same from the state after the task before, and then takes up what the steps
have changed. So all that `loss`, `before_step`, `after_step`, the forward or `prepare` change from one step to the next is a parameter, a buffer of the model or
in `state_dict`; `load_state_dict` then comes behind `before_task`, for a plugin whose state the steps have changed and for
no other, and leaves alone what `before_task` has made.

Arguments and hooks are only ever added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.batches import Batch
    from cl_zoo.recipe.recipe import Recipe
    from cl_zoo.tasks import Sample, Task

PROJECT = "cl_zoo"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a method of a plugin as its implementation of the hook of that name; without it the engine never calls it."""


class HookSpecs:
    """The nine hooks, in the order in which they are called."""

    @hookspec(firstresult=True)
    def build_model(self, backbone: Backbone, recipe: Recipe) -> nn.Module | None:
        """Place what the method trains, once, before the first task.

        Returns an `nn.Module` with a forward that takes `batch.inputs` as keywords and returns what the backbone's does, and
        with a `generate` that takes the same and returns token ids, the prompt's and then the answer's; usually an `ExpertBank`
        around `backbone.model`, or a module derived from `cl_zoo.nn.Around`, which has both. Everything trainable is a parameter
        of it, an `nn.Parameter` that is registered. Without any implementation the engine places one
        expert of `recipe.adapter.rank` on all linears of the language model. The module may define `prepare(batch)`;
        the engine calls it before every training forward and before every generate. It may define `stepped(done, total)`,
        called on every process after each optimiser step, for what changes while a task is learnt.
        Only one plugin of a stack may implement it, and one that does returns a module.
        """

    @hookspec
    def before_task(self, model: nn.Module, task: Task, batches: Sequence[Batch]) -> None:
        """Get ready to learn `task`: add an expert, choose by `requires_grad` what learns.

        `batches` are the task's training samples, as `after_task` has them, for methods that look at a task before they learn it.
        The optimiser is made right after this hook, new for each task, over the parameters that require a gradient.
        """

    @hookspec
    def rehearse(self, task: Task) -> Sequence[Sample] | None:
        """Samples of earlier tasks to mix into the training of `task`; for methods that replay.

        Called once per task, after `before_task`. The number of optimiser steps stays what the recipe says, so batches grow; the
        ledger counts the additional samples, and a comparison says so. Several plugins: the samples are joined.
        """

    @hookspec
    def loss(self, model: nn.Module, batch: Batch, outputs: Any, task: Task) -> Mapping[str, Tensor] | None:
        """Further terms of the objective for this batch, already weighted, by name.

        Called after every training forward. The engine adds the model's own loss as the term `task`. The shape of a
        term says how it is averaged: a scalar is a function of weights and counts once per optimiser step, a vector
        (batch,) is per sample and averaged over the global batch, a matrix (batch, K) is per answer token and averaged
        over the answer tokens of the global batch. Positions without an answer token do not count.
        Several plugins: terms are joined; the same name twice stops the run.
        """

    @hookspec
    def before_step(self, model: nn.Module, task: Task) -> None:
        """Change gradients of an optimiser step: project them, scale them, or leave out a weight by `weight.grad = None`.

        Called once per step, when the gradients of the whole global batch stand in `grad`, added up over its micro-batches and
        over all processes, before they are clipped. They are the same on every process and stay so: what a method gathered in
        its forwards is of one process, `cl_zoo.total(tensor)` adds it up. A weight without a gradient stays where it is.
        Several plugins: one after the other.
        """

    @hookspec
    def after_step(
        self, model: nn.Module, task: Task, gradients: Mapping[str, Tensor], before: Mapping[str, Tensor]
    ) -> None:
        """Look at an optimiser step that was just taken; for methods that follow the path of the weights.

        Called once per optimiser step, on every process, with the same on each: `before`, the weights that learn as the step
        found them, and `gradients`, those of the whole objective over the global batch, terms of all plugins included, as
        `before_step` has left them and before they were clipped; both by name of `model.named_parameters()`. A weight that no sample has used has no gradient and is missing
        there. The model holds the weights behind the step, and they stay as they are.
        """

    @hookspec
    def after_task(
        self,
        model: nn.Module,
        task: Task,
        batches: Sequence[Batch],
        parts: Mapping[str, Sequence[str]],
        backbone: Backbone,
        learn: Callable[[Sequence[Sample], int], None],
    ) -> Mapping[str, float | Tensor] | None:
        """Keep what the method needs of the finished task; the measurements returned (numbers, 0-dim tensors) are recorded by name.

        `batches` are the task's training samples in a fixed order, with targets, the same on every process; each is made
        when it is asked for, and a slice makes none. `cl_zoo.share(batches)` gives each process its part and `cl_zoo.total(tensor)` adds up what
        they found. `parts` says which part of the model (`adapters`, `routers`, `projector`, a method's own) has which parameters, as the
        learning rates and the ledger have it: names of `model.named_parameters()` when training began;
        `backbone` is the one that `build_model` got, for plugins that place nothing themselves.

        `learn(samples, epochs)` lets what requires a gradient at that moment learn these samples for so many epochs, by the model's
        own loss and with all that the engine owns: optimiser, rates by part, batches, precision, processes. The task's ledger counts
        it, and what learns so belongs to the budget of a task. A probe takes no `learn`. A plugin chooses what learns inside `with cl_zoo.nn.standing_still(model):`.

        `cl-zoo ledger` counts parameters by calling the hooks on a model without values (torch's meta device) and with no
        batches: a hook that is to be counted sizes its tensors by shapes alone and reads no value then.
        """

    @hookspec(firstresult=True)
    def build_inference_model(self, model: nn.Module, tasks_seen: Sequence[Task]) -> nn.Module | None:
        """The module that answers after the tasks seen so far; without any implementation `model` itself.

        Like the one of `build_model` it is an `nn.Module` with a forward that takes `batch.inputs` and a `generate`; one derived
        from `cl_zoo.nn.Around(bank)` has both. It may have `prepare(batch)`, and a `route` (batch, tasks) that is written beside
        each answer. Batches carry no task identity. It may define `active()`: parameters by part that take part in one answer token,
        for the parts of which only some do. Weights and `requires_grad` of `model` stay as they are: the engine checks the
        weights and restores experts, mixes and modes afterwards. Only one plugin of a stack may implement it, and
        one that does returns a module: `model` itself where that answers.
        """

    @hookspec
    def after_answers(
        self, task: Task, place: int, answers: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, float] | None:
        """Measure the answers to one task of the stream; for probes only, since a method must not learn from test samples.

        Called after `task` was learnt and the answers to the test samples at `place` of the stream were written. Each has
        `id`, `prompt`, `answer` and, where the model exposes one, `route`. The measurements join those of `after_task`
        for the same task, so their names say the place.
        """
