"""Routers against weights written down by hand: per token, and from a row's first real token under padding, beams and decoding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cl_zoo.nn import BankLayer, FirstToken, Prefill, SharedDown, TokenGate, router


def layer() -> BankLayer:
    torch.manual_seed(0)
    return BankLayer(nn.Linear(2, 3), "layers.0.lin", 1.0, 0.0)


def mix(prefill: Prefill, kind: type[FirstToken] = FirstToken) -> FirstToken:
    """Two routers: `a` prefers the second expert for (1, 0) and is even for (0, 1); `b` the other way round."""
    made = kind(layer(), 2, prefill)
    made.routers["a"] = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    made.routers["b"] = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    return made.eval()


X = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[9.0, 9.0], [1.0, 0.0]]])
"""Two rows of two tokens; the second row is padded on the left, so both begin with (1, 0)."""
FIRST = torch.tensor([0, 1])


def test_a_gate_per_token_is_the_softmax_of_its_router() -> None:
    """W = ((0, 0), (ln 3, 0)): logits (0, ln 3) for (1, 0), so weights (1, 3)/4, and (1, 1)/2 for (0, 1)."""
    made = router(layer(), 2)
    made.weight.data = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])

    gates = TokenGate(made)(torch.empty(0), X[0])

    torch.testing.assert_close(gates, torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    mixed = SharedDown(TokenGate(made))(torch.tensor([[2.0], [4.0]]), X[0], [1, 1])
    torch.testing.assert_close(mixed, torch.tensor([[0.5, 1.5], [2.0, 2.0]]))


def test_a_row_is_weighed_by_its_first_real_token_alone() -> None:
    prefill = Prefill("a")
    made = mix(prefill)
    prefill.start(FIRST)
    torch.testing.assert_close(made.gates(X), torch.tensor([[0.25, 0.75], [0.25, 0.75]]))


def test_each_row_asks_the_router_that_was_chosen_for_it_and_its_beams_ask_the_same() -> None:
    prefill = Prefill("a")
    made = mix(prefill)
    prefill.start(FIRST, ["b", "a"], torch.tensor([1, 0]))  # the first row asks a, the second b
    gates = made.gates(X.repeat_interleave(2, 0))

    torch.testing.assert_close(gates, torch.tensor([[0.25, 0.75]] * 2 + [[0.75, 0.25]] * 2))


def test_what_the_prefill_decided_stands_for_the_tokens_decoded_behind_it_until_the_next_batch() -> None:
    prefill = Prefill("a")
    made = mix(prefill)
    prefill.start(FIRST)
    decided = made.gates(X)

    assert torch.equal(made.gates(torch.randn(2, 1, 2)), decided)
    prefill.start(torch.tensor([0, 0]))
    torch.testing.assert_close(made.gates(X[:, 1:]), torch.tensor([[0.5, 0.5], [0.25, 0.75]]))


def test_in_training_a_forward_always_looks_again() -> None:
    """Even where the same batch was answered in between: a recomputed forward must see what the first one saw."""
    prefill = Prefill("a")
    made = mix(prefill)
    prefill.start(torch.tensor([0]))
    made.gates(X[:1])

    torch.testing.assert_close(made.train().gates(X[:1, 1:]), torch.tensor([[0.5, 0.5]]))


def test_one_shared_a_and_an_a_for_each_are_weighed_alike() -> None:
    """z = (2, 4) read by both: (¼·2, ¼·4, ¾·2, ¾·4); an own z for each, (2, 4) and (6, 8): (¼·2, ¼·4, ¾·6, ¾·8)."""
    prefill = Prefill("a")
    made = mix(prefill)
    prefill.start(torch.tensor([0]))

    def weighed(z: list[float]) -> Tensor:
        prefill.kept.clear()
        return made(torch.tensor([[z, z]]), X[:1], [2, 2])[0, 0]

    torch.testing.assert_close(weighed([2.0, 4.0]), torch.tensor([0.5, 1.0, 1.5, 3.0]))
    torch.testing.assert_close(weighed([2.0, 4.0, 6.0, 8.0]), torch.tensor([0.5, 1.0, 4.5, 6.0]))


def test_only_the_router_that_is_named_learns_and_it_is_made_once() -> None:
    made = FirstToken(layer(), 3, Prefill("t0"))
    made.learn("t0")
    first = made.routers["t0"]
    made.learn("t1")
    assert [weight.requires_grad for weight in made.routers.values()] == [False, True]
    made.learn("t0")
    assert made.routers["t0"] is first
    assert [weight.requires_grad for weight in made.routers.values()] == [True, False]
    assert first.shape == (3, 2)


def test_a_batch_that_nobody_announced_is_refused() -> None:
    prefill = Prefill("a")
    made = mix(prefill)
    with pytest.raises(ValueError, match=r"no first tokens are known for 2 rows; call prepare\(batch\)"):
        made.gates(X)
    prefill.start(torch.tensor([0, 0, 0]))
    with pytest.raises(ValueError, match="no first tokens are known for 2 rows"):
        made.gates(X)
