"""A base whose layers are divided among processes is the base; gloo on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import free_port, launch
from safetensors.torch import load_file
from torch import nn

import cl_zoo
from cl_zoo.errors import OptionError
from cl_zoo.names import METHODS, installed
from cl_zoo.sharding import divided, whole

LEARN = """
import json, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.folder import RunFolder
from cl_zoo.engine.run import Run
from cl_zoo.names import Choice, parse_stack
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.sharding import shard
from cl_zoo.testing import tiny_backbone, tiny_benchmark

folder, root, methods, recipe = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(","), json.loads(sys.argv[4])
for stack in methods:
    method, *probes = stack.split(" ")
    world, benchmark, backbone, told = World("cpu"), tiny_benchmark(2, size=9), tiny_backbone(folder), {}
    if "divided" in sys.argv:
        shard(backbone.layers, world.device)
        backbone = backbone.with_model(backbone.model)
        parts = [weight for layer in backbone.layers for weight in layer.parameters()]
        told["held"] = sum(part.to_local().numel() for part in parts), sum(part.numel() for part in parts)
    terms = []
    report = lambda **facts: terms.append(facts["terms"]) if facts["phase"] == "train" else None
    folder_of_run = RunFolder(root / stack, "run", {})
    with folder_of_run if world.main else folder_of_run.reading():
        run = Run(
            Plugins([*parse_stack(method), *(Choice(name, probe=True) for name in probes)]), benchmark.tasks, backbone,
            build_recipe(benchmark.recipe, {"adapter.dropout": 0, "global_batch": 4, **recipe}),
            seed=0, cells="lower", folder=folder_of_run, world=world, report=report,
        )
        run.execute()
        if world.main:
            (root / stack / "told.json").write_text(json.dumps({"terms": terms, **told}))
"""

OUT_OF_STEP = """
import torch
from torch import nn
from cl_zoo.processes import World, total
from cl_zoo.sharding import rest, shard, whole

world = World("cpu")
torch.manual_seed(0)
made = lambda: nn.Sequential(*(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)) for _ in range(3)))
model, own = made().requires_grad_(False), made()
own.load_state_dict(model.state_dict())
shard(model, world.device)
x = torch.randn(4, 6, requires_grad=True)

def gradient(model, rows):
    return torch.autograd.grad(model(x[:rows]).square().sum(), x)[0]

class Stop(Exception):
    pass

def stop(*_):
    raise Stop

for times, rows in ((3, 2), (1, 4)) if world.main else ((1, 4), (4, 1)):  # passes of their own number, in two rounds
    for _ in range(times):
        torch.testing.assert_close(gradient(model, rows), gradient(own, rows), rtol=0, atol=1e-6)
    if world.main:  # a forward that ends within a layer
        handle = model[1][2].register_forward_pre_hook(stop)
        try:
            model(x)
        except Stop:
            pass
        handle.remove()
    else:  # meanwhile the main process only helps, with the layer that it has left whole too
        with torch.no_grad():
            model(x[:1])
    assert total(torch.tensor(1.0)) == 2
assert torch.equal(whole(model[2][0].weight), own[2][0].weight)
assert sum(weight.numel() for weight in model.parameters()) == sum(weight.numel() for weight in own.parameters())
rest()
assert all(type(weight.data).__name__ == "DTensor" for weight in model.parameters())
"""


def learnt(root: Path, stack: str) -> tuple[Any, Any, Any]:
    """Weights, answers and what was told of a run."""
    states = sorted((root / stack / "run.partial").glob("state-*"))
    weights = load_file(states[-1] / "model.safetensors") if states else {}
    files = sorted((root / stack / "run.partial/answers").iterdir())
    answers = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    return weights, answers, json.loads((root / stack / "told.json").read_text())


def learn(folder: Path, root: Path, stacks: list[str], processes: int, recipe: Any, *how: str) -> Path:
    root.mkdir()
    launch(LEARN, root, processes, str(folder), str(root), ",".join(stacks), json.dumps(recipe), *how)
    return root


@pytest.mark.slow
def test_every_method_learns_on_a_divided_base_the_bits_that_it_learns_on_a_whole_one(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Two processes both times. Nine samples in batches of four in pieces of one: the second process often has no piece."""
    probes = {"cka", "drift", "routing"}
    names = {one.name for one in installed(METHODS) if one.distribution == "cl-zoo"}
    stacks = [*sorted(names - probes), "hide cka drift routing"]
    parts = learn(tiny_folder, tmp_path / "parts", stacks, 2, {"micro_batch": 1}, "divided")
    plain = learn(tiny_folder, tmp_path / "plain", stacks, 2, {"micro_batch": 1})

    for stack in stacks:
        (weights, answers, told), (own, said, before) = learnt(parts, stack), learnt(plain, stack)
        assert answers == said, stack
        assert told["terms"] == before["terms"], stack
        assert weights.keys() == own.keys()
        assert all(torch.equal(weight, own[name]) for name, weight in weights.items()), stack
        here, everything = told["held"]
        assert here == pytest.approx(everything / 2, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [{}, {"micro_batch": 2, "checkpointing": True}], ids=["whole", "pieces"])
def test_processes_that_share_a_base_learn_as_one(
    tiny_folder: Path, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    stacks = ["finetune+ewc", "l2p", "lwf", "modeltailor"]
    one = learn(tiny_folder, tmp_path / "one", stacks, 1, recipe)
    two = learn(tiny_folder, tmp_path / "two", stacks, 2, recipe, "divided")

    for stack in stacks:
        (weights, answers, told), (own, said, alone) = learnt(two, stack), learnt(one, stack)
        assert answers == said, stack
        assert told["terms"], stack
        for terms, others in zip(told["terms"], alone["terms"], strict=True):
            assert terms == pytest.approx(others, abs=1e-5), stack
        assert weights.keys() == own.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, own[name], rtol=0, atol=1e-5, msg=f"{stack}: {name}")


@pytest.mark.slow
def test_processes_out_of_step_find_each_layer_whole(tmp_path: Path) -> None:
    launch(OUT_OF_STEP, tmp_path, 2)


@pytest.mark.slow
def test_a_run_on_a_divided_base_is_the_run_and_is_loaded_by_one_process(
    tiny_folder: Path, tmp_path: Path
) -> None:
    backbone = f"llava:{tiny_folder / 'llava'}"
    launcher = [
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
        "-m",
        "cl_zoo",
    ]
    asked = ["run", "finetune", "--benchmark", "cl_zoo.testing:load_tiny", "--backbone", backbone]
    asked += ["--device", "cpu", "--sharding", "fsdp", "--out", str(tmp_path), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *asked],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]

    settings = {
        "benchmark": "cl_zoo.testing:load_tiny",
        "backbone": backbone,
        "device": "cpu",
        "out": tmp_path,
    }
    found = cl_zoo.run("finetune", **settings)
    assert [folder.name for folder in tmp_path.glob("tiny-*")] == [found.folder.name]
    assert found.manifest["environment"]["processes"] == 2
    assert found.manifest["job"]["sharding"] == "fsdp"
    assert len(cl_zoo.load(found.folder).generate([None], ["what colour ?"])) == 1


@pytest.mark.parametrize(
    ("sharding", "says"),
    [
        ("zero3", "--sharding zero3: DeepSpeed is not built in"),
        ("fdsp", "--sharding fdsp.*did you mean 'fsdp'"),
        ("fsdp", "--sharding fsdp: one process has nobody to share with; start several, torchrun"),
    ],
)
def test_a_division_that_cannot_be_is_refused_by_name(tmp_path: Path, sharding: str, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        cl_zoo.run("finetune", benchmark="mini", device="cpu", out=tmp_path, sharding=sharding)


def test_a_whole_weight_is_read_as_it_is() -> None:
    weight = nn.Linear(2, 2).weight
    assert whole(weight) is weight
    assert not divided(weight)
