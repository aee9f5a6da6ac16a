"""What several test files share: the tiny model, made once, and single-threaded torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cl_zoo.backbones import Backbone
    from cl_zoo.compare import Result
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
