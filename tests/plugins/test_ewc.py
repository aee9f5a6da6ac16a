"""EWC: what it looks at, what it leaves alone, and what it keeps. Its Fisher information and penalty: `tests/oracles/test_ewc.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from cl_zoo_ewc import EWC, diagonal_fisher
from tiny_runs import learnt, weights
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch, task_loss
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.learning import Learner
from cl_zoo.engine.run import Run
from cl_zoo.names import parse_stack
from cl_zoo.nn.placing import adapters
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample, Task
from cl_zoo.testing import tiny_backbone, tiny_benchmark

X = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]])
Y = torch.tensor([1, 0, 1])


class Logistic(nn.Module):
    """p(token 1 | x) = σ(w·x) over a vocabulary of two: the smallest model whose Fisher is known in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3, -0.7]))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(1))
        self.modes: list[bool] = []

    def forward(self, x: Tensor, **_: Any) -> Any:
        self.modes.append(self.training)
        one = x @ (self.w * self.frozen)
        return type("Outputs", (), {"logits": torch.stack([torch.zeros_like(one), one], -1)[:, None]})


def batches(*sizes: int) -> list[Batch]:
    """The three samples in batches of the given sizes."""
    start, made = 0, []
    for size in sizes:
        place = slice(start, start + size)
        samples = tuple(Sample(str(i), None, "?", "!") for i in range(size))
        ids = torch.zeros(size, 1, dtype=torch.long)
        made.append(Batch(samples, {"x": X[place], "input_ids": ids}, Y[place, None]))
        start += size
    return made


def closed_form(count: int) -> Tensor:
    """For a logistic model the gradient of −log p is (σ(w·x) − y)·x, so F_i = mean (σ − y)² x_i²."""
    model = Logistic()
    return (((X @ model.w).sigmoid() - Y)[:, None] * X)[:count].pow(2).mean(0).detach()


def test_a_batch_for_the_fisher_has_at_most_eight_samples() -> None:
    """Of 9 like samples the first 8 have one mean gradient, the last one its own: the same, so F is one squared gradient."""
    model, sample = Logistic(), batches(3)[0].rows([2])
    nine = sample.rows([0] * 9)
    squares: list[int] = []
    model.register_forward_pre_hook(
        lambda module, arguments, given: squares.append(len(given["x"])), with_kwargs=True
    )

    fisher = diagonal_fisher(model, [nine], samples=9, per="batch")

    assert squares == [8, 1]
    torch.testing.assert_close(fisher["w"], diagonal_fisher(Logistic(), [sample], samples=1)["w"])


def test_the_fisher_of_b_samples_together_is_a_bth_where_the_mean_gradient_is_zero() -> None:
    """x = 1 and y = 1, 0, 1 are fitted by σ(w) = 2/3: gradients −1/3, 2/3, −1/3, mean square 2/9. Over all nine ordered pairs the
    square of the mean is 1/9 on average."""
    model = Logistic()
    model.w.data = torch.tensor([2.0, 1.0]).log()
    three = Batch(
        tuple(Sample(str(i), None, "?", "!") for i in range(3)),
        {"x": torch.tensor([[1.0, 0.0]] * 3), "input_ids": torch.zeros(3, 1, dtype=torch.long)},
        Y[:, None],
    )
    pairs = [three.rows([i, j]) for i in range(3) for j in range(3)]

    assert diagonal_fisher(model, [three], samples=3)["w"][0].item() == pytest.approx(2 / 9)
    assert diagonal_fisher(model, pairs, samples=18, per="batch")["w"][0].item() == pytest.approx(1 / 9)


@pytest.mark.parametrize(
    ("options", "strength"),
    [({}, 625), ({"fisher": "batch"}, 5000), ({"strength": 3}, 3), ({"fisher": "batch", "strength": 0}, 0)],
)
def test_the_strength_belongs_to_the_fisher(options: dict[str, Any], strength: float) -> None:
    """With F = (1, 0) and θ − θ* = (2, 5) the penalty is λ/2 · 4."""
    model, method = Logistic(), EWC(EWC.Options(**options))
    F, anchor = torch.tensor([1.0, 0.0]), model.w.detach() - torch.tensor([2.0, 5.0])
    method.importance, method.pull, method.offset = {"w": F}, {"w": F * anchor}, {"w": (F * anchor**2).sum()}

    terms = method.loss(model)

    assert (terms["ewc"].item() if terms else 0) == pytest.approx(2 * strength, rel=1e-4)


@pytest.mark.parametrize("mode", ["summed", "online"])
def test_without_samples_on_the_meta_device_the_shapes_are_right(mode: Literal["summed", "online"]) -> None:
    """How a ledger is counted: no value is ever read."""
    model, method = Logistic().to("meta"), EWC(EWC.Options(mode=mode))

    measured = [method.after_task(model, []) for _ in range(2)]

    assert measured[1]["ewc/fisher_trace"].shape == ()
    assert {name: F.shape for name, F in method.importance.items()} == {"w": (2,), "unused": (1,)}
    assert all(tensor.is_meta for tensor in method.pull.values())


@pytest.mark.parametrize("training", [True, False])
def test_the_fisher_looks_in_evaluation_mode_and_puts_the_mode_back(training: bool) -> None:
    model = Logistic().train(training)

    diagonal_fisher(model, batches(3), samples=3)

    assert model.modes == [False] * 3
    assert model.training == training
    assert model.w.grad is None


def test_a_weight_that_leaves_the_model_takes_its_penalty_with_it() -> None:
    """Were one of that name to come back, in another shape even, it would be a new weight."""
    model, method = Logistic(), EWC(EWC.Options())
    method.after_task(model, batches(3))
    del model.unused
    method.after_task(model, batches(3))

    for table in (method.importance, method.pull, method.offset):
        assert set(table) == {"w"}


def test_the_first_task_has_no_penalty() -> None:
    assert EWC(EWC.Options()).loss(Logistic()) is None


def test_weights_that_came_later_or_stand_still_are_free() -> None:
    model, method = Logistic(), EWC(EWC.Options())
    method.after_task(model, batches(3))

    later = nn.Module()
    later.fresh = nn.Parameter(torch.ones(1))
    assert method.loss(later) is None

    model.w.requires_grad_(False)
    terms = method.loss(model)
    assert terms is not None
    terms["ewc"].backward()
    assert model.w.grad is None


def test_the_trace_of_the_fisher_is_measured() -> None:
    measured = EWC(EWC.Options()).after_task(Logistic(), batches(3))

    assert measured["ewc/fisher_trace"].item() == pytest.approx(float(closed_form(3).sum()))


def test_options_say_what_is_out_of_range() -> None:
    for options in ({"mode": "off"}, {"decay": 1.5}, {"strength": -1}, {"samples": 0}, {"fisher": "token"}):
        with pytest.raises(ValueError, match="validation error"):
            EWC.Options(**options)  # type: ignore[arg-type]


def test_a_state_comes_back() -> None:
    method = EWC(EWC.Options())
    method.after_task(Logistic(), batches(3))
    again = EWC(EWC.Options())
    again.load_state_dict(method.state_dict())

    terms, others = method.loss(Logistic()), again.loss(Logistic())
    assert terms is not None
    assert others is not None
    assert torch.equal(terms["ewc"], others["ewc"])


# --- in a run -------------------------------------------------------------------------------------------------------


def trained(text: str, folder: Path, root: Path, **recipe: Any) -> dict[str, Tensor]:
    """Weights after both tiny tasks."""
    benchmark = tiny_benchmark()
    recipe_ = build_recipe(benchmark.recipe, recipe)
    root = root / text.replace(".", "_")
    return weights(learnt(Run, text, benchmark.tasks, tiny_backbone(folder), recipe_, root).model)


def test_strength_zero_is_fine_tuning_bit_for_bit(tiny_folder: Path, tmp_path: Path) -> None:
    plain = trained("finetune", tiny_folder, tmp_path)
    without = trained("ewc[strength=0]", tiny_folder, tmp_path)
    with_it = trained("ewc[strength=1e6]", tiny_folder, tmp_path)

    assert plain.keys() == without.keys()
    assert all(torch.equal(plain[name], without[name]) for name in plain)
    assert not all(torch.equal(plain[name], with_it[name]) for name in plain)


def test_a_method_that_trains_new_weights_only_can_stand_beside_it(tiny_folder: Path, tmp_path: Path) -> None:
    trained("hide+ewc", tiny_folder, tmp_path, projector="frozen")


def test_the_fisher_of_a_real_model_by_eights_is_an_eighth_and_the_mean_gradient_squared(
    tiny: Backbone,
) -> None:
    """E (Σ g_i / b)² = E g² / b + (1 − 1/b) (E g)² over random eights: traces on the tiny model before it has learnt anything,
    where E g is not zero yet; the answers all have one length, so that means over tokens are means over samples."""
    torch.manual_seed(0)
    data = list(tiny_benchmark(1, size=24).tasks[0].train)
    model = adapters(tiny, build_recipe({"adapter.dropout": 0}))
    for layer in model.layers:
        nn.init.normal_(layer.bank_up["shared"], std=0.05)
    eights = [[data[i] for i in torch.randint(len(data), (8,)).tolist()] for _ in range(60)]

    def trace(pieces: list[list[Sample]], per: Literal["sample", "batch"]) -> float:
        made = [tiny.batch(piece, answers=True) for piece in pieces]
        return sum(float(F.sum()) for F in diagonal_fisher(model, made, 10_000, per).values())

    by_sample, by_eights = trace([data], "sample"), trace(eights, "batch")

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    mean = torch.autograd.grad(task_loss(model.eval(), tiny.batch(data, answers=True)), weights)
    together = sum(float((gradient**2).sum()) for gradient in mean)
    assert by_eights == pytest.approx(by_sample / 8 + 7 / 8 * together, rel=0.15)
    assert by_eights < 0.7 * by_sample


def test_the_penalty_is_a_scalar_that_counts_once_per_step(tiny: Backbone) -> None:
    """Two micro-batches see the penalty twice and count it once."""
    plugins = Plugins(parse_stack("finetune+ewc[strength=2]"))
    recipe = build_recipe({"global_batch": 4, "micro_batch": 2, "adapter.dropout": 0})
    model = plugins.build_model(tiny, recipe)
    assert model is not None
    weight = next(name for name, weight in model.named_parameters() if weight.requires_grad)
    method = plugins.instances["ewc"]
    shape = dict(model.named_parameters())[weight].shape
    method.importance = {weight: torch.ones(shape)}
    method.pull = {weight: dict(model.named_parameters())[weight].detach() - 1}  # everything is one away
    method.offset = {weight: (method.pull[weight] ** 2).sum()}
    learner = Learner(
        model,
        Task(1, "colour", "", 12),
        list(tiny_benchmark().tasks[0].train),
        backbone=tiny,
        plugins=plugins,
        recipe=recipe,
        world=World("cpu"),
        seed=0,
    )

    assert learner.step([0, 1, 2, 3])["ewc"].item() == pytest.approx(shape.numel(), rel=1e-4)
