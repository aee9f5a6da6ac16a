"""BranchLoRA: one trunk, several branches, few of which answer.

Zhang et al., "Enhancing Multimodal Continual Instruction Tuning with BranchLoRA", ACL 2025
(https://arxiv.org/abs/2506.02041).

The experts of a mixture share A, the trunk, and keep a B each, the branches. Every linear layer has a router per task that
sees the first token x₀ only and picks k of the N branches; after a task its busiest branches are frozen; keys that were
aligned with the task's images and texts tell at inference whose router is meant:

    ΔW x = s · Σ_{i ∈ top-k} g_i B_i A x,   g from p = softmax(W_r^t x₀)       A (ρ, d_in), B_i (d_out, ρ)
    freezing after task t: the k branches with the largest mean p over its training data
    L = L_task + λ L_align,   L_align = Σ (1 − cos(e_img, k_img^t)) + Σ (1 − cos(e_txt, k_txt^t))
    at inference t = argmax over tasks of the similarity of (e_img, e_txt) with (k_img^t, k_txt^t)

The paper's ablation adds shared A, sparse selection, freezing and task routers one after the other; `shared`, `sparse`,
`freezing` and `task_router` switch them. Without task routers one router learns on over all tasks, and there are no keys. `cl-zoo analyze ablate branchlora` runs
the steps. They start from a dense mixture whose router sees the first token; the paper's start is MoELoRA, whose router sees every
token (37.13), so no published figure stands beside ours.

Choices the paper leaves open, and ours:
  * Gates: the k largest of p, divided by their sum, so that Σ g = 1 as in the dense mixture; `renormalise=false` takes p.
  * First token: the first real one of the layer's input; padding stands left of it. Under causal attention it sees only
    itself. Where all prompts begin alike, a layer thus has one choice per task, whatever the sample. We keep it so, as the
    paper says "first token". In generation the choice of the prefill holds for all tokens of the answer.
  * Size: ρ and N follow from the recipe's budget, which counts routers and keys; N is the paper's 8 or what the budget feeds.
  * Freezing: layer by layer, as each has its own branches and router, by the mean of p (before selection) over `samples` of
    the task, drawn at random. Branches frozen before can be among the busiest, so fewer than k may be new. Nothing makes
    new ones: on a long stream a layer runs out of free branches (`branchlora/free` is the mean number left), and then A,
    which is never frozen, routers, keys and the projector learn on.
  * A new router knows nothing of what is frozen, so in more and more layers none of the branches that it picks can learn:
    `branchlora/idle` is the share of such layers in the task. `choose=free-first` lets a task's router pick among the branches
    that were free when the task began, and among the frozen ones only where these are fewer than k; g is as before, and
    the busiest are those with the largest mean g, since p does not tell who answered.
  * Encoders: image and text features of one CLIP; the text is the whole prompt. The similarity of a task is the mean of both
    cosines. A sample without an image has no image term, and its text alone decides.
  * Keys start small, N(0, init_std²) as A does, so that few steps turn them. Routers start as any linear layer does.
  * Sums over samples in L_align are averages over the batch, as in L_task.

Held against:
  paper     arXiv 2506.02041
  code      none released
  verdict   from the paper alone: gates, layer outputs and gradients, alignment, choice of a task's router, branches that are frozen
            (tests/oracles/test_branchlora.py)
  differs   place: its text puts branches into the feed-forward layers, its 222 M parameters at rank 128 are those of all linears, and
            ours are on all linears; the budget is that of its figures
  differs   first token: theirs is taken as the first of the sequence, ours as the first that is no padding, and in generation the
            choice of the prefill holds; an answer does not depend on who else is in the batch
  variants  none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo import Backbone, Batch, Recipe, Task, hookimpl
from cl_zoo.nn import (
    Around,
    BankLayer,
    ExpertBank,
    FirstToken,
    KeepsExperts,
    Prefill,
    cosines,
    gate_sums,
    mixture,
    name_of,
    top_gates,
    top_softmax,
)

PUBLISHED = 8  # branches of the paper
EVERY = "every"  # the one router where tasks have none of their own
STEPS = ("shared", "sparse", "freezing", "task_router")


def step(taken: Sequence[str], published: Mapping[str, float]) -> dict[str, Any]:
    """A row of the paper's ablation on CoIN, with the steps that are taken."""
    options = {name: name in taken for name in STEPS}
    return {"options": options, "source": "ablation on LLaVA-1.5-7B", "published": published, "on": "coin"}


class BranchLoRA(KeepsExperts):
    """One A, N branches B, a sparse router per task, branches that are frozen once they were needed."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        experts: int | None = Field(
            None, ge=1, description="N: number of branches; default: as many of 8 as the budget feeds"
        )
        top_k: int = Field(2, ge=1, description="k: branches that answer, and that are frozen after a task")
        strength: float = Field(1.0, ge=0, description="λ: weight of L_align")
        shared: bool = Field(True, description="one A for all branches, else one each")
        sparse: bool = Field(True, description="only the k branches with the largest p answer, else all")
        choose: Literal["probable", "free-first"] = Field(
            "probable", description="which k: the largest p, or that among free branches before frozen ones"
        )
        freezing: bool = Field(True, description="the k busiest branches of a task are frozen after it")
        task_router: bool = Field(True, description="a router and keys per task, else one router for all")
        renormalise: bool = Field(True, description="g of the chosen branches sums to one (needs k > 1)")
        samples: int = Field(128, ge=1, description="samples per task that tell which branches are busy")

        @model_validator(mode="after")
        def _enough(self) -> BranchLoRA.Options:
            if self.top_k > (most := self.experts or PUBLISHED):
                raise ValueError(f"top_k is {self.top_k}, but there are only {most} experts; lower it")
            return self

    ablations: ClassVar = {
        "dense mixture": step((), {}),
        "+ shared A": step(("shared",), {"last": 38.19, "maa": 43.95, "bwt": -25.32}),
        "+ sparse selection": step(("shared", "sparse"), {"last": 39.96, "maa": 45.53, "bwt": -23.77}),
        "+ freezing": step(("shared", "sparse", "freezing"), {"last": 42.22, "maa": 47.76, "bwt": -22.41}),
        "+ task routers": step(STEPS, {"last": 44.20, "maa": 49.94, "bwt": -20.98}),
    }

    def __init__(self, options: Options) -> None:
        self.options = options
        self.frozen: dict[str, list[str]] = {}  # branches by layer

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> Branched:
        options = self.options
        self.bank = mixture(
            backbone,
            recipe,
            options.experts,
            published=PUBLISHED,
            shared=options.shared,
            beside=2 * backbone.features.width if options.task_router else 0,  # keys
            fewest=options.top_k + 1,  # of k branches none would be chosen
        )
        self.branches = self.bank.experts
        self.model = Branched(self.bank, backbone, options)
        return self.model

    @hookimpl
    def before_task(self, task: Task) -> None:
        free = [self._free(layer) for layer in self.bank.layers]
        self.model.learn(name_of(task) if self.options.task_router else EVERY, free)
        self.bank.use(self.branches, trainable=self.branches)
        for layer in self.bank.layers:
            for name in self.frozen.get(layer.path, ()):
                layer.bank_up[name].requires_grad_(False)
                if not self.options.shared:
                    layer.bank_down[name].requires_grad_(False)

    @hookimpl
    def loss(self, batch: Batch) -> dict[str, Tensor] | None:
        if not self.options.task_router:
            return None
        model, name = self.model, self.model.prefill.learning
        align = alignment(*model.features(batch), model.image_keys[name], model.text_keys[name])
        return {"branchlora/align": self.options.strength * align}

    @hookimpl
    def after_task(self, batches: Sequence[Batch]) -> dict[str, float]:
        if not (self.options.freezing and len(batches)):
            return {"branchlora/free": float(len(self.branches))}
        p, g = gate_sums(self.model, self.model.mixes, batches, self.options.samples)
        busiest = (g if self.options.choose == "free-first" else p).topk(self.options.top_k).indices.tolist()
        layers, idle, frozen = self.bank.layers, 0, 0
        for layer, places, used in zip(layers, busiest, g, strict=True):
            idle += not used[self._free(layer)].any()
            found = {*self.frozen.get(layer.path, ()), *(self.branches[place] for place in places)}
            self.frozen[layer.path] = sorted(found, key=self.branches.index)
            frozen += len(found)
        free = len(self.branches) - frozen / len(layers)
        return {"branchlora/free": free, "branchlora/idle": idle / len(layers)}

    def _free(self, layer: BankLayer) -> list[int]:
        """Places of a layer's branches that are not frozen."""
        frozen = self.frozen.get(layer.path, ())
        return [place for place, name in enumerate(self.branches) if name not in frozen]

    @hookimpl
    def build_inference_model(self, tasks_seen: Sequence[Task]) -> Branched:
        self.model.answering = [name_of(task) for task in tasks_seen if self.options.task_router]
        return self.model

    def parts(self, model: nn.Module) -> dict[str, list[str]]:
        keys = self.model.image_keys  # as many texts have one
        return {"keys": [f"{kind}_keys.{name}" for kind in ("image", "text") for name in keys]}

    def state_dict(self) -> dict[str, Any]:
        routers = self.model.mixes[0].routers
        return {**super().state_dict(), "tasks": list(routers), "frozen": self.frozen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.frozen = {path: list(names) for path, names in state["frozen"].items()}
        super().load_state_dict(state)
        for name in state["tasks"]:
            self.model.learn(name, [()] * len(self.bank.layers))  # what came first is among the tensors


class Branched(Around):
    """The bank of branches with its routers, and the keys of every task beside it.

    Attributes:
        answering: names of the tasks to choose from by their keys; none while a task is learnt.
        route: (batch, tasks), the choice as ones and zeros.
    """

    def __init__(self, bank: ExpertBank, backbone: Backbone, options: BranchLoRA.Options) -> None:
        super().__init__(bank)
        self.options, self.prefill = options, Prefill(EVERY)
        self._backbone = backbone
        self.image_keys, self.text_keys = nn.ParameterDict(), nn.ParameterDict()  # k_img, k_txt (d,) by task
        number = len(bank.experts)
        self.mixes = [
            FirstToken(layer, number, self.prefill, self.chosen, self.chosen_few) for layer in bank.layers
        ]
        mixes = iter(self.mixes)
        bank.mix(lambda layer: next(mixes))
        self.answering: Sequence[str] = ()

    def learn(self, name: str, free: Sequence[Sequence[int]]) -> None:
        """Let the router and the keys of this name learn and no others; made where they are not there yet.

        Args:
            free: places of the branches that are not frozen, by layer.
        """
        for mix, places in zip(self.mixes, free, strict=True):
            mix.learn(name, places if self.options.choose == "free-first" else None)
        for keys in (self.image_keys, self.text_keys) if self.options.task_router else ():
            if name not in keys:
                start = torch.randn(self._backbone.features.width, **self.bank.layers[0].made)
                keys[name] = nn.Parameter(start * self.bank.config_of_first.init_std)
            for other, key in keys.items():
                key.requires_grad_(other == name)
        self.prefill.learning, self.answering, self.route = name, (), None

    def chosen(self, p: Tensor, first: Tensor | None) -> Tensor:
        """g (rows, N) of p, and of the ones (rows, N) at branches that come first."""
        options = self.options
        return top_gates(p, options.top_k, first, renormalise=options.renormalise) if options.sparse else p

    def chosen_few(self, logits: Tensor, first: Tensor | None) -> Tensor:
        """The same of W_r x₀: the p of some branches divided by their sum are the softmax over these."""
        if self.options.sparse and self.options.renormalise:
            return top_softmax(logits, self.options.top_k, first)
        return self.chosen(logits.softmax(-1), first)

    def prepare(self, batch: Batch) -> None:
        self.prefill.start(batch.first_tokens)
        if self.answering:
            images = torch.stack([self.image_keys[name] for name in self.answering])
            texts = torch.stack([self.text_keys[name] for name in self.answering])
            chosen = similarity(*self.features(batch), images, texts).argmax(1)
            self.route = F.one_hot(chosen, len(self.answering)).float()
            self.prefill.start(batch.first_tokens, self.answering, chosen)

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """e_img (zeros without an image) and e_txt, each (batch, d)."""
        images = self._backbone.features.images([sample.image for sample in batch.samples])
        return images, self._backbone.features.texts([sample.words for sample in batch.samples])

    def active(self) -> dict[str, int]:
        """Parameters that take part in one answer token: A, the chosen branches, and one router per layer."""
        k = self.options.top_k if self.options.sparse else len(self.bank.experts)
        count = {"adapters": 0, "routers": 0}
        for layer, mix in zip(self.bank.layers, self.mixes, strict=True):
            down, up = layer.bank_down["e0"].numel(), layer.bank_up["e0"].numel()
            count["adapters"] += k * up + (1 if self.options.shared else k) * down
            count["routers"] += mix.routers[self.prefill.learning].numel()
        return count


def alignment(images: Tensor, texts: Tensor, image_key: Tensor, text_key: Tensor) -> Tensor:
    """L_align per sample (batch,): features (batch, d) and keys (d,) to the sum of both distances."""
    keys = torch.stack([image_key, text_key])[:, None]
    terms: Tensor = 1 - F.cosine_similarity(torch.stack([images, texts]), keys, dim=-1)
    image_term, text_term = torch.unbind(terms)
    return torch.where(images.any(dim=-1), image_term, 0.0) + text_term


def similarity(images: Tensor, texts: Tensor, image_keys: Tensor, text_keys: Tensor) -> Tensor:
    """Mean cosine of features (batch, d) with keys (tasks, d) of both kinds, (batch, tasks)."""
    return (cosines(images, image_keys) + cosines(texts, text_keys)) / 2
