"""Kills at random moments and flipped bits in random places: nothing is lost but what was being made, nothing damaged is used."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from pathlib import Path

import pytest

import cl_zoo
from cl_zoo.engine.folder import read_manifest
from cl_zoo.runs.verify import repair, verify
from cl_zoo.scoring.scorer import Scorer

pytestmark = pytest.mark.slow

KILLS, FLIPS = 25, 3
FORK = multiprocessing.get_context("fork")
"""What is killed has torch loaded already, so that a kill meets the run and not its imports."""


def run(out: Path, told: list[str] | None = None) -> None:
    """Five steps a task, with a checkpoint behind each of them."""
    cl_zoo.run(
        "ewc",
        benchmark="cl_zoo.testing:load_tiny",
        backbone="cl_zoo.testing:load_tiny_backbone",
        device="cpu",
        limit=4,
        recipe={"epochs": 5, "adapter.dropout": 0.2},
        checkpoint_every=1e-9,
        out=out,
        watch=lambda event: None if told is None else told.append(event.get("phase", "")),
    )


def finish(out: Path, told: list[str] | None = None) -> Path:
    """The folder of the run, after its command has ended."""
    run(out, told)
    (folder,) = (path for path in out.glob("tiny-ewc-*") if path.suffix == "")
    return folder


def lasting(folder: Path) -> dict[str, bytes]:
    """The files whose bytes depend on nothing but what decides the result."""
    found = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    timed = {"manifest.json", "state-2/state.json", "state-2/files.json"}
    return {name: file.read_bytes() for name, file in found.items() if name not in timed}


def damaged(folder: Path) -> list[str]:
    with Scorer() as scorer:
        return list(verify(folder, scorer).damaged)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nobody disturbed, and the seconds that it takes."""
    finish(tmp_path_factory.mktemp("first"))  # what is loaded once is loaded
    began = time.monotonic()
    folder = finish(tmp_path_factory.mktemp("whole"))
    return folder, time.monotonic() - began


def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_bytes(
    whole: tuple[Path, float], tmp_path: Path
) -> None:
    moments, kills, finished, told = random.Random(0), 0, 0, list[str]()
    while kills < KILLS:
        out = tmp_path / str(finished)
        process = FORK.Process(target=run, args=(out,))
        process.start()
        time.sleep(moments.uniform(0, whole[1]))
        process.kill()
        process.join()
        kills += process.exitcode != 0
        for left in out.glob("tiny-ewc-*/identity.json"):
            assert damaged(left.parent) == []
        if kills % 3 == 0 or any(out.glob("tiny-ewc-*/manifest.json")):
            assert lasting(finish(out, told)) == lasting(whole[0])
            finished += 1
    within = told.count("resumed")
    assert within
    print(f"{kills} kills, {finished} runs finished with the same bytes, {within} of them from within a task")


def test_a_flipped_bit_in_any_file_is_found_named_and_repaired(
    whole: tuple[Path, float], tmp_path: Path
) -> None:
    """One bit at a time; of each kind of file one is repaired and made anew, since that costs a training."""
    places, tried, kinds = random.Random(1), 0, set[str]()
    files = sorted(file.relative_to(whole[0]) for file in whole[0].rglob("*") if file.is_file())
    for name in files:
        folder = tmp_path / "runs" / whole[0].name
        for _ in range(FLIPS):
            shutil.rmtree(folder.parent, ignore_errors=True)
            shutil.copytree(whole[0], folder)
            content = bytearray((folder / name).read_bytes())
            content[places.randrange(len(content))] ^= 1 << places.randrange(8)
            (folder / name).write_bytes(content)
            with Scorer() as scorer:
                found = verify(folder, scorer)
            assert list(found.damaged) == [name.as_posix()]
            tried += 1
        kind = name.parts[0] if len(name.parts) > 1 and not name.parts[0].startswith("state") else name.name
        if kind not in kinds:
            kinds.add(kind)
            repair(found)
            made = finish(folder.parent)
            assert lasting(made) == lasting(whole[0])
            assert read_manifest(made)["scores"] == read_manifest(whole[0])["scores"]
            assert damaged(made) == []
    print(f"{tried} flips in {len(files)} files, all named; {len(kinds)} kinds repaired")
