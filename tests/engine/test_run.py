"""A run: what the engine guarantees whatever the method does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import relisted
from torch import Tensor, nn

import cl_zoo.engine.learning
from cl_zoo import Batch, Sample, Task, hookimpl
from cl_zoo.backbones.backbone import Backbone
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.folder import RunFolder
from cl_zoo.engine.run import Run
from cl_zoo.errors import PluginError, RunError
from cl_zoo.names import parse_stack
from cl_zoo.nn.placing import adapters
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import TaskData
from cl_zoo.testing import tiny_backbone, tiny_benchmark

BENCHMARK = tiny_benchmark(3, size=8)
TWICE = BENCHMARK.stream("CSC")
HERE = __file__


class Stop(Exception):
    """The run was interrupted here."""


def start(
    text: str,
    folder: Path,
    root: Path,
    *,
    tasks: Sequence[TaskData] = BENCHMARK.tasks[:2],
    cells: str = "lower",
    seed: int = 0,
    kind: type[Run] = Run,
    **recipe: Any,
) -> Run:
    """Execute a run in `root`; `folder` holds the tiny backbone's files, `HERE:Class` is a plugin of this file."""
    with RunFolder(root, "run", {}) as runs:
        run = kind(
            Plugins(parse_stack(text)),
            tasks,
            tiny_backbone(folder),
            build_recipe(BENCHMARK.recipe, {"adapter.rank": 2, **recipe}),
            seed=seed,
            cells=cells,
            folder=runs,
            world=World("cpu"),
            report=lambda **_: None,
        )
        run.execute()
    return run


def weights(run: Run) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in run.model.state_dict().items()}


def answered(run: Run) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (run.folder.partial / "answers").iterdir()}


def assert_equal(one: Run, other: Run) -> None:
    """The same weights, answers, measurements and plugin states, bit for bit."""
    assert weights(one).keys() == weights(other).keys()
    for name, weight in weights(one).items():
        assert torch.equal(weight, weights(other)[name]), name
    assert answered(one) == answered(other)
    assert one.measured == other.measured
    for a, b in zip(one.ledger.tasks, other.ledger.tasks, strict=True):
        assert replace(a, seconds=0) == replace(b, seconds=0)


# --- seeds and resuming ---------------------------------------------------------------------------------------------


def test_a_seed_decides_everything_bit_for_bit(tiny_folder: Path, tmp_path: Path) -> None:
    """Another seed another thing; that every method keeps to its seed is the promise `seeds`."""
    first, again = (start("finetune", tiny_folder, tmp_path / str(i)) for i in range(2))
    other = start("finetune", tiny_folder, tmp_path / "other", seed=1)

    assert_equal(first, again)
    assert not all(torch.equal(weights(first)[name], weights(other)[name]) for name in weights(first))


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs that were never stopped, by method."""
    made: dict[str, Run] = {}

    def get(method: str) -> Run:
        if method not in made:
            made[method] = start(method, tiny_folder, tmp_path_factory.mktemp("whole"), tasks=TWICE)
        return made[method]

    return get


def stopping(after: int, early: bool = False) -> type[Run]:
    """A run that is interrupted when `after` tasks are done, right before or after its checkpoint."""

    class Stopping(Run):
        def _checkpoint(self, done: int) -> None:
            if early and done == after:
                raise Stop
            super()._checkpoint(done)
            if done == after:
                raise Stop

    return Stopping


@pytest.mark.parametrize(
    ("method", "after", "early"), [("ewc", 1, False), ("hide", 2, True)], ids=["after 1", "while answering 2"]
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    tiny_folder: Path, tmp_path: Path, whole: Any, method: str, after: int, early: bool
) -> None:
    with pytest.raises(Stop):
        start(method, tiny_folder, tmp_path, tasks=TWICE, kind=stopping(after, early))

    resumed = start(method, tiny_folder, tmp_path, tasks=TWICE)

    assert_equal(resumed, whole(method))
    assert resumed.ledger.stored == whole(method).ledger.stored


def test_a_run_that_was_stopped_behind_its_last_task_has_nothing_left_to_learn(
    tiny_folder: Path, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_stopped = whole("hide")
    with pytest.raises(Stop):
        start("hide", tiny_folder, tmp_path, tasks=TWICE, kind=stopping(3))
    monkeypatch.setattr(cl_zoo.engine.learning.Learner, "step", lambda *_: pytest.fail("learnt again"))

    assert_equal(start("hide", tiny_folder, tmp_path, tasks=TWICE), never_stopped)


def test_nothing_in_a_run_folder_is_a_pickle(whole: Any) -> None:
    files = [file for file in whole("ewc").folder.partial.rglob("*") if file.is_file()]

    assert {file.suffix for file in files} == {".json", ".jsonl", ".safetensors"}
    for file in files:
        if file.suffix == ".safetensors":
            load_file(file)
        else:
            for line in [file.read_text()] if file.suffix == ".json" else file.read_text().splitlines():
                json.loads(line)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", r"lacks tensor .*bank_up\.shared"),
        ("extra", "holds an unknown tensor strange"),
        ("misshapen", r"bank_up\.shared has shape \(1,\), the model wants \(\d+, 2\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tiny_folder: Path, tmp_path: Path, damage: str, words: str
) -> None:
    with pytest.raises(Stop):
        start("finetune", tiny_folder, tmp_path, kind=stopping(1))
    file = tmp_path / "run.partial/state-1/model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("bank_up.shared"))
    if damage == "missing":
        del tensors[name]
    else:
        tensors["strange" if damage == "extra" else name] = torch.zeros(1)
    save_file(tensors, file)
    relisted(file.parent)

    with pytest.raises(RunError, match=words + ".*delete the folder"):
        start("finetune", tiny_folder, tmp_path)


# --- what stays as it is --------------------------------------------------------------------------------------------


def test_a_frozen_projector_stays_and_so_does_all_else_that_is_the_backbones(
    tiny_folder: Path, tmp_path: Path
) -> None:
    run = start("finetune", tiny_folder, tmp_path, projector="frozen")

    fresh = tiny_backbone(tiny_folder).model.state_dict()
    found = {name.replace("base_layer.", "").removeprefix("model."): w for name, w in weights(run).items()}
    for name, weight in fresh.items():
        assert torch.equal(found[name], weight), name


class Plain:
    """Fine-tuning, to be meddled with."""

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Any) -> nn.Module:
        self.bank = adapters(backbone, recipe)
        return self.bank


class Silencer(Plain):
    """Answers with a model in which it has switched everything off."""

    @hookimpl
    def build_inference_model(self, model: Any) -> nn.Module:
        model.use([])
        model.requires_grad_(False)
        for layer in model.layers:
            layer.bank_mix = nn.Identity()
        return model  # type: ignore[no-any-return]


class Drawer(Plain):
    """Draws random numbers wherever it is asked."""

    @hookimpl
    def before_task(self) -> None:
        torch.rand(7)

    @hookimpl
    def rehearse(self) -> None:
        torch.rand(7)

    @hookimpl
    def after_task(self, batches: Iterable[Batch]) -> None:
        torch.rand(len(list(batches)))


@pytest.mark.parametrize("plugin", ["Silencer", "Drawer"])
def test_what_a_hook_switches_or_draws_does_not_reach_the_next_task(
    tiny_folder: Path, tmp_path: Path, plugin: str
) -> None:
    plain = start(f"{HERE}:Plain", tiny_folder, tmp_path / "plain", tasks=TWICE)
    meddled = start(f"{HERE}:{plugin}", tiny_folder, tmp_path / "meddled", tasks=TWICE)

    for name, weight in weights(plain).items():
        assert torch.equal(weight, weights(meddled)[name]), name
    assert [weight.requires_grad for weight in meddled.model.parameters()] == [
        weight.requires_grad for weight in plain.model.parameters()
    ]
    assert all(layer.experts == ["shared"] and layer.bank_mix is None for layer in meddled.model.layers)


class Cheat(Plain):
    """Changes a weight while it answers, in a way that its subclass chooses."""

    def change(self, model: Any) -> None:
        with torch.no_grad():
            model.layers[0].bank_up["shared"].add_(1)

    @hookimpl
    def build_inference_model(self, model: Any) -> nn.Module:
        self.change(model)
        return model  # type: ignore[no-any-return]


class CheatData(Cheat):
    def change(self, model: Any) -> None:
        model.layers[0].bank_up["shared"].data += 1


class CheatReplace(Cheat):
    def change(self, model: Any) -> None:
        model.layers[0].bank_up["shared"] = nn.Parameter(model.layers[0].bank_up["shared"].detach().clone())


class CheatBackbone(Cheat):
    def change(self, model: Any) -> None:
        with torch.no_grad():
            model.layers[0].base_layer.weight.add_(1)


class CheatAdd(Cheat):
    def change(self, model: Any) -> None:
        model.surplus = nn.Parameter(torch.zeros(1), requires_grad=False)


@pytest.mark.parametrize(
    ("cheat", "weight"),
    [
        ("Cheat", "bank_up.shared"),
        ("CheatData", "bank_up.shared"),
        ("CheatReplace", "bank_up.shared"),
        ("CheatBackbone", "base_layer.weight"),
        ("CheatAdd", "surplus"),
    ],
)
def test_answering_that_changes_a_weight_is_refused(
    tiny_folder: Path, tmp_path: Path, cheat: str, weight: str
) -> None:
    with pytest.raises(PluginError, match=f"answering changed .*{weight}"):
        start(f"{HERE}:{cheat}", tiny_folder, tmp_path)


class Mode(Plain):
    """Answers through an object that does not register the model, and looks at its mode."""

    @hookimpl
    def build_inference_model(self, model: Any) -> nn.Module:
        class Thin(nn.Module):
            def generate(self, **inputs: Any) -> Tensor:
                assert not any(module.training for module in model.modules())
                return model.generate(**inputs)  # type: ignore[no-any-return]

        return Thin()


def test_answers_are_given_in_evaluation_mode(tiny_folder: Path, tmp_path: Path) -> None:
    start(f"{HERE}:Mode", tiny_folder, tmp_path)


class Training(Plain):
    """Looks at the mode of the language model in every hook that gets the model."""

    @hookimpl
    def before_task(self, model: Any) -> None:
        self.look(model)

    @hookimpl
    def loss(self, model: Any) -> None:
        self.look(model)

    @hookimpl
    def after_task(self, model: Any) -> None:
        self.look(model)

    def look(self, model: Any) -> None:
        assert all(layer.training and layer.base_layer.training for layer in model.layers)


def test_hooks_find_the_model_in_training_mode_after_an_interruption_too(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """The backbone is loaded in evaluation mode, so a run that begins or goes on would otherwise differ from one that is under way."""
    with pytest.raises(Stop):
        start(f"{HERE}:Training", tiny_folder, tmp_path, kind=stopping(1))

    assert len(start(f"{HERE}:Training", tiny_folder, tmp_path).ledger.tasks) == 2


# --- the optimiser, the steps, the data -----------------------------------------------------------------------------


def test_each_task_has_an_optimiser_of_its_own(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Optimizer] = []
    real = cl_zoo.engine.learning.make_optimizer

    def make(*arguments: Any) -> torch.optim.Optimizer:
        made.append(real(*arguments))
        assert not made[-1].state
        return made[-1]

    monkeypatch.setattr(cl_zoo.engine.learning, "make_optimizer", make)
    start("finetune", tiny_folder, tmp_path)

    assert len({id(one) for one in made}) == 2
    for optimizer in made:
        assert {int(state["step"]) for state in optimizer.state.values()} == {2}


class Looking(Plain):
    """Keeps what it is shown before and after each task."""

    def __init__(self) -> None:
        self.before: list[list[Sample]] = []
        self.after: list[list[Sample]] = []

    @hookimpl
    def before_task(self, batches: Iterable[Batch]) -> None:
        self.before.append([sample for batch in batches for sample in batch.samples])
        assert all(batch.targets is not None for batch in batches)

    @hookimpl
    def after_task(self, batches: Iterable[Batch]) -> None:
        self.after.append([sample for batch in batches for sample in batch.samples])


def test_a_task_can_be_looked_at_before_it_is_learnt(tiny_folder: Path, tmp_path: Path) -> None:
    """The same samples in the same order as behind it, and none of a later task."""
    run = start(f"{HERE}:Looking", tiny_folder, tmp_path)

    looking = run.plugins.method
    assert looking.before == looking.after == [list(task.train) for task in run.stream]


class Rehearsing(Plain):
    """Gives back the samples of the task before."""

    def __init__(self) -> None:
        self.old: list[Sample] = []

    @hookimpl
    def rehearse(self) -> list[Sample]:
        return self.old[:5]

    @hookimpl
    def after_task(self, batches: Iterable[Batch]) -> dict[str, float]:
        self.old = [sample for batch in batches for sample in batch.samples]
        again = [sample for batch in batches for sample in batch.samples]
        assert self.old == again
        assert all(batch.targets is not None for batch in batches)
        return {"kept": len(self.old)}


def test_rehearsed_samples_are_learnt_in_the_same_number_of_steps_and_counted(
    tiny_folder: Path, tmp_path: Path
) -> None:
    run = start(f"{HERE}:Rehearsing", tiny_folder, tmp_path)

    assert [(task.steps, task.samples, task.rehearsed) for task in run.ledger.tasks] == [
        (2, 8, 0),
        (2, 13, 5),
    ]
    assert run.measured == [{"kept": 8.0}, {"kept": 8.0}]


def test_a_task_that_occurs_twice_is_learnt_in_another_order(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[Task, list[int]]] = []
    real = cl_zoo.engine.learning.Learner.step

    def step(
        self: cl_zoo.engine.learning.Learner, indices: Sequence[int], following: Sequence[int]
    ) -> dict[str, Tensor]:
        taken.append((self.task, list(indices)))
        return real(self, indices, following)

    monkeypatch.setattr(cl_zoo.engine.learning.Learner, "step", step)
    run = start("finetune", tiny_folder, tmp_path, tasks=TWICE)

    assert [(task.index, task.name, task.occurrence) for task, _ in taken[::2]] == [
        (0, "colour", 0),
        (1, "side", 0),
        (2, "colour", 1),
    ]
    first, again = (taken[i][1] + taken[i + 1][1] for i in (0, 4))
    assert sorted(first) == sorted(again) == list(range(8))
    assert first != again
    assert set(answered(run)) == {f"{t}-{i}.jsonl" for t in range(3) for i in range(t + 1)}


def without_images(task: TaskData) -> TaskData:
    splits = {
        name: tuple(replace(sample, image=None) for sample in getattr(task, name))
        for name in ("train", "test")
    }
    return replace(task, **splits)


def test_tasks_without_images_are_learnt_and_answered(tiny_folder: Path, tmp_path: Path) -> None:
    tasks = [without_images(BENCHMARK.tasks[0]), BENCHMARK.tasks[1]]

    run = start("hide", tiny_folder, tmp_path, tasks=tasks)

    assert len(answered(run)) == 3
    assert all(content.count(b"\n") == 4 for content in answered(run).values())


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"checkpointing": True}, {"clip": "norm"}])
def test_the_recipes_other_choices_run(tiny_folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    run = start("hide", tiny_folder, tmp_path, **settings)

    assert all(weight.dtype == torch.float32 for weight in run.model.parameters() if weight.requires_grad)
    assert all(torch.isfinite(weight).all() for weight in weights(run).values())


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ("lower", {"0-0", "1-0", "1-1", "2-0", "2-1", "2-2"}),
        ("last", {"2-0", "2-1", "2-2"}),
        ("full", {f"{t}-{i}" for t in range(3) for i in range(3)}),
    ],
)
def test_cells_say_which_answers_are_written(
    tiny_folder: Path, tmp_path: Path, cells: str, expected: set[str]
) -> None:
    run = start("finetune", tiny_folder, tmp_path, tasks=BENCHMARK.tasks, cells=cells)

    assert {Path(name).stem for name in answered(run)} == expected


@pytest.mark.parametrize(("method", "learnt"), [("multitask", 1), ("zeroshot", 0)])
@pytest.mark.parametrize("cells", ["lower", "last"])
def test_the_other_protocols_have_one_row(
    tiny_folder: Path, tmp_path: Path, method: str, learnt: int, cells: str
) -> None:
    run = start(method, tiny_folder, tmp_path, cells=cells)

    assert {Path(name).stem for name in answered(run)} == {"0-0", "0-1"}
    assert len(run.ledger.tasks) == learnt
    assert run.ledger.evaluation_seconds > 0


def test_a_joint_run_resumes_too(tiny_folder: Path, tmp_path: Path) -> None:
    plain = start("multitask", tiny_folder, tmp_path / "whole")
    with pytest.raises(Stop):
        start("multitask", tiny_folder, tmp_path / "cut", kind=stopping(1))

    assert_equal(start("multitask", tiny_folder, tmp_path / "cut"), plain)


@pytest.mark.parametrize("damage", ["a line lost", "a file lost"])
def test_answers_that_were_damaged_are_found_before_anything_more_is_learnt(
    tiny_folder: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stop):
        start("finetune", tiny_folder, tmp_path, kind=stopping(1))
    file = tmp_path / "run.partial" / "answers" / "0-0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    if damage == "a line lost":
        file.write_text("".join(lines[1:]))
    else:
        file.unlink()
    monkeypatch.setattr(cl_zoo.engine.learning.Learner, "run", lambda self, report: pytest.fail("learnt"))

    words = r"holds \d+ of \d+ bytes" if damage == "a line lost" else "is missing"
    with pytest.raises(RunError, match=rf"0-0\.jsonl {words}; .*verify .*run\.partial --repair"):
        start("finetune", tiny_folder, tmp_path)


def test_answers_and_what_is_expected_stand_in_the_order_of_the_test_split(
    tiny_folder: Path, tmp_path: Path
) -> None:
    run = start("finetune", tiny_folder, tmp_path, tasks=BENCHMARK.tasks[2:], eval_batch=3)

    samples = BENCHMARK.tasks[2].test
    records = [json.loads(line) for line in answered(run)["0-0.jsonl"].splitlines()]
    expected = [
        json.loads(line) for line in (run.folder.partial / "expected/0.jsonl").read_text().splitlines()
    ]
    assert [record["id"] for record in records] == [sample.id for sample in samples]
    assert [(one["answer"], tuple(one["references"])) for one in expected] == [
        (sample.answer, sample.references) for sample in samples
    ]


def test_answers_and_what_is_expected_name_the_record_and_its_picture(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """And what a method answers does not depend on it: a method sees samples, and they hold neither."""
    task = BENCHMARK.tasks[0]
    pictures = []
    for number, sample in enumerate(task.test):
        pictures.append(tmp_path / f"picture-{number}.png")
        sample.image.save(pictures[-1])  # type: ignore[union-attr]
    named = [replace(one, image=file) for one, file in zip(task.test, pictures, strict=True)]
    run, plain = (
        start("finetune", tiny_folder, tmp_path / name, tasks=[replace(task, test=test)])
        for name, test in (("named", named), ("plain", task.test))
    )

    records = [json.loads(line) for line in answered(run)["0-0.jsonl"].splitlines()]
    wanted = (run.folder.partial / "expected/0.jsonl").read_text().splitlines()
    expected = [json.loads(line) for line in wanted]
    for one in (records, expected):
        assert [(r["place"], r["picture"]) for r in one] == [(n, p.name) for n, p in enumerate(pictures)]
    unnamed = [json.loads(line) for line in answered(plain)["0-0.jsonl"].splitlines()]
    assert [one["answer"] for one in unnamed] == [one["answer"] for one in records]
    assert set(unnamed[0]) == {"id", "place", "prompt", "answer"}


class Nosy(Plain):
    """Keeps everything that it is shown."""

    shown: list[Any]

    @hookimpl
    def before_task(self, task: Task) -> None:
        self.tasks = [*getattr(self, "tasks", []), task]

    @hookimpl
    def build_inference_model(self, model: Any, tasks_seen: Sequence[Task]) -> nn.Module:
        plugin = self
        plugin.shown = getattr(plugin, "shown", [])

        class Asked(nn.Module):
            def prepare(self, batch: Batch) -> None:
                plugin.shown.append((batch, list(tasks_seen)))

            def generate(self, **inputs: Any) -> Tensor:
                plugin.shown[-1] += (inputs,)
                return model.generate(**inputs)  # type: ignore[no-any-return]

        return Asked()


def test_a_method_that_answers_is_told_neither_the_task_nor_the_answer(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Both tasks show the same images; only the wording of a prompt tells them apart."""
    run = start(f"{HERE}:Nosy", tiny_folder, tmp_path)

    nosy = run.plugins.method
    assert [len(seen) for _, seen, _ in nosy.shown] == [1, 2, 2]
    for batch, _, inputs in nosy.shown:
        assert batch.targets is None
        assert {name for name, value in inputs.items() if isinstance(value, Tensor)} == {
            "input_ids",
            "attention_mask",
            "pixel_values",
        }
        for sample in batch.samples:
            assert (sample.answer, sample.references) == (None, ())
            assert "colour" not in sample.id
            assert "side" not in sample.id
    told = {name for name, value in inputs.items() if not isinstance(value, Tensor)}
    assert told == {"max_new_tokens", "do_sample", "num_beams", "pad_token_id", "eos_token_id"}


def test_a_hook_sees_of_a_task_what_it_may_know(tiny_folder: Path, tmp_path: Path) -> None:
    run = start(f"{HERE}:Nosy", tiny_folder, tmp_path)

    assert run.plugins.method.tasks == [
        Task(0, "colour", "Answer with one word .", 8),
        Task(1, "side", "Answer with one word .", 8),
    ]
    assert [field.name for field in fields(Task)] == ["index", "name", "instruction", "size", "occurrence"]
