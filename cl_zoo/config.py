"""The recipe: everything that decides how a task is trained, and that no method decides.

One recipe holds for all methods of a comparison. It is a frozen pydantic model; `--recipe file.yaml` and
`--set key=value` fill it by dotted keys, an unknown key is an error with the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from cl_zoo.errors import OptionError, nearest

Model = TypeVar("Model", bound=BaseModel)
Rate = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Adapter(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What the adapters of one task may cost; the same budget for every method."""

    rank: int = Field(
        8, ge=1, description="r: rank trained per task, summed over experts that train together"
    )
    scale: float = Field(2.0, gt=0, description="s = α / r")
    dropout: float = Field(0.05, ge=0, lt=1, description="probability on the input of the adapters")
    init_std: float = Field(0.01, ge=0, description="standard deviation of A at the start; B starts at zero")


class Recipe(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How a task is trained. The defaults are the UCIT recipe of the HiDe-LLaVA paper (section 5.1)."""

    epochs: int = Field(1, ge=1, description="passes over a task's training samples")
    global_batch: int = Field(
        24, ge=1, description="samples per optimiser step, over all processes and micro-batches"
    )
    micro_batch: int | None = Field(
        None, ge=1, description="samples per forward; default: the whole batch of a process"
    )
    eval_batch: int = Field(64, ge=1, description="samples per generation; changes speed, never an answer")
    lr: dict[str, Rate] = Field(
        default_factory=lambda: {"adapters": 2e-4, "projector": 2e-5},
        description="learning rate by part; a part without its own takes that of `adapters`",
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW's β1, β2")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="learning rate after the warm-up")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of a task's steps with a rising learning rate")
    clip: Literal["none", "norm"] = Field(
        "none", description="none: as the released UCIT scripts train; norm: to clip_norm"
    )
    clip_norm: float = Field(1.0, gt=0, description="largest gradient norm where clip=norm")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: autocast forward, fp32 adapters and optimiser"
    )
    projector: Literal["sequential", "frozen"] = Field(
        "sequential", description="trained on over the tasks, or left as it is"
    )
    checkpointing: bool = Field(
        False, description="recompute activations in the backward pass to save memory"
    )
    adapter: Adapter = Field(default_factory=Adapter, description="budget of the adapters")

    def rate(self, part: str) -> float:
        """Learning rate of a part; a part without its own learns at the adapters' rate."""
        return self.lr.get(part, self.lr["adapters"])


def build_recipe(*layers: Mapping[str, Any]) -> Recipe:
    """A recipe from dotted keys; later layers replace earlier ones.

    Raises:
        OptionError: a key is unknown or a value out of range.
    """
    values: dict[str, Any] = Recipe().model_dump()
    for layer in layers:
        for key, value in flatten(layer).items():
            _assign(values, key, value)
    return validated(Recipe, values, "recipe")


def validated(model: type[Model], values: Mapping[str, Any], owner: str) -> Model:
    """`model` filled with `values`; the first fault as one sentence naming owner, key, value and remedy."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            raise OptionError(f"{owner} has no option {key!r}{nearest(key, model.model_fields)}") from None
        place = f"{owner}.{key}" if key else owner
        raise OptionError(
            f"{place}: {fault['msg'][:1].lower()}{fault['msg'][1:]}, got {fault['input']!r}"
        ) from None


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys of a recipe file (YAML, nested or dotted).

    Raises:
        OptionError: no such file, or it is not a YAML mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(
            f"--recipe {path}: {str(error).splitlines()[0]}; pass a readable YAML file"
        ) from None
    if not isinstance(content, dict):
        raise OptionError(
            f"--recipe {path}: holds no mapping of recipe keys; write lines such as 'epochs: 1'"
        )
    return flatten(content)


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


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    place = values
    for parent in parents:
        inner = place.get(parent)
        if not isinstance(inner, dict):
            raise OptionError(f"recipe has no key {key!r}{nearest(key, flatten(values))}")
        place = inner
    # Learning rates are by part, and parts are the methods' own: only what looks like a misspelt one is refused.
    free = parents == ["lr"] and not difflib.get_close_matches(leaf, place, n=1, cutoff=0.8)
    if leaf not in place and not free:
        raise OptionError(f"recipe has no key {key!r}{nearest(key, flatten(values))}")
    place[leaf] = value


def _number(value: Any) -> Any:
    """YAML 1.1 reads 2e-4 as a string; a user means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
