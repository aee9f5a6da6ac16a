"""What decides a run's result is in its id: an edit anywhere in the engine that could change an answer gives a new one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import cl_zoo
from cl_zoo.runs import identity
from cl_zoo.tasks import source_hash

ENGINE = Path(cl_zoo.__file__).parent


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the engine's sources, in whose place `deciding` looks."""
    copy = tmp_path / "cl_zoo"
    shutil.copytree(ENGINE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(identity, "__file__", str(copy / "runs" / "identity.py"))
    return copy


@pytest.mark.parametrize("room", identity.DECIDING)
def test_an_edit_in_a_deciding_room_changes_the_id(copied: Path, room: str) -> None:
    """In every one of its files, in folders below it too."""
    files = sorted((copied / room).rglob("*.py")) or [copied / f"{room}.py"]
    before = source_hash(*identity.deciding())
    for file in files:
        text = file.read_text(encoding="utf-8")
        file.write_text(text + "\n", encoding="utf-8")
        assert source_hash(*identity.deciding()) != before, file
        file.write_text(text, encoding="utf-8")
    assert source_hash(*identity.deciding()) == before


def test_a_new_file_in_a_deciding_room_changes_the_id(copied: Path) -> None:
    before = source_hash(*identity.deciding())
    (copied / "nn" / "another.py").write_text('"""Something new."""\n', encoding="utf-8")

    assert source_hash(*identity.deciding()) != before


def test_every_room_decides_or_is_known_not_to() -> None:
    """A new package has to be put on one of the two sides."""
    around = {
        "cli",
        "testing",
        "planning",
        "preflight",
        "inspection",
        "export",
        "runs",
        "report",
        "scoring",
        "statistics",
        "analysis",
        "published",
    }  # before, after and beside a run
    ground = {"__init__", "__main__", "_version", "api", "errors", "machine", "names"}
    rooms = {
        path.stem for path in ENGINE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }

    assert rooms == {*identity.DECIDING, *around, *ground}
