"""States of a training that several runs share: whoever comes first keeps them, and nobody fails over them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_zoo.engine import trained
from cl_zoo.engine.trained import Trained


def save(states: Trained, done: int, value: float) -> None:
    states.save(
        done, {"w": torch.full((2,), value)}, {"mine": {"t": torch.ones(1)}}, {"cost": {"steps": done}}
    )


def test_a_state_comes_back_by_the_number_of_tasks(tmp_path: Path) -> None:
    states = Trained(tmp_path / "one", keep=True)
    save(states, 1, 0.5)
    save(states, 2, 0.25)

    for done, value in ((1, 0.5), (2, 0.25)):
        found = states.load(done)
        assert found is not None
        tensors, plugins, notes = found
        assert tensors["w"].tolist() == [value, value]
        assert plugins["mine"]["t"].tolist() == [1.0]
        assert notes["cost"] == {"steps": done}
    assert states.load(3) is None
    assert (states.whole(2), states.whole(3)) == (True, False)


def test_of_two_who_learnt_the_same_the_first_keeps_it(tmp_path: Path) -> None:
    states = Trained(tmp_path, keep=True)
    save(states, 1, 0.5)
    save(states, 1, 0.25)

    found = states.load(1)
    assert found is not None
    assert found[0]["w"].tolist() == [0.5, 0.5]
    assert [path.name for path in tmp_path.iterdir()] == ["state-1"]


@pytest.mark.parametrize("file", ["model.safetensors", "plugins.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_state_is_none(tmp_path: Path, file: str, damage: str) -> None:
    states = Trained(tmp_path, keep=True)
    save(states, 1, 0.5)
    path = tmp_path / "state-1" / file
    path.write_bytes(path.read_bytes()[:-9]) if damage == "cut" else path.unlink()

    assert states.load(1) is None


def test_a_folder_that_is_deleted_meanwhile_is_no_fault_and_a_disk_that_refuses_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, real = Trained(tmp_path / "one", keep=True), trained.write_state

    def deleted(*arguments: Any) -> None:
        shutil.rmtree(states.folder)
        real(*arguments)

    def refused(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trained, "write_state", deleted)
    save(states, 1, 0.5)
    assert not states.folder.exists()
    monkeypatch.setattr(trained, "write_state", refused)
    with pytest.raises(OSError, match="No space left"):
        save(states, 1, 0.5)
    assert not list(states.folder.iterdir())
