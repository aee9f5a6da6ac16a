"""DISCO: one LoRA per task, selected at every layer by how a prompt reads.

Guo et al., "Federated Continual Instruction Tuning", ICCV 2025 (https://arxiv.org/abs/2503.12897): dynamic knowledge
organization, one subspace for each task, and subspace selective activation, here without the federation. Where clients
are one, clustering their updates by task has nothing to do: the stream says when a task begins.

Every task trains a fresh LoRA B_t A_t alone on the frozen language model. In answering, all of them stand side by side
on the rank axis, at all layers, with a block-diagonal matrix between A and B that weighs each by the text:

    m_t = mean f(x)  over the prompts of task t                                                            (a)
    w   = softmax_t(cos(f(x), m_t) / 0.05)                                                                 (b)
    y   = W h + s · [B_1 … B_T] diag(w_1 I_r, …, w_T I_r) [A_1; …; A_T] h  =  W h + s · Σ_t w_t B_t A_t h  (c)

The equations are those of the released code, which routes by text alone.

Choices that are left open, and ours:
  * f is CLIP's text state before its projection, of the prompt up to a first " ASSISTANT": what the released code takes
    and its 0.05 belongs to. Images are compared in CLIP's joint space. Texts are cut at CLIP's context length.
  * All linears of the language model, as every method here.
  * The projector learns on from task to task; the last one answers for all.
  * A prompt without an image adds nothing to image anchors; in `modality=image` its route is even.

Held against:
  paper     arXiv 2503.12897
  code      Ghy0501/FCIT@9b10259, ETrain/Models/LLaVA/llava_arch.py, CoIN/peft/tuners/coinmoelora.py,
            ETrain/Fed_utils/model_aggregation.py, ETrain/Train/LLaVA/train.py
  code      Ghy0501/MCITlib@2956dfd, DISCO/llava/model/llava_arch.py, DISCO/CoIN/peft/tuners/clitmoelora.py
  verdict   equal but for the accidents below: route, block-diagonal matrix, layer outputs and gradients
            (tests/oracles/test_disco.py)
  differs   which expert learns: FCIT's is the one of the known task whose feature has a cosine above 0.9 with
            the batch's mean text, else the first empty one, ours is always a fresh one; tasks whose prompts
            read alike share an expert there
  differs   route in a batch: theirs is one, from the mean feature of the batch, ours one for each sample;
            equal for a batch of one
  differs   tasks not learnt yet: theirs has all slots in the softmax, those not learnt with a feature of
            zeros, ours has only tasks learnt; at 0.05 the weight that is lost is small
  differs   mean of a task met again: FCIT's is old mean · old count + new sum / all, where brackets were
            meant, ours is the mean over the task's samples; theirs hardly turns towards new samples
  differs   feature of a task: MCITlib's is a sum in bf16, since the count that divides it stays one, and the
            count is added to the feature, which is then written anew, ours is a mean in fp32; the same cosine
            up to what bf16 loses of late batches
  differs   layers: FCIT's adapts the feed-forward layers, MCITlib's and ours all linears; size, and what
            routes
  differs   image: theirs has half image and half text commented out, ours is modality=both; nothing at the
            default
  differs   federation: theirs averages many clients by clusters and rounds, ours has one client; clustering
            has nothing to do where the stream says when a task begins
  variants  variant=released: a task whose texts have a cosine above 0.9 with a known one's learns its expert
            on; modality=both: half image, half text
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
