"""Fixtures for the tests of a method: a pytest plugin, which a test file or a `conftest.py` asks for by

    pytest_plugins = ["cl_zoo.testing.pytest"]

or the command line by `pytest -p cl_zoo.testing.pytest`. Then a test takes what it needs by name:

    def test_it_learns_both_tasks(run_tiny):
        assert run_tiny("mine").complete

    def test_no_strength_is_no_pull(tiny, squares):
        batch = tiny.batch(squares.tasks[0].train[:3], answers=True)

Everything is real and small: a random LLaVA with its CLIP, two tasks of coloured squares, runs that take seconds. torch is loaded
by the first test that takes one of them.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.runs.comparison import Result
    from cl_zoo.tasks import Benchmark


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the tiny backbone: `llava/` is a LLaVA checkpoint, `clip/` an open_clip folder. Only read them."""
    from cl_zoo.testing import tiny_backbone

    folder = tmp_path_factory.mktemp("tiny")
    tiny_backbone(folder)
    return folder


@pytest.fixture
def tiny(tiny_folder: Path) -> Backbone:
    """A fresh tiny backbone with its feature encoder; change it as you like."""
    from cl_zoo.testing import tiny_backbone

    return tiny_backbone(tiny_folder)


@pytest.fixture
def squares() -> Benchmark:
    """Two tasks (colour, side) of twelve training and six test samples."""
    from cl_zoo.testing import tiny_benchmark

    return tiny_benchmark()


@pytest.fixture
def run_tiny(tmp_path: Path) -> Callable[..., Result]:
    """`cl_zoo.run` on the tiny benchmark and backbone, into this test's own `runs`; further settings are passed on.

    `run_tiny("mine", options={"mine": {"strength": 0}}, with_=["ewc"], seed=1, order="SC")`.
    """
    from cl_zoo.api import run

    def run_here(method: str, **settings: Any) -> Result:
        return run(
            method,
            **{
                "benchmark": "cl_zoo.testing:load_tiny",
                "backbone": "cl_zoo.testing:load_tiny_backbone",
                "device": "cpu",
                "out": tmp_path / "runs",
                **settings,
            },
        )

    return run_here


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Install a distribution into a folder of this test that stands on the path, here and in processes that it starts.

    `install("cl-zoo-mine", methods={"mine": "mine:Mine"}, modules={"mine": "class Mine: …"})`, with the entry points of a
    group (`methods`, `benchmarks`, `backbones`) by name and the source of each module; returns the folder.
    """
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)

    def write(name: str, version: str = "1.0", *, modules: dict[str, str], **groups: dict[str, str]) -> Path:
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = []
        for group, entries in groups.items():
            lines += [
                f"[cl_zoo.{group}]",
                *(f"{key} = {value}" for key, value in entries.items()),
            ]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for module, source in modules.items():
            (site / f"{module}.py").write_text(source)
        importlib.invalidate_caches()
        return site

    yield write
    for module in [key for key, one in sys.modules.items() if _lies_in(one, site)]:
        del sys.modules[module]


def _lies_in(module: object, folder: Path) -> bool:
    return str(getattr(module, "__file__", None) or "").startswith(str(folder))


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The installed command `cl-zoo` with the given arguments, in this process: `cli("show", "mine").out`."""
    command, *_ = metadata.entry_points(group="console_scripts", name="cl-zoo")
    main = command.load()

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["cl-zoo", *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return Ended(code if isinstance(code, int) else 0, printed.out, printed.err)

    return call
