"""Drift: norms by hand, experts that come and go, what has no measurement. Its definition: `tests/oracles/test_drift.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cl_zoo_drift import Drift, Learning, distance, norm
from torch import Tensor, nn

from cl_zoo import Task
from cl_zoo.backbones.backbone import Backbone
from cl_zoo.nn import bank_parts
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.nn.placing import adapters
from cl_zoo.recipe.recipe import build_recipe

RECIPE = build_recipe({}, {"adapter.rank": 2, "adapter.dropout": 0, "adapter.scale": 3})

TASK = Task(0, "colour", "", 4)


def bank_of(tiny: Backbone) -> ExpertBank:
    torch.manual_seed(0)
    return adapters(tiny, RECIPE, "t0")


def parts_of(bank: nn.Module) -> dict[str, list[str]]:
    """As the engine says them: what the bank knows, the projector, and a part of the method's own."""
    names = [name for name, _ in bank.named_parameters()]
    projector = [name for name in names if "multi_modal_projector" in name]
    return {**bank_parts(bank), "projector": projector, "keys": [name for name in names if name == "extra"]}


def randomise(bank: ExpertBank, *names: str) -> None:
    for layer in bank.layers:
        for table in (layer.bank_down, layer.bank_up):
            for name in names:
                if name in table:
                    nn.init.normal_(table[name])


def literal(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """√ Σ ‖one − other‖²_F of W-sized matrices."""
    return float(sum((one - other).pow(2).sum() for one, other in pairs) ** 0.5)


def test_the_distance_of_two_adapters_by_hand() -> None:
    """s = 3; from B A = (1, 0; 0, 0) to (1, 2; 0, 0): ‖Δ‖² = 9 · 4 = 36."""
    before = torch.tensor([[1.0, 0]]), torch.tensor([[1.0], [0]])
    now = Learning(3.0, torch.tensor([[1.0, 2]]), torch.tensor([[1.0], [0]]), *before)

    assert float(distance(*before, now)) == pytest.approx(36)


def test_an_adapter_written_differently_has_not_moved() -> None:
    """(cA, B/c) is the same update: A and B apart moved far, their product nowhere."""
    A, B = torch.randn(2, 5), torch.randn(4, 2)
    same = Learning(1.0, 8 * A, B / 8, A, B)

    assert float(distance(A, B, same)) == pytest.approx(0, abs=1e-10)
    assert float(distance(A, B, Learning(1.0, A, B, A, B))) == 0


def test_norms_of_several_tensors_add_in_squares() -> None:
    assert float(norm([torch.tensor(9.0), torch.tensor(16.0)])) == 5


def test_the_projector_moves_from_task_to_task_and_from_its_start(tiny: Backbone) -> None:
    """One weight by 3, another by 4: 5. In the next task the first one back: 3, and 4 from the start."""
    bank = bank_of(tiny)
    bank.use(["t0"])
    tiny.train_projector(True)
    first = next(iter(tiny.projector.parameters()))
    probe = Drift()

    with torch.no_grad():
        probe.before_task(model=bank)
        first[0, 0] += 3
        first[1, 1] -= 4
        one = probe.after_task(parts=parts_of(bank))
        resumed = Drift()
        resumed.load_state_dict(probe.state_dict())
        resumed.before_task(model=bank)
        first[0, 0] -= 3
        two = resumed.after_task(parts=parts_of(bank))

    assert {name: float(value) for name, value in one.items()} == pytest.approx(
        {"drift/projector": 5, "drift/projector/from_start": 5}
    )
    assert {name: float(value) for name, value in two.items()} == pytest.approx(
        {"drift/projector": 3, "drift/projector/from_start": 4}
    )


def test_what_is_frozen_has_no_measurement(tiny: Backbone) -> None:
    bank = bank_of(tiny)
    bank.use(["t0"])
    probe = Drift()
    probe.before_task(model=bank)

    assert probe.after_task(parts=parts_of(bank)) == {}


def test_an_expert_that_the_method_removes_counts_as_its_training_left_it(tiny: Backbone) -> None:
    bank = bank_of(tiny)
    bank.add("t1")
    bank.use(["t1"], trainable=["t1"])
    probe = Drift()
    probe.before_task(model=bank)
    randomise(bank, "t1")
    expected = [(layer.delta(["t1"]).detach(), torch.zeros(())) for layer in bank.layers]
    bank.remove("t1")

    assert float(probe.after_task(parts=parts_of(bank))["drift/adapters"]) == pytest.approx(
        literal(expected), rel=1e-5
    )


def test_routers_and_other_modules_are_parts_of_their_own(tiny: Backbone) -> None:
    bank = bank_of(tiny)
    bank.use(["t0"])
    bank.mix(lambda layer: nn.Linear(2, 1, bias=False))
    bank.extra = nn.Parameter(torch.zeros(3))
    probe = Drift()
    probe.before_task(model=bank)
    with torch.no_grad():
        bank.layers[0].bank_mix.weight[0, 0] += 2  # type: ignore[union-attr, index, operator]
        bank.extra += 1

    measured = probe.after_task(parts=parts_of(bank))

    assert float(measured["drift/routers"]) == pytest.approx(2)
    assert float(measured["drift/keys"]) == pytest.approx(3**0.5)
    assert "drift/adapters" not in measured


def test_a_model_without_values_is_measured_without_reading_any() -> None:
    model = nn.Linear(2, 2, device="meta")
    probe = Drift()

    probe.before_task(model=model)

    assert probe.after_task(parts={"keys": ["weight", "bias"]})["drift/keys"].device.type == "meta"


def test_a_run_measures_every_task(run_tiny: Callable[..., Any]) -> None:
    """One LoRA that learns on: what it moved in the first task is what it stands for then; later it comes from further."""
    measured = run_tiny("finetune", order="CS", probes=["drift"], recipe={"lr.projector": 1e-3}).manifest[
        "measured"
    ]

    first, second = measured
    assert set(first) == {
        f"drift/{part}{end}" for part in ("adapters", "projector") for end in ("", "/from_start")
    }
    assert all(value > 0 for row in measured for value in row.values())
    assert first["drift/adapters"] == first["drift/adapters/from_start"]
    assert first["drift/projector"] == first["drift/projector/from_start"]
    assert second["drift/adapters"] != second["drift/adapters/from_start"]
    assert second["drift/projector/from_start"] <= first["drift/projector"] + second["drift/projector"]
    assert Drift.probe


def test_a_released_fusion_is_measured_as_it_was_trained(run_tiny: Callable[..., Any], tmp_path: Any) -> None:
    """Whether a method merges its experts after the task changes nothing of what training moved in the first task."""
    rows = [
        run_tiny(method, order="C", probes=["drift"]).manifest["measured"][0]
        for method in ("hide", "hide[variant=released]")
    ]

    assert rows[0]["drift/adapters"] == pytest.approx(rows[1]["drift/adapters"])
