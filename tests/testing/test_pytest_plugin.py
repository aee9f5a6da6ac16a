"""The fixtures that come with cl_zoo, used by the tests of a package that knows nothing else of this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STRANGER = '''
import sys

pytest_plugins = ["cl_zoo.testing.pytest"]

MINE = """
from cl_zoo import hookimpl

class Mine:
    @hookimpl
    def after_task(self):
        return {"seen": 1.0}
"""


def test_asking_for_the_fixtures_loads_no_torch():
    assert "torch" not in sys.modules


def test_the_model_is_fresh_for_every_test(tiny, tiny_folder, squares):
    assert (tiny_folder / "llava" / "config.json").is_file()
    batch = tiny.batch(squares.tasks[0].train[:3], answers=True)
    assert tiny.model(**batch.inputs).logits.shape[:2] == batch.targets.shape
    tiny.model.requires_grad_(True)


def test_a_change_of_the_model_is_gone(tiny):
    assert not any(weight.requires_grad for weight in tiny.model.parameters())


def test_a_package_is_installed_shown_and_run(install, cli, run_tiny):
    install("cl-zoo-mine", methods={"mine": "strangers_mine:Mine"}, modules={"strangers_mine": MINE})
    shown = cli("show", "mine")
    assert (shown.code, "cl-zoo-mine 1.0" in shown.out) == (0, True)
    assert run_tiny("mine", order="C").manifest["measured"] == [{"seen": 1.0}]
    assert cli("show", "mien").code == 2


def test_it_is_gone_in_the_next_test(cli):
    assert cli("show", "mine").code == 2
    assert "strangers_mine" not in sys.modules
'''


def test_a_strangers_tests_use_the_fixtures(tmp_path: Path) -> None:
    """In a process of its own, with nothing of this project's `conftest.py`."""
    (tmp_path / "test_mine.py").write_text(STRANGER)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error::pytest.PytestWarning"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


@pytest.mark.parametrize("name", ["tiny_folder", "tiny", "squares", "run_tiny", "install", "cli"])
def test_every_fixture_says_what_it_is(name: str, request: pytest.FixtureRequest) -> None:
    (found,) = request._fixturemanager.getfixturedefs(name, request.node)  # type: ignore[misc]

    assert found.func.__module__ == "cl_zoo.testing.pytest"
    assert found.func.__doc__
