"""MoELoRA: a mixture of LoRA experts that learns on over the tasks.

Chen et al., "CoIN: A Benchmark of Continual Instruction tuNing for Multimodel Large Language Model", NeurIPS 2024
(https://arxiv.org/abs/2403.08350).

Every linear layer of the language model carries E small experts; a router of its own weights them for each token, so that
tasks may come to use different experts and disturb each other less:

    g(x) = softmax(W_g x)                  W_g (E, d_in), without bias
    y = W x + s · Σ_e g_e(x) B_e A_e x     A_e (ρ, d_in), B_e (d_out, ρ)

There is no further term in the objective. All experts and routers learn on every task, and the model that has just learnt
answers by the same forward: a token finds its experts itself, no task is named.

Choices the paper leaves open, and ours:
  * E and ρ follow from the recipe's budget, which counts the routers; all experts keep the scale s of the recipe, as in the
    released code, where rank 128 is shared by 8 experts at s = 2. A gate that is the same for all experts therefore gives
    one LoRA of rank ρE at scale s/E.
  * E = 8 as in the released scripts, or as many as the budget feeds. (Others set it to the number of tasks, which a stream
    need not tell in advance.)
  * Dense: no top-k, no noise, no term that balances the load; the released code has none either.
  * The router starts as any linear layer does and learns at the rate of the adapters, unless `lr.routers` says otherwise.

Held against:
  paper     arXiv 2403.08350
  code      zackschen/CoIN@4122465, CoIN/peft/tuners/coinmoelora.py and scripts/LLaVA/Train_MOE
  verdict   equal: layer outputs and gradients, the start of A, B and routers (tests/oracles/test_moelora.py)
  differs   dropout: theirs draws a mask for each expert, ours one for all experts of a layer, and the router sees x without it in
            both; nothing at dropout 0, above it the experts of a layer are given the same part of x
  variants  none
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from cl_zoo import Backbone, Recipe, hookimpl
from cl_zoo.nn import ExpertBank, PerToken, mixture, router


class MoELoRA:
    """E experts and a token-wise softmax router in every layer, all of which learn on every task."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        experts: int | None = Field(
            None, ge=1, description="E: number of experts; default: as many of 8 as the budget feeds"
        )

    def __init__(self, options: Options) -> None:
        self.options = options

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> ExpertBank:
        bank = mixture(backbone, recipe, self.options.experts, published=8)
        bank.mix(lambda layer: PerToken(router(layer, len(bank.experts))))
        return bank
