"""CKA: what does not count, blocks and baselines, and the probe in a run. The measure itself: `tests/oracles/test_cka.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cl_zoo_cka import CKA, cka, grams, paired, pooled, question_tokens, rbf, shuffled
from torch import Tensor, nn

from cl_zoo import Batch, Sample, Task
from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import IGNORED
from cl_zoo.nn.placing import adapters
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.testing import square


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compared(
    X: Tensor, Y: Tensor, kernel: str = "linear", estimator: str = "biased", block: int = 10**6
) -> float:
    """CKA of two matrices of one layer, (n, p) each, in blocks of `block` samples."""
    sides = [[rows[None] @ rows[None].mT for rows in Z.split(block)] for Z in (X, Y)]
    return float(cka(paired(*sides, kernel, estimator)))


def question(task: str = "?", index: int = 0, occurrence: int = 0, size: int = 12) -> Task:
    return Task(index, task, "", size, occurrence)


# The measure


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_a_representation_is_its_own_equal(kernel: str, estimator: str) -> None:
    X = features(12, 5)

    assert compared(X, X, kernel, estimator) == pytest.approx(1)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_rotation_scale_and_shift_of_a_representation_do_not_count(kernel: str, estimator: str) -> None:
    """Kornblith et al., 2.2 and 2.3: invariant to orthogonal transformations and to isotropic scaling; also to a shift."""
    X, Y = features(12, 5), features(12, 7, seed=1)
    Q, _ = torch.linalg.qr(features(5, 5, seed=2))
    value = compared(X, Y, kernel, estimator)

    assert 0 < abs(value) < 1
    assert compared(X @ Q, Y, kernel, estimator) == pytest.approx(value)
    assert compared(-3 * X, 0.01 * Y, kernel, estimator) == pytest.approx(value)
    assert compared(X + 7, Y - 2, kernel, estimator) == pytest.approx(value)
    assert compared(Y, X, kernel, estimator) == pytest.approx(value)


def test_an_anisotropic_scale_counts() -> None:
    """It is no similarity up to any linear map: X with one axis stretched is another representation."""
    X = features(12, 5)

    assert compared(X * torch.tensor([10, 1, 1, 1, 1.0]), X) < 0.9


def test_independent_data_are_unlike_for_the_unbiased_estimator_only() -> None:
    """Twenty samples of a hundred independent dimensions: the biased CKA is about p/(n + p) = 0.83 all the same."""
    draws = [(features(20, 100, seed=2 * i), features(20, 100, seed=2 * i + 1)) for i in range(40)]

    assert abs(np.mean([compared(X, Y, estimator="unbiased") for X, Y in draws])) < 0.02
    assert np.mean([compared(X, Y) for X, Y in draws]) > 0.75


def test_each_layer_has_its_own_width_of_the_kernel() -> None:
    rows = features(2, 9, 3) * torch.tensor([1.0, 50.0])[:, None, None]
    together = rbf(rows @ rows.mT)

    for layer in (0, 1):
        torch.testing.assert_close(together[layer], rbf(rows[layer] @ rows[layer].T))


# Blocks


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_one_block_is_the_whole(estimator: str) -> None:
    X, Y = features(16, 5), features(16, 5, seed=1)

    assert compared(X, Y, estimator=estimator, block=16) == compared(X, Y, estimator=estimator)


def test_blocks_too_small_for_the_estimator_are_left_out() -> None:
    """Eleven samples in blocks of eight leave three, and HSIC₁ needs four."""
    X, Y = features(11, 5), features(11, 5, seed=1)

    assert compared(X, Y, estimator="unbiased", block=8) == compared(X[:8], Y[:8], estimator="unbiased")


def test_tasks_of_unequal_size_meet_on_what_both_have() -> None:
    X, Y = features(12, 5), features(9, 5, seed=1)
    sides = [[(Z @ Z.T)[None]] for Z in (X, Y)]

    assert float(cka(paired(*sides, "rbf", "biased"))) == pytest.approx(compared(X[:9], Y, "rbf"))
    assert paired(sides[0], [torch.ones(1, 3, 3)], "linear", "unbiased") == []


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_a_representation_that_does_not_vary_is_like_nothing(kernel: str, estimator: str) -> None:
    constant = torch.full((8, 5), 3.7, dtype=torch.float64) + 1e-9 * features(8, 5, seed=1)

    assert compared(constant, features(8, 5), kernel, estimator) == 0
    assert compared(constant, constant, kernel, estimator) == 0


# The shuffled baseline


def test_the_baseline_draws_nothing_from_anybody_s_generator() -> None:
    pairs = paired([features(1, 6, 6)], [features(1, 6, 6)], "linear", "biased")
    before = torch.get_rng_state()

    shuffled(pairs, 3)

    assert torch.equal(torch.get_rng_state(), before)


# What is read of a model


def samples(count: int, words: int = 0) -> list[Sample]:
    made = []
    for place in range(count):
        image, colour, _ = square(place)
        shown = None if place % 3 == 2 else image
        prompt = f"What colour is it ?{' and a square' * (place % 2 * words)}\nAnswer with one word ."
        made.append(Sample(str(place), shown, prompt, f"a {colour} square" if place % 2 else colour))
    return made


def test_the_tokens_of_the_question_are_neither_padding_nor_answer() -> None:
    """Rows of six: two pads, three of the question, one of a two-token answer; no pad, six of the question, one token."""
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    targets = torch.tensor([[7, 8], [IGNORED, 9]])
    batch = Batch((), {"attention_mask": mask}, targets)

    assert question_tokens(batch).tolist() == [[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    assert mask.tolist()[0] == [0, 0, 1, 1, 1, 1]  # the batch's own mask is not touched


def test_of_a_conversation_every_question_counts_and_no_learnt_answer(tiny: Backbone) -> None:
    before = (("Where is the square ?", "left left"), ("What colour is it ?", "red"))
    sample = Sample("0", None, "Answer with one word .", "a small blue square", before=before)
    for learns in (True, False):
        batch = tiny.batch([replace(sample, learns_before=learns), Sample("1", None, "a", "b")], answers=True)
        counted = batch.inputs["input_ids"][0][question_tokens(batch)[0].bool()]

        read = [asked if learns else f"{asked} {answer} </s>" for asked, answer in before]
        said = tiny.tokenizer.decode(counted).split()
        assert [word for word in said if word not in ("<s>", "USER:", "ASSISTANT:")] == " ".join(
            [*read, sample.prompt]
        ).split()


@pytest.mark.parametrize("reads", ["layer", "mlp"])
def test_padding_company_and_answers_do_not_count(tiny: Backbone, reads: str) -> None:
    """A sample read alone and without its answer gives the same row as among longer ones."""
    several = samples(5, words=4)
    with torch.no_grad():
        together = pooled(tiny.model, tiny.layers, tiny.batch(several, answers=True), reads)
        for place, sample in enumerate(several):
            alone = pooled(tiny.model, tiny.layers, tiny.batch([sample], answers=False), reads)
            torch.testing.assert_close(together[:, place], alone[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 5, 32])
def test_the_gram_matrices_do_not_depend_on_the_batches(tiny: Backbone, size: int) -> None:
    several = samples(11, words=3)
    options = CKA.Options(samples=10, block=4)
    batches = [
        tiny.batch(several[start : start + size], answers=True) for start in range(0, len(several), size)
    ]
    whole = pooled_rows(tiny, several[:10])

    found = list(grams(tiny.model, tiny.layers, batches, options))

    assert [one.shape for one in found] == [(2, 4, 4), (2, 4, 4), (2, 2, 2)]
    for block, rows in zip(found, whole.split(4, dim=1), strict=True):
        torch.testing.assert_close(block, rows @ rows.mT, rtol=1e-5, atol=1e-5)


def pooled_rows(tiny: Backbone, several: list[Sample]) -> Tensor:
    with torch.no_grad():
        return pooled(tiny.model, tiny.layers, tiny.batch(several, answers=True), "layer")


# The probe in a run


def test_the_probe_compares_each_task_with_all_earlier_ones(run_tiny: Callable[..., Any]) -> None:
    result = run_tiny("finetune", order="CSC", probes=["cka"])
    first, second, third = result.manifest["measured"]

    assert not first
    assert {key for key in second if "shuffled" not in key} == {
        f"cka/{layer}/colour~side" for layer in (0, 1, "mean")
    }
    assert {key.rpartition("/")[2] for key in third} == {"colour~colour#2", "side~colour#2"}
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in [*second.values(), *third.values()])
    layers = [second[f"cka/shuffled/{layer}/colour~side"] for layer in (0, 1)]
    assert second["cka/shuffled/mean/colour~side"] == pytest.approx(np.mean(layers))


def test_the_same_questions_under_the_same_model_have_cka_one(tiny: Backbone) -> None:
    batches = [tiny.batch(samples(8), answers=True)]
    probe = CKA(CKA.Options(permutations=0))

    assert probe.after_task(tiny.model, question("here"), batches, tiny) == {}
    measured = probe.after_task(tiny.model, question("here", 1, 1), batches, tiny)

    assert measured == pytest.approx({f"cka/{key}/here~here#2": 1.0 for key in (0, 1, "mean")})
    third = probe.after_task(tiny.model, question("there", 2), batches, tiny)
    assert {key.partition("mean/")[2] for key in third} == {"", "here~there", "here#2~there"}


def test_what_was_read_comes_back_from_the_state(tiny: Backbone) -> None:
    batches = [tiny.batch(samples(8), answers=True)]
    other = [tiny.batch(samples(8, words=5), answers=True)]
    probe, resumed = CKA(CKA.Options()), CKA(CKA.Options())
    probe.after_task(tiny.model, question("one"), batches, tiny)

    resumed.load_state_dict(probe.state_dict())

    expected = probe.after_task(tiny.model, question("two", 1), other, tiny)
    assert resumed.after_task(tiny.model, question("two", 1), other, tiny) == expected
    assert expected


def test_the_model_stands_as_it_stood(tiny: Backbone) -> None:
    model = tiny.model.train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    hooks = [len(layer._forward_hooks) for layer in tiny.layers]

    CKA(CKA.Options()).after_task(model, question(), [tiny.batch(samples(8), answers=True)], tiny)

    assert model.training
    assert [len(layer._forward_hooks) for layer in tiny.layers] == hooks
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_dropout_does_not_count(tiny: Backbone) -> None:
    """The model comes from training, with dropout on; reading it twice gives the same."""
    bank = adapters(tiny, build_recipe({}, {"adapter.rank": 2, "adapter.dropout": 0.5}))
    for layer in bank.layers:
        nn.init.normal_(layer.bank_up["shared"])
    batches = [tiny.batch(samples(4), answers=True)]

    (first,), (second,) = (list(grams(bank.train(), tiny.layers, batches, CKA.Options())) for _ in range(2))

    assert torch.equal(first, second)
    assert bank.training


def test_no_samples_give_no_measurement(tiny: Backbone) -> None:
    probe = CKA(CKA.Options())

    assert probe.after_task(nn.Linear(1, 1, device="meta"), question(), [], tiny) == {}
    assert probe.after_task(nn.Linear(1, 1, device="meta"), question("other", 1), [], tiny) == {}


class PutsTokens(nn.Module):
    """Answers with two tokens of its own among the question's, as methods with prompts do."""

    def __init__(self, model: nn.Module, place: int) -> None:
        super().__init__()
        self.model, self.place = model, place

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        embedded = self.model.get_input_embeddings()(input_ids)
        before, behind = embedded[:, : self.place], embedded[:, self.place :]
        mask = torch.cat([torch.ones_like(attention_mask[:, :2]), attention_mask], 1)
        more = torch.full_like(embedded[:, :2], 5.0)
        return self.model(inputs_embeds=torch.cat([before, more, behind], 1), attention_mask=mask)


@pytest.mark.parametrize("place", [0, 1], ids=["before the question", "behind its first token"])
def test_prompts_are_left_out(tiny: Backbone, place: int) -> None:
    batch = tiny.batch([Sample("0", None, "What colour is it ?")], answers=False)
    seen: list[Tensor] = []
    handle = tiny.layers[-1].register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        found = pooled(PutsTokens(tiny.model, place), tiny.layers, batch, "layer")
    handle.remove()

    torch.testing.assert_close(found[-1], seen[0][:, 3:].mean(1).double())


def test_the_probe_is_one_and_changes_no_answer(run_tiny: Callable[..., Any], tmp_path: Any) -> None:
    assert CKA.probe
    alone = run_tiny("finetune", out=tmp_path / "alone")
    probed = run_tiny("finetune", probes=["cka", "drift", "routing"], out=tmp_path / "probed")

    for file in sorted((alone.folder / "answers").iterdir()):
        assert file.read_bytes() == (probed.folder / "answers" / file.name).read_bytes()
