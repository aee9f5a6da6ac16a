"""DISCO: what learns, what routes, what comes back from a state. Its equations: `tests/oracles/test_disco.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cl_zoo_disco import DISCO

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward
from cl_zoo.errors import BackboneError
from cl_zoo.nn.anchors import Routed
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample, Task
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
    bad: list[dict[str, Any]] = [{"temperature": 0}, {"modality": "sound"}, {"alpha": 1}]
    for options in bad:
        with pytest.raises(ValueError, match="validation error"):
            DISCO.Options(**options)
