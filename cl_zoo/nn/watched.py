"""A token-wise gate that gathers, while its experts learn, what it sees: for methods that choose or change by it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl_zoo.nn.layer import BankLayer, full_precision
from cl_zoo.nn.mixes import PerToken
from cl_zoo.nn.routers import router
from cl_zoo.nn.spectra import Sketch
from cl_zoo.nn.tokens import Tokens


class Watched(PerToken):
    """`PerToken` of a router of its own, with sums over the real tokens of an optimiser step on this process.

    Args:
        omega: Ω (d_in, m) of the sketch.
        tokens: which of them are real.

    Attributes:
        sums: (2, E), Σ g_i(x) and Σ g_i(x) ‖x‖².
        sketch: of Σ x xᵀ, fed where `looks` says so.
    """

    router: nn.Linear

    def __init__(self, layer: BankLayer, experts: int, omega: Tensor, tokens: Tokens) -> None:
        super().__init__(router(layer, experts))
        self.experts, self.sketch, self.tokens = experts, Sketch(omega), tokens
        self._forward_seen = torch.empty(0)  # none: as `tokens` marks a module that has seen one
        self.begin(looks=False)

    def begin(self, *, looks: bool, sums: Tensor | None = None) -> None:
        """A new step: what was gathered is forgotten.

        Args:
            looks: the sketch is fed in its forwards.
            sums: zeros (2, E) to add to, of several gates in one piece for instance; by default its own.
        """
        self.looks = looks
        self.sums = self.sketch.omega.new_zeros(2, self.experts) if sums is None else sums
        self.sketch.clear()

    def gates(self, x: Tensor) -> Tensor:
        """g(x) (..., E); in training they are gathered, once per forward where activations are recomputed."""
        g = super().gates(x)
        if self.training and torch.is_grad_enabled() and self.tokens.first(self):
            with full_precision(x.device):
                self._gather(g.detach(), x.detach(), self.tokens.real(x))
        return g

    def _gather(self, g: Tensor, x: Tensor, real: Tensor) -> None:
        g, x, real = ((g * real).to(self.sums).flatten(0, -2), x.flatten(0, -2), real.flatten(0, -2))
        energy = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=g.dtype).square()
        self.sums += torch.stack([g.sum(0), (g * energy).sum(0)])
        if self.looks:
            self.sketch.add(x, real)
