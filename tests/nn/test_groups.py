"""Groups of tasks against values written down by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cl_zoo.batches import Batch
from cl_zoo.nn import Groups
from cl_zoo.nn.anchors import View
from cl_zoo.tasks import Sample


def spatial(samples: Sequence[Sample]) -> Tensor:
    """The prompt as a point of space."""
    return torch.tensor([[float(number) for number in one.prompt.split()] for one in samples])


def rows(*prompts: str) -> tuple[Sample, ...]:
    return tuple(Sample(str(i), None, prompt) for i, prompt in enumerate(prompts))


def groups() -> Groups:
    return Groups(View(spatial, 3, 1.0), torch.device("cpu"))


def learnt(of: Groups, *prompts: str, lead: float = 0.1, alike: float = 0.8) -> int:
    number = of.join(of.look(rows(*prompts)).mean(0), lead=lead, alike=alike)
    of.add([Batch(rows(*prompts), {})])
    return number


def test_a_feature_has_mean_zero_and_variance_one() -> None:
    """(0, 3, 6) has the mean 3 and the variance 6; its size and where it lies say nothing."""
    found = groups().look(rows("0 3 6", "10 13 16", "0 30 60"))

    torch.testing.assert_close(found, torch.tensor([[-1.0, 0, 1]] * 3) * (1.5**0.5), rtol=1e-4, atol=1e-4)


def test_the_second_task_joins_the_first_where_they_are_alike() -> None:
    of = groups()
    assert [learnt(of, "0 3 6"), learnt(of, "0 3 5"), learnt(of, "6 3 0")] == [0, 0, 1]
    assert [of.mates(place) for place in range(3)] == [[1], [0], []]


def test_a_later_task_joins_only_with_a_lead_over_the_second_group() -> None:
    """Without its mean (0, 5, 6) is (−11, 4, 7)/3: cosines 0.93 with (−3, 0, 3) and 0.78 with (−3, 3, 0)."""
    for lead, number in ((0.1, 0), (0.2, 2)):
        of = groups()
        assert [learnt(of, "0 3 6"), learnt(of, "0 6 3")] == [0, 1]
        assert learnt(of, "0 5 6", lead=lead) == number


def test_a_prototype_is_a_mean_over_samples_and_not_over_tasks() -> None:
    """One sample on one side and three on the other in a group of two tasks."""
    of = groups()
    learnt(of, "0 3 6"), learnt(of, "6 3 0", "6 3 0", "6 3 0", alike=-1.0)

    torch.testing.assert_close(
        of.prototypes(), torch.tensor([[0.5, 0.0, -0.5]]) * (1.5**0.5), rtol=1e-4, atol=1e-4
    )


def test_a_sample_is_of_the_group_with_the_nearest_prototype() -> None:
    of = groups()
    learnt(of, "0 3 6"), learnt(of, "6 3 0"), learnt(of, "0 3 5", lead=0.0)

    assert of(rows("1 3 6", "6 3 1")).tolist() == [[True, False, True], [False, True, False]]


def test_what_is_kept_comes_back_while_a_task_is_learnt_too() -> None:
    of, again = groups(), groups()
    learnt(of, "0 3 6")
    of.join(of.look(rows("6 3 0"))[0], lead=0.1, alike=0.8)

    again.restore(of.keep())

    assert again.numbers == [0, 1]
    assert again.mates(1) == []
    torch.testing.assert_close(again.prototypes(), of.prototypes())
