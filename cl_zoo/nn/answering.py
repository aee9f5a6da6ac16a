"""Models that answer otherwise than they learn: by other experts, or by other values of the same weights.

What `build_inference_model` returns has `forward`, which takes `batch.inputs` and gives an output with `logits`, and `generate`. It may
have `prepare(batch)` and a `route`. Both classes here have the first two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.func import functional_call

from cl_zoo.batches import Batch, prepare
from cl_zoo.nn.bank import ExpertBank


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
