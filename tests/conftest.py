"""What all tests share: the fixtures for authors, single-threaded torch, and temporary folders in pytest's own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

# Before torch is imported anywhere, and for every process that a test starts.
os.environ.update(
    OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1"
)

pytest_plugins = ["cl_zoo.testing.pytest"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread_and_no_leftovers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, as in a worker process, and temporary folders inside pytest's own."""
    import torch

    torch.set_num_threads(1)
    tempfile.tempdir = str(tmp_path_factory.mktemp("temporary"))
    os.environ["TMPDIR"] = tempfile.tempdir
    yield
    tempfile.tempdir = None
