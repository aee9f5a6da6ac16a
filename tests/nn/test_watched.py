"""What a gate gathers while its experts learn, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cl_zoo.batches import Batch
from cl_zoo.nn import BankLayer, Tokens, Watched, directions

X = torch.tensor([[[9.0, 9.0], [3.0, 4.0], [0.0, 1.0]]])  # the first token is padding


@pytest.fixture
def gate() -> Watched:
    """Two experts; W_g x = (0, ln 3 · x₂), told of a forward."""
    tokens = Tokens()
    made = Watched(BankLayer(nn.Linear(2, 3), "layer", 1.0, 0.0), 2, directions(2, 2), tokens)
    with torch.no_grad():
        made.router.weight.zero_()[1, 1] = torch.tensor(3.0).log()
    tokens.start(Batch((), {"attention_mask": torch.tensor([[0, 1, 1]])}))
    return made


def test_sums_are_those_of_the_real_tokens(gate: Watched) -> None:
    """g = (1, 81) / 82 for the token of norm 5, (1, 3) / 4 for that of norm 1."""
    gate.begin(looks=True)
    g = gate.gates(X)

    torch.testing.assert_close(g[0, 1:], torch.tensor([[1 / 82, 81 / 82], [1 / 4, 3 / 4]]))
    assert g.requires_grad
    assert not gate.sums.requires_grad
    assert gate.sums[0].tolist() == pytest.approx([1 / 82 + 1 / 4, 81 / 82 + 3 / 4])
    assert gate.sums[1].tolist() == pytest.approx([25 / 82 + 1 / 4, 25 * 81 / 82 + 3 / 4])
    gate.sketch.take_in()
    assert gate.sketch.count == 2
    moment = gate.sketch.moments @ gate.sketch.omega.T
    torch.testing.assert_close(moment, torch.tensor([[9.0, 12], [12, 17]]), rtol=1e-5, atol=1e-5)


def test_a_recomputed_forward_counts_once_and_a_new_step_begins_from_nothing(gate: Watched) -> None:
    gate.begin(looks=True)
    gate.gates(X)
    once = gate.sums.clone()
    gate.gates(X)
    assert torch.equal(gate.sums, once)

    gate.begin(looks=False)
    assert not gate.sums.any()
    gate.sketch.take_in()
    assert gate.sketch.count == 0


def test_the_forwards_of_a_step_are_added_up(gate: Watched) -> None:
    """The second has the tokens of the first in another order, and none at padding."""
    gate.begin(looks=True)
    gate.gates(X)
    once = gate.sums.clone()
    gate.tokens.start(Batch((), {"attention_mask": torch.ones(1, 2)}))
    gate.gates(X[:, [2, 1]])

    torch.testing.assert_close(gate.sums, 2 * once)
    gate.sketch.take_in()
    assert gate.sketch.count == 4


def test_where_it_does_not_look_the_sketch_is_not_fed(gate: Watched) -> None:
    gate.gates(X)

    assert gate.sums.any()
    gate.sketch.take_in()
    assert gate.sketch.count == 0


def test_what_is_gathered_has_full_precision_where_the_forward_has_half(gate: Watched) -> None:
    """1 + 2⁻⁹ is no number of bf16, its square to seven digits is 1.0039101."""
    gate.begin(looks=True)
    with torch.autocast("cpu", torch.bfloat16):
        gate.gates(torch.tensor([[[0.0, 0.0], [1 + 2**-9, 0.0], [0.0, 0.0]]]))

    gate.sketch.take_in()
    moment = gate.sketch.moments @ gate.sketch.omega.T
    assert moment[0, 0].item() == pytest.approx(1.0039101, abs=1e-6)
    assert gate.sums[1].sum().item() == pytest.approx(1.0039101, abs=1e-6)


def test_nothing_is_gathered_where_nothing_learns(gate: Watched) -> None:
    with torch.no_grad():
        gate.gates(X)
    gate.eval().gates(X)

    assert not gate.sums.any()
    gate.train().gates(X)
    assert gate.sums.any()  # looking before was no forward that comes by again
