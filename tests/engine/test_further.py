"""What a plugin learns further when a task is over: by which loss, at whose cost, and what it leaves to others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from tiny_runs import learnt
from torch import Tensor, nn

from cl_zoo import Backbone, Batch, Recipe, Sample, hookimpl
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.ledger import training_flops
from cl_zoo.engine.run import Run
from cl_zoo.engine.sizes import sizes
from cl_zoo.errors import PluginError
from cl_zoo.names import parse_stack
from cl_zoo.nn import ExpertBank, adapters, standing_still
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Task
from cl_zoo.testing import tiny_backbone, tiny_benchmark

HERE = __file__
BENCHMARK = tiny_benchmark(2, size=8)
RANK_ONE, PROJECTOR = 2 * 496, 1600
"""Parameters of the tiny model's LoRA of rank 1, and of its projector."""


class Later:
    """An expert for the task, and a second one that learns three of its samples four times when it is over."""

    def __init__(self) -> None:
        self.asked = self.before_steps = self.after_steps = 0
        self.before: list[dict[str, Tensor]] = []

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> ExpertBank:
        self.backbone, self.bank = backbone, adapters(backbone, recipe, "main")
        self.bank.add("later", rank=1)
        return self.bank

    @hookimpl
    def before_task(self) -> None:
        self.bank.use(["main"], trainable=["main"])

    @hookimpl
    def loss(self) -> Mapping[str, Tensor]:
        self.asked += 1
        return {}

    @hookimpl
    def before_step(self) -> None:
        self.before_steps += 1

    @hookimpl
    def after_step(self) -> None:
        self.after_steps += 1

    @hookimpl
    def after_task(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        learn: Callable[[Sequence[Sample], int], None],
    ) -> None:
        self.before.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
        with standing_still(model):
            self.bank.use(["main", "later"], trainable=["later"])
            self.backbone.projector.requires_grad_(False)
            learn(batches[0].samples[:3] if len(batches) else [], 4)

    @hookimpl
    def build_inference_model(self) -> ExpertBank:
        self.bank.use(["main", "later"])
        return self.bank


class Draws:
    """Measures what it draws."""

    @hookimpl
    def after_task(self) -> dict[str, float]:
        return {"drawn": float(torch.rand(())), "seed": float(torch.initial_seed() % 1000)}


def run(stack: str, folder: Path, root: Path) -> Run:
    recipe = build_recipe(BENCHMARK.recipe, {"adapter.rank": 2})
    return learnt(Run, stack, BENCHMARK.tasks, tiny_backbone(folder), recipe, root)


@pytest.fixture(scope="module")
def later(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(f"{HERE}:Later+{HERE}:Draws", tiny_folder, tmp_path_factory.mktemp("later"))


def test_what_is_learnt_further_is_counted_with_the_task(later: Run) -> None:
    """Two steps on 8 samples, then four epochs of one step on 3; a LoRA of rank 2 and the projector, then one of rank 1."""
    for cost in later.ledger.tasks:
        assert (cost.steps, cost.samples, cost.rehearsed) == (2 + 4, 8 + 4 * 3, 0)
        assert cost.trained == {"adapters": 3 * RANK_ONE, "projector": PROJECTOR}
        assert cost.answer_tokens == 2 * (8 + 4 * 3)  # a word and the end token each
        own = training_flops(later.backbone, 1, 2 * RANK_ONE + PROJECTOR)
        further = training_flops(later.backbone, 1, RANK_ONE)
        assert cost.tokens * further < cost.flops < cost.tokens * own
    assert later.ledger.hooks["after_task"] >= 0


def test_the_same_is_counted_without_values(later: Run, tiny_folder: Path) -> None:
    backbone = tiny_backbone(tiny_folder)
    shapes = backbone.with_model(backbone.model.to("meta"))
    counted = sizes(parse_stack(f"{HERE}:Later"), shapes, later.recipe, 2)

    assert [size.trained for size in counted] == [cost.trained for cost in later.ledger.tasks]


def test_only_what_was_chosen_learns_by_the_models_own_loss(later: Run) -> None:
    """The plugin's own term is asked for in the four steps of the two tasks alone, and it hears of these alone; the second expert moves behind the first task."""
    plugin = later.plugins.instances[f"{HERE}:Later"]
    first, second = plugin.before

    assert plugin.asked == plugin.before_steps == plugin.after_steps == 4
    moved = {name for name, weight in later.model.named_parameters() if not torch.equal(weight, second[name])}
    assert moved == {name for name in second if name.endswith(".later")}
    assert any(not torch.equal(first[name], second[name]) for name in moved)


def test_who_comes_next_in_the_stack_draws_as_if_nothing_had_been_learnt(
    later: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    assert later.measured == run(f"finetune+{HERE}:Draws", tiny_folder, tmp_path).measured


def test_a_plugin_that_is_asked_outside_of_a_run_cannot_learn(tiny: Backbone) -> None:
    plugins = Plugins(parse_stack(f"{HERE}:Later"))
    model = plugins.build_model(tiny, build_recipe({}))

    assert model is not None
    with pytest.raises(PluginError, match="asked to learn where nothing is trained"):
        plugins.after_task(model, Task(0, "colour", "", 8), [], {}, tiny)
