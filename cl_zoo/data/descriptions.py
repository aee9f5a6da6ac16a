"""Descriptions of benchmarks read from their YAML files; all that is wrong with one is told at once."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cl_zoo.data.faults import unread
from cl_zoo.data.schema import Description
from cl_zoo.errors import DataError, nearest

SHOWN = 20
"""Faults that a message tells."""


def read_description(path: Path) -> Description:
    """The description in a YAML file, names in braces not yet replaced.

    Raises:
        DataError: it cannot be read, or a key is missing, unknown or of another type.
    """
    content = read_yaml(path)
    if found := faults(content):
        raise DataError(told(path, found))
    return Description.model_validate(content)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        remedy = "pass the path of a YAML file"
        says = unread(error, remedy) if isinstance(error, OSError) else f"is no UTF-8 text; {remedy}"
        raise DataError(f"benchmark {path}: {says}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        says = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise DataError(f"benchmark {path}{place}: broken YAML ({says}); repair it") from None
    except RecursionError:
        raise DataError(f"benchmark {path}: nested too deeply; write it as docs/data.md shows") from None
    if not isinstance(content, dict):
        raise DataError(f"benchmark {path}: holds no mapping; write lines such as 'name: mine'")
    return content


def faults(content: Mapping[str, Any]) -> list[str]:
    """All that is wrong with a description, a sentence each: place, key, value and remedy; unknown keys first."""
    found = []
    try:
        Description.model_validate(content)
    except ValidationError as error:
        found = _sentences(error)
    tasks = content.get("tasks")
    tasks = [one for one in tasks if isinstance(one, dict)] if isinstance(tasks, list) else []
    for what in ("name", "letter"):
        values = Counter(one[what] for one in tasks if isinstance(one.get(what), str))
        found += [f"two tasks have the {what} {value!r}; rename one" for value, n in values.items() if n > 1]
    return found


def told(path: Path, found: Sequence[str]) -> str:
    """The faults of a file as a message: one in its line, several in a line each."""
    if len(found) == 1:
        return f"benchmark {path}: {found[0]}"
    shown = "".join(f"\n  {one}" for one in found[:SHOWN])
    more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"benchmark {path}: has {len(found)} faults:{shown}{more}"


def _sentences(error: ValidationError) -> list[str]:
    """The faults, unknown keys before missing ones; of a key that is misspelt the missing one is not told too."""
    found = error.errors()
    unknown = [one["loc"] for one in found if one["type"] == "extra_forbidden"]
    misspelt = {
        (*place[:-1], near)
        for place in unknown
        for near in difflib.get_close_matches(str(place[-1]), _keys(place[:-1]), n=1)
    }
    inner = {place[:n] for place in (one["loc"] for one in found) for n in range(len(place))}

    def told_already(one: Any) -> bool:
        missing, short = one["type"] == "missing", one["type"] == "too_short"
        return (missing and one["loc"] in misspelt) or (short and one["loc"] in inner)

    left = [one for one in found if not told_already(one)]
    return [_sentence(one) for one in sorted(left, key=lambda one: one["type"] != "extra_forbidden")]


def _keys(parents: Sequence[int | str]) -> list[str]:
    """What may stand at a place."""
    model: type[BaseModel] = Description
    for part in parents:
        model = _inner(model, part)
    return list(model.model_fields)


def _sentence(fault: Any) -> str:
    """One fault: place, key, value and remedy."""
    place = _place(fault["loc"])
    if fault["type"] == "extra_forbidden":
        *parents, key = fault["loc"]
        return f"{_place(parents) or 'it'} has no key {str(key)!r}{nearest(str(key), _keys(parents))}"
    if fault["type"] == "missing":
        return f"{place} is missing; add it"
    says = fault["msg"].removeprefix("Value error, ")
    for python, words in (
        ("a valid tuple", "a list"),
        ("a valid dictionary", "a mapping"),
        ("String should match pattern '^[A-Z]$'", "write one capital letter, A to Z"),
    ):
        says = says.replace(python, words)
    return f"{place}: {says[:1].lower()}{says[1:]}, got {repr(fault['input'])[:80]}"


def _place(parts: Sequence[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")


def _inner(model: type[BaseModel], part: int | str) -> type[BaseModel]:
    """The model that a field holds, be it in a tuple or mapping; itself for a place in one of these."""
    open_types: list[Any] = [model.model_fields[part].annotation] if part in model.model_fields else []
    while open_types:
        kind = open_types.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
        open_types += get_args(kind)
    return model
