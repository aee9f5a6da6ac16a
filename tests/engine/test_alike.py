"""Samples of like length are answered together: every one once, in batches that are longest first, and none of it shows in the records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.qwen import load as load_qwen
from cl_zoo.batches import Batch
from cl_zoo.engine.alike import HELD, alike, lengths
from cl_zoo.engine.answering import answers
from cl_zoo.tasks import OnDemand, Sample
from cl_zoo.testing import square, tiny_qwen

WORDS = ("What", "colour", "is", "the", "large", "square", "in", "this", "image", "?")


def asked(words: Sequence[int], *, image: bool = True) -> list[Sample]:
    """Samples whose prompts have so many words, each a token, about squares of different colours."""
    return [
        Sample(str(n), square(n)[0] if image else None, " ".join(WORDS[:count]), "red")
        for n, count in enumerate(words)
    ]


def places(backbone: Backbone, samples: Sequence[Sample], batch: int) -> list[list[int]]:
    return [[place for place, _ in one] for one in alike(backbone, samples, batch)]


def test_the_longest_are_together_and_first_and_of_equal_ones_the_first_comes_first(tiny: Backbone) -> None:
    assert places(tiny, asked([2, 9, 4, 9, 2, 4, 7]), 3) == [[1, 3, 6], [2, 5, 0], [4]]


def test_what_is_asked_one_by_one_or_fits_into_a_batch_stays_as_it_came(tiny: Backbone) -> None:
    samples = asked([2, 9, 4])

    assert places(tiny, samples, 1) == [[0], [1], [2]]
    assert places(tiny, samples, 3) == places(tiny, samples, 5) == [[0, 1, 2]]
    assert places(tiny, [], 3) == []


def test_a_prompts_length_is_that_of_its_row_in_a_batch(tiny: Backbone) -> None:
    samples = [*asked([3, 8]), *asked([5], image=False)]

    alone = [tiny.batch([one], answers=False).tokens for one in samples]

    assert lengths(tiny, samples) == alone


def test_padding_is_what_is_left_between_neighbours_by_length(tiny: Backbone) -> None:
    """Prompts of 2 and 10 words in turn: batches of two pad 8 tokens each as they come, and none when put together."""
    samples = asked([2, 10, 2, 10, 2, 10])

    def padding(batches: Sequence[Sequence[Sample]]) -> int:
        made = [tiny.batch(list(one), answers=False) for one in batches]
        return sum(batch.inputs["input_ids"].numel() - batch.tokens for batch in made)

    assert padding([samples[n : n + 2] for n in (0, 2, 4)]) == 3 * 8
    assert padding([[one for _, one in batch] for batch in alike(tiny, samples, 2)]) == 8  # 3 of each length


class Counted(OnDemand[Sample]):
    """Samples that are made when they are asked for; remembers which were."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples, self.made = samples, list[int]()

    def __len__(self) -> int:
        return len(self.samples)

    def make(self, place: int) -> Sample:
        self.made.append(place)
        return self.samples[place]


def test_each_sample_is_made_once_and_so_many_are_held_at_a_time(tiny: Backbone) -> None:
    samples = Counted(asked([2 + n % 5 for n in range(4 * HELD + 3)]))
    batches = alike(tiny, samples, 2)

    next(batches)
    assert samples.made == list(range(2 * HELD))
    rest = [place for batch in batches for place, _ in batch]
    assert samples.made == list(range(4 * HELD + 3))
    assert len(rest) == len(set(rest)) == 4 * HELD + 1


def sized(folder: Path) -> list[Sample]:
    """One question about pictures of three sizes, in memory, in files, and in a file that holds none."""
    images: list[Any] = [Image.new("RGB", (side, side), "red") for side in (16, 64, 40)]
    files = [folder / f"{n}.png" for n in range(3)]
    for file, image in zip(files, images, strict=True):
        image.save(file)
    (folder / "none.png").write_bytes(b"no picture")
    shown = [*images, *files, folder / "none.png"]
    return [Sample(str(n), image, "What colour is it ?") for n, image in enumerate(shown)]


def test_pictures_count_by_their_sizes_where_a_family_has_more_tokens_for_larger_ones(
    tmp_path: Path, tiny: Backbone
) -> None:
    """Of a file the header is read; one without counts nothing here, and is named by whoever reads it."""
    qwen = load_qwen(tiny_qwen(tmp_path / "qwen"), torch.device("cpu"), torch.float32)
    samples = sized(tmp_path)
    tokens = [qwen.batch([one], answers=False).tokens for one in samples[:-1]]
    text = tokens[0] - qwen.image_tokens(16, 16)

    assert tokens[0] < tokens[2] < tokens[1]
    assert lengths(qwen, samples) == [*tokens, text]
    assert places(qwen, samples, 2) == [[1, 4], [2, 5], [0, 3], [6]]
    assert len(set(lengths(tiny, samples))) == 1  # as many for every picture, so no file is opened


class Counting(nn.Module):
    """Answers with the token whose number is how many tokens the row has; keeps the batches that it is prepared for."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[Batch] = []
        self.route: torch.Tensor | None = None

    def prepare(self, batch: Batch) -> None:
        self.prepared.append(batch)
        self.route = torch.tensor([[float(len(one.prompt.split())), 0.0] for one in batch.samples])

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **inputs: Any) -> torch.Tensor:
        return torch.cat([input_ids, attention_mask.sum(1, keepdim=True)], 1)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 20])
def test_answers_and_routes_are_each_samples_own_in_the_order_of_the_samples(
    tiny: Backbone, batch: int
) -> None:
    model, words = Counting(), [2, 9, 4, 9, 2, 4, 7]

    records = list(answers(model, tiny, asked(words), max_new_tokens=1, batch=batch))

    assert [record["id"] for record in records] == list("0123456")
    assert [record["prompt"] for record in records] == [one.prompt for one in asked(words)]
    assert [record["route"] for record in records] == [[count, 0] for count in words]
    tokens = torch.tensor([[tiny.batch([one], answers=False).tokens] for one in asked(words)])
    assert [record["answer"] for record in records] == tiny.decode(tokens)
    assert sum(len(one) for one in model.prepared) == len(words)


def test_a_record_comes_as_soon_as_all_before_it_are_answered(tiny: Backbone) -> None:
    """Batches of two: 1 and 3 first, then 2 and 5, then 0 and 4: nothing is due before the third batch, and then all is."""
    model = Counting()
    records = answers(model, tiny, asked([2, 9, 4, 9, 2, 4]), max_new_tokens=1, batch=2)

    assert [next(records)["id"], len(model.prepared)] == ["0", 3]
    model = Counting()
    records = answers(model, tiny, asked([9, 8, 4, 4, 2, 2]), max_new_tokens=1, batch=2)
    assert [(next(records)["id"], len(model.prepared)) for _ in range(6)] == [
        ("0", 1), ("1", 1), ("2", 2), ("3", 2), ("4", 3), ("5", 3),
    ]  # fmt: skip


def test_the_images_of_the_batch_that_is_answered_next_are_expected(tiny: Backbone, monkeypatch: Any) -> None:
    expected: list[list[str]] = []
    monkeypatch.setattr(tiny, "expect", lambda samples: expected.append([one.id for one in samples]))

    list(answers(Counting(), tiny, asked([2, 9, 4, 9, 2, 4, 7]), max_new_tokens=1, batch=3))

    assert expected == [["2", "5", "0"], ["4"], []]
