"""A plugin's options: which model they are, and what the user and the recipe say of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from cl_zoo.names import Choice
from cl_zoo.recipe.recipe import validated


class NoOptions(BaseModel, frozen=True, extra="forbid"):
    """The options of a plugin that has none."""


def kind_of(plugin: Any) -> Any:
    """The model of a plugin's options."""
    return getattr(plugin, "Options", NoOptions)


def filled(plugin: type[Any], choice: Choice, defaults: Mapping[str, Any]) -> BaseModel:
    """A plugin's options: the user's, below them the recipe's, below those its own defaults.

    Args:
        defaults: what the recipe says.

    Raises:
        OptionError: one is unknown or out of range, told of whoever gave it.
    """
    kind: type[BaseModel] = kind_of(plugin)
    owner = choice.name
    if defaults:
        try:
            kind.model_validate(dict(choice.options))
            owner = f"recipe.options.{choice.name}"  # alone the user's are right
        except ValidationError:
            pass
    return validated(kind, {**defaults, **choice.options}, owner)
