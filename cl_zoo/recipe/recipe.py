"""The recipe: everything that decides how a task is trained, and that no method decides.

One recipe holds for all methods of a comparison; what it says of one method alone, a rate or an option, is published for its
scale. It is a frozen pydantic model; `--recipe` (a name, or a YAML file) and
`--set key=value` fill it by dotted keys, an unknown key is an error with the nearest known one. The recipes with a name
lie in `named/`: one file each, with the source of every value.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from cl_zoo.errors import OptionError, nearest
from cl_zoo.recipe.keys import flatten

Model = TypeVar("Model", bound=BaseModel)
Rate = Annotated[float, Field(ge=0, le=10)]
"""AdamW moves a weight by about the rate in a step, so beyond 10 nothing is learnt by any method."""
Beta = Annotated[float, Field(ge=0, lt=1)]

UNUSED: dict[str, Any] = {
    "tasks": {},
    "max_tokens": None,
    "options": {},
    "static_cache": False,
    "quantization": "none",
}
"""Keys that a recipe is written without where they say nothing, with the value that says nothing."""


class Adapter(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How adapters are made; their rank is the measure of the budget."""

    rank: int = Field(8, ge=1, description="r: of the one LoRA that measures the budget of a task")
    scale: float = Field(2.0, gt=0, description="s = α / r")
    dropout: float = Field(0.05, ge=0, lt=1, description="probability on the input of the adapters")
    init_std: float = Field(0.01, ge=0, description="standard deviation of A at the start; B starts at zero")
    targets: Literal["all", "attention", "mlp"] = Field(
        "all", description="which linears of the language model's layers are adapted, by every method alike"
    )


class ForTask(BaseModel, frozen=True, extra="forbid"):
    """What one task of a stream does in its own way; `None` leaves it to the recipe."""

    epochs: int | None = Field(None, ge=1, description="passes over this task's training samples")
    global_batch: int | None = Field(None, ge=1, description="samples per optimiser step of this task")


class Recipe(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How a task is trained. The defaults are the UCIT recipe of the HiDe-LLaVA paper (section 5.1)."""

    epochs: int = Field(1, ge=1, description="passes over a task's training samples")
    global_batch: int = Field(
        24, ge=1, description="samples per optimiser step, over all processes and micro-batches"
    )
    micro_batch: int | None = Field(
        None, ge=1, description="samples per forward; default: the whole batch of a process"
    )
    eval_batch: int = Field(
        64,
        ge=1,
        description="samples per generation; changes speed, and an answer only where rounding decides between two tokens, as it may in bf16",
    )
    static_cache: bool = Field(
        False,
        description="answer with a key-value cache of fixed size, for which decoding is compiled on an accelerator; changes an answer only where rounding decides",
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="longest prompt with its image and answer, in tokens; a longer one is refused, as is what has more than the model has positions",
    )
    lr: dict[str, Rate] = Field(
        default_factory=lambda: {"adapters": 2e-4, "projector": 2e-5},
        description="learning rate by part, or by `method.part` for one method alone; a part without its own takes that of `adapters`",
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
    quantization: Literal["none", "nf4"] = Field(
        "none",
        description="nf4: the frozen linears of the language model's layers in 4 bits, for every method alike; takes cl-zoo[4bit]",
    )
    projector: Literal["sequential", "frozen"] = Field(
        "sequential", description="trained on over the tasks, or left as it is"
    )
    checkpointing: bool = Field(
        False, description="recompute activations in the backward pass to save memory"
    )
    adapter: Adapter = Field(default_factory=Adapter, description="the adapters")
    budget: Literal["parameters", "published"] = Field(
        "parameters",
        description="parameters: all that trains in a task fits into one LoRA of adapter.rank; published: each expert has adapter.rank, as many as its paper has",
    )
    tasks: dict[str, ForTask] = Field(
        default_factory=dict, description="epochs and global_batch of single tasks, by name of the task"
    )
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="options of methods that belong to this recipe's scale, by name of the method; what a user says with -o is stronger",
    )

    def for_task(self, name: str) -> Self:
        """The recipe with what it says of one task in place of what holds for all."""
        own = self.tasks.get(name, ForTask()).model_dump(exclude_none=True)
        return self.model_copy(update={**own, "tasks": {}})

    def check_tasks(self, known: Sequence[str], benchmark: str) -> None:
        """Whether the tasks that this recipe treats in a way of their own are a benchmark's.

        Raises:
            OptionError: one of them is not.
        """
        for name in self.tasks.keys() - set(known):
            raise OptionError(
                f"recipe.tasks names {name!r}, which {benchmark} does not have{nearest(name, known)}"
            )

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What a recipe leaves unsaid, of tasks and methods for instance, is written, and hashed into a run's id, without the word."""
        values: dict[str, Any] = dump(self)
        for word, nothing in UNUSED.items():
            if getattr(self, word) == nothing:
                values.pop(word, None)
        return values

    def rate(self, part: str, method: str = "") -> float:
        """Learning rate of a method's part: its own, else the part's, else that of the adapters."""
        keys = (f"{method}.{part}", part, "adapters")
        return next(self.lr[key] for key in keys if key in self.lr)


def build_recipe(*layers: Mapping[str, Any]) -> Recipe:
    """A recipe from dotted keys; later layers replace earlier ones, see `layered`.

    Raises:
        OptionError: a key is unknown or a value out of range.
    """
    values: dict[str, Any] = {**Recipe().model_dump(), **deepcopy(UNUSED)}
    for key, value in layered(*layers).items():
        _assign(values, key, value)
    return validated(Recipe, values, "recipe")


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """One layer that says what several say, by dotted key.

    Who sets `global_batch` means it: it also replaces what an earlier layer says of single tasks; `lr.prompts` likewise what it
    says of single methods' prompts.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        flat = flatten(layer)
        for key in list(values):
            first, _, rest = key.partition(".")
            general = {"tasks": "", "lr": "lr."}.get(first)
            if general is not None and general + rest.rpartition(".")[2] in flat:
                del values[key]
        values.update(flat)
    return values


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
        if fault["type"] == "missing":
            raise OptionError(
                f"{place} has no value; set it, or give it a default where it is defined"
            ) from None
        raise OptionError(
            f"{place}: {fault['msg'][:1].lower()}{fault['msg'][1:]}, got {fault['input']!r}"
        ) from None


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    parents, leaf = _parts(key)
    place = values
    known = flatten(values)
    if parents[:1] == ["options"] and len(parents) == 2:  # which options there are is the method's to say
        values["options"].setdefault(parents[1], {})[leaf] = value
        return
    if parents[:1] == ["tasks"] and len(parents) == 2:  # which tasks there are is the benchmark's to say
        values["tasks"].setdefault(parents[1], dict.fromkeys(ForTask.model_fields))
        known = {".".join((*parents, field)): None for field in ForTask.model_fields}
    for parent in parents:
        inner = place.get(parent)
        if not isinstance(inner, dict):
            raise OptionError(f"recipe has no key {key!r}{nearest(key, known)}")
        place = inner
    # Learning rates are by part, and parts are the methods' own: only what looks like a misspelt one is refused.
    free = parents == ["lr"] and not _misspelt(leaf, place)
    if leaf not in place and not free:
        raise OptionError(f"recipe has no key {key!r}{nearest(key, known)}")
    place[leaf] = value


def _misspelt(key: str, known: Mapping[str, Any]) -> bool:
    """Whether `part` or `method.part` looks like one that has a rate already, in either word."""
    method, _, part = key.rpartition(".")
    methods, parts = ({other.rpartition(".")[place] for other in known} - {""} for place in (0, 2))
    if part not in parts and (part in methods or difflib.get_close_matches(part, parts, n=1, cutoff=0.8)):
        return True
    # `olora` is no misspelt `moelora`
    return method not in methods and bool(difflib.get_close_matches(method, methods, n=1, cutoff=0.85))


def _parts(key: str) -> tuple[list[str], str]:
    """A dotted key to where it stands and its last word; the name of a task or of a method may have dots of its own."""
    first, _, rest = key.partition(".")
    name, _, leaf = rest.rpartition(".")
    if first == "lr" and name:
        return [first], rest
    if first in ("tasks", "options") and name:
        return [first, name], leaf
    *parents, leaf = key.split(".")
    return parents, leaf
