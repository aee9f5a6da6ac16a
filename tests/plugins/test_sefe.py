"""SEFE: key elements and their penalty by hand, merged tasks against weights that were changed by hand, what may move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cl_zoo_sefe import SEFE, key_elements, size_at
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
A = torch.tensor([[3.0, -1.0]])
B = torch.tensor([[1.0], [2.0], [0.0]])


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
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """After three tasks."""
    return trained("sefe", tiny_folder, tmp_path_factory.mktemp("sefe"))


def task(index: int) -> Task:
    return Task(index, NAMES[index], "", 8)


def at_task(backbone: Backbone, index: int, **options: Any) -> tuple[SEFE, ExpertBank]:
    """The method in the middle of task `index`: every expert that there is has random weights."""
    torch.manual_seed(0)
    method = SEFE(SEFE.Options(**options))
    bank = method.build_model(backbone, build_recipe(RECIPE))
    for place in range(index + 1):
        method.before_task(task(place))
        for layer in bank.layers:
            nn.init.normal_(layer.bank_up[f"t{place}"], std=0.1)
            nn.init.normal_(layer.bank_down[f"t{place}"], std=0.3)
        if place < index:
            method.after_task(task(place))
    return method, bank


def questions(backbone: Backbone) -> Batch:
    """Three tasks, prompts of different lengths."""
    return backbone.batch([data.test[place] for place, data in enumerate(BENCHMARK.tasks)], answers=True)


@torch.no_grad()
def literal_logits(folder: Path, weights: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    """Logits on an untouched backbone into whose weights s · B_i A_i is merged, linear by linear and task by task."""
    backbone = tiny_backbone(folder)
    for path, module in backbone.model.named_modules():
        for name in names:
            if f"model.{path}.bank_up.{name}" in weights:
                up, down = weights[f"model.{path}.bank_up.{name}"], weights[f"model.{path}.bank_down.{name}"]
                module.weight += SCALE * up @ down
    for path, weight in backbone.projector.named_parameters():
        weight.copy_(weights[f"model.model.multi_modal_projector.{path}"])
    return forward(backbone.model, questions(backbone)).logits


# --- key elements and their size ------------------------------------------------------------------------------------


def test_key_elements_are_the_largest_entries_of_the_update() -> None:
    """BA = [[3, −1], [6, −2], [0, 0]]: the largest half of the absolute entries are 6, 3 and 2, at places 2, 0 and 3."""
    places = key_elements(A, B, share=0.5)

    assert places.tolist() == [2, 0, 3]
    assert places.dtype == torch.int32


def test_key_elements_are_chosen_in_fp32_inside_autocast() -> None:
    """1 + 2⁻¹² is larger than 1, but not in bf16."""
    down, up = torch.tensor([[1.0, 1.0 + 2**-12]]), torch.ones(1, 1)

    with torch.autocast("cpu", torch.bfloat16):
        assert key_elements(down, up, share=0.5).tolist() == [1]


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.34, 2), (0.5, 3), (1.0, 6)])
def test_the_number_of_key_elements_is_rounded_down_but_never_zero(share: float, count: int) -> None:
    assert len(key_elements(A, B, share)) == count


def test_the_size_at_places_is_its_value_by_hand() -> None:
    """At places 0, 3, 3 of BA stand 3, −2, −2: the mean of the absolute values is 7/3, and with G = [[1, 0], [0, −2], [0, 0]] / 3
    its gradients are G Aᵀ = (3, 2, 0) / 3 and Bᵀ G = (1, −4) / 3."""
    down, up = A.clone().requires_grad_(), B.clone().requires_grad_()

    size = size_at(down, up, torch.tensor([0, 3, 3], dtype=torch.int32))
    size.backward()

    assert size.item() == pytest.approx(7 / 3)
    assert up.grad is not None
    assert up.grad.flatten().tolist() == pytest.approx([1, 2 / 3, 0])
    assert down.grad is not None
    assert down.grad.flatten().tolist() == pytest.approx([1 / 3, -4 / 3])


def test_the_term_moves_the_new_expert_only(tiny: Backbone) -> None:
    method, bank = at_task(tiny, 2)
    term = method.loss(task(2))
    assert term is not None

    term["sefe"].backward()

    for layer in bank.layers:
        for table in (layer.bank_down, layer.bank_up):
            assert table["t2"].grad is not None
            assert table["t2"].grad.abs().sum() > 0
            assert table["t0"].grad is None
            assert table["t1"].grad is None


def test_every_task_adds_the_same_number_of_key_elements(tiny: Backbone) -> None:
    method, bank = at_task(tiny, 2)

    method.after_task(task(2))

    for layer in bank.layers:
        assert len(method.key_elements[layer.path]) == 3 * int(0.02 * layer.in_features * layer.out_features)


def test_the_first_task_and_a_strength_of_zero_add_nothing(tiny: Backbone) -> None:
    method, _ = at_task(tiny, 0)
    assert method.loss(task(0)) is None

    method.after_task(task(0))
    method.before_task(task(1))
    assert method.loss(task(1)) is not None
    method.options = SEFE.Options(strength=0)
    assert method.loss(task(1)) is None


def test_key_elements_are_counted_without_values(tiny: Backbone) -> None:
    tiny.model.to("meta")
    method, bank = at_task(tiny, 2)

    assert {places.device.type for places in method.key_elements.values()} == {"meta"}
    assert sum(places.numel() for places in method.key_elements.values()) == sum(
        2 * int(0.02 * layer.in_features * layer.out_features) for layer in bank.layers
    )


# --- learning and answering -----------------------------------------------------------------------------------------


def test_answers_come_from_the_merged_model(run: Watched, tiny_folder: Path) -> None:
    answering = run.plugins.build_inference_model(run.model, [task(place) for place in range(3)]).eval()
    with torch.no_grad():
        logits = forward(answering, questions(run.backbone)).logits

    expected = literal_logits(tiny_folder, run.kept[-1], ["t0", "t1", "t2"])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_merged_tasks_get_no_gradient_and_do_not_move(run: Watched, tiny: Backbone) -> None:
    _, bank = at_task(tiny, 1)
    task_loss(bank, questions(tiny)).backward()
    assert all(
        table["t0"].grad is None for layer in bank.layers for table in (layer.bank_down, layer.bank_up)
    )

    first, second, third = run.kept
    for before, after, new in ((first, second, "t1"), (second, third, "t2")):
        old = [name for name in before if ".bank_" in name]
        assert old
        assert all(torch.equal(before[name], after[name]) for name in old)
        assert all(after[name].abs().sum() > 0 for name in after if name.endswith(f"bank_up.{new}"))


def test_each_task_starts_from_the_merged_model(tiny: Backbone) -> None:
    """The fresh expert's update is zero, and it alone learns."""
    method, bank = at_task(tiny, 0)

    method.before_task(task(1))

    for layer in bank.layers:
        assert layer.bank_up["t1"].abs().sum() == 0
        assert layer.bank_down["t1"].abs().sum() > 0
        learning = {name for name, weight in layer.named_parameters() if weight.requires_grad}
        assert learning == {"bank_down.t1", "bank_up.t1"}


def test_on_one_task_it_is_fine_tuning_bit_for_bit(tiny_folder: Path, tmp_path: Path) -> None:
    plain = trained("finetune", tiny_folder, tmp_path / "plain", BENCHMARK.tasks[:1]).kept[0]
    mine = trained("sefe", tiny_folder, tmp_path / "mine", BENCHMARK.tasks[:1]).kept[0]

    assert len(mine) == len(plain)
    for name, weight in mine.items():
        assert torch.equal(weight, plain[name.replace(".t0", ".shared")])


def test_the_penalty_keeps_the_new_update_small_where_the_old_one_is_large(
    tiny_folder: Path, tmp_path: Path
) -> None:
    sizes = []
    for strength in (0, 1e5):
        text = f"sefe[strength={strength}]"
        run = trained(text, tiny_folder, tmp_path / text, [*BENCHMARK.tasks[:2]] * 2)
        layers = run.plugins.method.bank.layers
        places = {layer.path: run.plugins.method.key_elements[layer.path] for layer in layers}
        size = 0.0
        for layer in layers:
            held = places[layer.path][: 3 * len(places[layer.path]) // 4]  # of the first three of four tasks
            size += float(size_at(layer.bank_down["t3"], layer.bank_up["t3"], held).detach())
        sizes.append(size)

    assert sizes[1] < 0.9 * sizes[0]


def test_answering_leaves_what_learns_as_it_was(tiny: Backbone) -> None:
    method, bank = at_task(tiny, 1)
    before = {name: weight.requires_grad for name, weight in bank.named_parameters()}

    method.build_inference_model([task(0), task(1)])

    assert {name: weight.requires_grad for name, weight in bank.named_parameters()} == before


def test_a_state_comes_back(tiny: Backbone, tiny_folder: Path) -> None:
    """After filling the tensors by name, the next task's penalty is the same."""
    method, bank = at_task(tiny, 1)
    method.after_task(task(1))
    again = SEFE(SEFE.Options())
    other = again.build_model(tiny_backbone(tiny_folder), build_recipe(RECIPE))

    again.load_state_dict(method.state_dict())
    other.load_state_dict(bank.state_dict())

    terms = []
    for one in (method, again):
        torch.manual_seed(1)
        one.before_task(task(2))
        for layer in one.bank.layers:
            layer.bank_up["t2"].data.fill_(0.1)
        loss = one.loss(task(2))
        assert loss is not None
        terms.append(loss["sefe"])
    assert torch.equal(*terms)
    assert terms[0] > 0


def test_options_say_what_is_out_of_range() -> None:
    for options in ({"strength": -1}, {"share": 0}, {"share": 1.1}, {"asd": True}):
        with pytest.raises(ValueError, match="validation error"):
            SEFE.Options(**options)
