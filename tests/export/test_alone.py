"""An exported folder that answers by itself: by its own program without cl_zoo, and `cl_zoo.load` without the run."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from tiny_runs import made_once
from torch import nn

import cl_zoo
from cl_zoo.batches import forward
from cl_zoo.errors import BackboneError, OptionError, RunError
from cl_zoo.export.gated import gates_of
from cl_zoo.export.programs import READS, program
from cl_zoo.export.prompted import choice_of
from cl_zoo.export.writing import export
from cl_zoo.runs.restore import restore
from cl_zoo.testing import TEMPLATE, tiny_benchmark, tiny_qwen

Make = Callable[..., tuple[Path, Path]]

PROMPTS = [sample.prompt for task in tiny_benchmark().tasks for sample in task.test[:3]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Make:
    """A finished run and its export; each is made once."""
    out = tmp_path_factory.mktemp("runs")

    def made(method: str, **recipe: Any) -> tuple[Path, Path]:
        result = cl_zoo.run(
            method,
            benchmark="cl_zoo.testing:load_tiny",
            backbone=str(tiny_folder / "llava"),
            features=str(tiny_folder / "clip"),
            template=TEMPLATE,
            device="cpu",
            out=out,
            limit=6,
            recipe={"lr.projector": 1e-2, "adapter.rank": 8, **recipe},
        )
        assert result.folder is not None
        export(result.folder, out / "exported" / result.folder.name)
        return result.folder, out / "exported" / result.folder.name

    return made_once(made)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path | None]:
    """Files of pictures, one of them no square, and none for the last prompt."""
    folder = tmp_path_factory.mktemp("pictures")
    found: list[Path | None] = []
    for place, sample in enumerate(sample for task in tiny_benchmark().tasks for sample in task.test[:3]):
        image = sample.image
        assert isinstance(image, Image.Image)
        image.crop((0, 0, 16, 9) if place == 1 else (0, 0, *image.size)).save(folder / f"{place}.png")
        found.append(folder / f"{place}.png")
    return [*found[:-1], None]


def program_answers(
    folder: Path, tiny_folder: Path, pictures: list[Path | None], encoder: list[str] | None = None
) -> list[str]:
    """What the folder's program answers in a process that cannot import cl_zoo; open_clip knows `tiny-clip` there."""
    lines = "\n".join(
        json.dumps({"image": image and str(image), "prompt": prompt})
        for image, prompt in zip(pictures, PROMPTS, strict=True)
    )
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    blocked = (
        "import sys, runpy; sys.modules['cl_zoo'] = sys.modules['peft'] = None; sys.argv = sys.argv[1:];"
        f"import open_clip; open_clip.add_model_config({str(folder.parent)!r});"
        "runpy.run_path(sys.argv[0])"
    )
    if encoder is None:
        encoder = [str(tiny_folder / "clip")] if " ENCODER <" in (folder / "answer.py").read_text() else []
    done = subprocess.run(
        [sys.executable, "-c", blocked, str(folder / "answer.py"), str(tiny_folder / "llava"), *encoder],
        input=lines,
        capture_output=True,
        text=True,
        env=clean,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line)["answer"] for line in done.stdout.splitlines()]


ROUTED = ("hide", "disco", "hide[variant=released,expanded=all,bare=1]")
GATED = ("moelora", "hydralora", "same")
PROMPTED = ("l2p", "pgp", "modalprompt[transfer=1]")


@pytest.mark.parametrize("method", [*PROMPTED, *ROUTED, *GATED])
def test_a_loaded_folder_answers_as_its_run_does(
    make: Make, tiny_folder: Path, pictures: list[Path | None], method: str
):
    run, folder = make(method)
    loaded = cl_zoo.load(folder, backbone=str(tiny_folder / "llava"), features=str(tiny_folder / "clip"))

    answers = cl_zoo.load(run).generate(pictures, PROMPTS)

    assert len(set(answers)) > 1
    assert loaded.generate(pictures, PROMPTS) == answers


ONE_OF_A_KIND = ("l2p", "disco", "moelora")
OTHERS = [name for name in (*PROMPTED, *ROUTED, *GATED) if name not in ONE_OF_A_KIND]


@pytest.mark.parametrize(
    ("method", "recipe"),
    [
        *((name, {}) for name in ONE_OF_A_KIND),
        *(pytest.param(name, {}, marks=pytest.mark.slow) for name in OTHERS),
        *(pytest.param(name, {"precision": "bf16"}, marks=pytest.mark.slow) for name in ONE_OF_A_KIND),
        pytest.param("moelora", {"projector": "frozen"}, marks=pytest.mark.slow),
    ],
)
def test_its_program_answers_as_its_run_does(
    make: Make, tiny_folder: Path, pictures: list[Path | None], method: str, recipe: dict[str, Any]
):
    run, folder = make(method, **recipe)

    # in bf16 the company in a batch changes last digits, and with them the word at a tie
    answers = cl_zoo.load(run).generate(pictures, PROMPTS, batch=1 if recipe.get("precision") else None)

    assert program_answers(folder, tiny_folder, pictures) == answers


def flipped(file: Path) -> None:
    """One bit in the middle of a file is another."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["prompts.safetensors", "projector.safetensors", "export.json"])
def test_a_flipped_bit_is_refused(make: Make, tiny_folder: Path, tmp_path: Path, name: str):
    shutil.copytree(make("l2p")[1], tmp_path / "copy")
    flipped(tmp_path / "copy" / name)

    with pytest.raises(RunError, match=rf"{name} .*; export the run again"):
        cl_zoo.load(tmp_path / "copy", backbone=str(tiny_folder / "llava")).generate([None], ["What ?"])


@pytest.mark.parametrize("name", ["prompts.safetensors", "export.json"])
def test_its_program_refuses_a_changed_file(make: Make, tiny_folder: Path, tmp_path: Path, name: str):
    shutil.copytree(make("l2p")[1], tmp_path / "copy")
    file = tmp_path / "copy" / name
    if name == "export.json":
        file.write_text(file.read_text().replace('"top": 5', '"top": 4'))
    else:
        flipped(file)

    with pytest.raises(AssertionError, match=f"{name} is damaged; export the run again"):
        program_answers(tmp_path / "copy", tiny_folder, [None] * len(PROMPTS))


def test_a_folder_has_the_scores_of_its_run(make: Make):
    run, folder = make("l2p")

    assert cl_zoo.load(folder).matrix == cl_zoo.load(run).matrix
    assert str(cl_zoo.load(folder).table()) == str(cl_zoo.load(run).table())


def test_a_folder_says_that_it_needs_the_base(make: Make):
    with pytest.raises(
        BackboneError, match=r"weights in a folder, llava:llava; say where they lie with --back"
    ):
        cl_zoo.load(make("l2p")[1]).generate([None], ["What ?"])


def test_a_folder_asks_for_the_encoder_of_its_run(make: Make, tiny_folder: Path, tmp_path: Path):
    shutil.copytree(tiny_folder / "clip", tmp_path / "clip")
    weights = tmp_path / "clip" / "open_clip_model.safetensors"
    flipped(weights)
    places = {"backbone": str(tiny_folder / "llava"), "features": str(tmp_path / "clip")}

    with pytest.raises(BackboneError, match="looked through a feature encoder of revision"):
        cl_zoo.load(make("l2p")[1], **places).generate([None], ["What ?"])


@pytest.fixture(scope="module")
def by_file(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tuple[Path, Path, Path]:
    """A run that looks through weights in a file, its export, and the file."""
    places = tmp_path_factory.mktemp("by-file")
    config = json.loads((tiny_folder / "clip" / "open_clip_config.json").read_text())["model_cfg"]
    tokenizer = {"hf_tokenizer_name": str(tiny_folder / "clip")}
    config["text_cfg"] |= tokenizer if "hf_tokenizer_name" in config["text_cfg"] else {}
    (places / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(places / "tiny-clip.json")
    file = places / "looks.safetensors"
    shutil.copy(tiny_folder / "clip" / "open_clip_model.safetensors", file)
    result = cl_zoo.run(
        "l2p",
        benchmark="cl_zoo.testing:load_tiny",
        backbone=str(tiny_folder / "llava"),
        features=f"tiny-clip:{file}",
        template=TEMPLATE,
        device="cpu",
        out=places,
        limit=6,
    )
    assert result.folder is not None
    export(result.folder, places / "new")
    return result.folder, places / "new", file


def test_a_folder_whose_run_looked_through_a_file_answers_when_it_is_told_where_that_lies(
    by_file: tuple[Path, Path, Path], tiny_folder: Path, pictures: list[Path | None]
):
    run, folder, file = by_file
    answers = cl_zoo.load(run).generate(pictures, PROMPTS)
    places = {"backbone": str(tiny_folder / "llava"), "features": f"tiny-clip:{file}"}

    assert len(set(answers)) > 1
    assert cl_zoo.load(folder, **places).generate(pictures, PROMPTS) == answers
    assert program_answers(folder, tiny_folder, pictures, [str(file)]) == answers


def test_a_folder_says_that_it_needs_the_file_of_the_encoder(
    by_file: tuple[Path, Path, Path], tiny_folder: Path
):
    _, folder, file = by_file

    with pytest.raises(
        BackboneError,
        match=r"looked through the file looks\.safetensors; say where it lies with --features tiny-clip:FILE \(",
    ):
        cl_zoo.load(folder, backbone=str(tiny_folder / "llava")).generate([None], ["What ?"])
    with pytest.raises(AssertionError, match=r"say where tiny-clip:looks\.safetensors lies on this machine"):
        program_answers(folder, tiny_folder, [None] * len(PROMPTS), [])
    assert 'ENCODER = "tiny-clip:looks.safetensors"  # behind' in (folder / "README.md").read_text()
    assert all(str(file.parent).encode() not in one.read_bytes() for one in folder.iterdir())


def test_a_folder_says_that_it_needs_the_folder_of_the_encoder(make: Make, tiny_folder: Path):
    folder = make("l2p")[1]

    with pytest.raises(
        BackboneError, match=r"looked through the folder clip; say where it lies with --features FOLDER \("
    ):
        cl_zoo.load(folder, backbone=str(tiny_folder / "llava")).generate([None], ["What ?"])
    with pytest.raises(AssertionError, match="say where clip lies on this machine"):
        program_answers(folder, tiny_folder, [None] * len(PROMPTS), [])


@pytest.mark.parametrize("place", ["file", "folder"])
def test_its_program_refuses_another_encoder(
    by_file: tuple[Path, Path, Path], make: Make, tiny_folder: Path, tmp_path: Path, place: str
):
    """A bit of the weights is another, or the file is not there."""
    folder, name = by_file[1], "looks.safetensors"
    given = file = tmp_path / "other.safetensors"
    shutil.copy(by_file[2], file)
    if place == "folder":
        folder, name, given = make("l2p")[1], "open_clip_model.safetensors", tmp_path / "clip"
        shutil.copytree(tiny_folder / "clip", given)
        file = given / name
    flipped(file)
    refuses = rf"{file.name} is not the encoder's {name} that the run looked through; pass the run's own"

    for _ in range(2):
        with pytest.raises(AssertionError, match=refuses):
            program_answers(folder, tiny_folder, [None] * len(PROMPTS), [str(given)])
        file.unlink(missing_ok=True)


def test_no_file_names_a_place_on_the_machine_it_was_made_on(make: Make, tiny_folder: Path):
    run, folder = make("l2p")

    for file in folder.iterdir():
        for place in (run.parent, tiny_folder, Path(cl_zoo.__file__).parent):
            assert str(place).encode() not in file.read_bytes(), file.name


def test_the_command_line_answers_from_a_folder(make: Make, tiny_folder: Path, cli: Any):
    run, folder = make("modalprompt[transfer=1]")
    asked = ("--prompt", PROMPTS[0], "--device", "cpu")
    places = ("--backbone", tiny_folder / "llava", "--features", tiny_folder / "clip")

    assert cli("predict", folder, *asked, *places).out == cli("predict", run, *asked).out


def test_prompts_are_no_merged_weights(make: Make, tmp_path: Path):
    with pytest.raises(
        OptionError, match=r"it reads soft prompts, which are no weights; export without --merged"
    ):
        export(make("l2p")[0], tmp_path / "new", merged=True)


def test_a_choice_that_is_not_the_models_own_never_gets_out(make: Make):
    restored = restore(make("l2p")[0])
    told = restored.model.choice()
    restored.model.choice = lambda: replace(told, best_last=True)

    with pytest.raises(OptionError, match=r"cl_zoo_l2p\.Pool reads other prompts than its choice says"):
        choice_of(restored.model, restored.backbone)


def test_a_weight_beside_the_prompts_is_noticed(make: Make):
    restored = restore(make("l2p")[0])
    restored.backbone.layers[0].extra = nn.Parameter(torch.zeros(3))

    with pytest.raises(OptionError, match=r"layers\.0\.extra takes part in answering beside the prompts"):
        choice_of(restored.model, restored.backbone)


def test_a_program_is_short_and_needs_nothing_else(make: Make):
    text = (make("l2p")[1] / "answer.py").read_text()
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        name
        for node in nodes
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
    }
    code = [line for line in text.split('"""', 2)[2].splitlines() if line.strip()]

    assert {str(name).partition(".")[0] for name in names} - sys.stdlib_module_names == {
        "PIL",
        "open_clip",
        "safetensors",
        "torch",
        "transformers",
    }
    assert len(code) <= 60


def test_no_program_is_longer_than_the_docs_say():
    lengths = [
        len([line for line in text.split('"""', 2)[2].splitlines() if line.strip()])
        for kind, encoders in {"gates": (None,), "prompts": READS, "adapters": READS}.items()
        for encoder in encoders
        if ast.parse(text := program(kind, "Model", "float32", projector="p", encoder=encoder, pads=True))
    ]

    assert max(lengths) == 77


def test_images_that_take_tokens_by_their_size_leave_a_folder_without_a_program(
    tmp_path: Path, tiny_folder: Path
):
    tiny_qwen(tmp_path / "base")
    result = cl_zoo.run(
        "l2p",
        benchmark="cl_zoo.testing:load_tiny",
        backbone=f"qwen2.5-vl:{tmp_path / 'base'}",
        features=str(tiny_folder / "clip"),
        device="cpu",
        out=tmp_path / "runs",
        limit=4,
    )
    assert result.folder is not None
    export(result.folder, tmp_path / "new")
    images = [tiny_benchmark().tasks[0].test[0].image, None]
    loaded = cl_zoo.load(
        tmp_path / "new", backbone=f"qwen2.5-vl:{tmp_path / 'base'}", features=str(tiny_folder / "clip")
    )

    assert not (tmp_path / "new" / "answer.py").exists()
    assert loaded.generate(images, PROMPTS[:2]) == result.generate(images, PROMPTS[:2])


@pytest.mark.parametrize("method", ROUTED)
def test_a_loaded_folder_routes_as_its_run_does(
    make: Make, tiny_folder: Path, pictures: list[Path | None], method: str
):
    run, folder = make(method)
    places = {"backbone": str(tiny_folder / "llava"), "features": str(tiny_folder / "clip")}
    wanted = list(restore(run).answers(pictures, PROMPTS))

    assert list(cl_zoo.load(folder, **places).restored.answers(pictures, PROMPTS)) == wanted
    assert 0.01 < wanted[0]["route"][0] < 0.99


@pytest.mark.parametrize("method", GATED)
def test_loaded_gates_give_the_same_bits(make: Make, tiny_folder: Path, method: str):
    run, folder = make(method)
    restored, loaded = restore(run), cl_zoo.load(folder, backbone=str(tiny_folder / "llava")).restored
    samples = tiny_benchmark().tasks[0].test[:3]

    with torch.no_grad():
        wanted, got = (
            forward(one.model, one.backbone.batch(samples, answers=False)).logits
            for one in (restored, loaded)
        )

    assert torch.equal(got, wanted)


def test_gates_are_no_merged_weights(make: Make, tmp_path: Path):
    with pytest.raises(OptionError, match=r"it routes each token.*export without --merged"):
        export(make("moelora")[0], tmp_path / "new", merged=True)


def test_a_router_that_is_not_all_of_a_mix_never_gets_out(make: Make):
    restored = restore(make("moelora")[0])
    restored.model.layers[-1].bank_mix.gates = lambda x: torch.ones(*x.shape[:-1], 2)

    with pytest.raises(OptionError, match=r"layers\.1\.mlp\.down_proj adds more than its folded experts do"):
        gates_of(restored.model, restored.backbone)


def test_a_mix_beside_a_router_is_refused_by_name(make: Make):
    restored = restore(make("moelora")[0])
    restored.model.layers[-1].bank_mix = nn.Identity()

    assert gates_of(restored.model, restored.backbone) is None
