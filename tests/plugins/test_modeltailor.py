"""Model Tailor: the patch in the model, what is kept and what comes back. Scores, compensation: `tests/oracles/test_modeltailor.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cl_zoo_modeltailor
import pytest
import torch
from cl_zoo_modeltailor import ModelTailor, Patch, hessians, size, tailored
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample, Task
from cl_zoo.testing import tiny_backbone, tiny_benchmark

TASKS = tiny_benchmark(3, size=8).tasks


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the patch in the model -----------------------------------------------------------------------------------------


class Tailored:
    """The method on the tiny model; learning is a random LoRA."""

    def __init__(self, backbone: Backbone, **settings: Any) -> None:
        torch.manual_seed(0)
        self.backbone, self.method = backbone, ModelTailor(ModelTailor.Options(**settings))
        recipe = build_recipe({"adapter.rank": 2, "adapter.dropout": 0})
        self.model: ExpertBank = self.method.build_model(backbone, recipe)

    def learn(self, place: int) -> dict[str, Tensor]:
        """Learn a task; returns what its LoRA would add to each layer."""
        self.method.before_task(Task(place, TASKS[place].name, "", 8))
        for layer in self.model.layers:
            nn.init.normal_(layer.bank_up[f"t{place}"], std=0.1)
        added = {layer.path: layer.delta().detach() for layer in self.model.layers}
        self.method.after_task(self.model, [self.backbone.batch(list(TASKS[place].train), answers=True)])
        return added


def questions() -> list[Sample]:
    """Of different lengths, one without an image."""
    return [TASKS[0].train[0], Sample("t", None, "Say one colour .", "red")]


@torch.no_grad()
def logits(model: nn.Module, backbone: Backbone) -> Tensor:
    return forward(model.eval(), backbone.batch(questions(), answers=True)).logits


@torch.no_grad()
def plain(folder: Path, *changes: dict[str, Tensor]) -> Backbone:
    """An untouched backbone whose weights get changes added."""
    backbone = tiny_backbone(folder)
    for name, module in backbone.model.named_modules():
        for change in changes:
            if name in change:
                module.weight += change[name]
    return backbone


def test_with_everything_kept_the_model_is_the_tuned_one(tiny: Backbone, tiny_folder: Path) -> None:
    """Over two tasks: the second LoRA comes on top of what the first has left."""
    run = Tailored(tiny, keep=1.0)
    changes = [run.learn(0), run.learn(1)]

    expected = plain(tiny_folder, *changes)
    assert set(changes[0]) <= {name for name, _ in expected.model.named_modules()}
    torch.testing.assert_close(
        logits(run.model, tiny), logits(expected.model, expected), rtol=1e-3, atol=1e-4
    )


def test_with_nothing_kept_the_model_is_the_pre_trained_one(tiny: Backbone, tiny_folder: Path) -> None:
    run = Tailored(tiny, keep=0.0)
    run.learn(0)

    expected = plain(tiny_folder)
    torch.testing.assert_close(logits(run.model, tiny), logits(expected.model, expected))


def test_a_tenth_of_the_entries_stays_whatever_the_number_of_tasks(tiny: Backbone) -> None:
    run = Tailored(tiny, block=20)
    patches = [module for module in run.model.modules() if isinstance(module, Patch)]
    before = [patch.values.numel() for patch in patches]
    for place in (0, 1):
        run.learn(place)
        assert [patch.values.numel() for patch in patches] == before
        for patch in patches:
            assert int((patch.dense() != 0).sum()) == patch.values.numel()
            assert patch.values.numel() == pytest.approx(0.1 * patch.shape[0] * patch.shape[1], rel=0.02)
    assert run.model.experts == []


def test_each_layer_sees_what_the_tailored_ones_below_it_produce(
    tiny: Backbone, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing kept below, the top layer's Hessian is that of the pre-trained model, LoRA or not."""
    seen: list[Tensor] = []
    real = tailored

    def watched(change: Tensor, tuned: Tensor, H: Tensor, o: ModelTailor.Options) -> tuple[Tensor, Tensor]:
        seen.append(H)
        return real(change, tuned, H, o)

    monkeypatch.setattr(cl_zoo_modeltailor, "tailored", watched)
    run = Tailored(tiny, keep=0.0)
    run.learn(0)

    untouched = Tailored(tiny_backbone(tiny_folder))
    batch = untouched.backbone.batch(list(TASKS[0].train), answers=True)
    top = [
        place
        for place, layer in enumerate(untouched.model.layers)
        if layer.path.endswith("1.self_attn.q_proj")
    ]
    layer = untouched.model.layers[top[0]]
    expected = hessians(untouched.model, [layer], [batch], samples=128)[layer]
    torch.testing.assert_close(seen[top[0]], expected, rtol=1e-3, atol=1e-3)


def test_the_next_task_learns_through_the_patch(tiny: Backbone) -> None:
    """The gradient of y = x Δᵀ is g Δ, in the forward of a model that trains; the patch itself has none."""
    run = Tailored(tiny)
    run.learn(0)
    patch = next(module for module in run.model.modules() if isinstance(module, Patch))
    x = random(2, 3, patch.shape[1]).requires_grad_()
    g = random(2, 3, patch.shape[0], seed=1)

    y = patch(x)
    y.backward(g)

    torch.testing.assert_close(y, x @ patch.dense().T)
    torch.testing.assert_close(x.grad, g @ patch.dense())
    assert patch.values.grad is None
    assert patch(x.detach().bfloat16()).dtype == torch.bfloat16


def test_without_samples_on_the_meta_device_the_shapes_are_right(tiny: Backbone) -> None:
    """How a ledger is counted: the patch has its size, the LoRA has gone."""
    tiny.model.to("meta")
    method = ModelTailor(ModelTailor.Options())
    model = method.build_model(tiny, build_recipe({"adapter.rank": 2}))
    for index in (0, 1):
        method.before_task(Task(index, "a", "", 0))
        method.after_task(model, [])

    counted = {
        name: one.numel() for name, one in model.named_parameters() if name in method.parts(model)["adapters"]
    }
    assert sum(counted.values()) == sum(size(layer, method.options) for layer in model.layers)
    assert len(counted) == len(model.layers)
    assert model.experts == []


def test_a_state_comes_back(tiny: Backbone, tiny_folder: Path) -> None:
    """The second one has the same tensors to fill and learns on with an expert of its own."""
    run = Tailored(tiny)
    run.learn(0)
    other = Tailored(tiny_backbone(tiny_folder))

    other.method.load_state_dict(run.method.state_dict())
    other.model.load_state_dict(run.model.state_dict(), strict=True)

    assert torch.equal(logits(run.model, tiny), logits(other.model, other.backbone))
    other.learn(1)
    assert other.model.experts == []


def test_options_say_what_is_out_of_range() -> None:
    for bad in (
        {"keep": 1.1},
        {"salience": -0.1},
        {"samples": 0},
        {"damping": 0},
        {"block": 0},
        {"layers": 12},
    ):
        with pytest.raises(ValueError, match="validation error"):
            ModelTailor.Options(**bad)  # type: ignore[arg-type]
