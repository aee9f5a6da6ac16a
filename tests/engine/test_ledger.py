"""The ledger counts parameters and work in one way for every method; here the counting is done by hand.

The tiny language model has two layers of width 32 and 48 inside: an expert of rank r takes r (32 + 32) for each of q, k, v, o
and r (32 + 48) for each of gate, up, down, so 496 r per layer. The projector has 16·32 + 32 + 32·32 + 32 = 1600 weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import learnt

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.engine.ledger import (
    Ledger,
    TaskCost,
    answering_state,
    count,
    forget_memory,
    own_state,
    peak_memory_mb,
    tensors_in,
    training_flops,
)
from cl_zoo.engine.run import Run
from cl_zoo.nn.placing import adapters
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.testing import tiny_benchmark

LAYER, PROJECTOR, TASKS = 496, 1600, 2


def ledger_of(text: str, backbone: Backbone, root: Path, **recipe: Any) -> Ledger:
    benchmark = tiny_benchmark(TASKS, size=4)
    filled = build_recipe(benchmark.recipe, {"adapter.rank": 4, **recipe})
    return learnt(Run, text, benchmark.tasks, backbone, filled, root).ledger


def test_fine_tuning_trains_and_stores_one_expert_and_the_projector(tiny: Backbone, tmp_path: Path) -> None:
    ledger = ledger_of("finetune", tiny, tmp_path)

    sizes = {"adapters": 2 * LAYER * 4, "projector": PROJECTOR}
    assert [task.trained for task in ledger.tasks] == [sizes, sizes]
    assert ledger.stored == {"inference": sizes, "continuing": sizes}
    assert ledger.trained == ledger.active == 2 * LAYER * 4 + PROJECTOR


def test_a_frozen_projector_is_neither_trained_nor_stored(tiny: Backbone, tmp_path: Path) -> None:
    ledger = ledger_of("finetune", tiny, tmp_path, projector="frozen")

    assert ledger.tasks[0].trained == {"adapters": 2 * LAYER * 4}
    assert ledger.stored["continuing"] == {"adapters": 2 * LAYER * 4}


def test_nothing_is_stored_for_the_backbone_itself(tiny: Backbone, tmp_path: Path) -> None:
    ledger = ledger_of("zeroshot", tiny, tmp_path)

    assert ledger.trained == ledger.active == 0
    assert ledger.stored == {"inference": {}, "continuing": {}}
    assert not ledger.tasks
    assert ledger.evaluation_seconds > 0


def test_ewc_stores_two_more_values_per_weight_for_continuing_only(tiny: Backbone, tmp_path: Path) -> None:
    """ΣF and ΣFθ* per weight, ΣFθ*² per tensor: 28 of the bank, 4 of the projector."""
    ledger = ledger_of("finetune+ewc", tiny, tmp_path)

    weights = 2 * LAYER * 4 + PROJECTOR
    assert ledger.stored["continuing"]["plugins"] == 2 * weights + 32
    assert ledger.active == weights


def test_the_paper_variant_of_hide_keeps_every_expert(tiny: Backbone, tmp_path: Path) -> None:
    ledger = ledger_of("hide", tiny, tmp_path)

    assert ledger.tasks[1].trained == {"adapters": 2 * LAYER * 4, "projector": PROJECTOR}
    assert ledger.stored["inference"]["adapters"] == TASKS * 2 * LAYER * 4
    assert ledger.stored["inference"]["other"] == TASKS * 2 * 8  # two anchors of eight values per task
    assert ledger.stored["continuing"]["plugins"] == TASKS * 2 * 8


def test_the_released_variant_of_hide_keeps_one_expert_below_the_top(tiny: Backbone, tmp_path: Path) -> None:
    ledger = ledger_of("hide[variant=released]", tiny, tmp_path)

    for use in ("inference", "continuing"):
        assert ledger.stored[use]["adapters"] == LAYER * 4 + TASKS * LAYER * 4


def test_idle_experts_do_not_count_as_answering_but_an_a_that_is_read_does(tiny: Backbone) -> None:
    bank = adapters(tiny, build_recipe({"adapter.rank": 2}))
    bank.add("idle", rank=3)
    bank.add("reader", reads="shared")
    bank.use(["reader"])

    answering = answering_state(bank, tiny)

    assert len(own_state(bank, tiny)) == 14 * 5
    assert len(answering) == 14 * 2
    assert not any(".idle" in name or "bank_up.shared" in name for name in answering)


def test_parameters_are_counted_by_part_and_the_rest_as_other() -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(())}

    assert count(tensors, tensors, {"adapters": ["a"], "keys": ["b", "gone"]}) == {
        "adapters": 6,
        "keys": 4,
        "other": 1,
    }


def test_tensors_anywhere_in_a_state_are_counted() -> None:
    assert (
        tensors_in(
            {"a": torch.zeros(2, 3), "b": [torch.zeros(1), {"c": (torch.zeros(5),)}], "d": "x", "e": 3}
        )
        == 12
    )


def test_flops_follow_their_rule(tiny: Backbone) -> None:
    """4 per frozen weight of the decoder layers and token, 6 per weight that learns."""
    layer = 4 * 32 * 32 + 3 * 32 * 48 + 2 * 32
    expected = 10 * (4 * 2 * layer + 6 * 100)

    assert training_flops(tiny, tokens=10, trained=100) == expected
    adapters(tiny, build_recipe({}))  # experts are not the backbone's
    assert training_flops(tiny, tokens=10, trained=100) == expected


def test_a_ledger_survives_its_json() -> None:
    ledger = Ledger(
        [
            TaskCost("colour", steps=3, trained={"adapters": 5}),
            TaskCost("side", steps=4, trained={"adapters": 9}),
        ],
        7,
        {"inference": {"adapters": 5}},
        5,
        {"loss": 0.5},
        1.5,
        100.0,
    )

    assert Ledger.from_json(ledger.to_json()) == ledger
    assert ledger.to_json()["trained"] == ledger.trained == 9


def test_peak_memory_is_that_of_the_process() -> None:
    assert 50 < peak_memory_mb(torch.device("cpu")) < 100_000


@pytest.mark.parametrize("method", ["finetune", "hide"])
def test_every_hook_is_timed(tiny: Backbone, tmp_path: Path, method: str) -> None:
    ledger = ledger_of(method, tiny, tmp_path)

    assert {"build_model", "before_task", "loss", "after_task", "build_inference_model"} <= set(ledger.hooks)
    assert ledger.seconds >= sum(task.seconds for task in ledger.tasks) > 0


def test_seconds_are_those_of_training_of_the_hooks_around_it_and_of_the_answers():
    """10 + 20 of training, 1 + 2 + 3 + 4 of hooks around it, 5 of answering; what lies inside the two is not counted twice."""
    hooks = {"build_model": 1.0, "before_task": 2.0, "rehearse": 3.0, "after_task": 4.0}
    ledger = Ledger(
        tasks=[TaskCost("a", seconds=10.0), TaskCost("b", seconds=20.0)],
        hooks={**hooks, "loss": 7.0, "build_inference_model": 1.5, "after_answers": 2.5},
        evaluation_seconds=5.0,
    )

    assert ledger.seconds == 45.0


def test_the_peak_of_memory_is_that_of_one_run_and_not_of_those_before_it() -> None:
    """300 MB that are used and given back before the second run are not in its peak."""
    cpu = torch.device("cpu")
    forget_memory(cpu)
    before = peak_memory_mb(cpu)
    large = torch.ones(75, 2**20)
    del large
    during = peak_memory_mb(cpu)
    forget_memory(cpu)

    assert during > before + 250
    assert peak_memory_mb(cpu) < during - 150
