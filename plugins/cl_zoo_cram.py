"""CRAM: experts of as many directions as a task needs, grouped by text, mixed by image.

Tang et al., "CRAM: Centroid-Routing and Adaptive MoE for Multimodal Continual Instruction Tuning", EMNLP 2026
(https://arxiv.org/abs/2606.02502). Of the paper its abstract was read; equations and letters are those of its authors' code.

Task t learns in two phases. For the first ρ of its steps a temporary buffer BA learns alone on the frozen model. Then the buffer
becomes an expert E_t of few directions, which learns for the rest of the task beside the frozen experts of its group:

    s·BA = Σ_j σ_j u_j v_jᵀ                                                             of every adapted linear          (1)
    kept: σ_j > τ_alloc and |v_j − QQᵀv_j| > τ_orth, Q the span of all A in the group   at least `least`, at most `cap`  (2)
    A_t = √(σ_j/s) (v_j − QQᵀv_j)/|v_j − QQᵀv_j|,  B_t = √(σ_j/s) u_j                   adaptive-rank instantiation      (3)
    z = LN(f_ins(x)),  m_g = mean z over all samples of the tasks of group g            semantic groups                  (4)
    t joins the group of highest cos(z_t, m_g) where it lies θ above the second, with one group where it is above `alike`,
    else it begins a new one;  z_t: mean z of the first phase                                                            (5)
    π_k = softmax_k(−|f_v(x) − μ_k|² / 2σ²)  over the experts k of the group            centroid-guided routing          (6)
    y = W h + Σ_k π_k E_k(h)                                                                                             (7)
    L = L_task + λ mean_linears (Σ_{k<t} π_k) |Pᵀ E_t(h̄)|²                              orthogonality penalty            (8)

μ_t starts as the mean image feature of the first phase and learns with E_t, one for each decoder layer. h̄ is the mean of a linear's
input over the tokens of the image, P the span of all older B in the group. In answering a sample goes to the group of highest
cos(z, m_g) and is mixed there by (6).

Choices that the code leaves open, and ours:
  * The budget: buffer and expert both learn in a task, so that the ranks of the two, the expert's at its largest, add up to that
    of the recipe. `cap` is the published 9, or half of the recipe's rank where that is less. A row that an expert does not need is zero
    while it learns, in A and B, so that nothing reaches it, and is cut off after the task.
  * A sample without an image has a feature of zeros in (6), takes no part in μ and none in (8).
  * `cl-zoo ledger` counts an expert of the full `cap`: how many directions a task needs is known when it is learnt.

Held against:
  paper     arXiv 2606.02502, EMNLP 2026
  code      LAMDA-CL/EMNLP2026-CRAM@576edf0, method/custom/cram/integration.py, PEFT/tuners/custom/cram_lora.py,
            config/methods/cram.py
  verdict   equal but for the accidents below: instantiation, groups, route, outputs and their gradients, penalty
            (tests/oracles/test_cram.py)
  differs   scale: theirs multiplies by s when it splits the buffer and once more when the expert answers, ours
            once; their expert begins s times as large as the directions that it takes over
  differs   penalty's directions: theirs are for a square linear the rows of the older A, which lie among its
            inputs, for any other the columns of the older B, ours always the latter; in LLaVA's attention theirs
            are others
  differs   penalty's linears: theirs is one a decoder layer, the first by its place in the model at the input of
            the last that was called, ours all adapted linears, each at its own input; theirs sees E of the query
            at the input of the attention's output
  differs   route in a batch: theirs is one for all, of the mean image and the mean text, ours each sample's own;
            an answer there depends on who else is asked, for one sample both are equal
  differs   groups: theirs puts a task where its first batch belongs, ours where the mean of the first phase
            does; less chance in eight samples
  differs   m: theirs is a mean over batches of what was seen in learning, LN behind each batch's mean, ours over
            samples, LN on each; equal for batches of one
  differs   first line: theirs drops a prompt's text up to the first newline, which is the image's token, but the
            question itself where there is no image, ours keeps all; such a question is grouped by its instruction
            alone there
  differs   dropout: theirs falls on h̄ as well, ours on the inputs of the forward alone; nothing at dropout 0
  differs   number of groups: theirs is at most 32, ours without a bound; nothing on the streams here
  differs   a question without an image: theirs goes to the group's first expert alone, in learning to the task's
            own, ours by (6) with a feature of zeros; the nearest centroid to zero answers
  differs   cap: theirs is 9, on one benchmark 10, beside a buffer of rank 48, ours fits into the budget; smaller
            experts at a small budget
  differs   start: theirs draws the buffer's A by Kaiming's rule, ours from N(0, init_std²); another size of the
            buffer's first steps
  variants  none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo import Backbone, Batch, Recipe, Task, hookimpl, total
from cl_zoo.nn import (
    Around,
    BankLayer,
    ExpertBank,
    Groups,
    ImageInputs,
    KeepsExperts,
    PerSample,
    adapters,
    full_precision,
    image_view,
    name_of,
    span,
    state_view,
    strongest,
)

BUFFER = "buffer"
CAP = 9  # largest rank of an expert in the released configuration


class CRAM(KeepsExperts):
    """An expert per task of adaptive rank; groups by text, a mix by image within a group."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        warmup: float = Field(
            0.05, gt=0, lt=1, description="ρ: share of a task's steps that the buffer learns"
        )
        allocation: float = Field(0.08, ge=0, description="τ_alloc in (2): singular values above it are kept")
        novelty: float = Field(0.99, ge=0, lt=1, description="τ_orth in (2): least share outside the span Q")
        cap: int | None = Field(
            None, ge=1, description="largest rank; default: 9, at most half of the budget"
        )
        least: int = Field(4, ge=1, description="smallest rank of an expert, within the cap")
        lead: float = Field(0.1, ge=0, description="θ in (5): what the nearest group has to be ahead by")
        alike: float = Field(
            0.8, ge=-1, le=1, description="cosine in (5) above which the only group is joined"
        )
        sigma: float = Field(2.0, gt=0, description="σ in (6): width around a centroid")
        strength: float = Field(1.0, ge=0, description="λ in (8): weight of the orthogonality penalty")

    def __init__(self, options: Options) -> None:
        self.options = options

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> Grouped:
        rank = recipe.adapter.rank
        self.cap = self.options.cap or min(CAP, max(1, rank // 2))
        buffer = rank if recipe.budget == "published" else max(1, rank - self.cap)
        self.bank = adapters(backbone, recipe, BUFFER, rank=buffer)
        self.model = Grouped(self.bank, backbone, self.options)
        return self.model

    @hookimpl
    def before_task(self, task: Task) -> None:
        if BUFFER in self.bank.experts:
            self.bank.remove(BUFFER)  # the one that came with the bank
        self.bank.add(BUFFER)
        self.bank.add(name_of(task), rank=self.cap)
        self.model.begin(name_of(task))

    @hookimpl
    def loss(self) -> dict[str, Tensor] | None:
        penalty = self.model.penalty()
        return None if penalty is None else {"cram/orthogonality": self.options.strength * penalty}

    @hookimpl
    def after_task(self, task: Task, batches: Sequence[Batch]) -> dict[str, float]:
        name, model, layers = name_of(task), self.model, self.bank.layers
        for layer in layers if model.phase == "expert" else ():
            down, up = layer.bank_down[name], layer.bank_up[name]
            used = down.any(1)
            self.bank.put(name, layer, down[used], up[:, used])
        self.bank.remove(BUFFER)
        self.bank.use(list(model.centroids), trainable=[name])
        model.finish(batches)
        model.mixed(range(len(model.centroids)))  # as it answers, for plugins behind it in a stack
        rank = sum(layer.bank_up[name].shape[1] for layer in layers) / len(layers)
        return {"cram/rank": rank, "cram/groups": float(len({*model.groups.numbers}))}

    @hookimpl
    def build_inference_model(self, tasks_seen: Sequence[Task]) -> Grouped:
        self.bank.answer(tasks_seen)
        self.model.mixed(range(len(tasks_seen)))
        return self.model

    def parts(self, model: nn.Module) -> dict[str, list[str]]:
        return {"keys": [f"centroids.{name}" for name in self.model.centroids]}

    def state_dict(self) -> dict[str, Any]:
        model = self.model
        now = {"tasks": list(model.centroids), "phase": model.phase, "seen": model.seen}
        return {**super().state_dict(), "groups": model.groups.keep(), **now}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        model = self.model
        model.groups.restore(state["groups"])
        for name in {*model.centroids} - {*state["tasks"]}:
            del model.centroids[name]
        for name in state["tasks"]:
            if name not in model.centroids:
                model.grow(name)
        model.centroids.requires_grad_(False)
        model.phase, model.seen = state["phase"], state["seen"].to(model.groups.counts.device)
        if model.phase:
            model.centroids[state["tasks"][-1]].requires_grad_(True)
        if model.phase == "expert":
            model.learn_expert()


class Grouped(Around):
    """The bank with a centroid of each task, and with the groups of tasks.

    Attributes:
        centroids: μ (decoder layers, d) by task.
        mates: places of the tasks whose experts are mixed, the learning one last.
        phase: of the task that is learnt, `buffer` and then `expert`; empty between tasks.
        seen: in the phase `buffer`, on this process: Σ z, Σ f_v, number of samples and of images, behind each other.
        route: (batch, tasks), the mean of π over the layers; while answering.
    """

    def __init__(self, bank: ExpertBank, backbone: Backbone, options: CRAM.Options) -> None:
        super().__init__(bank)
        self._options, self._backbone = options, backbone
        self._image = image_view(backbone.features, 1.0)
        self.groups = Groups(state_view(backbone.features, 1.0), backbone.device)
        self.gates = {depth: PerSample() for depth in sorted({layer.depth for layer in bank.layers})}
        self.centroids = nn.ParameterDict()
        self.mates: Sequence[int] = ()
        self._widths = (self.groups.view.width, self._image.width, 1, 1)
        self.phase, self.seen = "", torch.empty(0)
        self._spans: dict[BankLayer, Tensor] = {}  # P, where there are older experts
        self.inputs = ImageInputs(bank)

    def grow(self, name: str) -> None:
        """A centroid for the task of this name."""
        start = torch.zeros(len(self.gates), self._image.width, **self.bank.layers[0].made)
        self.centroids[name] = nn.Parameter(start)

    def begin(self, name: str) -> None:
        """The first phase of a task, whose expert has this name."""
        self.bank.use([BUFFER], trainable=[BUFFER, name])
        self.bank.mix(lambda _: None)
        self.grow(name)
        self.phase, self.seen = "buffer", self.centroids[name].new_zeros(sum(self._widths))

    def prepare(self, batch: Batch) -> None:
        images = self._image.look(batch.samples)
        if self.phase == "buffer":
            if self.training:
                z, shown = self.groups.look(batch.samples), images.any(1, keepdim=True)
                rows = torch.cat([z, images, torch.ones_like(z[:, :1]), shown], 1)
                self.seen = self.seen + rows.sum(0)
            return
        every = list(self.centroids.values())
        centroids = torch.stack([every[place] for place in self.mates], 1)
        own = None if self.phase else self.groups(batch.samples)[:, list(self.mates)]
        weights = route(images, centroids, self._options.sigma, own)
        for gate, one in zip(self.gates.values(), weights, strict=True):
            gate.weights = one
        self.route = None if self.phase else weights.mean(0)
        if self._spans:
            self.inputs.start(batch.inputs["input_ids"] == self._backbone.model.config.image_token_id)

    def stepped(self, done: int, total: int) -> None:
        if self.phase == "buffer" and done >= max(1, round(self._options.warmup * total)):
            self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Behind the first phase: the task joins a group, and the buffer becomes its expert."""
        z, image, samples, images = torch.split(total(self.seen), list(self._widths))
        self.groups.join(z / samples.clamp(min=1), lead=self._options.lead, alike=self._options.alike)
        names = list(self.centroids)
        self.centroids[names[-1]].copy_((image / images.clamp(min=1)).expand(len(self.gates), -1))
        older = [names[place] for place in self.groups.mates(len(names) - 1)]
        for layer in self.bank.layers:
            down, up = layer.bank_down[names[-1]], layer.bank_up[names[-1]]
            spanned, options = [layer.bank_down[name] for name in older], self._options
            with full_precision(down.device):
                A, B = strongest(
                    layer.scale * layer.bank_down[BUFFER],
                    layer.bank_up[BUFFER],
                    above=options.allocation,
                    known=spanned,
                    new=options.novelty,
                    ranks=(min(options.least, len(down)), len(down)),
                )
            down.zero_()[: len(A)] = A / layer.scale**0.5
            up.zero_()[:, : len(A)] = B / layer.scale**0.5
        self.learn_expert()

    def learn_expert(self) -> None:
        """The second phase: the expert learns, mixed with the frozen ones of its group."""
        last = len(self.centroids) - 1
        self.mixed([*self.groups.mates(last), last])
        *older, name = [list(self.centroids)[place] for place in self.mates]
        self.bank.use([*older, name], trainable=[BUFFER, name])  # the optimiser was made for both
        for layer in self.bank.layers if older else ():
            self._spans[layer] = span([layer.bank_up[one].detach() for one in older])
        self.inputs.layers, self.phase = self._spans, "expert"

    def mixed(self, places: Sequence[int]) -> None:
        """Mix the experts of these tasks, which the bank has as active ones, by (6) in all layers."""
        self.mates = places
        self.bank.mix(lambda layer: self.gates[layer.depth])

    def penalty(self) -> Tensor | None:
        """(8) without λ, (batch,); `None` where no older expert is in the group."""
        terms, name = [], list(self.centroids)[-1]
        for layer, h in self.inputs.found.items():
            with full_precision(h.device):
                down, up = layer.bank_down[name], layer.bank_up[name]
                z = layer.scale * F.linear(F.linear(h.to(down.dtype), down), up)
                energy = (z @ self._spans[layer]).square().sum(1)
            weights = self.gates[layer.depth].weights
            terms.append(weights[:, :-1].sum(1) * energy if weights is not None else energy)
        return torch.stack(terms).mean(0) if terms else None

    def finish(self, batches: Sequence[Batch]) -> None:
        """Behind a task: its samples count in its group, and nothing learns."""
        self.groups.add(batches)
        self.centroids.requires_grad_(False)
        self._spans, self.inputs.layers, self.inputs.found = {}, (), {}
        self.phase, self.seen = "", torch.empty(0)


def route(images: Tensor, centroids: Tensor, sigma: float, own: Tensor | None = None) -> Tensor:
    """π of (6), (layers, batch, experts).

    Args:
        images: f_v (batch, d).
        centroids: μ (layers, experts, d).
        own: which experts are of a sample's group (batch, experts); all where nothing is said.
    """
    squares = (images[None, :, None] - centroids[:, None]).square().sum(-1)
    logits = -squares / (2 * sigma**2)
    return torch.softmax(logits if own is None else logits.masked_fill(~own, -torch.inf), -1)
