"""LwF: the teacher is the model as it stood after the previous task, and nothing else is touched. Its term: `tests/oracles/test_lwf.py`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from cl_zoo_lwf import LwF, distillation
from tiny_runs import learnt, weights
from torch import Tensor, nn

from cl_zoo import Recipe, hookimpl
from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch, forward
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.learning import recompute_activations
from cl_zoo.engine.run import Run
from cl_zoo.names import parse_stack
from cl_zoo.nn.layer import BankLayer
from cl_zoo.nn.placing import adapters
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample, Task
from cl_zoo.testing import tiny_backbone, tiny_benchmark

BENCHMARK = tiny_benchmark(3, size=8)
TASKS = [Task(place, data.name, data.instruction, 8) for place, data in enumerate(BENCHMARK.tasks)]


class Fold:
    """Every task learns on top of a frozen past and is folded into it: the past is replaced, the learner starts again."""

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> nn.Module:
        self.bank = adapters(backbone, recipe, "past")
        self.bank.add("new")
        self.bank.use(["past", "new"], trainable=["new"])
        return self.bank

    @hookimpl
    def after_task(self) -> None:
        for layer in self.bank.layers:
            down, up = layer.bank_down, layer.bank_up
            self.bank.put(
                "past", layer, torch.cat([down["past"], down["new"]]), torch.cat([up["past"], up["new"]], 1)
            )
            self.bank.put("new", layer, torch.randn_like(down["new"]), torch.zeros_like(up["new"]))
        self.bank.use(["past", "new"], trainable=["new"])


METHODS = [
    "finetune",
    "hide",
    "hide[variant=released]",
    "moelora[experts=2]",
    "olora",
    "modeltailor",
    f"{__file__}:Fold",
]
STACKS = [f"{method}+lwf" for method in METHODS]


def test_distillation_is_computed_in_fp32() -> None:
    assert (
        distillation(torch.zeros(1, 1, 9).bfloat16(), torch.ones(1, 1, 9).bfloat16(), 2.0).dtype
        == torch.float32
    )


# --- the teacher ----------------------------------------------------------------------------------------------------


class Lesson:
    """A stack on the tiny model between two tasks: learning is a random step of everything that learns."""

    def __init__(self, text: str, backbone: Backbone, **recipe: Any) -> None:
        torch.manual_seed(0)
        self.plugins, self.backbone = Plugins(parse_stack(text)), backbone
        settings = {"adapter.rank": 2, "adapter.dropout": 0, **recipe}
        model = self.plugins.build_model(backbone, build_recipe(BENCHMARK.recipe, settings))
        backbone.train_projector(True)
        assert model is not None
        self.model = model.train()
        self.lwf: LwF = self.plugins.instances["lwf"]

    def learn(self, place: int) -> nn.Module:
        """Learn task number `place`; returns a copy of the model as it stood when it had learnt."""
        self.plugins.before_task(self.model, TASKS[place])
        self.move()
        stood = copy.deepcopy(self.model).eval()
        data = BENCHMARK.tasks[place].train
        self.plugins.after_task(
            self.model, TASKS[place], [self.backbone.batch(list(data), answers=True)], {}, self.backbone
        )
        return stood

    def move(self) -> None:
        with torch.no_grad():
            for weight in self.model.parameters():
                if weight.requires_grad:
                    weight += 0.3 * torch.randn_like(weight)

    def term(self, batch: Batch, place: int = 1) -> Tensor:
        return self.plugins.loss(self.model, batch, forward(self.model, batch), TASKS[place])["lwf"]


def questions() -> list[Sample]:
    """Prompts and answers of different lengths, one without an image."""
    data = BENCHMARK.tasks
    return [data[0].train[0], data[2].train[1], Sample("t", None, "Say one colour .", "red")]


@torch.no_grad()
def alone(
    teacher: nn.Module, student: nn.Module, backbone: Backbone, temperature: float
) -> list[list[float]]:
    """The term between two models at each answer token, sample by sample without padding."""
    found = []
    for sample in questions():
        batch = backbone.batch([sample], answers=True)
        outputs = [forward(model, batch) for model in (teacher, student)]
        term = distillation(outputs[0].logits, outputs[1].logits, temperature)
        found.append(term[batch.answer_mask].tolist())
    return found


@pytest.mark.parametrize("text", STACKS)
def test_the_teacher_is_the_model_as_it_stood_after_the_previous_task(text: str, tiny: Backbone) -> None:
    """In stacks that train other experts per task, or fuse them, too; it is the latest one after two tasks."""
    lesson = Lesson(text, tiny)
    for place in (0, 1):
        stood = lesson.learn(place)
        lesson.plugins.before_task(lesson.model, TASKS[place + 1])
        lesson.move()

        batch = tiny.batch(questions(), answers=True)
        term = lesson.term(batch, place + 1)

        expected = alone(stood, copy.deepcopy(lesson.model).eval(), tiny, 2.0)
        here = [row[mask].tolist() for row, mask in zip(term, batch.answer_mask, strict=True)]
        assert max(max(values) for values in expected) > 1e-3
        for found, values in zip(here, expected, strict=True):
            assert found == pytest.approx(values, rel=1e-3, abs=3e-6)


@pytest.mark.parametrize("text", STACKS)
def test_the_teachers_forward_leaves_everything_as_it_was(text: str, tiny: Backbone) -> None:
    """Tensors, experts, modes, what learns, and the random generator, although the student drops out."""
    lesson = Lesson(text, tiny, **{"adapter.dropout": 0.5})
    lesson.learn(0)
    lesson.plugins.before_task(lesson.model, TASKS[1])
    batch = tiny.batch(questions(), answers=True)
    outputs = forward(lesson.model, batch)

    def state() -> tuple[Any, ...]:
        model = lesson.model
        layers = [module for module in model.modules() if isinstance(module, BankLayer)]
        return (
            [(name, id(one), one._version, one.requires_grad) for name, one in model.named_parameters()],
            [(list(layer._active_adapter), dict(layer.reads), layer.bank_mix) for layer in layers],
            [(name, module.training) for name, module in model.named_modules()],
            torch.get_rng_state().tolist(),
        )

    before = state()
    first = lesson.lwf.loss(lesson.model, batch, outputs)
    again = lesson.lwf.loss(lesson.model, batch, outputs)

    assert state() == before
    assert first is not None
    assert again is not None
    assert torch.equal(first["lwf"], again["lwf"])


def test_gradients_go_to_the_student_alone(tiny: Backbone) -> None:
    """The gradient through the term is that of a KL to a constant; where both agree it vanishes."""
    lesson = Lesson("finetune+lwf", tiny)
    lesson.learn(0)
    lesson.plugins.before_task(lesson.model, TASKS[1])
    batch = tiny.batch(questions(), answers=True)

    same = lesson.term(batch)
    assert same.abs().max() < 1e-6
    lesson.move()
    lesson.term(batch).sum().backward()

    gradients = {name: one.grad for name, one in lesson.model.named_parameters() if one.grad is not None}
    assert set(gradients) == set(lesson.lwf.teacher)
    assert all(tensor.grad is None and not tensor.requires_grad for tensor in lesson.lwf.teacher.values())
    outputs = forward(lesson.model, batch)
    with torch.no_grad():
        old = copy.deepcopy(lesson.model).eval()
        old.load_state_dict(lesson.lwf.teacher, strict=False)
        constant = forward(old, batch).logits
    lesson.model.zero_grad()
    distillation(constant, outputs.logits, 2.0).sum().backward()
    for name, one in lesson.model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(one.grad, gradients[name], rtol=1e-4, atol=1e-6)


def test_checkpointing_and_low_precision_give_the_same_term(tiny: Backbone) -> None:
    lesson = Lesson("moelora[experts=2]+lwf", tiny)
    lesson.learn(0)
    lesson.plugins.before_task(lesson.model, TASKS[1])
    lesson.move()
    batch = tiny.batch(questions(), answers=True)
    plain = lesson.term(batch)
    plain.sum().backward()
    gradients = [one.grad for one in lesson.model.parameters()]
    lesson.model.zero_grad()

    recompute_activations(tiny.model)
    term = lesson.term(batch)
    term.sum().backward()

    torch.testing.assert_close(term, plain)
    for one, gradient in zip(lesson.model.parameters(), gradients, strict=True):
        assert (one.grad is None) == (gradient is None)
        if gradient is not None:
            torch.testing.assert_close(one.grad, gradient)
    with torch.autocast("cpu", torch.bfloat16):
        low = lesson.term(batch)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low[batch.answer_mask], plain[batch.answer_mask], rtol=0.3, atol=0.05)


def test_strength_is_a_factor_and_temperature_an_option(tiny: Backbone) -> None:
    lesson = Lesson("finetune+lwf[strength=3,temperature=1.5]", tiny)
    stood = lesson.learn(0)
    lesson.plugins.before_task(lesson.model, TASKS[1])
    lesson.move()

    batch = tiny.batch(questions(), answers=True)
    term = lesson.term(batch)

    expected = alone(stood, copy.deepcopy(lesson.model).eval(), tiny, 1.5)
    assert term[0][batch.answer_mask[0]].tolist() == pytest.approx([3 * one for one in expected[0]], rel=1e-2)


def test_there_is_one_teacher_however_many_tasks_there_were(tiny: Backbone) -> None:
    """In a stack that trains a new expert per task, the tensors of older ones go."""
    lesson = Lesson("hide+lwf", tiny)
    lesson.learn(0)
    first = set(lesson.lwf.teacher)
    lesson.learn(1)

    assert {name.replace("t1", "t0") for name in lesson.lwf.teacher} == first


def test_the_first_task_has_no_teacher(tiny: Backbone) -> None:
    lesson = Lesson("finetune+lwf", tiny)
    lesson.plugins.before_task(lesson.model, TASKS[0])
    batch = tiny.batch(questions(), answers=True)

    assert lesson.lwf.loss(lesson.model, batch, forward(lesson.model, batch)) is None


@pytest.mark.parametrize("text", ["finetune+lwf", "hide[variant=released]+lwf"])
def test_a_state_comes_back(text: str, tiny: Backbone) -> None:
    lesson = Lesson(text, tiny)
    lesson.learn(0)
    again = LwF(LwF.Options())
    again.load_state_dict(copy.deepcopy(lesson.lwf.state_dict()))
    lesson.plugins.before_task(lesson.model, TASKS[1])
    again.before_task(lesson.model)
    lesson.move()
    batch = tiny.batch(questions(), answers=True)
    outputs = forward(lesson.model, batch)

    here, there = (method.loss(lesson.model, batch, outputs) for method in (lesson.lwf, again))

    assert here is not None
    assert there is not None
    assert torch.equal(here["lwf"], there["lwf"])


def test_options_say_what_is_out_of_range() -> None:
    for options in ({"strength": -1}, {"temperature": 0}, {"alpha": 1}):
        with pytest.raises(ValueError, match="validation error"):
            LwF.Options(**options)  # type: ignore[arg-type]


# --- in a run -------------------------------------------------------------------------------------------------------


def trained(text: str, folder: Path, root: Path, **recipe: Any) -> Run:
    benchmark = tiny_benchmark()
    return learnt(
        Run,
        text,
        benchmark.tasks,
        tiny_backbone(folder),
        build_recipe(benchmark.recipe, recipe),
        root / text.replace(".", "_"),
    )


def test_strength_zero_is_fine_tuning_bit_for_bit_and_keeps_no_teacher(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """With dropout: a teacher that drew a random number would change the student's masks."""
    settings = {"adapter.dropout": 0.5}
    plain, without, with_it = (
        trained(text, tiny_folder, tmp_path, **settings)
        for text in ("finetune", "finetune+lwf[strength=0]", "finetune+lwf")
    )

    assert all(
        torch.equal(weights(plain.model)[name], weights(without.model)[name]) for name in weights(plain.model)
    )
    assert not all(
        torch.equal(weights(plain.model)[name], weights(with_it.model)[name]) for name in weights(plain.model)
    )
    assert without.plugins.instances["lwf"].state_dict() == {"teacher": {}, "experts": {}}


def test_a_teacher_whose_weight_is_next_to_nothing_changes_next_to_nothing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """The teacher runs in every step and neither draws random numbers nor moves a weight."""
    settings = {"adapter.dropout": 0.5}
    plain = weights(trained("finetune", tiny_folder, tmp_path, **settings).model)
    close = weights(trained("finetune+lwf[strength=1e-12]", tiny_folder, tmp_path, **settings).model)

    for name in plain:
        torch.testing.assert_close(close[name], plain[name], rtol=0, atol=1e-4)


def test_the_teacher_is_counted_among_what_is_stored_for_continuing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """One copy of what trains, and no second model."""
    run = trained("lwf", tiny_folder, tmp_path)

    assert run.ledger.stored["continuing"]["plugins"] == sum(run.ledger.tasks[-1].trained.values())
