"""CL-MoE: statistics over samples and tokens, momentum by hand, both routers in a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cl_zoo_clmoe
import pytest
import torch
from cl_zoo_clmoe import CLMoE, Routed, mean_gates, momentums, task_gates
from tiny_runs import Watched, learnt, weights
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.nn.layer import BankLayer
from cl_zoo.nn.mixes import PerToken
from cl_zoo.processes import drawn
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample, Task, TaskData
from cl_zoo.testing import tiny_backbone, tiny_benchmark

BENCHMARK = tiny_benchmark(3, size=8)
RECIPE = build_recipe(BENCHMARK.recipe, {"adapter.rank": 2, "budget": "published", "adapter.dropout": 0})
BARE = Sample("t", None, "Say one colour .", "red")


def trained(stack: str, folder: Path, root: Path, tasks: Sequence[TaskData] = BENCHMARK.tasks[:2]) -> Watched:
    return learnt(Watched, stack, tasks, tiny_backbone(folder), RECIPE, root, cells="lower")


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """The default after two tasks."""
    return trained("clmoe", tiny_folder, tmp_path_factory.mktemp("clmoe"))


def method(backbone: Backbone, **options: Any) -> tuple[CLMoE, ExpertBank]:
    """CL-MoE before the first task, with A, B and routers drawn at random so that everything matters."""
    torch.manual_seed(0)
    made = CLMoE(CLMoE.Options(**options))
    bank = made.build_model(backbone, RECIPE)
    for name, weight in bank.named_parameters():
        if ".bank_" in name:
            nn.init.normal_(weight, std=0.3)
    return made, bank


def softmax(scores: Sequence[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def router(layer: BankLayer) -> Tensor:
    return layer.bank_mix.router.weight.detach()


# --- what is kept of a task -----------------------------------------------------------------------------------------


def test_mean_gates_are_those_of_the_real_tokens_of_samples_one_by_one(tiny: Backbone) -> None:
    """Samples of three lengths in one padded batch, against each alone, token by token; three of the four are drawn."""
    _, bank = method(tiny)
    samples = [BENCHMARK.tasks[0].train[0], BARE, BENCHMARK.tasks[2].train[1], BENCHMARK.tasks[0].train[3]]

    batches = [tiny.batch(samples[:2], answers=True), tiny.batch(samples[2:], answers=True)]
    chosen = [sample for batch in drawn(batches, 3) for sample in batch.samples]
    assert len(chosen) == 3

    found = mean_gates(bank, batches, 3)

    sums, tokens = torch.zeros(len(bank.layers), 4), 0
    for sample in chosen:
        seen: list[Tensor] = []
        handles = [
            layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
            for layer in bank.layers
        ]
        with torch.no_grad():
            forward(bank, tiny.batch([sample], answers=True))
        for handle in handles:
            handle.remove()
        tokens += seen[0].shape[1]
        for row, layer, x in zip(sums, bank.layers, seen, strict=True):
            for token in x[0]:
                row += torch.tensor(softmax([float(weight @ token) for weight in router(layer)]))
    torch.testing.assert_close(found, sums / tokens, rtol=1e-4, atol=1e-5)


def test_looking_at_gates_leaves_the_model_as_it_was(tiny: Backbone) -> None:
    _, bank = method(tiny)
    before, mixes = weights(bank), [layer.bank_mix for layer in bank.layers]
    learning = {name for name, weight in bank.named_parameters() if weight.requires_grad}
    bank.train()

    mean_gates(bank, [tiny.batch([BARE], answers=True)], 8)

    assert bank.training
    assert [layer.bank_mix for layer in bank.layers] == mixes
    assert {name for name, weight in bank.named_parameters() if weight.requires_grad} == learning
    assert all(torch.equal(weight, before[name]) for name, weight in bank.named_parameters())


def test_gates_are_looked_at_without_dropout(tiny: Backbone) -> None:
    _, bank = method(tiny)
    for layer in bank.layers:
        layer.bank_dropout = nn.Dropout(0.5)
    batch = tiny.batch([BARE, BENCHMARK.tasks[0].train[0]], answers=True)

    learning, answering = (mean_gates(bank.train(mode), [batch], 8) for mode in (True, False))

    assert torch.equal(learning, answering)


def test_the_gates_of_a_task_are_those_of_its_most_active_experts_summing_to_one() -> None:
    """(0.4, 0.1, 0.3, 0.2): the first and third, 4/7 and 3/7."""
    means = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]])

    found = task_gates(means, 2)

    torch.testing.assert_close(found, torch.tensor([[4 / 7, 0, 3 / 7, 0], [0, 0, 3 / 7, 4 / 7]]))
    torch.testing.assert_close(task_gates(means, 4), means)


# --- momentum -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "expected"), [("paper", [0.7, 0.7, 0.3, 0.7]), ("released", [0.3, 0.7, 0.7, 0.7])]
)
def test_the_momentum_of_an_expert_is_by_its_role(variant: str, expected: list[float]) -> None:
    """The old task uses experts 0 and 1, the new one 1 and 2, nobody 3; γ = 0.7."""
    old, new = torch.tensor([[True, True, False, False]]), torch.tensor([[False, True, True, False]])

    found = momentums(old, new, CLMoE.Options(variant=variant))

    torch.testing.assert_close(found, torch.tensor([expected]))


def test_experts_go_back_by_their_momentum_and_nothing_else_does(tiny: Backbone) -> None:
    """θ_{t−1} = 1, φ_t = 2: λ = 0.7 gives 0.7·1 + 0.3·2 = 1.3, λ = 0.3 gives 1.7."""
    made, bank = method(tiny)
    everything = [w for layer in bank.layers for w in (*layer.bank_down.values(), *layer.bank_up.values())]
    for weight in everything:
        nn.init.constant_(weight, 1.0)
    made.before_task()
    for weight in everything:
        nn.init.constant_(weight, 2.0)
    routers = [router(layer).clone() for layer in bank.layers]
    rates = torch.full((len(bank.layers), 4), 0.7)
    rates[3, 1] = 0.3

    learnt, left = made._merge(rates)

    for place, layer in enumerate(bank.layers):
        assert torch.equal(router(layer), routers[place])
        for i in range(4):
            value = 1.7 if (place, i) == (3, 1) else 1.3
            for weight in (layer.bank_down[f"e{i}"], layer.bank_up[f"e{i}"]):
                torch.testing.assert_close(weight.detach(), torch.full_like(weight, value))
                assert weight.requires_grad
    # each layer's BA has 2-row products: all entries r·θ², so ‖BA − B'A'‖ = r·(θ² − 1)·√(d_out·d_in), θ = 2 before the merge
    sizes = [math.sqrt(layer.in_features * layer.out_features) for layer in bank.layers]
    assert float(learnt) == pytest.approx(2 * (4 - 1) * 4 * sum(sizes))
    assert float(left) == pytest.approx(
        2 * ((1.3**2 - 1) * (4 * sum(sizes) - sizes[3]) + (1.7**2 - 1) * sizes[3])
    )


def test_roles_are_those_of_the_task_before_and_the_new_one(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first task uses experts 0 and 1, the second 1 and 2, so 2 is its own: λ = (0.7, 0.7, 0.3, 0.7), mean 0.6."""
    made, bank = method(tiny)
    means = iter([[0.4, 0.3, 0.2, 0.1], [0.1, 0.4, 0.3, 0.2]])
    monkeypatch.setattr(
        cl_zoo_clmoe, "mean_gates", lambda bank, *_: torch.tensor([next(means)] * len(bank.layers))
    )
    made.before_task()
    assert made.after_task([]) == {}
    for layer in bank.layers:
        for up in layer.bank_up.values():
            nn.init.constant_(up, 1.0)
    made.before_task()
    for layer in bank.layers:
        for up in layer.bank_up.values():
            nn.init.constant_(up, 2.0)

    measured = made.after_task([])

    assert measured["clmoe/momentum"].item() == pytest.approx(0.6)
    # A stands still and B goes from 1 to 2: by 0.3 of its way in three experts, by 0.7 in one that are equally large on average
    assert 0.3 < measured["clmoe/left"].item() < 0.7
    for layer in bank.layers:
        found = [float(layer.bank_up[f"e{i}"].detach().mean()) for i in range(4)]
        assert found == pytest.approx([1.3, 1.3, 1.7, 1.3])


def test_the_first_task_stays_as_trained_and_the_second_goes_back(
    run: Watched, tiny_folder: Path, tmp_path: Path
) -> None:
    """γ = 0 with all experts shared is no momentum at all: the trained weights φ, which the default starts from too."""
    plain = trained("clmoe[momentum=0,top=4]", tiny_folder, tmp_path)

    bank = [name for name in run.kept[0] if ".bank_down." in name or ".bank_up." in name]
    assert all(torch.equal(run.kept[0][name], plain.kept[0][name]) for name in bank)
    for name in bank:  # the second task starts at the same weights and ends at φ, or part of the way there
        start, end, here = plain.kept[0][name], plain.kept[1][name], run.kept[1][name]
        shares = [torch.lerp(end, start, rate) for rate in (0.7, 0.3)]
        assert any(torch.allclose(here, share, atol=1e-6) for share in shares), name
    assert run.measured[0].keys() == set()
    assert 0.5 <= run.measured[1]["clmoe/momentum"] <= 0.7 + 1e-6  # at most 2 of 4 experts move


def test_the_first_task_trains_as_a_plain_mixture_of_experts(
    run: Watched, tiny_folder: Path, tmp_path: Path
) -> None:
    mixture = trained("moelora[experts=4]", tiny_folder, tmp_path, BENCHMARK.tasks[:1])

    assert run.kept[0].keys() == mixture.kept[0].keys()
    assert all(torch.equal(run.kept[0][name], mixture.kept[0][name]) for name in run.kept[0])


# --- answering ------------------------------------------------------------------------------------------------------


def test_with_beta_one_the_token_alone_decides(tiny: Backbone) -> None:
    made, bank = method(tiny, beta=1)
    made.anchors.add([tiny.batch([BARE], answers=True)])
    made.gates = [task_gates(torch.rand(len(bank.layers), 4), 2)]
    batch = tiny.batch([BENCHMARK.tasks[0].test[0], BARE], answers=True)
    with torch.no_grad():
        learnt = forward(bank.eval(), batch).logits
        answered = forward(made.build_inference_model().eval(), batch).logits

    torch.testing.assert_close(answered, learnt, rtol=0, atol=1e-5)


def test_training_goes_on_with_the_token_alone_after_answering(run: Watched) -> None:
    assert all(isinstance(layer.bank_mix, PerToken) for layer in run.plugins.method.bank.layers)


def test_of_a_task_that_came_twice_the_later_one_is_chosen(tiny_folder: Path, tmp_path: Path) -> None:
    twice = trained("clmoe", tiny_folder, tmp_path, BENCHMARK.stream("CSC"))
    answering = twice.plugins.build_inference_model(twice.model, [Task(2, "colour", "", 8, 1)])
    assert isinstance(answering, Routed)

    answering.prepare(twice.backbone.batch(list(BENCHMARK.tasks[0].test), answers=False))

    assert answering.route is not None
    assert answering.route.argmax(1).tolist() == [2] * len(BENCHMARK.tasks[0].test)


# --- options and state ----------------------------------------------------------------------------------------------


def test_a_state_comes_back(run: Watched, tiny: Backbone) -> None:
    kept, (again, _) = run.plugins.method, method(tiny)

    again.load_state_dict(kept.state_dict())

    assert all(torch.equal(a, b) for a, b in zip(again.gates, kept.gates, strict=True))
    assert torch.equal(again.anchors["texts"], kept.anchors["texts"])


def test_no_task_has_more_experts_than_there_are() -> None:
    with pytest.raises(ValueError, match="top is 5 but there are 4 experts"):
        CLMoE.Options(top=5)
