"""ModalPrompt: what learns, what stays, what is kept. Prototypes, guidance, choice and losses: `tests/oracles/test_modalprompt.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cl_zoo_modalprompt import Guided, ModalPrompt

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import answer_losses, forward
from cl_zoo.tasks import Sample, Task
from cl_zoo.testing import tiny_benchmark

TRAIN = tiny_benchmark().tasks[0].train
BLIND = Sample("t", None, "Say one colour .", "red")
LENGTH, WIDTH, FEATURES = 3, 32, 8


def task(index: int) -> Task:
    return Task(index, f"task {index}", "", 12)


def built(backbone: Backbone, done: int = 0, **options: Any) -> tuple[ModalPrompt, Guided]:
    """After `done` tasks, none of which was trained."""
    torch.manual_seed(0)
    method = ModalPrompt(ModalPrompt.Options(**{"length": LENGTH, **options}))
    model = method.build_model(backbone)
    for index in range(done):
        method.before_task(task(index))
        method.after_task(())
    return method, model


def test_the_losses_pull_tokens_and_network_towards_the_features(tiny: Backbone) -> None:
    method, model = built(tiny, 2)
    method.before_task(task(2))
    model.train().prepare(tiny.batch([*TRAIN[:3], BLIND], answers=True))
    before = sum(term.sum() for term in method.loss().values())

    before.backward()  # type: ignore[union-attr]

    learning = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert learning == {
        "prompts.t2",
        *(f"network.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")),
    }
    for name in learning:
        weight = model.get_parameter(name)
        weight.data -= 1e-3 * weight.grad  # type: ignore[operator]
    assert sum(term.sum() for term in method.loss().values()) < before


# --- choice ---------------------------------------------------------------------------------------------------------


def test_in_evaluation_mode_the_task_being_learnt_is_one_among_all(tiny: Backbone) -> None:
    """An older prototype lies right at the image, so its prompt is read and not the current one."""
    method, model = built(tiny, 2, transfer=1, balance=1.0)
    model.prototypes["t0"].data = tiny.features.images([TRAIN[0].image])[0]
    method.before_task(task(2))
    batch = tiny.batch(TRAIN[:1], answers=True)

    model.eval().prepare(batch)

    assert model.chosen.tolist() == [[0]]
    assert model.route is not None
    assert model.route.tolist() == [[1, 0, 0]]
    model.train().prepare(batch)
    assert model.chosen.tolist() == [[2]]


# --- what learns and what is kept -----------------------------------------------------------------------------------


def test_a_task_trains_its_prompt_its_network_and_the_projector(tiny: Backbone) -> None:
    """Older prompts are read, frozen, and get no gradient."""
    method, model = built(tiny, 2)
    tiny.train_projector(True)
    method.before_task(task(2))
    batch = tiny.batch(TRAIN[:4], answers=True)

    outputs = forward(model.train(), batch)
    (answer_losses(outputs, batch).sum() + sum(term.sum() for term in method.loss().values())).backward()

    learning = {name for name, weight in model.named_parameters() if weight.grad is not None}
    mine = {name for name in learning if not name.startswith("model.")}
    assert mine == {
        "prompts.t2",
        *(f"network.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")),
    }
    assert all("multi_modal_projector" in name for name in learning - mine)
    assert set(model.chosen.flatten().tolist()) == {0, 1, 2}
    assert learning == {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_the_task_loss_reaches_the_current_prompt_through_the_model(tiny: Backbone) -> None:
    method, model = built(tiny, 1)
    method.before_task(task(1))
    batch = tiny.batch(TRAIN[:2], answers=True)

    answer_losses(forward(model.train(), batch), batch).sum().backward()

    assert model.prompts["t1"].grad is not None
    assert (model.prompts["t1"].grad.abs().sum(1) > 0).all()
    assert model.prompts["t0"].grad is None


def test_new_prompts_are_copies_of_token_embeddings(tiny: Backbone) -> None:
    method, model = built(tiny, 1)
    method.before_task(task(1))
    table = tiny.model.get_input_embeddings().weight

    for prompt in model.prompts.values():
        assert prompt.shape == (LENGTH, WIDTH)
        assert all(any(torch.equal(row, known) for known in table) for row in prompt)
    assert not torch.equal(model.prompts["t0"], model.prompts["t1"])


def test_after_its_task_a_prototype_stands_for_the_network(tiny: Backbone) -> None:
    """Prompts grow by L width and prototypes by d per task; the network is there only while its task is learnt."""
    method, model = built(tiny, 2)

    def sizes() -> dict[str, int]:
        named = dict(model.named_parameters())
        return {
            part: sum(named[name].numel() for name in names) for part, names in method.parts(model).items()
        }

    assert sizes() == {"prompts": 2 * LENGTH * WIDTH, "keys": 2 * FEATURES}
    method.before_task(task(2))
    network = WIDTH * WIDTH + WIDTH + WIDTH * FEATURES + FEATURES
    assert sizes() == {"prompts": 3 * LENGTH * WIDTH, "keys": 2 * FEATURES + network}
    method.after_task(())
    assert sizes() == {"prompts": 3 * LENGTH * WIDTH, "keys": 3 * FEATURES}
    assert model.active() == {"prompts": 3 * LENGTH * WIDTH}


def test_an_answer_reads_no_more_than_k_prompts(tiny: Backbone) -> None:
    _, model = built(tiny, 5, transfer=2)

    assert model.active() == {"prompts": 2 * LENGTH * WIDTH}


def test_its_tables_come_back(tiny: Backbone) -> None:
    method, model = built(tiny, 3)
    again, other = built(tiny)

    again.load_state_dict(method.state_dict())

    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    assert {name: weight.shape for name, weight in other.state_dict().items()} == shapes
    assert list(other.prompts) == list(other.prototypes) == ["t0", "t1", "t2"]
    again.before_task(task(3))
    assert [name for name, prompt in other.prompts.items() if prompt.requires_grad] == ["t3"]
    assert not any(prototype.requires_grad for prototype in other.prototypes.values())


def test_each_samples_answer_hangs_on_its_own_prompts(tiny: Backbone) -> None:
    """With prototypes at two samples' own features, changing the prompt of one leaves the other's logits alone."""
    _, model = built(tiny, 2, transfer=1, balance=1.0)
    model.eval()
    for name, sample in zip(("t0", "t1"), TRAIN[:2], strict=True):
        model.prototypes[name].data = tiny.features.images([sample.image])[0]
    batch = tiny.batch(TRAIN[:2], answers=True)
    before = forward(model, batch).logits
    model.prompts["t1"].data += 1

    after = forward(model, batch).logits

    assert model.chosen.tolist() == [[0], [1]]
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False]


def test_options_say_what_is_out_of_range() -> None:
    bad: list[dict[str, Any]] = [{"balance": 1.1}, {"length": 0}, {"transfer": 0}, {"prefix_len": 10}]
    for options in bad:
        with pytest.raises(ValueError, match="validation error"):
            ModalPrompt.Options(**options)
