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

`variant`: `paper` gives every task its own expert, as the stream says. In `released` tasks that read alike share one: each sample
trains the nearest expert above a cosine of `threshold`, else the new task's; m moves to the mean of all that its expert has
learnt, and an expert that nothing chose goes.

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
  verdict   equal but for the accidents below: route, block-diagonal matrix, layer outputs and gradients, with
            variant=released whom each sample trains (tests/oracles/test_disco.py)
  differs   which expert learns: FCIT's is that of the known task whose feature has a cosine above 0.9 with
            the mean text of the batch, else the first free one, since its clients do not say which task they
            hold, MCITlib's and ours a fresh one for every task; tasks that read alike, two sets of captions,
            share one there
  differs   route in a batch: theirs is one, from the mean feature of the batch, ours one for each sample;
            equal for a batch of one
  differs   tasks not learnt yet: theirs has all slots in the softmax, those not learnt with a feature of
            zeros, ours has only tasks learnt; at 0.05 the weight that is lost is small
  differs   mean of a task met again: FCIT's is old mean · old count + new sum / all, where brackets were
            meant, ours the mean over all samples that the expert has learnt; theirs hardly turns towards new
            samples
  differs   feature of a task: MCITlib's is a sum in bf16, since the count that divides it stays one, and the
            count is added to the feature, which is then written anew, ours is a mean in fp32; the same cosine
            up to what bf16 loses of late batches
  differs   layers: FCIT's adapts the feed-forward layers, MCITlib's and ours all linears; size, and what
            routes
  differs   image: theirs has half image and half text commented out, ours is modality=both; nothing at the
            default
  differs   federation: theirs averages many clients by clusters and rounds, ours has one client; clustering
            has nothing to do where the stream says when a task begins
  variants  variant=released: a sample above `threshold` to an earlier task trains its expert, sample by
            sample; modality=both: half image, half text
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn import functional as F

from cl_zoo import Backbone, Batch, Recipe, Sample, Task, hookimpl, share, total
from cl_zoo.nn import (
    Anchors,
    Around,
    ExpertBank,
    KeepsExperts,
    PerSample,
    Routed,
    adapters,
    cosines,
    image_view,
    name_of,
    state_view,
)

WEIGHTS = {"text": (0.0, 1.0), "image": (1.0, 0.0), "both": (0.5, 0.5)}
"""Of image and text similarity in (b), by modality."""


class DISCO(KeepsExperts):
    """An expert per task, mixed at all layers by the similarity of texts."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        variant: Literal["paper", "released"] = Field(
            "paper", description="an expert for every task, or shared by tasks that read alike"
        )
        modality: Literal["text", "image", "both"] = Field("text", description="f in (a) and (b)")
        temperature: float = Field(0.05, gt=0, description="temperature of the softmax in (b)")
        threshold: float = Field(
            0.9,
            ge=-1,
            le=1,
            description="cosine above which a sample trains an earlier task's expert; released only",
        )

    answering = ("temperature",)

    def __init__(self, options: Options) -> None:
        self.options = options
        self.counts: dict[str, Tensor] = {}  # released: samples in each anchor, by kind of features

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> ExpertBank | Sharing:
        image, text = WEIGHTS[self.options.modality]
        features = backbone.features
        views = {"images": image_view(features, image), "texts": state_view(features, text)}
        self.anchors = Anchors(views, self.options.temperature, backbone.device)
        self.bank = adapters(backbone, recipe, "t0")
        if self.options.variant == "paper":
            return self.bank
        self.model = Sharing(self.bank, self.anchors, self.options.threshold)
        return self.model

    @hookimpl
    def before_task(self, task: Task) -> None:
        new = self.bank.learn(task)  # alone on the frozen model
        if self.options.variant == "released":
            self.model.learn([*self.bank.earlier(task), new])

    @hookimpl
    def after_task(self, batches: Sequence[Batch]) -> None:
        if self.options.variant == "paper":
            self.anchors.add(batches)  # (a)
        elif not self._shared(batches):
            self.bank.remove(self.model.names.pop())

    @hookimpl
    def build_inference_model(self, tasks_seen: Sequence[Task]) -> Routed:
        gate = PerSample()
        names = self.bank.answer(tasks_seen)
        self.bank.mix(lambda _: gate)  # (c)
        own = [name_of(task) in names for task in tasks_seen]
        return (
            Routed(self.bank, gate, self.anchors) if all(own) else Fewer(self.bank, gate, self.anchors, own)
        )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "anchors": self.anchors.keep(), "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.anchors.restore(state["anchors"])
        self.counts = dict(state["counts"])

    def _shared(self, batches: Sequence[Batch]) -> bool:
        """(a) by expert instead of by task, over all that each has learnt; whether the newest one has learnt anything."""
        experts, views = len(self.model.names), self.anchors.views
        sums = {kind: self.anchors[kind].new_zeros(experts, view.width) for kind, view in views.items()}
        seen = {kind: self.anchors[kind].new_zeros(experts) for kind in views}
        learnt = torch.zeros(experts, device=self.bank.layers[0].made["device"])
        for batch in share(batches):
            owners = self.model.owners(batch.samples)
            learnt += owners.sum(0)
            for kind, view in views.items():
                rows = view.look(batch.samples)
                sums[kind] = sums[kind] + owners.T @ rows
                seen[kind] = seen[kind] + owners.T @ rows.any(1).float()
        new = not len(batches) or bool(total(learnt)[-1] > 0)
        kept, last = {}, experts if new else experts - 1
        for kind in views:
            before = F.pad(self.counts.get(kind, seen[kind][:0]), (0, 1))
            now = before + total(seen[kind])
            whole = F.pad(self.anchors[kind], (0, 0, 0, 1)) * before[:, None] + total(sums[kind])
            kept[kind], self.counts[kind] = (whole / now.clamp(min=1)[:, None])[:last], now[:last]
        self.anchors.restore(kept)
        return new


class Sharing(Around):
    """The bank while it learns: every sample through one expert, that of the task it reads like or the newest.

    Args:
        anchors: m of the experts before the newest, in their order.
        threshold: cosine that has to be exceeded.
    """

    def __init__(self, bank: ExpertBank, anchors: Anchors, threshold: float) -> None:
        super().__init__(bank)
        self.anchors, self.threshold, self.gate = anchors, threshold, PerSample()

    def learn(self, names: Sequence[str]) -> None:
        """Let these experts learn, the newest last; what no sample chooses has a gradient of zero and stays."""
        self.names = list(names)
        self.bank.use(names, trainable=names)
        self.bank.mix(lambda _: self.gate)

    def prepare(self, batch: Batch) -> None:
        self.gate.weights = self.owners(batch.samples)

    def owners(self, samples: Sequence[Sample]) -> Tensor:
        """Ones and zeros (batch, experts)."""
        views, experts = self.anchors.views, len(self.names)
        near = [view.weight * cosines(view.look(samples), self.anchors[kind]) for kind, view in views.items()]
        alike = torch.stack(near).sum(0)
        best = F.pad(alike, (0, experts - alike.shape[1]), value=-torch.inf).max(1)
        return F.one_hot(
            torch.where(best.values > self.threshold, best.indices, experts - 1), experts
        ).float()


class Fewer(Routed):
    """As `Routed`, with a column in the route for every task: zero for one that has no expert of its own."""

    def __init__(self, bank: ExpertBank, gate: PerSample, anchors: Anchors, own: Sequence[bool]) -> None:
        super().__init__(bank, gate, anchors)
        self.own = own

    def prepare(self, batch: Batch) -> None:
        self.gate.weights = weights = self.anchors(batch.samples)
        columns = iter(weights.T)
        self.route = torch.stack(
            [next(columns) if has else torch.zeros_like(weights[:, 0]) for has in self.own], 1
        )
