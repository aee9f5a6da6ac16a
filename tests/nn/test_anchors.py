"""Anchors and routes against loops over samples and values written down by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch
from cl_zoo.features.encoder import cosines
from cl_zoo.nn import anchors as module
from cl_zoo.nn.anchors import Anchors, View, image_view, state_view, text_view
from cl_zoo.tasks import Sample
from cl_zoo.testing import square

CPU = torch.device("cpu")


def planar(samples: Sequence[Sample]) -> Tensor:
    """The prompt as a point of the plane."""
    return torch.tensor([[float(number) for number in one.prompt.split()] for one in samples])


def batch(*prompts: str) -> Batch:
    return Batch(tuple(Sample(str(i), None, prompt) for i, prompt in enumerate(prompts)), {})


def route(anchors: Anchors, *prompts: str) -> Tensor:
    return anchors(batch(*prompts).samples)


def test_an_anchor_is_the_mean_over_all_samples_however_they_are_cut_into_batches() -> None:
    """(4,0), (0,4), (2,2), (6,2) have the mean (3, 2); the mean of the two batches' means would be (4, 2)."""
    anchors = Anchors({"texts": View(planar, 2, 1.0)}, 1.0, CPU)
    anchors.add([batch("4 0", "0 4", "2 2"), batch("6 2")])

    assert anchors["texts"].tolist() == [[3, 2]]


def test_a_sample_that_has_nothing_to_look_at_does_not_count() -> None:
    """(4,0) and (0,4) have the mean (2, 2) whatever zeros stand between them; nothing at all has (0, 0)."""
    anchors = Anchors({"images": View(planar, 2, 1.0)}, 1.0, CPU)
    anchors.add([batch("4 0", "0 0"), batch("0 4", "0 0")])
    anchors.add([batch("0 0")])

    assert anchors["images"].tolist() == [[2, 2], [0, 0]]


def test_a_cosine_is_a_number_between_directions_and_zero_where_there_is_none() -> None:
    """cos((1,0), (3,4)) = 0.6, cos((0,2), (3,4)) = 0.8; with (0,0) it is 0."""
    found = cosines(torch.tensor([[1.0, 0], [0, 2], [0, 0]]), torch.tensor([[3.0, 4], [0, 0], [-5, 0]]))

    torch.testing.assert_close(found, torch.tensor([[0.6, 0, -1], [0.8, 0, 0], [0, 0, 0]]))


def test_a_route_is_the_softmax_of_weighted_cosines() -> None:
    """Anchors (1,0) and (0,1), x = (3,4): cosines 0.6 and 0.8; the second view has the anchors exchanged.

    With weights 2 and 1 and T = 0.5 the exponents are (1.2 + 0.8) / 0.5 = 4 and (1.6 + 0.6) / 0.5 = 4.4.
    """
    anchors = Anchors({"a": View(planar, 2, 2.0), "b": View(planar, 2, 1.0)}, 0.5, CPU)
    anchors.restore({"a": torch.eye(2), "b": torch.eye(2).flip(0)})
    e = math.exp(4.4 - 4)

    torch.testing.assert_close(route(anchors, "3 4"), torch.tensor([[1 / (1 + e), e / (1 + e)]]))
    torch.testing.assert_close(route(anchors, "3 4", "6 8")[0], route(anchors, "3 4")[0])
    torch.testing.assert_close(route(anchors, "0 0"), torch.tensor([[0.5, 0.5]]))


def test_a_view_of_no_weight_is_not_looked_at() -> None:
    def blind(samples: Sequence[Sample]) -> Tensor:
        raise AssertionError("looked")

    anchors = Anchors({"a": View(planar, 2, 1.0), "b": View(blind, 2, 0.0)}, 1.0, CPU)
    anchors.add([batch("1 0")])

    assert set(anchors.keep()) == {"a"}
    assert route(anchors, "0 1").tolist() == [[1]]


def test_anchors_route_by_other_weights_and_another_temperature_without_a_copy() -> None:
    """Weight 2 for the one and none for the other at T = 0.5: exponents 0.6 · 2 / 0.5 = 2.4 and 0.8 · 2 / 0.5 = 3.2."""
    anchors = Anchors({"a": View(planar, 2, 1.0), "b": View(planar, 2, 1.0)}, 1.0, CPU)
    anchors.restore({"a": torch.eye(2), "b": torch.eye(2).flip(0)})
    weighed = anchors.weighed({"a": 2.0, "b": 0.0}, 0.5)
    e = math.exp(3.2 - 2.4)

    torch.testing.assert_close(route(weighed, "3 4"), torch.tensor([[1 / (1 + e), e / (1 + e)]]))
    assert {kind: kept.data_ptr() for kind, kept in weighed.keep().items()} == {"a": anchors["a"].data_ptr()}
    assert route(anchors, "3 4").tolist() == [[0.5, 0.5]], "they route as before"


def test_processes_share_the_samples_and_add_up_sums_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three batches one process sees (1,0), (3,0) and (2,6), the other (0,8); both must keep (1.5, 3.5)."""
    batches = [batch("1 0", "3 0"), batch("0 8"), batch("2 6")]
    seen: list[list[Tensor]] = []
    for rank in (0, 1):
        mine: list[Tensor] = []
        monkeypatch.setattr(module, "share", lambda all_of_them, rank=rank: all_of_them[rank::2])
        monkeypatch.setattr(module, "total", lambda values, mine=mine: mine.append(values) or values)
        Anchors({"texts": View(planar, 2, 1.0)}, 1.0, CPU).add(batches)
        seen.append(mine)
    (sums, counts), (other_sums, other_counts) = seen

    torch.testing.assert_close((sums + other_sums) / (counts + other_counts), torch.tensor([1.5, 3.5]))
    assert {tensor.dtype for tensor in (sums, counts)} == {torch.float32}


def test_anchors_have_their_shapes_without_values_and_samples() -> None:
    anchors = Anchors({"texts": View(planar, 2, 1.0)}, 1.0, torch.device("meta"))
    anchors.add(())
    anchors.add(())

    assert (anchors["texts"].shape, anchors["texts"].device.type) == ((2, 2), "meta")


def test_anchors_come_back_whatever_the_number_of_tasks() -> None:
    first, again = (Anchors({"texts": View(planar, 2, 1.0)}, 1.0, CPU) for _ in range(2))
    for prompt in ("1 0", "0 1", "1 1"):
        first.add([batch(prompt)])
    again.restore(first.keep())

    assert torch.equal(route(again, "3 4"), route(first, "3 4"))
    again.add([batch("2 2")])
    assert (len(again["texts"]), len(first["texts"])) == (4, 3)


def test_views_see_images_prompts_and_prompts_before_the_projection(tiny: Backbone) -> None:
    features, image = tiny.features, square(1)[0]
    samples = [
        Sample("a", image, "What colour is it ?\nSay one ."),
        Sample("b", None, "red ASSISTANT: green"),
    ]
    views = [make(features, 0.5) for make in (image_view, text_view, state_view)]
    found = [view.look(samples) for view in views]

    torch.testing.assert_close(found[0], torch.stack([features.images([image])[0], torch.zeros(8)]))
    torch.testing.assert_close(found[1], features.texts([one.prompt for one in samples]))
    torch.testing.assert_close(found[2], features.text_states(["What colour is it ?\nSay one .", "red"]))
    assert [view.width for view in views] == [8, 8, 16]
    assert {view.weight for view in views} == {0.5}
