"""SI in a run: the path of the weights under the engine's own steps, what is kept, what is free. Equations: `tests/oracles/test_si.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cl_zoo_si import SI
from tiny_runs import learnt, weights
from torch import Tensor, nn

from cl_zoo.batches import task_loss
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.learning import Learner
from cl_zoo.engine.run import Run
from cl_zoo.names import parse_stack
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Task
from cl_zoo.testing import tiny_backbone, tiny_benchmark

SAMPLES = list(tiny_benchmark().tasks[0].train)
STILL = {"adapter.dropout": 0, "schedule": "constant", "warmup": 0.0, "global_batch": 4}


def learner(folder: Path, stack: str, **recipe: Any) -> tuple[Learner, SI]:
    tiny, plugins = tiny_backbone(folder), Plugins(parse_stack(stack))
    chosen = build_recipe({**STILL, **recipe})
    torch.manual_seed(0)
    model = plugins.build_model(tiny, chosen)
    assert model is not None
    for name, weight in model.named_parameters():
        if "bank_up" in name:
            nn.init.normal_(weight, std=0.05)
    made = Learner(
        model,
        Task(0, "colour", "", 12),
        SAMPLES,
        backbone=tiny,
        plugins=plugins,
        recipe=chosen,
        world=World("cpu"),
        seed=0,
    )
    method = plugins.instances["si"]
    assert isinstance(method, SI)
    return made, method


def test_the_path_is_the_same_in_micro_batches(tiny_folder: Path) -> None:
    """A step's ω is that of the global batch, clipped or not."""
    whole, one = learner(tiny_folder, "finetune+si", clip="norm", clip_norm=1e-3)
    whole.step([0, 1, 2, 3])
    parts, other = learner(tiny_folder, "finetune+si", micro_batch=1)
    parts.step([0, 1, 2, 3])

    assert one.path.keys() == other.path.keys()
    for name, path in one.path.items():  # ω / Δ is the gradient: the first step's length is AdamW's own
        there = one.moved[name].abs() > 1e-7
        torch.testing.assert_close(
            (path / one.moved[name])[there],
            (other.path[name] / other.moved[name])[there],
            rtol=2e-2,
            atol=1e-6,
        )


def test_along_small_steps_omega_adds_up_to_what_the_loss_has_lost(tiny_folder: Path) -> None:
    """Of one batch, taken again and again: Σ ω = L before − L after, up to second order in the step."""
    made, method = learner(tiny_folder, "finetune+si", **{"lr.adapters": 1e-4, "lr.projector": 1e-5})
    batch = made.backbone.batch([SAMPLES[i] for i in range(4)], answers=True)
    model = made.model.eval()
    first = float(task_loss(model, batch).detach())
    for _ in range(5):
        made.step([0, 1, 2, 3])
    last = float(task_loss(model, batch).detach())

    lowered = method.after_task(model)["si/lowered"].item()

    assert first - last > 1e-3
    assert lowered == pytest.approx(first - last, rel=0.05)


def test_the_penalty_is_a_scalar_that_counts_once_per_step(tiny_folder: Path) -> None:
    """Two micro-batches see the penalty twice and count it once; it is not in the path."""
    plain, without = learner(tiny_folder, "finetune+si[strength=0]", micro_batch=2)
    made, method = learner(tiny_folder, "finetune+si[strength=2]", micro_batch=2)
    for one in (without, method):
        for name, weight in made.model.named_parameters():
            if weight.requires_grad:
                one.importance[name] = torch.full_like(weight, 0.5).detach()
                one.anchor[name] = weight.detach() - 0.1
    count = sum(anchor.numel() for anchor in method.anchor.values())

    terms = made.step([0, 1, 2, 3])
    plain.step([0, 1, 2, 3])

    assert terms["si"].item() == pytest.approx(2 * 0.5 * 0.01 * count, rel=1e-3)
    for name, path in method.path.items():
        slope, alone = path / method.moved[name], without.path[name] / without.moved[name]
        there = (method.moved[name].abs() > 1e-7) & (without.moved[name].abs() > 1e-7)
        torch.testing.assert_close(slope[there], alone[there], rtol=2e-2, atol=1e-5)


def test_the_first_task_has_no_penalty_and_later_weights_are_free() -> None:
    method, model = SI(SI.Options()), nn.Linear(2, 1)
    assert method.loss(model) is None
    method.after_task(model)

    later = nn.Module()
    later.fresh = nn.Parameter(torch.ones(1))
    assert method.loss(later) is None

    model.weight.requires_grad_(False)
    model.bias.requires_grad_(False)
    assert method.loss(model) is None


def test_a_weight_that_leaves_the_model_takes_its_penalty_with_it() -> None:
    method, model = SI(SI.Options()), nn.Linear(2, 1)
    method.after_task(model)
    model.bias = None
    method.after_task(model)

    assert set(method.importance) == set(method.anchor) == {"weight"}


def test_on_the_meta_device_the_shapes_are_right() -> None:
    """How a ledger is counted: no step was taken and no value is read."""
    method, model = SI(SI.Options()), nn.Linear(2, 3, device="meta")
    for _ in range(2):
        method.after_task(model)

    assert {name: tuple(one.shape) for name, one in method.importance.items()} == {
        "weight": (3, 2),
        "bias": (3,),
    }
    assert all(one.is_meta for table in (method.importance, method.anchor) for one in table.values())
    assert method.path == method.moved == {}


def test_options_say_what_is_out_of_range() -> None:
    for options in ({"strength": -1}, {"damping": 0}, {"variant": "mine"}):
        with pytest.raises(ValueError, match="validation error"):
            SI.Options(**options)  # type: ignore[arg-type]


def trained(text: str, folder: Path, root: Path) -> dict[str, Tensor]:
    """Weights after both tiny tasks."""
    benchmark = tiny_benchmark()
    recipe = build_recipe(benchmark.recipe, {})
    return weights(
        learnt(Run, text, benchmark.tasks, tiny_backbone(folder), recipe, root / text.replace(".", "_")).model
    )


def test_strength_zero_is_fine_tuning_bit_for_bit_and_a_large_one_holds(
    tiny_folder: Path, tmp_path: Path
) -> None:
    plain = trained("finetune", tiny_folder, tmp_path)
    without = trained("si[strength=0]", tiny_folder, tmp_path)
    with_it = trained("si[strength=1e6]", tiny_folder, tmp_path)

    assert plain.keys() == without.keys()
    assert all(torch.equal(plain[name], without[name]) for name in plain)
    assert not all(torch.equal(plain[name], with_it[name]) for name in plain)
