"""Other values of options: the same stack with everything changed that answers alone read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from pydantic import BaseModel

from cl_zoo.contract.plugins import Plugins, load_class
from cl_zoo.errors import OptionError
from cl_zoo.names import Choice
from cl_zoo.recipe.recipe import validated


def otherwise_answering(choices: Sequence[Choice]) -> tuple[list[Choice], str]:
    """The stack with another value of each option that answers alone read, and what was changed: `hide.temperature=0.05`.

    An option for which no other value is found stays as it is.
    """
    changed, said = [], []
    for choice, made in zip(choices, Plugins(choices).options(), strict=True):
        plugin, filled = load_class(choice.name), made["options"]
        others: dict[str, Any] = {}
        for name in getattr(plugin, "answering", ()):
            other = another(plugin.Options, {**filled, **others}, name)
            if other is not None:
                others[name] = other
                said.append(f"{choice.name}.{name}={other}")
        changed.append(replace(choice, options={**choice.options, **others}))
    return changed, ", ".join(said)


def another(options: type[BaseModel], filled: Mapping[str, Any], name: str) -> Any:
    """Another value of an option that its own rules and those of the others allow, `None` where none is found."""
    before = validated(options, filled, "options")
    for value in candidates(options.model_fields[name].annotation, filled[name]):
        try:
            made = validated(options, {**filled, name: value}, "options")
        except OptionError:
            continue
        if getattr(made, name) != getattr(before, name):
            return made.model_dump(mode="json")[name]
    return None


def candidates(annotation: Any, value: Any) -> Iterator[Any]:
    """Values that an option may take: of a choice the others, of a truth the other one, of a number larger and smaller ones."""
    for one in get_args(annotation):
        yield from candidates(one, value) if get_args(one) else () if isinstance(one, type) else (one,)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value / 2, value + 1, value - 1)
