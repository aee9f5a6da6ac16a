"""Within a task: a run that is stopped between two steps and goes on ends with the bits of one that was never stopped."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import relisted
from torch import Tensor, nn

from cl_zoo import Task, hookimpl
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.files import write_json
from cl_zoo.engine.folder import RunFolder
from cl_zoo.engine.midway import digest, generators, set_generators
from cl_zoo.engine.run import Run
from cl_zoo.engine.states import read_state_in, steps_in
from cl_zoo.names import parse_stack
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.testing import tiny_backbone, tiny_benchmark

HERE = __file__
TASKS = tiny_benchmark(2, size=6).tasks
RECIPE = {
    "adapter.rank": 2,
    "adapter.dropout": 0.2,
    "epochs": 2,
    "global_batch": 4,
    "lr.adapters": 1e-2,
    "lr.projector": 1e-3,
    "micro_batch": 3,
    "warmup": 0.3,
    "weight_decay": 0.1,
}
"""Two steps an epoch and four a task, of five samples each in the second task, where old ones are rehearsed."""
STACK = f"replay[samples=4]+{HERE}:Restless"
EVERY_STEP = 1e-9


class Stop(Exception):
    """The run was interrupted here."""


class Restless:
    """Draws from every generator, counts what it sees while it learns, and pulls towards where the task began."""

    def __init__(self) -> None:
        self.average, self.seen = torch.zeros(()), 0
        self.begun: dict[str, Tensor] = {}

    @hookimpl
    def before_task(self, model: nn.Module) -> None:
        self.begun = {
            name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad
        }

    @hookimpl
    def loss(self, model: nn.Module, outputs: Any) -> dict[str, Tensor]:
        self.seen += 1
        self.average = 0.9 * self.average + 0.1 * outputs.logits.detach().float().abs().mean()
        noise = random.random() + float(np.random.standard_normal()) ** 2 + float(torch.rand(()))
        named = dict(model.named_parameters())
        moved = torch.stack([(named[name] - before).pow(2).sum() for name, before in self.begun.items()])
        return {"restless": noise * self.average * moved.sum() + self.seen * 1e-3 * moved.max()}

    @hookimpl
    def after_task(self, task: Task) -> dict[str, Tensor | float]:
        return {"average": self.average, "seen": self.seen, "far": float(len(self.begun))}

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average, self.seen = state["average"], state["seen"]


def start(
    folder: Path, root: Path, *, stop: tuple[int, int] | None = None, every: float = 0.0, stack: str = STACK
) -> Run:
    """Execute a run in `root`, or until the checkpoint after so many steps of a task was written.

    What is reported stands in its `told`.
    """
    told: list[dict[str, Any]] = []

    def report(**facts: Any) -> None:
        told.append(facts)
        if facts["phase"] == "kept" and (facts["index"], facts["step"]) == stop:
            raise Stop

    with RunFolder(root, "run", {}) as runs:
        run = Run(
            Plugins(parse_stack(stack)),
            TASKS,
            tiny_backbone(folder),
            build_recipe(RECIPE),
            seed=0,
            cells="lower",
            folder=runs,
            world=World("cpu"),
            report=report,
            every=every,
        )
        run.told = told  # type: ignore[attr-defined]
        run.execute()
    return run


def phases(run: Run, phase: str) -> list[dict[str, Any]]:
    return [facts for facts in run.told if facts["phase"] == phase]  # type: ignore[attr-defined]


def kept(root: Path) -> list[str]:
    return [place.name for place in steps_in(root / "run.partial")]


def assert_equal(one: Run, other: Run) -> None:
    """The same weights, plugin states, answers, measurements and costs, bit for bit; only seconds may differ."""
    for (name, weight), (_, wanted) in zip(
        one.model.state_dict().items(), other.model.state_dict().items(), strict=True
    ):
        assert torch.equal(weight, wanted), name
    assert digest(one.plugins.state_dict()) == digest(other.plugins.state_dict())
    for run in (one, other):
        assert sorted(path.name for path in run.folder.partial.iterdir()) == [
            "answers",
            "expected",
            "identity.json",
            "state-1",
            "state-2",
        ]
    for file in (one.folder.partial / "answers").iterdir():
        assert file.read_bytes() == (other.folder.partial / "answers" / file.name).read_bytes()
    assert one.measured == other.measured
    for a, b in zip(one.ledger.tasks, other.ledger.tasks, strict=True):
        assert replace(a, seconds=0) == replace(b, seconds=0)


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was never stopped and never looked back."""
    return start(tiny_folder, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "stop", [(0, 1), (1, 1), (1, 2), (1, 3), (1, 4)], ids=["first task", "1", "epoch", "3", "last step"]
)
def test_going_on_from_any_step_ends_as_if_nothing_had_happened(
    whole: Run, tiny_folder: Path, tmp_path: Path, stop: tuple[int, int]
) -> None:
    """Dropout, two epochs, micro-batches, rehearsed samples, a plugin whose loss counts and draws."""
    with pytest.raises(Stop):
        start(tiny_folder, tmp_path, stop=stop, every=EVERY_STEP)
    assert kept(tmp_path) == [f"state-{stop[0]}-step-{stop[1]}"]

    resumed = start(tiny_folder, tmp_path)

    assert [(one["index"], one["step"]) for one in phases(resumed, "resumed")] == [stop]
    assert_equal(resumed, whole)


def test_experts_whose_moments_lie_together_go_on_too(tiny_folder: Path, tmp_path: Path) -> None:
    """Each expert's are kept by its own name, and laid together again."""
    wanted = start(tiny_folder, tmp_path / "whole", stack="moelora")
    with pytest.raises(Stop):
        start(tiny_folder, tmp_path / "stopped", stop=(1, 2), every=EVERY_STEP, stack="moelora")
    assert_equal(start(tiny_folder, tmp_path / "stopped", stack="moelora"), wanted)


def test_a_run_may_be_stopped_again_and_again(whole: Run, tiny_folder: Path, tmp_path: Path) -> None:
    for stop in ((0, 2), (0, 3), (1, 1), (1, 3)):
        with pytest.raises(Stop):
            start(tiny_folder, tmp_path, stop=stop, every=EVERY_STEP)

    resumed = start(tiny_folder, tmp_path, every=EVERY_STEP)

    assert [one["step"] for one in phases(resumed, "kept")] == [4]
    assert_equal(resumed, whole)


def test_a_damaged_checkpoint_within_a_task_costs_only_itself(
    whole: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    """The task is learnt from its beginning, and one sentence says so."""
    with pytest.raises(Stop):
        start(tiny_folder, tmp_path, stop=(1, 2), every=EVERY_STEP)
    file = tmp_path / "run.partial/state-1-step-2/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)

    resumed = start(tiny_folder, tmp_path)

    (passed,) = phases(resumed, "passed")
    assert passed["message"].endswith(
        "state-1-step-2: model.safetensors is not what was written (its SHA-256 differs); "
        "what was learnt of task side since the checkpoint before it is learnt anew"
    )
    assert not phases(resumed, "resumed")
    assert_equal(resumed, whole)


def test_of_two_checkpoints_the_newest_that_is_whole_is_taken(
    whole: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    """Two stand there when a run is killed between writing one and deleting the one before."""
    for step in (1, 3):
        with pytest.raises(Stop):
            start(tiny_folder, tmp_path / str(step), stop=(1, step), every=EVERY_STEP)
    partial = tmp_path / "3/run.partial"
    (tmp_path / "1/run.partial/state-1-step-1").rename(partial / "state-1-step-1")
    (partial / "state-1-step-3/files.json").unlink()

    resumed = start(tiny_folder, tmp_path / "3")

    assert "state-1-step-3: files.json is missing" in phases(resumed, "passed")[0]["message"]
    assert [one["step"] for one in phases(resumed, "resumed")] == [1]
    assert_equal(resumed, whole)


def test_what_other_processes_wrote_is_passed_over(whole: Run, tiny_folder: Path, tmp_path: Path) -> None:
    """Each process draws its own random numbers, so that a checkpoint of two is none of one."""
    with pytest.raises(Stop):
        start(tiny_folder, tmp_path, stop=(0, 2), every=EVERY_STEP)
    place = tmp_path / "run.partial/state-0-step-2"
    notes = json.loads((place / "state.json").read_text())
    write_json(place / "state.json", {**notes, "processes": 2})
    relisted(place)

    resumed = start(tiny_folder, tmp_path)

    assert "2 processes wrote it and 1 go on" in phases(resumed, "passed")[0]["message"]
    assert_equal(resumed, whole)


def test_only_what_the_steps_have_changed_is_kept_of_plugins(tiny_folder: Path, tmp_path: Path) -> None:
    """The memory of `replay` is as it was when the task began, and is not written again."""
    with pytest.raises(Stop):
        start(tiny_folder, tmp_path, stop=(1, 2), every=EVERY_STEP)

    _, told, notes = read_state_in(tmp_path / "run.partial/state-1-step-2")

    assert list(told) == ["0"]
    assert list(told["0"]["plugins"]) == [f"{HERE}:Restless"]
    assert told["0"]["plugins"][f"{HERE}:Restless"]["seen"] == 6 + 4  # forwards of both tasks
    assert notes["cost"]["steps"] == 2


def test_no_checkpoint_is_written_before_its_time(tiny_folder: Path, tmp_path: Path) -> None:
    run = start(tiny_folder, tmp_path, every=30)

    assert not phases(run, "kept")


def test_generators_go_on_where_they_stood() -> None:
    def draw() -> list[float]:
        return [
            float(torch.rand(())),
            float(torch.randn(())),
            float(np.random.standard_normal()),
            random.gauss(0, 1),
        ]

    draw()  # numpy and Python keep the second of two normal numbers
    stood = json.loads(json.dumps(generators(torch.device("cpu"))))
    wanted = draw()
    assert draw() != wanted

    set_generators(stood, torch.device("cpu"))

    assert draw() == wanted


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.0]), "b": [1, "x"]},
        {"a": torch.tensor([1.0, -0.0], dtype=torch.float64), "b": [1, "x"]},
        {"a": torch.tensor([[1.0, 0.0]]), "b": [1, "x"]},
        {"a": torch.tensor([1.0, -0.0]), "b": [1, "x"]},
        {"a": torch.tensor([1.0, 0.0]), "b": [1, "y"]},
        {"c": torch.tensor([1.0, 0.0]), "b": [1, "x"]},
    ],
)
def test_a_digest_tells_every_bit_shape_type_and_name(other: dict[str, Any]) -> None:
    one = {"a": torch.tensor([1.0, 0.0]), "b": [1, "x"]}

    assert digest(one) == digest({"b": (1, "x"), "a": torch.tensor([1.0, 0.0])})
    assert digest(one) != digest(other)
