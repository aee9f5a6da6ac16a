"""Banks of random shape in fp64, without a language model, and how an oracle is held against one.

An oracle writes out once more what a paper's equations or its authors' code compute, as loops on plain tensors. Here is what all of them
need: shapes at random, a chain of linears that stands for the language model, and the comparison of outputs and of gradients.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo.batches import Batch
from cl_zoo.nn import BankLayer, ExpertBank
from cl_zoo.recipe.recipe import Recipe, build_recipe
from cl_zoo.tasks import Sample

EXACT = {"rtol": 0.0, "atol": 1e-10}
"""How near two computations in fp64 are."""

Literal = Callable[[BankLayer, Tensor], Tensor]
"""What a layer (d_in to d_out) makes of its input (rows, tokens, d_in), written out."""


@dataclass(frozen=True)
class Shape:
    """One draw.

    Attributes:
        rows, tokens: of the input, padding included.
        padding: tokens on the left of each row that are padding.
        widths: the chain's; its linear n maps widths[n] to widths[n + 1].
        experts, rank: how many there are, and r of each.
        scale: s.
        bias: whether the linears have one.
    """

    seed: int
    rows: int
    tokens: int
    padding: tuple[int, ...]
    widths: tuple[int, ...]
    experts: int
    rank: int
    scale: float
    bias: bool

    @staticmethod
    def drawn(seed: int) -> Shape:
        draw = random.Random(seed)
        rows, tokens = draw.randint(1, 3), draw.randint(2, 4)
        return Shape(
            seed,
            rows,
            tokens,
            tuple(draw.randrange(tokens) for _ in range(rows)),
            tuple(draw.randint(3, 7) for _ in range(draw.randint(2, 4))),
            draw.randint(2, 5),
            draw.randint(1, 4),
            draw.choice([0.5, 1.0, 2.0, 8.0]),
            draw.random() < 0.5,
        )

    def __str__(self) -> str:
        return f"{self.rows}x{self.tokens} tokens, {self.experts} experts of rank {self.rank} on {'-'.join(map(str, self.widths))}"

    def recipe(self, **settings: object) -> Recipe:
        """One that gives each expert its rank, without dropout."""
        adapter = {"rank": self.rank, "scale": self.scale, "dropout": 0, **settings}
        return build_recipe(
            {"budget": "published", **{f"adapter.{key}": value for key, value in adapter.items()}}
        )

    def states(self) -> Tensor:
        """An input of the chain (rows, tokens, d), which has a gradient."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.rows, self.tokens, self.widths[0])
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    def batch(self, x: Tensor, samples: Sequence[Sample] | None = None) -> Batch:
        """The input as a batch, with its padding."""
        mask = torch.ones(x.shape[:2], dtype=torch.long)
        for row, wide in enumerate(self.padding):
            mask[row, :wide] = 0
        bare = [Sample(str(row), None, f"question {row}", "answer") for row in range(len(x))]
        return Batch(tuple(samples or bare), {"x": x, "attention_mask": mask})


SHAPES = [Shape.drawn(seed) for seed in range(10)]
"""What every oracle is held on."""


class Chain(nn.Module):
    """Linears one after the other with a tanh behind each: what a bank is placed on, and what it is asked through."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        pairs = zip(shape.widths, shape.widths[1:], strict=False)
        linears = [nn.Linear(a, b, bias=shape.bias, dtype=torch.float64) for a, b in pairs]
        self.layers = nn.ModuleList(nn.ModuleDict({"lin": linear}) for linear in linears)
        self.requires_grad_(False)

    def forward(self, x: Tensor, **_: Any) -> Any:
        for layer in self.layers:
            x = torch.tanh(layer["lin"](x))
        return SimpleNamespace(logits=x)


class Vectors:
    """A feature encoder that knows nothing: a vector at random for each path of an image and each prompt, always the same one."""

    width = 6

    def images(self, images: Sequence[Any]) -> Tensor:
        return torch.stack([torch.zeros(6).double() if one is None else self._of(str(one)) for one in images])

    def texts(self, prompts: Sequence[str]) -> Tensor:
        return torch.stack([self._of(one) for one in prompts])

    def _of(self, text: str) -> Tensor:
        draw = random.Random(text)
        return torch.tensor([draw.gauss(0, 1) for _ in range(self.width)], dtype=torch.float64)


class Bare:
    """What a method asks of a backbone, around a chain."""

    linears = r"layers\.\d+\.lin"
    device = torch.device("cpu")

    def __init__(self, shape: Shape) -> None:
        torch.manual_seed(shape.seed)
        self.model, self.features = Chain(shape), Vectors()


@torch.no_grad()
def stirred(bank: ExpertBank, seed: int = 0) -> ExpertBank:
    """Everything of the bank at random, so that it matters: experts, and what their mixes learn; a name always gets the same numbers."""
    for layer in bank.layers:
        for name, weight in layer.named_parameters():
            if name.startswith("bank_"):
                number = random.Random(f"{seed} {layer.path} {name}").getrandbits(48)
                generator = torch.Generator().manual_seed(number)
                weight.copy_(0.7 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return bank


def base(layer: BankLayer, x: Tensor) -> Tensor:
    """W x + b, of any (..., d_in)."""
    return F.linear(x, layer.base_layer.weight, layer.base_layer.bias)


def token_by_token(one: Callable[[BankLayer, Tensor], Tensor]) -> Literal:
    """What is said of one token (d_in) for every token of an input, one after the other."""
    return lambda layer, x: torch.stack([torch.stack([one(layer, token) for token in row]) for row in x])


def through(bank: ExpertBank, literal: Literal, x: Tensor) -> Tensor:
    """The chain's output with every layer of the bank written out."""
    for layer in bank.layers:
        x = torch.tanh(literal(layer, x))
    return x


def softmax(scores: Sequence[Tensor]) -> list[Tensor]:
    """e^score over the sum of all of them, written out."""
    powers = [score.exp() for score in scores]
    return [power / sum(powers) for power in powers]


def learning(model: nn.Module) -> dict[str, Tensor]:
    """What learns, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def assert_equal(ours: Tensor, theirs: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Both are equal, and so is what a loss at random on either says to every tensor; a tensor that one leaves out has zeros."""
    torch.testing.assert_close(ours, theirs, **EXACT)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    gradients = [
        torch.autograd.grad(
            (result * weights).sum(), list(tensors.values()), retain_graph=True, materialize_grads=True
        )
        for result in (ours, theirs)
    ]
    assert any(gradient.any() for gradient in gradients[1])
    for name, mine, other in zip(tensors, *gradients, strict=True):
        torch.testing.assert_close(mine, other, **EXACT, msg=lambda text, name=name: f"{name}: {text}")
