"""Replay: what is drawn, what is kept, and what is learnt again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cl_zoo_replay import Replay
from PIL import Image
from tiny_runs import learnt, weights

from cl_zoo import Faithful
from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch
from cl_zoo.engine.run import Run
from cl_zoo.nn import draw_samples as draw
from cl_zoo.nn import pack_sample as pack
from cl_zoo.nn import unpack_sample as unpack
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import OnDemand, Sample
from cl_zoo.testing import square, tiny_backbone, tiny_benchmark

BENCHMARK = tiny_benchmark(2, size=8)


class Lazy(OnDemand[Batch]):
    """Batches of 4, 4 and 2 samples that remember which of them were made."""

    def __init__(self) -> None:
        self.samples = [Sample(f"{i}", None, f"question {i}", f"answer {i}") for i in range(10)]
        self.made: list[int] = []

    def __len__(self) -> int:
        return 3

    def make(self, place: int) -> Batch:
        self.made.append(place)
        return Batch(tuple(self.samples[4 * place : 4 * place + 4]), {})


def trained(stack: str, folder: Path, root: Path, order: str = "CS") -> Run:
    return learnt(
        Run, stack, BENCHMARK.stream(order), tiny_backbone(folder), build_recipe(BENCHMARK.recipe), root
    )


def test_samples_are_drawn_without_repetition_from_the_whole_task() -> None:
    everybody = set[str]()
    for seed in range(40):
        torch.manual_seed(seed)
        ids = [sample.id for sample in draw(Lazy(), 4)]
        assert len(ids) == len(set(ids)) == 4
        assert ids == sorted(ids)
        everybody |= set(ids)

    assert everybody == {str(i) for i in range(10)}


def test_every_sample_is_kept_where_there_are_no_more() -> None:
    lazy = Lazy()

    assert draw(lazy, 10) == draw(lazy, 99) == lazy.samples


def test_the_draw_depends_on_the_seed_and_not_on_what_was_drawn_before() -> None:
    torch.manual_seed(3)
    first = draw(Lazy(), 3)
    torch.rand(100)
    assert draw(Lazy(), 3) == first
    torch.manual_seed(4)
    assert draw(Lazy(), 3) != first


def test_batches_without_a_drawn_sample_are_not_made() -> None:
    """The first and the last are looked at for their length."""
    for seed in range(10):
        torch.manual_seed(seed)
        lazy = Lazy()
        [only] = draw(lazy, 1)
        assert set(lazy.made) == {0, 2, int(only.id) // 4}


def test_nothing_is_drawn_from_nothing() -> None:
    assert draw([], 5) == []


@pytest.mark.parametrize("place", [0, 5])
def test_a_kept_image_comes_back_pixel_by_pixel(tiny: Backbone, place: int) -> None:
    sample = Sample("7", square(place)[0], "What colour is it ?", "red", ("red", "crimson"))

    again = unpack(pack(sample))

    assert isinstance(again.image, Image.Image)
    assert again.image.tobytes() == sample.image.tobytes()
    assert (again.id, again.prompt, again.answer) == ("7", "What colour is it ?", "red")
    pixels = [tiny.batch([one], answers=True).inputs["pixel_values"] for one in (sample, again)]
    assert torch.equal(pixels[0], pixels[1])


def test_an_image_that_is_not_square_and_not_rgb_comes_back_as_the_model_sees_it() -> None:
    image = Image.new("RGBA", (3, 2), (10, 20, 30, 255))
    image.putpixel((2, 0), (200, 100, 0, 255))

    kept = pack(Sample("1", image, "?", "!"))["image"]

    assert kept.shape == (2, 3, 3)
    assert kept[0, 2].tolist() == [200, 100, 0]
    assert unpack(pack(Sample("1", image, "?", "!"))).image.size == (3, 2)


def test_an_image_in_a_file_stays_in_its_file(tmp_path: Path) -> None:
    sample = Sample("1", tmp_path / "one.png", "?", "!")

    kept = pack(sample)

    assert json.loads(json.dumps(kept)) == kept  # no tensor, no pixel
    assert unpack(kept) == sample
    bare = Sample("2", None, "?", "!")
    assert unpack(pack(bare)) == bare


def test_a_picture_that_is_read_faithfully_is_so_after_it_comes_back(tmp_path: Path) -> None:
    for kind in (Faithful, Path):
        kept = json.loads(json.dumps(pack(Sample("1", kind(tmp_path / "one.png"), "?", "!"))))

        assert isinstance(unpack(kept).image, Faithful) == (kind is Faithful)
        assert unpack(kept).image == tmp_path / "one.png"


def test_a_state_comes_back() -> None:
    method = Replay(Replay.Options(samples=3))
    method.memory = [Sample("1", square(1)[0], "a", "b"), Sample("2", None, "c", "d")]
    again = Replay(Replay.Options(samples=3))

    again.load_state_dict(method.state_dict())

    assert [(one.id, one.prompt, one.answer) for one in again.rehearse()] == [
        ("1", "a", "b"),
        ("2", "c", "d"),
    ]
    files = (Path("a.png"), Path("b.png"), Faithful(Path("c.png")))
    talk = Sample("3", files[0], "e", "f", before=(("g", "h"),), learns_before=False, more_images=files[1:])
    assert unpack(json.loads(json.dumps(pack(talk)))) == talk
    assert again.state_dict()["memory"][0]["image"].equal(method.state_dict()["memory"][0]["image"])


def test_old_samples_join_a_task_and_steps_stay_as_they_are(tiny_folder: Path, tmp_path: Path) -> None:
    """Three of each earlier task: 0, 3 and 6 beside the 8 of the task, in the same 2 steps."""
    run = trained("replay[samples=3]", tiny_folder, tmp_path, "CSC")

    assert [task.rehearsed for task in run.ledger.tasks] == [0, 3, 6]
    assert [task.samples for task in run.ledger.tasks] == [8, 11, 14]
    assert [task.steps for task in run.ledger.tasks] == [2, 2, 2]
    assert [measured["replay/memory"] for measured in run.measured] == [3, 6, 9]
    memory = run.plugins.method.memory
    assert [one.prompt.split()[0] for one in memory] == ["What"] * 3 + ["Where"] * 3 + ["What"] * 3
    assert memory[:3] != memory[6:]  # a task that comes again is drawn from anew


def test_its_memory_is_counted_for_continuing_and_not_for_answering(
    tiny_folder: Path, tmp_path: Path
) -> None:
    run = trained("replay[samples=3]", tiny_folder, tmp_path)

    assert run.ledger.stored["continuing"]["plugins"] == 2 * 3 * 16 * 16 * 3
    assert set(run.ledger.stored["inference"]) == {"adapters", "projector"}


def test_alone_it_learns_the_first_task_as_fine_tuning_does_and_the_second_differently(
    tiny_folder: Path, tmp_path: Path
) -> None:
    for order, same in (("C", True), ("CS", False)):
        plain, replayed = (
            weights(trained(stack, tiny_folder, tmp_path / order / stack[:4], order).model)
            for stack in ("finetune", "replay[samples=3]")
        )
        adapters = [name for name in plain if ".bank_" in name]
        assert plain.keys() == replayed.keys()
        assert all(torch.equal(plain[name], replayed[name]) for name in adapters) == same


@pytest.mark.parametrize("stack", ["ewc+replay[samples=2]", "hide+replay[samples=2]"])
def test_it_stands_beside_other_methods(tiny_folder: Path, tmp_path: Path, stack: str) -> None:
    run = trained(stack, tiny_folder, tmp_path)

    assert [task.rehearsed for task in run.ledger.tasks] == [0, 2]
