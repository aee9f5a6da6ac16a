"""Backbones: a LLaVA checkpoint from a folder, its frozen tower, and what belongs to it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.llava import load as load_llava
from cl_zoo.backbones.loading import revision_of
from cl_zoo.backbones.towers import FrozenTower
from cl_zoo.batches import forward, task_loss
from cl_zoo.errors import BackboneError, DataError
from cl_zoo.features.loading import encoder_revision
from cl_zoo.tasks import Sample
from cl_zoo.testing import TEMPLATE, square


def samples(*images: int | None) -> list[Sample]:
    return [
        Sample(str(i), None if i is None else square(i)[0], "What colour is it ?", "a red square")
        for i in images
    ]


class Counting(nn.Module):
    """A vision tower that counts the images that pass through it."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower, self.images = tower, 0

    def forward(self, pixel_values: torch.Tensor, **kwargs: object) -> object:
        self.images += pixel_values.shape[0]
        return self.tower(pixel_values, **kwargs)


def counted(backbone: Backbone) -> Counting:
    frozen = backbone.model.model.vision_tower
    frozen.tower = Counting(frozen.tower)
    return frozen.tower


@torch.no_grad()
def test_features_give_the_same_logits_as_pixels(tiny: Backbone) -> None:
    batch = tiny.batch(samples(0, 1, 2), answers=True)
    pixels = tiny.image_processor(images=[square(i)[0] for i in range(3)], return_tensors="pt")[
        "pixel_values"
    ]

    kept = forward(tiny.model, batch).logits
    batch.inputs["pixel_values"] = pixels
    through = forward(tiny.model, batch).logits

    assert pixels.ndim == 4
    torch.testing.assert_close(kept, through, rtol=0, atol=1e-5)


def test_the_tower_sees_each_distinct_image_once(tiny: Backbone) -> None:
    tower = counted(tiny)

    for images in ([0, 1, 0], [1, 2], [0, 1, 2], [2, None]):
        batch = tiny.batch(samples(*images), answers=True)
        forward(tiny.model, batch)

    assert tower.images == 3


def test_the_same_image_from_a_file_is_encoded_once_too(tiny: Backbone, tmp_path: Path) -> None:
    square(3)[0].save(tmp_path / "three.png")
    tower = counted(tiny)

    (first,) = tiny.encode([tmp_path / "three.png"])
    second = tiny.encode([tmp_path / "three.png", square(3)[0]])

    assert tower.images == 2  # the file, and the image in memory
    for features in second:
        torch.testing.assert_close(features, first)


def test_a_projector_that_learns_gets_a_gradient_from_kept_features(tiny: Backbone) -> None:
    tiny.train_projector(True)
    tower = counted(tiny)
    tiny.encode([square(0)[0]])

    task_loss(tiny.model, tiny.batch(samples(0), answers=True)).backward()

    gradients = [weight.grad for weight in tiny.projector.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    assert tower.images == 1
    assert all(weight.grad is None for weight in tiny.vision_tower.parameters())


def test_a_learning_projector_is_no_longer_the_backbones_own(tiny: Backbone) -> None:
    weights = list(tiny.projector.parameters())
    assert all(tiny.owns(weight) for weight in tiny.model.parameters())

    tiny.train_projector(True)
    assert not any(tiny.owns(weight) for weight in weights)
    assert all(weight.requires_grad for weight in weights)

    tiny.train_projector(False)
    assert all(tiny.owns(weight) for weight in weights)
    assert not any(weight.requires_grad for weight in tiny.model.parameters())


def test_a_new_tensor_is_never_taken_for_the_backbones(tiny: Backbone) -> None:
    """Even where the backbone has lost a tensor whose place in memory a new one takes."""
    tiny.model.lm_head = nn.Linear(2, 2)

    assert not any(tiny.owns(torch.zeros(3)) for _ in range(300))


def test_text_only_batches_carry_no_image_tokens(tiny: Backbone) -> None:
    batch = tiny.batch(samples(None, None), answers=True)

    assert "pixel_values" not in batch.inputs
    assert not (batch.inputs["input_ids"] == tiny.model.config.image_token_id).any()
    assert torch.isfinite(task_loss(tiny.model, batch))


@torch.no_grad()
def test_in_a_mixed_batch_each_image_meets_its_own_sample(tiny: Backbone) -> None:
    batch = tiny.batch(samples(None, 2, None, 1), answers=True)
    logits = forward(tiny.model, batch).logits

    for row, image in enumerate((None, 2, None, 1)):
        alone = forward(tiny.model, tiny.batch(samples(image), answers=True)).logits[0]
        torch.testing.assert_close(logits[row], alone, rtol=0, atol=1e-4)
    patches = (batch.inputs["input_ids"] == tiny.model.config.image_token_id).sum(1)
    assert patches.tolist() == [0, 4, 0, 4]  # 16 × 16 pixels in patches of 8 × 8


def test_the_template_holds_the_prompt_behind_its_image(tiny: Backbone) -> None:
    batch = tiny.batch(samples(0), answers=False)

    text = tiny.tokenizer.decode(batch.inputs["input_ids"][0])
    assert text == "USER: <image> <image> <image> <image> What colour is it ? ASSISTANT:"


def test_braces_in_a_prompt_are_text(tiny: Backbone) -> None:
    batch = tiny.batch([Sample("0", None, "What {colour} is it ?", "red")], answers=False)

    assert tiny.tokenizer.unk_token_id in batch.inputs["input_ids"][0]


def test_answers_are_decoded_without_special_tokens(tiny: Backbone) -> None:
    words = tiny.tokenizer.convert_tokens_to_ids(["red", "square", "</s>", "<pad>"])

    assert tiny.decode(torch.tensor([words])) == ["red square"]


def test_the_backbone_knows_its_layers_and_linears(tiny: Backbone) -> None:
    import re

    linears = [
        name
        for name, module in tiny.model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(tiny.linears, name)
    ]

    assert len(tiny.layers) == 2
    assert len(linears) == 2 * 7
    assert not any("vision" in name for name in linears)


def test_a_checkpoint_loads_without_a_network(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    backbone = load_llava(
        tiny_folder / "llava",
        torch.device("cpu"),
        torch.float32,
        template=TEMPLATE,
        features=str(tiny_folder / "clip"),
    )

    assert isinstance(backbone.model.model.vision_tower, FrozenTower)
    assert not backbone.model.training
    assert not any(weight.requires_grad for weight in backbone.model.parameters())
    assert backbone.features.texts(["What colour is it ?"]).shape == (1, 8)


def test_the_tower_stays_in_evaluation_mode_while_the_rest_trains(tiny: Backbone) -> None:
    tiny.model.train()

    assert tiny.model.training
    assert not any(module.training for module in tiny.vision_tower.modules())


def test_wrapping_twice_wraps_once(tiny: Backbone) -> None:
    again = tiny.with_model(tiny.model)

    assert not isinstance(again.vision_tower, FrozenTower)


def broken(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder / "llava", tmp_path / "broken"))


def load(path: Path | None) -> Backbone:
    return load_llava(path, torch.device("cpu"), torch.float32)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="nowhere: no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(BackboneError, match="--backbone llava:FOLDER"):
        load(None)


def test_a_folder_without_weights_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = broken(tiny_folder, tmp_path)
    for file in folder.glob("*.safetensors"):
        file.unlink()

    with pytest.raises(BackboneError, match="has no weights"):
        load(folder)


def test_a_truncated_checkpoint_is_refused_in_one_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    folder = broken(tiny_folder, tmp_path)
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])

    with pytest.raises(BackboneError, match="corrupt or incomplete") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_lacks_weights_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = broken(tiny_folder, tmp_path)
    weights = next(folder.glob("*.safetensors"))
    tensors = load_file(weights)
    gone = next(name for name in tensors if "mlp.up_proj" in name)
    del tensors[gone]
    save_file(tensors, weights, metadata={"format": "pt"})

    with pytest.raises(BackboneError, match=r"1 weights are missing, first .*mlp\.up_proj"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [("{", "no readable config.json"), (json.dumps({"model_type": "llama"}), "'llama' model")],
)
def test_another_class_of_model_is_refused(
    tiny_folder: Path, tmp_path: Path, config: str, words: str
) -> None:
    folder = broken(tiny_folder, tmp_path)
    (folder / "config.json").write_text(config)

    with pytest.raises(BackboneError, match=words):
        load(folder)


def test_the_revision_changes_with_the_weights(tiny_folder: Path, tmp_path: Path) -> None:
    folder = broken(tiny_folder, tmp_path)
    before = revision_of(folder)
    assert before == revision_of(tiny_folder / "llava")

    weights = next(folder.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))

    assert revision_of(folder) != before


def test_the_revision_is_that_of_the_vocabulary_too(tiny_folder: Path, tmp_path: Path) -> None:
    folder = broken(tiny_folder, tmp_path)
    before = revision_of(folder)
    (folder / "chat_template.jinja").write_text("not what is used here")
    (folder / "README.md").write_text("nor this")
    assert revision_of(folder) == before

    for name in ("tokenizer.model", "merges.txt", "vocab.txt"):
        (folder / name).write_text("pieces")
        assert revision_of(folder) != before
        before = revision_of(folder)


def test_the_shipped_base_has_the_revision_that_stands_in_the_shipped_results() -> None:
    import cl_zoo_bench_mini

    folder = Path(cl_zoo_bench_mini.__file__).parent
    assert revision_of(folder / "base") == "7d935e92e3bc55ca"
    assert encoder_revision(str(folder / "clip")) == "0e5b92e3eb3911a1"


def test_a_file_that_was_overwritten_is_looked_at_again(tiny: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    for number in (0, 1):
        square(number)[0].save(file)
        os.utime(file, (number, number))
        torch.testing.assert_close(tiny.encode([file]), tiny.encode([square(number)[0]]))


@pytest.mark.parametrize("change", ["code", "device"])
def test_a_shelf_is_of_one_device_and_of_todays_code(
    change: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shelves() -> set[str]:
        backbone = load(tiny_folder / "llava")
        backbone.adjust(cache=tmp_path)
        if change == "device" and len(list(tmp_path.iterdir())) == 2:
            backbone.model.to("meta")
        backbone._seen._shelf.put(b"key", torch.zeros(1))  # type: ignore[union-attr]
        if change == "code":
            monkeypatch.setattr("cl_zoo.backbones.backbone.source_hash", lambda *files: "0123456789abcdef")
        return {file.name for file in tmp_path.iterdir()}

    monkeypatch.setattr("cl_zoo.features.shelves.RESERVE", 0)
    assert len(shelves()) == 2
    assert len(shelves()) == 4


def test_the_code_of_a_shelf_is_the_familys_the_towers_and_what_opens_images(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def noted(*files: str) -> str:
        hashed.extend("/".join(Path(file).parts[-2:]) for file in files)
        return "0" * 16

    monkeypatch.setattr("cl_zoo.backbones.backbone.source_hash", noted)
    tiny.adjust(cache=tmp_path)
    _ = tiny._seen
    assert hashed == [
        "backbones/llava.py",
        "backbones/backbone.py",
        "backbones/towers.py",
        "features/encoder.py",
        "images/frames.py",
        "images/kinds.py",
        "cl_zoo/videos.py",
    ]


# Lengths


@pytest.mark.parametrize("answers", [False, True])
def test_a_prompt_beyond_the_limit_is_refused_with_its_length(tiny: Backbone, answers: bool) -> None:
    """11 tokens: USER:, four of the image, five of the question, ASSISTANT:; in training four more: three words and the end."""
    length = 11 + 4 * answers
    tiny.adjust(max_tokens=length)
    assert tiny.with_model(tiny.model).max_tokens == length
    tiny.batch(samples(0), answers=answers)

    tiny.adjust(max_tokens=length - 1)
    with pytest.raises(
        DataError,
        match=rf"sample '0' takes {length} tokens with its image.*, more than the recipe's max_tokens {length - 1}; .*--set max_tokens={length}",
    ):
        tiny.batch(samples(0), answers=answers)


def test_a_prompt_beyond_the_models_positions_is_refused_whatever_the_recipe_says(tiny: Backbone) -> None:
    tiny.adjust(max_tokens=10_000)
    prompt = "What " * 506
    tiny.batch([Sample("7", square(0)[0], prompt)], answers=False)  # with USER:, ASSISTANT: and the image 512

    with pytest.raises(
        DataError,
        match="sample '7' takes 513 tokens with its image, more than the 512 positions of backbone tiny",
    ):
        tiny.batch([Sample("7", square(0)[0], prompt + "?")], answers=False)


def test_a_prompt_that_marks_an_image_itself_is_refused_in_whose_name(tiny: Backbone) -> None:
    tiny.check_prompt("What is it ?", "prompt 3")
    with pytest.raises(
        DataError, match="prompt 3 holds <image>, which stands for the image itself; take it out"
    ):
        tiny.check_prompt("<image> What is it ?", "prompt 3")


def test_a_backbone_without_features_says_how_to_name_some(tiny_folder: Path) -> None:
    backbone = load(tiny_folder / "llava")

    assert backbone.feature_revision is None
    with pytest.raises(BackboneError, match="--features NAME"):
        _ = backbone.features


def test_an_unreadable_image_is_named(tiny: Backbone, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for name, reason in (("text.png", "not a readable image"), ("gone.png", "no such file")):
        with pytest.raises(DataError, match=f"{name}: {reason}"):
            tiny.batch([Sample("0", tmp_path / name, "What ?", "red")], answers=True)


def test_grey_and_palette_images_become_rgb(tiny: Backbone) -> None:
    grey = Image.new("L", (16, 16), 128)

    assert len(tiny.encode([grey, grey.convert("P"), grey.convert("RGB")])) == 3
