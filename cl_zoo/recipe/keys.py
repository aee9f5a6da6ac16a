"""Recipes by name and by file, and the dotted keys that fill them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cl_zoo.errors import OptionError, first_line, nearest

RECIPES = Path(__file__).parent / "named"
"""Recipes with a name: one YAML file each, with the source of every value."""


class Setting(NamedTuple):
    """A key of a recipe file with its value and where that comes from."""

    key: str
    value: Any
    source: str


def recipes() -> dict[str, str]:
    """The recipes that go by a name, with a sentence about each."""
    return {file.stem: str(mapping(file).get("about", "")) for file in sorted(RECIPES.glob("*.yaml"))}


def recipe_settings(name: str | Path) -> list[Setting]:
    """Every key that a recipe sets, with its source where the file names one.

    Args:
        name: a named recipe or a YAML file; values stand plainly or as `{value: …, source: …}`, nested or dotted.

    Raises:
        OptionError: no such recipe or file, or it is not a YAML mapping.
    """
    content = mapping(file_named(name, RECIPES, "recipe"))
    content.pop("about", None)
    return list(settings_in(content))


def read_recipe(name: str | Path) -> dict[str, Any]:
    """The values of a named recipe or of a recipe file, by dotted key.

    Raises:
        OptionError: as for `recipe_settings`.
    """
    return {setting.key: setting.value for setting in recipe_settings(name)}


def settings_in(nested: Mapping[str, Any], prefix: str = "") -> Iterator[Setting]:
    """The values of a nested mapping, each plain or as `{value: …, source: …}`, by dotted key."""
    for key, value in nested.items():
        if isinstance(value, Mapping) and "value" in value and value.keys() <= {"value", "source"}:
            yield Setting(f"{prefix}{key}", value["value"], str(value.get("source", "")))
        elif isinstance(value, Mapping):
            yield from settings_in(value, f"{prefix}{key}.")
        else:
            yield Setting(f"{prefix}{key}", value, "")


def file_named(name: str | Path, folder: Path, what: str) -> Path:
    """The YAML file of a name in a folder, or else the file itself.

    Raises:
        OptionError: it is no name, and can be no file.
    """
    text = str(name)
    named = {file.stem: file for file in folder.glob("*.yaml")}
    if text in named:  # a file of that name here changes nothing
        return named[text]
    if "/" not in text and not Path(text).suffix and not Path(text).exists():
        raise OptionError(f"no {what} is called {text!r}{nearest(text, named)}; or pass a YAML file")
    return Path(text)


def mapping(path: Path) -> dict[str, Any]:
    """What a YAML file of keys holds.

    Raises:
        OptionError: it cannot be read, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"--recipe {path}: {first_line(error)}; pass a readable YAML file") from None
    if not isinstance(content, dict):
        raise OptionError(
            f"--recipe {path}: holds no mapping of recipe keys; write lines such as 'epochs: 1'"
        )
    return content


def parse_pairs(pairs: Sequence[str], flag: str) -> dict[str, Any]:
    """`key=value` strings to a mapping; values are read as YAML, so 1, 0.5, true and [1, 2] get their types."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise OptionError(f"{flag} {pair!r}: write it as key=value")
        try:
            values[key.strip()] = _number(yaml.safe_load(text))
        except yaml.YAMLError:
            values[key.strip()] = text
    return values


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"adapter": {"rank": 8}} to {"adapter.rank": 8}; keys that are dotted already stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _number(value: Any) -> Any:
    """YAML 1.1 reads 2e-4 as a string; a user means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
