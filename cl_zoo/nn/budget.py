"""The budget rule: what may train in one task, and how experts that learn together share it.

One LoRA of the recipe's rank r on every adapted linear of the language model is the measure:

    B = r · Σ (d_in + d_out)                                       summed over the adapted linears

`budget: parameters` (the default) gives every method that much. N experts with a router of their own get the largest rank ρ with

    ρ · N · Σ (d_in + d_out)   + N · Σ d_in + beside  ≤  B         each its own A
    ρ · Σ (d_in + N · d_out)   + N · Σ d_in + beside  ≤  B         one A for all

where `beside` is what else a method trains in a task, its keys for instance; routers that do not learn are left out, and those that do not read x have a width of their own in the place of d_in. Unless a user says how many experts there are, it is
the number of the method's paper, or the largest below it at which ρ is still `LEAST`: an expert of rank 1 is no expert. `budget:
published` gives each of the paper's experts rank r, whatever they cost together. One expert whose A is set and does not train has the
largest ρ with ρ · Σ d_out ≤ B. The projector is in neither: whether it
learns is the recipe's to say, and it is one for all methods.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from cl_zoo.nn.layer import BankLayer
from cl_zoo.recipe.budget import LEAST

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.recipe.recipe import Recipe


@dataclass(frozen=True)
class Mixture:
    """So many experts, each of that rank."""

    experts: int
    rank: int


@dataclass(frozen=True)
class Widths:
    """Σ d_in and Σ d_out of the linears that are adapted, and how many these are."""

    inputs: int
    outputs: int
    linears: int

    def lora(self, rank: int) -> int:
        """Parameters of one LoRA on all of them."""
        return rank * (self.inputs + self.outputs)


@dataclass(frozen=True)
class Learning:
    """What learns in an adapted layer, in the one where it is least.

    Attributes:
        experts: that learn in one task.
        rank: of the narrowest of them.
        update_rank: the largest rank that what is learnt can have there: the rows of all A that the learning experts read.
    """

    experts: int = 0
    rank: int = 0
    update_rank: int = 0


WITHIN = {"all": "", "attention": r"(?=.*\.self_attn\.)", "mlp": r"(?=.*\.mlp\.)"}
"""What a path must have to be one of the recipe's `adapter.targets`."""


def adapted(backbone: Backbone, targets: str) -> str:
    """Regular expression of the paths of the linears that the recipe adapts, of those that the backbone names.

    Args:
        targets: a key of `WITHIN`.
    """
    return f"{WITHIN[targets]}(?:{backbone.linears})" if targets != "all" else backbone.linears


def widths(backbone: Backbone, targets: str = "all") -> Widths:
    """Of the linears that the bank adapts by the recipe's `adapter.targets`, whether it does already or not."""
    pattern = adapted(backbone, targets)
    found = [
        module
        for path, module in backbone.model.named_modules()
        if isinstance(module, nn.Linear | BankLayer) and re.fullmatch(pattern, path)
    ]
    inputs, outputs = (sum(getattr(one, side) for one in found) for side in ("in_features", "out_features"))
    return Widths(inputs, outputs, len(found))


def budget(backbone: Backbone, recipe: Recipe) -> int:
    """B: what may train in one task, in parameters, without the projector."""
    return widths(backbone, recipe.adapter.targets).lora(recipe.adapter.rank)


def mixture_of(
    backbone: Backbone,
    recipe: Recipe,
    experts: int | None,
    *,
    published: int,
    shared: bool = False,
    beside: int = 0,
    fewest: int = 2,
    routers: bool | Callable[[int], int] = True,
) -> Mixture:
    """How many experts learn together, and the rank of each.

    Args:
        experts: as a user says, or `None`.
        published: of the method's paper or code.
        shared: all read one A.
        beside: further parameters that a task trains.
        fewest: of which the method still makes sense.
        routers: whether a router per layer learns too; of routers that read something else, the parameters for so many experts.
    """
    if recipe.budget == "published":
        return Mixture(experts or published, recipe.adapter.rank)
    found = widths(backbone, recipe.adapter.targets)
    most = found.lora(recipe.adapter.rank) - beside

    def rank(number: int) -> int:
        one = found.inputs + number * found.outputs if shared else number * (found.inputs + found.outputs)
        routing = routers(number) if callable(routers) else routers * number * found.inputs
        return max(1, (most - routing) // one)

    if experts is None:
        enough = (number for number in range(published, fewest, -1) if rank(number) >= LEAST)
        experts = next(enough, min(fewest, published))
    return Mixture(experts, rank(experts))


def rank_of_ups(backbone: Backbone, recipe: Recipe) -> int:
    """The largest rank of an expert of which B alone trains: ρ · Σ d_out ≤ B; with `budget: published` the recipe's."""
    if recipe.budget == "published":
        return recipe.adapter.rank
    found = widths(backbone, recipe.adapter.targets)
    return found.lora(recipe.adapter.rank) // found.outputs


def learning(model: nn.Module) -> Learning:
    """What learns in the adapted layers of a model at the moment; all zero where there are none."""
    layers = [_learning(module) for module in model.modules() if isinstance(module, BankLayer)]
    found = [layer for layer in layers if layer.experts]
    return min(found, key=lambda layer: (layer.update_rank, layer.rank), default=Learning())


def _learning(layer: BankLayer) -> Learning:
    learners = [
        name
        for name in layer.experts
        if layer.bank_up[name].requires_grad or layer.bank_down[layer.reads[name]].requires_grad
    ]
    if not learners:
        return Learning()
    rows = sum(layer.bank_down[down].shape[0] for down in {layer.reads[name] for name in learners})
    narrowest = min(layer.bank_up[name].shape[1] for name in learners)
    return Learning(len(learners), narrowest, min(rows, layer.in_features, layer.out_features))
