"""What all tests share: the fixtures for authors, single-threaded torch, and temporary folders in pytest's own."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# Before torch is imported anywhere, and for every process that a test starts.
os.environ.update(
    OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1"
)

pytest_plugins = ["cl_zoo.testing.pytest"]

LONG = """
docs/test_pages_run.py report/test_page_in_browser.py engine/test_official_files.py plugins/test_hide.py cli/test_cli.py export/test_export.py export/test_alone.py planning/test_forecast.py
testing/test_conformance_suite.py scoring/test_scorer.py docs/test_generated.py backbones/test_families.py engine/test_run.py
inspection/test_inspection.py cli/test_bad_input.py test_docstrings.py testing/test_pytest_plugin.py test_api.py
benchmarks/test_performance_scripts.py planning/test_sizes.py runs/test_restore.py features/test_encoder.py backbones/test_templates.py
""".split()
"""Files that take longest (`pytest -n 0 --durations=30` shows them), so that no process is left alone with one of them at the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays in one process, since its tests share what it has made, unless its rows have groups of their own.

    The longest come first, then rows with a group of their own, then all other files.
    """

    if gone := [file for file in LONG if not (HERE / file).is_file()]:
        raise pytest.UsageError(
            f"tests/conftest.py: LONG names {gone[0]}, which is not there; take it out or rename it"
        )
    files = {item: os.path.relpath(item.path, HERE).replace(os.sep, "/") for item in items}
    grouped = {item for item in items if item.get_closest_marker("xdist_group") is not None}
    items.sort(
        key=lambda item: LONG.index(files[item]) if files[item] in LONG else len(LONG) + (item not in grouped)
    )
    for item in items:
        if item not in grouped:
            item.add_marker(pytest.mark.xdist_group(files[item]))


@pytest.fixture(autouse=True, scope="session")
def _one_thread_and_no_leftovers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, as in a worker process, and temporary folders inside pytest's own."""
    import torch

    torch.set_num_threads(1)
    tempfile.tempdir = str(tmp_path_factory.mktemp("temporary"))
    os.environ["TMPDIR"] = tempfile.tempdir
    yield
    tempfile.tempdir = None


@pytest.fixture(autouse=True, scope="module")
def _what_stays_is_no_garbage() -> None:
    """Every run collects garbage; libraries and whatever else stays need not be looked through each time."""
    gc.collect()
    gc.freeze()
