"""The baselines: nothing trained, one expert trained on, everything trained at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Watched, learnt
from torch import Tensor

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.engine.answering import answers
from cl_zoo.engine.learning import Learner
from cl_zoo.engine.run import Run
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.testing import tiny_backbone, tiny_benchmark

BENCHMARK = tiny_benchmark(2, size=10)


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Task and samples of every optimiser step taken."""
    taken: list[tuple[str, list[str]]] = []
    real = Learner.step

    def step(self: Learner, indices: Sequence[int], following: Sequence[int]) -> dict[str, Tensor]:
        taken.append((self.task.name, [f"{self.pool[i].prompt} {self.pool[i].id}" for i in indices]))
        return real(self, indices, following)

    monkeypatch.setattr(Learner, "step", step)
    return taken


def trained(text: str, backbone: Backbone, root: Path, **recipe: Any) -> Run:
    return learnt(
        Run, text, BENCHMARK.tasks, backbone, build_recipe(BENCHMARK.recipe, recipe), root, cells="lower"
    )


def cells(run: Run) -> set[str]:
    return {file.stem for file in (run.folder.partial / "answers").iterdir()}


def test_zero_shot_is_the_untouched_backbone(tiny_folder: Path, tmp_path: Path, lessons: list[Any]) -> None:
    run = trained("zeroshot", tiny_backbone(tiny_folder), tmp_path)

    untouched = tiny_backbone(tiny_folder)
    assert run.model is run.backbone.model
    for (name, weight), other in zip(run.model.named_parameters(), untouched.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    for place, task in enumerate(BENCHMARK.tasks):
        lines = (run.folder.partial / f"answers/0-{place}.jsonl").read_text().splitlines()
        by_hand = answers(untouched.model, untouched, list(task.test), max_new_tokens=4, batch=64)
        said = [{**answer, "place": place} for place, answer in enumerate(by_hand)]
        assert [json.loads(line) for line in lines] == said
    assert cells(run) == {"0-0", "0-1"}
    assert not lessons
    assert not run.ledger.tasks


def test_fine_tuning_trains_one_expert_on_task_after_task(
    tiny: Backbone, tmp_path: Path, lessons: list[tuple[str, list[str]]]
) -> None:
    run = trained("finetune", tiny, tmp_path)

    assert [task for task, _ in lessons] == ["colour"] * 3 + ["side"] * 3
    assert cells(run) == {"0-0", "1-0", "1-1"}
    assert run.model.experts == ["shared"]
    learnt = {name for name, weight in run.model.named_parameters() if weight.requires_grad}
    assert all("bank_" in name or "projector" in name for name in learnt)


def test_the_second_task_begins_where_the_first_one_ended(tiny_folder: Path, tmp_path: Path) -> None:
    """At rate zero nothing of the second task changes what the first one taught."""

    class Frozen(Watched):
        def _learn(self, lesson: Any) -> None:
            if lesson.task.index:
                self.recipe = build_recipe(self.recipe.model_dump(), {"lr": {"adapters": 0, "projector": 0}})
            super()._learn(lesson)

    recipe = build_recipe(BENCHMARK.recipe)
    run = learnt(Frozen, "finetune", BENCHMARK.tasks, tiny_backbone(tiny_folder), recipe, tmp_path)

    first, second = run.kept
    assert all(torch.equal(first[name], second[name]) for name in first)
    fresh = dict(tiny_backbone(tiny_folder).model.named_parameters())
    assert any(name.endswith("bank_up.shared") and weight.abs().sum() > 0 for name, weight in first.items())
    projector = "model.multi_modal_projector.linear_1.weight"
    assert not torch.equal(first[f"model.{projector}"], fresh[projector])


@pytest.mark.parametrize("epochs", [1, 2])
def test_multi_task_sees_every_sample_once_per_epoch_in_as_many_steps_as_the_stream(
    tiny: Backbone, tmp_path: Path, lessons: list[tuple[str, list[str]]], epochs: int
) -> None:
    """Two tasks of ten samples, batch 4: the stream takes 3 + 3 steps with short batches, the union 5."""
    run = trained("multitask", tiny, tmp_path, epochs=epochs)

    everything = sorted(f"{one.prompt} {one.id}" for task in BENCHMARK.tasks for one in task.train)
    assert len(set(everything)) == 20
    for epoch in range(epochs):
        steps = lessons[epoch * 5 : (epoch + 1) * 5]
        assert sorted(sample for _, samples in steps for sample in samples) == everything
        assert {task for task, _ in steps} == {"joint"}
    assert len(lessons) == 5 * epochs
    mixed = [{sample.split("?")[0] for sample in samples} for _, samples in lessons]
    assert any(len(kinds) > 1 for kinds in mixed)
    assert cells(run) == {"0-0", "0-1"}
    assert [(task.task, task.samples) for task in run.ledger.tasks] == [("joint", 20 * epochs)]


def test_multi_task_takes_exactly_the_streams_steps_where_batches_fill_up(
    tiny: Backbone, tmp_path: Path, lessons: list[tuple[str, list[str]]]
) -> None:
    trained("multitask", tiny, tmp_path, global_batch=5)

    assert len(lessons) == 2 + 2
