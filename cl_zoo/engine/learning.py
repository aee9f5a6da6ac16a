"""Learning one task: the only training loop there is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch, answer_losses, forward, order, seed_everything, shard, stepped, steps
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.ledger import TaskCost, training_flops
from cl_zoo.engine.objective import backward, reduce_term
from cl_zoo.engine.optimising import clip, make_optimizer, rate
from cl_zoo.engine.together import together
from cl_zoo.engine.watching import Watch
from cl_zoo.errors import PluginFault, RunError
from cl_zoo.nn.budget import learning
from cl_zoo.nn.placing import bank_layers, bank_parts
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import Recipe
from cl_zoo.tasks import Sample, Task, in_words

if TYPE_CHECKING:
    from cl_zoo.engine.midway import Midway

Report = Callable[..., None]
"""Called with keywords that tell how far a run is."""

BACKWARD = "let terms and forward be functions of the weights that learn"
"""What the contract asks of what is differentiated."""


def assign_parts(model: nn.Module, plugins: Plugins, backbone: Backbone) -> dict[str, list[str]]:
    """Every parameter that is not the frozen backbone's, by part.

    The plugins' own words come first, then the bank's (adapters, routers), then the projector.

    Raises:
        PluginFault: a trainable tensor belongs to no part, to two or to the frozen backbone, or a part names no parameter.
    """
    named = dict(model.named_parameters())
    parts = {part: list(names) for part, names in plugins.parts(model).items()}
    claimed = {name for names in parts.values() for name in names}
    projector = {id(weight) for weight in backbone.projector.parameters()}
    defaults = {
        **bank_parts(model),
        "projector": [name for name, weight in named.items() if id(weight) in projector],
    }
    for part, names in defaults.items():
        free = [name for name in names if name not in claimed]
        if free:
            parts.setdefault(part, []).extend(free)
    owners: dict[str, str] = {}
    for part, names in parts.items():
        for name in names:
            if name not in named:
                raise PluginFault(
                    f"parts: {part!r} names {name!r}, which the model does not have",
                    "give names of model.named_parameters()",
                )
            if name in owners:
                raise PluginFault(
                    f"parts: {name} belongs to {owners[name]!r} and to {part!r}", "name it once"
                )
            owners[name] = part
    for name, weight in named.items():
        if weight.requires_grad and backbone.owns(weight):
            raise PluginFault(
                f"{name} belongs to the frozen backbone and would not be kept",
                "train an expert or a module beside it",
            )
        if weight.requires_grad and name not in owners:
            raise PluginFault(
                f"{name} is trainable but belongs to no part", "name it in the method's parts(model)"
            )
    return parts


SILENT = 5.0
"""Seconds after which a step is reported that would not be otherwise: every tenth and the last one are."""


class Learner:
    """Trains one task with everything the engine owns: order, budget, optimiser, schedule, precision.

    Args:
        model: what `build_model` made.
        task: what is learnt; its size tells how many of the pool are its own.
        pool: the task's training samples, followed by rehearsed ones.
    """

    watch, told = Watch, staticmethod(stepped)  # who hears of a step

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        pool: Sequence[Sample],
        *,
        backbone: Backbone,
        plugins: Plugins,
        recipe: Recipe,
        world: World,
        seed: int,
    ) -> None:
        self.model, self.task, self.pool, self.seed = model, task, pool, seed
        self.backbone, self.plugins, self.recipe, self.world = backbone, plugins, recipe, world
        plugins.at(in_words(task))
        self.per_epoch = -(-task.size // recipe.global_batch)
        self.total = self.per_epoch * recipe.epochs
        named = dict(model.named_parameters())
        with plugins.told("parts"):
            self.names = assign_parts(model, plugins, backbone)
        self.parts = {
            part: [named[name] for name in names if named[name].requires_grad]
            for part, names in self.names.items()
        }
        self.learning = [weight for weights in self.parts.values() for weight in weights]
        if not self.learning:
            with plugins.told("before_task"):
                raise PluginFault("nothing requires a gradient", "let before_task choose what learns")
        self.optimizer = make_optimizer(self.parts, recipe, self._method_of())
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: rate(step, self.total, recipe)
        )
        trained = {part: sum(w.numel() for w in ws) for part, ws in self.parts.items() if ws}
        self.cost = TaskCost(task.name, trained=trained, learning=asdict(learning(model)))
        self.norm, self.watched = torch.zeros(()), self.watch()
        self._layers = bank_layers(model)
        # On an accelerator a copy of each gradient, or an operation saved by sums in another order, is worth more than bits.
        self.by_rows = world.device.type == "cpu"
        self._module = plugins.calling_module()
        self._backward = plugins.calling("loss", "build_model", subject="the backward pass", asks=BACKWARD)

    def _method_of(self) -> Callable[[nn.Parameter], str]:
        """Whose part a weight is in: the plugin's that says so, else the method's."""
        named, method = dict(self.model.named_parameters()), next(iter(self.plugins.instances), "")
        owners = {id(named[name]): owner for name, owner in self.plugins.owners(self.model).items()}
        return lambda weight: owners.get(id(weight), method)

    def run(self, report: Report, midway: Midway | None = None) -> TaskCost:
        """All epochs, or what is left of them; returns what they cost.

        Args:
            midway: keeps checkpoints on the way and may hold one to go on from.

        Raises:
            PluginFault: a plugin's term or a gradient is not finite.
            RunError: the task's own objective is not.
        """
        began = midway.go_on(self) if midway else 0
        reported = time.perf_counter()
        started, done = reported - self.cost.seconds, began
        self.model.train()
        for epoch in range(began // max(self.per_epoch, 1), self.recipe.epochs):
            seed_everything(
                self.seed, self.task.name, self.task.occurrence, f"epoch {epoch}", self.world.rank
            )
            plan = steps(self._order(epoch), batch=self.recipe.global_batch, count=self.per_epoch)
            learnt = done - epoch * self.per_epoch
            if midway and learnt:
                midway.draw_on()
            for indices, following in islice(zip(plan, [*plan[1:], []], strict=True), learnt, None):
                done += 1
                self.plugins.at(in_words(self.task), done)
                values = self._finite(self.step(indices, following))
                with self._module:
                    self.told(self.model, done, self.total)
                now = time.perf_counter()
                if done % 10 == 0 or done == self.total or now - reported > SILENT:
                    reported = now
                    highest = max(self.schedule.get_last_lr())
                    report(phase="train", step=done, steps=self.total, terms=values, rate=highest)
                if midway and midway.due():
                    self.cost.seconds = time.perf_counter() - started
                    midway.keep(self)
        self.optimizer.zero_grad(set_to_none=True)  # those of the last step; each step drops those before it
        for layer in self._layers:
            layer.part()
        trained = sum(self.cost.trained.values())
        self.cost.flops = training_flops(self.backbone, self.cost.tokens, trained)
        self.cost.seconds = time.perf_counter() - started
        return self.cost

    def rates_after(self, done: int) -> None:
        """Let the schedule stand where it stands after so many steps."""
        self.schedule.last_epoch = done
        bases, factor = self.schedule.base_lrs, rate(done, self.total, self.recipe)
        for group, base in zip(self.optimizer.param_groups, bases, strict=True):
            group["lr"] = base * factor

    def _order(self, epoch: int) -> list[int]:
        """Places in the pool: the task's own samples come in one order for every method, rehearsed ones between them."""

        def shuffled(size: int) -> list[int]:
            task = self.task
            return order(size, seed=self.seed, task=task.name, occurrence=task.occurrence, epoch=epoch)

        own = iter(shuffled(self.task.size))
        return [next(own) if place < self.task.size else place for place in shuffled(len(self.pool))]

    def step(self, indices: Sequence[int], following: Sequence[int] = ()) -> dict[str, Tensor]:
        """One optimiser step on a global batch, of `following` after it; returns this process's share of every term."""
        for layer in self._layers:
            layer.join(few=not self.by_rows)
        micros = [
            shard(indices, rank, self.world.size, self.recipe.micro_batch) for rank in range(self.world.size)
        ]
        forwards = sum(bool(piece) for mine in micros for piece in mine)
        mine = [[self.pool[i] for i in piece] for piece in micros[self.world.rank] if piece]
        answer_tokens = self.world.sum(
            float(sum(self.backbone.answer_tokens(sample) for samples in mine for sample in samples))
        )
        terms: dict[str, Tensor] = {}
        tokens: int | Tensor = 0  # a sum on the device, read when the step is on its way
        self.optimizer.zero_grad(set_to_none=True)
        for samples, coming in zip_longest(mine, mine[1:]):  # a process may have no piece of a short batch
            batch = self.backbone.batch(samples, answers=True)
            self._expect(coming, following)
            tokens = tokens + batch.inputs["attention_mask"].sum()
            given = self._terms(batch)
            for name, term in given.items():
                share = reduce_term(
                    name, term, batch, samples=len(indices), answer_tokens=answer_tokens, forwards=forwards
                )
                terms[name] = terms[name] + share if name in terms else share
            # One backward per micro-batch frees its images and activations before the next forward.
            with self._backward:
                backward(terms, given)
            terms = {name: term.detach() for name, term in terms.items()}
        self._update()
        self._count(indices, tokens, answer_tokens)
        return terms

    def _expect(self, coming: Sequence[Sample] | None, following: Sequence[int]) -> None:
        """Let the images of the next forward be read: of this step's next micro-batch, else of the following step's first."""
        rank, size, micro = self.world.rank, self.world.size, self.recipe.micro_batch
        first = shard(following, rank, size, micro)[:1] if following else []
        self.backbone.expect(coming or (self.pool[i] for piece in first for i in piece))

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        with self.world.autocast(self.recipe.precision):
            with self._module:
                outputs = forward(self.model, batch)
                own = answer_losses(outputs, batch)
            return {"task": own, **self.plugins.loss(self.model, batch, outputs, self.task)}

    def _update(self) -> None:
        # A step without any image leaves the projector where its momentum takes it, as one with images of no weight would.
        for weight in self.backbone.projector.parameters():
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        self.world.reduce_gradients(self.learning)
        with self.watched(self.plugins, self.model, self.task):
            found = [weight.grad for weight in self.learning if weight.grad is not None]
            lying = together(found)
            # in the order of their rows where a norm must sum as it does over experts that lie by themselves
            self.norm = get_total_norm([one.contiguous() for one in found] if self.by_rows else lying)
            if self.recipe.clip == "norm":
                # A norm that is no number would make all gradients such; by 0 they stay as they are, to be told by name.
                finite = torch.where(self.norm.isfinite(), self.norm, 0.0)
                clip(lying, self.recipe.clip_norm, finite)
            self.optimizer.step()
        self.schedule.step()

    def _count(self, indices: Sequence[int], tokens: int | Tensor, answer_tokens: float) -> None:
        self.cost.steps += 1
        self.cost.samples += len(indices)
        self.cost.rehearsed += sum(index >= self.task.size for index in indices)
        self.cost.tokens += round(self.world.sum(float(tokens)))
        self.cost.answer_tokens += round(answer_tokens)

    def _finite(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """The terms of all processes, added up: what is reported is the whole objective, and all stop where one of them would.

        Terms and the gradient's norm are read together, so that a device is waited for once in a step.
        """
        *here, norm = torch.stack([*terms.values(), self.norm]).tolist()
        values = self.world.sum_by_name(dict(zip(terms, here, strict=True)))
        for name, value in values.items():
            if not math.isfinite(value):
                self._stop(name, value)
        if not math.isfinite(norm):
            self.watched.stop(self.plugins, self.model)
        return values

    def _stop(self, name: str, value: float) -> None:
        """End at a term that is no number: a plugin's by its name, the task's own by that of the task."""
        where, remedy = f"{in_words(self.task)}, step {self.cost.steps}", "lower its learning rate or weight"
        if name == "task":
            raise RunError(f"{where}: the term {name!r} is {value}; {remedy}")
        with self.plugins.told("loss", name):
            raise PluginFault(f"the term {name!r} is {value}", remedy)


def recompute_activations(model: Any) -> None:
    """Let a transformers model keep no activations inside its layers; they are computed again in the backward pass."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # the newer of its two names
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
