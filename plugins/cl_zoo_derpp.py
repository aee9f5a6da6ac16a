"""DER++: Dark Experience Replay, with labels.

Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple Baseline", NeurIPS 2020
(https://arxiv.org/abs/2004.07211).

Old samples are kept with what the model said of them then, its logits. They are learnt again with each new task: their labels
as by `replay`, and the logits, which say more than the label does:

    L = E_(x,y)~task [ℓ(y, h(x))] + α E_(x,z)~memory [‖z − h(x)‖²] + β E_(x,y)~memory [ℓ(y, h(x))]               (Eq. 6)

with h the logits of the learning model, z those that are kept, ℓ the model's own loss.

Choices the paper leaves open for language models, and ours:
  * Positions: every answer token of a kept sample, teacher-forced, has logits z over the whole vocabulary, kept in fp32; with `top`
    only the largest of them and for which words they stand. ‖·‖² is the mean over those that are kept, as in the public code, to which
    its α belongs: a sum over a vocabulary would be thousands of times as large.
  * Memory: `samples` of each task at random, none twice, as `replay` keeps them, with the logits in evaluation mode of the model
    that has just learnt the task, after the method's own `after_task`.
  * Minibatches: the memory is shuffled into the task, so batches grow and the number of steps stays. Both terms take the same old
    samples. All answer tokens of the global batch weigh the same, those of old samples α and β times for their two terms.
  * α and β: the public code's for split CIFAR-100 with 500 samples.

Whole vocabularies are large: 100 samples of 10 answer tokens are 32 million numbers a task on LLaVA-1.5 (32,064 words).

Held against:
  paper     arXiv 2004.07211
  code      aimagelab/mammoth@e75a491, models/derpp.py, utils/buffer.py and models/config/derpp.yaml
  verdict   equal but for what is in a minibatch: both terms and their gradients at each answer token, and the objective of a step
            (tests/oracles/test_derpp.py)
  differs   buffer: theirs is a reservoir of fixed size over all tasks with the logits of the step in which a sample came by, ours
            has as many samples of each task with the logits of its end; it grows with the tasks and old logits are not those
            of a half-learnt task
  differs   draws: theirs draws two minibatches of fixed size from the buffer in each step, one for each term, ours shuffles all of it
            into the task, once an epoch, for both; how often an old sample is learnt follows from the sizes of task and memory
  differs   means: theirs has one mean over each minibatch, ours one over all answer tokens of the global batch; α and β weigh the
            less, the smaller the memory's share of a batch is
  differs   norm: the paper's is the squared norm, theirs and ours is its mean over the entries; α means the same for any vocabulary
  differs   augmentation: theirs changes the pictures of the buffer anew each time, ours has the backbone's own preparation; logits
            are those of the same picture
  variants  `beta=0` is DER, logits alone; `alpha=0,beta=1` is `replay`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from cl_zoo import Backbone, Batch, Sample, answer_losses, forward, hookimpl
from cl_zoo.nn import draw_samples, evaluating, pack_sample, unpack_sample

TOGETHER = 8
"""Samples that are answered in one forward for their logits."""


@dataclass(frozen=True)
class Old(Sample):
    """A kept sample, which says where its logits stand.

    Attributes:
        place: in the memory.
    """

    place: int = -1


class DERpp:
    """A memory of old samples and of what was answered to them."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        samples: int = Field(100, ge=1, description="samples kept of each task")
        alpha: float = Field(0.3, ge=0, description="α in Eq. 6: weight of the old logits")
        beta: float = Field(0.5, ge=0, description="β in Eq. 6: weight of the old labels")
        top: int | None = Field(
            None,
            ge=1,
            description="logits kept of each answer token, the largest; default: the whole vocabulary",
        )

    def __init__(self, options: Options) -> None:
        self.options = options
        self.memory: list[Sample] = []  # x and y
        self.logits: list[Tensor] = []  # z, (answer tokens, vocabulary or `top`) each, on the CPU
        self.words: list[Tensor] = []  # with `top`: which words, of the same shapes

    @hookimpl
    def rehearse(self) -> Sequence[Sample]:
        return [Old(**vars(sample), place=place) for place, sample in enumerate(self.memory)]

    @hookimpl
    def loss(self, batch: Batch, outputs: Any) -> dict[str, Tensor] | None:
        old = {row: sample for row, sample in enumerate(batch.samples) if isinstance(sample, Old)}
        if not old:
            return None  # the first task, or a batch of new samples only
        terms: dict[str, Tensor] = {}
        if self.options.alpha:
            distances = torch.zeros(batch.answer_mask.shape, device=outputs.logits.device)
            for row, sample in old.items():
                tokens = batch.answer_mask[row]
                distances[row, tokens] = self._distance(outputs.logits[row, tokens], sample.place)
            terms["derpp"] = self.options.alpha * distances
        if self.options.beta != 1:  # the engine's own term has their labels once
            rows = torch.zeros(len(batch), 1, device=outputs.logits.device)
            rows[list(old)] = self.options.beta - 1
            terms["derpp/labels"] = rows * answer_losses(outputs, batch)
        return terms

    def _distance(self, logits: Tensor, place: int) -> Tensor:
        """Of the learning model's logits (answer tokens, vocabulary) from the kept ones: (answer tokens,) in fp32."""
        kept, logits = self.logits[place].to(logits.device), logits.float()
        if self.words:
            logits = logits.gather(-1, self.words[place].to(logits.device).long())
        return (logits - kept).square().mean(-1)

    @hookimpl
    def after_task(self, model: nn.Module, batches: Sequence[Batch], backbone: Backbone) -> dict[str, float]:
        drawn = draw_samples(batches, self.options.samples)
        for start in range(0, len(drawn), TOGETHER):
            batch = backbone.batch(drawn[start : start + TOGETHER], answers=True)
            with evaluating(model):
                outputs = forward(model, batch)
            for sample, logits, tokens in zip(batch.samples, outputs.logits, batch.answer_mask, strict=True):
                self._keep(sample, logits[tokens].float().cpu())
        return {"derpp/memory": len(self.memory)}

    def _keep(self, sample: Sample, logits: Tensor) -> None:
        if self.options.top is not None:
            logits, words = logits.topk(min(self.options.top, logits.shape[-1]), dim=-1)
            self.words.append(words.to(torch.int32))
        self.memory.append(sample)
        self.logits.append(logits)

    def state_dict(self) -> dict[str, Any]:
        return {
            "memory": [pack_sample(sample) for sample in self.memory],
            "logits": self.logits,
            "words": self.words,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory = [unpack_sample(kept) for kept in state["memory"]]
        self.logits, self.words = ([one.cpu() for one in state[name]] for name in ("logits", "words"))
