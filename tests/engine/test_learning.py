"""Learning one task: what a step minimises, at which rates, and what is refused."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_zoo import hookimpl
from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch, forward
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.learning import (
    Learner,
    assign_parts,
    recompute_activations,
)
from cl_zoo.engine.ledger import TaskCost
from cl_zoo.engine.optimising import make_optimizer, rate
from cl_zoo.errors import PluginError
from cl_zoo.nn.placing import adapters
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import Recipe, build_recipe
from cl_zoo.tasks import Sample, Task
from cl_zoo.testing import tiny_backbone, tiny_benchmark

SAMPLES = tuple(tiny_benchmark(3).tasks[2].train)  # answers of three words


def stack(*plugins: Any) -> Plugins:
    """Plugins that exist already, under the names of their classes."""
    made = Plugins(())
    for plugin in plugins:
        made.manager.register(plugin, type(plugin).__name__)
        made.instances[type(plugin).__name__] = plugin
    return made


def recipe(**changes: Any) -> Recipe:
    base = {
        "global_batch": 6,
        "adapter.dropout": 0,
        "adapter.rank": 2,
        "lr.adapters": 1e-2,
        "lr.projector": 1e-3,
    }
    return build_recipe(base, {key.replace("__", "."): value for key, value in changes.items()})


class Recorder(Learner):
    """Keeps the gradients that each step hands to the optimiser, and the rates that it uses."""

    gradients: list[dict[str, Tensor]]
    rates: list[list[float]]

    def _update(self) -> None:
        named = {id(weight): name for name, weight in self.model.named_parameters()}
        self.rates = [*getattr(self, "rates", []), [group["lr"] for group in self.optimizer.param_groups]]
        seen: list[dict[str, Tensor]] = getattr(self, "gradients", [])

        def look(*_: Any) -> None:
            seen.append({named[id(w)]: w.grad.clone() for w in self.learning if w.grad is not None})

        hook = self.optimizer.register_step_pre_hook(look)
        super()._update()
        hook.remove()
        self.gradients = seen


def learner(
    backbone: Backbone,
    plugins: Plugins | None = None,
    pool: Sequence[Sample] = SAMPLES,
    own: int = 12,
    **changes: Any,
) -> Recorder:
    """A learner of one task on a bank with one expert whose A is not zero and whose B neither."""
    chosen = recipe(**changes)
    torch.manual_seed(0)
    model = adapters(backbone, chosen)
    for layer in model.layers:
        nn.init.normal_(layer.bank_up["shared"], std=0.05)
    backbone.train_projector(chosen.projector == "sequential")
    return Recorder(
        model,
        Task(0, "description", "", own),
        pool,
        backbone=backbone,
        plugins=plugins or stack(),
        recipe=chosen,
        world=World("cpu"),
        seed=0,
    )


def silent(**_: Any) -> None:
    pass


class Terms:
    """One term of every shape."""

    @hookimpl
    def loss(self, model: nn.Module, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        weights = [weight for name, weight in model.named_parameters() if "bank_up" in name]
        lengths = torch.tensor([float(len(sample.prompt)) for sample in batch.samples])
        return {
            "scalar": 3 * torch.stack([(weight**2).sum() for weight in weights]).sum(),
            "sample": lengths * outputs.logits.float().square().mean((1, 2)) * 0.1,
            "token": outputs.logits.float().logsumexp(-1),
        }


def test_the_first_steps_objective_is_what_its_definition_says(tiny: Backbone) -> None:
    """task: mean over the answer tokens of the global batch; scalar once; sample: mean over the six samples."""
    teacher = learner(tiny, stack(Terms()), micro_batch=2)
    indices = [3, 0, 11, 7, 5, 2]
    whole = tiny.batch([SAMPLES[i] for i in indices], answers=True)
    with torch.no_grad():
        outputs = forward(teacher.model, whole)
        log_p = outputs.logits.log_softmax(-1)
        mine = Terms().loss(teacher.model, whole, outputs)
    mask, targets = whole.answer_mask, whole.targets
    assert targets is not None
    by_hand = -torch.stack([log_p[i, j, targets[i, j]] for i, j in mask.nonzero().tolist()]).mean()

    terms = teacher.step(indices)

    assert terms["task"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert terms["scalar"].item() == pytest.approx(mine["scalar"].item(), rel=1e-5)
    assert terms["sample"].item() == pytest.approx(mine["sample"].mean().item(), rel=1e-5)
    assert terms["token"].item() == pytest.approx(mine["token"][mask].mean().item(), rel=1e-5)


# --- micro-batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [1, 2, 3, 4])
def test_micro_batches_change_neither_gradients_nor_weights(tiny_folder: Any, micro: int) -> None:
    """Without dropout, gradients agree to 1e-5 of their size and weights after two steps at rate 1e-2 to 1e-4."""

    whole = learner(tiny_backbone(tiny_folder), stack(Terms()))
    parts = learner(tiny_backbone(tiny_folder), stack(Terms()), micro_batch=micro)
    for one in (whole, parts):
        one.run(silent)

    assert len(parts.gradients) == 2
    for name, gradient in whole.gradients[0].items():
        torch.testing.assert_close(
            parts.gradients[0][name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max())
        )
    for a, b in zip(whole.learning, parts.learning, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_recomputed_activations_give_the_same_gradients(tiny_folder: Any) -> None:

    kept, again = (learner(tiny_backbone(tiny_folder), global_batch=12) for _ in range(2))
    recompute_activations(again.backbone.model)
    for one in (kept, again):
        one.run(silent)

    for name, gradient in kept.gradients[0].items():
        torch.testing.assert_close(again.gradients[0][name], gradient)


# --- rates, optimiser, clipping -------------------------------------------------------------------------------------


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine() -> None:
    """Ten steps, a fifth of them warm-up: 1/3, 2/3, then (1 + cos(π k/8))/2 for k = 0 … 7."""
    by_hand = [1 / 3, 2 / 3] + [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]

    assert [rate(step, 10, recipe(warmup=0.2)) for step in range(10)] == pytest.approx(by_hand)
    assert by_hand[2] == 1
    assert by_hand[6] == pytest.approx(0.5)


def test_the_warm_up_is_rounded_up_and_a_constant_schedule_stays() -> None:
    """3 % of ten steps are one step at half the rate."""
    assert [rate(step, 10, recipe(schedule="constant")) for step in range(3)] == [0.5, 1, 1]
    assert [rate(step, 4, recipe(schedule="constant", warmup=0)) for step in range(4)] == [1] * 4


def test_every_part_learns_at_its_own_scheduled_rate(tiny: Backbone) -> None:
    """Four steps, one of them warm-up: factors 1/2, 1, 3/4, 1/4 on 1e-2 for adapters and 1e-3 for the projector."""
    teacher = learner(tiny, global_batch=3)
    teacher.run(silent)

    factors = [0.5, 1, 0.75, 0.25]
    assert [used[0] for used in teacher.rates] == pytest.approx([1e-2 * factor for factor in factors])
    assert [used[1] for used in teacher.rates] == pytest.approx([1e-3 * factor for factor in factors])


def test_a_part_without_a_rate_learns_as_the_adapters_do() -> None:
    weights = {part: [nn.Parameter(torch.zeros(2))] for part in ("adapters", "prompts", "keys")}

    optimizer = make_optimizer(
        {**weights, "empty": []}, recipe(lr__prompts=0.5, weight_decay=0.1, betas=(0.8, 0.9))
    )

    assert {group["lr"]: group["params"] for group in optimizer.param_groups} == {
        1e-2: [*weights["adapters"], *weights["keys"]],
        0.5: weights["prompts"],
    }
    assert {(group["weight_decay"], group["betas"]) for group in optimizer.param_groups} == {
        (0.1, (0.8, 0.9))
    }


def test_two_plugins_may_give_one_part_a_rate_each(tiny: Backbone) -> None:
    """The rate of a plugin's own pools goes before that of pools; what no plugin speaks of is the method's, here the first plugin's."""

    class Others(Words):
        """Another plugin."""

    model = Extended(Extended(adapters(tiny, recipe())))
    plugins = stack(Words(pools=["pool"]), Others(pools=["inner.pool"]))
    chosen = recipe(lr__pools=0.3, lr__Words__pools=0.5, lr__Words__adapters=0.7, lr__Others__adapters=0.9)
    made = Learner(
        model,
        Task(0, "side", "", 12),
        SAMPLES,
        backbone=tiny,
        plugins=plugins,
        recipe=chosen,
        world=World("cpu"),
        seed=0,
    )

    rates = {
        id(weight): group["initial_lr"] for group in made.optimizer.param_groups for weight in group["params"]
    }
    assert rates[id(model.pool)] == 0.5
    assert rates[id(model.inner.pool)] == 0.3
    assert {rates[id(weight)] for weight in made.parts["adapters"]} == {0.7}


def test_the_first_step_is_adamw_with_the_gradient_of_the_objective(tiny: Backbone) -> None:
    """AdamW's first step is −η·g/(|g| + ε), whatever the size of the gradient."""
    teacher = learner(tiny, global_batch=12, schedule="constant", warmup=0)
    before = {name: weight.detach().clone() for name, weight in teacher.model.named_parameters()}
    teacher.run(silent)

    for name, weight in teacher.model.named_parameters():
        if name not in teacher.gradients[0]:
            assert torch.equal(weight, before[name])
            continue
        gradient = teacher.gradients[0][name]
        lr = 1e-3 if "projector" in name else 1e-2
        expected = before[name] - lr * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("clip", "clipped"), [("none", False), ("norm", True)])
def test_gradients_are_clipped_only_where_the_recipe_says_so(
    tiny: Backbone, clip: str, clipped: bool
) -> None:
    teacher = learner(tiny, clip=clip, clip_norm=1e-3)
    teacher.run(silent)

    norm = torch.cat([gradient.flatten() for gradient in teacher.gradients[0].values()]).norm().item()
    assert (norm == pytest.approx(1e-3, rel=1e-3)) == clipped
    assert clipped or norm > 1e-2


class Edits:
    """Sees the gradients of each step, doubles those of A, and leaves out those of B in the last linear."""

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    @hookimpl
    def before_step(self, model: nn.Module) -> None:
        learning = {name: weight for name, weight in model.named_parameters() if weight.grad is not None}
        self.found.append({name: weight.grad.clone() for name, weight in learning.items()})
        for name, weight in learning.items():
            if "bank_down" in name:
                weight.grad *= 2
        list(model.layers)[-1].bank_up["shared"].grad = None


@pytest.mark.parametrize("micro", [None, 2])
def test_gradients_of_the_whole_batch_are_changed_before_they_are_clipped(
    tiny_folder: Path, micro: int | None
) -> None:
    """The first step's are those of the batch, whatever it is cut into; a weight without one stays, in spite of its momentum."""
    plain = learner(tiny_backbone(tiny_folder))
    plain.run(silent)
    edits = Edits()
    teacher = learner(
        tiny_backbone(tiny_folder), stack(edits), micro_batch=micro, clip="norm", clip_norm=1e-3
    )
    last = list(teacher.model.layers)[-1].bank_up["shared"]
    before = last.detach().clone()

    teacher.run(silent)

    assert len(edits.found) == teacher.cost.steps == 2
    assert edits.found[0].keys() == plain.gradients[0].keys()
    handed, doubled = teacher.gradients[0], {}
    for name, gradient in plain.gradients[0].items():
        torch.testing.assert_close(edits.found[0][name], gradient, rtol=1e-3, atol=1e-7)
        doubled[name] = gradient * (2 if "bank_down" in name else 1)
    assert len(doubled.keys() - handed.keys()) == 1
    norm = torch.cat([doubled[name].flatten() for name in handed]).norm()
    for name, gradient in handed.items():
        torch.testing.assert_close(gradient, doubled[name] * 1e-3 / norm, rtol=1e-3, atol=1e-8)
    assert torch.equal(last, before)


# --- what is refused ------------------------------------------------------------------------------------------------


class Burst:
    """A term that is not a number from a given step on."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value, self.calls = step, value, 0

    @hookimpl
    def loss(self, model: nn.Module) -> dict[str, Tensor]:
        self.calls += 1
        weight = next(weight for weight in model.parameters() if weight.requires_grad)
        return {"burst": (weight.sum() * 0 + 1) * (self.value if self.calls >= self.step else 1.0)}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_objective_that_is_not_finite_stops_the_run_at_its_step(tiny: Backbone, value: float) -> None:
    teacher = learner(tiny, stack(Burst(2, value)), global_batch=3)

    with pytest.raises(
        PluginError, match=r"Burst, task description, step 2 .*: the term 'burst' is (nan|inf); lower"
    ):
        teacher.run(silent)


def test_a_task_in_which_nothing_learns_is_refused(tiny: Backbone) -> None:
    model = adapters(tiny, recipe())
    model.use(["shared"], trainable=[])

    with pytest.raises(PluginError, match="task side: nothing requires a gradient; let before_task"):
        Learner(
            model,
            Task(0, "side", "", 12),
            SAMPLES,
            backbone=tiny,
            plugins=stack(),
            recipe=recipe(),
            world=World("cpu"),
            seed=0,
        )


class Words:
    """A plugin that says what belongs to which part."""

    def __init__(self, **parts: list[str]) -> None:
        self.words = parts

    def parts(self, model: nn.Module) -> dict[str, list[str]]:
        return self.words


class Extended(nn.Module):
    """The model with a pool of prompts beside it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.pool = inner, nn.Parameter(torch.zeros(3))


def test_parts_are_the_plugins_the_banks_and_the_projector(tiny: Backbone) -> None:
    model = Extended(adapters(tiny, recipe()))
    tiny.train_projector(True)

    parts = assign_parts(model, stack(Words(prompts=["pool"])), tiny)

    assert list(parts) == ["prompts", "adapters", "projector"]
    assert parts["prompts"] == ["pool"]
    assert len(parts["adapters"]) == 2 * 14  # A and B of 14 linears
    assert len(parts["projector"]) == 4


def test_a_plugins_word_on_a_weight_comes_before_the_banks(tiny: Backbone) -> None:
    model = adapters(tiny, recipe())
    name = next(name for name, _ in model.named_parameters() if "bank_down" in name)

    parts = assign_parts(model, stack(Words(shared=[name])), tiny)

    assert parts["shared"] == [name]
    assert name not in parts["adapters"]


def test_a_trainable_tensor_in_no_part_is_refused(tiny: Backbone) -> None:
    with pytest.raises(PluginError, match="pool is trainable but belongs to no part"):
        assign_parts(Extended(adapters(tiny, recipe())), stack(), tiny)


def test_a_tensor_in_two_parts_is_refused(tiny: Backbone) -> None:
    with pytest.raises(PluginError, match="pool belongs to 'prompts' and to 'keys'; name it once"):
        assign_parts(Extended(adapters(tiny, recipe())), stack(Words(prompts=["pool"], keys=["pool"])), tiny)


def test_a_part_that_names_nothing_is_refused(tiny: Backbone) -> None:
    with pytest.raises(PluginError, match="'prompts' names 'pol', which the model does not have"):
        assign_parts(Extended(adapters(tiny, recipe())), stack(Words(prompts=["pol"])), tiny)


def test_the_frozen_backbone_cannot_be_made_to_learn(tiny: Backbone) -> None:
    model = Extended(adapters(tiny, recipe()))
    tiny.model.lm_head.requires_grad_(True)

    with pytest.raises(PluginError, match=r"lm_head\.weight belongs to the frozen backbone"):
        assign_parts(model, stack(Words(prompts=["pool"])), tiny)


# --- costs ----------------------------------------------------------------------------------------------------------


def test_costs_are_counted_by_hand(tiny: Backbone) -> None:
    """Twelve samples twice in batches of five: six steps; no padding counts as a token."""
    teacher = learner(tiny, epochs=2, global_batch=5, micro_batch=2)

    cost = teacher.run(silent)

    single = [tiny.batch([sample], answers=True) for sample in SAMPLES]
    assert (cost.task, cost.steps, cost.samples, cost.rehearsed) == ("description", 6, 24, 0)
    assert cost.tokens == 2 * sum(batch.inputs["input_ids"].shape[1] for batch in single)
    assert cost.answer_tokens == 2 * 12 * 4  # "a … square" and its end
    assert cost.trained == {"adapters": 2 * 2 * 496, "projector": 1600}
    assert cost.seconds > 0
    assert isinstance(cost, TaskCost)


def test_rehearsed_samples_make_batches_larger_and_steps_no_more(tiny: Backbone) -> None:
    """Twelve own and six old samples in three steps of six."""
    teacher = learner(tiny, pool=[*SAMPLES, *SAMPLES[:6]], global_batch=4)

    cost = teacher.run(silent)

    assert (cost.steps, cost.samples, cost.rehearsed) == (3, 18, 6)


def test_rehearsed_samples_leave_the_own_ones_in_the_order_of_a_run_without_them(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[list[int]] = []
    real = Learner.step

    def step(self: Learner, indices: Sequence[int], following: Sequence[int]) -> dict[str, Tensor]:
        taken[-1].extend(indices)
        return real(self, indices, following)

    monkeypatch.setattr(Learner, "step", step)
    for pool in (SAMPLES, [*SAMPLES, *SAMPLES[:6]]):
        taken.append([])
        learner(tiny_backbone(tiny_folder), pool=pool, global_batch=4).run(silent)

    alone, mixed = taken
    assert [place for place in mixed if place < 12] == alone
    assert sorted(mixed) == list(range(18))
    assert mixed[:12] != alone  # the old ones stand between them, not behind


def test_progress_is_told_every_ten_steps_and_at_the_end(tiny: Backbone) -> None:
    told: list[dict[str, Any]] = []
    learner(tiny, global_batch=1).run(lambda **facts: told.append(facts))

    assert [(one["phase"], one["step"], one["steps"]) for one in told] == [
        ("train", 10, 12),
        ("train", 12, 12),
    ]
    assert set(told[0]["terms"]) == {"task"}


def test_a_model_is_told_of_each_step_when_the_optimiser_has_made_it(tiny: Backbone) -> None:
    """Twelve samples in batches of six, twice, two at a time: four steps, each of which has moved the weights."""
    one = learner(tiny, epochs=2, micro_batch=2)
    weight = one.learning[0]
    told: list[tuple[int, int]] = []
    seen = [weight.detach().clone()]

    def stepped(done: int, total: int) -> None:
        told.append((done, total))
        seen.append(weight.detach().clone())

    one.model.stepped = stepped
    one.run(silent)

    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not any(torch.equal(before, now) for before, now in pairwise(seen))


def test_training_teaches_the_answers(tiny: Backbone) -> None:
    """Of "a … square" and its end, three of four tokens are the same in all answers."""
    teacher = learner(tiny, global_batch=4, epochs=8, adapter__rank=8, lr__adapters=3e-2)
    batch = tiny.batch(SAMPLES, answers=True)

    def right() -> float:
        with torch.no_grad():
            guesses = forward(teacher.model.eval(), batch).logits.argmax(-1)
        return float((guesses == batch.targets)[batch.answer_mask].float().mean())

    assert right() < 0.5
    teacher.run(silent)
    assert right() >= 0.75


def test_images_of_one_micro_batch_at_a_time_are_in_memory(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve samples in pieces of three: a batch is made after the one before it was learnt from."""
    alive: list[int] = []
    made: list[weakref.ref[Batch]] = []
    real = tiny.batch

    def batch(samples: Sequence[Sample], *, answers: bool) -> Batch:
        alive.append(sum(one() is not None for one in made))
        one = real(samples, answers=answers)
        made.append(weakref.ref(one))
        return one

    monkeypatch.setattr(tiny, "batch", batch)
    learner(tiny, global_batch=12, micro_batch=3).run(silent)

    assert len(made) == 4
    assert max(alive) <= 1


def test_a_process_that_has_no_sample_of_a_short_batch_takes_part_with_nothing(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two processes, in a step of one sample."""
    one = learner(tiny, global_batch=4)
    monkeypatch.setattr(one.world, "rank", 1)
    monkeypatch.setattr(one.world, "size", 2)
    monkeypatch.setattr(one.world, "sum", lambda value: value)
    monkeypatch.setattr(one.world, "reduce_gradients", lambda weights: None)

    assert one.step([0]) == {}
    assert one.cost.steps == 1
