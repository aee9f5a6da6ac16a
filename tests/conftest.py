"""What several test files share: the tiny model, made once, and single-threaded torch."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.runs.comparison import Result
    from cl_zoo.tasks import Benchmark

# Before torch is imported anywhere, and for every process that a test starts.
os.environ.update(
    OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1"
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread_and_no_leftovers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, as in a worker process, and temporary folders inside pytest's own."""
    import torch

    torch.set_num_threads(1)
    tempfile.tempdir = str(tmp_path_factory.mktemp("temporary"))
    os.environ["TMPDIR"] = tempfile.tempdir
    yield
    tempfile.tempdir = None


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
    """`cl_zoo.run` on the tiny benchmark and backbone, into this test's own `runs`; further settings are passed on."""
    import cl_zoo

    def run(method: str, **settings: Any) -> Result:
        return cl_zoo.run(
            method,
            **{
                "benchmark": "cl_zoo.testing:load_tiny",
                "backbone": "cl_zoo.testing:load_tiny_backbone",
                "device": "cpu",
                "out": tmp_path / "runs",
                **settings,
            },
        )

    return run


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Install a third-party distribution into a folder of this test that stands on the path, here and in subprocesses.

    `install("cl-zoo-mine", methods={"mine": "mine:Mine"}, modules={"mine": "class Mine: …"})`.
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
    """`cl-zoo` with the given arguments, in this process."""
    from cl_zoo.cli.main import main

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
