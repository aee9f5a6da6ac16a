"""Placing experts on a backbone at the recipe's budget, and what a method keeps of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from cl_zoo.errors import OptionError
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.nn.layer import BankConfig, BankLayer

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.recipe.recipe import Recipe


def adapters(backbone: Backbone, recipe: Recipe, name: str = "shared", *, experts: int = 1) -> ExpertBank:
    """A bank with one expert on all linears of the language model, at the recipe's budget.

    Args:
        name: name of the expert.
        experts: how many experts are going to train together; each gets its share of the rank.

    Raises:
        OptionError: the rank cannot be shared out evenly.
    """
    budget = recipe.adapter
    if budget.rank % experts:
        raise OptionError(
            f"adapter.rank is {budget.rank}, which {experts} experts cannot share evenly; choose a multiple of {experts}"
        )
    config = BankConfig(
        target_modules=backbone.linears,
        rank=budget.rank // experts,
        scale=budget.scale,
        dropout=budget.dropout,
        init_std=budget.init_std,
    )
    return ExpertBank(backbone.model, config, name)


def mixture(backbone: Backbone, recipe: Recipe, names: Sequence[str], *, shared: bool = False) -> ExpertBank:
    """A bank of experts that train together on every task and share the recipe's rank; all are active and learn.

    Args:
        names: of the experts, in the order of their places in the mix.
        shared: all read one A, the first one's; otherwise each has its own.

    Raises:
        OptionError: the rank cannot be shared out evenly.
    """
    first, *others = names
    bank = adapters(backbone, recipe, first, experts=len(names))
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
