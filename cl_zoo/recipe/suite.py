"""Suites: what each method of a comparison has of its own, as published ones do, with the source of every value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_zoo.errors import OptionError, nearest
from cl_zoo.recipe.keys import Setting, file_named, mapping, read_recipe, settings_in

SUITES = Path(__file__).parent / "suites"
"""Suites with a name, one YAML file each."""

KEYS = ("about", "benchmark", "recipe", "methods")


@dataclass(frozen=True)
class Suite:
    """A comparison whose methods do not share one recipe.

    Attributes:
        about: a sentence on whose it is.
        benchmark: that it is for.
        recipe: of all methods, by dotted key.
        methods: what each method sets besides, with sources.
    """

    about: str
    benchmark: str
    recipe: Mapping[str, Any]
    methods: Mapping[str, tuple[Setting, ...]]

    def of(self, method: str) -> dict[str, Any]:
        """The values of a method's recipe, by dotted key."""
        return {**self.recipe, **{one.key: one.value for one in self.methods[method]}}


def suites() -> dict[str, str]:
    """The suites that go by a name, with a sentence about each."""
    return {file.stem: str(mapping(file).get("about", "")) for file in sorted(SUITES.glob("*.yaml"))}


def read_suite(name: str | Path) -> Suite:
    """A suite by name or from a YAML file: `about`, `benchmark`, `recipe` (a name or a file), and `methods`, each with recipe keys.

    Raises:
        OptionError: no such suite or file, or it is not written so.
    """
    path = file_named(name, SUITES, "suite")
    content = mapping(path)
    for key in content:
        if key not in KEYS:
            raise OptionError(f"suite {path}: {key!r} says nothing{nearest(str(key), KEYS)}")
    methods = content.get("methods")
    if not isinstance(methods, Mapping) or not methods:
        raise OptionError(f"suite {path}: names no methods; write 'methods:' with recipe keys below each")
    own: dict[str, tuple[Setting, ...]] = {}
    for method, said in methods.items():
        if said is not None and not isinstance(said, Mapping):
            raise OptionError(
                f"suite {path}, {method}: holds no recipe keys; write lines such as 'epochs: 1'"
            )
        own[str(method)] = tuple(settings_in(said or {}))
    common = read_recipe(content["recipe"]) if content.get("recipe") else {}
    return Suite(str(content.get("about", "")), str(content.get("benchmark", "")), common, own)
