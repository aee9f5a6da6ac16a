"""The command line: what it prints where, how it ends, and that it goes on where it was interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cl_zoo

TINY = ("--benchmark", "cl_zoo.testing:load_tiny", "--device", "cpu")
SLOW_SECOND_TASK = '''
import time
from cl_zoo import hookimpl

class Slow:
    """Takes long over the second task, so that it can be interrupted there."""

    @hookimpl
    def before_task(self, task):
        if task.index == 1:
            print("second task", flush=True)
            time.sleep({seconds})
'''


def answers(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "answers").glob("*.jsonl"))}


def only_run(out: Path) -> Path:
    (folder,) = (path for path in out.iterdir() if path.is_dir() and path.name != "logs")
    return folder


# Looking at what there is


def test_version_is_that_of_the_package(cli: Callable[..., Any]):
    assert cli("--version").out == f"cl-zoo {cl_zoo.__version__}\n"


def test_help_names_every_command(cli: Callable[..., Any]):
    ended = cli("--help")

    assert ended.code == 0
    assert all(
        command in ended.out for command in ("run", "compare", "list", "show", "ledger", "check", "new")
    )


def test_list_prints_kind_name_origin_and_class(cli: Callable[..., Any]):
    ended = cli("list")

    assert ended.code == 0
    lines = [line.split() for line in ended.out.splitlines()]
    assert ["method", "hide", "cl-zoo", cl_zoo.__version__, "cl_zoo_hide:HiDe"] in lines
    assert ["backbone", "llava", "cl-zoo", cl_zoo.__version__, "cl_zoo.backbones.llava:load"] in lines


def test_list_as_json_can_be_read(cli: Callable[..., Any]):
    entries = json.loads(cli("list", "--json").out)

    assert {"kind": "method", "name": "ewc", "value": "cl_zoo_ewc:EWC", "fault": ""}.items() <= next(
        entry for entry in entries if entry["name"] == "ewc"
    ).items()


def test_list_as_markdown_has_a_line_for_each_method(cli: Callable[..., Any]):
    lines = cli("list", "--markdown").out.splitlines()

    assert lines[:2] == ["| method | what it is |", "|---|---|"]
    assert "| `ewc` | Elastic Weight Consolidation. |" in lines


def test_a_list_with_a_fault_ends_with_2(cli: Callable[..., Any], install: Callable[..., Path]):
    install("other-ewc", methods={"ewc": "third_ewc:EWC"}, modules={})
    ended = cli("list")

    assert ended.code == 2
    assert ended.out.count("claimed by 2 distributions") == 2


def test_show_prints_documentation_options_hooks_and_origin(cli: Callable[..., Any]):
    shown = cli("show", "hide").out

    assert shown.startswith("HiDe-LLaVA")
    assert "protocol  sequential" in shown
    assert "hooks     build_model, before_task, after_task, build_inference_model" in shown
    assert "  alpha = 0.5   α in Eq. 4" in shown


# Running


def test_a_run_prints_results_to_stdout_and_progress_to_stderr(cli: Callable[..., Any], tmp_path: Path):
    """`cl-zoo run … --json | jq` works."""
    ended = cli("run", "finetune", *TINY, "--out", tmp_path / "runs", "--json", "--set", "lr.adapters=1e-3")

    assert ended.code == 0, ended.err
    assert "finetune" in json.dumps(json.loads(ended.out))
    assert "finetune, seed 0: learnt colour in 3 steps (task " in ended.err
    assert "finetune, seed 0: finished, Last " in ended.err
    manifest = json.loads((only_run(tmp_path / "runs") / "manifest.json").read_text())
    assert manifest["identity"]["recipe"]["lr"]["adapters"] == 1e-3
    assert manifest["tasks"] == ["colour", "side"]


def test_settings_of_the_command_line_reach_the_run(cli: Callable[..., Any], tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("epochs: 2\nlr: {adapters: 5e-4}\n")
    ended = cli(
        "run", "finetune", "--with", "ewc", "-o", "ewc.strength=7", *TINY, "--out", tmp_path / "runs",
        "--recipe", tmp_path / "recipe.yaml", "--set", "epochs=3", "--order", "S", "--limit", 4, "--cells", "last",
        "--seed", 5, "--checkpoint-every", 0.5,
    )  # fmt: skip

    assert ended.code == 0, ended.err
    manifest = json.loads((only_run(tmp_path / "runs") / "manifest.json").read_text())
    identity = manifest["identity"]
    assert (identity["recipe"]["epochs"], identity["recipe"]["lr"]["adapters"]) == (3, 5e-4)
    assert identity["stack"][1] == {
        "name": "ewc",
        "probe": False,
        "options": {"strength": 7.0, "mode": "summed", "decay": 1.0, "fisher": "sample", "samples": 128},
    }
    assert (identity["benchmark"]["order"], identity["benchmark"]["limit"]) == (["side"], 4)
    assert (manifest["seed"], identity["cells"], manifest["label"]) == (5, "last", "finetune+ewc[strength=7]")
    assert manifest["job"]["checkpoint_every"] == 0.5
    assert manifest["ledger"]["tasks"][0]["samples"] == 12  # three epochs of four


def test_a_comparison_end_to_end(tmp_path: Path):
    """Real processes: the methods' rows, the failed one's sentence, exit code 2, and the finished runs on disk."""
    (tmp_path / "third_bad.py").write_text(
        "from cl_zoo import hookimpl\n\n\nclass Bad:\n    @hookimpl\n    def before_task(self, task):\n"
        "        raise ZeroDivisionError('a fault of its own')\n"
    )
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "cl_zoo",
                "compare",
                *TINY,
                "--jobs",
                "1",
                "--out",
                "runs",
                "--json",
            ),
            *("--methods", f"zeroshot,{tmp_path / 'third_bad.py'}:Bad,finetune"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )

    assert done.returncode == 2, done.stderr
    printed = json.dumps(json.loads(done.stdout))
    assert "ZeroDivisionError: a fault of its own" in printed
    assert "zeroshot, seed 0: finished" in done.stderr
    assert "finetune, seed 0: finished" in done.stderr
    finished = [path.name for path in (tmp_path / "runs").iterdir() if (path / "manifest.json").is_file()]
    assert sorted(name.rpartition("-s0-")[0] for name in finished) == [
        "tiny-finetune",
        "tiny-zeroshot",
    ]


def test_an_interrupted_run_goes_on_and_answers_the_same(
    cli: Callable[..., Any], run_tiny: Callable[..., Any], tmp_path: Path
):
    """Ctrl-C in the second task; then the same command, without the pause, gives the bytes of an undisturbed run."""
    plugin = tmp_path / "slow.py"
    plugin.write_text(
        SLOW_SECOND_TASK.format(seconds="float(os.environ.get('PAUSE', 0))").replace(
            "import time", "import os\nimport time"
        )
    )
    command = ["run", "finetune", "--with", f"{plugin}:Slow", *TINY, "--out", str(tmp_path / "runs")]
    process = subprocess.Popen(
        [sys.executable, "-m", "cl_zoo", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PAUSE": "60"},
        # a process started in the background of a script inherits an ignored SIGINT, which a terminal's never is
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None  # where all that a plugin prints goes
    for line in process.stderr:
        if line == "second task\n":
            process.send_signal(signal.SIGINT)
            break
    _, told = process.communicate()

    assert process.returncode == 130
    assert told.splitlines()[-1] == "interrupted; the same command goes on after the last checkpoint"
    partial = only_run(tmp_path / "runs")
    assert partial.name.endswith(".partial")
    assert (partial / "state-1" / "state.json").is_file()

    resumed = cli(*command)
    assert resumed.code == 0, resumed.err
    assert "learnt colour" not in resumed.err  # the first task is not learnt again
    assert "learnt side" in resumed.err
    undisturbed = run_tiny("finetune", with_=[f"{plugin}:Slow"], out=tmp_path / "other")
    assert only_run(tmp_path / "runs").name == undisturbed.folder.name
    assert answers(only_run(tmp_path / "runs")) == answers(undisturbed.folder)
    assert sorted(answers(undisturbed.folder)) == ["0-0.jsonl", "1-0.jsonl", "1-1.jsonl"]


def test_a_finished_run_is_reported_without_work(cli: Callable[..., Any], tmp_path: Path):
    command = ["run", "finetune", *TINY, "--out", tmp_path / "runs", "--json"]
    first = cli(*command)
    folder = only_run(tmp_path / "runs")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = cli(*command)

    assert again.out == first.out
    assert "learnt" not in again.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert only_run(tmp_path / "runs") == folder


def test_one_seed_and_several_seeds_together_are_refused(cli: Callable[..., Any]):
    ended = cli("run", "finetune", "--seed", 3, "--seeds", 2)

    assert ended.code == 2
    assert ended.err == "error: --seed 3 and --seeds 2 are both given; use one of them\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "finetune", "--seed", "-1"), "greater than or equal to 0"),
        (("compare", "--methods", ""), "nothing to compare: 0 methods"),
    ],
)
def test_what_asks_for_nothing_sensible_starts_nothing(
    cli: Callable[..., Any], tmp_path: Path, arguments: tuple[str, ...], said: str
):
    ended = cli(*arguments, *TINY, "--out", tmp_path / "runs")

    assert ended.code == 2
    assert said in ended.err
    assert not (tmp_path / "runs").exists()


def test_help_shows_brackets_as_they_are_typed(cli: Callable[..., Any]):
    assert "hide[variant=released]" in "".join(cli("run", "--help").out.split())
    assert "[option=value]" in cli("compare", "--help").out


def test_a_folder_that_cannot_be_written_is_named(cli: Callable[..., Any], tmp_path: Path):
    (tmp_path / "runs").write_text("a file")

    ended = cli("run", "finetune", *TINY, "--out", tmp_path / "runs")

    assert ended.code == 2
    assert ended.err.strip().splitlines()[-1].startswith(f"error: {tmp_path / 'runs'}: ")
    assert "check the path" in ended.err


def test_a_comparison_without_its_weights_starts_nothing(cli: Callable[..., Any], tmp_path: Path):
    """Whatever it lacks is found by the first worker, before any run."""
    ended = cli("compare", *TINY, "--features", "none", "--out", tmp_path / "runs", "--jobs", 1)

    assert ended.code == 2
    assert ended.err.strip().splitlines()[-1] == (
        "error: --features none: neither a folder nor a model of open_clip; see open_clip.list_pretrained()"
    )
    assert not list((tmp_path / "runs").glob("tiny-*"))
