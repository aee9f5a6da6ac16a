"""What sees the steps of a run from inside: the stack of plugins, and the world that gets every gradient.

`Observed` looks at terms, weights and modes when the hooks have run, `Observer` at every gradient just before the optimiser does.
Both do what the engine's own do, and nothing else to the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch
from cl_zoo.contract import returned
from cl_zoo.contract.calls import not_here
from cl_zoo.contract.plugins import Plugins
from cl_zoo.names import Choice
from cl_zoo.processes import World
from cl_zoo.tasks import Sample, Task
from cl_zoo.testing.conformance.modes import modes, switched
from cl_zoo.testing.conformance.moments import ConformanceError, Moment, far, place_of


@dataclass
class Record:
    """What was seen of a trial.

    Attributes:
        moments: what the method had learnt after each task.
        gradients: of every optimiser step, by parameter name, `None` where there is none.
        terms: of every further term of the objective, whether it ever had a gradient.
        trainable: parameters that required a gradient, task by task.
        reported: value of each term at the last step of each task.
        apart: where the gradients of a trial that follows another one were first too far from it.
    """

    moments: list[Moment] = field(default_factory=list)
    gradients: list[dict[str, Tensor | None]] = field(default_factory=list)
    terms: dict[str, bool] = field(default_factory=dict)
    trainable: list[dict[str, int]] = field(default_factory=list)
    reported: list[dict[str, float]] = field(default_factory=list)
    apart: str = ""


class Observer(World):
    """Sees each step's gradients; where it follows another trial it compares them and then goes that one's way.

    Args:
        follow: gradients of the other trial. Taking them over keeps both on one path, bit for bit, so that every step
            is compared at the same weights and no optimiser enlarges what rounding left.
    """

    def __init__(self, follow: Sequence[Mapping[str, Tensor | None]] | None = None) -> None:
        super().__init__("cpu")
        self.follow, self.record = follow, Record()
        self.model: nn.Module | None = None
        self.place = ""

    def reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        super().reduce_gradients(parameters)
        names = {id(weight): name for name, weight in (self.model or nn.Module()).named_parameters()}
        here = {names[id(weight)]: weight for weight in parameters}
        step = len(self.record.gradients)
        gradients = {n: None if w.grad is None else w.grad.clone() for n, w in here.items()}
        self.record.gradients.append(gradients)
        for name, gradient in gradients.items():
            if gradient is not None and not torch.isfinite(gradient).all():
                raise ConformanceError("terms", f"{self.place}: the gradient of {name} is not finite")
        if self.follow is not None:
            wanted = self.follow[step]
            largest = max((float(g.abs().max()) for g in wanted.values() if g is not None), default=0.0)
            if off := far(gradients, wanted, floor=1e-5 * largest):
                self.record.apart = self.record.apart or f"{self.place}: the gradient of {off}"
            for name, weight in here.items():
                other = wanted.get(name)
                weight.grad = None if other is None else other.clone()


class Observed(Plugins):
    """A stack whose terms, frozen weights and modes are looked at when its hooks have run."""

    def __init__(self, choices: Sequence[Choice]) -> None:
        super().__init__(choices)
        self.world: Observer | None = None
        self.backbone: Backbone | None = None
        self.label = "+".join(choice.label for choice in choices)
        self._still: dict[str, Tensor] = {}

    def before_task(self, model: nn.Module, task: Task, batches: Sequence[Batch] = ()) -> None:
        world, backbone = self._there()
        world.place = place_of(self.label, task)
        with self._put_back("before_task", chooses=True):
            super().before_task(model, task, batches)
        learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for name, weight in learning.items():
            if backbone.owns(weight):
                raise ConformanceError(
                    "frozen",
                    f"{world.place}: {name} belongs to the frozen backbone but requires a gradient; train an expert or a module beside it",
                )
        world.record.trainable.append({name: weight.numel() for name, weight in learning.items()})
        self._still = {n: p.detach().clone() for n, p in model.named_parameters() if n not in learning}

    def loss(self, model: nn.Module, batch: Batch, outputs: Any, task: Task) -> dict[str, Tensor]:
        world, _ = self._there()
        with self._put_back("loss"):
            terms = super().loss(model, batch, outputs, task)
        if not outputs.logits.requires_grad:
            raise ConformanceError(
                "terms",
                f"{world.place}: the model's own loss depends on no trainable weight; let what learns take part in the forward",
            )
        if world.follow is None:  # gradient checkpointing puts leaves of its own into the graph
            self._all_registered(model, [outputs.logits, *terms.values()])
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        for name, term in terms.items():
            if isinstance(term, Tensor):
                acts = self._acts(name, term, batch, weights, world.place)
                world.record.terms[name] = world.record.terms.get(name, False) or acts
        return terms

    def before_step(self, model: nn.Module, task: Task) -> None:
        with self._put_back("before_step"):
            super().before_step(model, task)

    def after_step(
        self, model: nn.Module, task: Task, gradients: Mapping[str, Tensor], before: Mapping[str, Tensor]
    ) -> None:
        with self._put_back("after_step"):
            super().after_step(model, task, gradients, before)

    def after_task(
        self,
        model: nn.Module,
        task: Task,
        batches: Sequence[Batch],
        parts: Mapping[str, Sequence[str]],
        backbone: Backbone,
        learn: Callable[[Sequence[Sample], int], None] = not_here,
    ) -> dict[str, Any]:
        """Old experts may be rewritten in this hook, but not before it; what learns further in it is trainable, too."""

        def watched(samples: Sequence[Sample], epochs: int) -> None:
            learning = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
            self._there()[0].record.trainable[-1].update(learning)
            learn(samples, epochs)

        named = dict(model.named_parameters())
        for name, before in self._still.items():
            if name in named and not torch.equal(named[name], before):
                where = self._there()[0].place
                raise ConformanceError(
                    "frozen",
                    f"{where}: {name} is frozen but moved while the task was learnt; change weights in before_task or after_task only",
                )
        with self._put_back("after_task", chooses=True):
            return super().after_task(model, task, batches, parts, backbone, watched)

    def build_inference_model(self, model: nn.Module, tasks_seen: Sequence[Task]) -> nn.Module:
        """The check asks what answers for logits too, as authors and other tools do."""
        built = super().build_inference_model(model, tasks_seen)
        with self.told("build_inference_model"):
            return built if built is model else returned.module("build_inference_model", built)

    def rehearse(self, task: Task) -> list[Sample]:
        with self._put_back("rehearse"):
            return super().rehearse(task)

    def state_dict(self, *, probes: bool = True) -> dict[str, Mapping[str, Any]]:
        with self._put_back("state_dict"):
            return super().state_dict(probes=probes)

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]], *, some: bool = False) -> None:
        with self._put_back("load_state_dict", chooses=True):
            super().load_state_dict(state, some=some)

    @contextmanager
    def _put_back(self, hook: str, *, chooses: bool = False) -> Iterator[None]:
        """A hook leaves the modes as it finds them; where it chooses what learns and answers, train/eval mode alone."""
        world, _ = self._there()
        model = world.model or nn.Module()
        before = modes(model)
        yield
        if changed := switched(before, modes(model), chooses=chooses):
            raise ConformanceError(
                "modes",
                f"{world.place or self.label}: {hook} changed {changed}; run the model inside `with standing_still(model):` of cl_zoo.nn",
            )

    def _all_registered(self, model: nn.Module, results: Sequence[Any]) -> None:
        """What asks for a gradient is a parameter of the model, where the optimiser finds it."""
        known = {id(weight) for weight in model.parameters()}
        for leaf in leaves(results):
            if id(leaf) not in known:
                raise ConformanceError(
                    "terms",
                    f"{self._there()[0].place}: a tensor of shape {tuple(leaf.shape)} requires a gradient and is no parameter of the model, so nothing trains it; make it an nn.Parameter of the module that build_model returns",
                )

    def _acts(
        self, name: str, term: Tensor, batch: Batch, weights: Sequence[nn.Parameter], place: str
    ) -> bool:
        """Whether a term has a gradient here; it must be finite."""
        if batch.targets is not None and term.shape == batch.targets.shape:
            term = term[batch.answer_mask]
        if not torch.isfinite(term).all():
            raise ConformanceError("terms", f"{place}: the term {name!r} is not finite")
        if not term.requires_grad:
            return False
        found = torch.autograd.grad(term.sum(), list(weights), retain_graph=True, allow_unused=True)
        return any(gradient is not None and bool(gradient.any()) for gradient in found)

    def _there(self) -> tuple[Observer, Backbone]:
        if self.world is None or self.backbone is None:
            raise RuntimeError("Observed plugins belong into a Watched run")
        return self.world, self.backbone


def leaves(results: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors at the ends of the graphs of some results, to which a backward pass brings gradients."""
    nodes = [one.grad_fn for one in results if isinstance(one, Tensor) and one.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            yield node.variable
        further = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= further
        nodes += further
