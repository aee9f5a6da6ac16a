"""What a plugin learns further when a task is over: the `learn` of `after_task`.

The one training loop does it, by the model's own loss alone; what it costs is counted with the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from cl_zoo.batches import Batch, answer_losses, forward, seed_everything
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.learning import Learner
from cl_zoo.engine.watching import Watch
from cl_zoo.errors import PluginFault
from cl_zoo.tasks import Sample, Task, in_words


class Further:
    """Called with samples and a number of epochs, lets what requires a gradient then learn them.

    Args:
        first: who has just learnt the task; its costs grow.

    Raises (when called):
        PluginFault: nothing requires a gradient.
    """

    def __init__(self, first: Learner) -> None:
        self.first = first
        self._counted = {
            id(weight): weight for weight in first.learning
        }  # kept, so that no new one has its id

    def __call__(self, samples: Sequence[Sample], epochs: int) -> None:
        first = self.first
        if not any(weight.requires_grad for weight in first.model.parameters()):
            raise PluginFault(
                "nothing that learn finds requires a gradient", "let after_task choose what learns first"
            )
        learner = Alone(
            first.model,
            replace(first.task, size=len(samples)),
            samples,
            backbone=first.backbone,
            plugins=first.plugins,
            recipe=first.recipe.model_copy(update={"epochs": epochs}),
            world=first.world,
            seed=first.seed,
        )
        with torch.autocast(
            first.backbone.device.type, enabled=False
        ):  # the steps enter it where they want it
            learner.run(lambda **facts: None)
        self._count(learner)
        first.plugins.at(in_words(first.task))
        # Whoever comes next in the stack draws as if nothing had been learnt in between.
        seed_everything(first.seed, first.task.name, first.task.occurrence, "after_task")

    def _count(self, learner: Learner) -> None:
        """Add what was spent; a weight that learns twice in a task counts once."""
        spent, cost = learner.cost, self.first.cost
        for what in ("steps", "samples", "tokens", "answer_tokens", "flops", "seconds"):
            setattr(cost, what, getattr(cost, what) + getattr(spent, what))
        for part, weights in learner.parts.items():
            new = [weight for weight in weights if id(weight) not in self._counted]
            self._counted |= {id(weight): weight for weight in new}
            if new:
                cost.trained[part] = cost.trained.get(part, 0) + sum(weight.numel() for weight in new)
        self.first.plugins.seconds["after_task"] -= spent.seconds  # the hook's own clock runs meanwhile


class Unwatched(Watch):
    """No plugin hears of a step."""

    @contextmanager
    def __call__(self, plugins: Plugins, model: nn.Module, task: Task) -> Iterator[None]:
        yield


class Alone(Learner):
    """Learns by the model's own loss: what plugins add, and do before and behind a step, belongs to the task that they were told of."""

    watch = Unwatched
    told = staticmethod(lambda *_: None)  # type: ignore[assignment]

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        with self.world.autocast(self.recipe.precision), self._module:
            return {"task": answer_losses(forward(self.model, batch), batch)}
