"""How many parameters a stack trains, keeps and uses: counted on shapes without values or data, exact.

The model stands on torch's meta device. The stack's own hooks place what it trains there, task after task, with no batches; what is
counted is what a run's ledger counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.learning import assign_parts
from cl_zoo.engine.ledger import active, stored
from cl_zoo.engine.run import placed
from cl_zoo.errors import ClZooError, PluginError, PluginFault, first_line
from cl_zoo.names import Choice
from cl_zoo.nn.budget import Learning, budget, learning
from cl_zoo.nn.still import standing_still
from cl_zoo.recipe.budget import beside_projector, budget_notes
from cl_zoo.recipe.recipe import Recipe
from cl_zoo.tasks import Sample, Task


@dataclass(frozen=True)
class Size:
    """Parameters after learning one more task, by part.

    Attributes:
        budget: what may train in one task by the recipe's rank, without the projector.
        learning: what learns in an adapted layer in this task.
        trained: in this task.
        inference, continuing: kept beside the frozen backbone, for answering and for learning on.
        active: of those for answering, what takes part in one answer token.
    """

    trained: Mapping[str, int]
    inference: Mapping[str, int]
    continuing: Mapping[str, int]
    active: Mapping[str, int]
    budget: int = 1
    learning: Learning = field(default_factory=Learning)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of its budget."""
        return budget_notes(self.trained, self.budget, asdict(self.learning)) if self.trained else ()

    @property
    def times(self) -> float:
        """What trains besides the projector, in units of the budget."""
        return beside_projector(self.trained) / self.budget

    def to_json(self) -> dict[str, Any]:
        sizes = asdict(self)
        return {
            "trained": {**sizes["trained"], "total": sum(self.trained.values())},
            "stored": {
                use: {**sizes[use], "total": sum(sizes[use].values())} for use in ("inference", "continuing")
            },
            "active": {**sizes["active"], "total": sum(self.active.values())},
            "learning": {**sizes["learning"], "budget": self.budget, "times": self.times},
        }


NOT_COUNTED = (NotImplementedError, RuntimeError, TypeError, AttributeError)
"""What is raised where a tensor without values is read, or data that are not there."""

COUNTED = "its hooks must size their tensors without values and data to be counted"


def sizes(choices: Sequence[Choice], backbone: Backbone, recipe: Recipe, tasks: int) -> list[Size]:
    """Sizes of a stack after 1, 2, … `tasks` tasks; one entry where the stack learns everything at once or nothing.

    Raises:
        PluginError: a hook needs values or data to size its tensors.
    """
    plugins = Plugins(choices, recipe.options)
    try:
        return list(_sizes(plugins, backbone, recipe, tasks))
    except PluginFault as fault:
        if not isinstance(fault.__cause__, NOT_COUNTED):
            raise
        raise PluginFault(fault.what, COUNTED, fault.where, fault.packages) from fault.__cause__
    except ClZooError:
        raise  # says by itself what is wrong
    except NOT_COUNTED as error:
        raise PluginError(
            f"{'+'.join(choice.name for choice in choices)}: {first_line(error)}; {COUNTED}"
        ) from error


def _sizes(plugins: Plugins, backbone: Backbone, recipe: Recipe, tasks: int) -> Iterator[Size]:
    """The sizes, task after task, as a run would go through the hooks."""
    may_train = budget(backbone, recipe)
    model, meta = placed(plugins, backbone, recipe), backbone.device
    if plugins.protocol == "none":
        yield replace(_size(model, plugins, backbone, [], {}), budget=may_train)
        return
    seen: list[Task] = []
    for index in range(tasks if plugins.protocol == "sequential" else 1):
        task = Task(index, f"task {index}", "", 0)
        seen.append(task)
        plugins.before_task(model, task)
        parts = assign_parts(model.to(meta), plugins, backbone)
        trained, learns = _trained(model, parts), learning(model)
        further = partial(_learn_further, model, plugins, backbone, trained, _learning(model))
        plugins.after_task(model, task, (), parts=parts, backbone=backbone, learn=further)
        size = _size(model.to(meta), plugins, backbone, seen, trained)
        yield replace(size, budget=may_train, learning=learns)


def _trained(
    model: nn.Module, parts: Mapping[str, Sequence[str]], but: Collection[str] = ()
) -> dict[str, int]:
    """Parameters that learn at the moment, by part.

    Args:
        but: names of those that are counted already.
    """
    weights, learn = dict(model.named_parameters()), _learning(model) - set(but)
    counted = {
        part: sum(weights[name].numel() for name in learn & set(names)) for part, names in parts.items()
    }
    return {part: size for part, size in counted.items() if size}


def _learning(model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def _learn_further(
    model: nn.Module,
    plugins: Plugins,
    backbone: Backbone,
    trained: dict[str, int],
    before: set[str],
    samples: Sequence[Sample],
    epochs: int,
) -> None:
    """The `learn` of `after_task` where nothing has values: what would learn is added to what the task trains."""
    parts = assign_parts(model, plugins, backbone)
    for part, size in _trained(model, parts, before).items():
        trained[part] = trained.get(part, 0) + size
    before |= _learning(model)


def _size(
    model: nn.Module, plugins: Plugins, backbone: Backbone, seen: Sequence[Task], trained: dict[str, int]
) -> Size:
    with standing_still(model):
        answering = plugins.build_inference_model(model, seen)
        parts = assign_parts(model, plugins, backbone)
        kept = stored(model, answering, backbone, parts, plugins.state_dict(probes=False))
        return Size(trained, kept["inference"], kept["continuing"], active(answering, kept["inference"]))
