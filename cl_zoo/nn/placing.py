"""Placing experts on a backbone at the recipe's budget, and what a method keeps of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from cl_zoo.nn.bank import ExpertBank
from cl_zoo.nn.budget import adapted, mixture_of
from cl_zoo.nn.layer import BankConfig, BankLayer

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.recipe.recipe import Recipe


def adapters(
    backbone: Backbone, recipe: Recipe, name: str = "shared", *, rank: int | None = None
) -> ExpertBank:
    """A bank with one expert on the linears of the language model that the recipe adapts, at its budget.

    Args:
        name: name of the expert.
        rank: of the expert, by default the recipe's.
    """
    adapter = recipe.adapter
    config = BankConfig(
        target_modules=adapted(backbone, adapter.targets),
        rank=adapter.rank if rank is None else rank,
        scale=adapter.scale,
        dropout=adapter.dropout,
        init_std=adapter.init_std,
    )
    return ExpertBank(backbone.model, config, name)


def mixture(
    backbone: Backbone,
    recipe: Recipe,
    experts: int | None = None,
    *,
    published: int,
    shared: bool = False,
    beside: int = 0,
    fewest: int = 2,
    routers: bool | Callable[[int], int] = True,
) -> ExpertBank:
    """A bank of experts `e0`, `e1`, … that train together on every task; all are active and learn.

    Their number and their rank follow from the recipe's budget by the rule in `cl_zoo.nn.budget`.

    Args:
        experts: how many, where a user says so.
        published: how many the method's paper or code has.
        shared: all read one A, the first one's; otherwise each has its own.
        beside: further parameters that a task trains, besides a router per layer and the projector.
        fewest: of which the method still makes sense.
        routers: whether a router per layer learns too; of routers that read something else, the parameters for so many experts.
    """
    share = mixture_of(
        backbone,
        recipe,
        experts,
        published=published,
        shared=shared,
        beside=beside,
        fewest=fewest,
        routers=routers,
    )
    first, *others = names = [f"e{place}" for place in range(share.experts)]
    bank = adapters(backbone, recipe, first, rank=share.rank)
    for name in others:
        bank.add(name, reads=first if shared else None)
    bank.use(names, trainable=names)
    return bank


class KeepsExperts:
    """State of a method with a bank: which experts it has, so that they are there when their tensors come back.

    A method derives from it and sets `bank` in `build_model`. One with further state adds to what these two return and read.
    """

    bank: ExpertBank

    def state_dict(self) -> dict[str, Any]:
        return {"experts": self.bank.describe()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.bank.rebuild(state["experts"])


def bank_parts(model: nn.Module) -> dict[str, list[str]]:
    """Names of the bank's parameters by part: `adapters` (A and B) and `routers` (what the mixes learn)."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BankLayer)]
    prefixes = {
        "adapters": tuple(f"{name}.{table}." for name, _ in layers for table in ("bank_down", "bank_up")),
        "routers": tuple(f"{name}.bank_mix." for name, _ in layers),
    }
    names = [name for name, _ in model.named_parameters()]
    parts = {part: [name for name in names if name.startswith(own)] for part, own in prefixes.items()}
    return {part: found for part, found in parts.items() if found}


def bank_layers(model: nn.Module) -> list[BankLayer]:
    """All adapted layers of a model, in module order."""
    return [module for module in model.modules() if isinstance(module, BankLayer)]
