"""A model that answers with other values of its weights or with other updates, and learns on with its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_zoo import Recipe
from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import prepare
from cl_zoo.engine.ledger import answering_state
from cl_zoo.nn import OtherUpdates, OtherWeights, adapters
from cl_zoo.testing import check_method, tiny_benchmark


class Scaled(nn.Module):
    """y = w x, its own `prepare` and a route: the smallest model with all that an inference module may have."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(1.0))
        self.route: Tensor | None = None

    def prepare(self, batch: Any) -> None:
        self.route = torch.ones(len(batch), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x + self.bias

    def generate(self, x: Tensor) -> Tensor:
        return self(x) * 10


def test_it_answers_with_the_other_value_and_leaves_the_model_its_own() -> None:
    model = Scaled()
    other = OtherWeights(model, {"w": torch.tensor(5.0)})
    x = torch.tensor(3.0)

    assert other(x=x).item() == 16  # 5 · 3 + 1: the bias is the model's own
    assert other.generate(x=x).item() == 160
    assert model(x).item() == 7
    model.bias.data += 1
    assert other(x=x).item() == 17


def test_the_values_are_copies_and_do_not_learn() -> None:
    value = torch.tensor(5.0)
    other = OtherWeights(Scaled(), {"w": value})
    value += 1

    assert other(x=torch.tensor(1.0)).item() == 6
    assert not any(parameter.requires_grad for parameter in other.values)


def test_prepare_and_route_are_those_of_the_model() -> None:
    other = OtherWeights(Scaled(), {})
    assert other.route is None
    prepare(other, [1, 2])  # type: ignore[arg-type]  # a batch is what has a length here
    assert other.route is not None
    assert other.route.shape == (2, 1)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"v": torch.zeros(())}, "the model has no parameter 'v'; name them as"),
        ({"w": torch.zeros(2)}, r"w has shape \(\), but its other value \(2,\)"),
    ],
)
def test_a_value_that_fits_nothing_is_refused(weights: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        OtherWeights(Scaled(), weights)


def test_the_ledger_counts_the_other_values_in_the_place_of_the_models_own(tiny: Backbone) -> None:
    bank = adapters(tiny, Recipe())
    plain = sum(tensor.numel() for tensor in answering_state(bank, tiny).values())
    values = {name: w.detach() * 2 for name, w in bank.named_parameters() if "bank_" in name}

    state = answering_state(OtherWeights(bank, values), tiny)

    assert sum(tensor.numel() for tensor in state.values()) == plain
    assert not [name for name in state if "bank_up" in name]


def test_it_generates_on_a_real_model_what_the_model_with_these_weights_would(tiny: Backbone) -> None:
    bank = adapters(tiny, Recipe()).eval()
    torch.manual_seed(0)
    values = {name: torch.randn_like(w) for name, w in bank.named_parameters() if "bank_up" in name}
    batch = tiny.batch(tiny_benchmark().tasks[0].test[:3], answers=False)
    other = OtherWeights(bank, values)

    found = other.generate(**batch.inputs, max_new_tokens=4, do_sample=False)

    plain = bank.generate(**batch.inputs, max_new_tokens=4, do_sample=False)
    for name, weight in bank.named_parameters():
        if name in values:
            weight.data.copy_(values[name])
    assert torch.equal(found, bank.generate(**batch.inputs, max_new_tokens=4, do_sample=False))
    assert not torch.equal(found, plain)


def test_other_updates_answer_in_the_place_of_the_experts_and_are_taken_off_again(tiny: Backbone) -> None:
    """Of full rank in every second linear, of low rank in the others; each is what W with it added would answer."""
    bank = adapters(tiny, Recipe()).eval()
    torch.manual_seed(0)
    for layer in bank.layers:
        torch.nn.init.normal_(layer.bank_up["shared"])  # what must not answer
    batch = tiny.batch(tiny_benchmark().tasks[0].test[:3], answers=False)
    changes = {}
    for place, layer in enumerate(bank.layers):
        down, up = 0.1 * torch.randn(3, layer.in_features), 0.1 * torch.randn(layer.out_features, 3)
        changes[layer] = [up @ down] if place % 2 else [down, up]

    with torch.no_grad():
        other = OtherUpdates(bank, changes)
        found, answer = (
            other(**batch.inputs).logits,
            other.generate(**batch.inputs, max_new_tokens=4, do_sample=False),
        )
        bare = bank(**batch.inputs).logits  # no expert answers, and no change lingers
        for layer, matrices in changes.items():
            layer.base_layer.weight += (
                matrices[0] if len(matrices) == 1 else layer.scale * matrices[1] @ matrices[0]
            )
        wanted = bank(**batch.inputs).logits

    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert torch.equal(answer, bank.generate(**batch.inputs, max_new_tokens=4, do_sample=False))
    assert not torch.allclose(bare, wanted, atol=1e-2)


def test_other_updates_of_another_shape_are_refused(tiny: Backbone) -> None:
    bank = adapters(tiny, Recipe())
    layer = bank.layers[0]
    for matrices in (
        [torch.zeros(2, 2)],
        [torch.zeros(2, layer.in_features), torch.zeros(layer.out_features, 3)],
    ):
        with pytest.raises(ValueError, match=r"needs a change .* or A \(r, \d+\) and B"):
            OtherUpdates(bank, {layer: matrices})


SLOW = '''
from cl_zoo import hookimpl
from cl_zoo.nn import OtherWeights

class Slow:
    """Answers with the mean of the weights after each task."""

    def __init__(self):
        self.mean, self.count = {}, 0

    @hookimpl
    def after_task(self, model):
        self.count += 1
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                now = weight.detach().clone()
                self.mean[name] = now if self.count == 1 else self.mean[name] + (now - self.mean[name]) / self.count

    @hookimpl
    def build_inference_model(self, model):
        return OtherWeights(model, self.mean)

    def state_dict(self):
        return {"mean": self.mean, "count": self.count}

    def load_state_dict(self, state):
        self.mean, self.count = dict(state["mean"]), state["count"]
'''


def test_a_method_that_answers_with_averages_keeps_every_promise(
    tmp_path: Path, run_tiny: Callable[..., Any]
) -> None:
    file = tmp_path / "slow.py"
    file.write_text(SLOW)

    check_method(f"{file}:Slow")

    slow, plain = run_tiny(f"{file}:Slow"), run_tiny("finetune")
    assert slow.ledger["stored"]["inference"] == plain.ledger["stored"]["inference"]
