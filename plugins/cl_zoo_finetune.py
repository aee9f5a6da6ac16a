"""Sequential fine-tuning: one LoRA and the projector learn on, task after task.

The baseline of every paper ("FineTune", "LoRA-FT", "Finetune"); what a method has to beat. No choices are left open:
the adapter is that of the recipe, and the model that has just learnt answers.

Held against:
  paper     arXiv 2106.09685
  code      huggingface/peft@v0.21.2, src/peft/tuners/lora/layer.py
  code      zackschen/CoIN@4122465, CoIN/peft/tuners/lora.py and scripts/LLaVA/Train
  verdict   equal: layer outputs, gradients, dropout and optimiser steps against peft's own layer (tests/oracles/test_finetune.py)
  differs   start of A: theirs is uniform within ±1/√d_in, ours N(0, `adapter.init_std`²) of the recipe, as the mixtures' authors have
            it; at 0.01 nearly the same spread where d_in = 4096 (1/√(3 d_in) = 0.009), a smaller one in narrower models
  variants  none
"""

from __future__ import annotations

from torch import nn

from cl_zoo import Backbone, Recipe, hookimpl
from cl_zoo.nn import adapters


class FineTune:
    """One expert, never reset, never protected."""

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> nn.Module:
        return adapters(backbone, recipe)
