"""A method that keeps every promise, and variations of it that each break one.

`Sound` gives every task an expert of its own and mixes them by how much a prompt looks like each task's prompts.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from cl_zoo import Backbone, Batch, Recipe, Task, hookimpl, share, total
from cl_zoo.nn import ExpertBank, PerSample, adapters


class Answering(nn.Module):
    """Mixes the experts by a route (batch, tasks)."""

    def __init__(self, bank: ExpertBank, backbone: Backbone, anchors: Sequence[Tensor]) -> None:
        super().__init__()
        self.bank, self.gate, self.backbone = bank, PerSample(), backbone
        self.register_buffer("anchors", torch.stack(list(anchors)))
        self.route: Tensor | None = None
        bank.use([f"t{index}" for index in range(len(anchors))])
        bank.mix(lambda _: self.gate)

    def prepare(self, batch: Batch) -> None:
        self.route = self.gate.weights = self.choose(batch)

    def choose(self, batch: Batch) -> Tensor:
        texts = self.backbone.features.texts([sample.prompt for sample in batch.samples])
        return torch.softmax(texts @ cast(Tensor, self.anchors).T, -1)

    def only(self, places: Sequence[int]) -> Tensor:
        """One expert per sample."""
        count = len(cast(Tensor, self.anchors))
        return torch.eye(count)[[place % count for place in places]]

    def forward(self, **inputs: Any) -> Any:
        return self.bank(**inputs)

    def generate(self, **inputs: Any) -> Tensor:
        return cast(Tensor, self.bank.generate(**inputs))


class Sound:
    """Keeps every promise."""

    answers_by: type[Answering] = Answering

    class Options(BaseModel, frozen=True, extra="forbid"):
        strength: float = Field(0.1, ge=0, description="weight of the shrinking term")

    def __init__(self, options: Options) -> None:
        self.options = options
        self.anchors: list[Tensor] = []

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> ExpertBank:
        self.backbone, self.bank = backbone, adapters(backbone, recipe, "t0")
        return self.bank

    @hookimpl
    def before_task(self, model: nn.Module, task: Task) -> None:
        name = self.name_of(task)
        if name != "t0":
            self.bank.add(name)
        self.bank.use([name], trainable=[name])

    def name_of(self, task: Task) -> str:
        return f"t{task.index}"

    @hookimpl
    def loss(self, model: nn.Module, batch: Batch, outputs: Any, task: Task) -> dict[str, Tensor]:
        return self.terms(batch, outputs)

    def terms(self, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        return {"shrink": self.options.strength * torch.stack([(up**2).sum() for up in self.ups()]).sum()}

    def ups(self) -> list[nn.Parameter]:
        return [w for n, w in self.bank.named_parameters() if "bank_up" in n and w.requires_grad]

    @hookimpl
    def after_task(self, model: nn.Module, task: Task, batches: Sequence[Batch]) -> dict[str, float]:
        self.anchors.append(self.anchor(batches))
        return {"norm": float(self.anchors[-1].norm())}

    def anchor(self, batches: Sequence[Batch]) -> Tensor:
        added, count = torch.zeros(self.backbone.features.width), torch.zeros(())
        for batch in share(batches):
            added += self.texts(batch).sum(0)
            count += len(batch)
        return total(added) / total(count)

    def texts(self, batch: Batch) -> Tensor:
        return self.backbone.features.texts([sample.prompt for sample in batch.samples])

    @hookimpl
    def build_inference_model(self, model: nn.Module, tasks_seen: Sequence[Task]) -> nn.Module:
        return self.answers_by(self.bank, self.backbone, self.anchors)

    def state_dict(self) -> dict[str, Any]:
        return {"experts": self.bank.describe(), "anchors": self.anchors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.bank.rebuild(state["experts"])
        self.anchors = list(state["anchors"])


# --- options, seeds, streams ----------------------------------------------------------------------------------------


class TakesAnything(Sound):
    """Drops what it does not know before pydantic sees it."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        strength: float = Field(0.1, ge=0, description="weight of the shrinking term")

        @model_validator(mode="before")
        @classmethod
        def drop(cls, values: dict[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in values.items() if name == "strength"}


class Unseeded(Sound):
    """Starts its experts from a generator that nobody seeded."""

    @hookimpl
    def before_task(self, model: nn.Module, task: Task) -> None:
        super().before_task(model, task)
        generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "big"))
        with torch.no_grad():
            for up in self.ups():
                up += 0.01 * torch.randn(up.shape, generator=generator)


class NamesByTask(Sound):
    """Calls its expert by the name of the task, so a task cannot come twice."""

    def name_of(self, task: Task) -> str:
        return "t0" if task.index == 0 else f"expert_{task.name}"

    @hookimpl
    def build_inference_model(self, model: nn.Module, tasks_seen: Sequence[Task]) -> nn.Module:
        return model

    @hookimpl
    def before_task(self, model: nn.Module, task: Task) -> None:
        if task.occurrence:
            raise KeyError(f"the bank already has an expert {task.name!r}")
        super().before_task(model, task)


class NeedsTwoTasks(Sound):
    """Standardises over tasks, which one task does not allow."""

    @hookimpl
    def build_inference_model(self, model: nn.Module, tasks_seen: Sequence[Task]) -> nn.Module:
        1 / (len(tasks_seen) - 1)
        return super().build_inference_model(model, tasks_seen)


# --- terms and frozen weights ---------------------------------------------------------------------------------------


class InertTerm(Sound):
    """Its term is computed on detached weights."""

    def terms(self, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        return {"shrink": torch.stack([(up.detach() ** 2).sum() for up in self.ups()]).sum()}


class TwiceWrong(TakesAnything, InertTerm):
    """Breaks two promises that have nothing to do with each other."""


class InertRegulariser:
    """Would pull weights to where they stood, but never remembers where that was."""

    @hookimpl
    def loss(self, model: nn.Module) -> dict[str, Tensor] | None:
        return None

    @hookimpl
    def after_task(self, model: nn.Module) -> dict[str, float]:
        return {"pull/weights": 0.0}


class UnregisteredGain(Sound):
    """Scales its term by a number that nothing trains, since it is no parameter of the model."""

    def __init__(self, options: Sound.Options) -> None:
        super().__init__(options)
        self.gain = torch.ones((), requires_grad=True)

    def terms(self, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        return {name: self.gain * term for name, term in super().terms(batch, outputs).items()}


class InfiniteTerm(Sound):
    """The logarithm of B, which starts at zero."""

    def terms(self, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        return {"log": self.ups()[0].norm().log()}


class InfiniteGradient(Sound):
    """A finite term, √ΣB², whose gradient at B = 0 is not finite."""

    def terms(self, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        return {"root": 0.1 * (self.ups()[0] ** 2).sum().sqrt()}


class MovesOldExpert(Sound):
    """Lets the expert of the first task drift along while others learn."""

    def terms(self, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        if self.anchors:
            with torch.no_grad():
                self.bank.layers[0].bank_down["t0"].mul_(0.999)
        return super().terms(batch, outputs)


class TrainsBackbone(Sound):
    """Lets the language model's output layer learn."""

    @hookimpl
    def before_task(self, model: nn.Module, task: Task) -> None:
        super().before_task(model, task)
        self.backbone.model.lm_head.weight.requires_grad_(True)


class MergesIntoBackbone(Sound):
    """Writes what it learnt into the frozen weights."""

    @hookimpl
    def after_task(self, model: nn.Module, task: Task, batches: Sequence[Batch]) -> dict[str, float]:
        layer = self.bank.layers[0]
        with torch.no_grad():
            layer.base_layer.weight += layer.delta()
        return super().after_task(model, task, batches)


# --- modes ----------------------------------------------------------------------------------------------------------


class PreparesInEvaluation(Sound):
    """Gets ready in evaluation mode and stays there."""

    @hookimpl
    def before_task(self, model: nn.Module, task: Task) -> None:
        super().before_task(model, task)
        model.eval()


class RehearsesInEvaluation(Sound):
    """Chooses what to rehearse in evaluation mode and stays there."""

    @hookimpl
    def rehearse(self, task: Task) -> None:
        self.bank.eval()


class TeachesInEvaluation(Sound):
    """Asks a teacher without dropout, and learns without it from then on."""

    def terms(self, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        self.bank.eval()
        return super().terms(batch, outputs)


class MeasuresInEvaluation(Sound):
    """Looks at the finished task in evaluation mode, in which the next plugin of the stack then finds the model."""

    @hookimpl
    def after_task(self, model: nn.Module, task: Task, batches: Sequence[Batch]) -> dict[str, float]:
        model.eval()
        return super().after_task(model, task, batches)


class SavesInEvaluation(Sound):
    """Leaves evaluation mode behind when its state is asked for."""

    def state_dict(self) -> dict[str, Any]:
        self.bank.eval()
        return super().state_dict()


class KeepsTheTeacherOn(Sound):
    """Asks the first expert what to rehearse, and lets it take part from then on."""

    @hookimpl
    def rehearse(self, task: Task) -> None:
        learning = self.name_of(task)
        self.bank.use([*dict.fromkeys(["t0", learning])], trainable=[learning])


class WakesOldExpert(Sound):
    """Lets an old expert ask for gradients in the loss, which no optimiser uses."""

    def terms(self, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        found = super().terms(batch, outputs)
        if self.anchors:
            self.bank.layers[0].bank_up["t0"].requires_grad_(True)
        return found


class DropsRoute(Sound):
    """Takes its route away before the backward pass."""

    @hookimpl
    def before_task(self, model: nn.Module, task: Task) -> None:
        super().before_task(model, task)
        gate = self.gate = PerSample()
        self.bank.mix(lambda _: gate)
        model.prepare = self.prepare  # type: ignore[assignment]

    def prepare(self, batch: Batch) -> None:
        self.gate.weights = torch.full((len(batch), 1), 0.5)

    def terms(self, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        self.gate.weights = torch.ones(len(batch), 1)
        return super().terms(batch, outputs)


# --- state ----------------------------------------------------------------------------------------------------------


class KeepsAnObject(Sound):
    """A set in its state, for which something would have to be pickled."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seen": {len(self.anchors)}}


class ForgetsAnchors(Sound):
    """What it needs for answering is not in its state."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.anchors = [torch.zeros_like(anchor) for anchor in self.anchors]


class ForgetsCount(Sound):
    """What it needs for learning on, and for that only, is not in its state."""

    def __init__(self, options: Sound.Options) -> None:
        super().__init__(options)
        self.learnt = 0

    def terms(self, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        return {name: (1 + 9 * self.learnt) * term for name, term in super().terms(batch, outputs).items()}

    @hookimpl
    def after_task(self, model: nn.Module, task: Task, batches: Sequence[Batch]) -> dict[str, float]:
        self.learnt += 1
        return super().after_task(model, task, batches)


class ForgetsSteps(Sound):
    """What its loss changes from one step of a task to the next is not in its state."""

    @hookimpl
    def before_task(self, model: nn.Module, task: Task) -> None:
        self.steps = 0
        super().before_task(model, task)

    def terms(self, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        self.steps += 1
        return {name: self.steps * term for name, term in super().terms(batch, outputs).items()}


# --- a training that is shared --------------------------------------------------------------------------------------


class LearnsFromAnswering(Sound):
    """Says of an option that answers alone read it, but its loss does."""

    answering = ("strength",)


class Sharpened(Sound):
    """Keeps every promise, and has an option that answers alone read: how sharp a route is."""

    answering = ("sharpness", "by")

    class Options(Sound.Options, frozen=True, extra="forbid"):
        sharpness: float = Field(1.0, gt=0, le=1, description="factor on the anchors")
        by: Literal["all", "first"] = Field("all", description="anchors that route")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.sharpness, self.by = options.sharpness, options.by

    @hookimpl
    def build_inference_model(self, model: nn.Module, tasks_seen: Sequence[Task]) -> nn.Module:
        anchors = self.anchors if self.by == "all" else [self.anchors[0] for _ in self.anchors]
        return self.answers_by(self.bank, self.backbone, [self.sharpness * anchor for anchor in anchors])


class SavesSharpness(Sharpened):
    """What another value of the option would change is in its state, which others take over."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "sharpness": self.sharpness}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.sharpness = state["sharpness"]


class LoadsOnTop(Sharpened):
    """What it loads comes on top of what it holds: right once, after an interruption, and wrong task after task."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict({**state, "anchors": [*self.anchors, *state["anchors"]]})


# --- answers --------------------------------------------------------------------------------------------------------


class BatchWideAnswering(Answering):
    """One route for all, from the largest similarity in the batch."""

    def choose(self, batch: Batch) -> Tensor:
        return super().choose(batch).max(0, keepdim=True).values.expand(len(batch), -1)


class BatchWideRoute(Sound):
    """The route of a sample depends on who else is in the batch."""

    answers_by = BatchWideAnswering


class PaddedAnswering(Answering):
    """Weighs by how long the padded sequence is."""

    def choose(self, batch: Batch) -> Tensor:
        return super().choose(batch) * batch.inputs["input_ids"].shape[1] / 32


class ReadsPadding(Sound):
    """The answer to a short prompt depends on how long the others are."""

    answers_by = PaddedAnswering


class IdAnswering(Answering):
    """Chooses the expert by the sample's id."""

    def choose(self, batch: Batch) -> Tensor:
        return self.only([zlib.crc32(sample.id.encode()) for sample in batch.samples])


class PeeksAtIds(Sound):
    """Reads the task from the samples' ids."""

    answers_by = IdAnswering


class FileAnswering(Answering):
    """Chooses the expert by the name of the image's file."""

    def choose(self, batch: Batch) -> Tensor:
        names = [s.image.name if isinstance(s.image, Path) else "" for s in batch.samples]
        return self.only([zlib.crc32(name.encode()) for name in names])


class PeeksAtFiles(Sound):
    """Reads the task from the images' paths."""

    answers_by = FileAnswering


class CountingAnswering(Answering):
    """Chooses the expert by how many batches were asked before."""

    asked = 0

    def choose(self, batch: Batch) -> Tensor:
        self.asked += 1
        return self.only([self.asked // 4] * len(batch))


class CountsQuestions(Sound):
    """Knows in which order the tasks are asked."""

    answers_by = CountingAnswering


class BudgetAnswering(Answering):
    """Leaves the experts out where the token budget is small."""

    def generate(self, **inputs: Any) -> Tensor:
        if self.gate.weights is not None and inputs["max_new_tokens"] < 4:
            self.gate.weights = self.gate.weights * 1e3
        return super().generate(**inputs)


class PeeksAtBudget(Sound):
    """Reads the task from how many tokens an answer may have."""

    answers_by = BudgetAnswering


class MergesForAnswering(Sound):
    """Changes an expert while it builds what answers."""

    @hookimpl
    def build_inference_model(self, model: nn.Module, tasks_seen: Sequence[Task]) -> nn.Module:
        with torch.no_grad():
            self.bank.layers[0].bank_up["t0"].mul_(0.5)
        return super().build_inference_model(model, tasks_seen)


class CountsAnswering(Sound):
    """Learns more strongly the more often it was asked."""

    def __init__(self, options: Sound.Options) -> None:
        super().__init__(options)
        self.asked = 0

    def terms(self, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        return {name: (1 + self.asked) * term for name, term in super().terms(batch, outputs).items()}

    @hookimpl
    def build_inference_model(self, model: nn.Module, tasks_seen: Sequence[Task]) -> nn.Module:
        self.asked = len(tasks_seen)
        return super().build_inference_model(model, tasks_seen)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.asked = len(self.anchors)


# --- one global batch -----------------------------------------------------------------------------------------------


class MeanAsScalar(Sound):
    """A mean over the samples of a forward, which counts as often for a small micro-batch as for a large one."""

    def terms(self, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        return {"flat": 0.1 * (outputs.logits.float() ** 2).mean()}


class MeanOfMeans(Sound):
    """An anchor as the mean of the batches' means, whatever their size."""

    def anchor(self, batches: Sequence[Batch]) -> Tensor:
        return torch.stack([self.texts(batch).mean(0) for batch in batches]).mean(0)


class OwnShare(Sound):
    """An anchor from what this process sees, never added up."""

    def anchor(self, batches: Sequence[Batch]) -> Tensor:
        return torch.cat([self.texts(batch) for batch in share(batches)]).mean(0)


class MeasuresItsShare(Sound):
    """Reports what this process sees as if it were everything."""

    @hookimpl
    def after_task(self, model: nn.Module, task: Task, batches: Sequence[Batch]) -> dict[str, float]:
        super().after_task(model, task, batches)
        return {"samples": float(sum(len(batch) for batch in share(batches)))}


class Halving(nn.Module):
    """A mix of its own kind, which halves what comes in while it is told to."""

    halves = True

    def forward(self, z: Tensor, x: Tensor, ranks: Sequence[int]) -> Tensor:
        return 0.5 * z if self.halves else z


class DropsMix(Sound):
    """Forgets what its mix is to do before the backward pass, which recomputes the forward where memory is short."""

    @hookimpl
    def before_task(self, model: nn.Module, task: Task) -> None:
        super().before_task(model, task)
        mix = self.halving = Halving()
        self.bank.mix(lambda _: mix)
        model.prepare = self.prepare  # type: ignore[assignment]

    def prepare(self, batch: Batch) -> None:
        self.halving.halves = True

    def terms(self, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        self.halving.halves = False
        return super().terms(batch, outputs)


# --- ledger and probes ----------------------------------------------------------------------------------------------


class HidingAnswering(Answering):
    """Holds the bank where no module looks."""

    def __init__(self, bank: ExpertBank, backbone: Backbone, anchors: Sequence[Tensor]) -> None:
        super().__init__(bank, backbone, anchors)
        del self.bank
        self.hidden = [bank]

    def forward(self, **inputs: Any) -> Any:
        return self.hidden[0](**inputs)

    def generate(self, **inputs: Any) -> Tensor:
        return cast(Tensor, self.hidden[0].generate(**inputs))


class HidesExperts(Sound):
    """Answers with parameters that its ledger does not show."""

    answers_by = HidingAnswering


class BorrowingAnswering(Answering):
    """Routes by tensors that belong to the plugin and not to the module that answers."""

    def __init__(self, bank: ExpertBank, backbone: Backbone, anchors: Sequence[Tensor]) -> None:
        super().__init__(bank, backbone, anchors)
        self._borrowed = list(anchors)

    def choose(self, batch: Batch) -> Tensor:
        texts = self.backbone.features.texts([sample.prompt for sample in batch.samples])
        return torch.softmax(texts @ torch.stack(self._borrowed).T, -1)


class HidesAnchors(Sound):
    """Answers with tensors that its ledger counts for continuing only."""

    answers_by = BorrowingAnswering


class BoastingAnswering(Answering):
    """Says that more is active than there is."""

    def active(self) -> dict[str, int]:
        return {"adapters": 10**9}


class CountsTooMuch(Sound):
    """More parameters active in an answer than stored."""

    answers_by = BoastingAnswering


class Meddles:
    """A probe that moves what it measures."""

    probe = True

    @hookimpl
    def after_task(self, model: nn.Module) -> dict[str, float]:
        ups = [weight for name, weight in model.named_parameters() if "bank_up" in name]
        with torch.no_grad():
            for up in ups:
                up.mul_(1.001)
        return {"meddles/size": math.fsum(float(up.detach().norm()) for up in ups)}
