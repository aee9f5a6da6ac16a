"""SMoLoRA: one group of LoRA blocks for what is seen, one for what is asked.

Wang et al., "SMoLoRA: Exploring and Defying Dual Catastrophic Forgetting in Continual Visual Instruction Tuning", ICCV 2025
(https://arxiv.org/abs/2411.13949).

A model that learns task after task forgets both to see and to follow instructions. So a layer has two modules of LoRA blocks, each with a
router of its own, for visual understanding (vu) and for instruction following (if), and weighs for each token what they say:

    G^vu = softmax(top_k(R^vu Avg(x)))                            R^vu (M, d_in)
    G^if = softmax(top_k(R^if f(X^ins)))                          R^if (N − M, e)
    x^vu = s · Σ_{i ≤ M} G^vu_i B_i A_i x,   x^if = s · Σ_{i > M} G^if_i B_i A_i x
    [α, β] = softmax([I^vu x^vu, I^if x^if])                      I^vu, I^if (1, d_out), for each token
    y = W x + α x^vu + β x^if

x are the layer's inputs, Avg their mean over a sequence, X^ins the instruction and f a frozen sentence encoder. There is no further term in the
objective, nothing is frozen or added for a task, and no task is named: instance and instruction find their blocks.

k is 1. A softmax over one entry is 1 whatever the entry, so no router has a gradient: R^vu and R^if stay as they were drawn and divide the
space of inputs at random, once and for all tasks. Tasks of one instruction share its block in every layer; the more alike two instructions
are, the more layers there are in which they share one. With `top_k` above 1 the routers learn, on every task.

The paper's ablation adds the modules and the fusion: `modules` leaves one of them out, `fusion=mean` has α = β = 1/2, where the fusion starts.
`cl-zoo analyze ablate smolora` runs its rows; the first, without modules, is `finetune`. The paper's figures are on its own stream.

Choices the paper leaves open, and ours:
  * Avg: the real tokens of the prompt, image and question, without padding and answer. Tokens that are decoded keep the blocks of their prompt.
    So a question has the same blocks in learning and in answering, alone and in any batch.
  * X^ins: the last line of the sample's own prompt, which is where an instruction stands; `text=prompt` takes all of it.
  * f: the text features of the backbone's CLIP.
  * N and ρ follow from the recipe's budget, which counts I, and routers where they learn: N is the paper's 8, 4 in each module, or as many as
    the budget feeds, and M is half of it, the smaller one where N is odd. A module alone has all N blocks.
  * Routers and I start as any linear layer does. They are parts of the routers: I learns at their rate.
  * Blocks are on all linears of the language model, as for every method here; `adapter.targets=mlp` is the paper's place.

Held against:
  paper     arXiv 2411.13949, read in summaries alone: equations, 4 blocks of rank 16 in each module, k = 1
  code      Minato-Zackie/SMoLoRA@ba50e07, PEFT_SMoLoRA/peft/tuners/smolora.py, llava/train/train_SMoLoRA.py, scripts/SMoLoRA
  code      LAMDA-CL/Prism@7154be2, PEFT/tuners/custom/smolora.py, method/custom/smolora, config/methods/smolora.py
  verdict   equal but for the accidents below: blocks that are chosen, layer outputs, the fusion and all gradients, the start
            (tests/oracles/test_smolora.py)
  differs   X^ins: theirs is a row of a table of instructions that was made in advance, chosen by the number of the task, in answering too, ours
            is the question's own text; a task without its number has no route there
  differs   f: theirs is the mean state of all-MiniLM-L6-v2, ours CLIP's text feature; as the routers are random, another division at random
  differs   padding: theirs averages it too, ours never; with it a question may change its blocks with the batch
  differs   place: theirs is on feed-forward layers and projector, ours on all linears of the language model, and the projector learns as the
            recipe says; nothing with `adapter.targets=mlp` but for the projector
  differs   routers: theirs are frozen from the second task on, ours from the first, as no gradient ever comes; nothing
  differs   dropout: theirs draws a mask for each block, ours one for all blocks of a layer; nothing at dropout 0
  differs   Prism: theirs clips the task's number to the table and may take CLIP's feature of the prompt in its place, and is on
            attention alone by default; tasks beyond the table have the blocks of its last row
  variants  variant=released: Avg over all tokens at hand, in learning those of the answer too, in answering each decoded token by itself
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo import Backbone, Batch, Recipe, hookimpl
from cl_zoo.nn import (
    Around,
    BankLayer,
    ExpertBank,
    PromptMean,
    full_precision,
    mixture,
    per_sample,
    top_softmax,
    weighted,
    widths,
)

PUBLISHED = 8  # blocks of the paper, in both modules together
MODULES = ("visual", "instruction")


def row(**options: Any) -> dict[str, Any]:
    """A row of the paper's ablation of its modules."""
    return {"options": options, "source": "ablation of the modules"}


class SMoLoRA:
    """Two modules of LoRA blocks, routed apart and fused token by token."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        variant: Literal["paper", "released"] = Field(
            "paper", description="Avg over the prompt, for the whole answer, or over all tokens at hand"
        )
        experts: int | None = Field(
            None, ge=1, description="N: blocks of both modules; default: as many of 8 as the budget feeds"
        )
        top_k: int = Field(1, ge=1, description="k: blocks of each module that answer")
        modules: Literal["both", "visual", "instruction"] = Field("both", description="modules of a layer")
        fusion: Literal["adaptive", "mean"] = Field("adaptive", description="α and β: by I, or 1/2")
        text: Literal["instruction", "prompt"] = Field(
            "instruction", description="X^ins: the last line of the prompt, or all of it"
        )

        @model_validator(mode="after")
        def _enough(self) -> SMoLoRA.Options:
            least = (most := self.experts or PUBLISHED) // len(self.present)
            if self.top_k > least:
                raise ValueError(f"top_k is {self.top_k}, a module has {least} of {most} blocks; lower it")
            return self

        @property
        def present(self) -> tuple[str, ...]:
            """Names of the modules."""
            return MODULES if self.modules == "both" else (self.modules,)

        def divided(self, number: int) -> dict[str, int]:
            """How many of so many blocks each module has."""
            first = number // len(self.present)
            return dict(zip(self.present, (first, number - first), strict=False))

        @property
        def fuses(self) -> bool:
            """Whether α and β are learnt."""
            return self.modules == "both" and self.fusion == "adaptive"

    ablations: ClassVar = {
        "VU": row(modules="visual"),
        "IF": row(modules="instruction"),
        "VU, IF": row(fusion="mean"),
        "VU, IF, AF": row(),
    }

    def __init__(self, options: Options) -> None:
        self.options = options

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> Separated:
        options, found = self.options, widths(backbone, recipe.adapter.targets)

        def routers(number: int) -> int:
            """Parameters of R^vu and R^if in all layers."""
            read = {"visual": found.inputs, "instruction": found.linears * backbone.features.width}
            return sum(size * read[name] for name, size in options.divided(number).items())

        bank = mixture(
            backbone,
            recipe,
            options.experts,
            published=PUBLISHED,
            beside=2 * found.outputs if options.fuses else 0,  # I
            fewest=len(options.present) * (options.top_k + 1),  # of k blocks none would be chosen
            routers=routers if options.top_k > 1 else False,
        )
        return Separated(bank, backbone, options)


class Separable(nn.Module):
    """The mix of a layer: G = diag(α G^vu, β G^if).

    Args:
        sizes: number of blocks by module, in the order of the layer's experts.
        width: e.
    """

    def __init__(
        self,
        layer: BankLayer,
        sizes: Mapping[str, int],
        width: int,
        now: PromptMean,
        options: SMoLoRA.Options,
    ) -> None:
        super().__init__()
        self.options, self.now, self.sizes = options, now, sizes
        self._of = (layer,)  # not as a module: the layer holds this one
        inputs = {"visual": layer.in_features, "instruction": width}
        self.routers = nn.ModuleDict(
            {name: nn.Linear(inputs[name], size, bias=False, **layer.made) for name, size in sizes.items()}
        )
        self.routers.requires_grad_(options.top_k > 1)  # of one entry the softmax is 1
        if options.fuses:
            self.importance = nn.Linear(layer.out_features, 2, bias=False, **layer.made)  # I^vu and I^if

    def forward(self, z: Tensor, x: Tensor, ranks: Sequence[int]) -> Tensor:
        """z (batch, tokens, Σr) to the same shape."""
        z = weighted(z, per_sample(self.gates(x), z), ranks)
        if not self.options.fuses:
            return z / len(self.sizes)
        first = next(iter(self.sizes.values()))
        halves = [sum(ranks[:first]), sum(ranks[first:])]
        return weighted(z, self.fusion(z, halves).to(z), halves)

    def gates(self, x: Tensor) -> Tensor:
        """G (rows, N). In learning always from x: a recomputed forward must see what the first one saw."""
        kept, k = self.now.kept, self.options.top_k
        if not self.training and self in kept:
            return kept[self]
        with torch.set_grad_enabled(torch.is_grad_enabled() and k > 1):
            g = torch.cat([top_softmax(logits, k) for logits in self.logits(x)], -1)
        if self.training:
            kept.pop(self, None)
        elif self.options.variant == "paper":
            kept[self] = g.detach()
        return g

    def logits(self, x: Tensor) -> list[Tensor]:
        """R^vu Avg(x) and R^if f(X^ins), each (rows, blocks of the module)."""
        with full_precision(x.device):
            found = []
            for name, router in self.routers.items():
                weight = cast(Tensor, router.weight)
                seen = self.now.mean(x, weight.dtype) if name == "visual" else self.now.beside(x)
                found.append(F.linear(seen.to(weight.dtype), weight))
            return found

    def fusion(self, z: Tensor, halves: Sequence[int]) -> Tensor:
        """[α, β] (batch, tokens, 2); I^vu x^vu is taken as s (I^vu B) z, without x^vu itself."""
        layer, weight, cuts = self._of[0], self.importance.weight, list(halves)
        with full_precision(z.device):
            up = torch.cat([layer.bank_up[name] for name in layer.experts], 1)
            parts = zip(
                torch.split(z.to(weight.dtype), cuts, -1), weight, torch.split(up, cuts, 1), strict=True
            )
            return torch.stack([layer.scale * part @ (own @ ups) for part, own, ups in parts], -1).softmax(-1)


class Separated(Around):
    """The bank of blocks with its routers; `prepare` tells them prompts and instructions."""

    def __init__(self, bank: ExpertBank, backbone: Backbone, options: SMoLoRA.Options) -> None:
        super().__init__(bank)
        self.options, self.now, self._backbone = options, PromptMean(), backbone
        sizes = options.divided(len(bank.experts))
        self.mixes = [
            Separable(layer, sizes, backbone.features.width, self.now, options) for layer in bank.layers
        ]
        mixes = iter(self.mixes)
        bank.mix(lambda layer: next(mixes))

    def prepare(self, batch: Batch) -> None:
        whole = self.options.variant == "released"
        mask = batch.inputs["attention_mask"].bool() if whole else batch.prompt_mask
        texts = [sample.words.strip() for sample in batch.samples]
        if self.options.text == "instruction":
            texts = [text.rpartition("\n")[2] for text in texts]
        self.now.start(mask, self._backbone.features.texts(texts))

    def active(self) -> dict[str, int]:
        """Parameters that take part in one answer token: k blocks of each module, routers and I."""
        count = {"adapters": 0, "routers": 0}
        for layer, mix in zip(self.bank.layers, self.mixes, strict=True):
            block = layer.bank_down["e0"].numel() + layer.bank_up["e0"].numel()
            count["adapters"] += self.options.top_k * len(mix.sizes) * block
            count["routers"] += sum(weight.numel() for weight in mix.parameters())
        return count
