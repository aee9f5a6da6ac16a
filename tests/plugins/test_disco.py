"""DISCO: what learns, what routes, what comes back from a state. Its equations: `tests/oracles/test_disco.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cl_zoo_disco import DISCO
from torch import nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward
from cl_zoo.errors import BackboneError
from cl_zoo.nn.anchors import Routed
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample, Task, TaskData
from cl_zoo.testing import tiny_backbone, tiny_benchmark

DATA = [
    replace(data, train=data.train[place : place + 3 + place])  # the images of no two tasks have one mean
    for place, data in enumerate(tiny_benchmark(3, size=8).tasks)
]
TASKS = [Task(place, data.name, "", len(data.train)) for place, data in enumerate(DATA)]
RECIPE = build_recipe({"adapter.rank": 2, "adapter.dropout": 0})


def questions() -> list[Sample]:
    """Two tasks with images and a question without one; prompts of different lengths."""
    return [DATA[0].test[1], DATA[2].test[3], Sample("t", None, "Say one colour .", "red")]


def drawn(backbone: Backbone, tasks: list[Task] = TASKS, **options: Any) -> tuple[DISCO, Routed]:
    """The method after some tasks whose experts were drawn instead of trained, and what answers."""
    method, generator = DISCO(DISCO.Options(**options)), torch.Generator().manual_seed(0)
    bank = method.build_model(backbone, RECIPE)
    for task in tasks:
        method.before_task(task)
        for weight in bank.parameters():
            if weight.requires_grad:
                weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
        method.after_task([backbone.batch(list(DATA[task.index].train), answers=True)])
    return method, method.build_inference_model(tasks).eval()


def test_text_alone_routes_unless_images_are_asked_for(tiny: Backbone) -> None:
    """The same prompt under two images has one route by text, two by image; without an image it is even."""
    first, second = (DATA[0].test[place].image for place in (0, 1))
    samples = [Sample("t", image, "What colour is it ?") for image in (first, second, None)]
    method, answering = drawn(tiny)
    by_text = answering.anchors(samples)
    assert set(method.anchors.keep()) == {"texts"}
    assert torch.equal(by_text[0], by_text[1])
    assert torch.equal(by_text[0], by_text[2])

    _, answering = drawn(
        tiny_backbone(Path(str(tiny.feature_name)).parent), modality="image", temperature=1e-3
    )
    by_image = answering.anchors(samples)
    assert not torch.allclose(by_image[0], by_image[1])
    torch.testing.assert_close(by_image[2], torch.full((3,), 1 / 3))


def test_after_one_task_it_answers_as_that_tasks_expert_alone(tiny: Backbone) -> None:
    method, answering = drawn(tiny, TASKS[:1])
    batch = tiny.batch(questions(), answers=True)
    with torch.no_grad():
        routed = forward(answering, batch).logits
        method.bank.mix(lambda _: None)
        method.bank.use(["t0"])
        torch.testing.assert_close(routed, forward(method.bank, batch).logits)


def test_each_task_trains_a_fresh_expert_alone_on_the_frozen_model(tiny: Backbone) -> None:
    method, _ = drawn(tiny, TASKS[:1])
    first = {name: weight.clone() for name, weight in method.bank.named_parameters() if "bank_" in name}
    method.before_task(TASKS[1])

    for layer in method.bank.layers:
        assert layer.experts == ["t1"]
        assert layer.bank_up["t1"].abs().sum() == 0
        learning = {name for name, weight in layer.named_parameters() if weight.requires_grad}
        assert learning == {"bank_down.t1", "bank_up.t1"}
    assert all(torch.equal(method.bank.get_parameter(name), weight) for name, weight in first.items())


# --- variant=released -----------------------------------------------------------------------------------------------


def shared(backbone: Backbone, data: list[TaskData], **options: Any) -> tuple[DISCO, nn.Module, list[Task]]:
    """The released variant after these tasks, whose experts were drawn instead of trained."""
    method = DISCO(DISCO.Options(variant="released", **options))
    model = method.build_model(backbone, RECIPE)
    tasks = [Task(place, one.name, "", len(one.train)) for place, one in enumerate(data)]
    torch.manual_seed(0)
    for task, one in zip(tasks, data, strict=True):
        method.before_task(task)
        for layer in method.bank.layers:
            nn.init.normal_(layer.bank_up[f"t{task.index}"], std=0.3)
        method.after_task([backbone.batch(list(one.train), answers=True)])
    return method, model, tasks


def test_tasks_that_read_alike_share_an_expert_and_its_anchor(tiny: Backbone) -> None:
    """The texts' cosines are 0.92 between colour and side, 0.65 and 0.78 to the description: at 0.9 the second task learns in the
    first one's expert, the third in its own, the fourth, colours again, in the first one's."""
    method, _, tasks = shared(tiny, [*DATA, DATA[0]])

    assert method.bank.experts == ["t0", "t2"]
    colours, sides, scenes = (
        [tiny.features.text_states([one.prompt])[0] for one in data.train] for data in DATA
    )
    joint = torch.stack([*colours, *sides, *colours]).mean(0)
    torch.testing.assert_close(method.anchors["texts"], torch.stack([joint, torch.stack(scenes).mean(0)]))
    assert method.counts["texts"].tolist() == [2 * len(colours) + len(sides), len(scenes)]

    answering = method.build_inference_model(tasks).eval()
    answering.prepare(tiny.batch([DATA[2].test[0]], answers=False))
    route = answering.route
    assert route is not None
    expected = (
        torch.cosine_similarity(scenes[0][None], torch.stack([joint, torch.stack(scenes).mean(0)]))
        .div(0.05)
        .softmax(0)
    )
    torch.testing.assert_close(route[0, [0, 2]], expected, rtol=1e-3, atol=1e-5)
    assert route[0, [1, 3]].tolist() == [0, 0]  # as many columns as tasks


def test_every_sample_trains_the_expert_above_the_threshold_or_the_new_one(tiny: Backbone) -> None:
    """In a batch of a side and a description, after colours: the side goes through the old expert, the description through the
    new one, and each gradient is that of its sample alone."""
    method, model, _ = shared(tiny, DATA[:1])
    method.before_task(Task(1, "mixed", "", 2))
    for layer in method.bank.layers:
        nn.init.normal_(layer.bank_up["t1"], std=0.3)
    model.train()
    samples = [DATA[1].train[0], DATA[2].train[0]]

    assert model.owners(samples).tolist() == [[1, 0], [0, 1]]
    batch = tiny.batch(samples, answers=True)
    logits = forward(model, batch).logits
    method.bank.mix(lambda _: None)
    for row, name in enumerate(("t0", "t1")):
        method.bank.use([name], trainable=["t0", "t1"])
        alone = forward(method.bank, tiny.batch(samples[row : row + 1], answers=True)).logits[0]
        torch.testing.assert_close(logits[row][batch.answer_mask[row]], alone, rtol=0, atol=1e-3)

    logits[0].sum().backward()
    for layer in method.bank.layers:
        assert not layer.bank_up["t1"].grad.any()
    assert any(layer.bank_up["t0"].grad.any() for layer in method.bank.layers)


def test_at_a_threshold_of_one_every_task_has_its_own_expert_as_in_the_paper(tiny_folder: Path) -> None:
    """Cosines reach no more than one; anchors and answers are the other variant's."""
    method, _, tasks = shared(tiny_backbone(tiny_folder), DATA, threshold=1)
    backbone, other = tiny_backbone(tiny_folder), DISCO(DISCO.Options())
    other.build_model(backbone, RECIPE)
    for data in DATA:
        other.after_task([backbone.batch(list(data.train), answers=True)])

    assert method.bank.experts == ["t0", "t1", "t2"]
    torch.testing.assert_close(method.anchors["texts"], other.anchors["texts"])
    assert type(method.build_inference_model(tasks)) is Routed


def test_the_released_variant_goes_on_from_its_state(tiny_folder: Path) -> None:
    method, model, _ = shared(tiny_backbone(tiny_folder), DATA[:2])
    backbone, again = tiny_backbone(tiny_folder), DISCO(DISCO.Options(variant="released"))
    other = again.build_model(backbone, RECIPE)
    again.load_state_dict(method.state_dict())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            other.get_parameter(name).copy_(weight)

    for one, place in ((method, method.bank), (again, again.bank)):
        one.before_task(Task(2, "description", "", 8))
        assert place.experts == ["t0", "t2"]
    assert again.counts["texts"].tolist() == method.counts["texts"].tolist()
    assert again.model.owners(questions()).tolist() == method.model.owners(questions()).tolist()


def test_it_goes_on_from_its_state(tiny_folder: Path) -> None:
    method, answering = drawn(tiny_backbone(tiny_folder))
    backbone, again = tiny_backbone(tiny_folder), DISCO(DISCO.Options())
    bank = again.build_model(backbone, RECIPE)
    again.load_state_dict(method.state_dict())
    with torch.no_grad():
        for name, weight in method.bank.named_parameters():
            bank.get_parameter(name).copy_(weight)
        batch = backbone.batch(questions(), answers=True)
        resumed = again.build_inference_model(TASKS).eval()
        torch.testing.assert_close(forward(resumed, batch).logits, forward(answering, batch).logits)
    again.before_task(Task(3, "", "", 8))
    assert bank.experts == ["t0", "t1", "t2", "t3"]


def test_it_needs_a_feature_encoder(tiny: Backbone) -> None:
    tiny.feature_name = None
    with pytest.raises(BackboneError, match="--features"):
        DISCO(DISCO.Options()).build_model(tiny, RECIPE)


def test_options_say_what_is_out_of_range() -> None:
    bad: list[dict[str, Any]] = [
        {"temperature": 0},
        {"threshold": 2},
        {"variant": "other"},
        {"modality": "sound"},
        {"alpha": 1},
    ]
    for options in bad:
        with pytest.raises(ValueError, match="validation error"):
            DISCO.Options(**options)
