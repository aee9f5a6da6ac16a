"""DER++: both terms against Eq. 6 of the paper and a public implementation, and the objective of a step with a memory in it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cl_zoo_derpp import DERpp, Old
from hypothesis import given
from hypothesis import strategies as st
from oracles.shapes import CASES, SEEDS, SMALL, draws, normal
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo.batches import Batch, answer_losses, forward
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.learning import Learner
from cl_zoo.engine.streams import TaskBatches
from cl_zoo.names import Choice
from cl_zoo.nn.placing import adapters
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample, Task
from cl_zoo.testing import tiny_backbone, tiny_benchmark

VOCABULARY = st.integers(2, 7)


class Drawn:
    """A batch of new and old samples of up to three answer tokens, logits for it, and a memory with drawn logits."""

    def __init__(self, seed: int, rows: int, vocabulary: int, **options: Any) -> None:
        generator = draws(seed)
        self.method = DERpp(DERpp.Options(**options))
        lengths = torch.randint(1, 4, (rows,), generator=generator).tolist()
        self.targets = torch.randint(vocabulary, (rows, 3), generator=generator)
        for row, length in enumerate(lengths):
            self.targets[row, : 3 - length] = -100
        self.kept: dict[int, Tensor] = {}
        samples: list[Sample] = []
        for row, length in enumerate(lengths):
            sample = Sample(f"{row}", None, "?", "!")
            if torch.rand((), generator=generator) < 0.6:
                self.kept[row] = normal(generator, length, vocabulary).float()
                self.method._keep(sample, self.kept[row])
                sample = list(self.method.rehearse())[-1]
            samples.append(sample)
        self.logits = normal(generator, rows, 3, vocabulary).float().requires_grad_()
        self.batch = Batch(tuple(samples), {}, self.targets)
        self.outputs = SimpleNamespace(logits=self.logits)

    def terms(self) -> dict[str, Tensor]:
        return self.method.loss(self.batch, self.outputs) or {}

    def answers(self, row: int) -> list[int]:
        return [place for place in range(3) if int(self.targets[row, place]) != -100]


@CASES
@given(SEEDS, SMALL, VOCABULARY, st.sampled_from([0.1, 0.3, 2.0]))
def test_the_distance_at_each_answer_token_is_the_mean_square_of_logits(
    seed: int, rows: int, vocabulary: int, alpha: float
) -> None:
    """α / V Σ_v (h_v − z_v)² at old samples' answer tokens, zero elsewhere; its gradient is 2 α / V (h_v − z_v)."""
    run = Drawn(seed, rows, vocabulary, alpha=alpha)

    terms = run.terms()

    assert ("derpp" in terms) == bool(run.kept)
    if not run.kept:
        return
    terms["derpp"].sum().backward()
    value, slope = torch.zeros(rows, 3), torch.zeros(rows, 3, vocabulary)
    for row, kept in run.kept.items():
        for n, place in enumerate(run.answers(row)):
            for v in range(vocabulary):
                gap = float(run.logits[row, place, v] - kept[n, v])
                value[row, place] += alpha * gap**2 / vocabulary
                slope[row, place, v] = 2 * alpha * gap / vocabulary
    torch.testing.assert_close(terms["derpp"], value)
    torch.testing.assert_close(run.logits.grad, slope)


@CASES
@given(SEEDS, SMALL, VOCABULARY, st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_labels_of_old_samples_count_beta_times_and_those_of_new_ones_once(
    seed: int, rows: int, vocabulary: int, beta: float
) -> None:
    run = Drawn(seed, rows, vocabulary, beta=beta, alpha=0)
    terms = run.terms()
    own = answer_losses(run.outputs, run.batch)
    whole = own + terms["derpp/labels"] if terms else own

    for row in range(rows):
        for place in run.answers(row):
            logits = run.logits[row, place].tolist()
            nll = math.log(sum(map(math.exp, logits))) - logits[int(run.targets[row, place])]
            weight = beta if row in run.kept else 1.0
            assert whole[row, place].item() == pytest.approx(weight * nll, rel=1e-4, abs=1e-5)


@CASES
@given(SEEDS, st.integers(2, 4), VOCABULARY)
def test_over_one_token_a_sample_the_sums_are_mammoths(seed: int, rows: int, vocabulary: int) -> None:
    """There each minibatch has a mean of its own, `mse_loss` and `cross_entropy`; here both are parts of one mean over the batch."""
    run = Drawn(seed, rows, vocabulary, alpha=0.3, beta=0.5)
    run.targets[:, :2] = -100
    run.targets[:, 2] = run.targets[:, 2].clamp(min=0)
    old = sorted(run.kept)
    for place, row in enumerate(old):
        run.method.logits[place] = run.kept[row][-1:]
    terms = run.terms()
    new = [row for row in range(rows) if row not in old]
    if not old or not new:
        return
    logits, labels = run.logits[:, 2], run.targets[:, 2]
    mse = F.mse_loss(logits[old], torch.cat([run.kept[row][-1:] for row in old]))
    theirs = (
        len(new) * F.cross_entropy(logits[new], labels[new])
        + len(old) * 0.3 * mse
        + len(old) * 0.5 * F.cross_entropy(logits[old], labels[old])
    )

    ours = answer_losses(run.outputs, run.batch) + terms["derpp"] + terms["derpp/labels"]

    torch.testing.assert_close(ours.sum(), theirs)


def test_by_hand_with_the_two_largest_of_three_logits() -> None:
    """z = (1, 5, 3): kept are 5 and 3. h = (9, 4, 5): ((4 − 5)² + (5 − 3)²) / 2 = 2.5, and α = 2 makes it 5."""
    method = DERpp(DERpp.Options(alpha=2, beta=1, top=2))
    method._keep(Sample("1", None, "?", "!"), torch.tensor([[1.0, 5.0, 3.0]]))
    (old,) = method.rehearse()
    assert isinstance(old, Old)
    outputs = SimpleNamespace(logits=torch.tensor([[[9.0, 4.0, 5.0]]]))

    terms = method.loss(Batch((old,), {}, torch.tensor([[0]])), outputs)

    assert terms is not None
    assert set(terms) == {"derpp"}
    assert terms["derpp"].tolist() == [[5.0]]
    assert method.state_dict()["words"][0].tolist() == [[1, 2]]


def test_a_step_of_the_engine_has_the_objective_of_the_equation(tiny_folder: Any) -> None:
    """Old and new samples in micro-batches: the terms add up to the mean over all answer tokens of what each of them is to weigh."""
    tiny, tasks = tiny_backbone(tiny_folder), tiny_benchmark(2, size=8).tasks
    plugins = Plugins([Choice("derpp", {"samples": 3, "alpha": 0.2, "beta": 0.5})])
    recipe = build_recipe({"adapter.dropout": 0, "global_batch": 4, "micro_batch": 3})
    model = adapters(tiny, recipe)
    method = plugins.instances["derpp"]
    method.after_task(model, TaskBatches(tiny, tasks[0].train, recipe), tiny)
    for layer in model.layers:
        nn.init.normal_(layer.bank_up["shared"], std=0.1)
    pool = [*tasks[1].train, *method.rehearse()]
    learner = Learner(
        model,
        Task(1, "side", "", 8),
        pool,
        backbone=tiny,
        plugins=plugins,
        recipe=recipe,
        world=World("cpu"),
        seed=0,
    )
    chosen = [0, 8, 3, 10, 5]
    wanted, tokens = 0.0, 0
    with torch.no_grad():
        for place in chosen:
            batch = tiny.batch([pool[place]], answers=True)
            logits = forward(model.train(), batch).logits[0][batch.answer_mask[0]]
            labels = F.cross_entropy(logits, batch.targets[0][batch.answer_mask[0]], reduction="sum")
            tokens += len(logits)
            if place < 8:
                wanted += float(labels)
            else:
                gap = logits - method.logits[place - 8]
                wanted += 0.5 * float(labels) + 0.2 * float((gap**2).mean(-1).sum())

    terms = learner.step(chosen)

    assert set(terms) == {"task", "derpp", "derpp/labels"}
    assert terms["derpp"] > 0
    assert float(sum(terms.values())) == pytest.approx(wanted / tokens, rel=1e-4)
