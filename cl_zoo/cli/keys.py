"""What the YAML file of a benchmark may say, from the models that read it: `cl-zoo show benchmark`."""

from __future__ import annotations

import re
from typing import Literal, get_args, get_origin

from pydantic import BaseModel

from cl_zoo.data.needs import ANSWER
from cl_zoo.data.schema import Choices, Description, ReferenceSource, Source, SplitSource, TaskSource
from cl_zoo.scoring.rules import RULES

SOURCES = re.compile(r" \((?:hide|coin|mcit|prism|mllm):|\. (?=[A-Z])")
"""Where in a rule's description its first sentence ends."""
MODELS: dict[str, type[BaseModel]] = {
    "a benchmark": Description,
    "one of tasks": TaskSource,
    "train, validation, test": SplitSource,
    "references": ReferenceSource,
    "one of options": Choices,
    "one of sources": Source,
}


def rows() -> list[tuple[str, ...]]:
    """(where, key, needed, what it is) of every key, and a row for every scoring rule."""
    found: list[tuple[str, ...]] = [("of", "key", "", "what")]
    for where, model in MODELS.items():
        for name, field in model.model_fields.items():
            values = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            about = f"{field.description}{': ' if values else ''}{', '.join(values)}"
            found.append((where, name, "needed" if field.is_required() else "", about))
            where = ""
    for place, (name, rule) in enumerate(RULES.items()):
        needs = "" if rule.needs == ANSWER else f"; needs {rule.needs}"
        found.append(("" if place else "metric", name, "", f"{_first(rule.about)}{needs}"))
    return found


def _first(text: str) -> str:
    """The beginning of a rule's description, without its sources."""
    return SOURCES.split(text)[0].rstrip(".")
