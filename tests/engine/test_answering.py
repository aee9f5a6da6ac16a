"""Answers: greedy, in the order of the samples, the same in any company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import CompileConfig

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch
from cl_zoo.engine.alike import alike
from cl_zoo.engine.answering import answers, generated
from cl_zoo.nn import ExpertBank, PerSample, adapters
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample
from cl_zoo.testing import square, tiny_benchmark


def samples() -> list[Sample]:
    mixed = [*tiny_benchmark(3).tasks[0].test[:3], *tiny_benchmark(3).tasks[2].test[:2]]
    return [*mixed, Sample("text", None, "Say one colour .", "red")]


def written(model: Any, backbone: Backbone, batch: int, **options: Any) -> list[dict[str, Any]]:
    return list(answers(model, backbone, samples(), **{"max_new_tokens": 4, "batch": batch, **options}))


def test_answers_come_in_the_order_of_the_samples_with_their_prompts(tiny: Backbone) -> None:
    records = written(tiny.model, tiny, batch=4)

    assert [record["id"] for record in records] == [sample.id for sample in samples()]
    assert [record["prompt"] for record in records] == [sample.prompt for sample in samples()]
    assert all(set(record) == {"id", "prompt", "answer"} for record in records)


@pytest.mark.parametrize("batch", [2, 3, 6])
def test_the_size_of_a_generation_changes_no_answer(tiny: Backbone, batch: int) -> None:
    alone = written(tiny.model, tiny, batch=1)

    assert written(tiny.model, tiny, batch=batch) == alone
    assert len({record["answer"] for record in alone}) > 1  # otherwise this would say little


@torch.no_grad()
def test_answers_are_greedy(tiny: Backbone) -> None:
    """Against a loop without cache, padding or `generate`: the most likely token, one after the other."""
    records = written(tiny.model, tiny, batch=6)
    for sample, record in zip(samples(), records, strict=True):
        inputs = tiny.batch([sample], answers=False).inputs
        for _ in range(4):
            token = tiny.model(**inputs).logits[0, -1].argmax()
            if token == tiny.tokenizer.eos_token_id:
                break
            inputs["input_ids"] = torch.cat([inputs["input_ids"], token.view(1, 1)], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        start = tiny.batch([sample], answers=False).inputs["input_ids"].shape[1]
        assert record["answer"] == tiny.decode(inputs["input_ids"][:, start:])[0]


def test_the_token_budget_bounds_an_answer(tiny: Backbone) -> None:
    longer = written(tiny.model, tiny, batch=6)
    short = written(tiny.model, tiny, batch=6, max_new_tokens=1)

    assert all(len(record["answer"].split()) <= 1 for record in short)
    assert max(len(record["answer"].split()) for record in longer) > 1


class Answering(nn.Module):
    """Keeps what it was shown; answers with the first word of a fixed text."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.word = backbone.tokenizer.convert_tokens_to_ids("red")
        self.calls: list[Any] = []
        self.route: torch.Tensor | None = None

    def prepare(self, batch: Batch) -> None:
        self.calls.append(batch)
        self.route = torch.tensor([[0.123456, 0.876544]]).repeat(len(batch), 1)

    def generate(self, **inputs: Any) -> torch.Tensor:
        self.calls.append(inputs)
        ids = inputs["input_ids"]
        return torch.cat([ids, torch.full((len(ids), 1), self.word)], 1)


def test_the_model_is_prepared_before_each_generation_and_its_route_written(tiny: Backbone) -> None:
    model = Answering(tiny)

    records = written(model, tiny, batch=4)

    assert [type(call).__name__ for call in model.calls] == ["Batch", "dict", "Batch", "dict"]
    assert [record["answer"] for record in records] == ["red"] * 6
    assert [record["route"] for record in records] == [[0.1235, 0.8765]] * 6


def test_nothing_that_is_shown_to_the_model_holds_an_answer_or_a_task(tiny: Backbone) -> None:
    model = Answering(tiny)
    written(model, tiny, batch=4)

    for batch, inputs in zip(model.calls[::2], model.calls[1::2], strict=True):
        assert batch.targets is None
        assert all(sample.answer is None and sample.references == () for sample in batch.samples)
        assert {"input_ids", "attention_mask"} <= set(inputs)
        assert "labels" not in inputs
        assert inputs["do_sample"] is False


def test_generate_is_told_of_a_static_cache_where_one_is_wanted(tiny: Backbone) -> None:
    told = []
    for static in (False, True):
        model = Answering(tiny)
        written(model, tiny, batch=6, static=static)
        told.append(model.calls[1].get("cache_implementation"))

    assert told == [None, "static"]


def test_answering_needs_no_gradient(tiny: Backbone) -> None:
    tiny.train_projector(True)
    model = Answering(tiny)
    model.generate = lambda **inputs: (
        pytest.fail("gradients") if torch.is_grad_enabled() else inputs["input_ids"]
    )  # type: ignore[method-assign]

    assert {record["answer"] for record in written(model, tiny, batch=6)} == {""}


def test_images_of_different_samples_do_not_mix(tiny: Backbone) -> None:
    question = "What colour is it ?"
    pictures = [Sample(str(i), square(i)[0], question) for i in range(4)]
    alone = [next(answers(tiny.model, tiny, [one], max_new_tokens=4, batch=1)) for one in pictures]

    together = list(answers(tiny.model, tiny, pictures[::-1], max_new_tokens=4, batch=4))

    assert together[::-1] == alone


def routed(backbone: Backbone) -> tuple[ExpertBank, PerSample]:
    """A bank of two experts with random weights, mixed for each sample in a way of its own."""
    bank, mix = adapters(backbone, build_recipe({"adapter.rank": 2})), PerSample()
    bank.add("other")
    bank.use(bank.experts, trainable=bank.experts)
    bank.mix(lambda layer: mix)
    for weight in bank.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight.data, std=0.3)
    return bank.eval(), mix


@torch.no_grad()
def test_each_row_keeps_its_own_route_in_a_static_cache(tiny: Backbone) -> None:
    bank, mix = routed(tiny)
    batch = tiny.batch(samples(), answers=False)
    mix.weights = torch.linspace(-2, 2, 12).view(6, 2)

    grown, fixed = (generated(bank, tiny, batch, 4, static=static) for static in (False, True))
    mix.weights = mix.weights.flip(0)

    assert torch.equal(grown, fixed)
    assert not torch.equal(generated(bank, tiny, batch, 4, static=True), fixed)


@pytest.mark.slow
@torch.no_grad()
def test_decoding_is_one_graph_that_serves_every_batch_of_a_size(tiny: Backbone) -> None:
    """Traced as on an accelerator, but run as it was traced: no break, and nothing traced again for other samples, shorter ones or routes."""
    bank, mix = routed(tiny)
    tiny.model.generation_config.compile_config = traced()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    for number, asked in enumerate(alike(tiny, samples(), 2)):
        batch = tiny.batch([sample for _, sample in asked], answers=False)
        mix.weights = torch.tensor([[1.0, number], [0.0, -1.0]])
        assert torch.equal(
            generated(bank, tiny, batch, 4, static=True), generated(bank, tiny, batch, 4, static=False)
        )

    counted = torch._dynamo.utils.counters
    assert counted["stats"]["unique_graphs"] == 1
    assert not counted["graph_break"]


def traced() -> CompileConfig:
    """What transformers compiles decoding with, for any device and without a compiler behind."""
    config = CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True
    return config
