"""Listing a folder of runs and removing from it what is named: nothing else, nothing in use, nothing behind a link."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kept_runs import begin_run, write_run

from cl_zoo.engine.files import write_json
from cl_zoo.engine.folder import locked
from cl_zoo.errors import OptionError
from cl_zoo.runs.cleaning import KINDS, named, remove
from cl_zoo.runs.listing import listed, text


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Another process that holds a run."""
    code = "import sys; from pathlib import Path; from cl_zoo.engine.folder import locked\nwith locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.communicate()


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with a finished run, an unfinished one and everything beside them."""
    root = tmp_path / "runs"
    finished = write_run(root, "ewc")
    (finished / "state-2").mkdir()
    (finished / "state-2" / "model.safetensors").write_bytes(b"weights")
    begin_run(root, "hide")
    aside = root / f"{finished.name}.damaged"
    for folder in (aside, root / "trained" / finished.name, root / "preflight", root / "logs"):
        folder.mkdir(parents=True)
    (root / "preflight" / "65d6139b.gz").write_bytes(b"known")
    (root / "logs" / "worker-0.log").write_text("line\n")
    return root


def test_a_listing_says_how_far_each_run_is(out: Path):
    found = {one.label: one for one in listed(out) if one.state != "set aside"}

    assert found["ewc"].state == "finished"
    assert (found["hide"].state, found["hide"].done, found["hide"].tasks) == ("in part", 1, 2)
    assert found["hide"].size >= len("weights")
    assert found["hide"].order == ("render", "chart")
    lines = text(listed(out)).splitlines()
    assert lines[0].split() == ["Label", "Seed", "Order", "Size", "Age", "State"]
    assert any(line.endswith("in part: 1 of 2 tasks") for line in lines)
    assert lines[-1].endswith(": 1 finished, 1 in part, 1 set aside")


def test_what_learns_all_tasks_at_once_has_one_to_learn(tmp_path: Path):
    partial = begin_run(tmp_path, "multitask")
    identity = json.loads((partial / "identity.json").read_text())
    write_json(partial / "identity.json", {**identity, "chain": [{"task": "render, chart", "link": "1f"}]})

    assert [one.words for one in listed(tmp_path)] == ["in part: 1 of 1 tasks"]


def test_a_run_whose_files_are_gone_is_damaged_and_one_without_checkpoint_is_not(out: Path):
    (finished,) = (one.folder for one in listed(out) if one.state == "finished")
    list(remove(named(out, ["states"])))
    assert next(one.state for one in listed(out) if one.label == "ewc") == "finished"

    (finished / "answers" / "1-1.jsonl").unlink()

    (found,) = (one for one in listed(out) if one.folder == finished)
    assert found.words == "damaged: answers/1-1.jsonl is missing"


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_named_is_removed(out: Path, kind: str):
    before = everything(out)
    gone = {item.path for item in remove(named(out, [kind])) if not item.kept}

    assert len(gone) == 1
    left = before - everything(out)
    assert left
    assert all(any(path == out / name or path in (out / name).parents for path in gone) for name in left)


def test_nothing_is_removed_before_it_was_asked_for(out: Path):
    before = everything(out)

    assert len(named(out, list(KINDS))) == len(KINDS)
    assert everything(out) == before
    with pytest.raises(OptionError, match="only what is named; pass one or more of --partial"):
        named(out, [])


def test_a_run_in_use_stays_and_is_listed_as_locked(out: Path):
    (partial,) = out.glob("*.partial")
    run = partial.with_name(partial.name.removesuffix(".partial"))
    with held(run):
        states = {one.label: one.state for one in listed(out) if one.state != "set aside"}
        shown = named(out, ["partial", "trained", "logs"])
        ended = list(remove(shown))

    assert states == {"ewc": "finished", "hide": "locked"}
    assert [bool(item.kept) for item in ended] == [True, True, True]
    assert partial.is_dir()


def test_a_run_that_is_taken_up_between_showing_and_removing_stays(out: Path):
    (partial,) = out.glob("*.partial")
    shown = named(out, ["partial"])
    with held(partial.with_name(partial.name.removesuffix(".partial"))):
        (item,) = remove(shown)

    assert "another process is working on it" in item.kept
    assert partial.is_dir()


def test_links_are_neither_followed_nor_removed(out: Path, tmp_path: Path):
    outside = tmp_path / "mine"
    (outside / "state-1").mkdir(parents=True)
    (outside / "thesis.txt").write_text("the only copy")
    link = out / "mini-lwf-s0-0123456789ab.partial"
    link.symlink_to(outside)
    (partial,) = (path for path in out.glob("*hide*.partial"))
    (partial / "data").symlink_to(outside)
    (out / "trained" / "mini-lwf-s0-0123456789ab").symlink_to(outside)

    ended = list(remove(named(out, list(KINDS))))

    assert {item.path.name: item.kept for item in ended if item.kept} == {
        link.name: "it is a link",
        "mini-lwf-s0-0123456789ab": "it is a link",
    }
    assert everything(outside) == {"state-1", "thesis.txt"}
    assert link.is_symlink()
    assert not partial.exists()


def test_folders_that_only_look_like_runs_stay(out: Path):
    mine = out / "notes.partial"
    mine.mkdir()

    list(remove(named(out, ["partial", "damaged"])))

    assert mine.is_dir()


def test_of_a_cache_only_shelves_are_removed(out: Path, tmp_path: Path):
    from cl_zoo.features.shelves import Shelf

    cache = tmp_path / "cache"
    shelf = Shelf(cache, "clip")
    import torch

    shelf.put(b"key", torch.ones(3))
    (cache / "other.index").write_bytes(b"something else")

    ended = list(remove(named(out, [], cache)))

    assert len(ended) == 2
    assert everything(cache) == {"other.index"}


def test_the_lock_of_a_process_that_is_gone_locks_nothing(out: Path):
    (partial,) = out.glob("*.partial")
    lock = out / f".{partial.name.removesuffix('.partial')}.lock"
    lock.touch()

    assert [one.state for one in listed(out) if one.label == "hide"] == ["in part"]
    list(remove(named(out, ["partial"])))
    assert not partial.exists()
    with locked(partial.with_suffix("")):
        assert os.path.exists(lock)
