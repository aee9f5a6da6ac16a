"""SMoLoRA: the fusion by hand, where blocks come from and that they stay, what learns, what is counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cl_zoo_smolora import Separable, Separated, SMoLoRA
from tiny_runs import Watched, learnt, written_by_hand
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward, task_loss
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.learning import assign_parts, recompute_activations
from cl_zoo.names import parse_stack
from cl_zoo.nn import BankLayer, PromptMean
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample
from cl_zoo.testing import tiny_backbone, tiny_benchmark

BENCHMARK = tiny_benchmark(2, size=8)
STREAM = BENCHMARK.stream("CSC")
PUBLISHED = {"adapter.rank": 2, "budget": "published", "adapter.dropout": 0}
Make = Callable[..., Separated]


@pytest.fixture
def make(tiny_folder: Path) -> Make:
    """A model with random blocks, routers and I, and no training behind it."""

    def build(**options: object) -> Separated:
        torch.manual_seed(0)
        method = SMoLoRA(SMoLoRA.Options(**options))
        model = method.build_model(tiny_backbone(tiny_folder), build_recipe(PUBLISHED))
        for name, weight in model.named_parameters():
            if ".bank_" in name:
                nn.init.normal_(weight.data, std=1.0 if "bank_mix" in name else 0.2)
        return model

    return build


def questions() -> list[Sample]:
    """With images and without, prompts of different lengths, three instructions."""
    bare = Sample("t", None, "Say one colour .\nOne word .", "red")
    return [STREAM[0].test[1], bare, Sample("u", None, "Say one colour .", "a red one")]


def small(**options: object) -> tuple[BankLayer, Separable, PromptMean]:
    """A layer from two inputs to two outputs, with two blocks of rank 1 in each module."""
    layer, now = BankLayer(nn.Linear(2, 2, bias=False), "layer", 2.0, 0.0), PromptMean()
    names = [f"e{i}" for i in range(4)]
    for i, name in enumerate(names):
        layer.bank_down[name] = nn.Parameter(torch.tensor([[1.0, 0.0]]))
        layer.bank_up[name] = nn.Parameter(torch.tensor([[float(i + 1)], [0.0]]))
        layer.reads[name] = name
    layer._active_adapter = names
    options = SMoLoRA.Options(experts=4, **options)
    sizes = dict.fromkeys(options.present, 4 // len(options.present))
    layer.bank_mix = mix = Separable(layer, sizes, 2, now, options)
    nn.init.zeros_(layer.base_layer.weight)
    for router in mix.routers.values():
        router.weight.data = torch.eye(2)[: len(router.weight)]
    return layer, mix, now


def seen_by(layer: BankLayer) -> list[Tensor]:
    """What a layer is given, each time."""
    inputs: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
    return inputs


# --- equations by hand ----------------------------------------------------------------------------------------------


def test_a_layers_output_by_hand() -> None:
    """Avg (1, 3) takes block 1 of vu and f (5, 2) block 0 of if. For x = (1, 4): x^vu = 2·2·1, x^if = 2·3·1, in the first output.

    With I^vu = (ln 3 / 4, 0) and I^if = 0 the scores are ln 3 and 0, so α = 3/4: 3 + 6/4. For x = (1, 2) as well: A reads 1.
    """
    layer, mix, now = small()
    mix.importance.weight.data = torch.tensor([[math.log(3) / 4, 0.0], [0.0, 0.0]])
    now.start(torch.tensor([[True, True]]), torch.tensor([[5.0, 2.0]]))
    x = torch.tensor([[[1.0, 4.0], [1.0, 2.0]]])

    torch.testing.assert_close(layer(x), torch.tensor([[[4.5, 0.0], [4.5, 0.0]]]))


def test_with_fusion_by_the_mean_both_modules_count_one_half() -> None:
    """(4 + 6) / 2."""
    layer, _, now = small(fusion="mean")
    now.start(torch.tensor([[True]]), torch.tensor([[5.0, 2.0]]))

    torch.testing.assert_close(layer(torch.tensor([[[1.0, 3.0]]])), torch.tensor([[[5.0, 0.0]]]))


def test_padding_and_what_stands_behind_the_prompt_do_not_choose() -> None:
    """Of the tokens (9, 0), (0, 1), (9, 0) only the middle one is the prompt's: block 1; with the others it would be 0."""
    _, mix, now = small()
    x = torch.tensor([[[9.0, 0], [0, 1.0], [9, 0]]])
    now.start(torch.tensor([[False, True, False]]), torch.tensor([[1.0, 0]]))
    assert mix.train().gates(x).tolist() == [[0, 1, 1, 0]]
    now.start(torch.tensor([[False, True]]), torch.tensor([[1.0, 0]]))
    assert mix.gates(x).tolist() == [[0, 1, 1, 0]]
    now.start(torch.tensor([[True, True, True]]), torch.tensor([[1.0, 0]]))
    assert mix.gates(x).tolist() == [[1, 0, 1, 0]]


def test_two_blocks_of_a_module_are_weighed_and_routers_learn() -> None:
    """Logits (ln 2, ln 6) of two blocks: 1/4 and 3/4."""
    _, mix, now = small(top_k=2)
    x = torch.tensor([[[math.log(2), math.log(6)]]])
    now.start(torch.tensor([[True]]), torch.tensor([[0.0, 0.0]]))

    torch.testing.assert_close(mix.gates(x), torch.tensor([[1 / 4, 3 / 4, 1 / 2, 1 / 2]]))
    assert all(router.weight.requires_grad for router in mix.routers.values())


@pytest.mark.parametrize("modules", ["both", "instruction"])
def test_a_layer_that_was_told_nothing_says_so(modules: str) -> None:
    layer, _, _ = small(modules=modules)
    with pytest.raises(ValueError, match=r"no prompts are known for 1 rows; call prepare\(batch\)"):
        layer(torch.ones(1, 1, 2))


def test_more_blocks_than_a_module_has_cannot_be_chosen() -> None:
    with pytest.raises(ValueError, match="top_k is 3, a module has 2 of 4 blocks; lower it"):
        SMoLoRA.Options(experts=4, top_k=3)


# --- where blocks come from -----------------------------------------------------------------------------------------


def test_only_the_last_line_of_the_prompt_chooses_the_block_of_an_instruction(make: Make) -> None:
    """Two questions of one instruction have one block in each layer; of eight instructions some do not."""
    model = make().train()
    backbone = model._backbone

    def blocks(prompt: str) -> Tensor:
        model.prepare(backbone.batch([Sample("s", None, prompt, "red")], answers=True))
        return torch.stack([mix.logits(torch.zeros(1, 9, mix._of[0].in_features))[1] for mix in model.mixes])

    assert torch.equal(blocks("Which one ?\nOne word ."), blocks("How many ?\nOne word ."))
    words = ("red", "blue", "one", "two", "square", "circle", "left", "right")
    found = [blocks(f"Which one ?\n{word}").argmax(-1) for word in words]
    assert len({tuple(one.flatten().tolist()) for one in found}) > 1


def test_learning_and_answering_choose_the_same_blocks(make: Make) -> None:
    """The answer that is learnt is not averaged: the gates are those of the question alone."""
    model = make().eval()
    with torch.no_grad():
        gates = []
        for answers in (True, False):
            forward(model, model._backbone.batch(questions(), answers=answers))
            gates.append(torch.stack([model.now.kept[mix] for mix in model.mixes]))

    assert torch.equal(*gates)
    assert (gates[0].sum(-1) == 2).all()


def test_tokens_that_are_decoded_keep_the_blocks_of_their_prompt(make: Make) -> None:
    """As released, each finds its own by the state that the router sees then."""
    for variant in ("paper", "released"):
        model = make(variant=variant).eval()
        mix = model.mixes[0]
        model.prepare(model._backbone.batch(questions()[1:2], answers=False))
        width = model.now.mask.shape[1]
        x = torch.randn(1, width, 32)
        gates = mix.gates(x)
        others = [mix.gates(torch.randn(1, 1, 32)) for _ in range(12)]
        assert all(torch.equal(one, gates) for one in others) == (variant == "paper")


def test_generating_with_the_cache_equals_a_loop_that_sees_the_whole_sequence_each_time(make: Make) -> None:
    model = make().eval()
    batch = model._backbone.batch(questions(), answers=False)
    with torch.no_grad():
        model.prepare(batch)
        made = model.generate(
            **batch.inputs, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        expected = written_by_hand(model, batch)

    assert torch.equal(made, expected)


def test_neither_padding_nor_the_rest_of_the_batch_changes_an_answer(make: Make) -> None:
    model = make().eval()
    backbone = model._backbone
    with torch.no_grad():
        batch = backbone.batch(questions(), answers=True)
        assert len(set(batch.first_tokens.tolist())) > 1
        together = forward(model, batch).logits
        gates = dict(model.now.kept)
        for row, sample in enumerate(questions()):
            alone = forward(model, backbone.batch([sample], answers=True)).logits
            torch.testing.assert_close(together[row][batch.answer_mask[row]], alone[0], rtol=0, atol=1e-4)
            for mix, kept in model.now.kept.items():
                assert torch.equal(kept[0], gates[mix][row])


# --- what learns ----------------------------------------------------------------------------------------------------


def test_a_recomputed_layer_gives_the_same_gradients(make: Make) -> None:
    model = make(top_k=2)
    batch = model._backbone.batch(questions(), answers=True)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            recompute_activations(model._backbone.model)
        model.train().zero_grad()
        task_loss(model, batch).backward()
        gradients.append({name: w.grad for name, w in model.named_parameters() if w.grad is not None})

    assert gradients[0].keys() == gradients[1].keys()
    assert any("routers.visual" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_only_blocks_that_were_chosen_learn_and_no_router_does(make: Make) -> None:
    model = make().train()
    batch = model._backbone.batch(questions()[:1], answers=True)
    task_loss(model, batch).backward()

    model.eval()
    with torch.no_grad():
        forward(model, batch)
    for layer, mix in zip(model.bank.layers, model.mixes, strict=True):
        chosen = model.now.kept[mix][0].bool().tolist()
        assert sum(chosen) == 2
        for name, learns in zip(layer.experts, chosen, strict=True):
            assert layer.bank_up[name].grad.any() == layer.bank_down[name].grad.any() == learns
        assert mix.importance.weight.grad.any()
        assert not any(router.weight.requires_grad for router in mix.routers.values())


def test_what_is_counted(tiny: Backbone) -> None:
    """Two decoder layers of Σ d_in = 240 and Σ d_out = 256: blocks of rank 2, I for both modules; CLIP's width is e."""
    plugins = Plugins(parse_stack("smolora"))
    model = plugins.build_model(tiny, build_recipe(PUBLISHED))
    assert isinstance(model, Separated)
    parts = assign_parts(model, plugins, tiny)
    named = dict(model.named_parameters())

    assert sum(named[name].numel() for name in parts["adapters"]) == 2 * 8 * 2 * (240 + 256)
    routers = 2 * 4 * 240 + 14 * 4 * tiny.features.width
    assert sum(named[name].numel() for name in parts["routers"]) == routers + 2 * 2 * 256
    trained = sum(w.numel() for name, w in named.items() if ".bank_" in name and w.requires_grad)
    assert trained == 2 * 8 * 2 * (240 + 256) + 2 * 2 * 256
    assert model.active() == {"adapters": 2 * 2 * 2 * (240 + 256), "routers": routers + 2 * 2 * 256}


@pytest.mark.parametrize("rank", [8, 16, 33])
@pytest.mark.parametrize("modules", ["both", "visual", "instruction"])
def test_what_trains_stays_within_the_budget_of_one_lora(tiny: Backbone, rank: int, modules: str) -> None:
    method = SMoLoRA(SMoLoRA.Options(modules=modules))
    model = method.build_model(tiny, build_recipe({"adapter.rank": rank}))

    trained = sum(w.numel() for name, w in model.named_parameters() if ".bank_" in name and w.requires_grad)

    assert trained <= 2 * rank * (240 + 256)
    least = 2 if modules == "both" else 1
    assert all(size >= least for size in model.mixes[0].sizes.values())


@pytest.mark.parametrize(
    ("modules", "routers"),
    [("both", 2 * 2 * 240 + 2 * 14 * 8), ("visual", 4 * 2 * 240), ("instruction", 4 * 14 * 8)],
)
def test_routers_that_learn_are_counted_with_what_they_read(
    tiny: Backbone, modules: str, routers: int
) -> None:
    """Four blocks in 14 linears of Σ d_in = 480: R^vu reads x, R^if a text of CLIP's width 8; I has 2 rows of Σ d_out = 512."""
    recipe = build_recipe({"adapter.rank": 33})
    model = SMoLoRA(SMoLoRA.Options(modules=modules, experts=4, top_k=2)).build_model(tiny, recipe)
    named = {name: weight.numel() for name, weight in model.named_parameters() if weight.requires_grad}

    assert tiny.features.width == 8
    assert sum(size for name, size in named.items() if ".routers." in name) == routers
    beside = routers + (2 * 512 if modules == "both" else 0)
    rank = (33 * (480 + 512) - beside) // (4 * (480 + 512))
    adapters = sum(size for name, size in named.items() if "bank_down" in name or "bank_up" in name)
    assert adapters == rank * 4 * (480 + 512)


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["smolora", "smolora+ewc"])
def test_over_three_tasks_blocks_move_and_the_division_stays(
    tiny_folder: Path, tmp_path: Path, stack: str
) -> None:
    run = learnt(
        Watched,
        stack,
        STREAM,
        tiny_backbone(tiny_folder),
        build_recipe(BENCHMARK.recipe, PUBLISHED),
        tmp_path,
    )

    last = run.kept[-1]
    routers = [name for name in last if ".routers." in name]
    assert len(routers) == 2 * 14
    assert all(torch.equal(run.start[name], last[name]) for name in routers)
    moved = [name for name in last if ".bank_" in name and not torch.equal(run.start[name], last[name])]
    assert sum(".importance." in name for name in moved) == 14
    for module in (range(4), range(4, 8)):
        assert any(f".bank_up.e{i}" in name for i in module for name in moved)
