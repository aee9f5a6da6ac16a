"""AdamW on what lies together: the values of AdamW to the last bit, in shorter lists, whoever takes part in a step."""

from __future__ import annotations

import copy

import pytest
import torch
from adapted import WIDE, make_layer
from torch import Tensor, nn

from cl_zoo.engine.optimising import clip
from cl_zoo.engine.together import Together, follows, runs, together
from cl_zoo.nn.layer import BankLayer
from cl_zoo.nn.mixes import PerToken

NAMES = ("a", "b", "c")
GIVEN = {"lr": 0.05, "weight_decay": 0.1, "betas": (0.8, 0.95), "foreach": True}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors the list of each step has."""
    found: list[int] = []
    real = torch._foreach_sqrt

    def sqrt(tensors: list[Tensor]) -> list[Tensor]:
        found.append(len(tensors))
        return list(real(tensors))

    monkeypatch.setattr(torch, "_foreach_sqrt", sqrt)
    return found


def mixture() -> BankLayer:
    return make_layer(*NAMES, mix=PerToken(nn.Linear(WIDE, 3, bias=False)))


class Pair:
    """A layer with AdamW of torch, and a copy of it whose optimiser takes together what lies together."""

    def __init__(self) -> None:
        self.layer = mixture()
        self.other = copy.deepcopy(self.layer)
        self.layer.join()
        self.other.join()
        self.adamw = torch.optim.AdamW([w for w in self.layer.parameters() if w.requires_grad], **GIVEN)
        self.together = Together([w for w in self.other.parameters() if w.requires_grad], **GIVEN)

    def step(self, *without: str, parted: bool = False) -> None:
        """One step on one batch in both; who is named gets no gradient."""
        x = torch.randn(4, WIDE)
        for layer, optimizer in ((self.layer, self.adamw), (self.other, self.together)):
            optimizer.zero_grad(set_to_none=True)
            if parted:
                layer.part()
            else:
                layer.join()
            layer(x).sin().sum().backward()
            for name, weight in layer.named_parameters():
                if name in without:
                    weight.grad = None
            optimizer.step()

    def check(self) -> None:
        """Weights, moments and counts are equal."""
        for (name, one), (_, two) in zip(
            self.layer.named_parameters(), self.other.named_parameters(), strict=True
        ):
            assert torch.equal(one, two), name
            here, there = self.adamw.state.get(one, {}), self.together.state.get(two, {})
            assert here.keys() == there.keys()
            for what, value in here.items():
                assert torch.equal(value, there[what]), f"{name}, {what}"


def test_values_are_those_of_adamw_to_the_last_bit(lengths: list[int]) -> None:
    pair = Pair()
    for _ in range(4):
        pair.step()
    pair.check()
    assert lengths == [7, 2] * 4  # all A with the router are one, all B another


def test_who_has_no_gradient_in_a_step_is_left_out_and_comes_back(lengths: list[int]) -> None:
    pair = Pair()
    for without in ((), ("bank_down.b",), ("bank_down.b", "bank_up.a"), (), ("bank_mix.router.weight",), ()):
        pair.step(*without)
        pair.check()
    assert lengths[1::2] == [2, 3, 3, 5, 5, 6]
    assert [float(pair.together.state[w]["step"]) for w in pair.other.bank_down.values()] == [6, 4, 6]


def test_experts_that_lie_apart_and_together_again_learn_on(lengths: list[int]) -> None:
    pair = Pair()
    for parted in (False, True, False, False):
        pair.step(parted=parted)
        pair.check()
    assert lengths[1::2] == [2, 7, 2, 2]


def test_states_that_are_put_back_one_by_one_are_laid_together_again(lengths: list[int]) -> None:
    """As a checkpoint does, with moments that lie as their weight did."""
    pair = Pair()
    pair.step()
    for weight, state in pair.together.state.items():
        for what, value in list(state.items()):
            state[what] = value.clone(memory_format=torch.contiguous_format)
        assert weight.shape == state["exp_avg"].shape
    pair.step()
    pair.step()
    pair.check()
    assert lengths[1::2] == [2, 2, 2]


def test_what_is_done_to_tensors_that_lie_together_is_done_to_each() -> None:
    whole, turned, alone = torch.randn(6, 4), torch.randn(4, 6), torch.randn(5)
    parts = [*whole.split([1, 2, 3]), *(one.T for one in turned.split(2)), alone, torch.randn(2, 4)[:, :2]]
    wanted = [2 * part for part in parts]
    found = together(parts[::-1])
    assert sorted(len(one) for one in found) == [2, 5, 24, 24]
    torch._foreach_mul_(found, 2.0)
    assert all(torch.equal(part, one) for part, one in zip(parts, wanted, strict=True))


@pytest.mark.parametrize("most", [0.1, 100.0])
def test_gradients_are_clipped_as_torch_clips_them(most: float) -> None:
    weights = [nn.Parameter(torch.zeros(3)) for _ in range(3)]
    for weight in weights[:2]:
        weight.grad = torch.randn(3)
    mine = [weight.grad.clone() for weight in weights[:2]]
    norm = torch.nn.utils.get_total_norm(mine)
    torch.nn.utils.clip_grads_with_norm_(weights, most, norm)
    clip(mine, most, norm)
    assert all(torch.equal(one, weight.grad) for one, weight in zip(mine, weights, strict=False))
    clip([], most, norm)


def test_what_lies_by_itself_stays_by_itself() -> None:
    weights = [nn.Parameter(torch.randn(3, 4)) for _ in range(3)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    assert sorted(runs(weights, [weight.grad for weight in weights])) == [[0], [1], [2]]


def test_weights_follow_only_with_gradients_that_lie_as_they_do() -> None:
    whole, slopes = torch.randn(6, 4), torch.randn(6, 4)
    weights, gradients = list(whole.split(3)), list(slopes.split(3))
    assert runs(weights, gradients) == [[0, 1]]
    assert runs(weights[::-1], gradients[::-1]) == [[1, 0]]
    assert len(runs(weights, gradients[::-1])) == 2
    turned = list(slopes.flatten().split(12))
    turned = [one.view(4, 3).T for one in turned]  # the same places, entries in another order
    assert len(runs(weights, turned)) == 2
    assert not follows(weights[0], weights[1].double())
    assert not follows(whole[:, :2], whole[:, 2:])


def test_pieces_keep_the_order_in_which_they_were_given() -> None:
    """A norm sums over them in this order; where the allocator put them must not decide its last bits."""
    first, second = sorted((torch.ones(3), torch.ones(3)), key=Tensor.data_ptr)
    two = torch.ones(4).split(2)

    for given in ([first, second], [second, first], [second, two[1], first, two[0]]):
        found = together(given)
        alone = [one for one in found if len(one) == 3]
        assert [one.data_ptr() for one in alone] == [one.data_ptr() for one in given if len(one) == 3]
        assert len(found) == len(given) - (len(given) == 4)


def test_a_moment_that_is_replaced_is_the_one_that_goes_on() -> None:
    pair = Pair()
    pair.step()
    for layer, optimizer in ((pair.layer, pair.adamw), (pair.other, pair.together)):
        weight = layer.bank_down["b"]
        optimizer.state[weight]["exp_avg"] = torch.zeros_like(weight)
    pair.step()

    ours, theirs = (
        optimizer.state[layer.bank_down["b"]]["exp_avg"]
        for layer, optimizer in ((pair.other, pair.together), (pair.layer, pair.adamw))
    )
    assert torch.equal(ours, theirs)
    assert torch.equal(pair.other.bank_down["b"], pair.layer.bank_down["b"])
