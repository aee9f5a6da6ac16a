"""ModalPrompt: prototypes, guidance, choice and losses against the equations, and the choice against the released code's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from cl_zoo_modalprompt import Guided, ModalPrompt, for_answering, for_learning, guidance
from hypothesis import given
from hypothesis import strategies as st
from oracles.shapes import (
    CASES,
    SEEDS,
    SMALL,
    Stage,
    assert_equal,
    batch,
    cosine,
    draws,
    normal,
    samples,
    tasks,
)
from torch import Tensor, nn

from cl_zoo.tasks import Sample

OPTIONS = st.builds(
    ModalPrompt.Options,
    length=st.integers(1, 4),
    transfer=st.integers(1, 4),
    balance=st.floats(0, 1),
    strength=st.floats(0, 2),
)
DONE = st.integers(0, 5)


class Taught:
    """The method on a random decoder after some tasks; prompts and networks were drawn, prototypes follow from them."""

    def __init__(self, seed: int, o: ModalPrompt.Options, done: int, *, learning: bool) -> None:
        self.stage, self.generator, self.method = Stage(seed, 1, 4, 3), draws(seed), ModalPrompt(o)
        self.model: Guided = self.method.build_model(self.stage)
        self.expected: list[Tensor] = []
        for place, task in enumerate(tasks(done + learning)):
            self.method.before_task(task)
            network = self.model.network
            assert network is not None
            self.model.double()
            for weight in (self.model.prompts[f"t{place}"], *network.parameters()):
                weight.data = normal(self.generator, *weight.shape)
            self.expected.append(literal_prototype(self.model.prompts[f"t{place}"], network))
            if place < done:
                self.method.after_task(())
        self.model.double()

    def prototypes(self) -> list[Tensor]:
        """p_t of all tasks, in fp64: those that the model goes by."""
        with torch.no_grad():
            learnt = [one.detach() for one in self.model.prototypes.values()]
            return learnt if self.model.network is None else [*learnt, self.model.prototype().double()]


def literal_prototype(prompt: Tensor, network: nn.Module) -> Tensor:
    """(1), token by token: W₂ (a σ(a)) + b₂ with a = W₁ x + b₁, and the mean over the tokens."""
    first, _, last = network.children()
    mapped = torch.zeros(last.weight.shape[0], dtype=torch.float64)
    for token in prompt:
        a = first.weight @ token + first.bias
        silu = torch.stack([one / (1 + math.exp(-float(one))) for one in a])
        mapped += last.weight @ silu + last.bias
    return (mapped / len(prompt)).detach()


def literal_guidance(
    stage: Stage, sample: Sample, prototypes: Sequence[Tensor], balance: float
) -> list[float]:
    """(2) for one sample."""
    image, text = stage.features.images([sample.image])[0], stage.features.texts([sample.prompt])[0]
    return [balance * cosine(image, one) + (1 - balance) * cosine(text, one) for one in prototypes]


def highest(values: Sequence[float], count: int) -> list[int]:
    """Places of the highest values, the highest last."""
    return sorted(range(len(values)), key=lambda place: values[place])[-count:] if count else []


def assert_reads(run: Taught, row: int, chosen: Sequence[int]) -> None:
    read = torch.cat([run.model.prompts[f"t{place}"] for place in chosen])
    assert run.model.chosen[row].tolist() == chosen
    assert_equal(run.model.soft_prompts()[row], read)


@CASES
@given(SEEDS, OPTIONS, DONE)
def test_the_prototypes_are_equation_1(seed: int, o: ModalPrompt.Options, done: int) -> None:
    """Taken in fp32, and kept when the network goes."""
    run = Taught(seed, o, done, learning=True)

    for place, one in enumerate(run.prototypes()):
        torch.testing.assert_close(one, run.expected[place], rtol=1e-5, atol=1e-5)


@CASES
@given(SEEDS, OPTIONS, SMALL)
def test_answers_read_the_prompts_of_equation_5(seed: int, o: ModalPrompt.Options, done: int) -> None:
    run = Taught(seed, o, done, learning=False)
    asked = samples(run.generator, 4, "asked")

    run.model.eval().prepare(batch(asked))

    for row, sample in enumerate(asked):
        scores = literal_guidance(run.stage, sample, run.prototypes(), o.balance)
        if spread(scores):
            chosen = highest(scores, o.transfer)
            assert_reads(run, row, chosen)
            assert run.model.route is not None
            assert run.model.route[row].tolist() == [float(place == chosen[-1]) for place in range(done)]


@CASES
@given(SEEDS, OPTIONS, DONE)
def test_learning_reads_the_prompts_of_step_3(seed: int, o: ModalPrompt.Options, done: int) -> None:
    run = Taught(seed, o, done, learning=True)
    asked = samples(run.generator, 4, "asked")

    run.model.train().prepare(batch(asked))

    for row, sample in enumerate(asked):
        scores = literal_guidance(run.stage, sample, run.prototypes()[:done], o.balance)
        if spread(scores):
            assert_reads(run, row, [*highest(scores, min(done, o.transfer - 1)), done])


def spread(scores: Sequence[float]) -> bool:
    """Whether no two are as good as equal: with λ = 1 all are zero for a question without an image."""
    ordered = sorted(scores)
    return all(b - a > 1e-9 for a, b in pairwise(ordered))


def released_choice(scores: Sequence[float], learning: bool, transfer_num: int) -> list[int]:
    """Places of the prompts behind the first token as the released code puts them there, for transfer_num 1, 2 or 3."""
    cur_task = len(scores)  # counted from 1
    falling = sorted(range(cur_task), key=lambda place: -scores[place])
    if not learning:
        return falling[: min(transfer_num, cur_task)][::-1]
    if transfer_num == 1:
        return [cur_task - 1]
    if cur_task <= transfer_num - 1:
        return list(range(cur_task))
    older = [place for place in falling if place != cur_task - 1]
    return [*older[: transfer_num - 1][::-1], cur_task - 1]


@CASES
@given(SEEDS, SMALL, st.integers(1, 3), st.booleans())
def test_the_choice_is_the_released_codes(seed: int, done: int, transfer: int, learning: bool) -> None:
    """From the same scores; with two tasks at k = 3 theirs is in the order of the tasks, which is the same."""
    scores = normal(draws(seed), 1, done)

    chosen = (for_learning if learning else for_answering)(scores, transfer)

    assert chosen[0].tolist() == released_choice(scores[0].tolist(), learning, transfer)


@CASES
@given(SEEDS, OPTIONS, DONE)
def test_the_losses_are_equation_4(seed: int, o: ModalPrompt.Options, done: int) -> None:
    """Each term for each sample, and the gradient of their sum to the prompt's tokens; a missing image has no term."""
    run = Taught(seed, o, done, learning=True)
    asked = samples(run.generator, 3, "asked")
    run.model.train().prepare(batch(asked))

    terms = run.method.loss()
    (terms["modalprompt/image"].sum() + terms["modalprompt/text"].sum()).backward()

    p, features = run.expected[done], run.stage.features
    slope = torch.zeros_like(p)
    for row, sample in enumerate(asked):
        image, text = features.images([sample.image])[0], features.texts([sample.prompt])[0]
        for kind, seen in (("image", image), ("text", text)):
            shown = kind == "text" or sample.image is not None
            expected = o.strength * (1 - cosine(seen, p)) if shown else 0.0
            assert terms[f"modalprompt/{kind}"][row].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
            if shown:
                toward = seen / seen.norm() - cosine(seen, p) * p / p.norm()
                slope -= o.strength * toward / p.norm()
    assert run.model.network is not None
    first, _, last = run.model.network.children()
    prompt = run.model.prompts[f"t{done}"]
    assert prompt.grad is not None
    for token, got in zip(prompt.detach(), prompt.grad, strict=True):
        a = first.weight @ token + first.bias
        gate = 1 / (1 + torch.exp(-a))
        through = gate + a * gate * (1 - gate)  # of a σ(a)
        expected = first.weight.T @ (through * (last.weight.T @ slope)) / len(prompt)
        torch.testing.assert_close(got, expected.detach(), rtol=1e-3, atol=1e-4)
    assert all(run.model.prompts[f"t{place}"].grad is None for place in range(done))


# --- by hand ------------------------------------------------------------------------------------------------------------


def test_the_guidance_is_the_balance_of_both_cosines() -> None:
    """Image (3, 4), text (0, 1); prototypes (1, 0) and (0, 2): cosines 0.6, 0.8 and 0, 1; λ = 0.25 gives 0.15 and 0.95."""
    images, texts = torch.tensor([[3.0, 4], [0, 0]]), torch.tensor([[0.0, 1], [1, 0]])

    got = guidance(images, texts, torch.tensor([[1.0, 0], [0, 2]]), 0.25)

    torch.testing.assert_close(got, torch.tensor([[0.15, 0.95], [0.75, 0]]))


@pytest.mark.parametrize(("count", "places"), [(1, [2]), (2, [0, 2]), (3, [3, 0, 2]), (9, [1, 3, 0, 2])])
def test_answers_read_the_highest_guidance_last(count: int, places: list[int]) -> None:
    assert for_answering(torch.tensor([[0.5, -0.1, 0.9, 0.2]]), count).tolist() == [places]


@pytest.mark.parametrize(("count", "places"), [(1, [3]), (2, [2, 3]), (3, [0, 2, 3]), (9, [1, 0, 2, 3])])
def test_learning_reads_the_current_prompt_last_whatever_its_guidance(count: int, places: list[int]) -> None:
    for current in (-5.0, 5.0):
        assert for_learning(torch.tensor([[0.5, -0.1, 0.9, current]]), count).tolist() == [places]


def test_the_first_task_reads_its_own_prompt() -> None:
    assert for_learning(torch.tensor([[0.3], [0.1]]), 3).tolist() == [[0], [0]]
