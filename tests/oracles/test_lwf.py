"""LwF's term against Eq. 2 to 4 of the paper, position by position and word by word, and against a public implementation."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from cl_zoo_lwf import LwF, distillation
from hypothesis import given
from hypothesis import strategies as st
from oracles.shapes import CASES, SEEDS, SMALL, draws, learn_by_drawing, normal, recipe
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward
from cl_zoo.nn.placing import adapters
from cl_zoo.tasks import Sample
from cl_zoo.testing import tiny_benchmark

TEMPERATURES = st.sampled_from([0.5, 1.0, 1.5, 2.0, 4.0])
VOCABULARY = st.integers(2, 9)


def soft(logits: Sequence[float], temperature: float) -> list[float]:
    """Eq. 3: y^(1/T) / Σ y^(1/T), with y the probabilities of the logits."""
    powers = [math.exp(one - max(logits)) for one in logits]
    y = [power / sum(powers) for power in powers]
    raised = [one ** (1 / temperature) for one in y]
    return [one / sum(raised) for one in raised]


def literal(old: Tensor, new: Tensor, temperature: float) -> float:
    """Eq. 2, −Σ_v y'_o log ŷ'_o, less what does not depend on the learning model, −Σ_v y'_o log y'_o."""
    y, mine = soft(old.tolist(), temperature), soft(new.tolist(), temperature)
    crossed = -sum(a * math.log(b) for a, b in zip(y, mine, strict=True))
    return crossed + sum(a * math.log(a) for a in y)


@CASES
@given(SEEDS, SMALL, SMALL, VOCABULARY, TEMPERATURES)
def test_the_term_is_the_divergence_of_softened_answers(
    seed: int, rows: int, places: int, vocabulary: int, temperature: float
) -> None:
    """Its gradient is that of the paper's cross-entropy, (ŷ'_o − y'_o) / T; taken in fp32."""
    generator = draws(seed)
    old = normal(generator, rows, places, vocabulary)
    new = normal(generator, rows, places, vocabulary).requires_grad_()

    term = distillation(old, new, temperature)
    term.sum().backward()

    assert term.shape == (rows, places)
    assert new.grad is not None
    for row in range(rows):
        for place in range(places):
            expected = literal(old[row, place], new[row, place], temperature)
            assert term[row, place].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
            y, mine = soft(old[row, place].tolist(), temperature), soft(new[row, place].tolist(), temperature)
            slope = [(b - a) / temperature for a, b in zip(y, mine, strict=True)]
            assert new.grad[row, place].tolist() == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_the_term_by_hand() -> None:
    """T = 2, teacher logits (2 ln 3, 0) -> (3/4, 1/4); student (0, 0) -> (1/2, 1/2).

    KL = 3/4 ln 3/2 + 1/4 ln 1/2 = 0.130812. Its gradient is (1/2 - 3/4, 1/2 - 1/4) / T = (-1/8, 1/8).
    """
    teacher, student = torch.tensor([[[2 * math.log(3), 0.0]]]), torch.zeros(1, 1, 2, requires_grad=True)

    term = distillation(teacher, student, 2.0)
    term.sum().backward()

    assert term.item() == pytest.approx(0.130812, abs=1e-6)
    assert student.grad is not None
    assert student.grad.flatten().tolist() == pytest.approx([-0.125, 0.125])


def test_at_temperature_one_it_is_the_plain_divergence() -> None:
    """Teacher (3/4, 1/4), student (1/4, 3/4): KL = 3/4 ln 3 - 1/4 ln 3 = ln(3) / 2."""
    teacher, student = torch.tensor([[[math.log(3), 0.0]]]), torch.tensor([[[0.0, math.log(3)]]])

    assert distillation(teacher, student, 1.0).item() == pytest.approx(math.log(3) / 2)
    assert distillation(teacher + 5, student - 7, 1.0).item() == pytest.approx(math.log(3) / 2)
    assert distillation(student, student, 3.0).item() == 0


@CASES
@given(SEEDS, SMALL, SMALL, VOCABULARY, TEMPERATURES)
def test_easycls_term_is_the_mean_over_answer_tokens_times_t_squared(
    seed: int, rows: int, places: int, vocabulary: int, temperature: float
) -> None:
    """There the sum over all kept positions and words is divided by the number of positions and multiplied by T²."""
    generator = draws(seed)
    old, new = normal(generator, rows, places, vocabulary), normal(generator, rows, places, vocabulary)
    kept = torch.rand(rows, places, generator=generator) < 0.7
    kept[0, 0] = True
    total, count = 0.0, 0
    for row in range(rows):
        for place in range(places):
            if kept[row, place]:
                total += literal(old[row, place], new[row, place], temperature)
                count += 1
    theirs = total / count * temperature**2

    ours = distillation(old, new, temperature)[kept].mean()

    assert ours.item() * temperature**2 == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("strength", "temperature"), [(1.0, 2.0), (3.0, 1.5)])
def test_in_a_model_the_old_weights_answer_the_new_tasks_questions(
    tiny: Backbone, strength: float, temperature: float
) -> None:
    """λ_o times the term at each answer token, for samples of different lengths; each alone gives the same."""
    method, generator = LwF(LwF.Options(strength=strength, temperature=temperature)), draws(0)
    bank = adapters(tiny, recipe(2)).eval()
    method.before_task(bank)
    learn_by_drawing(bank, generator, 0.3)
    method.after_task(bank)
    old = copy.deepcopy(bank)
    method.before_task(bank)
    learn_by_drawing(bank, generator, 0.3)
    train = tiny_benchmark(3, size=8).tasks
    samples = [train[0].train[0], train[2].train[1], Sample("t", None, "Say one colour .", "red")]
    batch = tiny.batch(samples, answers=True)

    terms = method.loss(bank, batch, forward(bank, batch))

    assert terms is not None
    found = [row[mask].tolist() for row, mask in zip(terms["lwf"], batch.answer_mask, strict=True)]
    for values, expected in zip(found, one_by_one(old, bank, tiny, samples, temperature), strict=True):
        assert values == pytest.approx([strength * one for one in expected], rel=1e-3, abs=1e-5)
        assert max(expected) > 1e-3


@torch.no_grad()
def one_by_one(
    old: nn.Module, new: nn.Module, backbone: Backbone, samples: Sequence[Sample], temperature: float
) -> list[list[float]]:
    """The literal term of each sample without padding, answer token by answer token."""
    found = []
    for sample in samples:
        alone = backbone.batch([sample], answers=True)
        assert alone.targets is not None
        both = zip(
            forward(old, alone).logits[0], forward(new, alone).logits[0], alone.targets[0], strict=True
        )
        found.append([literal(was, now, temperature) for was, now, target in both if target != -100])
    return found
