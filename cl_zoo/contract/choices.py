"""Plugins as a user names them: `moelora+ewc[strength=3]`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cl_zoo.errors import PluginError
from cl_zoo.recipe.recipe import parse_pairs


@dataclass(frozen=True)
class Choice:
    """A plugin as a user names it.

    Attributes:
        name: an installed name, `package.module:Class` or `file.py:Class`.
        options: values by option name.
        probe: measures only.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    probe: bool = False

    @property
    def label(self) -> str:
        """`hide[variant=released]`; options in alphabetical order."""
        inner = ",".join(f"{key}={value}" for key, value in sorted(self.options.items()))
        return f"{self.name}[{inner}]" if inner else self.name


def parse_stack(text: str) -> list[Choice]:
    """`moelora+ewc[strength=3]` to its choices.

    Raises:
        PluginError: it cannot be read.
    """
    choices = []
    for part in split(text, "+"):
        found = re.fullmatch(r"\s*([^\[\]]+?)\s*(?:\[(.*)\])?\s*", part, flags=re.DOTALL)
        if not found:
            raise PluginError(f"method {text!r}: cannot read {part!r}; write name[option=value,option=value]")
        pairs = split(found.group(2), ",") if found.group(2) else []
        choices.append(Choice(found.group(1), parse_pairs(pairs, f"method {found.group(1)}, option")))
    return choices


def split(text: str, separator: str) -> list[str]:
    """Split outside square brackets."""
    parts, depth, current = [], 0, ""
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == separator and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += letter
    return [*parts, current]
