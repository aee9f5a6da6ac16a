"""Sequential fine-tuning: one LoRA and the projector learn on, task after task.

The baseline of every paper ("FineTune", "LoRA-FT", "Finetune"); what a method has to beat. No choices are left open:
the adapter is that of the recipe, and the model that has just learnt answers.
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
