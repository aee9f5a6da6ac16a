"""HydraLoRA: one shared down-projection, several heads.

Tian et al., "HydraLoRA: An Asymmetric LoRA Architecture for Efficient Fine-Tuning", NeurIPS 2024
(https://arxiv.org/abs/2404.19245).

LoRAs of different data agree in A and differ in B. So a layer has one A for all and N heads B_i, and a router of its own
weights the heads for each token:

    ω(x) = softmax(W_g x)                W_g (N, d_in), without bias
    y = W x + s · Σ_i ω_i(x) B_i A x     A (ρ, d_in), B_i (d_out, ρ)

It was made for many tasks at once; here it learns them one after the other, nothing is frozen or reset. It is what
BranchLoRA starts from: the same branches without its top-k, its freezing and its routers per task.

Choices the paper leaves open, and ours:
  * N and ρ follow from the recipe's budget, which counts A once and the routers; the scale s is the recipe's.
  * N = 4 as in the released code, or as many as the budget feeds. (The paper also finds N by clustering the training texts;
    a stream does not show them in advance.)
  * All linear layers of the language model carry heads, as for every method here.
  * A starts as in the recipe and every B at zero, so in the very first step only the B receive a gradient.

Held against:
  paper     arXiv 2404.19245
  code      Clin0212/HydraLoRA@afb693b, HydraLoRA/peft/tuners/lora.py and HydraLoRA/fine-tuning.sh
  verdict   equal: layer outputs and gradients (tests/oracles/test_hydralora.py)
  differs   place: theirs adapts the feed-forward layers only, ours all linears of the language model; attention learns too
  differs   rank: theirs has r = 4 in A and in each head and α = 32, so s = 8, ours what the recipe's budget leaves for each and the
            recipe's s; another size and another step, the same function
  differs   start of A: theirs is uniform within ±1/√d_in, ours N(0, `adapter.init_std`²) of the recipe; at 0.01 the spread is
            nearly theirs where d_in = 4096 (1/√(3 d_in) = 0.009) and smaller in narrower models
  differs   dropout: theirs draws a mask for each head, ours one for all heads of a layer; nothing at dropout 0
  differs   tasks: theirs learns all of them at once, ours one after the other; it is no method against forgetting of its authors'
  variants  none
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from cl_zoo import Backbone, Recipe, hookimpl
from cl_zoo.nn import ExpertBank, SharedDown, TokenGate, mixture, router


class HydraLoRA:
    """One A, N heads B and a token-wise softmax router in every layer, all of which learn on every task."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        heads: int | None = Field(
            None, ge=1, description="N: number of heads B; default: as many of 4 as the budget feeds"
        )

    def __init__(self, options: Options) -> None:
        self.options = options

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> ExpertBank:
        bank = mixture(backbone, recipe, self.options.heads, published=4, shared=True)
        bank.mix(lambda layer: SharedDown(TokenGate(router(layer, len(bank.experts)))))
        return bank
