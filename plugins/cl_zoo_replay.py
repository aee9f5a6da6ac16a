"""Replay: some samples of every old task are learnt again with each new one.

Robins, "Catastrophic forgetting, rehearsal and pseudorehearsal", Connection Science 1995, is the idea's usual source; the
form here is that of the memory files of CoIN (https://arxiv.org/abs/2403.08350) and of the replay baselines after it:

    M_t = M_{t−1} ∪ {`samples` of task t, at random, none twice};  task t learns D_t ∪ M_{t−1}, shuffled

It trains what its stack trains: alone the one adapter and projector of fine-tuning, or, as in `hide+replay`, what another
method has placed.

Choices, and ours:
  * 100 samples per task, the smallest of CoIN's memory files (100, 500 and 1000 per data set). A buffer of fixed size, as
    others keep, would need to drop old samples as tasks come.
  * The number of optimiser steps stays that of the task, so batches grow; the ledger counts what is seen in addition.
  * Images in files stay files: their path is kept. Images in memory are kept as pixels, which the ledger counts.

Held against:
  paper     arXiv 2403.08350
  code      zackschen/CoIN@586087e, playground/Instructions/Grounding/memory_create.py, playground/Instructions/Memory/memory_create.py
            and llava/train/train.py, from its history
  verdict   equal: what can be drawn and how likely, none twice, and whose memory a task learns (tests/oracles/test_replay.py)
  differs   steps: theirs appends the memory to the task, which then takes more steps, ours keeps the number of steps and batches grow;
            the budget stays equal over methods
  differs   seed: theirs draws from numpy's generator without a seed, ours from the run's; other samples, the same ones again
  differs   small tasks: theirs fails where a data set has fewer samples than are to be kept, ours keeps all; nothing elsewhere
  variants  none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from cl_zoo import Batch, Sample, hookimpl
from cl_zoo.nn import draw_samples, pack_sample, unpack_sample


class Replay:
    """A memory of old samples."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        samples: int = Field(100, ge=1, description="samples kept of each task")

    def __init__(self, options: Options) -> None:
        self.samples = options.samples
        self.memory: list[Sample] = []  # M

    @hookimpl
    def rehearse(self) -> Sequence[Sample]:
        return list(self.memory)

    @hookimpl
    def after_task(self, batches: Sequence[Batch]) -> dict[str, float]:
        self.memory += draw_samples(batches, self.samples)
        return {"replay/memory": len(self.memory)}

    def state_dict(self) -> dict[str, Any]:
        return {"memory": [pack_sample(sample) for sample in self.memory]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory = [unpack_sample(kept) for kept in state["memory"]]
