"""Mistakes of somebody who writes a first method, a class each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from cl_zoo import Backbone, Batch, Recipe, Sample, Task, hookimpl
from cl_zoo.nn import Around, ExpertBank, adapters

# --- what learns and what answers ----------------------------------------------------------------------------------


class Attempt:
    """Answers with `answers(bank)`, which each attempt gets wrong in its own way."""

    answers: Any

    @hookimpl
    def build_inference_model(self, model: nn.Module) -> Any:
        return self.answers(model)


class GeneratesOnly(Attempt):
    class answers(nn.Module):  # noqa: N801
        def __init__(self, bank: ExpertBank) -> None:
            super().__init__()
            self.bank = bank

        def generate(self, **inputs: Any) -> Any:
            return self.bank.generate(**inputs)


class NeverGenerates(Attempt):
    class answers(nn.Module):  # noqa: N801
        def __init__(self, bank: ExpertBank) -> None:
            super().__init__()
            self.bank = bank

        def forward(self, **inputs: Any) -> Any:
            return self.bank(**inputs)


class AnswersByAnObject(Attempt):
    class answers:  # noqa: N801
        def __init__(self, bank: ExpertBank) -> None:
            self.generate = bank.generate


class AnswersByAClass(Attempt):
    def answers(self, bank: ExpertBank) -> Any:
        return Around


class ForgetsSuper(Attempt):
    class answers(Around):  # noqa: N801
        def __init__(self, bank: ExpertBank) -> None:
            self.bank = bank


class GeneratesTexts(Attempt):
    class answers(Around):  # noqa: N801
        def generate(self, **inputs: Any) -> Any:
            return ["red"] * len(inputs["input_ids"])


class GeneratesTheAnswerAlone(Attempt):
    class answers(Around):  # noqa: N801
        def generate(self, **inputs: Any) -> Any:
            return super().generate(**inputs)[:, inputs["input_ids"].shape[1] :]


class PreparesForNothing(Attempt):
    class answers(Around):  # noqa: N801
        def prepare(self) -> None: ...


class RoutesTheBatch(Attempt):
    class answers(Around):  # noqa: N801
        def prepare(self, batch: Batch) -> None:
            self.route = torch.ones(2)


class Builds:
    """Learns with `model(bank)`."""

    model: Any

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> Any:
        return self.model(adapters(backbone, recipe))


class BuildsTwo(Builds):
    def model(self, bank: ExpertBank) -> Any:
        return bank, None


class BuildsNothingThatRuns(Builds):
    class model(nn.Module):  # noqa: N801
        def __init__(self, bank: ExpertBank) -> None:
            super().__init__()
            self.bank = bank


class ReturnsLogits(Builds):
    class model(Around):  # noqa: N801
        def forward(self, **inputs: Any) -> Any:
            return super().forward(**inputs).logits


class TakesThreeInputs(Builds):
    class model(Around):  # noqa: N801
        def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Any = None) -> Any:
            return super().forward(
                input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values
            )


class DropsInputs(Builds):
    class model(Around):  # noqa: N801
        def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask)


class HoldsAList(Builds):
    """Its gains learn nothing: a list is not looked into."""

    class model(Around):  # noqa: N801
        def __init__(self, bank: ExpertBank) -> None:
            super().__init__(bank)
            self.gains = [torch.ones((), requires_grad=True)]

        def forward(self, **inputs: Any) -> Any:
            outputs = super().forward(**inputs)
            outputs.logits = self.gains[0] * outputs.logits
            return outputs


class ClaimsNoPart(Builds):
    class model(Around):  # noqa: N801
        def __init__(self, bank: ExpertBank) -> None:
            super().__init__(bank)
            self.gain = nn.Parameter(torch.ones(()))


class OnAnotherDevice(Builds):
    class model(Around):  # noqa: N801
        def __init__(self, bank: ExpertBank) -> None:
            super().__init__(bank)
            self.register_buffer("gain", torch.ones((), device="meta"))


# --- what other hooks return ---------------------------------------------------------------------------------------


class ReturnsATerm:
    @hookimpl
    def loss(self, model: nn.Module) -> Any:
        return torch.stack([weight.pow(2).sum() for weight in model.parameters()]).sum()


class ReturnsANumber:
    @hookimpl
    def loss(self, model: nn.Module) -> Any:
        return {"x": 0.5}


class MeasuresAList:
    @hookimpl
    def after_task(self) -> Any:
        return {"norms": [1.0, 2.0]}


class MeasuresOneValue:
    @hookimpl
    def after_task(self) -> Any:
        return 3.0


class RehearsesBatches:
    @hookimpl
    def rehearse(self) -> Any:
        return [Batch((), {})]


class RehearsesOne:
    @hookimpl
    def rehearse(self) -> Any:
        return Sample("0", None, "What colour is it ?", "red")


class ListsItsParts:
    def parts(self, model: nn.Module) -> Any:
        return ["adapters"]


class FreezesEverything:
    @hookimpl
    def before_task(self, model: nn.Module) -> None:
        model.requires_grad_(False)


class TrainsEverything:
    @hookimpl
    def before_task(self, model: nn.Module) -> None:
        model.requires_grad_(True)


class AddsNoExpert:
    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> ExpertBank:
        self.bank = adapters(backbone, recipe, "t0")
        return self.bank

    @hookimpl
    def before_task(self, task: Task) -> None:
        self.bank.use([f"t{task.index}"], trainable=[f"t{task.index}"])


class WritesInPlace:
    @hookimpl
    def before_task(self, model: nn.Module) -> None:
        next(weight for weight in model.parameters() if weight.requires_grad).mul_(0.9)


# --- state ---------------------------------------------------------------------------------------------------------


class Keeps:
    """Keeps `kept`."""

    kept: Any = None

    def state_dict(self) -> Any:
        return self.kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class KeepsASet(Keeps):
    kept: Any = {"seen": {"colour"}}  # noqa: RUF012


class CountsByNumber(Keeps):
    kept: Any = {"seen": {0: 1}}  # noqa: RUF012


class KeepsNothing(Keeps): ...


class AddsALateParameter:
    """A new one in each task, which nobody makes anew when a run goes on."""

    @hookimpl
    def before_task(self, model: nn.Module, task: Task) -> None:
        model.register_parameter(f"late{task.index}", nn.Parameter(torch.zeros(2)))

    @hookimpl
    def loss(self, model: nn.Module, task: Task) -> dict[str, Tensor]:
        return {"late": (getattr(model, f"late{task.index}") - 1).pow(2).sum()}

    def parts(self, model: nn.Module) -> dict[str, Sequence[str]]:
        return {"late": [name for name, _ in model.named_parameters() if name.startswith("late")]}


# --- what can be seen without a run ---------------------------------------------------------------------------------


class ForgetsSelf:
    @hookimpl
    def before_task(model: nn.Module, task: Task) -> None: ...  # noqa: N805


class InventsAnArgument:
    @hookimpl
    def loss(self, model: nn.Module, data: Any) -> None: ...


class IgnoresItsOptions:
    class Options(BaseModel, frozen=True, extra="forbid"):
        strength: float = 1.0


class HasNoOptions:
    def __init__(self, options: Any) -> None: ...


class AsksForAnOption:
    class Options(BaseModel, frozen=True, extra="forbid"):
        strength: float

    def __init__(self, options: AsksForAnOption.Options) -> None: ...


class ReturnsNothing:
    @hookimpl
    def build_inference_model(self, model):
        Around(model)


class HasNoState:
    """Pulls towards the weights after the last task, which a resumed run no longer has."""

    def __init__(self):
        self.anchor = {}

    @hookimpl
    def loss(self, model):
        terms = [(w - self.anchor[n]).pow(2).sum() for n, w in model.named_parameters() if n in self.anchor]
        return {"pull": 10.0 * sum(terms)} if terms else None

    @hookimpl
    def after_task(self, model):
        self.anchor = {n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad}
