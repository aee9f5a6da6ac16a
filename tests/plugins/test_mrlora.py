"""MR-LoRA: what is asked, what is kept, who learns when, and that a router learns to name the expert. Its equations: `tests/oracles/test_mrlora.py`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cl_zoo_bench_mini.network import build_tokenizer
from cl_zoo_mrlora import ROUTER, Asking, MRLoRA, question, short_names
from tiny_runs import Watched, learnt
from torch import nn

from cl_zoo import BackboneError, Sample, Task
from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward
from cl_zoo.engine.sizes import sizes
from cl_zoo.names import parse_stack
from cl_zoo.nn import evaluating
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.testing import tiny_backbone, tiny_benchmark
from cl_zoo.testing.tiny_models import tiny_tokenizer

DATA = tiny_benchmark(3, size=8).tasks
TASKS = [Task(place, data.name, data.instruction, len(data.train)) for place, data in enumerate(DATA)]
RECIPE = build_recipe({"adapter.rank": 4, "adapter.dropout": 0})
RANK_ONE, PROJECTOR = 2 * 496, 1600
"""Parameters of the tiny model's LoRA of rank 1, and of its projector."""


class Lessons:
    """Stands for the engine: keeps what it is told to teach and what would learn, and teaches nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.samples: list[Sequence[Sample]] = []
        self.epochs: list[int] = []
        self.learning: list[set[str]] = []
        self.ups: list[float] = []

    def __call__(self, samples: Sequence[Sample], epochs: int) -> None:
        self.samples.append(samples)
        self.epochs.append(epochs)
        named = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        self.learning.append(set(named))
        self.ups.append(sum(float(weight.abs().sum()) for name, weight in named.items() if "bank_up" in name))
        for name, weight in named.items():
            if "bank_up" in name:
                nn.init.normal_(weight, std=0.3)


def drawn(backbone: Backbone, tasks: int = 3, **options: int) -> tuple[MRLoRA, Lessons]:
    """The method after some tasks whose experts and routers were drawn instead of trained."""
    method = MRLoRA(MRLoRA.Options(**options))
    model = method.build_model(backbone, RECIPE)
    backbone.train_projector(True)
    lessons = Lessons(model)
    torch.manual_seed(0)
    for task, data in zip(TASKS[:tasks], DATA, strict=False):
        method.before_task(task)
        for layer in method.bank.layers:
            nn.init.normal_(layer.bank_up[f"t{task.index}"], std=0.3)
        method.after_task(task, [backbone.batch(list(data.train), answers=True)], lessons)
    return method, lessons


def test_the_question_about_a_question_lists_all_experts_and_keeps_image_and_turns() -> None:
    talk = (("Where is it ?", "left"),)
    asked = Sample(
        "7", DATA[0].test[0].image, "What colour is it ?\nOne word .", "red", ("red",), {"a": 1}, talk
    )

    made = question(asked, {"A": "colour. One word .", "B": "side."}, "B")

    assert made.prompt == (
        "These experts can answer a question.\nA: colour. One word .\nB: side.\n"
        "This is the question.\nWhat colour is it ?\nOne word .\nAnswer with the name of the best expert alone."
    )
    assert (made.id, made.image, made.before, made.answer) == ("7", asked.image, talk, "B")
    assert made.learnt == ("B",)  # not the turn before
    assert (made.references, dict(made.truth)) == ((), {})


def test_names_are_letters_where_the_tokenizer_has_them_and_its_first_words_else() -> None:
    """`mini` knows four letters, the tiny tokenizer none; a name is one token and no two have the same."""
    mini, tiny = build_tokenizer(), tiny_tokenizer()

    for tokenizer, number, first in ((mini, 6, ["A", "B", "C", "D"]), (tiny, 3, ["What", "colour", "is"])):
        names = short_names(tokenizer, number)
        assert list(names)[: len(first)] == first
        assert len(set(names.values())) == number
        for name, token in names.items():
            assert tokenizer(name, add_special_tokens=False)["input_ids"] == [token]
            assert token not in tokenizer.all_special_ids
    with pytest.raises(BackboneError, match="but 999 experts need a name each"):
        short_names(tiny, 999)


def test_a_few_samples_of_each_task_are_kept_and_taught_with_the_name_of_its_expert(tiny: Backbone) -> None:
    """Three of each task; the first router is learnt after the second task, from six, the next one from nine."""
    method, lessons = drawn(tiny, samples=3, passes=7)

    assert [len(samples) for samples in lessons.samples] == [6, 9]
    assert lessons.epochs == [7, 7]
    last = lessons.samples[-1]
    assert [sample.answer for sample in last] == ["What"] * 3 + ["colour"] * 3 + ["is"] * 3
    for sample, kept in zip(
        last, [one for samples in method.memory.values() for one in samples], strict=True
    ):
        assert kept.prompt in sample.prompt
        assert sample.image is kept.image
    for place, samples in enumerate(method.memory.values()):
        assert {one.id for one in samples} < {one.id for one in DATA[place].train}
    for line in ("What: colour. Answer", "colour: side. Answer", "is: description. Answer"):
        assert line in last[0].prompt


def test_the_router_is_made_anew_and_learns_alone_after_every_task(tiny: Backbone) -> None:
    """Nothing else learns meanwhile, and the task's expert learns again afterwards, with the projector."""
    method, lessons = drawn(tiny)

    for names, before in zip(lessons.learning, lessons.ups, strict=True):
        assert names
        assert all(name.endswith(f".{ROUTER}") for name in names)
        assert before == 0  # B of a fresh LoRA, though the router before it was another
    learning = {name for name, weight in method.bank.named_parameters() if weight.requires_grad}
    assert {name.rpartition(".")[2] for name in learning if "bank_" in name} == {"t2"}
    assert any("projector" in name for name in learning)
    for layer in method.bank.layers:
        assert layer.experts == ["t2"]
    assert method.parts(method.bank)["routers"]


def test_expert_and_router_share_the_rank_of_the_recipe() -> None:
    """8 is 4 and 4, 5 is 3 and 2, 1 cannot be shared; published sizes are the whole rank each."""
    for rank, budget, expected in (
        (8, "parameters", (4, 4)),
        (5, "parameters", (3, 2)),
        (1, "parameters", (1, 1)),
        (8, "published", (8, 8)),
    ):
        method, backbone = MRLoRA(MRLoRA.Options()), Stage()
        method.build_model(backbone, build_recipe({"adapter.rank": rank, "budget": budget}))
        for task in TASKS[:2]:
            method.before_task(task)
            method.after_task(task, [], lambda samples, epochs: None)
        (layer,) = method.bank.layers
        assert (layer.bank_up["t1"].shape[1], layer.bank_up[ROUTER].shape[1]) == expected


class Stage:
    """As much of a backbone as has one linear."""

    linears = r"layers\.0\.one"

    def __init__(self) -> None:
        self.projector = nn.Linear(1, 1)
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([nn.ModuleDict({"one": nn.Linear(3, 4)})])


def test_after_one_task_its_expert_answers_and_nothing_is_asked(tiny: Backbone) -> None:
    method, lessons = drawn(tiny, tasks=1)
    answering = method.build_inference_model(TASKS[:1]).eval()
    batch = tiny.batch(list(DATA[0].test[:2]), answers=True)
    with torch.no_grad():
        routed = forward(answering, batch).logits
        method.bank.use(["t0"])
        torch.testing.assert_close(routed, forward(method.bank, batch).logits)

    assert not lessons.samples
    assert ROUTER not in method.bank.experts
    assert answering.route.tolist() == [[1.0], [1.0]]
    assert answering.active() == {"adapters": 2 * RANK_ONE}


def test_all_that_decides_comes_back_from_the_state(tiny_folder: Path) -> None:
    """Experts, the router, samples and what experts are for; a state that was JSON and tensors."""
    method, _ = drawn(tiny_backbone(tiny_folder))
    state = method.state_dict()
    other = MRLoRA(MRLoRA.Options())
    other.build_model(tiny_backbone(tiny_folder), RECIPE)
    other.load_state_dict(state)

    json.dumps({**state, "memory": None})
    assert (
        other.pool == method.pool == {f"t{n}": f"{one.name}. {one.instruction}" for n, one in enumerate(DATA)}
    )
    assert other.bank.experts == method.bank.experts == ["t0", "t1", "t2", ROUTER]
    assert [sample.prompt for sample in other.lessons()] == [sample.prompt for sample in method.lessons()]
    assert other.state_dict()["experts"] == state["experts"]


def test_an_answer_does_not_see_what_the_router_is_asked_with(tiny: Backbone) -> None:
    """What a batch holds of an answer, in training for instance, decides no route."""
    method, _ = drawn(tiny)
    answering = method.build_inference_model(TASKS).eval()
    samples = [data.test[0] for data in DATA]
    routes = []
    for answer in ("red", "left"):
        answering.prepare(tiny.batch([replace(one, answer=answer) for one in samples], answers=True))
        routes.append(answering.route)
    answering.prepare(tiny.batch(samples, answers=False))

    assert torch.equal(routes[0], routes[1])
    assert torch.equal(routes[0], answering.route)


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Colours, then sides: four steps an epoch for the router after the second."""
    recipe = build_recipe({"global_batch": 4, "adapter.rank": 4, "adapter.dropout": 0, "lr.adapters": 1e-2})
    root = tmp_path_factory.mktemp("run")
    return learnt(Watched, "mrlora[passes=15]", DATA[:2], tiny_backbone(tiny_folder), recipe, root)


def test_a_trained_router_names_the_expert_of_each_task(run: Watched) -> None:
    """The two ask in other words; test samples stand in one batch."""
    samples = [*DATA[0].test, *DATA[1].test]
    seen = [lesson.task for lesson in run.lessons]
    answering = run.plugins.build_inference_model(run.model, seen).eval()
    assert isinstance(answering, Asking)
    answering.prepare(run.backbone.batch(samples, answers=False))

    assert answering.route.argmax(1).tolist() == [0] * len(DATA[0].test) + [1] * len(DATA[1].test)


def test_a_trained_router_says_the_name_and_nothing_else(run: Watched) -> None:
    """Decoded greedily with any token allowed, as the released code does it."""
    method = run.plugins.method
    names = list(short_names(run.backbone.tokenizer, 2))
    pool = dict(zip(names, method.pool.values(), strict=True))
    samples = [question(data.test[place], pool, names[0]) for data in DATA[:2] for place in range(3)]
    inputs = run.backbone.batch(samples, answers=False).inputs
    with evaluating(run.model):
        method.bank.mix(lambda _: None)
        method.bank.use([ROUTER])
        made = run.model.generate(**inputs, max_new_tokens=4, do_sample=False)

    said = run.backbone.decode(made[:, inputs["input_ids"].shape[1] :])
    assert said == [names[0]] * 3 + [names[1]] * 3


def test_the_ledger_counts_the_router_with_the_task(run: Watched) -> None:
    """Two steps on 8 samples, and in the second task 15 epochs of four steps on 16; expert and router of rank 2."""
    first, second = run.ledger.tasks

    assert (first.steps, first.samples) == (2, 8)
    assert (second.steps, second.samples) == (2 + 15 * 4, 8 + 15 * 16)
    assert first.trained == {"adapters": 2 * RANK_ONE, "projector": PROJECTOR}
    assert second.trained == {**first.trained, "routers": 2 * RANK_ONE}
    assert run.ledger.budget == 4 * RANK_ONE
    assert run.ledger.active == 4 * RANK_ONE + PROJECTOR
    inference = {"adapters": 4 * RANK_ONE, "routers": 2 * RANK_ONE, "projector": PROJECTOR}
    assert run.ledger.stored["inference"] == inference


def test_counted_without_values_it_is_the_same(run: Watched, tiny_folder: Path) -> None:
    backbone = tiny_backbone(tiny_folder)
    counted = sizes(parse_stack("mrlora"), backbone.with_model(backbone.model.to("meta")), run.recipe, 2)

    assert [size.trained for size in counted] == [cost.trained for cost in run.ledger.tasks]
    assert counted[-1].inference == run.ledger.stored["inference"]
    assert sum(counted[-1].active.values()) == run.ledger.active
    assert counted[-1].times == 1


def test_no_old_expert_moves_once_its_task_is_over(run: Watched) -> None:
    """Neither while the next task is learnt nor while the router is."""
    first, last = run.kept
    old = {name for name in first if name.endswith(".t0")}

    assert old
    assert all(torch.equal(first[name], last[name]) for name in old)
