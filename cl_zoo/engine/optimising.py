"""The optimiser and its schedule, the same for every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from cl_zoo.engine.together import Together
from cl_zoo.recipe.recipe import Recipe


def make_optimizer(
    parts: Mapping[str, Sequence[nn.Parameter]],
    recipe: Recipe,
    method_of: Callable[[nn.Parameter], str] = lambda weight: "",
) -> torch.optim.Optimizer:
    """AdamW with one group for all weights of one rate: the recipe's for their part and method (`method_of` names whose part a weight is in)."""
    groups: dict[float, list[nn.Parameter]] = {}
    for part, weights in parts.items():
        for weight in weights:
            groups.setdefault(recipe.rate(part, method_of(weight)), []).append(weight)
    rated = [{"params": weights, "lr": rate} for rate, weights in groups.items()]
    # on lists on every device: the same bits as one after the other, in fewer calls
    return Together(rated, betas=recipe.betas, weight_decay=recipe.weight_decay, foreach=True)


def clip(gradients: Sequence[Tensor], most: float, norm: Tensor) -> None:
    """Scale gradients whose norm is given down to a norm of `most`, as `torch.nn.utils.clip_grads_with_norm_` does."""
    if gradients:
        torch._foreach_mul_(list(gradients), torch.clamp(most / (norm + 1e-6), max=1.0))


def rate(step: int, total: int, recipe: Recipe) -> float:
    """Factor on the learning rate: linear warm-up over ⌈warmup · total⌉ steps, then a cosine to zero or constant."""
    warm = math.ceil(recipe.warmup * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
