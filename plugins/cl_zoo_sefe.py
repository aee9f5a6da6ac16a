"""SEFE: RegLoRA, its part against essential forgetting.

Chen et al., "SEFE: Superficial and Essential Forgetting Eliminator for Multimodal Continual Instruction Tuning", ICML 2025
(https://arxiv.org/abs/2505.02486).

After every task its LoRA is merged into the model and a fresh one starts. The largest entries of each finished update are
where that task's knowledge is taken to stand; later updates are kept small there:

    K_t = places of the largest M % of |B_t A_t|, for each adapted linear          scale s not applied
    L(t) = L_task + λ · mean over linears of mean over (i, j) in K_1 … K_t−1 of |(B_t A_t)_ij|
    y = W x + s Σ_i≤t B_i A_i x                                                    in training and in answering

Choices, and ours (M, λ and the form of the term are the released code's):
  * A place that several tasks hold counts once for each, as in the released code, whose lists are joined with repeats.
  * B A is formed whole, one product of r · d_out · d_in, and the places are read from it: gathering a row of B and a column
    of A for each place would move r numbers where this moves one. It is formed again in the backward pass.

Held against:
  paper     arXiv 2505.02486
  code      jinpeng0528/SEFE@2f61efe, key_elements_identification.py, llava/model/language_model/modeling_llama.py and llava_llama.py,
            scripts/merge_lora_weights.py and scripts/Train
  verdict   equal: key elements, the term and its gradients, merged weights and outputs (tests/oracles/test_sefe.py)
  differs   data: theirs has a fifth of the training questions rewritten into five answer formats by a large language model (answer style
            diversification, the paper's part against superficial forgetting), ours has the benchmark's questions; half of the
            method is not here, as it is a matter of the data
  differs   merging: theirs writes a finished update into W, ours keeps it as a frozen expert beside W; the same function in answering,
            exact in any precision and free to be looked at, but a training step that grows with the tasks
  differs   dropout: in theirs a merged task sees all of x, in ours what the learning one sees; nothing at dropout 0, above it noise on
            the merged tasks while the next one learns
  differs   start of A: theirs is uniform within ±1/√d_in, ours N(0, `adapter.init_std`²) of the recipe; at 0.01 nearly the same spread
            where d_in = 4096 (1/√(3 d_in) = 0.009), a smaller one in narrower models
  differs   linears: theirs divides the sum over linears by 224, those of a 7B model, ours by their number; the same there, and λ means
            the same on any other model
  differs   smallest share: theirs rounds M down, to no place at all in a small matrix, ours keeps at least one; nothing from 50
            entries on
  variants  none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cl_zoo import Backbone, Recipe, Task, hookimpl
from cl_zoo.nn import ExpertBank, KeepsExperts, adapters, full_precision, name_of


class SEFE(KeepsExperts):
    """A fresh LoRA per task on the merged ones, held small where theirs are large."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        share: float = Field(
            0.02, gt=0, le=1, description="M: share of an update's entries that are key elements"
        )
        strength: float = Field(
            2.5e3, ge=0, description="λ: weight of the new update's size at the key elements"
        )

    def __init__(self, options: Options) -> None:
        self.options = options
        self.key_elements: dict[str, Tensor] = {}  # K by layer, places in the flattened update, int32

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> ExpertBank:
        self.bank = adapters(backbone, recipe, "t0")
        return self.bank

    @hookimpl
    def before_task(self, task: Task) -> None:
        self.bank.learn(task, stacked=True)  # the merged ones stand beneath it

    @hookimpl
    def loss(self, task: Task) -> dict[str, Tensor] | None:
        if not self.key_elements or not self.options.strength:
            return None  # nothing to protect yet
        new = name_of(task)
        sizes = [
            # kept for the backward pass, the places of all layers would be the largest tensors of a training step
            checkpoint(
                size_at,
                layer.bank_down[new],
                layer.bank_up[new],
                self.key_elements[layer.path],
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for layer in self.bank.layers
        ]
        return {"sefe": self.options.strength * torch.stack(sizes).mean()}

    @hookimpl
    def after_task(self, task: Task) -> None:
        new = name_of(task)
        for layer in self.bank.layers:
            here = key_elements(layer.bank_down[new], layer.bank_up[new], self.options.share)
            held = self.key_elements.get(layer.path)
            self.key_elements[layer.path] = here if held is None else torch.cat([held, here])

    @hookimpl
    def build_inference_model(self, tasks_seen: Sequence[Task]) -> ExpertBank:
        self.bank.answer(tasks_seen)  # the sum of all
        return self.bank

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "key_elements": self.key_elements}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.key_elements = dict(state["key_elements"])


@torch.no_grad()
def key_elements(down: Tensor, up: Tensor, share: float) -> Tensor:
    """Places of the largest entries of |BA|, (⌊share · d_out · d_in⌋,) at least one, in the flattened update, int32.

    Args:
        down, up: A (r, d_in) and B (d_out, r).
    """
    with full_precision(up.device):  # in bf16 many entries would be equal
        update = (up @ down).abs().flatten()
    return update.topk(max(1, int(share * update.numel()))).indices.int()


def size_at(down: Tensor, up: Tensor, places: Tensor) -> Tensor:
    """Mean of |BA| over places in the flattened update, a scalar; a place that is named twice counts twice."""
    return (up @ down).flatten().index_select(0, places).abs().mean(dtype=torch.float32)
