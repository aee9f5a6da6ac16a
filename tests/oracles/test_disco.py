"""DISCO against its rule for answering, and against the released code's block-diagonal matrix, in loops over tasks and tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cl_zoo_disco import DISCO
from hypothesis import given
from hypothesis import strategies as st
from oracles.shapes import (
    CASES,
    SEEDS,
    SMALL,
    WIDTHS,
    Stage,
    assert_equal,
    batch,
    cosine,
    draws,
    learn_by_drawing,
    logits_by_hand,
    normal,
    recipe,
    samples,
    states,
    tasks,
)
from torch import Tensor

from cl_zoo.batches import forward
from cl_zoo.nn.anchors import Routed
from cl_zoo.tasks import Sample, Task
from cl_zoo.testing import tiny_backbone, tiny_benchmark

SCALE = 1.5
OPTIONS = st.builds(
    DISCO.Options,
    modality=st.sampled_from(["text", "image", "both"]),
    temperature=st.floats(0.02, 2),
)
WEIGHTS = {"text": (0, 1), "image": (1, 0), "both": (0.5, 0.5)}
Pair = tuple[Tensor, Tensor]


def literal_means(features: Any, seen: Sequence[Sample]) -> Pair:
    """(a) for images and for texts; a prompt without an image adds nothing to the image's."""
    image, text, shown = torch.zeros(features.width, dtype=torch.float64), 0.0, 0
    for sample in seen:
        text = text + features.text_states([sample.prompt])[0] / len(seen)
        if sample.image is not None:
            image, shown = image + features.images([sample.image])[0], shown + 1
    return image / max(shown, 1), torch.as_tensor(text)


def literal_route(features: Any, sample: Sample, means: Sequence[Pair], o: DISCO.Options) -> list[float]:
    """(b) for one sample."""
    by_image, by_text = WEIGHTS[o.modality]
    image, text = features.images([sample.image])[0], features.text_states([sample.prompt])[0]
    scores = []
    for image_mean, text_mean in means:
        score = by_image * cosine(image, image_mean) + by_text * cosine(text, text_mean)
        scores.append(math.exp(score / o.temperature))
    return [score / sum(scores) for score in scores]


class Taught:
    """The method on a random decoder after some tasks whose experts were drawn instead of trained."""

    def __init__(self, seed: int, o: DISCO.Options, widths: Sequence[int], rank: int, many: int) -> None:
        self.generator, self.stage, self.method = draws(seed), Stage(seed, 2, *widths), DISCO(o)
        self.bank = self.method.build_model(self.stage, recipe(rank, SCALE))
        self.pairs: dict[tuple[str, str], Pair] = {}
        self.seen: list[list[Sample]] = []
        for task in tasks(many):
            self.method.before_task(task)
            self.pairs |= learn_by_drawing(self.bank, self.generator)
            self.seen.append(samples(self.generator, 5, task.index))
            self.method.after_task([batch(self.seen[-1][:2]), batch(self.seen[-1][2:])])

    def answering(self) -> Routed:
        return self.method.build_inference_model(tasks(len(self.seen))).eval()


@CASES
@given(SEEDS, OPTIONS, SMALL)
def test_the_route_is_a_softmax_of_cosines_with_each_tasks_mean(
    seed: int, o: DISCO.Options, many: int
) -> None:
    """(a) in fp32, as anchors are kept; (b) in fp64 from the same anchors."""
    run = Taught(seed, o, [3, 4], 1, many)
    features, anchors = run.stage.features, run.method.anchors.double()
    widths = {"images": features.width, "texts": features.text_width}
    kept = {
        kind: anchors[kind] if kind in anchors.views else torch.zeros(many, width).double()
        for kind, width in widths.items()
    }
    for place, seen in enumerate(run.seen):
        for kind, mean in zip(widths, literal_means(features, seen), strict=True):
            if kind in anchors.views:
                assert_equal(kept[kind][place], mean, 1e-6)
    asked, answering = samples(run.generator, 4, "asked"), run.answering()

    answering.prepare(batch(asked))

    means = list(zip(kept["images"], kept["texts"], strict=True))
    for row, sample in enumerate(asked):
        expected = literal_route(features, sample, means, o)
        assert_equal(answering.route[row], torch.tensor(expected, dtype=torch.float64))


@CASES
@given(SEEDS, OPTIONS, WIDTHS, SMALL, SMALL)
def test_every_layer_answers_with_the_weighted_sum_of_all_experts(
    seed: int, o: DISCO.Options, widths: list[int], rank: int, many: int
) -> None:
    """(c) and its gradient to h, sample by sample; the same through the released code's matrix between A and B."""
    run = Taught(seed, o, widths, rank, many)
    answering = run.answering()
    answering.prepare(batch(samples(run.generator, 3, "asked")))
    w = answering.route.tolist()
    for layer in run.bank.layers:
        pairs = [run.pairs[layer.path, f"t{t}"] for t in range(many)]
        h, c = (
            states(layer, run.generator, 3).requires_grad_(),
            normal(run.generator, 3, 3, layer.out_features),
        )
        y = layer(h)
        (slope,) = torch.autograd.grad(y, h, c)
        for row in range(3):
            between = torch.zeros(many * rank, many * rank, dtype=torch.float64)
            W = layer.base_layer.weight.clone()
            for t, (A, B) in enumerate(pairs):
                W += SCALE * w[row][t] * B @ A
                for place in range(t * rank, (t + 1) * rank):
                    between[place, place] = w[row][t]
            all_a, all_b = torch.cat([A for A, _ in pairs], 0), torch.cat([B for _, B in pairs], 1)
            bias = 0 if layer.base_layer.bias is None else layer.base_layer.bias
            for token in range(3):
                assert_equal(y[row, token], W @ h[row, token] + bias)
                assert_equal(slope[row, token], W.T @ c[row, token])
                released = all_b @ (between @ (all_a @ h[row, token])) * SCALE
                assert_equal(y[row, token], layer.base_layer(h[row, token]) + released)


@CASES
@given(SEEDS, OPTIONS, WIDTHS, SMALL, SMALL)
def test_a_task_learns_alone_on_the_frozen_model(
    seed: int, o: DISCO.Options, widths: list[int], rank: int, many: int
) -> None:
    """y = W h + s B_t A_t h whatever came before; ∂/∂B_t = s Σ c (A_t h)ᵀ, ∂/∂A_t = s Σ B_tᵀ c hᵀ, and no other gradient."""
    run = Taught(seed, o, widths, rank, many)
    run.method.before_task(Task(many, "next", "", 4))
    drawn = learn_by_drawing(run.bank, run.generator)
    for layer in run.bank.layers:
        A, B = drawn[layer.path, f"t{many}"]
        h, c = states(layer, run.generator, 2), normal(run.generator, 2, 3, layer.out_features)
        y = layer(h)
        y.backward(c)
        to_a, to_b = torch.zeros_like(A), torch.zeros_like(B)
        for row in range(2):
            for token in range(3):
                one, slope = h[row, token], c[row, token]
                assert_equal(y[row, token], layer.base_layer(one) + SCALE * B @ (A @ one))
                to_b += SCALE * torch.outer(slope, A @ one)
                to_a += SCALE * torch.outer(B.T @ slope, one)
        got = {name: weight.grad for name, weight in layer.named_parameters() if weight.grad is not None}
        assert set(got) == {f"bank_down.t{many}", f"bank_up.t{many}"}
        assert_equal(got[f"bank_down.t{many}"], to_a)
        assert_equal(got[f"bank_up.t{many}"], to_b)


# --- variant=released ---------------------------------------------------------------------------------------------------


class Sharing:
    """The released variant written out: each expert's sums and counts, and whom every sample trains."""

    def __init__(self, features: Any, o: DISCO.Options) -> None:
        self.features, self.o = features, o
        self.names: list[str] = []
        self.sums: list[list[Tensor]] = []  # expert -> images, texts
        self.counts: list[list[int]] = []

    def owner(self, sample: Sample) -> int:
        """The nearest expert above the threshold, else the one behind them all."""
        image, text = self.features.images([sample.image])[0], self.features.text_states([sample.prompt])[0]
        by_image, by_text = WEIGHTS[self.o.modality]
        alike = []
        for (images, texts), (shown, all_) in zip(self.sums, self.counts, strict=True):
            near = cosine(image, images / max(shown, 1)), cosine(text, texts / max(all_, 1))
            alike.append(by_image * near[0] + by_text * near[1])
        best = max(range(len(alike)), key=lambda place: alike[place], default=0)
        return best if alike and alike[best] > self.o.threshold else len(alike)

    def learn(self, name: str, seen: Sequence[Sample]) -> None:
        """A task: every sample is added to its expert's mean; the new expert stays if it has learnt anything."""
        owners = [self.owner(sample) for sample in seen]
        if len(self.names) in owners:
            self.names.append(name)
            width, text_width = self.features.width, self.features.text_width
            self.sums.append([torch.zeros(width).double(), torch.zeros(text_width).double()])
            self.counts.append([0, 0])
        for sample, place in zip(seen, owners, strict=True):
            self.sums[place][1] += self.features.text_states([sample.prompt])[0]
            self.counts[place][1] += 1
            if sample.image is not None:
                self.sums[place][0] += self.features.images([sample.image])[0]
                self.counts[place][0] += 1


@CASES
@given(
    SEEDS,
    st.sampled_from(["text", "image", "both"]),
    st.sampled_from([-0.3, 0.05, 0.2, 0.4, 0.9]),
    WIDTHS,
    SMALL,
    SMALL,
)
def test_the_released_variant_trains_the_nearest_expert_above_the_threshold(
    seed: int, modality: str, threshold: float, widths: list[int], rank: int, many: int
) -> None:
    """Which experts there are, their means in fp32, and in the next task y = W h + s B_o A_o h with o of each sample."""
    o = DISCO.Options(variant="released", modality=modality, threshold=threshold)
    generator, stage, method = draws(seed), Stage(seed, 2, *widths), DISCO(o)
    stage.features.dtype = torch.float32  # as an encoder's are; means are kept in it
    model, theirs = method.build_model(stage, recipe(rank, SCALE)), Sharing(stage.features, o)
    pairs: dict[tuple[str, str], Pair] = {}
    for task in tasks(many):
        method.before_task(task)
        pairs |= learn_by_drawing(method.bank, generator)
        seen = samples(generator, 5, task.index)
        method.after_task([batch(seen[:3]), batch(seen[3:])])
        theirs.learn(f"t{task.index}", seen)

    assert method.bank.experts == theirs.names
    for place, kind in enumerate(("images", "texts")):
        if kind in method.anchors.views:
            for row, sums, counts in zip(method.anchors[kind], theirs.sums, theirs.counts, strict=True):
                assert_equal(row, sums[place] / max(counts[place], 1), 1e-5)
    method.before_task(Task(many, "next", "", 4))
    pairs |= learn_by_drawing(method.bank, generator)
    asked = samples(generator, 3, "next")
    model.prepare(batch(asked))
    names = [*theirs.names, f"t{many}"]
    owners = [names[theirs.owner(sample)] for sample in asked]
    for layer in method.bank.layers:
        h, c = states(layer, generator, 3), normal(generator, 3, 3, layer.out_features)
        y = layer(h)
        y.backward(c)
        for row, name in enumerate(owners):
            A, B = pairs[layer.path, name]
            for token in range(3):
                one = h[row, token]
                assert_equal(y[row, token], layer.base_layer(one) + SCALE * B @ (A @ one))
        for name in names:
            A, B = pairs[layer.path, name]
            to_b = torch.zeros_like(B)
            for row in range(3):
                for token in range(3):
                    if owners[row] == name:
                        to_b += SCALE * torch.outer(c[row, token], A @ h[row, token])
            assert_equal(layer.bank_up[name].grad, to_b)


# --- in a whole model ---------------------------------------------------------------------------------------------------

DATA = [
    replace(data, train=data.train[place : place + 3 + place])  # the images of no two tasks have one mean
    for place, data in enumerate(tiny_benchmark(3, size=8).tasks)
]


def questions() -> list[Sample]:
    """Two tasks with images and a question without one; prompts of different lengths."""
    return [DATA[0].test[1], DATA[2].test[3], Sample("t", None, "Say one colour .", "red")]


@pytest.mark.parametrize(
    "o", [DISCO.Options(), DISCO.Options(modality="both", temperature=0.01)], ids=["text", "both"]
)
def test_a_mixed_batch_is_answered_as_each_sample_alone_by_weights_changed_by_hand(
    tiny_folder: Path, o: DISCO.Options
) -> None:
    backbone, method, generator = tiny_backbone(tiny_folder), DISCO(o), draws(0)
    bank = method.build_model(backbone, recipe(2, SCALE))
    pairs: dict[tuple[str, str], Pair] = {}
    for task in tasks(3):
        method.before_task(task)
        pairs |= learn_by_drawing(bank, generator, 0.3)
        method.after_task([backbone.batch(list(DATA[task.index].train), answers=True)])
    answering = method.build_inference_model(tasks(3)).eval()
    asked = backbone.batch(questions(), answers=True)
    with torch.no_grad():
        logits = forward(answering, asked).logits
    means = [literal_means(backbone.features, data.train) for data in DATA]

    for row, sample in enumerate(questions()):
        w = literal_route(backbone.features, sample, means, o)
        assert sample.image is None or max(w) - min(w) > 5e-4

        def update(name: str, w: list[float] = w) -> Tensor | None:
            linear = [pairs[name, f"t{t}"] for t in range(3) if (name, f"t{t}") in pairs]
            parts = [SCALE * w_t * B @ A for w_t, (A, B) in zip(w, linear, strict=False)]
            return sum(parts, torch.tensor(0.0)) if parts else None

        expected = logits_by_hand(tiny_backbone(tiny_folder), sample, update)
        torch.testing.assert_close(logits[row][asked.answer_mask[row]], expected, rtol=0, atol=1e-3)
