"""One A whose B are weighed by each row's first token, as two functions: against the equation written out, with and without a dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapted import HIGH, RANK, SCALE, WIDE, assert_second_derivatives_drop_the_same, gradients, make_layer
from torch import Tensor, nn

from cl_zoo.nn import BankLayer, FirstToken, Prefill, top_gates, top_softmax
from cl_zoo.nn.trunk import ByRow, Trunk

NAMES = ("a", "b", "c")
ROWS, TOKENS = 2, 5
FIRST = torch.tensor([1, 3])

SELECTS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "all": lambda p, first: p,
    "two of three": lambda p, first: top_gates(p, 2, first),
    "two of three, not divided": lambda p, first: top_gates(p, 2, first, renormalise=False),
}
FEW = {"two of three": lambda logits, first: top_softmax(logits, 2, first)}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def trunk_layer(select: str = "two of three", reads: str | None = "a", p: float = 0.0) -> BankLayer:
    """Three experts whose router sees the first token, lying together."""
    layer = make_layer(*NAMES, reads=reads)
    prefill = Prefill("t0")
    layer.bank_mix = FirstToken(layer, 3, prefill, SELECTS[select], FEW.get(select))
    layer.bank_mix.learn("t0")
    prefill.start(FIRST)
    if p:
        layer.bank_dropout = nn.Dropout(p)
    layer.join()
    return layer.train()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the functions are used."""
    found: list[int] = []
    real = ByRow.apply

    def apply(*given: Any) -> Any:
        found.append(len(given))
        return real(*given)

    monkeypatch.setattr(ByRow, "apply", apply)
    return found


def written_out(layer: BankLayer, x: Tensor) -> Tensor:
    """y = W x + s · Σ gᵢ(x₀) Bᵢ A x, row by row."""
    router, mixed = layer.bank_mix.routers["t0"], []
    for row, first in zip(x, FIRST, strict=True):
        logits = router @ row[first]
        g = layer.bank_mix._select(logits[None].softmax(-1), None)[0]
        up = sum(g[i] * layer.bank_up[name] for i, name in enumerate(NAMES))
        mixed.append(layer.base_layer(row) + SCALE * row @ layer.bank_down["a"].T @ up.T)
    return torch.stack(mixed)


@pytest.mark.parametrize("frozen", [(), ("a",), ("b",), ("a", "b", "c"), ("t0",)])
@pytest.mark.parametrize("select", SELECTS)
def test_outputs_and_all_gradients_are_those_of_the_equation_written_out(
    select: str, frozen: tuple[str, ...], calls: list[int]
) -> None:
    layer = trunk_layer(select).double()
    layer.join()
    for name, weight in layer.named_parameters():
        if name.rpartition(".")[2] in frozen:
            weight.requires_grad_(False)
    x = torch.randn(ROWS, TOKENS, WIDE, dtype=torch.float64, requires_grad=True)

    here = layer(x)

    assert len(calls) == 1
    torch.testing.assert_close(here, written_out(layer, x))
    wanted = gradients(layer, written_out(layer, x), x)
    assert ("bank_mix.routers.t0" in wanted) == ("t0" not in frozen)
    for name, gradient in gradients(layer, here, x).items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)


def test_with_a_dropout_the_router_reads_all_of_x_and_the_trunk_what_is_left(calls: list[int]) -> None:
    """The draw is that of experts that do not lie together; so one seed gives one result."""
    layer = trunk_layer(p=0.5).double()
    layer.join()
    x = torch.randn(ROWS, TOKENS, WIDE, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    here = layer(x)
    found = gradients(layer, here, x)
    layer.part()
    torch.manual_seed(1)
    apart = layer(x)

    assert len(calls) == 1
    torch.testing.assert_close(here, apart)
    for name, gradient in gradients(layer, apart, x).items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def trunk(x: Tensor, router: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    return Trunk.apply(x, router, FIRST + torch.tensor([0, TOKENS]), 0.0, x.dtype, down)


def by_row(y: Tensor, z: Tensor, g: Tensor, *ups: Tensor) -> Tensor:
    return ByRow.apply(1.0 * y, z, g, torch.cat([up.T for up in ups]).detach(), SCALE, *ups)


VALUES: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "trunk": (trunk, [(ROWS, TOKENS, WIDE), (3, WIDE), (RANK, WIDE)]),
    "by row": (by_row, [(ROWS, TOKENS, HIGH), (ROWS, TOKENS, RANK), (ROWS, 2), (HIGH, RANK), (HIGH, RANK)]),
    "top": (lambda logits: top_softmax(logits, 2), [(ROWS, 4)]),
}


@pytest.mark.parametrize("name", VALUES)
def test_gradients_and_theirs_are_those_that_differences_give(name: str) -> None:
    function, shapes = VALUES[name]
    values = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(function, values)
    assert torch.autograd.gradgradcheck(function, values)


def test_with_a_dropout_a_gradient_of_the_gradient_drops_the_same() -> None:
    layer = trunk_layer(p=0.5).double()
    layer.join()
    x = torch.randn(ROWS, TOKENS, WIDE, dtype=torch.float64, requires_grad=True)
    assert_second_derivatives_drop_the_same(layer, x)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_in_bf16_a_row_is_routed_in_fp32_and_gradients_come_back_in_fp32(p: float, calls: list[int]) -> None:
    layer = trunk_layer(p=p)
    x = torch.randn(ROWS, TOKENS, WIDE, requires_grad=True)
    wanted = {"x": x, **{name: one for name, one in layer.named_parameters() if one.requires_grad}}
    seen: list[Tensor] = []
    layer.bank_mix._few = lambda logits, first: (seen.append(logits), top_softmax(logits, 2))[1]

    def taken(half: bool) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = layer(x)
        slopes = torch.autograd.grad((y.float() * torch.arange(1.0, HIGH + 1)).sum(), [*wanted.values()])
        return y, dict(zip(wanted, slopes, strict=True))

    y, found = taken(half=True)
    exact, slopes = taken(half=False)
    assert y.dtype == torch.bfloat16
    assert len(calls) == 2
    assert torch.equal(*seen)
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.3)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        close = nn.functional.cosine_similarity(gradient.flatten(), slopes[name].flatten(), dim=0)
        assert close > 0.98, name


class Louder(FirstToken):
    """Does more."""

    def gates(self, x: Tensor) -> Tensor:
        return 2 * super().gates(x)


def test_whatever_is_not_plain_learning_on_one_a_is_done_by_the_mix(calls: list[int]) -> None:
    x = torch.randn(ROWS, TOKENS, WIDE)
    layer = trunk_layer()
    wanted = layer(x)
    assert len(calls) == 1
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted)  # a forward without gradients
    layer.eval()
    torch.testing.assert_close(layer(x), wanted)
    assert layer.bank_mix in layer.bank_mix.prefill.kept
    layer.train()
    layer.bank_mix.prefill.start(FIRST, ["t0"], torch.tensor([0, 0]))  # chosen by keys
    torch.testing.assert_close(layer(x), wanted)
    layer.bank_mix.prefill.start(FIRST)
    layer.bank_mix.__class__ = Louder
    torch.testing.assert_close(layer(x) - layer.base_layer(x), 2 * (wanted - layer.base_layer(x)))
    trunk_layer(reads=None)(x)  # an A each
    assert len(calls) == 1


def test_a_forward_in_learning_forgets_what_was_kept_for_answers() -> None:
    layer, x = trunk_layer(), torch.randn(ROWS, TOKENS, WIDE)
    layer.eval()(x)
    layer.train()(x)
    assert not layer.bank_mix.prefill.kept


def test_a_new_batch_has_its_own_first_tokens(calls: list[int]) -> None:
    layer, prefill = trunk_layer(), trunk_layer().bank_mix.prefill
    x = torch.randn(ROWS, TOKENS + 1, WIDE)
    prefill = layer.bank_mix.prefill
    layer(torch.randn(ROWS, TOKENS, WIDE))
    torch.testing.assert_close(layer(x), written_out(layer, x))  # more tokens
    prefill.start(torch.tensor([0, 0]))
    moved = torch.stack([torch.cat([row[first:], row[:first]]) for row, first in zip(x, FIRST, strict=True)])
    prefill_of_moved = layer(moved)
    prefill.start(FIRST)
    wanted = written_out(layer, x)
    for row, first in enumerate(FIRST.tolist()):
        torch.testing.assert_close(prefill_of_moved[row, 0], wanted[row, first])
    prefill.start(torch.tensor([0, 0, 0]))
    with pytest.raises(ValueError, match="no first tokens are known for 2 rows"):
        layer(x)
    assert len(calls) == 3


def test_the_softmax_over_the_largest_logits_is_p_of_these_divided_by_its_sum() -> None:
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    first = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0]).expand(6, 5)
    weights = torch.randn(6, 5, dtype=torch.float64)
    for coming in (None, first):
        here, wanted = top_softmax(logits, 3, coming), top_gates(logits.softmax(-1), 3, coming)
        torch.testing.assert_close(here, wanted)
        assert torch.equal(here == 0, wanted == 0)
        slopes = [torch.autograd.grad((one * weights).sum(), logits)[0] for one in (here, wanted)]
        torch.testing.assert_close(*slopes)
    assert bool((top_softmax(logits, 2, first)[:, [2, 4]] > 0).all())


def test_a_transform_of_functions_sees_through_it() -> None:
    logits = torch.randn(6, 5)
    weights = torch.arange(5.0)

    def loss(one: Tensor) -> Tensor:
        return (top_softmax(one, 2) * weights).sum()

    each = torch.func.vmap(torch.func.grad(loss))(logits)
    whole = logits.clone().requires_grad_()
    (wanted,) = torch.autograd.grad((top_softmax(whole, 2) * weights).sum(), whole)
    torch.testing.assert_close(each, wanted)
