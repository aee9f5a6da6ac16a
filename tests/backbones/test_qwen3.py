"""Qwen3-VL: what enters its first layers (DeepStack), and its size; what it shares with other families is in `test_families`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.qwen3 import load
from cl_zoo.batches import forward, task_loss
from cl_zoo.planning.sizes import shapes
from cl_zoo.tasks import Sample
from cl_zoo.testing import square, tiny_qwen3

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a layer behind those that the image is added to: behind the last one it would reach no answer."""
    return tiny_qwen3(tmp_path_factory.mktemp("qwen3") / "model", layers=3)


@pytest.fixture
def backbone(folder: Path) -> Backbone:
    return load(folder, CPU, torch.float32)


def sample(image: Image.Image | None) -> Sample:
    return Sample("0", image, "What colour is it ?", "red")


@pytest.mark.parametrize(("size", "rows", "columns"), [((16, 16), 2, 2), ((40, 24), 3, 5), ((24, 40), 5, 3)])
def test_the_states_of_the_last_and_of_two_earlier_layers_are_kept(
    backbone: Backbone, size: tuple[int, int], rows: int, columns: int
) -> None:
    image = Image.new("RGB", size, (9, 99, 199))
    (kept,) = backbone.encode([image])
    batch = backbone.batch([sample(image)], answers=True)

    assert kept.shape == (rows, columns, 3, 4, 16)
    assert batch.inputs["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]
    assert batch.spans == (rows * columns,)
    assert len({level.sum().item() for level in kept.unbind(2)}) == 3


@torch.no_grad()
def test_what_is_added_to_the_first_layers_is_what_the_stock_tower_adds(
    folder: Path, backbone: Backbone
) -> None:
    """Its own mergers on pixels, and here on what is kept."""
    import transformers

    image = Image.new("RGB", (40, 24), (9, 99, 199))
    image.paste((220, 30, 30), (0, 0, 9, 12))
    batch = backbone.batch([sample(image), sample(None), sample(square(1)[0])], answers=True)
    pixels = torch.cat([backbone._pixels(one)["pixel_values"] for one in (image, square(1)[0])])
    stock: Any = transformers.Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()

    theirs = stock.model.get_image_features(pixels, batch.inputs["image_grid_thw"])
    ours = backbone.model.model.get_image_features(
        batch.inputs["pixel_values"], batch.inputs["image_grid_thw"]
    )

    assert len(ours.deepstack_features) == 2
    for mine, his in zip(ours.deepstack_features, theirs.deepstack_features, strict=True):
        torch.testing.assert_close(torch.cat([*mine]), torch.cat([*his]), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("level", [1, 2])
def test_each_kept_layer_of_the_tower_reaches_the_answer(backbone: Backbone, level: int) -> None:
    batch = backbone.batch([sample(square(0)[0])], answers=True)
    before = forward(backbone.model, batch).logits

    batch.inputs["pixel_values"] = batch.inputs["pixel_values"].clone()
    batch.inputs["pixel_values"][:, level] = batch.inputs["pixel_values"][:, level].flip(-1)

    assert (forward(backbone.model, batch).logits - before).abs().max() > 1e-4


def test_the_merger_learns_and_those_of_earlier_layers_do_not(backbone: Backbone) -> None:
    backbone.train_projector(True)

    task_loss(backbone.model, backbone.batch([sample(square(0)[0])], answers=True)).backward()

    tower: Any = backbone.vision_tower
    assert all(weight.grad is not None for weight in tower.merger.parameters())
    assert all(
        weight.grad is None and backbone.owns(weight) for weight in tower.deepstack_merger_list.parameters()
    )


def test_mergers_are_back_in_their_places_after_an_image_was_looked_at(backbone: Backbone) -> None:
    tower: Any = backbone.vision_tower
    mergers = (tower.merger, *tower.deepstack_merger_list)

    backbone.encode([square(0)[0]])

    assert (tower.merger, *tower.deepstack_merger_list) == mergers


@torch.no_grad()
def test_where_a_patch_stands_matters(backbone: Backbone) -> None:
    image = Image.new("RGB", (48, 16), (250, 250, 250))
    image.paste((220, 30, 30), (0, 0, 16, 16))
    seen: list[Tensor] = [
        forward(backbone.model, backbone.batch([sample(one)], answers=True)).logits
        for one in (image, image.rotate(90, expand=True))
    ]

    assert (seen[0] - seen[1]).abs().max() > 1e-3


def test_the_published_model_has_a_token_for_32_by_32_pixels_and_nine_billion_weights() -> None:
    backbone = shapes("qwen3-vl-8b")

    assert backbone.cost(640, 480) == (20 * 15, 20 * 15 * 4, 20 * 15 * 4 * 4 * 1152)
    assert sum(weight.numel() for weight in backbone.model.parameters()) == 8_767_123_696
