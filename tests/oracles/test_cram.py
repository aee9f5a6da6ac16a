"""CRAM against its equations and what its authors' code computes: loops over samples, tokens, experts and singular vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cl_zoo_cram import BUFFER, CRAM, route
from hypothesis import given
from hypothesis import strategies as st
from oracles.layers import (
    EXACT,
    SHAPES,
    Bare,
    Shape,
    Vectors,
    assert_equal,
    base,
    learning,
    stirred,
    through,
)
from oracles.shapes import CASES, SEEDS, cosine, draws, normal
from torch import Tensor

from cl_zoo.batches import Batch, forward
from cl_zoo.nn import BankLayer, strongest
from cl_zoo.tasks import Sample, Task

IMAGE = 7
"""The id of an image's token."""

TOGETHER: dict[str, Any] = {"alike": -1.0, "lead": 0.0}
"""Every task joins the group that it is nearest to, and the first one begins it."""


class Read(Vectors):
    """The encoder of the other oracles with states of texts."""

    text_width = 5

    def text_states(self, texts: Sequence[str]) -> Tensor:
        return self.texts(texts)[:, :5].flip(1)


def task(index: int) -> Task:
    return Task(index, f"task {index}", "", 8)


def samples(count: int, kind: object = "") -> list[Sample]:
    """Every third without an image."""
    return [
        Sample(str(i), None if i % 3 == 2 else Path(f"{kind} {i}.png"), f"question {kind} {i}", "yes")
        for i in range(count)
    ]


def taught(shape: Shape, tasks: int, **options: Any) -> CRAM:
    """The method while the expert of the last of some tasks learns, with experts and centroids at random."""
    backbone = Bare(shape)
    backbone.features = Read()
    backbone.model.config = SimpleNamespace(image_token_id=IMAGE)
    method = CRAM(CRAM.Options(**{"cap": shape.rank, **options}))
    model = method.build_model(backbone, shape.recipe()).train()
    for index in range(tasks):
        method.before_task(task(index))
        model.prepare(Batch(tuple(samples(4, index)), {}))
        stirred(method.bank, shape.seed)
        model.stepped(1, 1)
        stirred(method.bank, shape.seed + index + 1) if index == tasks - 1 else None
        if index < tasks - 1:
            method.after_task(task(index), [Batch(tuple(samples(4, index)), {})])
    with torch.no_grad():
        for name, centroid in model.centroids.items():
            centroid.copy_(normal(draws(len(name) + shape.seed), *centroid.shape))
    if model.phase:
        model.learn_expert()  # the spans of what was stirred
    return method


def asked(shape: Shape, x: Tensor) -> Batch:
    """Questions whose images have some tokens of the chain's input."""
    found = shape.batch(x, samples(shape.rows))
    ids = torch.zeros(x.shape[:2], dtype=torch.long)
    for row, sample in enumerate(found.samples):
        ids[row, : 1 + (shape.seed + row) % shape.tokens] = IMAGE if sample.image else 0
    return Batch(found.samples, {**found.inputs, "input_ids": ids})


def pi(model: Any, sample: Sample, depth: int, names: Sequence[str]) -> list[Tensor]:
    """(6) for one sample and one decoder layer."""
    image = model._backbone.features.images([sample.image])[0]
    powers = []
    for name in names:
        square = sum((a - b) ** 2 for a, b in zip(image, model.centroids[name][depth], strict=True))
        powers.append(torch.exp(-square / (2 * model._options.sigma**2)))
    return [power / sum(powers) for power in powers]


def group_of(method: CRAM, sample: Sample, seen: Sequence[Sequence[Sample]]) -> list[str]:
    """(4) for one sample: the tasks of the group whose prototype, over all samples of its tasks, is nearest."""
    model, best, found = method.model, -2.0, list[str]()
    for number in sorted(set(model.groups.numbers)):
        tasks = [i for i, one in enumerate(model.groups.numbers) if one == number]
        rows = [literal_z(one) for i in tasks for one in seen[i]]
        near = cosine(literal_z(sample), sum(rows) / len(rows))
        if near > best:
            best, found = near, [f"t{i}" for i in tasks]
    return found


def literal_z(sample: Sample) -> Tensor:
    """LN of the state of one text, without weights."""
    state = Read().text_states([sample.prompt])[0].double()
    mean = sum(state) / len(state)
    variance = sum((one - mean) ** 2 for one in state) / len(state)
    return torch.stack([(one - mean) / (variance + 1e-5) ** 0.5 for one in state])


def mixed(method: CRAM, batch: Batch, names: Sequence[Sequence[str]]) -> Any:
    """(7) for each token of each sample, whose own experts are named."""

    def layer_of(layer: BankLayer, x: Tensor) -> Tensor:
        rows = []
        for row, sample, own in zip(x, batch.samples, names, strict=True):
            weights = pi(method.model, sample, layer.depth, own)
            tokens = []
            for token in row:
                y = base(layer, token)
                for weight, name in zip(weights, own, strict=True):
                    y = y + layer.scale * weight * (layer.bank_up[name] @ (layer.bank_down[name] @ token))
                tokens.append(y)
            rows.append(torch.stack(tokens))
        return torch.stack(rows)

    return layer_of


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_in_the_second_phase(shape: Shape, tasks: int) -> None:
    """The centroid that learns has a gradient too, the older ones have none."""
    method, x = taught(shape, tasks, **TOGETHER), shape.states()
    batch = asked(shape, x)

    ours = forward(method.model, batch).logits
    names = [f"t{index}" for index in range(tasks)]
    theirs = through(method.bank, mixed(method, batch, [names] * shape.rows), x)

    tensors = {name: one for name, one in learning(method.model).items() if BUFFER not in name}
    assert {name.rpartition(".")[2] for name in tensors} == {names[-1]}
    assert_equal(ours, theirs, {"x": x, **tensors})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_penalty_and_its_gradients(shape: Shape) -> None:
    """(8) with P Pᵀ = B (BᵀB)⁻¹ Bᵀ of all older B, one token of the image after the other."""
    method, x = taught(shape, 3, **TOGETHER), shape.states()
    batch = asked(shape, x)
    forward(method.model, batch)
    ours = method.loss()["cram/orthogonality"]

    inputs, x_in = {}, x
    for layer in method.bank.layers:
        inputs[layer] = x_in
        x_in = torch.tanh(mixed(method, batch, [["t0", "t1", "t2"]] * shape.rows)(layer, x_in))
    found = []
    for row, sample in enumerate(batch.samples):
        places = [i for i, one in enumerate(batch.inputs["input_ids"][row]) if one == IMAGE]
        terms = []
        for layer in method.bank.layers:
            tokens = [inputs[layer][row, place] for place in places]
            h = sum(tokens) / len(tokens) if tokens else torch.zeros(layer.in_features).double()
            z = layer.scale * layer.bank_up["t2"] @ (layer.bank_down["t2"] @ h)
            older = torch.cat([layer.bank_up["t0"], layer.bank_up["t1"]], 1).detach()
            shadow = older @ (torch.linalg.pinv(older) @ z)
            terms.append(
                sum(pi(method.model, sample, layer.depth, ["t0", "t1", "t2"])[:2]) * (shadow @ shadow)
            )
        found.append(sum(terms) / len(terms))
    tensors = {name: one for name, one in learning(method.model).items() if BUFFER not in name}
    torch.testing.assert_close(ours, torch.stack(found).double(), rtol=1e-8, atol=1e-8)
    mine, other = (
        torch.autograd.grad(one.sum(), list(tensors.values()), retain_graph=True, materialize_grads=True)
        for one in (ours, torch.stack(found))
    )
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("alike", [-1.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_an_answer_is_mixed_within_the_group_that_the_text_is_nearest_to(shape: Shape, alike: float) -> None:
    """One group for all tasks, and one for each."""
    method = taught(shape, 3, alike=alike, lead=0.0 if alike < 0 else 2.0)
    seen = [samples(4, index) for index in range(3)]
    method.after_task(task(2), [Batch(tuple(seen[2]), {})])
    x, model = shape.states(), method.build_inference_model([task(index) for index in range(3)]).eval()
    batch = asked(shape, x)

    ours = forward(model, batch).logits
    names = [group_of(method, sample, seen) for sample in batch.samples]

    assert {len(own) for own in names} == ({3} if alike < 0 else {1})
    theirs = through(method.bank, mixed(method, batch, names), x)
    torch.testing.assert_close(ours, theirs, **EXACT)
    torch.testing.assert_close(model.route.sum(1), torch.ones(shape.rows).double())


def released_choice(sizes: Sequence[float], alpha: Sequence[float], o: CRAM.Options, cap: int) -> list[int]:
    """The places that the authors' code takes, step by step; `alpha` is empty where there are no older experts."""
    candidates = [j for j, size in enumerate(sizes) if size > o.allocation] or [0]
    candidates = candidates[: min(cap, len(sizes))]
    chosen = [j for j in candidates if not alpha or alpha[j] > o.novelty] or [candidates[0]]
    target = min(max(o.least, len(chosen)), cap, len(sizes))
    for j in range(min(cap, len(sizes))):
        if len(chosen) < target and j not in chosen:
            chosen.append(j)
    return chosen


@CASES
@given(
    SEEDS,
    st.lists(st.integers(2, 9), min_size=2, max_size=2),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.9]),
)
def test_the_buffer_becomes_its_strongest_new_directions(
    seed: int, widths: Sequence[int], rank: int, cap: int, older: int, novelty: float
) -> None:
    """(1) to (3) from the singular value decomposition of the whole s·BA; what their code gives is ours, and s once more."""
    d_in, d_out, generator, scale = *widths, draws(seed), 2.0
    A, B = normal(generator, rank, d_in), normal(generator, d_out, rank)
    known = [normal(generator, 1, d_in) for _ in range(older)]
    o = CRAM.Options(allocation=1.5, novelty=novelty, least=min(2, cap))

    down, up = strongest(scale * A, B, above=1.5, known=known, new=novelty, ranks=(min(2, cap), cap))

    U, S, V = torch.linalg.svd(scale * B @ A)
    many = min(rank, d_in, d_out)
    inside = (
        torch.cat(known).T @ torch.linalg.pinv(torch.cat(known).T)
        if known
        else torch.zeros(d_in, d_in).double()
    )
    outside = [V[j] - inside @ V[j] for j in range(many)]
    alpha = [float(one.norm()) for one in outside] if known else []
    chosen = released_choice(S[:many].tolist(), alpha, o, cap)
    parts = [V[j] if not known or alpha[j] <= 1e-6 else outside[j] / alpha[j] for j in chosen]
    literal = sum(S[j] * torch.outer(U[:, j], v) for j, v in zip(chosen, parts, strict=True))
    torch.testing.assert_close(up @ down, literal, rtol=1e-6, atol=1e-6)
    sizes = sorted(float(S[j]) for j in chosen)
    torch.testing.assert_close(
        down.square().sum(1).sort().values, torch.tensor(sizes).double(), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_the_expert_begins_as_what_the_buffer_was(shape: Shape) -> None:
    """Where every direction fits and none is left out; the released scale, which counts twice, would be s times as much."""
    method, x = taught(shape, 0, allocation=0.0, cap=shape.rank), shape.states()
    method.before_task(task(0))
    stirred(method.bank, shape.seed)
    batch = asked(shape, x)
    before = forward(method.model, batch).logits
    method.model.stepped(1, 1)

    torch.testing.assert_close(forward(method.model, batch).logits, before, rtol=1e-6, atol=1e-8)


def literal_home(z: Tensor, prototypes: Sequence[Tensor], lead: float, alike: float) -> int:
    """(5), as their code decides; the number of groups where a new one begins."""
    near = sorted(((cosine(z, one), -place) for place, one in enumerate(prototypes)), reverse=True)
    if not near:
        return 0
    if len(near) == 1:
        return 0 if near[0][0] > alike else 1
    return -near[0][1] if near[0][0] - near[1][0] > lead else len(near)


@CASES
@given(SEEDS, st.floats(0, 0.6), st.floats(-0.5, 0.9))
def test_tasks_join_groups_as_their_code_decides(seed: int, lead: float, alike: float) -> None:
    """Six tasks one after the other, with prototypes over all samples before."""
    method = taught(SHAPES[0], 0)
    groups, seen, members = method.model.groups, list[list[Tensor]](), list[list[int]]()
    for index in range(6):
        rows = samples(1 + (seed + index) % 3, f"{seed} {index}")
        z = [literal_z(one) for one in rows]
        prototypes = [
            sum(one for i in own for one in seen[i]) / sum(len(seen[i]) for i in own) for own in members
        ]
        place = literal_home(sum(z) / len(z), prototypes, lead, alike)
        assert groups.join(groups.look(rows).mean(0), lead=lead, alike=alike) == place
        groups.add([Batch(tuple(rows), {})])
        seen.append(z)
        members += [[]] * (place == len(members))
        members[place] = [*members[place], index]

    assert [groups.mates(i) for i in range(6)] == [
        [j for j in own if j != i] for i in range(6) for own in members if i in own
    ]


def test_the_route_by_hand() -> None:
    """Squares 0 and 8 with σ = 2: 1 : e⁻¹; an expert of another group has nothing."""
    images = torch.tensor([[1.0, 1.0]])
    centroids = torch.tensor([[[1.0, 1.0], [3.0, 3.0]]])
    e = math.exp(-1)

    torch.testing.assert_close(route(images, centroids, 2.0), torch.tensor([[[1, e]]]) / (1 + e))
    own = torch.tensor([[False, True]])
    torch.testing.assert_close(route(images, centroids, 2.0, own), torch.tensor([[[0.0, 1.0]]]))
