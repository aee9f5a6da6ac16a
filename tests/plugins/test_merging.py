"""Merging: the steps of the rules by hand, what answers and what is stored, masks that come again, what is exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cl_zoo_merging import Merging, disjoint_mean, dropped, thresholds, trimmed
from tiny_runs import Watched, learnt
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch, forward
from cl_zoo.engine.ledger import stored
from cl_zoo.export.folding import fold
from cl_zoo.nn import ExpertBank, OtherUpdates, bank_parts
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Task, TaskData
from cl_zoo.testing import tiny_backbone, tiny_benchmark

BENCHMARK = tiny_benchmark(3, size=8)
RECIPE = {"adapter.rank": 2, "adapter.dropout": 0}
TASKS = [Task(index, f"task {index}", "", 8) for index in range(4)]


def trained(text: str, folder: Path, root: Path, tasks: Sequence[TaskData]) -> Watched:
    recipe = build_recipe(BENCHMARK.recipe, {**RECIPE, "lr.projector": 1e-3})
    return learnt(Watched, text, tasks, tiny_backbone(folder), recipe, root)


def after(backbone: Backbone, count: int, seed: int = 0, **options: Any) -> tuple[Merging, ExpertBank]:
    """The method after some tasks, with experts at random."""
    torch.manual_seed(seed)
    method = Merging(Merging.Options(**options))
    bank = method.build_model(backbone, build_recipe(RECIPE))
    for one in TASKS[:count]:
        method.before_task(one)
        for layer in bank.layers:
            nn.init.normal_(layer.bank_up[f"t{one.index}"], std=0.1)
            nn.init.normal_(layer.bank_down[f"t{one.index}"], std=0.3)
    return method, bank.eval()


def questions(backbone: Backbone) -> Batch:
    return backbone.batch([data.test[place] for place, data in enumerate(BENCHMARK.tasks)], answers=True)


@torch.no_grad()
def logits(model: nn.Module, backbone: Backbone) -> Tensor:
    found: Tensor = forward(model, questions(backbone)).logits
    return found


# --- the steps by hand ----------------------------------------------------------------------------------------------


def test_the_disjoint_mean_leaves_out_whoever_has_the_other_sign() -> None:
    """Columns: all agree; the larger mass is negative; one is silent; they cancel; nobody speaks."""
    stack = torch.tensor(
        [[1.0, 2.0, 0.0, 1.0, 0.0], [3.0, -3.0, -4.0, -1.0, 0.0], [2.0, -1.0, -2.0, 0.0, 0.0]]
    )

    assert disjoint_mean(stack).tolist() == [2.0, -2.0, -3.0, 0.0, 0.0]


def test_trimming_keeps_the_largest_of_each_task() -> None:
    stack = torch.tensor([[[0.1, -0.4], [0.3, 0.2]], [[5.0, 1.0], [-2.0, 7.0]]])

    low = thresholds(lambda: [stack], 0.5)

    assert low.tolist() == pytest.approx([0.3, 5.0])
    assert trimmed(stack, low).flatten(1).tolist() == [
        [0, pytest.approx(-0.4), pytest.approx(0.3), 0],
        [5, 0, 0, 7],
    ]


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 1.0])
def test_a_threshold_is_the_magnitude_at_that_place_of_all_matrices_in_order(density: float) -> None:
    """Found by sorting; values of many sizes, and many that are equal or zero."""
    torch.manual_seed(0)
    stacks = [
        torch.randn(3, 40, 7) * 10.0 ** torch.randint(-30, 30, (3, 40, 7)),
        torch.ones(3, 50),
        torch.zeros(3, 9),
    ]
    in_order = torch.cat([stack.abs().flatten(1) for stack in stacks], 1).sort(descending=True).values

    found = thresholds(lambda: stacks, density)

    assert torch.equal(found, in_order[:, max(1, int(density * in_order.shape[1])) - 1])


def test_dropping_keeps_the_mean_and_its_mask_follows_from_the_seed() -> None:
    stack = torch.full((2, 300, 200), 3.0)

    left = dropped(stack, 0.9, ["a", "b"])

    assert left.unique().tolist() == pytest.approx([0, 30])
    assert left.mean((1, 2)).tolist() == pytest.approx([3, 3], rel=0.05)
    assert torch.equal(left, dropped(stack, 0.9, ["a", "b"]))
    assert torch.equal(left[1], dropped(stack[:1], 0.9, ["b"])[0])
    assert not torch.equal(left[0], left[1])


# --- answering ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["average", "arithmetic", "ties", "dare", "dare-ties"])
@pytest.mark.parametrize("of", ["update", "factors"])
def test_one_task_answers_as_it_was_learnt(tiny: Backbone, rule: str, of: str) -> None:
    method, bank = after(tiny, 1, rule=rule, of=of)
    learnt = logits(bank, tiny)

    assert torch.equal(logits(method.build_inference_model(TASKS[:1]), tiny), learnt)


@pytest.mark.parametrize("options", [{"rule": "average"}, {"rule": "ties", "density": 1.0}], ids=str)
def test_two_updates_that_are_the_same_merge_into_that_one(tiny: Backbone, options: dict[str, Any]) -> None:
    """TIES is the mean too where it keeps everything and all signs agree."""
    method, bank = after(tiny, 2, **options)
    for layer in bank.layers:
        bank.put("t1", layer, layer.bank_down["t0"], layer.bank_up["t0"])
    bank.use(["t0"])
    alone = logits(bank, tiny)

    torch.testing.assert_close(
        logits(method.build_inference_model(TASKS[:2]), tiny), alone, rtol=0, atol=1e-5
    )


def test_a_tasks_mask_stays_the_same_when_more_are_learnt_and_after_a_resume(
    tiny: Backbone, tiny_folder: Path
) -> None:
    """Experts that were learnt later and are zero change nothing of a sum."""
    method, bank = after(tiny, 3, rule="dare", drop=0.5)
    for layer in bank.layers:
        nn.init.zeros_(layer.bank_up["t2"])
    two = logits(method.build_inference_model(TASKS[:2]), tiny)
    torch.rand(7)
    three = logits(method.build_inference_model(TASKS[:3]), tiny)
    torch.testing.assert_close(three, two, rtol=0, atol=1e-6)

    again = Merging(method.options)
    other = tiny_backbone(tiny_folder)
    torch.manual_seed(99)
    new = again.build_model(other, build_recipe(RECIPE))
    again.load_state_dict(method.state_dict())
    new.load_state_dict(bank.state_dict())
    assert torch.equal(logits(again.build_inference_model(TASKS[:2]), other), two)

    unlike, _ = after(tiny_backbone(tiny_folder), 3, seed=1, rule="dare", drop=0.5)
    assert unlike.seed != method.seed


@pytest.mark.parametrize("options", [{}, {"rule": "ties"}, {"rule": "dare", "of": "factors"}], ids=str)
def test_answering_leaves_experts_and_what_learns_as_they_were(
    tiny: Backbone, options: dict[str, Any]
) -> None:
    method, bank = after(tiny, 2, **options)
    before = {name: (weight.clone(), weight.requires_grad) for name, weight in bank.named_parameters()}

    logits(method.build_inference_model(TASKS[:2]), tiny)

    for name, weight in bank.named_parameters():
        assert torch.equal(weight, before[name][0])
        assert weight.requires_grad == before[name][1]
    assert not any(layer._forward_hooks for layer in bank.layers)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, "all"),
        ({"rule": "average"}, "all"),
        ({"rule": "ties"}, "whole"),
        ({"rule": "dare"}, "whole"),
        ({"rule": "dare-ties", "of": "factors"}, "one"),
    ],
    ids=str,
)
def test_what_is_stored_to_answer_is_the_loras_a_change_of_full_rank_or_one_lora(
    tiny: Backbone, options: dict[str, Any], size: str, device: str
) -> None:
    """Of three tasks; counted with values and without."""
    tiny.model.to(device)
    method, bank = after(tiny, 3, **options)
    one = sum(2 * (layer.in_features + layer.out_features) for layer in bank.layers)
    whole = sum(layer.in_features * layer.out_features for layer in bank.layers)

    answering = method.build_inference_model(TASKS[:3])
    kept = stored(bank, answering, tiny, bank_parts(bank), method.state_dict())

    assert kept["inference"]["adapters"] == {"all": 3 * one, "whole": whole, "one": one}[size]
    assert kept["continuing"]["adapters"] == 3 * one
    assert kept["inference"].keys() == kept["continuing"].keys()  # nothing that no part claims


@pytest.mark.parametrize(
    ("options", "rank"),
    [({"rule": "average"}, 6), ({}, 6), ({"of": "factors"}, 2), ({"rule": "ties", "of": "factors"}, 2)],
    ids=str,
)
def test_a_merge_of_low_rank_folds_into_an_adapter(
    tiny: Backbone, options: dict[str, Any], rank: int
) -> None:
    method, _ = after(tiny, 3, **options)
    answering = method.build_inference_model(TASKS[:3])
    expected = logits(answering, tiny)

    updates = fold(answering, tiny).updates[0]

    assert all(
        update.down is not None and len(update.down) == rank and not update.dense for update in updates
    )
    for update in updates:
        update.layer.base_layer.weight.data = update.merged()
        update.layer._disable_adapters = True
    torch.testing.assert_close(logits(answering, tiny), expected, rtol=0, atol=1e-4)


def test_a_merge_of_full_rank_folds_into_the_weights_alone(tiny: Backbone) -> None:
    method, _ = after(tiny, 3, rule="dare-ties")
    answering = method.build_inference_model(TASKS[:3])
    expected = logits(answering, tiny)

    updates = fold(answering, tiny).updates[0]

    assert all(update.down is None and len(update.dense) == 1 for update in updates)
    for update in updates:
        update.layer.base_layer.weight.data = update.merged()
        update.layer._disable_adapters = True
    torch.testing.assert_close(logits(answering, tiny), expected, rtol=0, atol=1e-4)


def test_every_task_is_learnt_alone_and_no_option_changes_what_is_learnt(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """The first task is fine-tuning's, bit for bit; older experts do not move."""
    plain = trained("finetune", tiny_folder, tmp_path / "plain", BENCHMARK.tasks[:1]).kept[0]
    sums = trained("merging", tiny_folder, tmp_path / "sums", BENCHMARK.tasks[:2])
    ties = trained("merging[rule=dare-ties,of=factors]", tiny_folder, tmp_path / "ties", BENCHMARK.tasks[:2])

    assert len(plain) == len(sums.kept[0])
    for name, weight in sums.kept[0].items():
        assert torch.equal(weight, plain[name.replace(".t0", ".shared")])
    assert all(
        torch.equal(weight, sums.kept[1][name]) for name, weight in sums.kept[0].items() if ".bank_" in name
    )
    assert sums.kept[1].keys() == ties.kept[1].keys()
    assert all(torch.equal(weight, ties.kept[1][name]) for name, weight in sums.kept[1].items())
    assert isinstance(ties.plugins.build_inference_model(ties.model, TASKS[:2]), OtherUpdates)


def test_options_say_what_is_out_of_range() -> None:
    for options in ({"rule": "slerp"}, {"drop": 1.0}, {"density": 0}, {"coefficient": -1}, {"of": "deltas"}):
        with pytest.raises(ValueError, match="validation error"):
            Merging.Options(**options)
