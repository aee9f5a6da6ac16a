"""O-LoRA: the penalty by hand, the sum of all experts after a run, what may move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from cl_zoo_olora import OLoRA, overlap
from tiny_runs import Watched, learnt
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch, forward, task_loss
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Task, TaskData
from cl_zoo.testing import tiny_backbone, tiny_benchmark

BENCHMARK = tiny_benchmark(3, size=8)
NAMES = ("colour", "side", "description")
RECIPE = {"adapter.rank": 2, "adapter.dropout": 0}
SCALE = 2.0
NEW = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
OLD = torch.tensor([[3.0, 0.0], [1.0, 1.0]])


def trained(text: str, folder: Path, root: Path, tasks: Sequence[TaskData] = BENCHMARK.tasks) -> Watched:
    return learnt(
        Watched,
        text,
        tasks,
        tiny_backbone(folder),
        build_recipe(BENCHMARK.recipe, {**RECIPE, "lr.projector": 1e-3}),
        root,
    )


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Watched]:
    """Both ways of training, after three tasks."""
    return {
        trains: trained(f"olora[trains={trains}]", tiny_folder, tmp_path_factory.mktemp(trains))
        for trains in ("stacked", "new")
    }


def task(index: int) -> Task:
    return Task(index, NAMES[index], "", 8)


def at_task(backbone: Backbone, index: int, **options: Any) -> tuple[OLoRA, ExpertBank]:
    """The method in the middle of task `index`: every expert that there is has random weights."""
    torch.manual_seed(0)
    method = OLoRA(OLoRA.Options(**options))
    bank = method.build_model(backbone, build_recipe(RECIPE))
    for place in range(index + 1):
        method.before_task(task(place))
        for layer in bank.layers:
            nn.init.normal_(layer.bank_up[f"t{place}"], std=0.1)
            nn.init.normal_(layer.bank_down[f"t{place}"], std=0.3)
    method.before_task(task(index))  # what it holds of the old experts is as they are now
    return method, bank


def questions(backbone: Backbone) -> Batch:
    """Three tasks, prompts of different lengths."""
    return backbone.batch([data.test[place] for place, data in enumerate(BENCHMARK.tasks)], answers=True)


@torch.no_grad()
def literal_logits(folder: Path, weights: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    """Logits on an untouched backbone whose weights get s · B_i A_i added, linear by linear and expert by expert."""
    backbone = tiny_backbone(folder)
    for path, module in backbone.model.named_modules():
        for name in names:
            if f"model.{path}.bank_up.{name}" in weights:
                up, down = weights[f"model.{path}.bank_up.{name}"], weights[f"model.{path}.bank_down.{name}"]
                module.weight += SCALE * up @ down
    for path, weight in backbone.projector.named_parameters():
        weight.copy_(weights[f"model.model.multi_modal_projector.{path}"])
    return forward(backbone.model, questions(backbone)).logits


# --- how an expert starts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "deviation"),
    [("kaiming", lambda width: 1 / (3 * width) ** 0.5), ("recipe", lambda width: 0.01)],
)
def test_every_new_a_is_drawn_as_asked(
    tiny: Backbone, init: Literal["kaiming", "recipe"], deviation: Callable[[int], float]
) -> None:
    """Uniform within ±b has deviation b/√3; both the first expert and a later one are looked at."""
    method = OLoRA(OLoRA.Options(init=init))
    bank = method.build_model(tiny, build_recipe({"adapter.rank": 64}))
    for place in (0, 1):
        method.before_task(task(place))
        for layer in bank.layers:
            A, width = layer.bank_down[f"t{place}"], layer.in_features
            assert float(A.detach().std()) == pytest.approx(deviation(width), rel=0.06)
            assert (float(A.abs().max()) <= width**-0.5) or init == "recipe"
            assert not layer.bank_up[f"t{place}"].any()
    drawn = bank.layers[0].bank_down["t1"].detach().clone()
    method.before_task(task(1))  # as on resuming: what is there already stays
    assert torch.equal(bank.layers[0].bank_down["t1"], drawn)


# --- the penalty ----------------------------------------------------------------------------------------------------


def test_the_overlap_of_two_experts_is_its_value_by_hand() -> None:
    """A_old A_newᵀ = [[3, 0], [3, −1]]: absolute entries sum to 7, squared ones to 9 + 9 + 1 = 19."""
    assert overlap(NEW, OLD).item() == 7
    assert overlap(NEW, OLD, "squared").item() == 19


def test_the_overlap_pulls_towards_what_the_signs_say() -> None:
    """The gradient on A_new is sign(A_old A_newᵀ)ᵀ A_old = [[1, 1], [0, −1]] A_old = [[4, 1], [−1, −1]]."""
    new = NEW.clone().requires_grad_()

    overlap(new, OLD).backward()

    assert new.grad is not None
    assert new.grad.tolist() == [[4, 1], [-1, -1]]


def test_orthogonal_experts_do_not_overlap() -> None:
    assert (
        overlap(torch.tensor([[0.0, 0.0, 5.0]]), torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 0.0]])).item() == 0
    )


def test_the_norms_of_the_new_expert_are_weighed_by_l2(tiny: Backbone) -> None:
    """With A = 0 but for a 3 and a 4 and B = 2 in each of its 2 d_out entries: ‖A‖ = 5, ‖B‖ = 2 √(2 d_out)."""
    method, bank = at_task(tiny, 1, strength=0, l2=0.1)
    expected = 0.0
    for layer in bank.layers:
        layer.bank_down["t1"].data.zero_()[0, :2] = torch.tensor([3.0, 4.0])
        layer.bank_up["t1"].data.fill_(2.0)
        expected += 5 + 2 * (2 * layer.out_features) ** 0.5

    terms = method.loss(task(1))

    assert set(terms) == {"olora/l2"}
    assert terms["olora/l2"].item() == pytest.approx(0.1 * expected, rel=1e-5)


def test_the_norm_of_a_fresh_up_projection_has_a_finite_gradient(tiny: Backbone) -> None:
    method = OLoRA(OLoRA.Options(l2=0.1))
    bank = method.build_model(tiny, build_recipe(RECIPE))
    method.before_task(task(0))

    method.loss(task(0))["olora/l2"].backward()

    assert all(
        weight.grad is not None and weight.grad.isfinite().all() for weight in bank.layers[0].bank_up.values()
    )


def test_the_first_task_and_weights_of_zero_add_nothing(tiny: Backbone) -> None:
    method, _ = at_task(tiny, 0)
    assert method.loss(task(0)) == {}

    method, _ = at_task(tiny_again(tiny), 1, strength=0)
    assert method.loss(task(1)) == {}


def tiny_again(backbone: Backbone) -> Backbone:
    """Another backbone from the files of the given one."""
    return tiny_backbone(Path(backbone.model.name_or_path).parent)


# --- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trains", ["stacked", "new"])
def test_old_experts_get_no_gradient(tiny: Backbone, trains: str) -> None:
    method, bank = at_task(tiny, 2, trains=trains)

    (task_loss(bank, questions(tiny)) + method.loss(task(2))["olora"]).backward()

    for layer in bank.layers:
        for table in (layer.bank_down, layer.bank_up):
            assert table["t0"].grad is None
            assert table["t1"].grad is None
            assert table["t2"].grad is not None


@pytest.mark.parametrize("trains", ["stacked", "new"])
def test_old_experts_do_not_move(runs: dict[str, Watched], trains: str) -> None:
    first, second, third = runs[trains].kept
    for before, after, new in ((first, second, "t1"), (second, third, "t2")):
        old = [name for name in before if ".bank_" in name]
        assert old
        assert all(torch.equal(before[name], after[name]) for name in old)
        assert all(after[name].abs().sum() > 0 for name in after if name.endswith(f"bank_up.{new}"))


def test_each_task_gets_an_expert_that_starts_at_nothing(tiny: Backbone) -> None:
    method, bank = at_task(tiny, 0)

    method.before_task(task(1))

    for layer in bank.layers:
        assert layer.bank_up["t1"].abs().sum() == 0
        assert layer.bank_down["t1"].abs().sum() > 0
        assert not torch.equal(layer.bank_down["t1"], layer.bank_down["t0"])
        learning = {name for name, weight in layer.named_parameters() if weight.requires_grad}
        assert learning == {"bank_down.t1", "bank_up.t1"}


def test_on_one_task_it_is_fine_tuning_bit_for_bit(tiny_folder: Path, tmp_path: Path) -> None:
    plain = trained("finetune", tiny_folder, tmp_path / "plain", BENCHMARK.tasks[:1]).kept[0]
    for text in ("olora[init=recipe,strength=0]", "olora[init=recipe]", "olora[init=recipe,trains=new]"):
        mine = trained(text, tiny_folder, tmp_path / text, BENCHMARK.tasks[:1]).kept[0]

        assert len(mine) == len(plain)
        for name, weight in mine.items():
            assert torch.equal(weight, plain[name.replace(".t0", ".shared")])


def test_the_penalty_keeps_experts_apart(tiny_folder: Path, tmp_path: Path) -> None:
    """Trained with a large λ1 the second expert overlaps less with the first than trained without."""
    overlaps = []
    for strength in (0, 500):
        text = f"olora[strength={strength}]"
        last = trained(text, tiny_folder, tmp_path / text, BENCHMARK.tasks[:2]).kept[-1]
        olds = [name for name in last if name.endswith("bank_down.t0")]
        overlaps.append(sum(float(overlap(last[name.replace("t0", "t1")], last[name])) for name in olds))

    assert overlaps[1] < 0.9 * overlaps[0]  # after two steps


# --- answering ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trains", ["stacked", "new"])
def test_answers_come_from_the_sum_of_all_experts(
    runs: dict[str, Watched], tiny_folder: Path, trains: str
) -> None:
    run = runs[trains]
    answering = run.plugins.build_inference_model(run.model, [task(place) for place in range(3)]).eval()
    with torch.no_grad():
        logits = forward(answering, questions(run.backbone)).logits

    expected = literal_logits(tiny_folder, run.kept[-1], ["t0", "t1", "t2"])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("trains", ["stacked", "new"])
def test_answering_leaves_what_learns_as_it_was(tiny: Backbone, trains: str) -> None:
    method, bank = at_task(tiny, 1, trains=trains)
    before = {name: weight.requires_grad for name, weight in bank.named_parameters()}

    method.build_inference_model([task(0), task(1)])

    assert {name: weight.requires_grad for name, weight in bank.named_parameters()} == before


def test_a_task_that_comes_again_gets_another_expert(tiny_folder: Path, tmp_path: Path) -> None:
    run = trained("olora", tiny_folder, tmp_path, tiny_benchmark(2, size=8).stream("CSC"))

    assert run.plugins.method.bank.experts == ["t0", "t1", "t2"]


def test_a_state_comes_back(tiny: Backbone, tiny_folder: Path) -> None:
    """After filling the tensors by name, the next task's penalty is the same."""
    method, bank = at_task(tiny, 1)
    again = OLoRA(OLoRA.Options())
    other = again.build_model(tiny_backbone(tiny_folder), build_recipe(RECIPE))

    again.load_state_dict(method.state_dict())
    other.load_state_dict(bank.state_dict())

    terms = []
    for one in (method, again):
        torch.manual_seed(1)
        one.before_task(task(2))
        terms.append(one.loss(task(2))["olora"])
    assert torch.equal(*terms)


def test_options_say_what_is_out_of_range() -> None:
    for options in ({"strength": -1}, {"l2": -1}, {"trains": "both"}, {"penalty": "cubed"}, {"lambda1": 1}):
        with pytest.raises(ValueError, match="validation error"):
            OLoRA.Options(**options)
