"""HiDe against its equations, and against what the released code computes, written out in loops over tasks, samples and tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cl_zoo_hide import HiDe, concatenated, summed
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
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.tasks import Sample, Task, TaskData
from cl_zoo.testing import tiny_backbone, tiny_benchmark

SCALE = 2.0
OPTIONS = st.builds(
    HiDe.Options,
    variant=st.sampled_from(["paper", "released"]),
    alpha=st.floats(0.1, 2),
    beta=st.floats(0.1, 2),
    modality=st.sampled_from(["both", "image", "text"]),
    temperature=st.floats(0.05, 2),
    coefficient=st.floats(0, 2),
    expanded=st.one_of(st.integers(0, 3), st.just("all")),
    bare=st.integers(0, 2),
)
Pair = tuple[Tensor, Tensor]


# --- the equations, one sample and one token at a time ----------------------------------------------------------------


def literal_means(features: Any, seen: Sequence[Sample], variant: str) -> Pair:
    """Eq. 2: m_v over the samples that have an image, m_ins over all; from text features or text states."""
    image, text, shown = torch.zeros(features.width, dtype=torch.float64), 0.0, 0
    for sample in seen:
        f_v, f_ins = literal_features(features, sample, variant)
        text = text + f_ins / len(seen)
        if sample.image is not None:
            image, shown = image + f_v, shown + 1
    return image / max(shown, 1), torch.as_tensor(text)


def literal_features(features: Any, sample: Sample, variant: str) -> Pair:
    """f_v and f_ins of one sample; the released text ends where the template has its answer."""
    image = features.images([sample.image])[0]
    if variant == "released":
        return image, features.text_states([sample.prompt.split(" ASSISTANT")[0]])[0]
    return image, features.texts([sample.prompt])[0]


def literal_gate(
    image: Tensor, text: Tensor, m_v: Sequence[Tensor], m_ins: Sequence[Tensor], o: HiDe.Options
) -> list[float]:
    """Eq. 3 and 4 for one sample; one modality alone has the weight of both."""
    alpha, beta = o.alpha, o.beta
    if o.modality == "image":
        alpha, beta = alpha + beta, 0.0
    if o.modality == "text":
        alpha, beta = 0.0, alpha + beta
    scores = []
    for one_v, one_ins in zip(m_v, m_ins, strict=True):
        r_v, r_ins = cosine(image, one_v), cosine(text, one_ins)
        scores.append(math.exp((alpha * r_v + beta * r_ins) / o.temperature))
    return [score / sum(scores) for score in scores]


def literal_role(place: int, layers: int, o: HiDe.Options) -> str:
    """What layer number `place` of `layers` does: from the top first the bare ones, then the expanded ones."""
    from_top = layers - 1 - place
    if from_top < o.bare:
        return "bare"
    if o.expanded == "all" or from_top < o.bare + o.expanded:
        return "expanded"
    return "fused"


def literal_update(pairs: Sequence[Pair], d: Sequence[float], role: str, o: HiDe.Options) -> Tensor:
    """What Eq. 5 (expanded) or Eq. 6 and 7 (fused) add to a weight for one sample."""
    A, B = pairs[0]
    update = torch.zeros(B.shape[0], A.shape[1], dtype=A.dtype)
    if role == "expanded":
        for d_i, (A_i, B_i) in zip(d, pairs, strict=True):
            update += SCALE * d_i * B_i @ A_i
    if role == "fused" and o.variant == "paper":
        for A_i, B_i in pairs:
            update += SCALE * o.coefficient * B_i @ A_i
    if role == "fused" and o.variant == "released":
        for _, B_i in pairs:
            for A_j, _ in pairs:
                update += SCALE * o.coefficient * B_i @ (o.coefficient * A_j)
    return update


# --- the equations on decoders of random shapes, in fp64 --------------------------------------------------------------


class Taught:
    """The method on a random decoder after some tasks whose experts were drawn instead of trained."""

    def __init__(
        self, seed: int, o: HiDe.Options, layers: int, widths: Sequence[int], rank: int, many: int
    ) -> None:
        self.generator, self.stage = draws(seed), Stage(seed, layers, *widths)
        self.method, self.layers = HiDe(o), layers
        self.bank = self.method.build_model(self.stage, recipe(rank, SCALE))
        self.pairs: dict[tuple[str, str], Pair] = {}
        self.seen: list[list[Sample]] = []
        for task in tasks(many):
            self.method.before_task(task)
            self.pairs |= learn_by_drawing(self.bank, self.generator)
            rows = samples(self.generator, 5, task.index)
            self.seen.append(rows)
            self.method.after_task(task, [batch(rows[:3]), batch(rows[3:])])

    def answering(self) -> nn.Module:
        return self.method.build_inference_model(tasks(len(self.seen))).eval()

    def anchors(self, kind: str) -> list[Tensor]:
        """Those that the method has; none where a kind takes no part."""
        table = self.method.anchors
        return list(table[kind].double()) if kind in table.views else []


@CASES
@given(SEEDS, OPTIONS, SMALL, WIDTHS, SMALL, SMALL)
def test_each_layer_answers_by_equations_5_to_7(
    seed: int, o: HiDe.Options, layers: int, widths: list[int], rank: int, many: int
) -> None:
    """y and its gradient to x, for every sample with its own route; in fp64 to ten digits."""
    run = Taught(seed, o, layers, widths, rank, many)
    asked, answering = samples(run.generator, 3, "asked"), run.answering()
    d: list[list[float]] = [[]] * 3
    if not isinstance(answering, ExpertBank):
        answering.prepare(batch(asked))
        d = answering.route.tolist()
    for layer in run.bank.layers:
        pairs = [run.pairs[layer.path, f"t{i}"] for i in range(many)]
        role = literal_role(layer.depth, layers, o)
        x, c = (
            states(layer, run.generator, 3).requires_grad_(),
            normal(run.generator, 3, 3, layer.out_features),
        )
        y = layer(x)
        (slope,) = torch.autograd.grad(y, x, c)
        for row in range(3):
            W = layer.base_layer.weight + literal_update(pairs, d[row], role, o)
            bias = 0 if layer.base_layer.bias is None else layer.base_layer.bias
            for token in range(3):
                assert_equal(y[row, token], W @ x[row, token] + bias)
                assert_equal(slope[row, token], W.T @ c[row, token])


@CASES
@given(SEEDS, OPTIONS, SMALL)
def test_the_route_is_equations_3_and_4(seed: int, o: HiDe.Options, many: int) -> None:
    """For questions with an image and without one, from anchors in fp64: the method's own, which it keeps in fp32."""
    run = Taught(seed, o, 2, [3, 4], 1, many)
    run.method.anchors.double()
    m_v, m_ins = run.anchors("images"), run.anchors("texts")
    blank = [torch.zeros(1, dtype=torch.float64)] * many
    asked = samples(run.generator, 4, "asked")

    weights = dict(zip(("images", "texts"), o.weights, strict=True))
    d = run.method.anchors.weighed(weights, o.temperature)(asked)

    for row, sample in enumerate(asked):
        image, text = literal_features(run.stage.features, sample, o.variant)
        expected = literal_gate(
            image if m_v else blank[0], text if m_ins else blank[0], m_v or blank, m_ins or blank, o
        )
        assert_equal(d[row], torch.tensor(expected, dtype=torch.float64))


@CASES
@given(SEEDS, OPTIONS, SMALL)
def test_the_anchors_are_equation_2(seed: int, o: HiDe.Options, many: int) -> None:
    """Anchors are kept in fp32."""
    run = Taught(seed, o, 1, [2, 2], 1, many)
    for place, seen in enumerate(run.seen):
        image, text = literal_means(run.stage.features, seen, o.variant)
        for kind, expected in (("images", image), ("texts", text)):
            if kind in run.method.anchors.views:
                assert_equal(run.anchors(kind)[place], expected, 1e-6)


@CASES
@given(SEEDS, OPTIONS, WIDTHS, SMALL, SMALL)
def test_a_task_learns_alone_on_the_frozen_model(
    seed: int, o: HiDe.Options, widths: list[int], rank: int, many: int
) -> None:
    """y = W x + s B_t A_t x whatever came before; ∂/∂B_t = s Σ c (A_t x)ᵀ, ∂/∂A_t = s Σ B_tᵀ c xᵀ, and no other gradient."""
    run = Taught(seed, o, 2, widths, rank, many)
    run.method.before_task(Task(many, "next", "", 4))
    drawn = learn_by_drawing(run.bank, run.generator)
    for layer in run.bank.layers:
        A, B = drawn[layer.path, f"t{many}"]
        x = states(layer, run.generator, 2)
        y, c = layer(x), normal(run.generator, 2, 3, layer.out_features)
        y.backward(c)
        to_a, to_b = torch.zeros_like(A), torch.zeros_like(B)
        for row in range(2):
            for token in range(3):
                one = x[row, token]
                bias = 0 if layer.base_layer.bias is None else layer.base_layer.bias
                assert_equal(y[row, token], layer.base_layer.weight @ one + bias + SCALE * B @ (A @ one))
                to_b += SCALE * torch.outer(c[row, token], A @ one)
                to_a += SCALE * torch.outer(B.T @ c[row, token], one)
        got = {name: weight.grad for name, weight in layer.named_parameters() if weight.grad is not None}
        assert set(got) == {f"bank_down.t{many}", f"bank_up.t{many}"}
        assert_equal(got[f"bank_down.t{many}"], to_a)
        assert_equal(got[f"bank_up.t{many}"], to_b)


# --- the released code ------------------------------------------------------------------------------------------------


class Released:
    """What the released code computes for one question, over the tasks learnt; with its literals 0.5, 0.5, 0.1 and 1.0."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs
        self.image_anchor, self.text_anchor = [], []

    def see(self, features: Any, rows: Sequence[Sample], batches: Sequence[slice]) -> None:
        """A task's running means, batch by batch, from a count of zero."""
        image, text, count = 0.0, 0.0, 0
        for part in batches:
            f_v, f_ins = [], []
            for sample in rows[part]:
                one_v, one_ins = literal_features(features, sample, "released")
                f_v.append(one_v)
                f_ins.append(one_ins)
            image_sum, text_sum = image * count + sum(f_v), text * count + sum(f_ins)
            count += len(f_v)
            image, text = image_sum / count, text_sum / count
        self.image_anchor.append(image)
        self.text_anchor.append(text)

    def weights(self, image: Tensor, text: Tensor) -> list[float]:
        scores = []
        for m_v, m_ins in zip(self.image_anchor, self.text_anchor, strict=True):
            scores.append(math.exp((cosine(image, m_v) + cosine(text, m_ins)) / 2 / 0.1))
        return [score / sum(scores) for score in scores]

    def below(self, x: Tensor) -> Tensor:
        """One temporary A and one temporary B, each the sum over the tasks."""
        down, up = torch.zeros_like(self.pairs[0][0]), torch.zeros_like(self.pairs[0][1])
        for A, B in self.pairs:
            down += 1.0 * A
            up += 1.0 * B
        return up @ (down @ x) * SCALE

    def top(self, x: Tensor, weights: Sequence[float]) -> Tensor:
        y = torch.zeros(self.pairs[0][1].shape[0], dtype=torch.float64)
        for (A, B), weight in zip(self.pairs, weights, strict=True):
            y += B @ (A @ x) * SCALE * weight
        return y


@CASES
@given(SEEDS, SMALL, WIDTHS, SMALL, SMALL)
def test_the_released_variant_is_the_released_code_for_one_question(
    seed: int, layers: int, widths: list[int], rank: int, many: int
) -> None:
    """Its anchors are kept in fp32, so the top layer is compared with a route from those."""
    run = Taught(seed, HiDe.Options(variant="released"), layers, widths, rank, many)
    shown = [[one for one in seen if one.image is not None] or seen for seen in run.seen]
    question = next(one for one in samples(run.generator, 40, "asked") if one.image is not None)
    answering = run.answering()
    answering.prepare(batch([question]))
    image, text = literal_features(run.stage.features, question, "released")
    theirs = Released([])
    for seen in shown:
        theirs.see(run.stage.features, seen, [slice(0, 2), slice(2, 5)])
    if shown == run.seen:
        assert_equal(answering.route[0], torch.tensor(theirs.weights(image, text)), 1e-5)
    for layer in run.bank.layers:
        theirs.pairs = [run.pairs[layer.path, f"t{i}"] for i in range(many)]
        x = states(layer, run.generator, 1)
        y = layer(x)[0]
        for token in range(3):
            one = x[0, token]
            more = (
                theirs.top(one, answering.route[0].tolist())
                if layer.depth == layers - 1
                else theirs.below(one)
            )
            assert_equal(y[token], layer.base_layer(one) + more)


def test_fusing_sums_the_products_or_the_factors() -> None:
    """A_1 = (1 0), B_1 = 1, A_2 = (0 1), B_2 = 2: ΣBA = (1 2), (ΣB)(ΣA) = 3 · (1 1)."""
    A, B = torch.tensor([[1.0, 0], [0, 1]]).split(1), torch.tensor([[1.0], [2]]).split(1)

    (down, up), (sum_a, sum_b) = concatenated(A[0], A[1], B[0], B[1]), summed(A[0], A[1], B[0], B[1])

    assert (up @ down).tolist() == [[1, 2]]
    assert (sum_b @ sum_a).tolist() == [[3, 3]]


# --- the equations in a whole model -----------------------------------------------------------------------------------


SQUARES = tiny_benchmark(3, size=12)
DATA: Sequence[TaskData] = [
    replace(data, train=data.train[2 * i : 2 * i + 8])  # images have another mean in every task
    for i, data in enumerate(SQUARES.tasks)
]


def questions() -> list[Sample]:
    """Two tasks with images and a question without one; prompts of different lengths."""
    return [DATA[0].test[1], DATA[2].test[3], Sample("t", None, "Say one colour .", "red")]


def drawn(backbone: Backbone, o: HiDe.Options) -> tuple[nn.Module, dict[tuple[str, str], Pair]]:
    """What answers after three tasks whose experts and projectors were drawn, and each (A_i, B_i)."""
    method, generator = HiDe(o), draws(0)
    bank, pairs = method.build_model(backbone, recipe(2, SCALE)), {}
    for index, data in enumerate(DATA):
        task = Task(index, data.name, "", len(data.train))
        method.before_task(task)
        pairs |= learn_by_drawing(bank, generator, 0.3)
        method.after_task(task, [backbone.batch(list(data.train), answers=True)])
    for weight in backbone.projector.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return method.build_inference_model(tasks(3)).eval(), pairs


def assert_answers(folder: Path, o: HiDe.Options, roles: Sequence[str], **of_backbone: Any) -> nn.Module:
    """A mixed batch through the method equals each sample alone through weights that were changed by hand."""
    backbone = tiny_backbone(folder, **of_backbone)
    answering, pairs = drawn(backbone, o)
    asked = backbone.batch(questions(), answers=True)
    with torch.no_grad():
        logits = forward(answering, asked).logits
    means = [literal_means(backbone.features, data.train, o.variant) for data in DATA]
    for row, sample in enumerate(questions()):
        image, text = literal_features(backbone.features, sample, o.variant)
        d = literal_gate(image, text, [m_v for m_v, _ in means], [m_ins for _, m_ins in means], o)

        def update(name: str, d: list[float] = d) -> Tensor | None:
            role = next((role for place, role in enumerate(roles) if f".layers.{place}." in name), "")
            linear = [pairs[name, f"t{i}"] for i in range(3) if (name, f"t{i}") in pairs]
            return literal_update(linear, d, role, o) if linear else None

        alone = tiny_backbone(folder, **of_backbone)
        alone.projector.load_state_dict(backbone.projector.state_dict())
        expected = logits_by_hand(alone, sample, update)
        torch.testing.assert_close(logits[row][asked.answer_mask[row]], expected, rtol=0, atol=1e-3)
    return answering


ROWS_OF_TABLE_3 = {
    "HiDe-LLaVA": ({}, ("fused", "expanded")),
    "Merge (1-32)": ({"expanded": 0}, ("fused", "fused")),
    "Merge (1-31)": ({"expanded": 0, "bare": 1}, ("fused", "bare")),
    "Expand (1-32)": ({"expanded": "all"}, ("expanded", "expanded")),
    "Expand (1-31)": ({"expanded": "all", "bare": 1}, ("expanded", "bare")),
}


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("row", ROWS_OF_TABLE_3)
def test_the_rows_of_table_3_are_options(tiny_folder: Path, row: str, variant: str) -> None:
    options, roles = ROWS_OF_TABLE_3[row]

    answering = assert_answers(tiny_folder, HiDe.Options(variant=variant, **options), roles)

    assert isinstance(answering, ExpertBank) != ("expanded" in roles)  # where nothing expands nothing routes


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize(
    ("layers", "options", "roles"),
    [
        (1, {}, ["expanded"]),
        (1, {"expanded": 0}, ["fused"]),
        (1, {"bare": 1}, ["bare"]),
        (1, {"expanded": "all", "bare": 1}, ["bare"]),
        (3, {"expanded": 2}, ["fused", "expanded", "expanded"]),
        (3, {"bare": 1}, ["fused", "expanded", "bare"]),
        (3, {"expanded": 9}, ["expanded"] * 3),
    ],
    ids=str,
)
def test_any_number_of_layers_expands_on_a_decoder_of_any_depth(
    tmp_path: Path, variant: str, layers: int, options: dict[str, Any], roles: list[str]
) -> None:
    o = HiDe.Options(variant=variant, **options)

    assert_answers(tmp_path, o, roles, layers=layers)

    assert [literal_role(place, layers, o) for place in range(layers)] == roles


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_coefficient_acts_once_in_the_paper_and_twice_in_the_released_code(
    tiny_folder: Path, variant: str
) -> None:
    """Below the top layer ε Σ B_iA_i or (Σ ε B_i)(Σ ε A_i); the top layer's mix has none."""
    o = HiDe.Options(variant=variant, coefficient=0.5)

    answering = assert_answers(tiny_folder, o, ("fused", "expanded"))

    below = [layer for layer in answering.bank.layers if layer.depth == 0]
    factor = 0.5 if variant == "paper" else 0.25
    assert all(layer.bank_mix.factor == factor for layer in below)


def test_each_similarity_reaches_the_route_with_its_own_weight(tiny: Backbone) -> None:
    o = HiDe.Options(alpha=0.9, beta=0.1, temperature=0.05)
    answering, _ = drawn(tiny, o)
    answering.prepare(tiny.batch(questions(), answers=False))

    means = [literal_means(tiny.features, data.train, o.variant) for data in DATA]
    m_v, m_ins = [m for m, _ in means], [m for _, m in means]
    expected = [
        literal_gate(*literal_features(tiny.features, one, "paper"), m_v, m_ins, o) for one in questions()
    ]
    torch.testing.assert_close(answering.route, torch.tensor(expected), rtol=1e-3, atol=1e-5)


def test_the_released_text_is_before_the_projection_and_ends_before_the_answer(tiny: Backbone) -> None:
    """Where the template has its mark the prompt ends; a question's first line stays, with an image or without."""
    image = DATA[0].train[0].image
    prompts = ["What colour is it ?\nSay one .", "Where is the square ASSISTANT: left\nin short", "red"]
    kept = ["What colour is it ?\nSay one .", "Where is the square", "red"]
    method = HiDe(HiDe.Options(variant="released"))
    method.build_model(tiny, recipe(2))
    for shown in (image, None):
        rows = [Sample("t", shown, prompt, "red") for prompt in prompts]
        method.anchors.add([tiny.batch(rows, answers=True)])

    assert method.anchors["texts"].shape == (2, 16)
    for row in method.anchors["texts"]:
        torch.testing.assert_close(row, tiny.features.text_states(kept).mean(0))
