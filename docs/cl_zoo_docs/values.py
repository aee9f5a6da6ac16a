"""What values an option takes, in words: from the JSON schema that pydantic makes of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from cl_zoo.cli.catalogue import plain


class Field(NamedTuple):
    """A field of options or of a recipe.

    Attributes:
        key: dotted where models are nested.
        default: as one would write it.
        takes: its type and range.
        says: its description.
    """

    key: str
    default: str
    takes: str
    says: str


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[Field]:
    """The fields of a model in their order; those of a nested model stand in its place, under its name and a dot."""
    schema = model.model_json_schema()
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else plain(field.get_default(call_default_factory=True))
        takes = taken(schema["properties"][name], schema.get("$defs", {}))
        yield Field(f"{prefix}{name}", default, takes, field.description or "")


def taken(schema: Mapping[str, Any], models: Mapping[str, Any]) -> str:
    """`integer ≥ 1`, `number, 0 ≤ x < 1`, `paper or released`: what a JSON schema lets through."""
    if "$ref" in schema:
        inner = models[schema["$ref"].rpartition("/")[2]]["properties"]
        return f"mapping of {', '.join(inner)}"
    if "anyOf" in schema:
        return ", or ".join(taken(one, models) for one in schema["anyOf"])
    if "const" in schema:
        return plain(schema["const"])
    if "enum" in schema:
        return " or ".join(plain(value) for value in schema["enum"])
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}: {taken(schema['prefixItems'][0], models)} each"
    if isinstance(schema.get("additionalProperties"), Mapping):
        return f"mapping to {taken(schema['additionalProperties'], models)}"
    if schema.get("type") == "array" and "items" in schema:
        return f"list of {taken(schema['items'], models)}"
    name = {"null": "none", "string": "text", "boolean": "true or false"}
    kind = str(schema.get("type", "anything"))
    return name.get(kind, kind) + _range(schema)


def _range(schema: Mapping[str, Any]) -> str:
    low = [
        (schema[key], sign) for key, sign in (("minimum", "≤"), ("exclusiveMinimum", "<")) if key in schema
    ]
    high = [
        (schema[key], sign) for key, sign in (("maximum", "≤"), ("exclusiveMaximum", "<")) if key in schema
    ]
    if low and high:
        return f", {low[0][0]:g} {low[0][1]} x {high[0][1]} {high[0][0]:g}"
    if low:
        return f" {'≥' if low[0][1] == '≤' else '>'} {low[0][0]:g}"
    return f" {high[0][1]} {high[0][0]:g}" if high else ""
