"""An exported run answers as the run does, loaded by stock PEFT and transformers with the lines of its own card."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModel, PeftModel
from safetensors.torch import load_file
from tiny_runs import made_once
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

import cl_zoo
from cl_zoo.batches import prepare
from cl_zoo.errors import OptionError
from cl_zoo.export import adapters as exporting
from cl_zoo.export.card import Base, card
from cl_zoo.export.folding import fold
from cl_zoo.export.routed import folder_names
from cl_zoo.export.writing import export
from cl_zoo.features.encoder import FeatureEncoder
from cl_zoo.nn.mixes import AllOnes
from cl_zoo.runs.comparison import Result
from cl_zoo.runs.restore import Restored, restore
from cl_zoo.tasks import Sample
from cl_zoo.testing import TEMPLATE, tiny_benchmark, tiny_internvl, tiny_qwen, tiny_qwen3, tiny_smolvlm

Make = Callable[..., Path]

RECIPE = {"lr.projector": 1e-2, "adapter.rank": 4}
SAMPLES = tuple(sample for task in tiny_benchmark().tasks for sample in task.test)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Make:
    """The folder of a finished run of a stack on the tiny benchmark; each is made once."""
    out = tmp_path_factory.mktemp("runs")

    def made(method: str, recipe: dict[str, Any] | None = None, **settings: Any) -> Path:
        result: Result = cl_zoo.run(
            method,
            benchmark="cl_zoo.testing:load_tiny",
            backbone=str(tiny_folder / "llava"),
            features=str(tiny_folder / "clip"),
            template=TEMPLATE,
            device="cpu",
            out=out,
            limit=6,
            recipe={**RECIPE, **(recipe or {})},
            **settings,
        )
        assert result.folder is not None
        return result.folder

    return made_once(made)


@pytest.fixture
def base(tiny_folder: Path) -> Any:
    """The stock model, untouched by this package."""
    return LlavaForConditionalGeneration.from_pretrained(tiny_folder / "llava")


def zoo_logits(restored: Restored, samples: Sequence[Sample] = SAMPLES) -> Tensor:
    """Logits (batch, tokens, V) of the run's model on prompts."""
    batch = restored.backbone.batch(samples, answers=False)
    with torch.no_grad():
        prepare(restored.model, batch)
        return restored.model(**batch.inputs).logits  # type: ignore[no-any-return]


def stock_inputs(restored: Restored, samples: Sequence[Sample] = SAMPLES) -> dict[str, Any]:
    """The same prompts with pixels, as a program without this package makes them."""
    batch, backbone = restored.backbone.batch(samples, answers=False), restored.backbone
    images = [sample.image for sample in samples]
    made = backbone.image_processor(images=images, return_tensors="pt")
    return {**batch.inputs, **{name: value for name, value in made.items() if name in batch.inputs}}


def logits_of(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model.eval()(**inputs).logits  # type: ignore[no-any-return]


def far(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def loading_lines(folder: Path) -> str:
    """The Python lines of the card."""
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def by_its_card(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> Callable[[Path], dict[str, Any]]:
    """What the lines of a card define, run inside the folder."""

    def load(folder: Path) -> dict[str, Any]:
        names: dict[str, Any] = {}
        monkeypatch.chdir(folder)
        lines = loading_lines(folder)
        if named := re.search(r'^BASE = "(.+)"  # a folder', lines, re.MULTILINE):
            beside = folder.parent / named[1]
            place = beside if beside.is_dir() else tiny_folder / named[1]
            lines = lines.replace(named[0], f"BASE = {str(place)!r} # here")
        exec(lines, names)
        return names

    return load


# Adapters


EXACT = ("finetune", "multitask", "ewc", "olora", "sefe", "hide[expanded=0]", "hide[expanded=0,bare=1]")
ROUNDED = (
    "hide[expanded=0,variant=released]",
    "hide[expanded=0,coefficient=0.3]",
    "hide[expanded=0,coefficient=0.3,variant=released]",
)


@pytest.mark.parametrize("method", EXACT)
def test_stock_peft_gives_the_same_bits(make: Make, by_its_card: Any, base: Any, tmp_path: Path, method: str):
    run = make(method)
    restored = restore(run)
    export(run, tmp_path / "adapter")

    loaded = by_its_card(tmp_path / "adapter")["model"]
    inputs = stock_inputs(restored)

    assert isinstance(loaded, PeftModel)
    assert torch.equal(logits_of(loaded, inputs), zoo_logits(restored))
    assert far(logits_of(base, inputs), zoo_logits(restored)) > 1e-2


@pytest.mark.parametrize("method", ROUNDED)
def test_a_coefficient_that_moves_into_b_changes_last_digits_only(
    make: Make, by_its_card: Any, tmp_path: Path, method: str
):
    run = make(method)
    export(run, tmp_path / "adapter")
    restored = restore(run)

    loaded = by_its_card(tmp_path / "adapter")["model"]

    assert far(logits_of(loaded, stock_inputs(restored)), zoo_logits(restored)) < 1e-5


def test_a_scale_that_is_no_power_of_two_changes_last_digits_only(
    make: Make, by_its_card: Any, tmp_path: Path
):
    run = make("finetune", {"adapter.scale": 1.7})
    export(run, tmp_path / "adapter")
    restored = restore(run)

    loaded = by_its_card(tmp_path / "adapter")["model"]

    assert far(logits_of(loaded, stock_inputs(restored)), zoo_logits(restored)) < 1e-5


def test_an_adapter_holds_the_scale_the_rank_and_the_projector(make: Make, tmp_path: Path):
    export(make("olora"), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")

    assert (config["r"], config["lora_alpha"]) == (8, 16)  # two tasks of rank 4 side by side, s = 2
    assert config["modules_to_save"] == ["model.multi_modal_projector"]
    assert sum("multi_modal_projector" in name for name in tensors) == 4
    assert all(name.startswith("base_model.model.model.") for name in tensors)
    assert len(config["target_modules"]) == 14


def test_layers_without_an_expert_are_no_targets(make: Make, tmp_path: Path):
    export(make("hide[expanded=0,bare=1]"), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())

    assert {name.split(".")[3] for name in config["target_modules"]} == {"0"}


def test_a_projector_that_never_learnt_is_left_out(make: Make, by_its_card: Any, tmp_path: Path):
    run = make("finetune", {"projector": "frozen"})
    export(run, tmp_path / "adapter")
    restored = restore(run)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())

    assert config["modules_to_save"] is None
    loaded = by_its_card(tmp_path / "adapter")["model"]
    assert torch.equal(logits_of(loaded, stock_inputs(restored)), zoo_logits(restored))


@pytest.mark.parametrize("method", ["finetune", "hide"])
def test_a_bf16_run_answers_in_bf16_up_to_its_rounding(
    make: Make, by_its_card: Any, tmp_path: Path, method: str
):
    run = make(method, {"precision": "bf16"})
    export(run, tmp_path / "adapter")
    restored = restore(run)
    loaded = by_its_card(tmp_path / "adapter")["model"]
    inputs = stock_inputs(restored)
    with restored.autocast():
        wanted = zoo_logits(restored)
        if method == "hide":
            restored.model.gate.weights = torch.eye(2)[0].expand(len(SAMPLES), 2)
            batch = restored.backbone.batch(SAMPLES, answers=False)
            with torch.no_grad():
                wanted = restored.model(**batch.inputs).logits

    got = logits_of(loaded, {**inputs, "pixel_values": inputs["pixel_values"].bfloat16()})

    assert got.dtype == torch.bfloat16
    assert far(got, wanted) < 0.05 * float(wanted.abs().max())


def test_peft_finds_the_base_by_itself(make: Make, tmp_path: Path):
    run = make("finetune")
    export(run, tmp_path / "adapter")
    restored = restore(run)

    loaded = AutoPeftModel.from_pretrained(str(tmp_path / "adapter"))

    assert torch.equal(logits_of(loaded, stock_inputs(restored)), zoo_logits(restored))


WRITERS = {
    "internvl": tiny_internvl,
    "qwen2.5-vl": tiny_qwen,
    "qwen3-vl": tiny_qwen3,
    "smolvlm2": tiny_smolvlm,
}


@pytest.mark.parametrize("family", sorted(WRITERS))
def test_other_families_are_exported_alike(by_its_card: Any, tmp_path: Path, family: str):
    WRITERS[family](tmp_path / "base")
    result = cl_zoo.run(
        "finetune",
        benchmark="cl_zoo.testing:load_tiny",
        backbone=f"{family}:{tmp_path / 'base'}",
        device="cpu",
        out=tmp_path / "runs",
        recipe=RECIPE,
    )
    assert result.folder is not None
    restored = restore(result.folder)
    export(result.folder, tmp_path / "adapter")
    export(result.folder, tmp_path / "merged", merged=True)
    inputs, wanted = stock_inputs(restored), zoo_logits(restored)

    adapted = by_its_card(tmp_path / "adapter")["model"]
    merged = by_its_card(tmp_path / "merged")["model"]

    assert far(logits_of(adapted, inputs), wanted) < 1e-5
    assert far(logits_of(merged, inputs), wanted) < 1e-4
    assert far(logits_of(type(merged).from_pretrained(tmp_path / "base"), inputs), wanted) > 1e-2


# Checkpoints


@pytest.mark.parametrize("method", ["finetune", "hide[expanded=0]", "modeltailor"])
def test_a_merged_checkpoint_is_a_stock_model(
    make: Make, by_its_card: Any, tmp_path: Path, tiny_folder: Path, method: str
):
    run = make(method)
    export(run, tmp_path / "merged", merged=True)
    restored = restore(run)
    inputs = stock_inputs(restored)

    model, info = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged", output_loading_info=True)
    loaded = by_its_card(tmp_path / "merged")

    assert {name: len(found) for name, found in info.items() if len(found)} == {}
    assert far(logits_of(model, inputs), zoo_logits(restored)) < 1e-4
    assert torch.equal(logits_of(loaded["model"], inputs), logits_of(model, inputs))
    prompt = TEMPLATE.format(prompt=SAMPLES[0].prompt)
    assert loaded["tokenizer"](prompt)["input_ids"] == restored.backbone.tokenizer(prompt)["input_ids"]
    pixels = loaded["image_processor"](images=[SAMPLES[0].image], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, stock_inputs(restored, SAMPLES[:1])["pixel_values"])
    names = {file.name for file in (tmp_path / "merged").iterdir()}
    assert {file.name for file in (tiny_folder / "llava").iterdir()} | {"README.md"} <= names


def test_merged_weights_answer_alike_where_the_choice_is_clear(make: Make, tmp_path: Path):
    run = make("finetune")
    export(run, tmp_path / "merged", merged=True)
    restored = restore(run)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    records = restored.answers([one.image for one in SAMPLES], [one.prompt for one in SAMPLES])
    answers = [record["answer"] for record in records]

    compared = 0
    for sample, answer in zip(SAMPLES, answers, strict=True):
        inputs = stock_inputs(restored, [sample])
        made = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
        best = torch.stack(made.scores).topk(2).values
        if float((best[..., 0] - best[..., 1]).min()) > 1e-3:
            compared += 1
            (text,) = restored.backbone.decode(made.sequences[:, inputs["input_ids"].shape[1] :])
            assert text == answer
    assert compared > len(SAMPLES) // 2


def test_a_bf16_run_is_merged_in_bf16(make: Make, tmp_path: Path):
    export(make("finetune", {"precision": "bf16"}), tmp_path / "merged", merged=True)

    tensors = load_file(tmp_path / "merged" / "model.safetensors")

    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


# One adapter per task


@pytest.fixture(params=["hide", "disco", "hide[variant=released,expanded=all,bare=1]"])
def routed(request: pytest.FixtureRequest, make: Make, tmp_path: Path) -> tuple[Restored, Path]:
    """A restored run that routes by sample, and its export."""
    run = make(request.param)
    export(run, tmp_path / "routed")
    return restore(run), tmp_path / "routed"


def test_each_tasks_adapter_is_the_model_with_all_weight_on_that_task(
    routed: tuple[Restored, Path], by_its_card: Any
):
    restored, folder = routed
    loaded = by_its_card(folder)
    batch = restored.backbone.batch(SAMPLES, answers=False)

    for place, name in enumerate(["colour", "side"]):
        loaded["model"].set_adapter(name)
        restored.model.gate.weights = torch.eye(2)[place].expand(len(SAMPLES), 2)
        with torch.no_grad():
            wanted = restored.model(**batch.inputs).logits
        assert far(logits_of(loaded["model"], stock_inputs(restored)), wanted) < 1e-5
    assert loaded["routing"]["tasks"] == ["colour", "side"]


def test_adapters_joined_by_a_route_are_the_runs_model(routed: tuple[Restored, Path], by_its_card: Any):
    restored, folder = routed
    loaded = by_its_card(folder)
    model = loaded["model"]

    for place, sample in enumerate(SAMPLES[:3]):
        wanted = zoo_logits(restored, [sample])
        weights = restored.model.route[0].tolist()
        model.add_weighted_adapter(
            loaded["routing"]["adapters"], weights, f"mixed{place}", combination_type="cat"
        )
        model.set_adapter(f"mixed{place}")
        assert 0.01 < weights[0] < 0.99
        assert far(logits_of(model, stock_inputs(restored, [sample])), wanted) < 1e-5


def test_another_program_can_make_the_route(routed: tuple[Restored, Path], tiny_folder: Path):
    restored, folder = routed
    routing = json.loads((folder / "routing.json").read_text())
    anchors = load_file(folder / "routing.safetensors")
    encoder = FeatureEncoder(str(tiny_folder / "clip"))
    seen = {
        "images": encoder.images([one.image for one in SAMPLES]),
        "texts": encoder.texts([one.prompt for one in SAMPLES])
        if "before CLIP's text projection" not in routing["views"]["texts"]["feature"]
        else encoder.text_states([one.prompt for one in SAMPLES]),
    }

    similar = torch.zeros(len(SAMPLES), 2)
    for kind, view in routing["views"].items():
        for i, feature in enumerate(seen[kind]):
            for t, anchor in enumerate(anchors[kind]):
                cosine = feature @ anchor / (feature.norm() * anchor.norm())
                similar[i, t] += view["weight"] * cosine
    route = (similar / routing["temperature"]).softmax(1)

    zoo_logits(restored)
    assert torch.allclose(route, restored.model.route, atol=1e-5)
    assert routing["encoder"]["name"] == "clip"
    assert str(tiny_folder) not in (folder / "routing.json").read_text()


def test_a_task_that_comes_twice_has_two_adapters():
    assert folder_names(["ocr", "vqa v2.0", "ocr", "ocr", "…"]) == ["ocr", "vqa_v2_0", "ocr-2", "ocr-3", "_"]


# What cannot be exported


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ("same[variant=released]", "cl_zoo.nn.tokens.Told answers by more than updates of linear layers"),
        ("branchlora", "cl_zoo_branchlora.Branched answers by more than updates of linear layers"),
        ("clmoe", "cl_zoo_clmoe.Routed answers by more than updates of linear layers"),
        ("smolora", "cl_zoo_smolora.Separated answers by more than updates of linear layers"),
        ("zeroshot", "nothing was trained, so there is nothing to export"),
    ],
)
def test_what_cannot_be_folded_is_named(make: Make, tmp_path: Path, method: str, named: str):
    run = make(method, {"adapter.rank": 8})

    for merged in (False, True):
        with pytest.raises(OptionError) as refused:
            export(run, tmp_path / "new", merged=merged)
        assert f"{run}: {named}" in str(refused.value)
        assert method == "zeroshot" or "cl_zoo.load(RUN).generate" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_routed_run_has_no_merged_weights(make: Make, tmp_path: Path):
    with pytest.raises(OptionError, match=r"weighs its experts by each sample's route.*without --merged"):
        export(make("disco"), tmp_path / "new", merged=True)


def test_a_change_of_full_rank_is_no_lora(make: Make, tmp_path: Path):
    with pytest.raises(OptionError, match=r"holds a change of full rank.*export with --merged"):
        export(make("modeltailor"), tmp_path / "new")


class Wrong(nn.Module):
    """G = 2, and a fold that forgets it."""

    def forward(self, z: Tensor, x: Tensor, ranks: Sequence[int]) -> Tensor:
        return 2 * z

    def fold(self, downs: Sequence[Tensor], ups: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return torch.cat(list(downs), 0), torch.cat(list(ups), 1)


@pytest.mark.parametrize("size", [1.0, 1e6])
def test_a_wrong_fold_never_gets_out_however_small_it_is_beside_the_weights(make: Make, size: float):
    restored = restore(make("finetune"))
    restored.model.mix(lambda layer: Wrong())
    for layer in restored.model.layers:
        layer.base_layer.weight.data *= size

    with pytest.raises(OptionError, match="adds more than its folded experts do"):
        fold(restored.model, restored.backbone)


def test_what_a_hook_adds_is_noticed(make: Make):
    restored = restore(make("finetune"))
    restored.model.layers[-1].register_forward_hook(lambda layer, inputs, y: y + 0.1)

    with pytest.raises(OptionError, match=r"layers\.1\.mlp\.down_proj adds more than its folded experts do"):
        fold(restored.model, restored.backbone)


def test_a_weight_beside_the_experts_is_noticed(make: Make):
    restored = restore(make("finetune"))
    restored.model.layers[0].bank_bias = nn.Parameter(torch.zeros(3))

    with pytest.raises(OptionError, match=r"bank_bias takes part in answering beside the experts"):
        fold(restored.model, restored.backbone)


def test_folding_all_ones_is_the_sum_of_each():
    A = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])]
    B = [torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [1.0]])]

    down, up = AllOnes().fold(A, B)

    assert down.tolist() == [[4.0, 6.0]]
    assert up.tolist() == [[3.0], [1.0]]


def test_folding_leaves_the_model_as_it_was(make: Make):
    restored = restore(make("hide"))
    before = zoo_logits(restored)

    fold(restored.model, restored.backbone)

    assert torch.equal(zoo_logits(restored), before)


# The card


def front_matter(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---")[1]))


def test_the_card_says_where_the_model_comes_from(make: Make, tmp_path: Path, tiny_folder: Path):
    run = make("hide[expanded=0,variant=released]+ewc", order="SC", seed=3)
    export(run, tmp_path / "adapter")
    text = (tmp_path / "adapter" / "README.md").read_text()
    manifest = json.loads((run / "manifest.json").read_text())

    assert front_matter(text)["library_name"] == "peft"
    assert front_matter(text)["tags"] == ["cl-zoo", "continual-learning", "lora", "hide", "ewc"]
    for said in (
        "HiDe-LLaVA: hierarchical decoupling.",
        "https://arxiv.org/abs/2503.12941",
        "expanded=0",
        "variant=released",
        "| plugin ewc |",
        f"`llava` (LlavaForConditionalGeneration), hash of its files {manifest['identity']['backbone']['revision']}",
        "| benchmark | tiny 1, data tiny-1, 6 samples per split |",
        "| order | side, colour |",
        "| seed | 3 |",
        f"| run | {run.name} |",
        "projector: 0.01",
        "The licence of the base model applies",
        cl_zoo.__version__,
    ):
        assert said in text


@pytest.mark.parametrize(("method", "merged"), [("finetune", False), ("finetune", True), ("hide", False)])
def test_a_card_holds_no_path_of_the_machine_it_was_made_on(
    make: Make, tmp_path: Path, tiny_folder: Path, method: str, merged: bool
):
    run = make(method)
    export(run, tmp_path / "new", merged=merged)

    text = (tmp_path / "new" / "README.md").read_text()
    for place in (run.parent, tiny_folder, tmp_path, Path(cl_zoo.__file__).parent):
        assert str(place) not in text


def test_the_card_names_files_of_plugins_without_their_folders():
    from cl_zoo.export.card import PARENTS

    for text, plain in (
        ("/home/me/mine.py:Mine[file=/data/a b.json]+ewc", "mine.py:Mine[file=a b.json]+ewc"),
        (
            "see https://arxiv.org/abs/1612.00796 and ./mine.py, a/b",
            "see https://arxiv.org/abs/1612.00796 and ./mine.py, a/b",
        ),
    ):
        assert PARENTS.sub("", text) == plain


def test_the_card_shows_the_final_row(make: Make, tmp_path: Path):
    restored = restore(make("finetune"))
    base = Base("org/model", "org/model", "llama2", "LlavaForConditionalGeneration", "float16")
    matrix = {"scores": [[80.0, None], [60.5, 90.0]]}
    stored = restored.manifest["matrix"]
    scored = {**restored.manifest, "matrix": {**stored, **matrix} if isinstance(stored, dict) else stored}

    text = card(
        Restored(**{**vars(restored), "manifest": scored}), base, "What it is.", "load()", library="peft"
    )

    assert "| colour | exact | 60.50 |\n| side | exact | 90.00 |" in text
    assert "Last 75.25, BWT -9.75" in text
    assert front_matter(text)["base_model"] == "org/model"
    assert front_matter(text)["license"] == "llama2"
    assert "The base model's own card names `llama2`." in text


class Named:
    """A model as far as its card asks."""

    dtype = torch.float16

    def __init__(self, place: str) -> None:
        self.name_or_path = place


def test_a_base_from_the_hub_goes_by_its_id(tmp_path: Path):
    cached = tmp_path / "hub" / "models--llava-hf--llava-1.5-7b-hf" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    (cached / "README.md").write_text("---\nlicense: llama2\n---\n# It\n")

    assert Base.of(Named(str(cached))) == Base(
        "llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf", "llama2", "Named", "float16"
    )
    assert Base.of(Named("llava-hf/llava-1.5-13b-hf")).hub == "llava-hf/llava-1.5-13b-hf"
    assert Base.of(Named(str(tmp_path))) == Base(str(tmp_path), None, None, "Named", "float16")


# The folder


def test_a_folder_that_exists_is_left_alone(make: Make, tmp_path: Path):
    with pytest.raises(OptionError, match=r"--to .*: exists already; name a folder that does not"):
        export(make("finetune"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written_stays(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "write_card", broken)

    with pytest.raises(KeyboardInterrupt):
        export(make("finetune"), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_wrote(make: Make, cli: Any, tmp_path: Path):
    ended = cli("export", make("hide"), "--to", tmp_path / "a" / "new", "--device", "cpu")
    again = cli("export", make("hide"), "--to", tmp_path / "b", "--device", "cpu", "--json")

    assert ended.out == f"wrote {tmp_path}/a/new: adapters, 10 files; see README.md in it\n"
    assert json.loads(again.out)["adapters"] == ["adapters/colour", "adapters/side"]
    assert set(os.listdir(tmp_path / "b")) == {
        "README.md",
        "adapters",
        "answer.py",
        "export.json",
        "projector.safetensors",
        "routing.json",
        "routing.safetensors",
    }


def test_the_command_refuses_in_one_sentence(make: Make, cli: Any, tmp_path: Path):
    for run, to, sentence in (
        (make("finetune"), tmp_path, "exists already"),
        (tmp_path, tmp_path / "new", "is no finished run"),
        (make("clmoe", {"adapter.rank": 8}), tmp_path / "new", "cl_zoo_clmoe.Routed answers by more"),
    ):
        ended = cli("export", run, "--to", to)
        assert (ended.code, len(ended.err.splitlines()), ended.out) == (2, 1, "")
        assert sentence in ended.err
    assert list(tmp_path.iterdir()) == []
