"""Images read ahead: the same results, in the same order, each prepared once."""

from __future__ import annotations

import gc
import threading
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_runs import learnt, weights

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.engine.run import Run
from cl_zoo.errors import DataError
from cl_zoo.images.ahead import Ahead, reading_threads
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample, TaskData
from cl_zoo.testing import square, tiny_backbone

NAMES = [Path(f"{number}.png") for number in range(20)]
IMAGES = {str(name).encode(): name for name in NAMES}


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_images_come_in_their_order_whatever_was_begun(threads: int) -> None:
    ahead: Ahead[bytes] = Ahead(lambda image: f"seen {image}", threads)

    ahead.begin({key: IMAGES[key] for key in list(IMAGES)[5:12]})
    assert ahead.take(IMAGES) == [f"seen {name}" for name in NAMES]
    assert ahead.take(IMAGES) == [f"seen {name}" for name in NAMES]


def test_what_was_begun_is_not_done_again() -> None:
    done: list[Any] = []
    ahead: Ahead[bytes] = Ahead(done.append, 2)

    ahead.begin(IMAGES)
    ahead.begin(IMAGES)
    ahead.take(IMAGES)

    assert sorted(done, key=str) == sorted(NAMES, key=str)


def test_images_are_prepared_while_something_else_is_done() -> None:
    """The image is ready before it is taken; with no threads it would be prepared in `take`."""
    ready = threading.Event()
    ahead: Ahead[bytes] = Ahead(lambda image: ready.set(), 1)

    ahead.begin({b"a": NAMES[0]})

    assert ready.wait(timeout=10)


def test_what_cannot_be_read_is_told_when_it_is_taken() -> None:
    def prepare(image: Any) -> None:
        raise DataError(f"image {image}: no such file")

    ahead: Ahead[bytes] = Ahead(prepare, 2)
    ahead.begin(IMAGES)

    with pytest.raises(DataError, match=r"image 0\.png"):
        ahead.take({b"0.png": NAMES[0]})


class Owner:
    """Prepares images with a method of its own, and owns what calls it."""

    def __init__(self, threads: int) -> None:
        self.ahead: Ahead[bytes] = Ahead(self.prepare, threads)

    def prepare(self, image: Any) -> str:
        return f"seen {image}"


@pytest.mark.parametrize("threads", [0, 2])
def test_who_prepares_with_a_method_is_freed_at_once(threads: int) -> None:
    owner = Owner(threads)
    owner.ahead.begin(IMAGES)
    assert owner.ahead.take(IMAGES)[3] == "seen 3.png"
    ahead, gone = owner.ahead, weakref.ref(owner)
    gc.disable()
    try:
        del owner
        assert gone() is None
    finally:
        gc.enable()
    ahead.begin(IMAGES)  # nobody is there to prepare them, and nothing fails


@pytest.mark.parametrize("threads", [0, 2])
def test_a_dropped_backbone_is_freed_at_once(
    threads: int, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its model and its encoder, by counting references: a comparison holds one model at a time."""
    monkeypatch.setattr("cl_zoo.backbones.backbone.reading_threads", lambda device: threads)
    backbone: Backbone = tiny_backbone(tiny_folder)
    task = on_disk(tmp_path, "colour", 0)
    backbone.expect(task.train)
    batch = backbone.batch(task.train, answers=True)
    backbone.features.images([sample.image for sample in task.train])
    owned = (backbone, backbone.model, backbone.vision_tower, backbone.features)
    gone = [weakref.ref(one) for one in owned]
    gc.collect()
    gc.disable()
    try:
        del backbone, batch, owned
        assert [one() for one in gone] == [None] * 4
    finally:
        gc.enable()


@pytest.mark.parametrize("cached", [False, True])
def test_images_whose_features_are_known_are_not_read_ahead(
    cached: bool, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cl_zoo.backbones.backbone.reading_threads", lambda device: 2)
    monkeypatch.setattr("cl_zoo.features.shelves.RESERVE", 0)
    backbone: Backbone = tiny_backbone(tiny_folder)
    backbone.adjust(cache=tmp_path / "cache" if cached else None)
    task = on_disk(tmp_path, "colour", 0)
    seen, fresh = task.train[:3], task.train[3:5]
    backbone.encode([sample.image for sample in seen if sample.image is not None])
    if cached:  # another process, whose memory is empty
        backbone = tiny_backbone(tiny_folder)
        backbone.adjust(cache=tmp_path / "cache")

    backbone.expect([*seen, *fresh])
    assert set(backbone._ahead._begun) == {backbone._key(sample.image) for sample in fresh if sample.image}


def test_threads_leave_the_accelerator_to_who_computes(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a thread prepares stays on the CPU; it is moved where it is looked at. Here the accelerator is torch's meta device."""
    where: list[str] = []

    def look(pixels: list[dict[str, Any]]) -> list[torch.Tensor]:
        where.extend(one["pixel_values"].device.type for one in pixels)
        return [torch.zeros(1)] * len(pixels)

    monkeypatch.setattr(tiny, "look", look)
    monkeypatch.setattr("torch.autocast", lambda *_, **__: nullcontext())  # torch has none for that device
    tiny.model.to("meta")
    assert tiny._pixels(square(0)[0])["pixel_values"].device.type == "cpu"
    tiny.encode([square(0)[0], square(1)[0]])
    assert where == ["meta"] * 2


def test_no_thread_reads_beside_a_cpu() -> None:
    assert reading_threads(torch.device("cpu")) == 0
    assert reading_threads(torch.device("cuda")) >= 1


def test_a_run_that_reads_ahead_learns_and_answers_the_same(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks whose images are files, with HiDe, whose encoder reads them too: equal weights, equal answer files."""

    def runs(name: str) -> Run:
        backbone: Backbone = tiny_backbone(tiny_folder)
        return learnt(Run, "hide", tasks, backbone, build_recipe({"global_batch": 3}), tmp_path / name)

    tasks = [on_disk(tmp_path, "colour", 0), on_disk(tmp_path, "side", 50)]
    alone = runs("alone")
    monkeypatch.setattr("cl_zoo.backbones.backbone.reading_threads", lambda device: 3)
    monkeypatch.setattr("cl_zoo.features.encoder.reading_threads", lambda device: 3)
    threaded = runs("threaded")

    assert threaded.backbone._ahead.threads == 3
    one, other = weights(alone.model), weights(threaded.model)
    assert all(torch.equal(one[name], other[name]) for name in one)
    for file in (alone.folder.partial / "answers").iterdir():
        assert file.read_bytes() == (threaded.folder.partial / "answers" / file.name).read_bytes()


def on_disk(root: Path, name: str, start: int) -> TaskData:
    samples = []
    for place in range(start, start + 8):
        image, colour, _ = square(place)
        path = root / f"{place}.png"
        image.resize((24, 20), Image.Resampling.NEAREST).save(path)
        samples.append(Sample(str(place), path, "What colour is it ?", colour))
    return TaskData(name, name[0].upper(), "", "exact", 4, samples, (), samples[:4])
