"""A run's folder names code, and none of it runs unless whoever asks for the run's model has named it too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import resealed

import cl_zoo
from cl_zoo.errors import PluginError
from cl_zoo.export.writing import export
from cl_zoo.names import source_file
from cl_zoo.tasks import source_hash

METHOD = '''
"""Fine-tuning under a name of one's own."""

from pathlib import Path

import cl_zoo

Path(__file__).with_suffix(".ran").touch()


class Mine:
    def __init__(self):
        pass
'''
EVIL = METHOD.replace("fine", "evil")
QUESTION = "What colour is it ?\nAnswer with one word ."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of an installed method."""
    result = cl_zoo.run(
        "finetune",
        benchmark="cl_zoo.testing:load_tiny",
        backbone="cl_zoo.testing:load_tiny_backbone",
        device="cpu",
        out=tmp_path_factory.mktemp("runs"),
        limit=4,
    )
    assert result.folder is not None
    return result.folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "ev5"))


def naming(folder: Path, name: str, source: str) -> None:
    """Let a folder name another method, and a hash that goes with it."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["job"]["choices"][0]["name"] = name
        manifest["identity"]["stack"][0]["name"] = name
        manifest["identity"]["sources"] = {f"mine:{name.rpartition(':')[2]}": source}

    resealed(folder, change)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "identity.json").write_text(json.dumps(manifest["identity"]))


@pytest.fixture
def evil(copied: Path) -> Path:
    """A copied run whose folder brings a file along and names it as its method."""
    file = copied / "evil.py"
    file.write_text(EVIL)
    naming(copied, f"{file}:Mine", source_hash(file))
    return copied


def test_what_a_copied_run_names_is_not_imported(evil: Path, cli: Any, tmp_path: Path):
    sentence = (
        rf"names code of its own, .*evil\.py:Mine; a run's folder never runs code by itself: read {evil}/evil\.py, "
        rf"and pass --trust-plugin {evil}/evil\.py if you trust it"
    )
    with pytest.raises(PluginError, match=sentence):
        cl_zoo.load(evil, device="cpu").generate([None], [QUESTION])
    with pytest.raises(PluginError, match=sentence):
        export(evil, tmp_path / "to", device="cpu")
    ended = cli("predict", evil, "--prompt", QUESTION, "--device", "cpu")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert not (evil / "evil.ran").exists()
    assert cl_zoo.load(evil).matrix.last is not None  # its scores are no code


def test_a_file_that_is_trusted_is_imported_when_it_is_the_runs_own(evil: Path, cli: Any):
    ended = cli("predict", evil, "--prompt", QUESTION, "--device", "cpu", "--trust-plugin", evil / "evil.py")

    assert ended.code == 0, ended.err
    assert (evil / "evil.ran").exists()


def test_a_trusted_file_is_compared_with_the_run_before_it_is_imported(evil: Path):
    (evil / "evil.py").write_text(EVIL + "\nX = 1\n")

    with pytest.raises(
        PluginError, match=r"was made with another source of .*evil\.py:Mine than .* holds now"
    ):
        cl_zoo.load(evil, device="cpu", trust=[evil / "evil.py"]).generate([None], [QUESTION])
    assert not (evil / "evil.ran").exists()


def test_a_module_by_its_path_is_asked_for_as_a_file_is(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "lies" / "thing"
    package.mkdir(parents=True)
    for name in ("__init__", "part"):
        (package / f"{name}.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path / "lies")
    naming(copied, "thing.part:Mine", source_hash(package / "part.py"))

    with pytest.raises(PluginError, match=rf"thing\.part:Mine; .*--trust-plugin {package}/part\.py"):
        cl_zoo.load(copied, device="cpu").generate([None], [QUESTION])
    assert not list(package.glob("*.ran"))
    trusted = cl_zoo.load(copied, device="cpu", trust=[package / "part.py"])
    assert len(trusted.generate([None], [QUESTION])) == 1


def test_a_backbone_that_a_run_names_by_its_path_is_code_too(copied: Path, tmp_path: Path):
    (tmp_path / "weights.py").write_text(METHOD)
    resealed(copied, lambda manifest: manifest["job"].update(backbone=f"{tmp_path}/weights.py:load"))

    with pytest.raises(PluginError, match=r"names code of its own, .*weights\.py:load"):
        cl_zoo.load(copied, device="cpu").generate([None], [QUESTION])
    assert not (tmp_path / "weights.ran").exists()


def test_an_installed_plugin_of_another_source_is_said_and_may_be_trusted_by_name(copied: Path):
    naming(copied, "finetune", "0123456789abcdef")
    resealed(
        copied, lambda manifest: manifest["identity"].update(sources={"cl_zoo_finetune:FineTune": "0123"})
    )

    with pytest.raises(
        PluginError, match=r"another source of finetune than is installed; .*--trust-plugin finetune"
    ):
        cl_zoo.load(copied, device="cpu").generate([None], [QUESTION])
    assert len(cl_zoo.load(copied, device="cpu", trust=["finetune"]).generate([None], [QUESTION])) == 1


def test_who_runs_a_file_is_not_asked_for_it_again(run_tiny: Callable[..., Any], tmp_path: Path):
    (tmp_path / "mine.py").write_text(METHOD)

    result = run_tiny(f"{tmp_path}/mine.py:Mine", out=tmp_path / "runs", limit=4)

    assert len(result.generate([None], [QUESTION])) == 1


def test_a_module_is_found_without_importing_its_packages():
    import sys

    assert (
        source_file("xml.dom.expatbuilder")
        == Path(source_file("json") or "").parents[1] / "xml/dom/expatbuilder.py"
    )
    assert "xml.dom.expatbuilder" not in sys.modules
    assert source_file("no_such.thing") is None
    assert source_file("sys") is None
