"""Drift: how far the weights move while a task is learnt.

A probe: it measures and changes nothing. After every task it records, over all tensors of a part that learn in it,

    drift/<part>              ‖Δ‖_F from the beginning of the task to its end
    drift/<part>/from_start   ‖Δ‖_F from where the part stood when it learnt for the first time in this stream

Parts are those of the learning rates and of the ledger: `adapters`, `routers`, `projector`, and a method's own, such as `prompts`
and `keys`. A part that is frozen has no measurement.

For adapters Δ is the change of the effective update, not of A and B:

    ‖Δ‖² = Σ_layers Σ_experts ‖s · (B A − B⁰ A⁰)‖²_F

since (cA, B/c) is the same adapter for every c, and an A can turn far while its B still is zero. Experts count one by
one: what several of them add up to depends on the mix, and so on the sample. A fresh expert starts from B = 0, so its
distance from the start is ‖s · B A‖, and nothing needs to be kept for it.

Choices, since no paper fixes them:
  * What training moved is measured. An expert that the method merges or replaces after the task counts as it stood when
    its training ended.
  * An expert whose A is shared moves when the A moves, even where its own B is frozen.
  * Tensors are kept in fp32, and a norm is over a whole part; the ledger counts how many weights that is.

Held against:
  paper     none, a probe of this project
  code      none released
  verdict   equal: the definition above, over W-sized matrices and entry by entry
            (tests/oracles/test_drift.py)
  variants  none
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cl_zoo import hookimpl
from cl_zoo.nn import BankLayer, bank_parts


@dataclass(frozen=True)
class Learning:
    """An expert in one layer: its own tensors, held even if the bank lets go of them, and copies from before the task."""

    scale: float
    down: Tensor
    up: Tensor
    down_before: Tensor
    up_before: Tensor


class Drift:
    """Measures ‖Δ‖ of adapters, projector and whatever else learns, task by task."""

    probe = True

    def __init__(self) -> None:
        self.start: dict[str, Tensor] = {}  # where tensors outside the experts stood when they first learnt
        self.experts: list[Learning] = []
        self.weights: dict[
            str, tuple[Tensor, Tensor]
        ] = {}  # name -> the tensor and its copy from before the task

    @hookimpl
    def before_task(self, model: nn.Module) -> None:
        self.experts = learning_experts(model)
        self.weights = {}
        matrices = set(bank_parts(model).get("adapters", ()))
        for name, weight in model.named_parameters():
            if weight.requires_grad and name not in matrices:
                before = weight.detach().float().clone()
                self.weights[name] = (weight, before)
                self.start.setdefault(name, before)

    @hookimpl
    def after_task(self, parts: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
        measured: dict[str, Tensor] = {}
        if self.experts:
            moved = [distance(one.down_before, one.up_before, one) for one in self.experts]
            far = [distance(one.down_before, torch.zeros_like(one.up_before), one) for one in self.experts]
            measured |= {"drift/adapters": norm(moved), "drift/adapters/from_start": norm(far)}
        for part, names in sorted(parts.items()):
            mine = {name: self.weights[name] for name in names if name in self.weights}
            if not mine:
                continue
            if part == "adapters":
                part = "adapters/others"  # a method's own tensors of that part, beside the bank's experts
            measured[f"drift/{part}"] = norm(change(now, before) for now, before in mine.values())
            measured[f"drift/{part}/from_start"] = norm(
                change(now, self.start[name]) for name, (now, _) in mine.items()
            )
        self.experts, self.weights = [], {}  # copies are not carried into answering
        return measured

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.start = dict(state["start"])


def learning_experts(model: nn.Module) -> list[Learning]:
    """Every expert of every layer whose effective update can change, with copies of its A and B in fp32."""
    found = []
    for layer in (module for module in model.modules() if isinstance(module, BankLayer)):
        for name, up in layer.bank_up.items():
            down = layer.bank_down[layer.reads[name]]
            if up.requires_grad or down.requires_grad:
                copies = [tensor.detach().float().clone() for tensor in (down, up)]
                found.append(Learning(layer.scale, down, up, *copies))
    return found


def distance(down: Tensor, up: Tensor, expert: Learning) -> Tensor:
    """‖s · (B A − B⁰ A⁰)‖²_F of an expert's A and B now and the given A⁰ `down` (r, d_in), B⁰ `up` (d_out, r); a scalar.

    B A − B⁰ A⁰ = (B − B⁰) A + B⁰ (A − A⁰) = U V with U (d_out, 2r) and V (2r, d_in), and ‖U V‖² = Σ (UᵀU) ∘ (V Vᵀ): no
    matrix of W's size is made, and an expert that stood still gives exactly zero. The two small products are taken in
    fp64, since U V may be a difference of large terms.
    """
    A, B, down, up = (tensor.detach().double() for tensor in (expert.down, expert.up, down, up))
    U = torch.cat([B - up, up], 1)
    V = torch.cat([A, A - down], 0)
    return (expert.scale**2 * ((U.T @ U) * (V @ V.T)).sum()).clamp(min=0).float()


def change(now: Tensor, before: Tensor) -> Tensor:
    """‖θ − θ⁰‖²_F in fp32, a scalar."""
    return (now.detach().float() - before.to(now.device)).pow(2).sum()


def norm(squares: Iterable[Tensor]) -> Tensor:
    """The norm of several tensors together from their squared norms."""
    return torch.stack(list(squares)).sum().sqrt()
