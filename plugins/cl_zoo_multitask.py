"""Multi-task training: one LoRA and the projector on the shuffled union of all tasks, the upper bound of the papers' tables.

The union is learnt as one task at the recipe's budget, so it takes as many optimiser steps as the stream does in all
(up to the last, short batches). Its matrix has one row.

Held against:
  paper     arXiv 2503.12941, the multi-task rows of its tables
  code      zackschen/CoIN@586087e, playground/Instructions_slim/Multitask/create.py
  verdict   equal: every sample once per epoch, in an order that mixes all tasks, one LoRA and the projector
            (tests/plugins/test_baselines.py)
  differs   order: theirs is shuffled once, without a seed, and written to a file, ours anew for every epoch
            by the run's seed; the samples are the same
  variants  none
"""

from __future__ import annotations

from torch import nn

from cl_zoo import Backbone, Recipe, hookimpl
from cl_zoo.nn import adapters


class MultiTask:
    """`finetune` without an order of tasks."""

    protocol = "joint"

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> nn.Module:
        return adapters(backbone, recipe)
