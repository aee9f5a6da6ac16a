"""What a method had learnt at one time, and how two such moments differ: bit for bit, or by more than rounding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cl_zoo.tasks import Task

RELATIVE = 2e-4
"""How far sums taken in another order may lie apart, as a share of a tensor's largest value."""

Moment = dict[str, Any]
"""Tensors of the model (`model/NAME`) and state of the plugins (`plugins/PATH`) at one time, flat."""


PAGE = "docs/write-a-method.md"
"""The page that says of each promise what it asks and how it is kept."""


class ConformanceError(AssertionError):
    """A method breaks a promise.

    Attributes:
        promise: its name.
        sentence: what broke, where and by how much.
        hides: names of the promises that cannot be told because of it, as far as they were looked at.

    Args:
        error: what was raised by the method itself, whose traceback pytest then shows.
    """

    def __init__(self, promise: str, sentence: str, error: BaseException | None = None) -> None:
        super().__init__(sentence)
        self.promise, self.sentence, self.__cause__ = promise, sentence, error
        self.hides: list[str] = []

    @property
    def page(self) -> str:
        """Where it is written how the promise is kept."""
        return f"{PAGE}#promise-{self.promise}"

    def __str__(self) -> str:
        hidden = f"; because of it these cannot be told: {', '.join(self.hides)}" if self.hides else ""
        return f"{self.promise}: {self.sentence} (see {self.page}){hidden}"


def place_of(label: str, task: Task) -> str:
    """Where something happened, for the sentence of an error."""
    again = " for the second time" if task.occurrence else ""
    return f"{label}, task {task.index} ({task.name}{again})"


def flat(state: Any, path: str) -> Moment:
    """A tree of mappings and lists by path; tensors are copied."""
    if isinstance(state, Mapping):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{path}/{key}").items()}
    if isinstance(state, list | tuple):
        return {k: v for i, value in enumerate(state) for k, v in flat(value, f"{path}/{i}").items()}
    return {path: state.detach().clone() if isinstance(state, Tensor) else state}


def weights(moment: Moment) -> Moment:
    """The model's tensors without the plugins' state."""
    return {name: value for name, value in moment.items() if name.startswith("model/")}


def differing(here: Moment, there: Moment) -> str:
    """The first thing that is not the same, bit for bit; empty where there is none."""
    for name in sorted(here.keys() | there.keys()):
        if name not in here or name not in there:
            return name
        a, b = here[name], there[name]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num()):
                return name
        elif json.dumps(a, default=repr) != json.dumps(b, default=repr):
            return name
    return ""


def far(here: Mapping[str, Any], there: Mapping[str, Any], floor: float = 1e-7) -> str:
    """The first tensor or number that lies further apart than rounding, as a clause; empty where there is none.

    Args:
        here, there: by name; a missing gradient is a zero one.
        floor: differences below it are rounding, whatever the tensor's values.
    """
    for name in sorted(here.keys() | there.keys()):
        a, b = _number(here.get(name)), _number(there.get(name))
        if a is None and b is None:
            if here.get(name) != there.get(name):
                return f"{name} is {here.get(name)!r}, not {there.get(name)!r}"
            continue
        a, b = _pair(a, b)
        if a.shape != b.shape:
            return f"{name} has shape {tuple(a.shape)}, not {tuple(b.shape)}"
        apart, largest = (float(t.abs().max()) if t.numel() else 0.0 for t in (a - b, b))
        if not apart <= RELATIVE * largest + floor:
            return f"{name} is {apart:.2g} off, where its largest value is {largest:.2g}"
    return ""


def _pair(a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """Zeros for the one that is missing."""
    here, there = (b if a is None else a), (a if b is None else b)
    if here is None or there is None:
        raise ValueError("both tensors are missing")
    return (torch.zeros_like(here) if a is None else here), (torch.zeros_like(there) if b is None else there)


def _number(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach().double()
    return torch.tensor(float(value)).double() if isinstance(value, int | float) else None


def check_states(states: Mapping[str, Any]) -> None:
    """The state of every plugin, by its name, comes back as it was.

    Raises:
        ConformanceError: one of them holds what would not.
    """
    for name, state in states.items():
        check_state(state, name)


def check_state(state: Any, path: str) -> None:
    """State is mappings with string keys, lists, JSON values and tensors.

    Raises:
        ConformanceError: it holds something else.
    """
    if isinstance(state, Mapping):
        for key, value in state.items():
            if not isinstance(key, str):
                raise ConformanceError(
                    "state", f"state_dict of {path}: the key {key!r} is no string; write str(key)"
                )
            check_state(value, f"{path}/{key}")
    elif isinstance(state, list | tuple):
        for place, value in enumerate(state):
            check_state(value, f"{path}/{place}")
    elif not (state is None or isinstance(state, Tensor | str | int | float | bool)):
        raise ConformanceError(
            "state",
            f"state_dict of {path}: a {type(state).__name__} is neither JSON nor a tensor; keep numbers, texts, lists, tensors",
        )
