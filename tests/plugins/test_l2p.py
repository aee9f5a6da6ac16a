"""L2P: what asks, what is counted, what learns and what is read. Choice, pull and frequency: `tests/oracles/test_l2p.py`."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from cl_zoo_l2p import L2P, Pool, distance
from torch import Tensor

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch, answer_losses, forward
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample
from cl_zoo.testing import tiny_benchmark

TRAIN = tiny_benchmark().tasks[0].train
BLIND = Sample("t", None, "Say one colour .", "red")


def built(backbone: Backbone, **options: Any) -> tuple[L2P, Pool]:
    torch.manual_seed(0)
    method = L2P(L2P.Options(**{"pool": 6, "length": 2, "top": 2, "diversify": True, **options}))
    return method, method.build_model(backbone, build_recipe())


def cosine(a: Tensor, b: Tensor) -> float:
    return float(sum(x * y for x, y in zip(a, b, strict=True)) / (a.norm() * b.norm()))


def best_subset(query: Tensor, keys: Tensor, top: int, h: Tensor) -> set[int]:
    """Eq. 3 and 4 to the letter: of all subsets of the pool the one of the smallest sum of γ · h."""

    def cost(places: tuple[int, ...]) -> float:
        return sum((1 - cosine(query, keys[place])) * float(h[place]) for place in places)

    return set(min(itertools.combinations(range(len(keys)), top), key=cost))


def test_a_sample_asks_with_its_image_and_with_its_text_where_there_is_none(tiny: Backbone) -> None:
    _, model = built(tiny)

    query = model.ask(tiny.batch([BLIND, TRAIN[0], BLIND], answers=False))

    torch.testing.assert_close(query[1], tiny.features.images([TRAIN[0].image])[0])
    for row in (0, 2):
        torch.testing.assert_close(query[row], tiny.features.texts([BLIND.prompt])[0])


def test_the_pull_brings_chosen_keys_nearer_and_leaves_the_others(tiny: Backbone) -> None:
    method, model = built(tiny)
    model.prepare(tiny.batch(TRAIN[:1], answers=True))
    before = distance(model.query, model.keys).detach()[0]

    method.loss()["l2p/pull"].sum().backward()

    assert model.keys.grad is not None
    model.keys.data -= 0.1 * model.keys.grad
    after = distance(model.query, model.keys).detach()[0]
    chosen = set(model.chosen[0].tolist())
    assert all((after[key] < before[key]) == (key in chosen) for key in range(6))
    assert all(bool(model.keys.grad[key].any()) == (key in chosen) for key in range(6))


def test_a_sample_reads_the_prompts_of_its_choice_nearest_first(tiny: Backbone) -> None:
    _, model = built(tiny)
    batch = tiny.batch([*TRAIN[:3], BLIND], answers=True)
    model.eval().prepare(batch)

    prompts = model.soft_prompts()

    assert prompts.shape == (4, 2 * 2, 32)
    for row, query in enumerate(model.ask(batch)):
        near = sorted(range(6), key=lambda key: 1 - cosine(query, model.keys[key].detach()))[:2]
        expected = torch.cat([model.prompts[place] for place in near])
        assert torch.equal(prompts[row], expected)


def test_frequent_prompts_are_avoided_while_learning_and_not_while_answering(tiny: Backbone) -> None:
    """All choices so far fell on the two nearest keys, each 998 times of 1996: h is 999/2002 for them, 1/2002 else."""
    method, model = built(tiny)
    batch = tiny.batch(TRAIN[:1], answers=True)
    model.eval().prepare(batch)
    near = model.chosen[0].tolist()
    method.counts = torch.zeros(6)
    method.counts[near] = 998

    method.before_task()

    torch.testing.assert_close(model.frequency[near], torch.full((2,), 999 / 2002))
    model.prepare(batch)
    assert model.chosen[0].tolist() == near
    model.train().prepare(batch)
    assert not set(model.chosen[0].tolist()) & set(near)
    assert set(model.chosen[0].tolist()) == best_subset(
        model.query[0], model.keys.detach(), 2, model.frequency
    )


def test_the_first_task_and_a_pool_that_is_not_diversified_choose_by_distance_alone(tiny: Backbone) -> None:
    batch = tiny.batch(TRAIN[:3], answers=True)
    for options, counts in (({}, None), ({"diversify": False}, torch.tensor([0.0, 9, 0, 9, 0, 9]))):
        method, model = built(tiny, **options)
        method.counts = counts
        method.before_task()
        model.train().prepare(batch)
        learning = model.chosen
        model.eval().prepare(batch)

        assert torch.equal(learning, model.chosen)


def test_choices_are_counted_over_the_whole_task_and_added_up(tiny: Backbone) -> None:
    """Each sample counts once for each of its N prompts, by the rule it learnt with, in whatever mode the model is."""
    method, model = built(tiny)
    batches = [tiny.batch(TRAIN[place : place + 4], answers=True) for place in (0, 4, 8)]
    expected = torch.zeros(6)
    for task in range(2):
        method.before_task()
        h = model.frequency
        here, near = torch.zeros(6), []
        for batch in batches:
            for query in model.ask(batch):
                for place in best_subset(query, model.keys.detach(), 2, h):
                    here[place] += 1
                    key = model.keys[place].detach()
                    near.append(float(query @ key / (query.norm() * key.norm())))
        expected += here

        measured = method.after_task(batches)

        assert method.counts is not None
        assert torch.equal(method.counts, expected)
        assert method.counts.sum() == 12 * 2 * (task + 1)
        assert measured["l2p/prompts_used"] == (here > 0).sum()
        assert float(measured["l2p/cosine"]) == pytest.approx(sum(near) / len(near), abs=1e-5)


def test_counting_needs_no_samples(tiny: Backbone) -> None:
    method, _ = built(tiny)

    method.after_task([])
    method.before_task()

    assert method.counts is not None
    assert method.counts.tolist() == [0] * 6
    assert method.model.frequency.tolist() == pytest.approx([1 / 6] * 6)


def test_counts_come_back(tiny: Backbone) -> None:
    method, _ = built(tiny)
    method.load_state_dict(method.state_dict())
    assert method.counts is None
    method.after_task([tiny.batch(TRAIN[:4], answers=True)])
    again, model = built(tiny)

    again.load_state_dict(method.state_dict())
    again.before_task()
    method.before_task()

    assert torch.equal(model.frequency, method.model.frequency)


def test_only_chosen_prompts_their_keys_and_the_projector_learn(tiny: Backbone) -> None:
    method, model = built(tiny)
    tiny.train_projector(True)
    batch = tiny.batch(TRAIN[:4], answers=True)

    outputs = forward(model.train(), batch)
    (answer_losses(outputs, batch).sum() + method.loss()["l2p/pull"].sum()).backward()

    learning = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert {name for name in learning if "multi_modal_projector" not in name} == {"prompts", "keys"}
    chosen = set(model.chosen.flatten().tolist())
    for weight in (model.prompts, model.keys):
        assert weight.grad is not None
        assert {place for place in range(6) if weight.grad[place].any()} == chosen


def test_each_samples_answer_hangs_on_its_own_prompts(tiny: Backbone) -> None:
    """Changing a prompt changes the logits of the samples that chose it and of no other."""
    _, model = built(tiny, top=1, pool=10)
    model.keys.data = tiny.features.images([sample.image for sample in TRAIN[:10]]).clone()
    batch: Batch = tiny.batch(TRAIN[:3], answers=True)
    model.eval()
    before = forward(model, batch).logits
    model.prompts.data[1] += 1

    after = forward(model, batch).logits

    assert model.chosen.tolist() == [[0], [1], [2]]
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_prompts_start_as_tokens_and_keys_small(tiny: Backbone) -> None:
    """400 numbers from N(0, 0.01²): their deviation is 0.01 within 10 %."""
    _, model = built(tiny, pool=50, top=1)
    table = tiny.model.get_input_embeddings().weight

    assert all(any(torch.equal(row, known) for known in table) for row in model.prompts.flatten(0, 1))
    assert model.keys.shape == (50, 8)
    assert float(model.keys.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert abs(float(model.keys.detach().mean())) < 0.002


def test_its_size_is_the_pool_and_an_answer_reads_the_chosen_part(tiny: Backbone) -> None:
    """M L_p width + M d is stored, N L_p width of the prompts is read."""
    method, model = built(tiny, pool=10, length=5, top=4)

    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    parts = {part: sum(sizes[name] for name in names) for part, names in method.parts(model).items()}
    assert parts == {"prompts": 1600, "keys": 80}
    assert model.active() == {"prompts": 4 * 5 * 32}


def test_tasks_are_not_told_apart(tiny: Backbone) -> None:
    """The pool is one for all tasks: a new task adds no tensor."""
    method, model = built(tiny)
    before = list(model.state_dict())

    method.before_task()
    method.after_task([tiny.batch(TRAIN[:2], answers=True)])
    method.before_task()

    assert list(model.state_dict()) == before


def test_options_say_what_is_out_of_range() -> None:
    with pytest.raises(ValueError, match="top is 5 but the pool has only 4 prompts"):
        L2P.Options(pool=4)
    bad: list[dict[str, Any]] = [{"strength": -1}, {"length": 0}, {"top": 0}, {"batchwise": True}]
    for options in bad:
        with pytest.raises(ValueError, match="validation error"):
            L2P.Options(**options)
