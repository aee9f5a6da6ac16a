"""A base in four bits, from the recipe to the exported model: what is learnt on it, what its runs are called, and what is refused."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file
from tiny_runs import made_once

import cl_zoo
import cl_zoo.testing.tiny_models as models
from cl_zoo.batches import prepare as prepared_for
from cl_zoo.engine.run import Run
from cl_zoo.errors import OptionError
from cl_zoo.export.writing import export
from cl_zoo.names import parse_stack
from cl_zoo.nn.fourbit import FourBit
from cl_zoo.runs import prepared
from cl_zoo.runs.comparison import Result
from cl_zoo.runs.foreseen import foreseen
from cl_zoo.runs.job import Job
from cl_zoo.runs.prepared import FOUR_BIT, prepare
from cl_zoo.runs.restore import restore
from cl_zoo.testing import TEMPLATE, tiny_benchmark, tiny_checkpoint, tiny_clip

needs_bitsandbytes = pytest.mark.skipif(
    prepared.four_bit_missing() is not None, reason="bitsandbytes is not installed"
)
NF4 = {"quantization": "nf4"}
SAMPLES = tuple(sample for task in tiny_benchmark().tasks for sample in task.test)
READERS = ("finetune", "modeltailor", "merging[rule=ties,of=update]", "sefe", "hide", "l2p", "moelora")
"""Of these `modeltailor` reads W, `merging` its type, `sefe` products of updates; the others stand for routes, prompts and gates."""

Make = Callable[..., Result]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA with whole blocks in each row, for the kernels that stock PEFT calls; see `cl_zoo.nn.fourbit._written_out`."""
    folder = tmp_path_factory.mktemp("base")
    decoder = models._decoder
    with pytest.MonkeyPatch.context() as patched:
        wide = {"hidden_size": 64, "intermediate_size": 128}
        patched.setattr(models, "_decoder", lambda *given: {**decoder(*given), **wide})
        tiny_checkpoint(folder / "llava")
    tiny_clip(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Make:
    """A finished run of a stack on the tiny benchmark; each is made once."""
    out = tmp_path_factory.mktemp("runs")

    @made_once
    def made(method: str, **settings: Any) -> Result:
        return cl_zoo.run(method, **{**asked(base), "out": out, **settings})

    return made


def asked(base: Path) -> dict[str, Any]:
    return {
        "benchmark": "cl_zoo.testing:load_tiny",
        "backbone": str(base / "llava"),
        "features": str(base / "clip"),
        "template": TEMPLATE,
        "device": "cpu",
        "limit": 6,
        "options": {},
    }


def answers(result: Result) -> dict[str, bytes]:
    assert result.folder is not None
    return {file.name: file.read_bytes() for file in (result.folder / "answers").iterdir()}


def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits  # type: ignore[no-any-return]


# Learning and answering


@needs_bitsandbytes
@pytest.mark.parametrize("method", READERS)
def test_a_method_learns_on_it_and_the_loaded_run_gives_its_answers(make: Make, method: str) -> None:
    result, plain = make(method, recipe=NF4), make(method)
    ledger, other = result.manifest["ledger"], plain.manifest["ledger"]
    task, row = tiny_benchmark().tasks[1], len(result.matrix.scores) - 1
    lines = answers(result)[f"{row}-1.jsonl"].decode().splitlines()
    loaded = cl_zoo.load(str(result.folder))

    said = loaded.generate(
        [one.image for one in task.test],
        [one.prompt for one in task.test],
        max_new_tokens=task.max_new_tokens,
    )
    assert said == [json.loads(line)["answer"] for line in lines]
    assert sum(isinstance(one, FourBit) for one in loaded.restored.backbone.layers.modules()) == 14
    # Costs are counted by what the weights stand for.
    for name in ("trained", "stored", "active", "budget"):
        assert ledger[name] == other[name], name
    assert [one["flops"] for one in ledger["tasks"]] == [one["flops"] for one in other["tasks"]]


@needs_bitsandbytes
def test_what_is_learnt_on_it_is_something_else(make: Make) -> None:
    """In fp32 and in bf16, with fp32 experts in both; and the same where activations are computed again."""
    states = []
    for recipe in ({}, NF4, {**NF4, "precision": "bf16"}, {**NF4, "checkpointing": True}):
        folder = make("finetune", recipe=recipe).folder
        assert folder is not None
        states.append(load_file(folder / "state-2" / "model.safetensors"))

    assert all(state.keys() == states[0].keys() for state in states)
    assert {tensor.dtype for state in states for tensor in state.values()} == {torch.float32}
    name = next(name for name in states[0] if "bank_up" in name)
    for one, other, same in ((0, 1, False), (1, 2, False), (1, 3, True)):
        assert torch.equal(states[one][name], states[other][name]) == same


@needs_bitsandbytes
def test_a_cache_of_fixed_size_changes_no_answer(make: Make) -> None:
    static = make("hide", recipe={**NF4, "static_cache": True})

    assert answers(static) == answers(make("hide", recipe=NF4))


@needs_bitsandbytes
@pytest.mark.parametrize("method", ["finetune", "modeltailor"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    make: Make, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whole, real = make(method, recipe=NF4), Run._learn

    def stopping(self: Run, lesson: Any) -> None:
        if lesson.task.index == 1:
            raise KeyboardInterrupt
        real(self, lesson)

    monkeypatch.setattr(Run, "_learn", stopping)
    with pytest.raises(KeyboardInterrupt):
        cl_zoo.run(method, **asked(base), out=tmp_path, recipe=NF4)
    monkeypatch.setattr(Run, "_learn", real)
    resumed = cl_zoo.run(method, **asked(base), out=tmp_path, recipe=NF4)

    assert whole.folder is not None
    assert resumed.folder is not None
    assert answers(resumed) == answers(whole)
    for file in ("state-2/model.safetensors", "state-2/plugins.safetensors"):
        if (whole.folder / file).exists():
            assert (resumed.folder / file).read_bytes() == (whole.folder / file).read_bytes()
    assert resumed.folder.name == whole.folder.name


# Identity


@needs_bitsandbytes
def test_the_id_of_a_run_is_another_one_with_it_and_the_same_where_it_is_off(make: Make) -> None:
    """`none` is not written, so that no run from before there was a choice gets another id."""
    plain, said, ours = (make("finetune", recipe=one) for one in ({}, {"quantization": "none"}, NF4))
    told = [foreseen([prepare(Job.from_json(one.manifest["job"]))])[0] for one in (plain, said, ours)]

    assert [one["run"] for one in told] == [one.manifest["id"] for one in (plain, said, ours)]
    assert plain.manifest["id"] == said.manifest["id"] != ours.manifest["id"]
    assert "quantization" not in plain.manifest["identity"]["recipe"]
    assert ours.manifest["identity"]["recipe"]["quantization"] == "nf4"
    assert told[0]["training"] != told[2]["training"]
    assert told[0]["ground"] != told[2]["ground"]  # what takes how long is not mixed
    assert ours.manifest["environment"]["versions"]["bitsandbytes"]


# Export


@pytest.fixture
def by_its_card(monkeypatch: pytest.MonkeyPatch, base: Path) -> Callable[[Path], Any]:
    """The model that the lines of a card load, run inside the folder."""

    def load(folder: Path) -> Any:
        found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        assert found
        names: dict[str, Any] = {}
        monkeypatch.chdir(folder)
        exec(re.sub(r"^BASE = .*$", f"BASE = {str(base / 'llava')!r}", found[1], flags=re.MULTILINE), names)
        return names["model"]

    return load


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("method", "merged"), [("finetune", False), ("finetune", True), ("modeltailor", True)], ids=str
)
def test_an_exported_run_is_loaded_by_stock_libraries(
    make: Make, by_its_card: Any, tmp_path: Path, method: str, merged: bool
) -> None:
    """An adapter on the base in four bits, or one checkpoint of W as it was rounded and what was learnt."""
    run = make(method, recipe=NF4).folder
    assert run is not None
    export(run, tmp_path / "out", merged=merged)
    restored = restore(run)
    batch = restored.backbone.batch(SAMPLES, answers=False)
    prepared_for(restored.model, batch)
    images = [sample.image for sample in SAMPLES]
    pixels = restored.backbone.image_processor(images=images, return_tensors="pt")["pixel_values"]
    inputs = {**batch.inputs, "pixel_values": pixels}

    # In training mode, without dropout: while it answers, bitsandbytes packs W anew for some CPUs, and rounds on the way.
    loaded = by_its_card(tmp_path / "out").train()
    packed = [one for one in loaded.modules() if type(one).__name__ == "Linear4bit"]
    assert bool(packed) is not merged
    torch.testing.assert_close(
        logits(loaded, inputs), logits(restored.model, batch.inputs), rtol=1e-5, atol=1e-6
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The run held the base in 4 bits" in card
    assert "quantization: nf4" in card


@needs_bitsandbytes
@pytest.mark.parametrize("method", ["hide", "l2p", "moelora"])
def test_an_exported_folder_answers_from_a_base_in_four_bits(
    make: Make, base: Path, tmp_path: Path, method: str
) -> None:
    run = make(method, recipe=NF4)
    assert run.folder is not None
    export(run.folder, tmp_path / "out")
    places = {"backbone": str(base / "llava")}
    if method != "moelora":
        places["features"] = str(base / "clip")
    exported = cl_zoo.load(str(tmp_path / "out"), **places)
    asked_of = [one.image for one in SAMPLES], [one.prompt for one in SAMPLES]

    assert exported.generate(*asked_of) == cl_zoo.load(str(run.folder)).generate(*asked_of)
    assert any(isinstance(one, FourBit) for one in exported.restored.backbone.model.modules())
    assert not (
        tmp_path / "out" / "answer.py"
    ).exists()  # what stock libraries compute is not what the run did
    assert "no program that answers without cl_zoo: the run held the base in 4 bits" in (
        tmp_path / "out" / "README.md"
    ).read_text().replace("\n", " ")


# What is refused


@pytest.fixture(params=[(None, "is not installed"), ("0.44.1", "is 0.44.1 here")], ids=["missing", "old"])
def lacking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine without the package, or with an older one; the sentence that says so."""
    version, says = request.param
    monkeypatch.setattr(prepared, "version_of", lambda name: version)
    return f"recipe.quantization=nf4 takes {FOUR_BIT}, which {says}; pip install 'cl-zoo[4bit]'"


def test_a_missing_package_is_one_sentence_before_anything_starts(
    lacking: str, cli: Callable[..., Any], tmp_path: Path
) -> None:
    tiny = ("--benchmark", "cl_zoo.testing:load_tiny", "--device", "cpu", "--out", tmp_path / "runs")
    ended = cli("run", "finetune", *tiny, "--set", "quantization=nf4")

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines()[-1] == f"error: {lacking}"
    assert not (tmp_path / "runs").exists()
    job = Job(parse_stack("finetune"), benchmark="cl_zoo.testing:load_tiny", recipe=NF4)
    with pytest.raises(OptionError, match=re.escape(lacking)):
        prepare(job)


@needs_bitsandbytes
def test_a_finished_run_cannot_answer_without_the_package(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make("finetune", recipe=NF4).folder
    assert run is not None
    monkeypatch.setattr(prepared, "version_of", lambda name: None)

    with pytest.raises(OptionError, match=r"recipe\.quantization=nf4 takes .* is not installed"):
        restore(run)


def test_processes_cannot_share_it() -> None:
    job = Job(parse_stack("finetune"), benchmark="cl_zoo.testing:load_tiny", recipe=NF4, sharding="fsdp")
    says = "--sharding fsdp: processes cannot share weights of 4 bits, as recipe.quantization=nf4 makes them; leave out one of the two"

    with pytest.raises(OptionError, match=re.escape(says)):
        prepare(job)


def test_the_extra_of_the_distribution_brings_what_is_asked_for() -> None:
    content = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = content["project"]["optional-dependencies"]

    assert [Requirement(one) for one in extras["4bit"]] == [Requirement(FOUR_BIT)]
    assert "4bit" in extras["test"][0]
