"""Learning without Forgetting.

Li & Hoiem, "Learning without Forgetting", TPAMI 2017 (https://arxiv.org/abs/1606.09282).

The model as it stood after the previous task looks at the new task's samples, and its answers are soft labels: whoever
learns the new answers must not stop giving the old ones.

    L = L_task + λ_o · Σ_v y'_o(v) log(y'_o(v) / ŷ'_o(v)),        y'_o(v) = softmax(z_o / T)_v             (Eq. 2-4)

with z_o the old model's logits (teacher), ŷ'_o the same of the learning model (student), v over the vocabulary.

Choices the paper leaves open for language models, and ours:
  * Positions: the answer tokens of the new task's samples, teacher-forced; each has the teacher's distribution over the
    whole vocabulary. The term is averaged over answer tokens as the task's own loss is.
  * Divergence: KL in place of the cross-entropy; they differ by the teacher's entropy, which has no gradient.
  * λ_o = 1 and T = 2 as in the paper. The factor T² of Hinton et al. (2015), which keeps the size of the gradient the same for
    every T, is `strength` = T².
  * Teacher: adapters, projector and whatever else learnt, as they stood after the previous task, and the experts that
    answered then, on the same frozen model. It runs without dropout and draws no random number. The route, prompts or gates that
    `prepare` has set for a batch are the student's and stand for both.

The teacher takes with it what a method replaces or removes in `after_task` (an expert that is fused, a patch that is folded
in), so it stays what had just been learnt. What a method changes in place (CL-MoE's momentum) the teacher has as changed, and
where the forward itself asks a router of the task at hand (BranchLoRA), that router answers for the teacher too.

Held against:
  paper     arXiv 1606.09282
  code      ECNU-ICALK/EasyCL@cbc5bea, src/easycl/cl/lwf/lwf.py, src/easycl/cl/lwf/lwf_trainer.py
  verdict   equal but for the heads: the term and its gradient at each answer token
            (tests/oracles/test_lwf.py)
  differs   T²: EasyCL's multiplies the term by it, as Hinton et al. do, and by α = 0.5, ours has the paper's
            λ_o alone; at T = 2 theirs is strength=2
  differs   positions: EasyCL's pairs the logits at a token with that token's own label, ours with the next
            one; there the first answer token is not distilled and one behind the answer is
  differs   task loss: EasyCL's adds (1 − α) times a cross-entropy on those unshifted pairs to the model's own
            loss, ours has the model's own once; the model learns there to repeat the token that it reads
  differs   mean: EasyCL's is over the answer tokens of a process's batch, ours over those of the global
            batch; nothing with one process and no accumulation
  differs   heads: the paper's has one per task, a warm-up of the new one and an extra weight decay, ours has
            none of them; a language model has one head for all
  variants  none
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from cl_zoo import Batch, hookimpl
from cl_zoo.nn import BankLayer, bank_parts, standing_still

Experts = dict[str, dict[str, str]]
"""Name of a layer -> the experts that answer there, each with the expert whose A it reads."""


class LwF:
    """Keeps the answers of the previous model on the new task's samples."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        strength: float = Field(1.0, ge=0, description="λ_o in Eq. 4: how much the old answers matter")
        temperature: float = Field(2.0, gt=0, description="T in Eq. 3: how soft the labels are")

    def __init__(self, options: Options) -> None:
        self.strength, self.temperature = options.strength, options.temperature
        # What differs from the frozen model and who answers, as it stood after the previous task.
        self.teacher: dict[str, Tensor] = {}
        self.experts: Experts = {}
        # All tensors, the names of those that learn and of all A and B, and who answers, in the task that is being learnt.
        self.now: tuple[dict[str, Tensor], set[str], set[str], Experts] = ({}, set(), set(), {})

    @hookimpl
    def before_task(self, model: nn.Module) -> None:
        learns = {name for name, weight in model.named_parameters() if weight.requires_grad}
        matrices = set(bank_parts(model).get("adapters", ()))
        self.now = tensors(model), learns, matrices, answering(model)

    @hookimpl
    def loss(self, model: nn.Module, batch: Batch, outputs: Any) -> dict[str, Tensor] | None:
        if not self.teacher:
            return None  # the first task, or λ_o = 0
        with torch.no_grad(), standing_as(model, self.teacher, self.experts):
            old = functional_call(model, self.teacher, kwargs={**batch.inputs, "use_cache": False})
        return {"lwf": distillation(old.logits, outputs.logits, self.temperature, self.strength)}

    @hookimpl
    def after_task(self, model: nn.Module) -> None:
        (stood, learns, matrices, experts), here = self.now, tensors(model)
        self.now = {}, set(), set(), {}
        if self.strength:
            answer = answering_matrices(experts)
            self.teacher, self.experts = {}, experts
            for name, tensor in stood.items():
                needed = name in answer if name in matrices else name in here
                if needed and (name in learns or here.get(name) is not tensor):
                    self.teacher[name] = tensor.detach().clone()

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher, "experts": self.experts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.teacher, self.experts = dict(state["teacher"]), dict(state["experts"])


def distillation(teacher: Tensor, student: Tensor, temperature: float, strength: float = 1.0) -> Tensor:
    """λ_o · KL(softmax(teacher / T) ‖ softmax(student / T)) in fp32: logits (batch, K, V) to (batch, K)."""
    soft = F.log_softmax(teacher.float() / temperature, dim=-1)
    mine = F.log_softmax(student.float() / temperature, dim=-1)
    return (soft.exp() * -strength * (mine - soft)).sum(-1)  # so signed, its gradient is one product


@contextmanager
def standing_as(model: nn.Module, teacher: Mapping[str, Tensor], experts: Experts) -> Iterator[None]:
    """Inside, the given experts answer, also those that have left the bank since, and nothing is dropped out."""
    layers = [(layer, name, experts[name]) for name, layer in bank_layers(model) if name in experts]
    reads = [(layer, dict(layer.reads)) for layer, _, _ in layers]
    returned: list[tuple[nn.ParameterDict, str]] = []
    with standing_still(model):
        model.eval()
        for layer, name, active in layers:
            layer._active_adapter = list(active)
            layer.reads.update(active)
            for table, kind, keys in (
                (layer.bank_down, "down", active.values()),
                (layer.bank_up, "up", active),
            ):
                for key in keys:
                    if key not in table:
                        table[key] = nn.Parameter(teacher[f"{name}.bank_{kind}.{key}"], requires_grad=False)
                        returned.append((table, key))
        try:
            yield
        finally:
            for table, key in returned:
                del table[key]
            for layer, before in reads:
                layer.reads = before


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, themselves and no copies."""
    return dict(chain(model.named_parameters(), model.named_buffers()))


def answering(model: nn.Module) -> Experts:
    """Who answers at the moment, layer by layer."""
    return {
        name: {expert: layer.reads[expert] for expert in layer.experts} for name, layer in bank_layers(model)
    }


def answering_matrices(experts: Experts) -> set[str]:
    """Names of the A and B of the experts that answer."""
    ups = {f"{layer}.bank_up.{expert}" for layer, active in experts.items() for expert in active}
    return ups | {
        f"{layer}.bank_down.{read}" for layer, active in experts.items() for read in active.values()
    }


def bank_layers(model: nn.Module) -> list[tuple[str, BankLayer]]:
    """Adapted layers with their names in the model."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, BankLayer)]
