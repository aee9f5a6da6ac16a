"""The ledger: what a run cost, counted in one way for every method."""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.nn.answering import OtherUpdates, OtherWeights
from cl_zoo.nn.fourbit import language_size
from cl_zoo.nn.layer import BankLayer

AROUND = ("build_model", "before_task", "rehearse", "after_task")
"""Hooks that run neither inside the training steps nor inside the evaluation."""

STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Where Linux tells the peak of a process's resident memory (VmHWM), and lets it begin anew."""


@dataclass
class TaskCost:
    """What learning one task cost.

    `flops` counts the multiply-adds of the language model's and the adapters' matrix products, twice each: 2 per weight and token
    forward, 2 more for the gradient of the activations, 2 more for the weights that learn, each of which is taken to meet
    every token. Attention scores, embeddings, output layer, the cached vision tower and hooks are left out.
    `learning` is what learns in an adapted layer, see `cl_zoo.nn.budget.Learning`. `compiled` is what compiling the layers took, see
    `cl_zoo.engine.compiled`, within `seconds`; it is empty where they were not compiled.
    """

    task: str
    steps: int = 0
    samples: int = 0
    rehearsed: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    trained: dict[str, int] = field(default_factory=dict)
    learning: dict[str, int] = field(default_factory=dict)
    compiled: dict[str, float] = field(default_factory=dict)


@dataclass
class Ledger:
    """Costs of a run, task by task and in all.

    Attributes:
        tasks: one entry per learnt task.
        budget: what may train in one task by the recipe's rank, in parameters, without the projector.
        stored: parameters beside the frozen backbone, by use (`inference`, `continuing`) and part, after the last task.
        active: those of them that take part in one answer.
        hooks: seconds in each hook, over the run.
        evaluation_seconds: generation of all answers.
        peak_memory_mb: of the process, or of the accelerator where one was used.
        taken: tasks that another run learnt for this one too; what is said of them, seconds and memory, is that run's.
    """

    tasks: list[TaskCost] = field(default_factory=list)
    budget: int = 0
    stored: dict[str, dict[str, int]] = field(default_factory=dict)
    active: int = 0
    hooks: dict[str, float] = field(default_factory=dict)
    evaluation_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    taken: int = 0

    @property
    def seconds(self) -> float:
        """Training, the hooks around it, and evaluation; `loss` and the hooks of answering lie inside the other two."""
        around = sum(self.hooks.get(hook, 0.0) for hook in AROUND)
        return sum(task.seconds for task in self.tasks) + around + self.evaluation_seconds

    @property
    def trained(self) -> int:
        """Parameters trained per task; the largest of the tasks where they differ."""
        return max((sum(task.trained.values()) for task in self.tasks), default=0)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds, "trained": self.trained}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Ledger:
        return cls(
            tasks=[TaskCost(**task) for task in values["tasks"]],
            budget=values["budget"],
            stored=dict(values["stored"]),
            active=values["active"],
            hooks=dict(values["hooks"]),
            evaluation_seconds=values["evaluation_seconds"],
            peak_memory_mb=values["peak_memory_mb"],
            taken=values["taken"],
        )


def training_flops(backbone: Backbone, tokens: int, trained: int) -> float:
    """FLOPs of forward and backward over `tokens` real tokens, by the rule in `TaskCost`."""
    return float(tokens * (4 * language_size(backbone) + 6 * trained))


def own_state(model: nn.Module, backbone: Backbone) -> dict[str, Tensor]:
    """All tensors of the model that do not belong to the frozen backbone, by name; the projector is among them."""
    return {name: t for name, t in model.state_dict(keep_vars=True).items() if not backbone.owns(t)}


def answering_state(model: nn.Module, backbone: Backbone) -> dict[str, Tensor]:
    """What of `own_state` takes part in answering, without experts that are not active in a layer and weights that have other values."""
    idle = set()
    for name, module in model.named_modules():
        if isinstance(module, OtherWeights):
            idle |= {f"{name}.{weight}".lstrip(".") for weight in module.idle}
        if isinstance(module, BankLayer):
            active = set(module.experts)
            downs = {module.reads[expert] for expert in active}
            idle |= {f"{name}.bank_up.{expert}" for expert in module.bank_up if expert not in active}
            idle |= {f"{name}.bank_down.{expert}" for expert in module.bank_down if expert not in downs}
    return {name: tensor for name, tensor in own_state(model, backbone).items() if name not in idle}


def stored(
    model: nn.Module,
    answering: nn.Module,
    backbone: Backbone,
    parts: Mapping[str, Iterable[str]],
    state: Any,
) -> dict[str, dict[str, int]]:
    """Parameters beside the frozen backbone, by use and part.

    Args:
        model, answering: what `build_model` and `build_inference_model` returned.
        parts: of the model's parameters.
        state: of all plugins; its tensors are needed for continuing only.
    """
    kept = own_state(model, backbone)
    continuing = count(kept, kept, parts)
    continuing["plugins"] = tensors_in(state)
    # An inference model may wrap the trained one: its tensors are then known under longer names.
    names = {id(tensor): name for name, tensor in kept.items()}
    for module in answering.modules():
        if isinstance(module, OtherWeights):  # its values belong to the parts of those whose place they take
            names |= {id(value): names[id(own)] for own, value in module.pairs() if id(own) in names}
    used = {names.get(id(t), n): t for n, t in answering_state(answering, backbone).items()}
    return {
        "inference": count(
            used, used, {**parts, "adapters": [*parts.get("adapters", ()), *_changes(answering)]}
        ),
        "continuing": {part: size for part, size in continuing.items() if size},
    }


def _changes(answering: nn.Module) -> list[str]:
    """Names of what answers in the place of experts, and is counted where they are."""
    found = [(name, one) for name, one in answering.named_modules() if isinstance(one, OtherUpdates)]
    return [f"{name}.changes.{own}".lstrip(".") for name, one in found for own in one.changes.state_dict()]


def active(answering: nn.Module, inference: Mapping[str, int]) -> dict[str, int]:
    """Of the parameters stored for inference those that take part in one answer token, by part.

    All of them, unless the answering module says otherwise in `active() -> part -> parameters`.
    """
    say = getattr(answering, "active", None)
    return {**inference, **(say() if say is not None else {})}


def count(
    names: Iterable[str], tensors: Mapping[str, Tensor], parts: Mapping[str, Iterable[str]]
) -> dict[str, int]:
    """Parameters by part; tensors that no part claims are counted under `other`."""
    part_of = {name: part for part, members in parts.items() for name in members}
    counted: dict[str, int] = {}
    for name in names:
        part = part_of.get(name, "other")
        counted[part] = counted.get(part, 0) + tensors[name].numel()
    return counted


def tensors_in(state: Any) -> int:
    """Elements of all tensors anywhere in a plugin's state."""
    return sum(tensor.numel() for tensor in state_tensors(state).values())


def state_tensors(state: Any, place: str = "") -> dict[str, Tensor]:
    """All tensors in a plugin's state, themselves and no copies, by where they stand in it."""
    if isinstance(state, Tensor):
        return {place: state}
    if isinstance(state, Mapping):
        items = list(state.items())
    else:
        items = list(enumerate(state)) if isinstance(state, list | tuple) else []
    return {at: t for key, value in items for at, t in state_tensors(value, f"{place}/{key}").items()}


def forget_memory(device: torch.device) -> None:
    """Free what earlier runs of this process left to the collector, and let `peak_memory_mb` begin anew where that can be done."""
    gc.collect()  # a model and what was put around it refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif PEAK_RESET.exists():
        with contextlib.suppress(OSError):  # some containers forbid it; the peak is then that of the process
            PEAK_RESET.write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Highest memory since `forget_memory`: of the accelerator, else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if STATUS.exists():
        lines = dict(line.partition(":")[::2] for line in STATUS.read_text().splitlines())
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) / 2**10
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident / (2**20 if sys.platform == "darwin" else 2**10)
