"""The way of a newcomer: `cl-zoo new`, the package that it writes, and what an installed package can bring."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cl_zoo
from cl_zoo.cli import template as newcomer
from cl_zoo.cli.template import new
from cl_zoo.errors import PluginError
from cl_zoo.names import BACKBONES, BENCHMARKS, METHODS, find

ROOT = Path(__file__).parents[2]


def texts(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text("utf-8") for file in sorted(folder.iterdir())}


def installed_from(folder: Path, install: Callable[..., Path]) -> None:
    """Install a package as its own pyproject.toml says."""
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    methods = project["entry-points"]["cl_zoo.methods"]
    modules = {value.partition(":")[0] for value in methods.values()}
    install(
        project["name"],
        project["version"],
        methods=methods,
        modules={module: (folder / f"{module}.py").read_text("utf-8") for module in modules},
    )


# What is written


def test_the_template_is_a_whole_package_that_is_read_in_minutes(tmp_path: Path) -> None:
    written = texts(new("mine", tmp_path))

    assert set(written) == {"README.md", "cl_zoo_mine.py", "pyproject.toml", "test_mine.py"}
    assert sum(len(text.splitlines()) for text in written.values()) <= 110


def test_the_command_writes_into_the_current_folder(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    ended = cli("new", "mine")

    assert ended.code == 0
    assert "cl-zoo-mine" in ended.out
    assert texts(tmp_path / "cl-zoo-mine")
    again = cli("new", "mine")
    assert again.code == 2
    assert again.err.startswith("error: ")
    assert "cl-zoo-mine exists already; move it away or choose another name" in again.err
    assert len(again.err.splitlines()) == 1


def test_every_name_is_replaced(tmp_path: Path) -> None:
    folder = new("gentle_pull2", tmp_path)
    written = texts(folder)
    project = tomllib.loads(written["pyproject.toml"])["project"]

    assert folder == tmp_path / "cl-zoo-gentle-pull2"
    assert set(written) == {
        "README.md",
        "cl_zoo_gentle_pull2.py",
        "pyproject.toml",
        "test_gentle_pull2.py",
    }
    assert project["name"] == "cl-zoo-gentle-pull2"
    assert project["entry-points"]["cl_zoo.methods"] == {"gentle_pull2": "cl_zoo_gentle_pull2:GentlePull2"}
    assert "class GentlePull2:" in written["cl_zoo_gentle_pull2.py"]
    assert 'check_method("gentle_pull2")' in written["test_gentle_pull2.py"]
    assert not [name for name, text in written.items() if "mine" in (name + text).lower()]
    for name, text in written.items():
        if name.endswith(".py"):
            ast.parse(text)


@pytest.mark.parametrize(
    "name", ["", "Mine", "2mine", "my-method", "my__method", "mine_", "../mine", "mein é"]
)
def test_a_name_that_cannot_be_typed_as_a_method_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"cannot be the name of a method; use small letters"):
        new(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ewc", r"cl-zoo .* has a method called 'ewc'; choose another name"),
        ("bench_mini", "a module called cl_zoo_bench_mini is installed already; choose another name"),
        ("none", "the class of 'none' would be called None, which means something else"),
        ("tensor", "the class of 'tensor' would be called Tensor, which means something else"),
        ("options", "the class of 'options' would be called Options, which means something else"),
    ],
)
def test_a_name_that_is_taken_is_refused(name: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=sentence):
        new(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_installed_stranger_s_name_is_taken_too(install: Callable[..., Path], tmp_path: Path) -> None:
    install("other-mine", "2.1", methods={"mine": "other:Mine"}, modules={"other": ""})

    with pytest.raises(PluginError, match=r"other-mine 2\.1 has a method called 'mine'"):
        new("mine", tmp_path)


def test_what_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "cl-zoo-mine").write_text("a file of somebody's")

    with pytest.raises(PluginError, match="cl-zoo-mine exists already; move it away"):
        new("mine", tmp_path)

    assert (tmp_path / "cl-zoo-mine").read_text() == "a file of somebody's"
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the third file."""
    whole, written = Path.write_text, []

    def full(self: Path, *arguments: Any, **settings: Any) -> int:
        written.append(self)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return whole(self, *arguments, **settings)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        new("mine", tmp_path)

    assert not list(tmp_path.iterdir())


def test_the_wheel_takes_the_template_to_where_it_is_looked_for() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]

    assert wheel["force-include"] == {"plugins/_template": "cl_zoo/_template"}
    assert "plugins/_template" in wheel["exclude"]  # it is no module of this distribution
    assert {file.name for file in newcomer._template()} == {
        file.name for file in (ROOT / "plugins" / "_template").iterdir() if file.is_file()
    }


# What the package does


def test_the_package_is_found_shown_and_run_by_its_name(
    install: Callable[..., Path], run_tiny: Callable[..., Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    installed_from(new("mine", tmp_path), install)

    assert find(METHODS, "mine").distribution == "cl-zoo-mine"
    assert "method     mine" in cli("list").out
    assert cli("show", "mine").out.startswith(
        "Mine: sequential fine-tuning with a pull towards the weights after the last task."
    )
    result = run_tiny("mine")
    assert result.complete
    assert result.ledger["trained"] == run_tiny("finetune").ledger["trained"]


def test_the_first_experiment_is_a_file_without_packaging(
    run_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    file = new("mine", tmp_path) / "cl_zoo_mine.py"

    assert run_tiny(f"{file}:Mine", order="C").complete


@pytest.mark.slow
def test_the_tests_of_the_package_pass(install: Callable[..., Path], tmp_path: Path) -> None:
    """Its closed form, a run beside fine-tuning and its conformance, under a name of its own."""
    folder = new("gentle_pull", tmp_path)
    installed_from(folder, install)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


# A package may bring a benchmark and a backbone, too

BROUGHT = '''
"""A benchmark of one task, and a backbone; both of somebody else."""
from dataclasses import replace

from cl_zoo.testing import load_tiny, load_tiny_backbone


def squares(data=None):
    tiny = load_tiny()
    return replace(tiny, name="squares", tasks=tiny.tasks[:1], default_backbone="toy", data_hash="squares-1")


def toy(path, device, dtype):
    backbone = load_tiny_backbone(path, device, dtype)
    backbone.name = "toy"
    return backbone
'''


def test_an_installed_package_brings_a_benchmark_and_a_backbone(
    install: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path
) -> None:
    install(
        "cl-zoo-squares",
        benchmarks={"squares": "third_squares:squares"},
        backbones={"toy": "third_squares:toy"},
        modules={"third_squares": BROUGHT},
    )

    by_default = cl_zoo.run("finetune", benchmark="squares", device="cpu", out=tmp_path / "default")
    named = cl_zoo.run("finetune", benchmark="squares", backbone="toy", device="cpu", out=tmp_path / "named")

    assert (find(BENCHMARKS, "squares").distribution, find(BACKBONES, "toy").distribution) == (
        "cl-zoo-squares",
    ) * 2
    listed = cli("list").out
    assert "benchmark  squares" in listed
    assert "backbone   toy" in listed
    for result in (by_default, named):
        identity = result.manifest["identity"]
        assert (identity["benchmark"]["name"], identity["backbone"]["name"]) == ("squares", "toy")
        assert result.matrix.last is not None
