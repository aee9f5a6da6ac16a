"""DISCO: one LoRA per task, selected at every layer by how a prompt reads.

Guo et al., "Federated Continual Instruction Tuning", ICCV 2025 (https://arxiv.org/abs/2503.12897): dynamic knowledge
organization, one subspace for each task, and subspace selective activation, here without the federation. Where clients
are one, clustering their updates by task has nothing to do: the stream says when a task begins.

Every task trains a fresh LoRA B_t A_t alone on the frozen language model. In answering, all of them stand side by side
on the rank axis, at all layers, with a block-diagonal matrix between A and B that weighs each by the text:

    m_t = mean f(x)  over the prompts of task t                                                            (a)
    w   = softmax_t(cos(f(x), m_t) / 0.05)                                                                 (b)
    y   = W h + s · [B_1 … B_T] diag(w_1 I_r, …, w_T I_r) [A_1; …; A_T] h  =  W h + s · Σ_t w_t B_t A_t h  (c)

The equations are those of the released code, which routes by text alone; half image and half text stand there commented
out and are `modality=both` here.

The released code's accidents are not here: one gate from the batch's mean feature, a softmax over slots of tasks not
learnt yet, a count added to the task's feature where the boundary was meant. Its feature, in one of its versions, is a
sum and not a mean: the direction, and so the cosine, is the same.

Choices that are left open, and ours:
  * f is CLIP's text state before its projection, of the prompt up to a first " ASSISTANT": what the released code takes
    and its 0.05 belongs to. Images are compared in CLIP's joint space. Texts are cut at CLIP's context length.
  * All linears of the language model, as every method here; the original adapts the feed-forward layers.
  * The projector learns on from task to task; the last one answers for all.
  * A prompt without an image adds nothing to image anchors; in `modality=image` its route is even.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from cl_zoo import Backbone, Batch, Recipe, Task, hookimpl
from cl_zoo.nn import Anchors, ExpertBank, KeepsExperts, PerSample, Routed, adapters, image_view, state_view

WEIGHTS = {"text": (0.0, 1.0), "image": (1.0, 0.0), "both": (0.5, 0.5)}
"""Of image and text similarity in (b), by modality."""


class DISCO(KeepsExperts):
    """An expert per task, mixed at all layers by the similarity of texts."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        modality: Literal["text", "image", "both"] = Field("text", description="f in (a) and (b)")
        temperature: float = Field(0.05, gt=0, description="temperature of the softmax in (b)")

    def __init__(self, options: Options) -> None:
        self.options = options

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> ExpertBank:
        image, text = WEIGHTS[self.options.modality]
        features = backbone.features
        views = {"images": image_view(features, image), "texts": state_view(features, text)}
        self.anchors = Anchors(views, self.options.temperature, backbone.device)
        self.bank = adapters(backbone, recipe, "t0")
        return self.bank

    @hookimpl
    def before_task(self, task: Task) -> None:
        self.bank.learn(task)  # alone on the frozen model

    @hookimpl
    def after_task(self, batches: Sequence[Batch]) -> None:
        self.anchors.add(batches)  # (a)

    @hookimpl
    def build_inference_model(self, tasks_seen: Sequence[Task]) -> Routed:
        gate = PerSample()
        self.bank.answer(tasks_seen)
        self.bank.mix(lambda _: gate)  # (c)
        return Routed(self.bank, gate, self.anchors)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "anchors": self.anchors.keep()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.anchors.restore(state["anchors"])
