"""Models that answer otherwise than they learn: by other experts, by other values of the same weights, or by a merge of the experts.

What `build_inference_model` returns has `forward`, which takes `batch.inputs` and gives an output with `logits`, and `generate`. It may
have `prepare(batch)` and a `route`. All classes here have the first two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from cl_zoo.batches import Batch, prepare
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.nn.layer import BankLayer


class Around(nn.Module):
    """A module around a bank that answers through it; a method derives from it to choose experts in `prepare(batch)`.

    Attributes:
        route: (batch, tasks), what `prepare` may set to be written beside each answer.
    """

    def __init__(self, bank: ExpertBank) -> None:
        super().__init__()
        self.bank = bank
        self.route: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.bank(*args, **kwargs)

    def generate(self, **inputs: Any) -> Tensor:
        return cast(Tensor, self.bank.generate(**inputs))


class Change(nn.Module):
    """What one adapted linear adds to W x besides its experts, frozen: Δ x, or s · B A x.

    Args:
        layer: the linear.
        matrices: Δ (d_out, d_in), or A (r, d_in) and B (d_out, r).

    Raises:
        ValueError: the shapes do not fit the layer.
    """

    def __init__(self, layer: BankLayer, matrices: Sequence[Tensor]) -> None:
        super().__init__()
        shapes = [tuple(matrix.shape) for matrix in matrices]
        rank = shapes[0][0]
        whole, factors = (
            (layer.out_features, layer.in_features),
            [(rank, layer.in_features), (layer.out_features, rank)],
        )
        if shapes not in ([whole], factors):
            raise ValueError(
                f"{layer.path} needs a change {whole} or A (r, {whole[1]}) and B ({whole[0]}, r), got {shapes}"
            )
        self.scale = layer.scale if len(shapes) == 2 else 1.0
        self.matrices = nn.ParameterList(nn.Parameter(one.detach(), requires_grad=False) for one in matrices)

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """A and B; none where the change is of full rank."""
        return None if len(self.matrices) == 1 else (self.matrices[0], self.matrices[1])

    def dense(self) -> Tensor:
        """Δ, or s · B A (d_out, d_in)."""
        if self.factors is None:
            return cast(Tensor, self.matrices[0])
        down, up = self.factors
        return self.scale * up @ down

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) to (..., d_out), in the more precise of the types of x and of the change."""
        for matrix in self.matrices:
            made = torch.promote_types(x.dtype, matrix.dtype)
            x = F.linear(x.to(made), matrix.to(made))
        return x if self.scale == 1 else self.scale * x


class OtherUpdates(Around):
    """A bank that answers by one change of each linear in the place of its experts: what a merge made of them.

    The bank stays as it is, and learns on with its own experts. None of them answers meanwhile, so that only the changes are counted as
    stored for inference.

    Args:
        bank: the experts; `build_inference_model` is where it may be told that none answers.
        changes: by layer of the bank, Δ (d_out, d_in) alone, or A (r, d_in) and B (d_out, r); they are kept, not copied.

    Raises:
        ValueError: shapes do not fit a layer.
    """

    def __init__(self, bank: ExpertBank, changes: Mapping[BankLayer, Sequence[Tensor]]) -> None:
        super().__init__(bank)
        self.changed = tuple(changes)
        self.changes = nn.ModuleList(Change(layer, matrices) for layer, matrices in changes.items())
        bank.answer([])

    @contextmanager
    def worn(self) -> Iterator[None]:
        """Inside, the linears of the bank add the changes; afterwards they are the bank's own again."""
        with ExitStack() as stack:
            for layer, change in zip(self.changed, self.changes, strict=True):
                handle = layer.register_forward_hook(_with(change))
                stack.callback(handle.remove)
            yield

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.worn():
            return super().forward(*args, **kwargs)

    def generate(self, **inputs: Any) -> Tensor:
        with self.worn():
            return super().generate(**inputs)


def _with(change: nn.Module) -> Any:
    def add(layer: BankLayer, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y if layer._disable_adapters else y + change(inputs[0]).to(y.dtype)

    return add


class OtherWeights(nn.Module):
    """A model that answers with other values of some of its weights: an average over time, a merge, a copy from before.

    The model itself stays as it is, and learns on with its own values.

    Args:
        model: what `build_model` returned.
        weights: values by name in `model.named_parameters()`; they are copied, frozen, and counted as stored for inference.

    Raises:
        ValueError: the model has no parameter of that name, or of another shape.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        own = dict(model.named_parameters())
        for name, value in weights.items():
            if name not in own:
                raise ValueError(
                    f"the model has no parameter {name!r}; name them as model.named_parameters() does"
                )
            if value.shape != own[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(own[name].shape)}, but its other value {tuple(value.shape)}; pass one of equal shape"
                )
        self.model = _Asked(model)
        self.names = tuple(weights)
        self.values = nn.ParameterList(
            nn.Parameter(value.detach().to(own[name]).clone(), requires_grad=False)
            for name, value in weights.items()
        )

    @property
    def idle(self) -> list[str]:
        """Names, in this module, of the model's own values, which take no part in an answer."""
        return [f"model.asked.{name}" for name in self.names]

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each weight of the model that has another value here, and that value."""
        own = dict(self.model.asked.named_parameters())
        return ((own[name], value) for name, value in zip(self.names, self.values, strict=True))

    def prepare(self, batch: Batch) -> None:
        prepare(self.model.asked, batch)

    @property
    def route(self) -> Tensor | None:
        """What the model exposes."""
        return cast("Tensor | None", getattr(self.model.asked, "route", None))

    def forward(self, **inputs: Any) -> Any:
        return self._with_values("forward", inputs)

    def generate(self, **inputs: Any) -> Tensor:
        return cast(Tensor, self._with_values("generate", inputs))

    def _with_values(self, what: str, inputs: Mapping[str, Any]) -> Any:
        values = {f"asked.{name}": value for name, value in zip(self.names, self.values, strict=True)}
        return functional_call(self.model, values, (what,), dict(inputs))


class _Asked(nn.Module):
    """One forward for both ways to ask a model, since values can be replaced for the time of a forward only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.asked = model

    def forward(self, what: str, **inputs: Any) -> Any:
        return getattr(self.asked, what)(**inputs)
