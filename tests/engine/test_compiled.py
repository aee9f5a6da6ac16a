"""Compiled layers: which tasks they are for, that nothing of a method breaks them, and that they learn what uncompiled ones do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cl_zoo
from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward
from cl_zoo.contract.plugins import Plugins, load_class
from cl_zoo.engine.compiled import REPAID, Compiled
from cl_zoo.engine.further import Further
from cl_zoo.engine.learning import Learner, recompute_activations
from cl_zoo.engine.run import answering_model, placed
from cl_zoo.engine.streams import TaskBatches
from cl_zoo.errors import OptionError, PluginError
from cl_zoo.names import METHODS, installed, parse_stack, stack
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.runs.identity import identify
from cl_zoo.runs.job import Job
from cl_zoo.runs.prepared import prepare
from cl_zoo.tasks import Task
from cl_zoo.testing import tiny_backbone, tiny_benchmark

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("UserWarning", "FutureWarning", "DeprecationWarning")
]
"""The compiler looks at attributes of tensors of which torch itself warns, and hides it from everyone but pytest."""

BUNDLED = {one.name: load_class(one.name) for one in installed(METHODS) if one.distribution == "cl-zoo"}
SEQUENTIAL = [
    name
    for name, kind in BUNDLED.items()
    if getattr(kind, "protocol", "sequential") == "sequential" and not getattr(kind, "probe", False)
]
QUICK = ("finetune", "moelora")
"""One expert, a gate for each token."""

TINY: dict[str, Any] = {"benchmark": "cl_zoo.testing:load_tiny", "device": "cpu", "preflight": False}
TASKS = tuple(tiny_benchmark(2, size=6).tasks)


@pytest.fixture(autouse=True)
def _nothing_stays_compiled() -> Iterator[None]:
    yield
    torch.compiler.reset()


class Graphs:
    """A backend that computes graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.made += 1
        return graph.forward


class Taught:
    """A method on the tiny model that learns tasks by one step each, on compiled layers or not."""

    def __init__(
        self, folder: Path, method: str, how: str = "on", backend: Any = "eager", **recipe: Any
    ) -> None:
        self.backbone, self.plugins = tiny_backbone(folder), Plugins(parse_stack(method))
        self.recipe = build_recipe({"global_batch": 4, "lr.adapters": 1e-2, **recipe})
        torch.manual_seed(0)
        self.model = placed(self.plugins, self.backbone, self.recipe)
        if self.recipe.checkpointing:
            recompute_activations(self.backbone.model)
        self.compiled = Compiled(self.backbone.layers, how, backend)
        self.terms: list[float] = []
        self.seen: list[Task] = []

    def learn(self, batches: tuple[int, ...] = (4,)) -> dict[str, float]:
        """The next task, a step for each batch of so many samples; returns what compiling took."""
        place, data = len(self.seen), TASKS[len(self.seen) % 2]
        task = Task(place, data.name, data.instruction, 4, place // 2)
        torch.manual_seed(place)
        seen = TaskBatches(self.backbone, data.train, self.recipe)
        self.plugins.before_task(self.model.train(), task, seen)
        learner = Learner(
            self.model,
            task,
            [*data.train, *self.plugins.rehearse(task)],
            backbone=self.backbone,
            plugins=self.plugins,
            recipe=self.recipe,
            world=World("cpu"),
            seed=0,
        )
        torch.manual_seed(place)
        with self.compiled.learning(len(batches)) as told:
            for size in batches:
                self.terms.append(sum(float(term) for term in learner.step(range(size)).values()))
        self.plugins.after_task(
            self.model, task, seen, parts=learner.names, backbone=self.backbone, learn=Further(learner)
        )
        self.seen.append(task)
        return told

    def answer(self) -> dict[str, float]:
        """One forward of what answers, compiled; returns what that took."""
        answering = answering_model(self.plugins, self.model, self.seen, 0)
        with self.compiled.learning(1) as told, torch.no_grad():
            forward(answering, self.backbone.batch(TASKS[0].test[:3], answers=False))
        return told


# Which tasks


def test_a_task_is_compiled_where_its_passes_repay_it() -> None:
    layers = [nn.Linear(1, 1) for _ in range(32)]
    assert REPAID == 3125 * 32
    assert [Compiled(layers, "auto").repays(forwards) for forwards in (3124, 3125)] == [False, True]
    assert Compiled(layers, "on").repays(1)
    assert not Compiled(layers, "off").repays(10**9)


@pytest.mark.parametrize(
    ("compiling", "sharding", "device", "found"),
    [
        ("auto", "none", "cpu", "off"),
        ("auto", "none", "cuda", "auto"),
        ("auto", "fsdp", "cuda", "off"),
        ("on", "none", "cpu", "on"),
        ("off", "none", "cuda", "off"),
    ],
)
def test_auto_is_for_accelerators_with_whole_layers(
    compiling: str, sharding: str, device: str, found: str
) -> None:
    assert Job((), "mini", compile=compiling, sharding=sharding).compiles(device) == found


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"compile": "onn"}, "--compile onn; did you mean 'on'"),
        (
            {"compile": "on", "sharding": "fsdp"},
            "--compile on: the processes of --sharding fsdp meet within each layer",
        ),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(settings: dict[str, str], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        Job((), "mini", **settings)


def test_without_a_compiler_the_flag_is_refused_in_a_sentence(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    layers = tiny_backbone(tiny_folder).layers
    says = r"--compile on: torch finds no C\+\+ compiler here; install g\+\+, or take --compile off"
    with pytest.raises(OptionError, match=says), Compiled(layers, "on").learning(1):
        pass


# What stays


def test_names_and_modules_are_those_of_a_model_that_is_not_compiled(tiny: Backbone) -> None:
    model, layers = tiny.model, tiny.layers
    before = [(name, id(module)) for name, module in model.named_modules()]
    weights = {name: id(weight) for name, weight in model.state_dict(keep_vars=True).items()}
    with Compiled(layers, "on", "eager").learning(1):
        assert all(layer._compiled_call_impl is not None for layer in layers)
        assert [(name, id(module)) for name, module in model.named_modules()] == before
        assert {name: id(weight) for name, weight in model.state_dict(keep_vars=True).items()} == weights
    assert all(layer._compiled_call_impl is None for layer in layers)


def test_a_hook_that_comes_between_two_forwards_is_seen() -> None:
    layer, x = nn.Sequential(nn.Linear(2, 2)), torch.ones(3, 2)
    compiled = Compiled([layer], "on", "eager")
    with torch.no_grad(), compiled.learning(1):
        plain = layer(x)
        handle = layer[0].register_forward_hook(lambda module, given, y: y + 1)
        assert torch.equal(layer(x), plain + 1)
        handle.remove()
        assert torch.equal(layer(x), plain)


def test_what_torch_cannot_compile_has_the_flag_as_its_remedy(tiny_folder: Path) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise ValueError("no kernel")

    with pytest.raises(PluginError, match="torch cannot compile it; take --compile off"):
        Taught(tiny_folder, "l2p", backend=broken).learn()


# Graphs


def breaks(folder: Path, method: str) -> list[float]:
    """Graph breaks of a method in training, at its first task and its second, and in answering."""
    taught = Taught(folder, method, backend=Graphs())
    return [taught.learn()["breaks"], taught.learn()["breaks"], taught.answer()["breaks"]]


@pytest.mark.parametrize("method", QUICK)
def test_a_layer_is_one_graph(tiny_folder: Path, method: str) -> None:
    assert breaks(tiny_folder, method) == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in SEQUENTIAL if name not in QUICK])
def test_a_layer_is_one_graph_under_every_method(tiny_folder: Path, method: str) -> None:
    assert breaks(tiny_folder, method) == [0, 0, 0]


def test_a_break_is_counted(tiny_folder: Path) -> None:
    taught = Taught(tiny_folder, "finetune", backend=Graphs())
    taught.backbone.layers[1].register_forward_pre_hook(lambda *_: torch._dynamo.graph_break())
    assert taught.learn()["breaks"] > 0


def test_neither_layers_nor_lengths_nor_tasks_are_compiled_anew(tiny_folder: Path) -> None:
    """One graph for two layers, and one more for a single row, over batches of four lengths and two tasks."""
    graphs = Graphs()
    taught = Taught(tiny_folder, "finetune", backend=graphs)
    told = taught.learn((4, 3, 2, 4, 1))
    assert (graphs.made, told["graphs"]) == (2, 2)
    assert taught.learn((3, 4, 1))["graphs"] == 0


# Numbers

ALIKE = [
    ("finetune", {"adapter.dropout": 0.5}),
    ("moelora", {"checkpointing": True}),
    ("l2p", {}),
    ("hide", {"precision": "bf16"}),
]
"""Dropout draws the same masks, activations are computed again, prompts stand among the tokens, layers under autocast."""


def terms(folder: Path, method: str, how: str, backend: str, recipe: dict[str, Any]) -> list[float]:
    """Of five steps on batches of different lengths, over two tasks."""
    taught = Taught(folder, method, how, backend, **recipe)
    taught.learn((4, 3, 4))
    told = taught.learn((4, 2))
    assert bool(told) == (how == "on")
    return taught.terms


@pytest.mark.parametrize(("method", "recipe"), ALIKE[:2])
def test_traced_layers_learn_what_others_learn(
    tiny_folder: Path, method: str, recipe: dict[str, Any]
) -> None:
    traced, plain = (terms(tiny_folder, method, how, "aot_eager", recipe) for how in ("on", "off"))
    assert traced == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "recipe"), ALIKE)
def test_compiled_layers_learn_what_others_learn(
    tiny_folder: Path, method: str, recipe: dict[str, Any]
) -> None:
    compiled, plain = (terms(tiny_folder, method, how, "inductor", recipe) for how in ("on", "off"))
    # kernels keep fp32 where layers under autocast round to bf16 between two operations
    assert compiled == pytest.approx(plain, rel=1e-5 if "precision" not in recipe else 1e-2)


@pytest.mark.slow
def test_twenty_tasks_stay_compiled(tiny_folder: Path) -> None:
    """All experts of earlier tasks are stacked, so that each task is another graph: more than torch's own limit allows."""
    taught = Taught(tiny_folder, "olora", backend=Graphs(), **{"adapter.rank": 1})
    told = [taught.learn() for _ in range(20)]
    assert [one["graphs"] for one in told] == [1] * 20
    assert not any(one["breaks"] for one in told)


# A run


def test_the_id_has_it_where_layers_are_compiled() -> None:
    def found(device: str, **settings: str) -> Any:
        prepared = prepare(Job(stack("finetune", (), (), {}), "cl_zoo.testing:load_tiny", **settings))
        backbone = prepared.load_backbone(torch.device("cpu"))
        return identify(prepared, backbone, device).get("compile")

    assert [found("cpu"), found("cpu", compile="off"), found("cuda", compile="off")] == [None] * 3
    assert [found("cpu", compile="on"), found("cuda")] == ["on", "auto"]


@pytest.mark.slow
def test_a_compiled_run_has_an_id_of_its_own_and_says_what_it_took(tmp_path: Path) -> None:
    runs = [cl_zoo.run("finetune", out=tmp_path, compile=how, **TINY) for how in ("off", "on", "on")]
    off, on, again = (run.manifest for run in runs)
    assert off["id"] != on["id"] == again["id"]
    assert [task["compiled"] for task in off["ledger"]["tasks"]] == [{}, {}]
    first, second = (task["compiled"] for task in on["ledger"]["tasks"])
    assert first["graphs"] > 0 < first["seconds"]
    assert (first["breaks"], second["breaks"], second["graphs"]) == (0, 0, 0)
    assert on["job"]["compile"] == "on"
    assert [task["steps"] for task in on["ledger"]["tasks"]] == [
        task["steps"] for task in off["ledger"]["tasks"]
    ]
