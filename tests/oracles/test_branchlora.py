"""BranchLoRA, of which no code was released, against its paper: loops over samples, tokens, branches and tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cl_zoo_branchlora import BranchLoRA, alignment
from oracles.layers import (
    EXACT,
    SHAPES,
    Bare,
    Literal,
    Shape,
    assert_equal,
    base,
    learning,
    softmax,
    stirred,
    through,
)
from torch import Tensor

from cl_zoo.batches import forward
from cl_zoo.nn import BankLayer, gate_sums, top_gates
from cl_zoo.tasks import Sample, Task

ABLATION: list[dict[str, Any]] = [
    {},
    {"renormalise": False},
    {"sparse": False},
    {"shared": False},
    {"shared": False, "sparse": False, "task_router": False},
    {"task_router": False},
]
"""The paper's rows, and the gates that it may mean."""


def task(index: int) -> Task:
    return Task(index, f"task {index}", "", 8)


def placed(shape: Shape, tasks: int = 1, **options: Any) -> BranchLoRA:
    """The method while the last of some tasks is learnt, with everything at random; k is another for each shape."""
    k = 1 + shape.seed % shape.experts
    method = BranchLoRA(
        BranchLoRA.Options(**{"experts": shape.experts, "top_k": k, "samples": 999, **options})
    )
    model = method.build_model(Bare(shape), shape.recipe())
    for index in range(tasks):
        method.before_task(task(index))
    stirred(method.bank, shape.seed)
    with torch.no_grad():
        for keys in (model.image_keys, model.text_keys):
            for key in keys.values():
                key.normal_()
    return method


def gates(router: Tensor, first: Tensor, options: BranchLoRA.Options) -> list[Tensor]:
    """p = softmax(W_r x₀), of which the k largest stay; they sum to one, or stay as they are."""
    p = softmax([row @ first for row in router])
    if not options.sparse:
        return p
    best = sorted(range(len(p)), key=lambda i: -float(p[i].detach()))[: options.top_k]
    whole = sum(p[i] for i in best) if options.renormalise else 1.0
    return [p[i] / whole if i in best else torch.zeros_like(p[i]) for i in range(len(p))]


def paper(method: BranchLoRA, scale: float, first: Sequence[int], routers: Sequence[str]) -> Literal:
    """y = W x + s · Σ_{i ∈ top-k} g_i B_i A x for each token of a row, g from the row's first real one."""

    def layer_of(layer: BankLayer, x: Tensor) -> Tensor:
        rows = []
        for row, place, name in zip(x, first, routers, strict=True):
            g = gates(layer.bank_mix.routers[name], row[place], method.options)
            tokens = []
            for token in row:
                y = base(layer, token)
                for i, gate in enumerate(g):
                    A = layer.bank_down["e0" if method.options.shared else f"e{i}"]
                    y = y + scale * gate * (layer.bank_up[f"e{i}"] @ (A @ token))
                tokens.append(y)
            rows.append(torch.stack(tokens))
        return torch.stack(rows)

    return layer_of


def samples(count: int) -> list[Sample]:
    """Every third without an image."""
    return [
        Sample(str(i), None if i % 3 == 2 else Path(f"{i}.png"), f"question {i}", "yes") for i in range(count)
    ]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Σ a_j b_j / √(Σ a_j² Σ b_j²)."""
    product, of_a, of_b = (sum(x * y for x, y in zip(u, v, strict=True)) for u, v in ((a, b), (a, a), (b, b)))
    return product / (of_a * of_b) ** 0.5


@pytest.mark.parametrize("options", ABLATION, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_in_learning(shape: Shape, options: dict[str, Any]) -> None:
    """With left padding: the first real token decides, wherever it stands."""
    method, x = placed(shape, **options), shape.states()
    routers = ["t0" if method.options.task_router else "every"] * shape.rows

    ours = forward(method.model.train(), shape.batch(x)).logits
    theirs = through(method.bank, paper(method, shape.scale, shape.padding, routers), x)

    tensors = {name: one for name, one in learning(method.model).items() if "_keys." not in name}
    assert sum(".routers." in name for name in tensors) == len(method.bank.layers)
    assert_equal(ours, theirs, {"x": x, **tensors})


@pytest.mark.parametrize("options", [{}, {"sparse": False}, {"shared": False}], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_answer_comes_from_the_router_of_the_task_with_the_nearest_keys(
    shape: Shape, options: dict[str, Any]
) -> None:
    """t = argmax_t of cos(e_img, k_img^t) + cos(e_txt, k_txt^t); without an image the text alone."""
    method, x = placed(shape, tasks=3, **options), shape.states()
    model = method.build_inference_model([task(index) for index in range(3)]).eval()
    batch = shape.batch(x, samples(shape.rows))
    features = model._backbone.features

    ours = forward(model, batch).logits

    chosen = []
    for sample in batch.samples:
        scores = []
        for name in ("t0", "t1", "t2"):
            score = cosine(features.texts([sample.prompt])[0], model.text_keys[name])
            if sample.image is not None:
                score = score + cosine(features.images([sample.image])[0], model.image_keys[name])
            scores.append(float(score.detach()))
        chosen.append(scores.index(max(scores)))
    theirs = through(method.bank, paper(method, shape.scale, shape.padding, [f"t{one}" for one in chosen]), x)
    assert model.route.tolist() == [[float(one == place) for place in range(3)] for one in chosen]
    torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_beams_follow_the_choice_of_their_sample(shape: Shape) -> None:
    """Each sample stands in the batch as often as it has beams, and what was decided for it holds for all of them."""
    method, x = placed(shape, tasks=2), shape.states()
    model = method.build_inference_model([task(0), task(1)]).eval()
    batch = shape.batch(x, samples(shape.rows))

    ours = []
    for beams in (1, 3):
        model.prepare(batch)
        ours.append(model(x=x.repeat_interleave(beams, 0)).logits)

    routers = [f"t{chosen}" for chosen in model.route.argmax(1).tolist()]
    theirs = through(method.bank, paper(method, shape.scale, shape.padding, routers), x)
    torch.testing.assert_close(ours[0], theirs, **EXACT)
    torch.testing.assert_close(ours[1], theirs.repeat_interleave(3, 0), **EXACT)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_alignment_and_what_it_says_to_the_keys(shape: Shape) -> None:
    """Σ (1 − cos(e_img, k_img)) + (1 − cos(e_txt, k_txt)), weighed by λ; without an image the latter alone."""
    method = placed(shape, tasks=2, strength=0.5)
    model, features = method.model, method.model._backbone.features
    rows = samples(5)
    batch = shape.batch(shape.states(), rows)

    ours = method.loss(batch)["branchlora/align"]

    image_key, text_key = model.image_keys["t1"], model.text_keys["t1"]
    theirs = []
    for sample in rows:
        term = 1 - cosine(features.texts([sample.prompt])[0], text_key)
        if sample.image is not None:
            term = term + 1 - cosine(features.images([sample.image])[0], image_key)
        theirs.append(0.5 * term)
    keys = {name: one for name, one in learning(model).items() if "_keys." in name}
    assert set(keys) == {"image_keys.t1", "text_keys.t1"}
    assert_equal(ours, torch.stack(theirs), learning(model))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_busiest_branches_of_a_task_are_frozen_layer_by_layer(shape: Shape) -> None:
    """Those with the largest mean p over its data, p before selection, each sample looked at alone."""
    method = placed(shape)
    batches = []
    for more in range(2):
        x = torch.randn_like(shape.states()) + more
        batches.append(shape.batch(x))
    used = torch.zeros(len(method.bank.layers), shape.experts, dtype=torch.float64)
    with torch.no_grad():
        for batch in batches:
            for row, place in zip(batch.inputs["x"], shape.padding, strict=True):
                state = row[None, place:]
                for line, layer in zip(used, method.bank.layers, strict=True):
                    p = softmax([w @ state[0, 0] for w in layer.bank_mix.routers["t0"]])
                    line += torch.stack(p)
                    literal = paper(method, shape.scale, [0], ["t0"])
                    state = torch.tanh(literal(layer, state))

    found, _ = gate_sums(method.model, method.model.mixes, batches, 999)
    method.after_task(batches)
    method.before_task(task(1))

    torch.testing.assert_close(found.double(), used, rtol=0, atol=1e-6)  # the sums are kept in fp32
    for line, layer in zip(used, method.bank.layers, strict=True):
        busiest = sorted(range(shape.experts), key=lambda i: -float(line[i]))[: method.options.top_k]
        frozen = {i for i in range(shape.experts) if not layer.bank_up[f"e{i}"].requires_grad}
        assert frozen == set(busiest)
        assert layer.bank_down["e0"].requires_grad
        assert [name for name, one in layer.bank_mix.routers.items() if one.requires_grad] == ["t1"]


def test_equal_branches_are_one_lora_whatever_is_chosen() -> None:
    """Σ g = 1, so s Σ g_i B A = s B A."""
    shape = SHAPES[0]
    method, x = placed(shape), shape.states()
    for layer in method.bank.layers:
        for up in layer.bank_up.values():
            up.data.copy_(layer.bank_up["e0"].data)

    def lora(layer: BankLayer, x: Tensor) -> Tensor:
        return base(layer, x) + shape.scale * x @ (layer.bank_up["e0"] @ layer.bank_down["e0"]).T

    ours = forward(method.model, shape.batch(x)).logits
    torch.testing.assert_close(ours, through(method.bank, lora, x), **EXACT)


@pytest.mark.parametrize("renormalise", [True, False])
def test_gates_on_vectors_at_random(renormalise: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for count in range(1, 7):
        for k in range(1, count + 1):
            options = BranchLoRA.Options(experts=count, top_k=k, renormalise=renormalise)
            router, first = (torch.randn(*size, generator=generator).double() for size in ((count, 4), (4,)))

            ours = top_gates(torch.softmax(router @ first, 0), k, renormalise=renormalise)

            torch.testing.assert_close(ours, torch.stack(gates(router, first, options)), **EXACT)


def test_a_key_is_pulled_towards_the_features_and_its_length_has_no_part_in_it() -> None:
    """The gradient of 1 − cos(e, k) on k stands at a right angle to k."""
    generator = torch.Generator().manual_seed(0)
    image, text, k_img, k_txt = (torch.randn(1, 6, generator=generator).double() for _ in range(4))
    keys = [one[0].requires_grad_() for one in (k_img, k_txt)]

    alignment(image, text, *keys).sum().backward()

    for key, feature in zip(keys, (image, text), strict=True):
        assert float(key.grad @ key.detach()) == pytest.approx(0, abs=1e-12)
        assert float(key.grad @ feature[0]) < 0
