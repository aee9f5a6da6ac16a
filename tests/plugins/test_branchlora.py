"""BranchLoRA: gates by hand, the choice that is made once, keys, what is frozen, the ablation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cl_zoo_branchlora import BranchLoRA, alignment
from tiny_runs import Watched, learnt, written_by_hand
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch, forward, task_loss
from cl_zoo.engine.learning import recompute_activations
from cl_zoo.nn import FirstToken, Prefill, gate_sums, top_gates
from cl_zoo.nn.layer import BankLayer
from cl_zoo.processes import drawn
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample, Task
from cl_zoo.testing import tiny_backbone, tiny_benchmark

BENCHMARK = tiny_benchmark(2, size=8)
STREAM = BENCHMARK.stream("CSC")
BARE = Sample("t", None, "Say one colour .", "red")


class Branching(Watched):
    """Keeps which branches are frozen too."""

    frozen: list[dict[str, list[str]]]

    def _checkpoint(self, done: int) -> None:
        self.frozen = [*getattr(self, "frozen", []), dict(self.plugins.method.frozen)]
        super()._checkpoint(done)


def trained(text: str, folder: Path, root: Path, **recipe: Any) -> Branching:
    settings = {
        "adapter.rank": 1,
        "budget": "published",
        "adapter.dropout": 0,
        "lr.keys": 0.1,
        "lr.routers": 0.1,
    }
    return learnt(
        Branching,
        text,
        STREAM,
        tiny_backbone(folder),
        build_recipe(BENCHMARK.recipe, settings, recipe),
        root,
        cells="lower",
    )


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Branching:
    """Colour, side and colour again with four branches on one A."""
    return trained("branchlora[experts=4]", tiny_folder, tmp_path_factory.mktemp("whole"))


Make = Callable[..., BranchLoRA]


@pytest.fixture
def make(tiny_folder: Path) -> Make:
    """A method that knows some tasks, with random branches and routers and no training behind it."""

    def build(tasks: int = 1, rank: int = 1, **options: Any) -> BranchLoRA:
        torch.manual_seed(0)
        method = BranchLoRA(BranchLoRA.Options(**{"experts": 4, **options}))
        method.build_model(
            tiny_backbone(tiny_folder),
            build_recipe({"adapter.rank": rank, "budget": "published", "adapter.dropout": 0}),
        )
        for index in range(tasks):
            method.before_task(Task(index, f"task {index}", "", 8))
        for layer in method.bank.layers:
            for weight in (*layer.bank_up.values(), *layer.bank_down.values()):
                nn.init.normal_(weight.data, std=0.3)
            for router in layer.bank_mix.routers.values():
                nn.init.normal_(router.data)
        return method

    return build


def questions() -> list[Sample]:
    """With images and without, prompts of different lengths."""
    return [STREAM[0].test[1], STREAM[1].test[3], BARE]


# --- the literal transcription --------------------------------------------------------------------------------------


def literal_gates(router: Tensor, first: Tensor, k: int, renormalise: bool = True) -> list[float]:
    """p = softmax(W_r x₀), zero but for the k largest, divided by what is left."""
    powers = [
        math.exp(sum(w * v for w, v in zip(row, first.tolist(), strict=True))) for row in router.tolist()
    ]
    p = [power / sum(powers) for power in powers]
    best = sorted(range(len(p)), key=lambda place: -p[place])[:k]
    rest = sum(p[place] for place in best) if renormalise and k < len(p) else 1.0
    return [p[place] / rest if place in best else 0.0 for place in range(len(p))]


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    norms = math.sqrt(float((a * a).sum())) * math.sqrt(float((b * b).sum()))
    return float((a * b).sum()) / norms if norms else 0.0


# --- gates ----------------------------------------------------------------------------------------------------------


def test_the_gates_of_a_small_case_by_hand() -> None:
    """p = (1, 4, 3, 2) / 10; the two largest are 4/10 and 3/10, of their sum 4/7 and 3/7."""
    p = torch.tensor([[0.1, 0.4, 0.3, 0.2]])

    torch.testing.assert_close(top_gates(p, 2), torch.tensor([[0, 4 / 7, 3 / 7, 0]]))
    torch.testing.assert_close(top_gates(p, 2, renormalise=False), torch.tensor([[0, 0.4, 0.3, 0]]))
    torch.testing.assert_close(top_gates(p, 1), torch.tensor([[0, 1.0, 0, 0]]))


def test_what_comes_first_is_chosen_before_what_is_more_probable() -> None:
    """Of (1, 4, 3, 2)/10 the first and last come first: 1/3 and 2/3; of one that does, the most probable other fills up."""
    p = torch.tensor([[0.1, 0.4, 0.3, 0.2]])

    both = top_gates(p, 2, torch.tensor([[1.0, 0, 0, 1.0]]))
    torch.testing.assert_close(both, torch.tensor([[1 / 3, 0, 0, 2 / 3]]))
    one = top_gates(p, 2, torch.tensor([[1.0, 0, 0, 0]]))
    torch.testing.assert_close(one, torch.tensor([[1 / 5, 4 / 5, 0, 0]]))


def test_a_layers_gates_come_from_its_first_real_token() -> None:
    """W_r x₀ = (0, ln 2, ln 5) for x₀ = (1, 0), so p = (1, 2, 5)/8; for x₀ = (0, 1) the order turns: p = (5, 2, 1)/8."""
    prefill = Prefill("t")
    layer = BankLayer(nn.Linear(2, 1), "layer", 1.0, 0.0)
    mix = FirstToken(layer, 3, prefill, lambda p, first: top_gates(p, 2, first))
    mix.routers["t"] = torch.tensor([[0, math.log(5)], [math.log(2), math.log(2)], [math.log(5), 0]])
    x = torch.tensor([[[1.0, 0], [9, 9]], [[7, -7], [0, 1.0]]])  # the second row is padded on the left
    prefill.start(torch.tensor([0, 1]))

    torch.testing.assert_close(mix.gates(x), torch.tensor([[0, 2 / 7, 5 / 7], [5 / 7, 2 / 7, 0]]))


# --- the choice is made once ----------------------------------------------------------------------------------------


def test_tokens_that_are_decoded_keep_the_gates_of_the_prefill(make: Make) -> None:
    method = make()
    mix = method.bank.layers[0].bank_mix
    method.model.eval().prefill.start(torch.tensor([1, 0]))
    x = torch.randn(2, 5, 32)
    gates = mix.gates(x)

    assert torch.equal(mix.gates(torch.randn(2, 1, 32)), gates)
    method.model.prefill.start(torch.tensor([1, 0]))
    assert not torch.equal(mix.gates(torch.randn(2, 5, 32)), gates)


def test_in_learning_the_gates_always_come_from_the_layers_input(make: Make) -> None:
    """Nothing that an evaluation left behind is used, and nothing is left for the next one."""
    method = make()
    mix = method.bank.layers[0].bank_mix
    method.model.eval().prefill.start(torch.tensor([0]))
    first, second = torch.randn(1, 3, 32), torch.randn(1, 3, 32)
    kept = mix.gates(first)

    method.model.train()
    assert not torch.equal(mix.gates(second), kept)
    method.model.eval()
    assert not torch.equal(mix.gates(second), kept)


def test_a_recomputed_layer_gives_the_same_gradients(make: Make) -> None:
    method = make()
    batch = method.model._backbone.batch(questions(), answers=True)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            recompute_activations(method.model._backbone.model)
        method.model.train().zero_grad()
        task_loss(method.model, batch).backward()
        gradients.append({name: w.grad for name, w in method.model.named_parameters() if w.grad is not None})

    assert gradients[0].keys() == gradients[1].keys()
    assert any("bank_mix.routers.t0" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_generating_with_the_cache_equals_a_loop_that_sees_the_whole_sequence_each_time(make: Make) -> None:
    method = make(2)
    model = method.build_inference_model([Task(0, "a", "", 8), Task(1, "b", "", 8)]).eval()
    batch = model._backbone.batch(questions(), answers=False)
    with torch.no_grad():
        model.prepare(batch)
        made = model.generate(
            **batch.inputs, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        expected = written_by_hand(model, batch)

    assert torch.equal(made, expected)


def test_neither_padding_nor_the_rest_of_the_batch_changes_an_answer(make: Make) -> None:
    method = make(2)
    model = method.build_inference_model([Task(0, "a", "", 8), Task(1, "b", "", 8)]).eval()
    backbone = model._backbone
    with torch.no_grad():
        batch = backbone.batch(questions(), answers=True)
        assert len(set(batch.first_tokens.tolist())) > 1
        together, route = forward(model, batch).logits, model.route
        gates = {mix: kept[1] for mix, kept in model.prefill.kept.items()}
        for row, sample in enumerate(questions()):
            alone = forward(model, backbone.batch([sample], answers=True)).logits
            torch.testing.assert_close(together[row][batch.answer_mask[row]], alone[0], rtol=0, atol=1e-4)
            assert torch.equal(model.route[0], route[row])
            for mix, kept in model.prefill.kept.items():
                torch.testing.assert_close(kept[1][0], gates[mix][row], rtol=0, atol=1e-5)


# --- keys -----------------------------------------------------------------------------------------------------------


def test_the_alignment_of_a_small_case_by_hand() -> None:
    """cos((3, 4), (1, 0)) = 3/5 and cos((0, 2), (1, 1)) = 1/√2: 2/5 + 1 − 1/√2; without an image only the latter."""
    images, texts = torch.tensor([[3.0, 4.0], [0, 0]]), torch.tensor([[0, 2.0], [0, 2.0]])

    term = alignment(images, texts, torch.tensor([1.0, 0]), torch.tensor([1.0, 1.0]))

    torch.testing.assert_close(term, torch.tensor([0.4 + 1 - 1 / math.sqrt(2), 1 - 1 / math.sqrt(2)]))


def test_keys_that_start_small_turn_within_few_steps(whole: Branching, tiny: Backbone) -> None:
    """AdamW moves each coordinate by about its rate: far for a key of 0.01, hardly for one of 1."""
    near = []
    for size in (0.01, 1.0):
        generator = torch.Generator().manual_seed(0)
        image, text = torch.randn(2, 8, generator=generator)
        keys = [nn.Parameter(torch.randn(8, generator=generator) * size) for _ in range(2)]
        optimizer = torch.optim.AdamW(keys, lr=3e-3, weight_decay=0)
        for _ in range(20):
            optimizer.zero_grad()
            alignment(image[None], text[None], *keys).sum().backward()
            optimizer.step()
        near.append((cosine(image, keys[0]) + cosine(text, keys[1])) / 2)
    assert near[0] > 0.95
    assert near[1] < 0.5

    last = whole.kept[-1]
    for index, task in enumerate(STREAM):
        text = tiny.features.texts([task.train[0].prompt])[0]
        assert cosine(text, last[f"text_keys.t{index}"]) > 0.8


def test_the_next_task_learns_with_its_own_router_and_small_keys(make: Make) -> None:
    """What was chosen for answering is over as soon as a task is learnt."""
    method = make(2)
    model = method.build_inference_model([Task(0, "", "", 8), Task(1, "", "", 8)])
    batch = model._backbone.batch(questions(), answers=True)
    model.prepare(batch)
    assert model.prefill.chosen is not None

    method.before_task(Task(2, "", "", 8))
    model.prepare(batch)

    assert model.prefill.chosen is None
    assert model.prefill.learning == "t2"
    assert model.route is None
    for keys in (model.image_keys, model.text_keys):
        assert 0 < float(keys["t2"].detach().abs().max()) < 0.1


def test_the_route_of_every_answer_is_the_one_task_that_was_chosen(whole: Branching) -> None:
    for row in range(3):
        for file in (whole.folder.partial / "answers").glob(f"{row}-*.jsonl"):
            for line in file.read_text().splitlines():
                route = json.loads(line)["route"]
                assert sorted(route) == [0.0] * row + [1.0]


# --- freezing -------------------------------------------------------------------------------------------------------


def test_the_branches_with_the_largest_mean_p_are_frozen_layer_by_layer(make: Make) -> None:
    """p is added up from each layer's own input, sample by sample, over five samples drawn from the task."""
    method = make()
    backbone, bank = method.model._backbone, method.bank
    samples = [*questions(), *STREAM[0].train[:3]]
    batches = [backbone.batch(samples[start : start + 2], answers=True) for start in (0, 2, 4)]
    inputs: dict[str, Tensor] = {}
    for layer in bank.layers:
        layer.register_forward_pre_hook(lambda module, given: inputs.__setitem__(module.path, given[0]))
    torch.manual_seed(3)
    chosen = [sample for batch in drawn(batches, 5) for sample in batch.samples]
    assert len(chosen) == 5
    used = torch.zeros(14, 4)
    with torch.no_grad():
        for sample in chosen:
            forward(method.model.eval(), backbone.batch([sample], answers=True))
            for place, layer in enumerate(bank.layers):
                first = inputs[layer.path][0, 0]
                used[place] += torch.tensor(literal_gates(layer.bank_mix.routers["t0"], first, 4))
    method.model.train()

    p, g = gate_sums(method.model, method.model.mixes, batches, 5)
    torch.testing.assert_close(p, used, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(g.sum(1), torch.full((14,), 5.0))
    method.options = method.options.model_copy(update={"samples": 5})
    assert method.after_task(batches) == {"branchlora/free": 2.0, "branchlora/idle": 0.0}
    for place, layer in enumerate(bank.layers):
        busiest = sorted(range(4), key=lambda branch: -used[place][branch])[:2]
        assert set(method.frozen[layer.path]) == {f"e{branch}" for branch in busiest}
    assert len({tuple(names) for names in method.frozen.values()}) > 1
    assert method.model.training


def test_what_is_frozen_gets_no_gradient_and_the_trunk_does(make: Make) -> None:
    method = make()
    for layer in method.bank.layers:
        method.frozen[layer.path] = ["e0", "e2"]

    method.before_task(Task(1, "next", "", 8))

    for layer in method.bank.layers:
        learning = {name for name, weight in layer.named_parameters() if weight.requires_grad}
        assert learning == {"bank_down.e0", "bank_up.e1", "bank_up.e3", "bank_mix.routers.t1"}


def test_over_a_stream_frozen_branches_stand_still_and_the_trunk_moves(whole: Branching) -> None:
    """So do the routers and keys of older tasks; branches that are free move."""
    for task in (1, 2):
        before, after = whole.kept[task - 1], whole.kept[task]
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert sum(".bank_down." in name for name in moved) == 14
        assert any(".bank_up." in name for name in moved)
        assert not any(".routers." in name or "_keys." in name for name in moved)
        for path, names in whole.frozen[task - 1].items():
            assert not any(name.endswith(f"{path}.bank_up.{branch}") for branch in names for name in moved)
    free = [measured["branchlora/free"] for measured in whole.measured]
    assert free == [4 - sum(map(len, frozen.values())) / 14 for frozen in whole.frozen]
    assert free[0] == 2
    assert free[1] < 2


def test_when_no_branch_is_free_the_rest_learns_on(tiny_folder: Path, tmp_path: Path) -> None:
    run = trained("branchlora[experts=2]", tiny_folder, tmp_path)

    assert [measured["branchlora/free"] for measured in run.measured] == [0, 0, 0]
    first, second, _ = run.kept
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert not any(".bank_up." in name for name in moved)
    assert sum(".bank_down." in name for name in moved) == 14
    assert any("projector" in name for name in moved)
    assert {"text_keys.t1", "image_keys.t1"} <= set(second) - set(first)
    assert set(run.ledger.tasks[1].trained) == {"adapters", "routers", "keys", "projector"}


def test_a_stream_of_twenty_tasks_never_stops(make: Make) -> None:
    """New routers find old branches busy too, so fewer than two are new each time; all of them go in the end."""
    method = make(0)
    batches = [method.model._backbone.batch(STREAM[0].train[:2], answers=True)]
    free = []
    for index in range(20):
        method.before_task(Task(index, "task", "", 2))
        free.append(method.after_task(batches)["branchlora/free"])

    assert free[0] == 2
    assert 0 < free[1] < 2
    assert free == sorted(free, reverse=True)
    assert free[-1] == 0
    assert list(method.bank.layers[0].bank_mix.routers) == [f"t{index}" for index in range(20)]


def test_a_task_without_samples_freezes_nothing(make: Make) -> None:
    assert make().after_task(()) == {"branchlora/free": 4.0}


def test_layers_whose_router_picks_frozen_branches_only_are_counted_as_idle(make: Make) -> None:
    """The router of every other layer is made to pick branches 0 and 2, which are frozen; the rest picks 1 and 3."""
    method = make(2)
    batches = [method.model._backbone.batch([BARE, STREAM[0].train[1]], answers=True)]
    for place, layer in enumerate(method.bank.layers):
        method.frozen[layer.path] = ["e0", "e2"]
        picked = [0, 2] if place % 2 else [1, 3]
        layer.bank_mix.first["t1"] = nn.Parameter(torch.tensor([float(i in picked) for i in range(4)]))

    assert method.after_task(batches)["branchlora/idle"] == 0.5


def test_free_first_lets_a_task_pick_free_branches_and_remembers_them_in_answering(make: Make) -> None:
    """The first task freezes two of four branches; the second one's router can only pick the other two, and does so for good."""
    method = make(1, choose="free-first")
    batches = [method.model._backbone.batch([BARE, STREAM[0].train[1]], answers=True)]
    assert method.after_task(batches) == {"branchlora/free": 2.0, "branchlora/idle": 0.0}
    taken = {path: list(names) for path, names in method.frozen.items()}
    method.before_task(Task(1, "next", "", 8))
    assert method.after_task(batches) == {"branchlora/free": 0.0, "branchlora/idle": 0.0}

    answering = method.model.eval()
    x = torch.randn(2, 3, 32)
    for layer in (one for one in method.bank.layers if one.in_features == 32):
        answering.prefill.start(torch.tensor([0, 0]), ["t0", "t1"], torch.tensor([0, 1]))
        _, new = (layer.bank_mix.gates(x) > 0).tolist()
        assert {n for n, on in zip(method.branches, new, strict=True) if on}.isdisjoint(taken[layer.path])


def test_without_free_first_later_routers_find_frozen_branches(make: Make) -> None:
    """Over ten tasks with four branches the default ends with idle layers everywhere, as nothing is free."""
    method = make(0)
    batches = [method.model._backbone.batch(STREAM[0].train[:2], answers=True)]
    idle = []
    for index in range(10):
        method.before_task(Task(index, "task", "", 2))
        idle.append(method.after_task(batches)["branchlora/idle"])

    assert idle[0] == 0
    assert idle[-1] == 1
    assert any(0 < share < 1 for share in idle)


# --- the ablation ---------------------------------------------------------------------------------------------------


def parts_learning(method: BranchLoRA) -> dict[str, int]:
    named = {name: weight for name, weight in method.model.named_parameters() if weight.requires_grad}
    return {
        part: sum(weight.numel() for name, weight in named.items() if mark in name)
        for part, mark in (
            ("A", ".bank_down."),
            ("B", ".bank_up."),
            ("routers", ".routers."),
            ("keys", "_keys."),
        )
    }


def test_what_learns_and_what_answers_by_closed_form(make: Make) -> None:
    """Two layers with 240 in- and 256 out-features each, rank 2 and N = 4: A 2·480, four B 2·512, W_r 4·480, keys 2·8.

    With two of the four branches 960 + 2·1024 of the adapters answer.
    """
    method = make(rank=2)

    assert parts_learning(method) == {"A": 960, "B": 4 * 1024, "routers": 1920, "keys": 16}
    assert method.model.active() == {"adapters": 960 + 2 * 1024, "routers": 1920}
    method = make(3, rank=2)
    assert parts_learning(method) == {"A": 960, "B": 4 * 1024, "routers": 1920, "keys": 16}
    assert method.model.active() == {"adapters": 960 + 2 * 1024, "routers": 1920}


def test_without_the_shared_trunk_each_branch_has_an_a_that_is_frozen_with_it(make: Make) -> None:
    method = make(rank=2, shared=False)
    assert parts_learning(method)["A"] == 4 * 960
    assert method.model.active()["adapters"] == 2 * (960 + 1024)

    method.frozen = {layer.path: ["e1"] for layer in method.bank.layers}
    method.before_task(Task(1, "next", "", 8))

    for layer in method.bank.layers:
        assert not layer.bank_down["e1"].requires_grad
        assert layer.bank_down["e0"].requires_grad


def test_dense_branches_all_answer(make: Make) -> None:
    method = make(rank=2, sparse=False)
    method.model.prefill.start(torch.tensor([0]))
    gates = method.bank.layers[0].bank_mix.gates(torch.randn(1, 3, 32))

    assert bool((gates > 0).all())
    assert float(gates.sum()) == pytest.approx(1)
    assert method.model.active()["adapters"] == 960 + 4 * 1024


def test_without_freezing_every_branch_learns_on(make: Make) -> None:
    method = make(freezing=False)
    batches = [method.model._backbone.batch(STREAM[0].train[:2], answers=True)]

    assert method.after_task(batches) == {"branchlora/free": 4.0}
    method.before_task(Task(1, "next", "", 8))
    assert parts_learning(method)["B"] == 4 * 512


def test_without_task_routers_one_router_learns_on_and_nothing_is_chosen(
    tiny_folder: Path, tmp_path: Path
) -> None:
    run = trained("branchlora[experts=4,task_router=false]", tiny_folder, tmp_path)

    assert run.plugins.method.loss(Batch((), {})) is None
    assert not any("_keys." in name for name in run.kept[-1])
    routers = [name for name in run.kept[-1] if ".routers." in name]
    assert len(routers) == 14
    assert all(not torch.equal(run.kept[0][name], run.kept[2][name]) for name in routers)
    for file in (run.folder.partial / "answers").iterdir():
        assert "route" not in json.loads(file.read_text().splitlines()[0])


def test_only_task_routers_need_a_feature_encoder(tiny: Backbone) -> None:
    from cl_zoo.errors import BackboneError

    tiny.feature_name = None
    with pytest.raises(BackboneError, match="--features"):
        BranchLoRA(BranchLoRA.Options()).build_model(tiny, build_recipe())
    BranchLoRA(BranchLoRA.Options(task_router=False)).build_model(tiny, build_recipe())


def test_options_say_what_is_out_of_range() -> None:
    bad: list[dict[str, Any]] = [{"top_k": 9}, {"top_k": 0}, {"experts": 0}, {"strength": -1}, {"k": 2}]
    for options in bad:
        with pytest.raises(ValueError, match="validation error"):
            BranchLoRA.Options(**options)
    with pytest.raises(ValueError, match="top_k is 2, but there are only 1 experts; lower it"):
        BranchLoRA.Options(experts=1)
