"""Model Tailor: Optimal Brain Surgeon against least squares and a literal transcription; the patch in the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cl_zoo_modeltailor
import pytest
import torch
from cl_zoo_modeltailor import ModelTailor, Patch, decoration, hessians, root, size, tailored, z
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.nn.layer import BankLayer
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample, Task
from cl_zoo.testing import tiny_backbone, tiny_benchmark

TASKS = tiny_benchmark(3, size=8).tasks


def options(**settings: Any) -> ModelTailor.Options:
    return ModelTailor.Options(**{"damping": 1e-12, **settings})


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def matrix(shape: Sequence[int], places: Tensor, values: Tensor) -> Tensor:
    flat = torch.zeros(shape[0] * shape[1])
    flat[places] = values
    return flat.view(*shape)


# --- scores ---------------------------------------------------------------------------------------------------------


def test_with_inputs_of_one_size_the_largest_changes_stay_and_nothing_is_made_up_for() -> None:
    """H = I and ω = 1: of the changes 3, -1, 2, 0.5 half stay, the two largest, as they are."""
    change = torch.tensor([[3.0, -1.0, 2.0, 0.5]])

    places, values = tailored(change, change, torch.eye(4), options(keep=0.5, salience=1))

    assert places.tolist() == [0, 2]
    assert values.tolist() == [3.0, 2.0]


def test_sensitivity_is_the_tuned_weight_squared_over_the_inverse_hessian() -> None:
    """ω = 0, tuned weights 1, 2, 3 and H = diag(16, 1, 1): w² H = 16, 4, 9, so the first and the last stay.

    The changes are 5, 6, 7; the inputs are independent, so nothing is made up for.
    """
    change, tuned = torch.tensor([[5.0, 6.0, 7.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    H = torch.diag(torch.tensor([16.0, 1.0, 1.0]))

    places, values = tailored(change, tuned, H, options(keep=2 / 3, salience=0))

    assert places.tolist() == [0, 2]
    assert values.tolist() == [5.0, 7.0]


def test_the_score_weighs_both_as_z_scores_of_a_row() -> None:
    """|Δ| = (0, 0, 3), z = (-1, -1, 2)/√2; w² = (6, 0, 0), z = (2, -1, -1)/√2: ω decides which one stays."""
    change, tuned = torch.tensor([[0.0, 0.0, 3.0]]), torch.tensor([[6**0.5, 0.0, 0.0]])

    assert z(change).tolist()[0] == pytest.approx([-(0.5**0.5), -(0.5**0.5), 2**0.5])
    for omega, stays in [(0.4, 0), (0.6, 2)]:
        places, _ = tailored(change, tuned, torch.eye(3), options(keep=1 / 3, salience=omega))
        assert places.tolist() == [stays]


def test_rows_of_equal_values_have_no_score() -> None:
    assert z(torch.full((2, 3), 5.0)).tolist() == [[0.0] * 3] * 2


def test_entries_compete_within_a_block_of_columns() -> None:
    """Blocks (9, 8 | 5, 4): one of each stays; over the whole row 9 and 8 would."""
    change = torch.tensor([[9.0, 8.0, 5.0, 4.0]])

    places, _ = tailored(change, change, torch.eye(4), options(keep=0.5, salience=1, block=2))

    assert places.tolist() == [0, 2]


# --- compensation ---------------------------------------------------------------------------------------------------


def least_squares(x: Tensor, change: Tensor, free: Sequence[int], fixed: Tensor) -> Tensor:
    """The row closest to `change` in its outputs on x, where only the `free` entries of `fixed` may move."""
    free = list(free)
    held = fixed.clone()
    held[free] = 0
    held[free] = torch.linalg.lstsq(x[:, free], x @ (change - held)).solution
    return held


@pytest.mark.parametrize("removed", [[0], [0, 1], [0, 1, 2]])
def test_what_stays_makes_up_for_the_first_columns_as_least_squares_does(removed: list[int]) -> None:
    x, change = random(50, 6) @ random(6, 6, seed=1), random(6, seed=2)
    kept = torch.ones(1, 6, dtype=torch.bool)
    kept[0, removed] = False

    after = change - decoration(change[None], kept, root(2 * x.T @ x, 1e-12))[0]

    expected = least_squares(x, change, [m for m in range(6) if m not in removed], torch.zeros(6))
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-4)


def test_a_column_in_the_middle_is_made_up_for_by_those_after_it() -> None:
    """Those before it are settled: least squares over the later ones only."""
    x, change = random(50, 6) @ random(6, 6, seed=1), random(6, seed=2)
    kept = torch.tensor([[True, True, False, True, True, True]])

    after = change - decoration(change[None], kept, root(2 * x.T @ x, 1e-12))[0]

    expected = least_squares(x, change, [3, 4, 5], torch.where(kept[0], change, 0.0))
    assert torch.equal(after[:2], change[:2])
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-4)


def test_the_released_code_adds_what_the_equations_subtract() -> None:
    """H = [[2, 1], [1, 2]], so [H⁻¹]_01 / [H⁻¹]_00 = −1/2. Of the changes 4 and 10 the second stays: 10 + 4 / 2 = 12, which least
    squares gives too, and with the sign turned round 10 − 4 / 2 = 8."""
    change, H = torch.tensor([[4.0, 10.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])

    for variant, value in (("paper", 12.0), ("released", 8.0)):
        places, values = tailored(change, change, H, options(keep=0.5, salience=1, variant=variant))
        assert places.tolist() == [1]
        assert values.tolist() == pytest.approx([value])


def test_the_weight_of_salience_is_the_variants_unless_it_is_given() -> None:
    """z of the changes (5, 4, 0, 0) is 1.21 at the first, −0.99 at the last; z of w² (0, 0, 0, 6) is −0.58 and 1.73. The last wins by
    0.37 to 0.32 at ω = 0.5, the first by 0.85 to −0.44 at 0.8."""
    change, tuned = torch.tensor([[5.0, 4.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 6**0.5]])

    for settings, stays in (
        ({}, 3),
        ({"variant": "released"}, 0),
        ({"variant": "released", "salience": 0.5}, 3),
        ({"salience": 0.8}, 0),
    ):
        places, _ = tailored(change, tuned, torch.eye(4), options(keep=0.25, **settings))
        assert places.tolist() == [stays], settings


def test_the_root_is_that_of_the_damped_inverse() -> None:
    """UᵀU = (H + 0.1 · mean diag)⁻¹; an input that is always zero has a diagonal of 1 before that."""
    x = random(20, 4)
    x[:, 1] = 0
    H = 2 * x.T @ x

    U = root(H, 0.1)

    expected = H.clone()
    expected[1, 1] = 1
    expected += 0.1 * expected.diagonal().mean() * torch.eye(4)
    assert torch.equal(U, U.triu())
    torch.testing.assert_close(U.T @ U @ expected, torch.eye(4), rtol=1e-4, atol=1e-4)


def literal(change: Tensor, tuned: Tensor, H: Tensor, o: ModelTailor.Options) -> Tensor:
    """Row by row, column by column, with the inverse Hessian of the columns still to come inverted anew for each."""
    rows, columns = change.shape
    omega, sign = {"paper": (0.5, 1), "released": (0.8, -1)}[o.variant]
    H = H + o.damping * H.diagonal().mean() * torch.eye(columns)
    now, weight, out = change.clone(), tuned.clone(), torch.zeros_like(change)
    for start in range(0, columns, o.block):
        stop = min(start + o.block, columns)
        salience = change[:, start:stop].abs()
        sensitivity = torch.zeros_like(salience)
        for m in range(start, stop):
            inverse = torch.linalg.inv(H[m:, m:])
            sensitivity[:, m - start] = weight[:, m] ** 2 / inverse[0, 0]
        scores = []
        for row in range(rows):
            for m in range(stop - start):
                a, b = salience[row], sensitivity[row]
                fused = omega * (a[m] - a.mean()) / a.std() + (1 - omega) * (b[m] - b.mean()) / b.std()
                scores.append((float(fused), row, start + m))
        stays = {(row, m) for _, row, m in sorted(scores, reverse=True)[: round(o.keep * len(scores))]}
        for m in range(start, stop):
            inverse = torch.linalg.inv(H[m:, m:])
            for row in range(rows):
                if (row, m) in stays:
                    out[row, m] = now[row, m]
                else:
                    step = now[row, m] / inverse[0, 0] * inverse[0]
                    now[row, m:] -= sign * step
                    weight[row, m:] -= sign * step
    return out


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize(("block", "keep"), [(4, 0.4), (11, 0.25), (8, 0.5), (128, 0.1)])
def test_tailoring_is_its_literal_transcription(block: int, keep: float, variant: str) -> None:
    change, tuned = random(5, 11), random(5, 11, seed=1)
    x = random(40, 11, seed=2) @ random(11, 11, seed=3)
    o = options(block=block, keep=keep, damping=0.01, variant=variant)

    places, values = tailored(change, tuned, 2 * x.T @ x, o)

    expected = literal(change, tuned, 2 * x.T @ x, o)
    assert places.tolist() == expected.flatten().nonzero().squeeze(1).tolist()
    torch.testing.assert_close(matrix((5, 11), places, values), expected, rtol=1e-3, atol=1e-4)
    assert len(values) == size(linear(5, 11), o)


def linear(d_out: int, d_in: int) -> BankLayer:
    return BankLayer(nn.Linear(d_in, d_out, bias=False), "layers.0.x", 2.0, 0.0)


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


def test_the_hessian_leaves_padding_out_and_stops_after_the_samples(tiny: Backbone) -> None:
    """2 Σ x xᵀ over the tokens of each sample's own, unpadded batch; the third sample is not looked at."""
    run = Tailored(tiny)
    samples = [*questions(), TASKS[1].train[0]]
    layers = run.model.layers[:2]
    expected = {layer: torch.zeros(layer.in_features, layer.in_features) for layer in layers}
    seen: dict[nn.Module, Tensor] = {}
    handles = [layer.register_forward_pre_hook(lambda m, x: seen.update({m: x[0][0]})) for layer in layers]
    run.model.eval()
    with torch.no_grad():
        for sample in samples[:2]:
            forward(run.model, tiny.batch([sample], answers=True))
            for layer, x in seen.items():
                expected[layer] += 2 * sum((torch.outer(one, one) for one in x), torch.zeros(()))
    for handle in handles:
        handle.remove()

    found = hessians(run.model.train(), layers, [tiny.batch(samples, answers=True)], samples=2)

    assert run.model.training
    for layer in layers:
        torch.testing.assert_close(found[layer], expected[layer], rtol=1e-3, atol=1e-4)


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
