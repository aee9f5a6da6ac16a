"""Images read ahead: the same results, in the same order, each prepared once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_runs import learnt, weights

from cl_zoo.ahead import Ahead, reading_threads
from cl_zoo.backbones import Backbone
from cl_zoo.config import build_recipe
from cl_zoo.engine import Run
from cl_zoo.errors import DataError
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
    monkeypatch.setattr("cl_zoo.backbones.reading_threads", lambda device: 3)
    monkeypatch.setattr("cl_zoo.features.reading_threads", lambda device: 3)
    threaded = runs("threaded")

    assert threaded.backbone._ahead._threads == 3
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
