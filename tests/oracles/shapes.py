"""What the oracles of methods share: models of random shapes in fp64, and features that are drawn instead of seen."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch, forward
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.nn.layer import BankLayer
from cl_zoo.recipe.recipe import Recipe, build_recipe
from cl_zoo.tasks import Sample, Task

CASES = settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
"""Shapes are small as they are drawn: a failure is shown at once and not made smaller."""

SEEDS = st.integers(0, 2**32 - 1)
SMALL = st.integers(1, 4)
WIDTHS = st.lists(st.integers(2, 7), min_size=2, max_size=2)
"""d_in and d_out of a linear."""


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def assert_equal(found: Tensor, literal: Tensor, tolerance: float = 1e-10) -> None:
    """Entry by entry, in fp64; `tolerance` is relative for large entries and absolute for small ones."""
    assert found.dtype == literal.dtype == torch.float64 or tolerance > 1e-8, "compare in fp64"
    torch.testing.assert_close(found.double(), literal.double(), rtol=tolerance, atol=tolerance)


class Decoder(nn.Module):
    """Decoder layers of two linears each, to which a test gives inputs of its own, and a table of token embeddings."""

    def __init__(self, layers: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attn": nn.Linear(d_in, d_out, dtype=torch.float64),
                    "mlp": nn.Linear(d_out, d_in, bias=False, dtype=torch.float64),
                }
            )
            for _ in range(layers)
        )
        self.tokens = nn.Embedding(13, d_in, dtype=torch.float64)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.tokens


class Drawn:
    """A feature encoder whose features are random, one for every image and every text, and always the same."""

    dtype = torch.float64

    def __init__(self, seed: int, width: int = 5, text_width: int = 6) -> None:
        self.seed, self.width, self.text_width = seed, width, text_width

    def images(self, images: Sequence[Any]) -> Tensor:
        """A row of zeros where there is no image."""
        rows = [self._row("image", one, self.width) * (one is not None) for one in images]
        return torch.stack(rows)

    def texts(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([self._row("text", one, self.width) for one in texts])

    def text_states(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([self._row("state", one, self.text_width) for one in texts])

    def _row(self, kind: str, what: object, width: int) -> Tensor:
        number = hashlib.sha256(f"{self.seed} {kind} {what}".encode()).digest()[:4]
        return (normal(draws(int.from_bytes(number, "big")), width) + 0.5).to(self.dtype)


class Stage:
    """A backbone as far as a method asks for it: a decoder of random shapes in fp64 and drawn features."""

    name, takes_vectors, linears = "stage", True, r"layers\.\d+\.\w+"

    def __init__(self, seed: int, layers: int, d_in: int, d_out: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = Decoder(layers, d_in, d_out)
        self.features, self.device = Drawn(seed), torch.device("cpu")


def recipe(rank: int, scale: float = 2.0) -> Recipe:
    """LoRA of a rank, without dropout."""
    return build_recipe({"adapter.rank": rank, "adapter.scale": scale, "adapter.dropout": 0})


def tasks(count: int) -> list[Task]:
    return [Task(index, f"task {index}", "", 4) for index in range(count)]


def samples(generator: torch.Generator, count: int, kind: object) -> list[Sample]:
    """Questions of a kind, about every third without an image."""
    bare = torch.rand(count, generator=generator) < 0.3
    return [
        Sample(f"{kind}-{i}", None if bare[i] else Path(f"{kind}-{i}.png"), f"question {kind} {i}", "yes")
        for i in range(count)
    ]


def batch(rows: Sequence[Sample]) -> Batch:
    """Samples without tensors: what is asked of an encoder."""
    return Batch(tuple(rows), {})


def learn_by_drawing(
    bank: ExpertBank, generator: torch.Generator, size: float = 1.0
) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """Put random numbers in everything that learns; copies of A and B by (layer, expert)."""
    drawn = {}
    for layer in bank.layers:
        for name in layer.experts:
            down, up = layer.bank_down[name], layer.bank_up[name]
            if up.requires_grad:
                for weight in (down, up):
                    weight.data = size * normal(generator, *weight.shape).to(weight)
                drawn[layer.path, name] = (down.detach().clone(), up.detach().clone())
    return drawn


def states(layer: BankLayer, generator: torch.Generator, rows: int, tokens: int = 3) -> Tensor:
    """Random inputs of a linear, (rows, tokens, d_in)."""
    return normal(generator, rows, tokens, layer.in_features)


def cosine(a: Tensor, b: Tensor) -> float:
    """Σ a_i b_i / √(Σ a_i² Σ b_i²) by a loop; zero where one of the two is zero."""
    product = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    squares = sum(float(x) ** 2 for x in a) * sum(float(y) ** 2 for y in b)
    return product / squares**0.5 if squares else 0.0


@torch.no_grad()
def logits_by_hand(backbone: Backbone, sample: Sample, update: Callable[[str], Tensor | None]) -> Tensor:
    """Logits of one sample alone in an untouched backbone, after `update(name)` was added to each linear's weight."""
    changed = 0
    for name, module in backbone.model.named_modules():
        more = update(name) if isinstance(module, nn.Linear) else None
        if more is not None:
            module.weight += more
            changed += 1
    assert changed, "no linear was changed"
    answered: Tensor = forward(backbone.model, backbone.batch([sample], answers=True)).logits[0]
    return answered
