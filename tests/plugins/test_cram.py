"""CRAM in runs: what learns in which phase, what is kept, what an answer depends on. Its equations: `tests/oracles/test_cram.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cl_zoo_cram import BUFFER, CRAM
from tiny_runs import Watched, learnt, questions
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch, forward
from cl_zoo.engine.run import Run
from cl_zoo.recipe.recipe import Recipe, build_recipe
from cl_zoo.tasks import Task
from cl_zoo.testing import tiny_backbone, tiny_benchmark

TOGETHER = "alike=-1,lead=0"
APART = "alike=1"


def recipe(**settings: Any) -> Recipe:
    given = {f"adapter.{name}": value for name, value in settings.items()}
    return build_recipe(tiny_benchmark().recipe, {"adapter.rank": 6, "adapter.dropout": 0, **given})


class Stepped(Watched):
    """Keeps what learns at the end of every step, by task."""

    def _learn(self, lesson: Any) -> None:
        model, stepped = self.model, self.model.stepped
        self.steps = getattr(self, "steps", [])

        def watched(done: int, total: int) -> None:
            learns = {name: one.detach().clone() for name, one in model.named_parameters()}
            stepped(done, total)
            self.steps.append((lesson.task.index, done, total, model.phase, learns))

        model.stepped = watched
        super()._learn(lesson)
        del model.stepped


def trained(options: str, root: Path, folder: Path, tasks: int = 2) -> Stepped:
    benchmark = tiny_benchmark(tasks, size=16)
    stack = f"cram[{options}]"
    return learnt(Stepped, stack, benchmark.tasks, tiny_backbone(folder), recipe(), root, cells="lower")


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stepped]:
    """Two tasks of four steps in one group and in two; the first phase is one step."""
    return {
        options: trained(options, tmp_path_factory.mktemp("run"), tiny_folder)
        for options in (TOGETHER, APART)
    }


def moved(run: Stepped, task: int, step: int) -> set[str]:
    """Names of the experts and centroids that a step has changed, but for the ones that the end of the first phase writes."""
    found = [learns for index, *_, learns in run.steps if index == task]
    changed = {name for name, one in found[step].items() if not torch.equal(one, found[step - 1][name])}
    return {name.rpartition(".")[2] for name in changed if "bank_" in name}


@pytest.mark.parametrize("options", [TOGETHER, APART])
def test_the_buffer_learns_first_and_then_the_expert_alone(runs: dict[str, Stepped], options: str) -> None:
    run = runs[options]

    for task in range(2):
        assert [phase for index, _, _, phase, _ in run.steps if index == task] == ["expert"] * 4
        assert moved(run, task, 2) == moved(run, task, 3) == {f"t{task}"}
        first = next(learns for index, done, *_, learns in run.steps if (index, done) == (task, 1))
        ups = {name: one for name, one in first.items() if ".bank_up." in name}
        assert all(one.any() for name, one in ups.items() if name.endswith(BUFFER))
        assert not any(one.any() for name, one in ups.items() if name.endswith(f"t{task}"))


@pytest.mark.parametrize(
    ("warmup", "total", "after"), [(0.05, 4, 1), (0.5, 4, 2), (0.05, 100, 5), (0.9, 1, 1)]
)
def test_the_first_phase_is_a_share_of_the_steps_and_one_at_least(
    tiny: Backbone, warmup: float, total: int, after: int
) -> None:
    method = CRAM(CRAM.Options(warmup=warmup))
    model = method.build_model(tiny, recipe())
    method.before_task(Task(0, "colour", "", 12))

    phases = []
    for done in range(1, total + 1):
        model.stepped(done, total)
        phases.append(model.phase)

    assert phases.count("buffer") == after - 1
    assert phases[after - 1] == "expert"


@pytest.mark.parametrize("options", [TOGETHER, APART])
def test_what_is_stored_is_the_rows_that_an_expert_needs(runs: dict[str, Stepped], options: str) -> None:
    """Rank 6 is three for the buffer and three at most for the expert; the buffer is gone."""
    bank = runs[options].plugins.method.bank

    assert bank.experts == ["t0", "t1"]
    for layer in bank.layers:
        for name in bank.experts:
            down, up = layer.bank_down[name], layer.bank_up[name]
            assert 1 <= len(down) <= 3
            assert down.any(1).all()
            assert up.shape[1] == len(down)


@pytest.mark.parametrize("options", [TOGETHER, APART])
def test_older_experts_and_centroids_stay_as_they_were(runs: dict[str, Stepped], options: str) -> None:
    first, second = runs[options].kept

    old = [name for name in first if name.endswith(".t0")]
    assert old
    assert all(torch.equal(first[name], second[name]) for name in old)


def test_a_group_of_several_has_a_centroid_that_learns_and_a_penalty(runs: dict[str, Stepped]) -> None:
    """Alone in its group an expert has weight one wherever its centroid lies."""
    for options, shared in ((TOGETHER, True), (APART, False)):
        run = runs[options]
        steps = [learns["centroids.t1"] for index, *_, learns in run.steps if index == 1]
        assert torch.equal(steps[-1], steps[1]) is not shared
        assert run.plugins.method.model.groups.numbers == ([0, 0] if shared else [0, 1])


def test_a_task_alone_in_its_group_is_answered_by_its_expert_alone(runs: dict[str, Stepped]) -> None:
    route = answered(runs[APART])[1]

    assert sorted({*route.flatten().tolist()}) == [0.0, 1.0]


def answered(run: Run) -> tuple[Batch, Tensor]:
    tasks = [lesson.task for lesson in run.lessons]
    model = run.plugins.build_inference_model(run.model, tasks).eval()
    batch = questions(run.backbone)
    with torch.no_grad():
        forward(model, batch)
    return batch, model.route


def test_buffer_and_expert_share_the_budget(tiny: Backbone) -> None:
    ranks = {}
    for rank, budget in ((1, "parameters"), (8, "parameters"), (64, "parameters"), (64, "published")):
        backbone = tiny_backbone(Path(str(tiny.feature_name)).parent)
        method = CRAM(CRAM.Options())
        method.build_model(backbone, build_recipe({"adapter.rank": rank, "budget": budget}))
        method.before_task(Task(0, "colour", "", 12))
        layer = method.bank.layers[0]
        ranks[rank, budget] = [len(layer.bank_down[name]) for name in (BUFFER, "t0")]

    assert ranks == {
        (1, "parameters"): [1, 1],
        (8, "parameters"): [4, 4],
        (64, "parameters"): [55, 9],
        (64, "published"): [64, 9],
    }


def test_directions_the_group_knows_are_left_out(tiny: Backbone) -> None:
    """The buffer of a second task that learnt the same as the first one: its expert is orthogonal to the first, or cannot be."""
    method = CRAM(CRAM.Options(alike=-1, lead=0, least=1, allocation=0.0, novelty=0.0))
    model: Any = method.build_model(tiny, recipe())
    for index in range(2):
        method.before_task(Task(index, "colour", "", 12))
        stir(model, index)
        model.stepped(1, 1)
        method.after_task(
            Task(index, "colour", "", 12), [tiny.batch(list(tiny_benchmark().tasks[0].train), answers=True)]
        )

    for layer in method.bank.layers:
        first, second = layer.bank_down["t0"], layer.bank_down["t1"]
        torch.testing.assert_close(second @ first.T, torch.zeros(3, 3), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("least", "rank"), [(1, 1), (2, 2), (9, 3)])
def test_rows_that_an_expert_does_not_need_are_cut_off(tiny: Backbone, least: int, rank: int) -> None:
    """No singular value is above the bound, so that the least rank decides, within the cap of three."""
    method, task = CRAM(CRAM.Options(least=least, allocation=1e9)), Task(0, "colour", "", 12)
    model: Any = method.build_model(tiny, recipe())
    method.before_task(task)
    stir(model, 0)
    model.stepped(1, 1)
    widths = [len(layer.bank_down["t0"]) for layer in method.bank.layers]
    told = method.after_task(task, [tiny.batch(list(tiny_benchmark().tasks[0].train), answers=True)])

    assert set(widths) == {3}
    assert {layer.bank_down["t0"].shape[0] for layer in method.bank.layers} == {rank}
    assert {layer.bank_up["t0"].shape[1] for layer in method.bank.layers} == {rank}
    assert told == {"cram/rank": rank, "cram/groups": 1.0}


def stir(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(BUFFER):
                weight.copy_(torch.randn(weight.shape, generator=generator))
