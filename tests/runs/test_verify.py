"""A run on disk is whole or says what is damaged; what is taken out comes back with the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import resealed

import cl_zoo
from cl_zoo.engine.folder import read_manifest
from cl_zoo.engine.states import states_in
from cl_zoo.errors import RunError
from cl_zoo.runs.verify import Verified, repair, verify
from cl_zoo.scoring.scorer import Scorer

SETTINGS: dict[str, Any] = {
    "benchmark": "cl_zoo.testing:load_tiny",
    "backbone": "cl_zoo.testing:load_tiny_backbone",
    "device": "cpu",
    "limit": 4,
}
KINDS = {
    "answers/0-0.jsonl": "learns tasks 1 to 1 once more, makes 1 answer files anew and goes on after task 2",
    "answers/1-1.jsonl": "makes 1 answer files anew and goes on after task 2",
    "expected/1.jsonl": "goes on after task 2",
    "manifest.json": "goes on after task 2",
    "identity.json": None,
    "state-2/files.json": None,
    "state-2/model.safetensors": "learns from task 1 on",
    "state-2/plugins.safetensors": "learns from task 1 on",
    "state-2/state.json": "learns from task 1 on",
}
"""What repairing a finished run of two tasks costs, by the damaged file; nothing where the manifest holds a copy."""


def again(out: Path, watch: Callable[[dict[str, Any]], None] = lambda event: None) -> Any:
    return cl_zoo.run("ewc", out=out, watch=watch, **SETTINGS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = again(tmp_path_factory.mktemp("runs")).folder
    assert folder is not None
    return Path(folder)


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "runs" / made.name))


def checked(folder: Path) -> Verified:
    with Scorer() as scorer:
        return verify(folder, scorer)


def flip(file: Path, place: int = -3) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def lasting(folder: Path) -> dict[str, bytes]:
    """The files whose bytes depend on nothing but what decides the result."""
    found = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return {
        name: file.read_bytes()
        for name, file in found.items()
        if file.suffix != ".json" or name == "identity.json"
    }


def test_every_file_of_a_run_is_listed_and_a_whole_run_says_so(made: Path):
    files = {file.relative_to(made).as_posix() for file in made.rglob("*") if file.is_file()}

    assert set(read_manifest(made)["files"]) == files - {"manifest.json"}
    assert set(KINDS) <= files
    assert checked(made).text() == f"{made}: whole, {len(files) - 1} files"


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
@pytest.mark.parametrize("name", KINDS)
def test_damage_is_found_and_named_in_every_kind_of_file(copied: Path, name: str, how: str):
    file = copied / name
    if how == "flipped":
        flip(file)
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()

    assert list(checked(copied).damaged) == [name]


@pytest.mark.parametrize("name", KINDS)
def test_what_is_repaired_comes_back_with_the_same_bytes(made: Path, copied: Path, name: str):
    flip(copied / name)
    learnt: list[str] = []

    sentence = repair(checked(copied))
    again(
        copied.parent,
        lambda event: learnt.append(event["task"]) if event.get("phase") == "after_task" else None,
    )

    assert name in sentence
    assert "\n" not in sentence
    assert sentence.endswith(KINDS[name] or f"{copied.name}.damaged")
    assert len(learnt) == (2 if "learns from" in sentence else 1 if "once more" in sentence else 0)
    assert (
        copied.parent / f"{copied.name}.damaged" / name.partition("/state")[0]
    ).exists() or "state-2" in name
    assert lasting(copied) == lasting(made)
    assert checked(copied).damaged == {}
    for key in ("scores", "matrix", "tasks", "lessons", "measured"):
        assert read_manifest(copied)[key] == read_manifest(made)[key]


def test_a_damaged_file_costs_nothing_that_does_not_depend_on_it(copied: Path):
    """Answers do not matter to the model, nor does the model to the scores."""
    flip(copied / "answers/0-0.jsonl")
    assert len(cl_zoo.load(copied, device="cpu").generate([None], ["What colour is it ?"])) == 1
    with pytest.raises(RunError, match=r"0-0\.jsonl is not what was written .*verify .* --repair"):
        cl_zoo.load(copied).table()
    with pytest.raises(RunError, match=r"0-0\.jsonl is not what was written"):
        again(copied.parent).row()
    flip(copied / "answers/0-0.jsonl")
    flip(copied / "state-2/model.safetensors")

    assert again(copied.parent).matrix.last is not None
    with pytest.raises(RunError, match=r"model\.safetensors is not what was written .*verify .* --repair"):
        cl_zoo.load(copied, device="cpu").generate([None], ["What colour is it ?"])


def test_an_edited_score_is_refused_and_one_with_a_new_seal_is_found_by_scoring_again(copied: Path):
    text = (copied / "manifest.json").read_text()
    stored = read_manifest(copied)["scores"]["1-0"]["value"]
    edited = text.replace(f'"value": {stored}', '"value": 49.67')
    assert edited != text
    (copied / "manifest.json").write_text(edited)
    with pytest.raises(RunError, match=r"manifest\.json was changed after it was written"):
        cl_zoo.load(copied)
    (copied / "manifest.json").write_text(text)

    resealed(copied, lambda manifest: manifest["scores"]["1-0"].update(value=49.67))
    assert checked(copied).damaged == {
        "manifest.json": f"gives 49.67 for cell 1-0, its answers score {stored:.2f}"
    }
    resealed(copied, lambda manifest: manifest["scores"]["1-0"].update(value=stored))
    resealed(copied, lambda manifest: manifest["matrix"]["scores"][1].__setitem__(0, 49.67))
    assert list(checked(copied).damaged) == ["manifest.json"]


def test_a_run_from_before_there_were_lists_is_read_and_said_to_be_one(copied: Path):
    (copied / "state-2/files.json").unlink()
    resealed(copied, lambda manifest: None)
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest["seal"]
    (copied / "manifest.json").write_text(json.dumps(manifest))

    assert checked(copied).text() == (
        f"{copied}: whole, 0 files; it is from before files were listed, so only its scores can be told"
    )
    assert len(cl_zoo.load(copied, device="cpu").generate([None], ["What colour is it ?"])) == 1


@pytest.mark.parametrize(
    "name", ["../elsewhere.txt", "/etc/hostname", "answers/../../elsewhere.txt", "a/b/c"]
)
def test_a_list_that_names_what_is_no_file_of_a_run_moves_nothing(copied: Path, name: str):
    (copied.parent / "elsewhere.txt").write_text("mine")

    def lie(manifest: dict[str, Any]) -> None:
        manifest["files"] = {name: {"size": 1, "sha256": "0"}}

    resealed(copied, lie)
    with pytest.raises(RunError, match="which is no file of a run; do not use the folder"):
        checked(copied)
    resealed(copied, lambda manifest: manifest.pop("scores"))
    with pytest.raises(RunError, match=r"is not what this program writes \('scores'\)"):
        checked(copied)
    assert (copied.parent / "elsewhere.txt").read_text() == "mine"


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "learnt"),
    [
        ("state-1/model.safetensors", 2),
        ("answers/0-0.jsonl", 1),
        ("identity.json", 1),
        ("state-1/files.json", 2),
    ],
)
def test_a_run_that_is_not_finished_is_checked_and_goes_on(
    made: Path, tmp_path: Path, name: str, learnt: int
):
    def stop(event: dict[str, Any]) -> None:
        if event.get("phase") == "train" and event["index"] == 1:
            raise Stop

    with pytest.raises(Stop):
        again(tmp_path, stop)
    partial = tmp_path / f"{made.name}.partial"
    assert checked(partial).damaged == {}
    flip(partial / name)
    assert list(checked(partial).damaged) == [name]
    with pytest.raises(RunError, match=f"{Path(name).name}.*verify .*partial --repair"):
        again(tmp_path)
    tasks: list[str] = []

    repair(checked(partial))
    assert checked(partial).damaged == {}
    again(tmp_path, lambda event: tasks.append(event["task"]) if event.get("phase") == "after_task" else None)

    assert len(tasks) == learnt
    assert lasting(tmp_path / made.name) == lasting(made)


def test_a_state_that_is_damaged_costs_the_tasks_behind_the_former_one(tmp_path: Path):
    """Of an unfinished run two states are kept; a run that is finished keeps the last."""
    settings = {**SETTINGS, "order": "CSC"}

    def stop(event: dict[str, Any]) -> None:
        if event.get("phase") == "train" and event["index"] == 2:
            raise Stop

    with pytest.raises(Stop):
        cl_zoo.run("ewc", out=tmp_path, watch=stop, **settings)
    (partial,) = tmp_path.glob("*.partial")
    assert [state.name for state in states_in(partial)] == ["state-1", "state-2"]
    flip(partial / "state-2/model.safetensors")
    tasks: list[int] = []

    assert repair(checked(partial)).endswith("learns from task 2 on")
    result = cl_zoo.run(
        "ewc",
        out=tmp_path,
        watch=lambda event: tasks.append(event["index"]) if event.get("phase") == "after_task" else None,
        **settings,
    )

    assert tasks == [1, 2]
    assert [state.name for state in states_in(result.folder)] == ["state-3"]


def timeless(folder: Path) -> dict[str, Any]:
    """A manifest without clocks and memory, and without where it was made."""
    manifest = read_manifest(folder)
    ledger = {**manifest["ledger"], "tasks": [{**task, "seconds": 0} for task in manifest["ledger"]["tasks"]]}
    for name in ("seconds", "hooks", "evaluation_seconds", "peak_memory_mb"):
        del ledger[name]
    files = {name: one for name, one in manifest["files"].items() if not name.endswith(".json")}
    left_out = dict.fromkeys(("besides", "environment", "job", "seal"))
    return {**manifest, **left_out, "ledger": ledger, "files": files}


def test_a_checkpoint_within_a_task_is_checked_and_is_all_that_its_damage_costs(tmp_path: Path):
    settings = {**SETTINGS, "limit": 8}  # two steps a task
    whole = cl_zoo.run("ewc", out=tmp_path / "whole", **settings).folder
    place, told = "state-1-step-1", list[str]()

    def stop(event: dict[str, Any]) -> None:
        if event.get("phase") == "kept" and event["index"] == 1:
            raise Stop

    def go_on() -> Path:
        told.clear()
        result = cl_zoo.run(
            "ewc", out=tmp_path, watch=lambda event: told.append(event.get("phase", "")), **settings
        )
        return Path(result.folder)

    with pytest.raises(Stop):
        cl_zoo.run("ewc", out=tmp_path, watch=stop, checkpoint_every=1e-9, **settings)
    (partial,) = tmp_path.glob("*.partial")
    assert checked(partial).damaged == {}
    shutil.copytree(partial, tmp_path / "kept" / partial.name)
    for name in ("files.json", "model.safetensors", "plugins.safetensors", "state.json"):
        for found in ([f"{place}/{name}"], []):  # there and back
            flip(partial / place / name)
            assert list(checked(partial).damaged) == found

    flip(partial / place / "model.safetensors")
    assert repair(checked(partial)).endswith("goes on after task 1")
    assert checked(partial).damaged == {}
    anew = go_on()
    assert "resumed" not in told
    assert (lasting(anew), timeless(anew)) == (lasting(whole), timeless(whole))
    shutil.rmtree(anew)
    (tmp_path / "kept" / partial.name).rename(partial)
    resumed = go_on()
    assert "resumed" in told
    assert (lasting(resumed), timeless(resumed)) == (lasting(whole), timeless(whole))


def test_verify_says_on_the_command_line_what_is_damaged_and_repairs_it(copied: Path, cli: Any):
    ended = cli("verify", copied)
    assert (ended.code, ended.err) == (0, "")
    flip(copied / "answers/0-0.jsonl")

    ended = cli("verify", copied)
    assert ended.code == 2
    assert ended.out.splitlines() == [
        f"{copied}/answers/0-0.jsonl is not what was written (its SHA-256 differs)",
        f"pass --repair to take out what is damaged in {copied}",
    ]
    ended = cli("verify", copied, "--json")
    assert ended.code == 2
    assert list(json.loads(ended.out)[0]["damaged"]) == ["answers/0-0.jsonl"]
    ended = cli("verify", copied, "--repair")
    assert ended.code == 0
    assert ended.out.count("\n") == 2
    assert not copied.exists()
    assert Path(f"{copied}.partial").is_dir()
    assert cli("verify", copied.parent).code == 2  # a folder of runs is none
