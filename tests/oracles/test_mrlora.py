"""MR-LoRA against its equations on an untouched model of the same weights, sample by sample, and against the released code's choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from cl_zoo_mrlora import ROUTER, Asking, MRLoRA, short_names
from oracles.shapes import assert_equal, draws, learn_by_drawing, normal
from torch import Tensor
from torch.func import functional_call

from cl_zoo import Sample, Task
from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward, task_loss
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.testing import tiny_backbone, tiny_benchmark

SCALE, EXPERTS = 1.5, 3
DATA = tiny_benchmark(EXPERTS, size=6).tasks
TASKS = [Task(place, data.name, data.instruction, 6) for place, data in enumerate(DATA)]
RECIPE = build_recipe({"adapter.rank": 4, "adapter.scale": SCALE, "adapter.dropout": 0})
ASKED = [data.test[place] for data in DATA for place in (0, 1)] + [
    Sample("t", None, "Say one colour .", "red", before=(("Where is it ?", "left"),))
]
Pairs = dict[str, tuple[Tensor, Tensor]]


class Taught:
    """The method in fp64 after three tasks, and an untouched model; experts and router are drawn.

    Attributes:
        taught: M, as the router would have learnt it.
        slopes: gradients of the router's objective, by name.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.plain = tiny_backbone(folder, dtype=torch.float64)
        self.backbone = tiny_backbone(folder, dtype=torch.float64)
        self.method, self.generator = MRLoRA(MRLoRA.Options(samples=2)), draws(seed)
        self.bank = self.method.build_model(self.backbone, RECIPE)
        self.backbone.projector.requires_grad_(True)
        self.taught: list[Sample] = []
        self.slopes: dict[str, Tensor] = {}
        torch.manual_seed(seed)
        for task, data in zip(TASKS, DATA, strict=True):
            self.method.before_task(task)
            learn_by_drawing(self.bank, self.generator, 0.3)
            self.method.after_task(task, [self.backbone.batch(list(data.train), answers=True)], self.learn)

    def learn(self, samples: Sequence[Sample], epochs: int) -> None:
        learn_by_drawing(self.bank, self.generator)
        self.bank.zero_grad(set_to_none=True)
        task_loss(self.bank, self.backbone.batch(samples, answers=True)).backward()
        named = self.bank.named_parameters()
        self.slopes = {name: weight.grad for name, weight in named if weight.grad is not None}
        self.taught = list(samples)

    def pair(self, expert: str) -> Pairs:
        layers = self.bank.layers
        return {one.path: (one.bank_down[expert].detach(), one.bank_up[expert].detach()) for one in layers}

    def answering(self) -> Asking:
        return self.method.build_inference_model(TASKS).eval()


@pytest.fixture(scope="module", params=[0, 1])
def run(request: pytest.FixtureRequest, tiny_folder: Path) -> Taught:
    return Taught(tiny_folder, request.param)


def changed(backbone: Backbone, pairs: Pairs) -> dict[str, Tensor]:
    """The weights of an untouched model, W + s B A in every linear that has a pair."""
    weights = dict(backbone.model.named_parameters())
    for path, (A, B) in pairs.items():
        weights[f"{path}.weight"] = weights[f"{path}.weight"].detach() + SCALE * B @ A
    return weights


def literal_logits(backbone: Backbone, sample: Sample, pairs: Pairs) -> Tensor:
    """(K, V) of one sample alone, its answer at the end."""
    inputs = backbone.batch([sample], answers=True).inputs
    made: Tensor = functional_call(backbone.model, changed(backbone, pairs), (), inputs).logits[0]
    return made


def asked_of(run: Taught, sample: Sample) -> Sample:
    """q(x), written out."""
    names = list(short_names(run.plain.tokenizer, EXPERTS))
    lines = [
        "These experts can answer a question.",
        *(f"{name}: {task.name}. {task.instruction}" for name, task in zip(names, TASKS, strict=True)),
        "This is the question.",
        sample.prompt,
        "Answer with the name of the best expert alone.",
    ]
    return Sample("q", sample.image, "\n".join(lines), names[0], before=sample.before, learns_before=False)


def literal_choice(run: Taught, sample: Sample) -> int:
    """(c): the likeliest of the names by the softmax over all tokens, at the first place of the answer."""
    logits = literal_logits(run.plain, asked_of(run, sample), run.pair(ROUTER))[0]
    below = sum(math.exp(float(one)) for one in logits)
    tokens = short_names(run.plain.tokenizer, EXPERTS).values()
    likely = [math.exp(float(logits[token])) / below for token in tokens]
    return likely.index(max(likely))


def test_the_router_names_the_likeliest_expert(run: Taught) -> None:
    """Of seven samples in one batch, as of each alone."""
    answering = run.answering()

    answering.prepare(run.backbone.batch(ASKED, answers=False))

    expected = [literal_choice(run, sample) for sample in ASKED]
    assert answering.route.argmax(1).tolist() == expected
    assert answering.route.sum(1).tolist() == [1] * len(ASKED)
    assert len(set(expected)) > 1


def test_the_choice_is_greedy_decoding_in_which_only_names_are_allowed(run: Taught) -> None:
    """By transformers' own decoding of a model with the router merged into its weights."""
    answering, names = run.answering(), short_names(run.plain.tokenizer, EXPERTS)
    answering.prepare(run.backbone.batch(ASKED, answers=False))
    allowed = list(names.values())
    with merged(run.plain, run.pair(ROUTER)):
        for row, sample in enumerate(ASKED):
            inputs = run.plain.batch([asked_of(run, sample)], answers=False).inputs
            made = run.plain.model.generate(
                **inputs, max_new_tokens=1, do_sample=False, prefix_allowed_tokens_fn=lambda *_: allowed
            )
            named = run.plain.decode(made[:, inputs["input_ids"].shape[1] :])[0]
            assert answering.route[row].argmax() == released(named, list(names), lambda: -1)


def released(decoded: str, names: Sequence[str], at_random: Callable[[], int]) -> int:
    """The released code's choice by what was decoded, where a name is one letter: strangers are tolerated once."""
    if len(names[0]) == 1 and sum(letter not in names for letter in decoded) > 1:
        return at_random()
    return next((place for place, name in enumerate(names) if name in decoded), at_random())


@contextmanager
def merged(backbone: Backbone, pairs: Pairs) -> Iterator[None]:
    """Inside, an untouched model answers with the products of some pairs added to its weights."""
    before = {name: weight.detach().clone() for name, weight in backbone.model.named_parameters()}
    with torch.no_grad():
        for path, (A, B) in pairs.items():
            backbone.model.get_submodule(path).weight += SCALE * B @ A
        yield
        for name, weight in backbone.model.named_parameters():
            weight.copy_(before[name])


def test_the_chosen_expert_answers_as_if_it_were_alone(run: Taught) -> None:
    """(d): each row of a batch has the logits of an untouched model with W + s B A of its own expert."""
    answering = run.answering()
    batch = run.backbone.batch(ASKED, answers=True)

    with torch.no_grad():
        logits = forward(answering, batch).logits

    for row, sample in enumerate(ASKED):
        alone = literal_logits(run.plain, sample, run.pair(f"t{answering.route[row].argmax()}"))
        tokens = len(alone)
        assert_equal(logits[row, -tokens:], alone, 1e-9)


def test_the_router_learns_by_the_likelihood_of_the_names(run: Taught) -> None:
    """(b): −Σ log p of each name and its end over all of M, by its mean, and the slope to the router's A and B; nothing else has one.

    As far as fp32 goes, in which the engine takes likelihoods.
    """
    pairs = {
        path: (A.clone().requires_grad_(), B.clone().requires_grad_())
        for path, (A, B) in run.pair(ROUTER).items()
    }
    names = short_names(run.plain.tokenizer, EXPERTS)
    lost, count = torch.zeros((), dtype=torch.float64), 0
    assert len(run.taught) == 2 * EXPERTS
    for place, sample in enumerate(run.taught):
        assert sample.answer == list(names)[place // 2]
        logits = literal_logits(run.plain, sample, pairs)
        for row, token in zip(
            logits, (names[str(sample.answer)], run.plain.tokenizer.eos_token_id), strict=True
        ):
            lost = lost - (row[token] - row.exp().sum().log())
            count += 1
    weights = [weight for pair in pairs.values() for weight in pair]
    slopes = torch.autograd.grad(lost / count, weights)

    assert set(run.slopes) == {
        f"model.{path}.{table}.{ROUTER}" for path in pairs for table in ("bank_down", "bank_up")
    }
    for place, path in enumerate(pairs):
        for side, table in enumerate(("bank_down", "bank_up")):
            found = run.slopes[f"model.{path}.{table}.{ROUTER}"]
            torch.testing.assert_close(found, slopes[2 * place + side], rtol=1e-4, atol=1e-6)


def test_a_task_learns_alone_on_the_frozen_model(run: Taught) -> None:
    """y = W h + s B_t A_t h whatever came before."""
    run.bank.mix(lambda _: None)
    for task in TASKS:
        run.method.before_task(task)
        for layer in run.bank.layers:
            h = normal(run.generator, 2, 3, layer.in_features)
            A, B = layer.bank_down[f"t{task.index}"], layer.bank_up[f"t{task.index}"]
            y = layer(h)
            for row in range(2):
                for token in range(3):
                    one = h[row, token]
                    assert_equal(y[row, token], layer.base_layer(one) + SCALE * B @ (A @ one))
