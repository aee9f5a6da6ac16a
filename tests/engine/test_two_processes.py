"""Several processes on one global batch are one process; gloo on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch
from safetensors.torch import load_file
from torch import Tensor, nn

from cl_zoo import Batch, hookimpl
from cl_zoo.backbones.backbone import Backbone
from cl_zoo.nn.placing import adapters

pytestmark = pytest.mark.slow

HERE = __file__

RUN = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from cl_zoo.names import parse_stack
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.engine.run import Run
from cl_zoo.engine.trained import Trained
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.folder import RunFolder
from cl_zoo.testing import tiny_backbone, tiny_benchmark
from cl_zoo.processes import World

method, folder, root = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
world, benchmark = World("cpu"), tiny_benchmark(2, size=9)
assert world.size == int(root.name)
folder_of_run = RunFolder(root, "run", {})
recipe = {"adapter.dropout": 0, "global_batch": 4, "weight_decay": 0.1, "micro_batch": 1 if "--micro" in sys.argv else None}
shared = Trained(root.parent / "trained", keep=True) if "--shared" in sys.argv else None
with folder_of_run if world.main else folder_of_run.reading():
    run = Run(
        Plugins(parse_stack(method)), benchmark.tasks, tiny_backbone(folder), build_recipe(benchmark.recipe, recipe),
        seed=0, cells="lower", folder=folder_of_run, world=world, report=lambda **_: None, trained=shared,
    )
    run.execute()
    print(f"rank {world.rank} took {run.ledger.taken}")
"""

WITHIN = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from cl_zoo.names import parse_stack
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.engine.run import Run
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.folder import RunFolder
from cl_zoo.testing import tiny_backbone, tiny_benchmark
from cl_zoo.processes import World

method, folder, root, stop = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
world, benchmark = World("cpu"), tiny_benchmark(2, size=9)

class Stop(Exception):
    pass

def report(**facts):
    if facts["phase"] in ("resumed", "passed"):
        print(f"rank {world.rank} {facts['phase']}", facts.get("step", facts.get("message")))
    if facts["phase"] == "kept" and (facts["index"], facts["step"]) == (1, stop):
        raise Stop

folder_of_run = RunFolder(root, "run", {})
with folder_of_run if world.main else folder_of_run.reading():
    run = Run(
        Plugins(parse_stack(method)), benchmark.tasks, tiny_backbone(folder),
        build_recipe(benchmark.recipe, {"adapter.dropout": 0.2, "global_batch": 4}),
        seed=0, cells="lower", folder=folder_of_run, world=world, report=report, every=1e-9 if stop else 0,
    )
    try:
        run.execute()
    except Stop:
        pass
world.wait()
torch.distributed.destroy_process_group()
"""

REPEAT = """
import sys
from pathlib import Path
import cl_zoo
from accelerate import PartialState

root, backbone = Path(sys.argv[1]), sys.argv[2]
result = cl_zoo.run("finetune", benchmark="cl_zoo.testing:load_tiny", backbone=backbone, device="cpu", out=root)
if result.complete:
    with (root.parent / "reports").open("a") as reports:
        reports.write(f"{PartialState().process_index} {result.complete}\\n")
"""

REDUCE = """
import torch
from torch import nn
from cl_zoo.processes import World, share, total

world = World("cpu")
assert total(torch.tensor([1.5, 2.0]) + world.rank).tolist() == [4.0, 5.0]
assert list(share(["a", "b", "c"])) == [["a", "c"], ["b"]][world.rank]
a, b, c = (nn.Parameter(torch.zeros(2, 2)) for _ in range(3))
a.grad = torch.full((2, 2), 1.0 + world.rank)
if world.rank == 1:
    b.grad = torch.arange(4.0).view(2, 2)
world.reduce_gradients([a, b, c])
assert a.grad.tolist() == [[3, 3], [3, 3]], a.grad
assert b.grad.tolist() == [[0, 1], [2, 3]], b.grad
assert c.grad is None, c.grad
assert world.sum(1.5) == 3.0
assert world.gather([world.rank, "x"]) == [0, "x", 1, "x"]
world.wait()
"""


class Uneven:
    """A key per colour of which only those that a process sees get a gradient, and a term of every shape."""

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Any) -> nn.Module:
        model = adapters(backbone, recipe)
        names = ["red", "green", "blue", "grey", "left", "right", "never"]
        model.keys = nn.ParameterDict({name: nn.Parameter(torch.ones(3)) for name in names})
        return model

    @hookimpl
    def loss(self, model: Any, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        pulls = torch.stack([(model.keys[sample.answer] ** 2).sum() for sample in batch.samples])
        ups = [weight for name, weight in model.named_parameters() if "bank_up" in name]
        return {
            "pull": pulls,
            "small": 0.1 * torch.stack([(up**2).sum() for up in ups]).sum(),
            "sharp": 0.1 * outputs.logits.float().logsumexp(-1),
        }

    def parts(self, model: Any) -> dict[str, list[str]]:
        return {"keys": [f"keys.{name}" for name in model.keys]}


def outcome(root: Path) -> tuple[dict[str, Tensor], dict[str, list[Any]], dict[str, Any]]:
    """Weights, answers and ledger of a run."""
    state = root / "run.partial/state-2"
    files = (root / "run.partial/answers").iterdir()
    answers = {file.name: [json.loads(line) for line in file.read_text().splitlines()] for file in files}
    return load_file(state / "model.safetensors"), answers, json.loads((state / "state.json").read_text())


@pytest.mark.parametrize(
    ("method", "options"),
    [(f"{HERE}:Uneven", []), ("ewc", ["--micro"]), ("si[strength=100]", ["--micro"]), ("hide", [])],
    ids=["uneven", "ewc", "si", "hide"],
)
def test_two_processes_learn_and_answer_as_one(
    tiny_folder: Path, tmp_path: Path, method: str, options: list[str]
) -> None:
    """Nine samples in batches of four leave a last batch of one, in which the second process has nothing.

    Without dropout, weights after six steps at rate 1e-2 agree to 1e-4.
    """
    for processes in (1, 2):
        launch(RUN, tmp_path, processes, method, str(tiny_folder), str(tmp_path / str(processes)), *options)

    (one, answers, notes), (two, others, more) = (outcome(tmp_path / str(n)) for n in (1, 2))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(
            two[name], weight, rtol=0, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert [[r["id"] for r in others[cell]] for cell in sorted(answers)] == [
        [r["id"] for r in answers[cell]] for cell in sorted(answers)
    ]
    assert {cell: [r["answer"] for r in records] for cell, records in answers.items()} == {
        cell: [r["answer"] for r in records] for cell, records in others.items()
    }
    for a, b in zip(notes["ledger"]["tasks"], more["ledger"]["tasks"], strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    if "keys.never" in one:
        assert one["keys.never"].tolist() == two["keys.never"].tolist() == [1, 1, 1]


def test_two_processes_take_over_one_training(tiny_folder: Path, tmp_path: Path) -> None:
    """What two processes of one run have learnt those of another take over, and answer as if they had learnt it."""
    swept = "hide[coefficient=0.2]"

    def start(method: str, name: str, *options: str) -> str:
        return launch(RUN, tmp_path, 2, method, str(tiny_folder), str(tmp_path / name / "2"), *options)

    alone = start(swept, "alone")
    first = start("hide", "first", "--shared")
    (tmp_path / "second").mkdir()
    (tmp_path / "first" / "trained").rename(tmp_path / "second" / "trained")
    second = start(swept, "second", "--shared")

    assert all(f"rank {rank} took 0" in text for text in (alone, first) for rank in (0, 1))
    assert all(f"rank {rank} took 2" in second for rank in (0, 1))
    (one, said, _), (other, own, _) = (outcome(tmp_path / name / "2") for name in ("second", "alone"))
    assert said == own
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


class Own:
    """What each process counts of its own batches, and lets its loss depend on; of the model, a buffer."""

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Any) -> nn.Module:
        model = adapters(backbone, recipe)
        model.register_buffer("pace", torch.zeros(()))
        self.letters = 0
        return model

    @hookimpl
    def loss(self, model: Any, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        self.letters += sum(len(sample.prompt) + int(sample.id) for sample in batch.samples)
        model.pace += outputs.logits.detach().float().std()
        ups = torch.stack([(w**2).sum() for name, w in model.named_parameters() if "bank_up" in name]).sum()
        return {"own": self.letters * model.pace * ups}

    def state_dict(self) -> dict[str, Any]:
        return {"letters": self.letters}

    def load_state_dict(self, state: Any) -> None:
        self.letters = state["letters"]


def test_two_processes_go_on_within_a_task_each_where_it_stood(tiny_folder: Path, tmp_path: Path) -> None:
    """Random numbers, a plugin's count and a buffer differ between the processes."""

    def start(name: str, stop: int) -> str:
        arguments = (f"{HERE}:Own", str(tiny_folder), str(tmp_path / name), str(stop))
        return launch(WITHIN, tmp_path, 2, *arguments)

    start("whole", 0)
    start("stopped", 1)  # of three steps; in the last one the second process has nothing
    place = tmp_path / "stopped/run.partial/state-1-step-1"
    told = json.loads((place / "state.json").read_text())["plugins"]
    assert told["0"]["generators"] != told["1"]["generators"]
    assert told["0"]["plugins"] != told["1"]["plugins"]
    resumed = start("stopped", 0)

    assert sorted(resumed.splitlines()) == ["rank 0 resumed 1", "rank 1 resumed 1"]
    (one, answers, _), (other, again, _) = (outcome(tmp_path / name) for name in ("whole", "stopped"))
    assert answers == again
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_a_finished_run_is_found_again_by_all_processes(tiny_folder: Path, tmp_path: Path) -> None:
    """Each time one process scores and reports; none fails because another one holds the folder."""
    root = tmp_path / "2"
    for _ in range(2):
        launch(REPEAT, tmp_path, 2, str(root), str(tiny_folder / "llava"))

    assert [folder.name[:8] for folder in root.iterdir()] == ["tiny-fin"]
    assert (tmp_path / "reports").read_text() == "0 True\n" * 2


def test_gradients_are_summed_and_a_missing_one_counts_as_zero(tmp_path: Path) -> None:
    launch(REDUCE, tmp_path, 2)
