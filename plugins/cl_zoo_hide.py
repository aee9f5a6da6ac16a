"""HiDe-LLaVA: hierarchical decoupling.

Guo et al., "HiDe-LLaVA: Hierarchical Decoupling for Continual Instruction Tuning of Multimodal Large Language Model",
ACL 2025 (https://arxiv.org/abs/2503.12941).

Every task trains a fresh LoRA E_t on the frozen language model (4.2, Algorithm 1). In answering, the top layer
mixes all of them by how much an image and its instruction look like each task, the layers below fuse them:

    m_v^t = mean f_v(x_v),  m_ins^t = mean f_ins(x_ins)           anchors of task t, from CLIP             (Eq. 2)
    r_v^c = cos(z_v, m_v^c),  r_ins^c = cos(z_ins, m_ins^c)                                                (Eq. 3)
    d = softmax_c((α r_v^c + β r_ins^c) / T)                                                               (Eq. 4)
    top layer:   O = Σ_i d_i E_i(h)                                                                        (Eq. 5)
    below:       O = Ē_T(h),  Ē_T = Σ_i ε_i E_i,  ε_i = 1                                                  (Eq. 6, 7)

`variant` is where paper and released code differ:
  * paper: E = BA, so the fused update is Σ B_i A_i. Its rank grows with the tasks.
  * released: A and B are summed apart and multiplied, (ΣB_i)(ΣA_i); its size stays that of one LoRA, which is what the
    paper's table of parameters counts.

The released code's accidents are in neither variant: a gate from the maximum over the batch, a softmax over tasks not
learnt yet, a literal top layer 31, anchors started at random and counted in bf16.

Choices the paper leaves open, and ours:
  * f_v and f_ins are the projected image and text features of one CLIP; the text is the whole prompt, question and
    instruction, cut at CLIP's context length. (The released code takes the text before CLIP's projection.)
  * Anchors are means over all training samples of the task, in fp32. A sample without an image counts with its text only.
  * The projector learns on from task to task, as in the released code; the last one answers for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo import Backbone, Batch, Recipe, Task, hookimpl
from cl_zoo.bank import BankLayer, ExpertBank, adapters
from cl_zoo.mixes import PerSample

FUSED = "fused"


class HiDe:
    """Task-specific expansion of the top layer, task-general fusion below."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        variant: Literal["paper", "released"] = Field(
            "paper", description="fusion below: Σ B_iA_i, or (ΣB_i)(ΣA_i)"
        )
        alpha: float = Field(0.5, ge=0, description="α in Eq. 4: weight of the image similarity")
        beta: float = Field(0.5, ge=0, description="β in Eq. 4: weight of the text similarity")
        temperature: float = Field(0.1, gt=0, description="T in Eq. 4")

    def __init__(self, options: Options) -> None:
        self.options = options
        self.image_anchors: list[Tensor] = []  # m_v, (d,) per task
        self.text_anchors: list[Tensor] = []  # m_ins

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> ExpertBank:
        _ = backbone.features  # where there is none, say so now and not after the first task
        self.backbone, self.bank = backbone, adapters(backbone, recipe, "t0")
        return self.bank

    @hookimpl
    def before_task(self, task: Task) -> None:
        name = f"t{task.index}"
        if name not in self.bank.experts:
            self.bank.add(name)
        self.bank.use([name], trainable=[name])  # alone on the frozen model: no older expert takes part

    @hookimpl
    def after_task(self, task: Task, batches: Iterable[Batch]) -> None:
        images, texts = anchors(self.backbone, batches)
        self.image_anchors.append(images)
        self.text_anchors.append(texts)
        if self.options.variant == "released":
            self._fuse(f"t{task.index}")

    @hookimpl
    def build_inference_model(self, tasks_seen: Sequence[Task]) -> Routed:
        experts = [f"t{task.index}" for task in tasks_seen]
        gate = PerSample()
        self.bank.use(experts, where=self._top)
        self.bank.mix(lambda _: gate, where=self._top)
        self.bank.use([FUSED] if self.options.variant == "released" else experts, where=self._below)
        return Routed(self.bank, gate, self.backbone, self.image_anchors, self.text_anchors, self.options)

    def state_dict(self) -> dict[str, Any]:
        return {"experts": self.bank.describe(), "images": self.image_anchors, "texts": self.text_anchors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.bank.rebuild(state["experts"])
        self.image_anchors, self.text_anchors = list(state["images"]), list(state["texts"])

    def _fuse(self, name: str) -> None:
        """Below the top layer keep ΣA_i and ΣB_i only."""
        if FUSED not in self.bank.experts:
            self.bank.add(FUSED)
            self.bank.remove(FUSED, where=self._top)
            for layer in filter(self._below, self.bank.layers):
                self.bank.put(
                    FUSED,
                    layer,
                    torch.zeros_like(layer.bank_down[name]),
                    torch.zeros_like(layer.bank_up[name]),
                )
        for layer in filter(self._below, self.bank.layers):
            down, up = layer.bank_down, layer.bank_up
            self.bank.put(FUSED, layer, down[FUSED] + down[name], up[FUSED] + up[name])
        self.bank.remove(name, where=self._below)

    def _top(self, layer: BankLayer) -> bool:
        return layer.depth == self.bank.depth

    def _below(self, layer: BankLayer) -> bool:
        return layer.depth < self.bank.depth


class Routed(nn.Module):
    """Answers with the top layer's experts weighted per sample; `route` (batch, tasks) is d of Eq. 4."""

    def __init__(
        self,
        bank: ExpertBank,
        gate: PerSample,
        backbone: Backbone,
        images: Sequence[Tensor],
        texts: Sequence[Tensor],
        options: HiDe.Options,
    ) -> None:
        super().__init__()
        self.bank, self.gate, self.options = bank, gate, options
        self._features = backbone.features
        self.register_buffer("image_anchors", torch.stack(list(images)))
        self.register_buffer("text_anchors", torch.stack(list(texts)))
        self.route: Tensor | None = None

    def prepare(self, batch: Batch) -> None:
        images = self._features.images([sample.image for sample in batch.samples])
        texts = self._features.texts([sample.prompt for sample in batch.samples])
        here = (cast(Tensor, self.image_anchors), cast(Tensor, self.text_anchors))
        self.route = self.gate.weights = gate(images, texts, *here, self.options)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.bank(*args, **kwargs)

    def generate(self, **inputs: Any) -> Tensor:
        return cast(Tensor, self.bank.generate(**inputs))


def anchors(backbone: Backbone, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Means of image and text features over a task's training samples, each (d,) (Eq. 2)."""
    images: list[Tensor] = []
    texts: list[Tensor] = []
    for batch in batches:
        shown = [sample.image for sample in batch.samples if sample.image is not None]
        if shown:
            images.append(backbone.features.images(shown))
        texts.append(backbone.features.texts([sample.prompt for sample in batch.samples]))
    text_anchor = torch.cat(texts).mean(0)
    return torch.cat(images).mean(0) if images else torch.zeros_like(text_anchor), text_anchor


def gate(
    images: Tensor, texts: Tensor, image_anchors: Tensor, text_anchors: Tensor, options: HiDe.Options
) -> Tensor:
    """d of Eq. 4: (batch, d) features and (tasks, d) anchors of both kinds to (batch, tasks), rows summing to one."""
    r_v = F.cosine_similarity(images[:, None], image_anchors[None], dim=-1)  # Eq. 3
    r_ins = F.cosine_similarity(texts[:, None], text_anchors[None], dim=-1)
    return torch.softmax((options.alpha * r_v + options.beta * r_ins) / options.temperature, dim=-1)
