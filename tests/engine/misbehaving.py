"""Plugins that misbehave: a class for each hook and way, `loss_raises`, `parts_exits`, made when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cl_zoo import Batch, hookimpl
from cl_zoo.contract.plugins import HOOKS
from cl_zoo.errors import OptionError
from cl_zoo.nn import Around, adapters, standing_still

PLAIN = ("parts", "state_dict", "load_state_dict")
"""What a plugin may have beside hooks."""


def act(way: str) -> Any:
    """What the hook does."""
    if way == "raises":
        raise ValueError("boom")
    if way == "exits":
        sys.exit(0)
    if way == "interrupts":
        raise KeyboardInterrupt
    if way == "refuses":
        raise OptionError("strength is 3; take 2")
    if way == "starves":
        raise MemoryError
    if way == "paints":
        raise ValueError("\x1b[31mboom")
    if way == "prints":
        print("said to standard output")
        return None
    return {"text": "nonsense", "number": 3}[way]


def of_hook(hook: str, way: str) -> type:
    """A plugin whose one hook does it."""

    def called(self: Any) -> Any:
        return act(way)

    called.__name__, called.__qualname__ = hook, f"Plugin.{hook}"
    return type(f"{hook}_{way}", (), {hook: hookimpl(called)})


def of_state(hook: str, way: str) -> type:
    """One whose state or parts do it; the state of `load_state_dict` is sound."""

    def called(self: Any, *_: Any) -> Any:
        return act(way)

    state = {"state_dict": lambda self: {}, "load_state_dict": lambda self, state: None}
    return type(f"{hook}_{way}", (), {**({} if hook == "parts" else state), hook: called})


def of_module(part: str, way: str) -> type:
    """One whose model does it in `prepare`, `forward` or `generate`."""

    def called(self: Any, *_: Any, **__: Any) -> Any:
        return act(way)

    module = type("Model", (Around,), {part: called})

    class Builds:
        @hookimpl
        def build_model(self, backbone: Any, recipe: Any) -> nn.Module:
            return module(adapters(backbone, recipe))  # type: ignore[no-any-return]

    return Builds


def __getattr__(name: str) -> type:
    hook, _, way = name.rpartition("_")
    if hook in HOOKS:
        return of_hook(hook, way)
    if hook in PLAIN:
        return of_state(hook, way)
    if hook in ("prepare", "forward", "generate"):
        return of_module(hook, way)
    raise AttributeError(name)


# --- shapes and numbers ----------------------------------------------------------------------------------------------


def learning(model: nn.Module) -> list[nn.Parameter]:
    return [weight for name, weight in model.named_parameters() if "bank_up" in name]


def spoil(model: nn.Module, value: float = torch.nan) -> None:
    """Put a value into a weight."""
    with torch.no_grad():
        learning(model)[0][0, 0] = value


class SpoilsASpare:
    """A weight that takes part in nothing is no number from the first step on."""

    @hookimpl
    def build_model(self, backbone: Any, recipe: Any) -> nn.Module:
        model = Around(adapters(backbone, recipe))
        model.register_parameter("spare", nn.Parameter(torch.zeros(1)))
        return model

    @hookimpl
    def loss(self, model: Any) -> None:
        model.spare.data.fill_(torch.nan)

    def parts(self, model: nn.Module) -> dict[str, list[str]]:
        return {"keys": ["spare"]}


class LossOfAnotherShape:
    @hookimpl
    def loss(self, model: nn.Module) -> dict[str, Tensor]:
        return {"odd": torch.zeros(5, 7)}


class LossIsNan:
    """From the second step on."""

    steps = 0

    @hookimpl
    def loss(self, model: nn.Module) -> dict[str, Tensor]:
        self.steps += 1
        return {"odd": learning(model)[0].sum() * (torch.nan if self.steps > 1 else 0.0)}


class GradientIsNan:
    """The root of zero has a value, and no slope."""

    @hookimpl
    def loss(self, model: nn.Module) -> dict[str, Tensor]:
        return {"root": (learning(model)[0] * 0.0).sum().sqrt()}


class StepSpoilsGradient:
    """The mean of nothing is no number."""

    @hookimpl
    def before_step(self, model: nn.Module) -> None:
        gradient = learning(model)[0].grad
        assert gradient is not None
        gradient[0, 0] = torch.ones(0).mean()


class StepIsTooLong:
    """Each value is a number, their root of squares is none."""

    @hookimpl
    def before_step(self, model: nn.Module) -> None:
        for weight in learning(model):
            assert weight.grad is not None
            weight.grad.fill_(3e38)


class StepDoubles:
    @hookimpl
    def before_step(self, model: nn.Module) -> None:
        for weight in learning(model):
            assert weight.grad is not None
            weight.grad.mul_(2.0)


class GradientIsNanBeforeTheStep(StepDoubles, GradientIsNan):
    """It comes to `before_step` as it is, which has nothing to do with it."""


class LearnsNothingFurther:
    @hookimpl
    def after_task(self, model: nn.Module, batches: Any, learn: Any) -> None:
        with standing_still(model):
            for weight in model.parameters():
                weight.requires_grad_(False)
            learn(batches[0].samples, 1)


class TermIsDetached:
    @hookimpl
    def loss(self, model: nn.Module) -> dict[str, Tensor]:
        weight = learning(model)[0]
        term = weight.pow(2).sum()
        weight.data.add_(0.0)
        weight.requires_grad_(True)
        with torch.no_grad():
            weight.mul_(1.0)  # behind the graph's back
        return {"late": term}


class BuildsNan:
    @hookimpl
    def build_model(self, backbone: Any, recipe: Any) -> nn.Module:
        bank = adapters(backbone, recipe)
        spoil(bank)
        return bank


class BeforeTaskNan:
    @hookimpl
    def before_task(self, model: nn.Module) -> None:
        spoil(model)


class AfterTaskInf:
    @hookimpl
    def after_task(self, model: nn.Module) -> None:
        spoil(model, torch.inf)


class MeasuresNan:
    @hookimpl
    def after_task(self) -> dict[str, float]:
        return {"size": float("nan")}


class RoutesNan:
    @hookimpl
    def build_inference_model(self, model: Any) -> nn.Module:
        class Routed(Around):
            def prepare(self, batch: Batch) -> None:
                self.route = torch.full((len(batch), 1), torch.nan)

        return Routed(model)


class BufferIsNan:
    """What is no number may stand in a buffer, and is like itself when it is compared."""

    @hookimpl
    def build_model(self, backbone: Any, recipe: Any) -> nn.Module:
        model = Around(adapters(backbone, recipe))
        model.register_buffer("mask", torch.tensor([torch.nan, -torch.inf]))
        return model


class NamesExperts:
    """Answers with the expert that its state names."""

    @hookimpl
    def build_model(self, backbone: Any, recipe: Any) -> nn.Module:
        self.bank = adapters(backbone, recipe)
        return self.bank

    def state_dict(self) -> dict[str, Any]:
        return {"answers": "shared"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.bank.use([state["answers"]], trainable=["shared"])
