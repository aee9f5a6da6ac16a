"""Bad input: one sentence with value, place and remedy, exit code 2, and nothing half-written under a final name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_zoo.backbones.checkpoints import backbone_parts
from cl_zoo.backbones.llava import load as load_llava
from cl_zoo.errors import BackboneError, OptionError, RunError, full_disk_named
from cl_zoo.tasks import Benchmark
from cl_zoo.testing import tiny_benchmark

TINY = ("--benchmark", "cl_zoo.testing:load_tiny", "--device", "cpu")


def finished(out: Path) -> list[str]:
    """What stands under a final name: run folders without `.partial`."""
    return [
        path.name
        for path in out.glob("*")
        if path.is_dir() and path.suffix != ".partial" and path.name != "logs"
    ]


@pytest.fixture
def refused(cli: Callable[..., Any], tmp_path: Path) -> Callable[..., str]:
    """Call `cl-zoo run`; it must end with code 2, one sentence and no run. Returns the sentence."""

    def call(*arguments: object) -> str:
        ended = cli("run", *arguments, "--out", tmp_path / "runs")
        assert ended.code == 2, ended.err
        assert ended.out == ""
        sentence = ended.err.splitlines()[-1]
        assert sentence.startswith("error: ")
        assert "Traceback" not in ended.err
        assert finished(tmp_path / "runs") == []
        return str(sentence.removeprefix("error: "))

    return call


# Names


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("hid", *TINY), "no method is called 'hid'; did you mean 'hide'? known: "),
        (("finetune", "--with", "ewk", *TINY), "no method is called 'ewk'; did you mean 'ewc'? known: "),
        (("finetune+finetune", *TINY), "finetune stands twice in the stack; name it once"),
        (
            ("finetune", "--benchmark", "minni"),
            "no benchmark is called 'minni'; did you mean 'mini'? known: ",
        ),
        (
            ("finetune", *TINY, "--backbone", "lava"),
            "no backbone is called 'lava'; did you mean 'llava'? known: ",
        ),
        (
            ("hide[variant=relesed]", *TINY),
            "hide.variant: input should be 'paper' or 'released', got 'relesed'",
        ),
        (
            ("hide", "-o", "hide.alpa=1", *TINY),
            "hide has no option 'alpa'; did you mean 'alpha'? known: alpha, ",
        ),
        (
            ("ewc", "-o", "ewc.strength=-1", *TINY),
            "ewc.strength: input should be greater than or equal to 0, got -1",
        ),
        (("ewc", "-o", "hide.alpha=1", *TINY), "options are given for 'hide', which is not in the stack"),
        (("ewc", "-o", "alpha=1", *TINY), "-o alpha=1: write it as METHOD.option=value"),
        (("ewc", "-o", "ewc.strength", *TINY), "-o 'ewc.strength': write it as key=value"),
        (("ewc", "--set", "epoch=1", *TINY), "recipe has no key 'epoch'; did you mean 'epochs'? known: "),
        (
            ("ewc", "--set", "epochs=0", *TINY),
            "recipe.epochs: input should be greater than or equal to 1, got 0",
        ),
        (
            ("ewc", "--recipe", "no-such.yaml", *TINY),
            "--recipe no-such.yaml: no such file or directory; pass a readable YAML file",
        ),
        (("ewc", "--cells", "lowr", *TINY), "--cells lowr; did you mean 'lower'? known: full, last, lower"),
        (("ewc", "--keep-states", "al", *TINY), "--keep-states al; did you mean 'all'? known: all, last"),
        *(
            (
                ("ewc", "--checkpoint-every", minutes, *TINY),
                f"--checkpoint-every {minutes}: is no time; give minutes, or 0 for no checkpoint within a task",
            )
            for minutes in ("-1", "nan", "inf")
        ),
        *(
            (
                ("ewc", "--cache", "features", "--cache-limit", size, *TINY),
                f"--cache-limit {size}: is no size; give GiB, or leave it out to use the whole disk but its last GiB",
            )
            for size in ("0", "-1", "nan", "inf")
        ),
        (
            ("ewc", "--cache-limit", "5", *TINY),
            "--cache-limit 5: there is no cache to limit; name its folder with --cache DIR",
        ),
        (("ewc", "--order", "CX", *TINY), "--order: tiny has no task 'X'; known: C, S, colour, side"),
        (("ewc", "--order", "", *TINY), "--order '': names no task; tiny has colour, side"),
        (("ewc", "--limit", "0", *TINY), "--limit must be at least 1, got 0"),
        (("ewc", *TINY, "--device", "tpu"), "--device tpu: unknown; use auto, cpu or cuda"),
        (
            ("finetune", "--probe", "ewc", *TINY),
            "ewc implements loss, so it is no probe; put it into the stack with --with",
        ),
        (
            ("finetune", "--with", "hide", *TINY),
            "finetune and hide both implement build_model; a run can follow only one",
        ),
        (("ewc", *TINY, "--cache", " "), "--cache ' ': names nothing; name a folder, or leave the flag out"),
        (("nowhere.py:Mine", *TINY), "nowhere.py:Mine: there is no file nowhere.py; give its path from "),
        (("os:getcwd", *TINY), "os:getcwd: its entry point gives a "),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, tuple) else "",
)
def test_an_unknown_name_or_value_is_one_sentence(
    refused: Callable[..., str], arguments: tuple[str, ...], sentence: str
):
    assert refused(*arguments).startswith(sentence)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_named(refused: Callable[..., str]):
    assert refused("ewc", *TINY, "--device", "cuda") == (
        "--device cuda: torch sees no CUDA device here; use --device cpu"
    )


def test_a_recipe_file_that_is_no_yaml_is_named(refused: Callable[..., str], tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("epochs: [1\n")

    assert refused("ewc", *TINY, "--recipe", tmp_path / "recipe.yaml").endswith("pass a readable YAML file")


def test_a_comparison_refuses_what_a_run_refuses(cli: Callable[..., Any], tmp_path: Path):
    ended = cli("compare", *TINY, "--set", "epoch=1", "--out", tmp_path / "runs")

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: recipe has no key 'epoch'; did you mean 'epochs'?")
    assert not (tmp_path / "runs").exists()


# Benchmarks


def load_empty(data: Path | None) -> Benchmark:
    from dataclasses import replace

    tiny = tiny_benchmark()
    return replace(tiny, tasks=(tiny.tasks[0], replace(tiny.tasks[1], test=())))


def load_nothing(data: Path | None) -> str:
    return "tiny"


def test_an_empty_task_is_named(refused: Callable[..., str]):
    assert refused("finetune", "--benchmark", f"{__name__}:load_empty") == (
        "tiny, task side: the test split is empty; add samples or drop the task"
    )


def test_a_benchmark_that_is_none_is_named(refused: Callable[..., str]):
    assert refused("finetune", "--benchmark", f"{__name__}:load_nothing") == (
        f"benchmark {__name__}:load_nothing: its plugin gave a str, not a cl_zoo.Benchmark"
    )


# Backbones


@pytest.fixture
def checkpoint(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may spoil."""
    return Path(shutil.copytree(tiny_folder / "llava", tmp_path / "checkpoint"))


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def of_another_class(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')


def with_features_of_several_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vision_feature_layer": [-2, -1]}))


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def overwritten(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(os.urandom(64))


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def without_one_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors[min(tensors)]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def with_a_tensor_of_another_shape(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors[min(tensors)] = torch.zeros(3, 3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def pickled(folder: Path) -> None:
    """Weights in a format that runs code when it is read are no weights."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (without_weights, r"has no weights \(\*.safetensors\); download them into the folder"),
        (
            pickled,
            r"has no weights \(\*.safetensors\), and pytorch_model.bin is a pickle, which could run code and is not read; download",
        ),
        (of_another_class, "holds a 'llama' model, not 'llava'; pass a LLaVA checkpoint"),
        (
            with_features_of_several_layers,
            r"takes its image features from layers \[-2, -1\]; only checkpoints that take one",
        ),
        (without_config, r"no readable config.json; pass the folder of a LLaVA checkpoint"),
        (config_that_is_no_json, r"no readable config.json"),
        (cut_off, r".*; the checkpoint is corrupt or incomplete, copy it again"),
        (overwritten, r".*; the checkpoint is corrupt or incomplete, copy it again"),
        (empty, r".*; the checkpoint is corrupt or incomplete, copy it again"),
        (without_one_tensor, r"1 weights are missing, first .*; copy the checkpoint again"),
        (with_a_tensor_of_another_shape, r".*; the checkpoint is corrupt or incomplete, copy it again"),
    ],
)
def test_a_spoilt_checkpoint_is_named_with_what_is_wrong(
    checkpoint: Path, spoil: Callable[[Path], None], sentence: str
):
    spoil(checkpoint)

    with pytest.raises(BackboneError, match=f"backbone {checkpoint}: {sentence}") as raised:
        load_llava(checkpoint, torch.device("cpu"), torch.float32)
    assert "\n" not in str(raised.value)


def test_a_spoilt_checkpoint_ends_a_run_with_2(refused: Callable[..., str], checkpoint: Path):
    without_weights(checkpoint)

    assert refused("finetune", *TINY, "--backbone", checkpoint).startswith(
        f"backbone {checkpoint}: has no weights"
    )
    assert refused("finetune", *TINY, "--backbone", f"llava:{checkpoint}").startswith(
        f"backbone {checkpoint}: has"
    )


@pytest.mark.parametrize("written", ["./no/such/folder", "llava:./no/such/folder"])
def test_a_backbone_folder_that_is_not_there_is_named(refused: Callable[..., str], written: str):
    assert refused("finetune", *TINY, "--backbone", written).endswith(
        "no/such/folder: no such folder; pass the path of a downloaded checkpoint"
    )


@pytest.mark.parametrize("written", ["llava-hf/llava-1.5-7b-hf", "llava:llava-hf/llava-1.5-7b-hf"])
def test_a_name_on_the_hub_is_told_how_to_become_a_folder(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
):
    """Where it is in the local cache already, the folder is named."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name = "llava-hf/llava-1.5-7b-hf"

    assert refused("finetune", *TINY, "--backbone", written) == (
        f"backbone {name}: no such folder; pass the path of a downloaded checkpoint; of a name on the hub, "
        f"`hf download {name} --local-dir FOLDER` makes one"
    )
    repository = tmp_path / "models--llava-hf--llava-1.5-7b-hf"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    assert refused("finetune", *TINY, "--backbone", written).endswith(f"in the local cache, pass {snapshot}")


def test_an_adapter_in_the_place_of_a_model_is_named_with_its_base(
    refused: Callable[..., str], tmp_path: Path
):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"}')

    assert refused("finetune", *TINY, "--backbone", tmp_path) == (
        f"backbone {tmp_path}: holds an adapter of llava-hf/llava-1.5-7b-hf, not a model; pass the folder of its base, or merge it into "
        "that first (PEFT's merge_and_unload and save_pretrained) to start from both"
    )


def test_a_folder_called_like_a_backbone_does_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "config.json").write_text('{"model_type": "llava"}')
    monkeypatch.chdir(tmp_path)

    assert backbone_parts("mini") == ("mini", None)
    assert backbone_parts("./mini") == ("llava", Path("mini"))


def test_llava_without_a_path_is_told_to_take_one(refused: Callable[..., str]):
    assert refused("finetune", *TINY, "--backbone", "llava") == (
        "backbone llava needs a checkpoint; pass --backbone llava:FOLDER"
    )


# Run folders


def interrupted(run_tiny: Callable[..., Any], out: Path) -> Path:
    """The partial folder of a run that was interrupted in its second task."""

    def interrupt(event: dict[str, Any]) -> None:
        if event["phase"] == "train" and event["index"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tiny("ewc", out=out, watch=interrupt)
    (partial,) = out.glob("*.partial")
    return partial


def half_a_model(state: Path) -> None:
    file = state / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def no_plugin_tensors(state: Path) -> None:
    (state / "plugins.safetensors").unlink()


def no_notes(state: Path) -> None:
    (state / "state.json").write_text("{")


def no_list(state: Path) -> None:
    (state / "files.json").unlink()


def one_bit(state: Path) -> None:
    content = bytearray((state / "model.safetensors").read_bytes())
    content[-7] ^= 4
    (state / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            half_a_model,
            r"checkpoint .*state-1: model\.safetensors holds \d+ of \d+ bytes; .*\.partial --repair",
        ),
        (no_plugin_tensors, r"checkpoint .*state-1: plugins\.safetensors is missing; .*\.partial --repair"),
        (no_notes, r"checkpoint .*state-1: state\.json holds 1 of \d+ bytes; .*\.partial --repair"),
        (no_list, r"checkpoint .*state-1: files\.json is missing; .*\.partial --repair"),
        (one_bit, r"checkpoint .*state-1: model\.safetensors is not what was written .*\.partial --repair"),
    ],
)
def test_a_corrupt_checkpoint_is_named(
    run_tiny: Callable[..., Any], tmp_path: Path, spoil: Callable[[Path], None], sentence: str
):
    partial = interrupted(run_tiny, tmp_path)
    spoil(partial / "state-1")

    with pytest.raises(RunError, match=sentence):
        run_tiny("ewc", out=tmp_path)
    assert finished(tmp_path) == []


def test_a_run_folder_of_another_configuration_is_left_alone(
    cli: Callable[..., Any], run_tiny: Callable[..., Any], tmp_path: Path
):
    folder = run_tiny("zeroshot", out=tmp_path).folder
    identity = json.loads((folder / "identity.json").read_text())
    (folder / "identity.json").write_text(json.dumps({**identity, "seed": 7}))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ended = cli("run", "zeroshot", *TINY, "--out", tmp_path)

    assert ended.code == 2
    assert ended.err.splitlines()[-1] == (
        f"error: run folder {folder} holds another configuration; move it away or use another --out"
    )
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_file_in_place_of_the_folder_of_runs_is_one_sentence(cli: Callable[..., Any], tmp_path: Path):
    (tmp_path / "runs").write_text("")
    ended = cli("run", "zeroshot", *TINY, "--out", tmp_path / "runs")

    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith("error: ")
    assert str(tmp_path / "runs") in ended.err.splitlines()[-1]


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 48 KiB: less than the checkpoint of one task."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a small file system needs privileges")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_named_and_leaves_nothing_under_a_final_name(
    cli: Callable[..., Any], small_disk: Path
):
    ended = cli("run", "finetune", *TINY, "--out", small_disk)

    assert ended.code == 2, ended.err
    assert ended.err.splitlines()[-1] == (
        f"error: {small_disk}: no space left on the device; free some and run the same command again"
    )
    assert finished(small_disk) == []
    (partial,) = small_disk.glob("*.partial")
    assert not list(partial.glob("state-*"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_every_librarys_word_for_a_full_disk_is_understood(error: Exception):
    with (
        pytest.raises(
            RunError, match=r"^runs: no space left on the device; free some and run the same command again$"
        ),
        full_disk_named("runs"),
    ):
        raise error


@pytest.mark.parametrize(
    "error", [OSError(13, "Permission denied"), OptionError("28"), ValueError("os error")]
)
def test_other_errors_stay_what_they_are(error: Exception):
    with pytest.raises(type(error)) as raised, full_disk_named("runs"):
        raise error
    assert raised.value is error
