"""Batches: padding, targets, the one objective, and the order that depends on nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import (
    IGNORED,
    Batch,
    answer_losses,
    forward,
    order,
    pieces,
    seed_everything,
    shard,
    steps,
    task_loss,
)
from cl_zoo.errors import DataError
from cl_zoo.tasks import Sample
from cl_zoo.testing import square


def sample(
    place: int, answer: str = "red", prompt: str = "What colour is it ?", image: bool = True
) -> Sample:
    return Sample(str(place), square(place)[0] if image else None, prompt, answer)


def mixed() -> list[Sample]:
    """Answers of one to four words, prompts of two lengths, with and without an image."""
    return [
        sample(0, "red"),
        sample(1, "a small green square", "Where is the square ?\nAnswer with one word ."),
        sample(2, "blue and grey", image=False),
        sample(3, "two"),
    ]


def at_answers(logits: torch.Tensor, batch: Batch, row: int) -> torch.Tensor:
    return logits[row][batch.answer_mask[row]]


def test_rows_are_padded_on_the_left_and_end_together(tiny: Backbone) -> None:
    batch = tiny.batch(mixed(), answers=True)

    mask = batch.inputs["attention_mask"]
    assert mask[:, -1].tolist() == [1, 1, 1, 1]
    assert (mask.diff(dim=1) >= 0).all()
    assert (batch.inputs["input_ids"][mask == 0] == tiny.tokenizer.pad_token_id).all()
    assert batch.first_tokens.tolist() == [int((row == 0).sum()) for row in mask]
    assert batch.tokens == int(mask.sum())
    for row, first in enumerate(batch.first_tokens.tolist()):
        positions = batch.inputs["position_ids"][row, first:]
        assert positions.tolist() == list(range(len(positions)))


def test_the_prompt_of_a_row_is_what_is_there_at_inference_too(tiny: Backbone) -> None:
    """Of every length of prompt and answer: the real tokens of the same question without its answer."""
    learning, answering = tiny.batch(mixed(), answers=True), tiny.batch(mixed(), answers=False)

    for batch in (learning, answering):
        assert not batch.prompt_mask[batch.inputs["attention_mask"] == 0].any()
    for row in range(4):
        prompts = [batch.inputs["input_ids"][row][batch.prompt_mask[row]] for batch in (learning, answering)]
        assert torch.equal(*prompts)
    assert torch.equal(answering.prompt_mask, answering.inputs["attention_mask"].bool())


def test_targets_are_the_answer_with_its_end_and_nothing_else(tiny: Backbone) -> None:
    batch = tiny.batch(mixed(), answers=True)

    assert batch.targets is not None
    assert batch.targets.shape == (4, 5)  # the longest answer has four words and an end
    assert batch.inputs["logits_to_keep"] == 5
    word = tiny.tokenizer.convert_tokens_to_ids
    assert batch.targets[0].tolist() == [IGNORED] * 3 + [word("red"), word("</s>")]
    assert batch.targets[2].tolist() == [IGNORED, *word(["blue", "and", "grey", "</s>"])]
    # the end is learnt but never read
    assert word("</s>") not in batch.inputs["input_ids"][:, -1].tolist()
    assert batch.inputs["input_ids"][0, -1] == word("red")


def test_logits_are_computed_only_where_the_longest_answer_is(tiny: Backbone) -> None:
    batch = tiny.batch(mixed(), answers=True)

    assert batch.targets is not None
    assert forward(tiny.model, batch).logits.shape[:2] == batch.targets.shape


@torch.no_grad()
def test_position_j_of_the_logits_predicts_position_j_of_the_targets(tiny: Backbone) -> None:
    """Against each sample alone, unpadded, with all logits: the logit before token i predicts token i."""
    batch = tiny.batch(mixed(), answers=True)
    logits = forward(tiny.model, batch).logits
    losses = answer_losses(forward(tiny.model, batch), batch)
    for row, one in enumerate(mixed()):
        single = tiny.batch([one], answers=True)
        inputs = {k: v for k, v in single.inputs.items() if k not in ("logits_to_keep", "position_ids")}
        assert bool(inputs["attention_mask"].all())
        full = tiny.model(**inputs).logits[0]
        answer = tiny.tokenizer(one.answer, add_special_tokens=False)["input_ids"]
        answer = [*answer, tiny.tokenizer.eos_token_id]
        start = full.shape[0] - len(answer)
        assert batch.targets is not None
        assert batch.targets[row][batch.answer_mask[row]].tolist() == answer
        torch.testing.assert_close(at_answers(logits, batch, row), full[start:], rtol=0, atol=1e-4)
        by_hand = torch.stack([-full[start + i].log_softmax(-1)[token] for i, token in enumerate(answer)])
        torch.testing.assert_close(losses[row][batch.answer_mask[row]], by_hand, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("company", [[1], [2, 1], [3, 2, 1]])
def test_padding_and_company_do_not_change_an_answers_logits(tiny: Backbone, company: list[int]) -> None:
    """A sample's answer-position logits are the same to 1e-4 in fp32 alone and in any batch."""
    samples = mixed()
    alone = tiny.batch([samples[0]], answers=True)
    batch = tiny.batch([*(samples[i] for i in company), samples[0]], answers=True)

    torch.testing.assert_close(
        at_answers(forward(tiny.model, batch).logits, batch, len(company)),
        at_answers(forward(tiny.model, alone).logits, alone, 0),
        rtol=0,
        atol=1e-4,
    )


class Constant(torch.nn.Module):
    """Gives the same logits for every position: −log p is known without a model."""

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        logits = torch.tensor([0.0, 1.0, 2.0]).expand(input_ids.shape[0], 2, 3)
        return type("Outputs", (), {"logits": logits})


def constant_batch() -> Batch:
    targets = torch.tensor([[IGNORED, 1], [2, 0]])
    return Batch(
        tuple(mixed()[:2]), {"input_ids": torch.ones(2, 5), "attention_mask": torch.ones(2, 5)}, targets
    )


def test_answer_losses_are_the_negative_log_likelihood_and_zero_off_the_answer() -> None:
    """−log p(c) = log(1 + e + e²) − c for logits (0, 1, 2)."""
    total = torch.log(torch.tensor(1 + torch.e + torch.e**2))

    losses = answer_losses(Constant()(torch.ones(2, 5)), constant_batch())

    torch.testing.assert_close(
        losses, torch.stack([torch.stack([total * 0, total - 1]), total - torch.tensor([2, 0])])
    )


def test_the_objective_is_the_mean_over_answer_tokens() -> None:
    """Three answer tokens with logits (0, 1, 2): log(1 + e + e²) − (1 + 2 + 0)/3."""
    expected = torch.log(torch.tensor(1 + torch.e + torch.e**2)) - 1

    torch.testing.assert_close(task_loss(Constant(), constant_batch()), expected)


def test_the_objective_prepares_the_model_first() -> None:
    class Prepared(Constant):
        seen: Batch | None = None

        def prepare(self, batch: Batch) -> None:
            self.seen = batch

    model, batch = Prepared(), constant_batch()
    task_loss(model, batch)
    assert model.seen is batch


def test_a_batch_without_answers_has_neither_loss_nor_mask(tiny: Backbone) -> None:
    batch = tiny.batch(mixed(), answers=False)

    assert batch.targets is None
    with pytest.raises(ValueError, match="without answers"):
        _ = batch.answer_mask
    with pytest.raises(ValueError, match="without answers"):
        answer_losses(None, batch)


def test_at_inference_nothing_in_a_batch_says_what_is_right_or_which_task_it_is(tiny: Backbone) -> None:
    told = replace(sample(0), references=("a red square",), truth={"size": [16, 16]})

    batch = tiny.batch([told, sample(1)], answers=False)

    assert set(batch.inputs) == {"input_ids", "attention_mask", "pixel_values"}
    for one in batch.samples:
        assert one.answer is None
        assert one.references == ()
        assert one.truth == {}
        assert one.before == ()
        assert set(vars(one)) == {
            *("id", "image", "prompt", "answer", "references", "truth"),
            *("before", "learns_before", "more_images"),
        }
    assert set(vars(batch)) == {"samples", "inputs", "targets", "spans"}


def test_a_sample_without_an_answer_cannot_be_learnt(tiny: Backbone) -> None:
    with pytest.raises(DataError, match=r"sample .0. .*no answer to learn"):
        tiny.batch([replace(sample(0), answer="")], answers=True)


@torch.no_grad()
def test_some_rows_of_a_batch_have_the_same_losses_as_in_it(tiny: Backbone) -> None:
    batch = tiny.batch(mixed(), answers=True)
    whole = answer_losses(forward(tiny.model, batch), batch)
    for places in ([0], [2], [3, 1], [2, 0]):
        part = batch.rows(places)
        assert [one.id for one in part.samples] == [str(place) for place in places]
        losses = answer_losses(forward(tiny.model, part), part)
        torch.testing.assert_close(losses, whole[places], rtol=0, atol=1e-5)
    assert "pixel_values" not in batch.rows([2]).inputs


@given(st.integers(1, 300), st.integers(0, 10), st.text(max_size=8), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_the_order_is_a_permutation_and_repeats(
    size: int, seed: int, task: str, occurrence: int, epoch: int
) -> None:
    torch.manual_seed(seed)  # what was drawn before does not matter
    first = order(size, seed=seed, task=task, occurrence=occurrence, epoch=epoch)

    assert sorted(first) == list(range(size))
    torch.rand(3)
    assert first == order(size, seed=seed, task=task, occurrence=occurrence, epoch=epoch)


def test_the_order_differs_with_each_of_its_arguments() -> None:
    base = {"seed": 0, "task": "colour", "occurrence": 0, "epoch": 0}
    others = [
        {**base, **change} for change in ({"seed": 1}, {"task": "side"}, {"occurrence": 1}, {"epoch": 1})
    ]

    orders = [order(50, **arguments) for arguments in (base, *others)]

    assert len({tuple(one) for one in orders}) == 5


def test_the_order_is_the_same_on_every_machine() -> None:
    """Printed once by `order(8, seed=0, task="colour", occurrence=0, epoch=0)`; every run depends on it."""
    assert order(8, seed=0, task="colour", occurrence=0, epoch=0) == [4, 6, 1, 0, 2, 3, 5, 7]


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_steps_partition_the_order_and_rehearsal_adds_none(own: int, batch: int, rehearsed: int) -> None:
    count = -(-own // batch)
    indices = order(own + rehearsed, seed=0, task="t", occurrence=0, epoch=0)

    cut = steps(indices, batch=batch, count=count)

    assert [index for step in cut for index in step] == indices
    assert len(cut) == count
    if not rehearsed:
        assert all(len(step) == batch for step in cut[:-1])
    if own + rehearsed > batch * count:
        assert max(map(len, cut)) - min(map(len, cut)) <= 1


@given(st.integers(1, 40), st.integers(1, 5), st.none() | st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_shards_partition_a_global_batch_into_equally_many_pieces(
    size: int, world: int, micro: int | None
) -> None:
    shards = [shard(range(size), rank, world, micro) for rank in range(world)]

    assert sorted(index for mine in shards for piece in mine for index in piece) == list(range(size))
    assert len({len(mine) for mine in shards}) == 1
    assert all(len(piece) <= (micro or size) for mine in shards for piece in mine)


def test_pieces_cover_everything_once() -> None:
    assert [list(range(7))[piece] for piece in pieces(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_one_seed_rules_torch_numpy_and_python() -> None:
    import random

    import numpy as np

    def draw() -> tuple[float, float, float]:
        seed_everything(0, "colour", 0, "rehearse")
        return float(torch.rand(())), float(np.random.rand()), random.random()

    assert draw() == draw()
