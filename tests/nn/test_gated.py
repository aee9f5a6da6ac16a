"""Experts that a token's router weighs, as one function: against the equation written out, with and without a dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapted import (
    HIGH,
    RANK,
    SCALE,
    WIDE,
    assert_second_derivatives_drop_the_same,
    gradients,
    make_layer,
    written_out,
)
from torch import Tensor, nn
from torch.func import functional_call

from cl_zoo.nn import SharedDown, TokenGate
from cl_zoo.nn.gated import ByToken, dropped, put_back
from cl_zoo.nn.layer import BankLayer
from cl_zoo.nn.mixes import PerToken

NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def linear() -> nn.Linear:
    return nn.Linear(WIDE, 3, bias=False)


MIXES: dict[str, tuple[str | None, Callable[[], nn.Module]]] = {
    "own A": (None, lambda: PerToken(linear())),
    "one A": ("a", lambda: SharedDown(TokenGate(linear()))),
}


def routed_layer(kind: str, p: float = 0.0) -> BankLayer:
    """Three experts and their router, lying together."""
    reads, mix = MIXES[kind]
    layer = make_layer(*NAMES, reads=reads, mix=mix())
    if p:
        layer.bank_dropout = nn.Dropout(p)
    layer.join()
    return layer


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the function is used."""
    found: list[int] = []
    real = ByToken.apply

    def apply(*given: Any) -> Any:
        found.append(len(given))
        return real(*given)

    monkeypatch.setattr(ByToken, "apply", apply)
    return found


@pytest.mark.parametrize("frozen", [(), ("a",), ("b",), ("a", "b", "c"), ("router",), ("x",)])
@pytest.mark.parametrize("kind", MIXES)
def test_outputs_and_all_gradients_are_those_of_the_equation_written_out(
    kind: str, frozen: tuple[str, ...], calls: list[int]
) -> None:
    layer = routed_layer(kind).double()
    layer.join()
    for name, weight in layer.named_parameters():
        if name.endswith(tuple(f".{one}" for one in frozen)) or ("router" in frozen and "router" in name):
            weight.requires_grad_(False)
    x = torch.randn(2, 5, WIDE, dtype=torch.float64, requires_grad=True)

    here = layer(x)

    assert len(calls) == 1
    torch.testing.assert_close(here, written_out(layer, x))
    wanted = gradients(layer, written_out(layer, x), x)
    assert any(name.startswith("bank_mix") for name in wanted) == ("router" not in frozen)
    for name, gradient in gradients(layer, here, x).items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)


@pytest.mark.parametrize("kind", MIXES)
def test_with_a_dropout_the_router_reads_all_of_x_and_the_experts_what_is_left(
    kind: str, calls: list[int]
) -> None:
    """The draw is that of experts that do not lie together; so one seed gives one result."""
    layer = routed_layer(kind, p=0.5).double().train()
    layer.join()
    x = torch.randn(2, 5, WIDE, dtype=torch.float64, requires_grad=True)
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
    layer.eval().join()
    torch.testing.assert_close(layer(x), written_out(layer, x))


@pytest.mark.parametrize("fused", [False, True])
def test_what_is_dropped_is_dropped_from_the_gradient_too(fused: bool) -> None:
    x = torch.randn(50, 40, dtype=torch.float64, requires_grad=True)
    seen, kept = dropped(x.detach(), 0.25, fused=fused)
    here = seen != 0
    assert 0.7 < here.double().mean() < 0.8
    torch.testing.assert_close(seen[here], x.detach()[here] / 0.75)
    torch.testing.assert_close(put_back(torch.ones_like(seen), kept, 0.25), here.double() / 0.75)
    if not fused:
        torch.manual_seed(2)
        mine = dropped(x.detach(), 0.25)[0]
        torch.manual_seed(2)
        assert torch.equal(mine, nn.functional.dropout(x, 0.25))


def arguments(kind: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The function of y, x and the members alone, and values for them."""
    layer = routed_layer(kind).double()
    router = layer.bank_mix.beside()
    members = [*layer.bank_down.values(), *layer.bank_up.values(), router]
    downs = len(layer.bank_down)

    def function(y: Tensor, x: Tensor, *members: Tensor) -> Tensor:
        rows = torch.cat([*members[:downs], members[-1]]).detach()
        up = torch.cat([one.T for one in members[downs:-1]]).detach()
        return ByToken.apply(1.0 * y, x, rows, up, SCALE, 0.0, downs, *members)

    y, x = torch.randn(4, HIGH), torch.randn(4, WIDE)
    values = [one.detach().double().clone().requires_grad_() for one in (y, x, *members)]
    return function, values


@pytest.mark.parametrize("kind", MIXES)
def test_gradients_are_those_that_differences_give(kind: str) -> None:
    function, values = arguments(kind)
    assert torch.autograd.gradcheck(function, values)


@pytest.mark.parametrize("kind", MIXES)
def test_gradients_of_gradients_are_those_that_differences_give(kind: str) -> None:
    function, values = arguments(kind)
    assert torch.autograd.gradgradcheck(function, values, atol=1e-4)


def test_with_a_dropout_a_gradient_of_the_gradient_drops_the_same() -> None:
    layer = routed_layer("own A", p=0.5).double().train()
    layer.join()
    x = torch.randn(3, WIDE, dtype=torch.float64, requires_grad=True)
    assert_second_derivatives_drop_the_same(layer, x)


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("kind", MIXES)
def test_in_bf16_weights_are_taken_in_fp32_and_gradients_come_back_in_fp32(kind: str, p: float) -> None:
    layer = routed_layer(kind, p).train()
    x = torch.randn(4, WIDE, requires_grad=True)

    def taken(half: bool) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = layer(x)
        wanted = {"x": x, **dict(layer.named_parameters())}
        wanted = {name: one for name, one in wanted.items() if one.requires_grad}
        slopes = torch.autograd.grad((y.float() * torch.arange(1.0, HIGH + 1)).sum(), [*wanted.values()])
        return y, dict(zip(wanted, slopes, strict=True))

    y, found = taken(half=True)
    assert y.dtype == torch.bfloat16
    wanted, exact = taken(half=False)
    torch.testing.assert_close(y.float(), wanted, rtol=0.05, atol=0.3)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        close = torch.nn.functional.cosine_similarity(gradient.flatten(), exact[name].flatten(), dim=0)
        assert close > 0.98, name


def test_answers_are_computed_by_the_mix_itself(calls: list[int]) -> None:
    layer, x = routed_layer("own A"), torch.randn(4, WIDE)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), written_out(layer, x))
    layer.part()
    layer(x)
    assert not calls


class Doubled(PerToken):
    """Does more than a softmax."""

    def gates(self, x: Tensor) -> Tensor:
        return 2 * super().gates(x)


class Half(TokenGate):
    """The same as a gate."""

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return super().forward(z, x) / 2


@pytest.mark.parametrize(
    ("reads", "mix"),
    [
        (None, lambda: Doubled(linear())),
        ("a", lambda: SharedDown(Half(linear()))),
        (None, lambda: PerToken(nn.Linear(WIDE, 3))),  # with a bias
        (None, lambda: PerToken(nn.Sequential(linear()))),
        (None, lambda: PerToken(linear().double())),
        ("a", lambda: SharedDown(lambda z, x: x[..., :3])),
    ],
)
def test_a_mix_that_does_more_is_called(reads: str | None, mix: Any, calls: list[int]) -> None:
    layer = make_layer(*NAMES, reads=reads, mix=mix())
    layer.join()
    x = torch.randn(4, WIDE)
    if layer.bank_mix.__class__ is PerToken and next(layer.bank_mix.parameters()).dtype == torch.float64:
        assert layer._joined is not None
        assert layer._joined.beside is None
        return
    torch.testing.assert_close(layer(x), written_out(layer, x))
    assert not calls


@pytest.mark.parametrize("which", ["bank_mix", "bank_mix.router"])
def test_who_waits_for_a_call_of_the_mix_or_its_router_gets_it(which: str, calls: list[int]) -> None:
    layer, seen = routed_layer("own A"), []
    layer.get_submodule(which).register_forward_hook(lambda *given: seen.append(given[-1].shape))
    layer.join()
    layer(torch.randn(4, WIDE))
    assert len(seen) == 1
    assert not calls


def test_other_tensors_stand_in_for_a_router_and_get_the_gradient(calls: list[int]) -> None:
    layer, x = routed_layer("own A"), torch.randn(4, WIDE)
    other = torch.randn(3, WIDE, requires_grad=True)
    y = functional_call(layer, {"bank_mix.router.weight": other}, x)
    (found,) = torch.autograd.grad(y.sin().sum(), other)
    layer.bank_mix.router.weight.data = other.detach()
    (wanted,) = torch.autograd.grad(written_out(layer, x).sin().sum(), layer.bank_mix.router.weight)
    torch.testing.assert_close(found, wanted)
    layer(x)
    assert not calls  # it lies elsewhere
    layer.join()
    torch.testing.assert_close(layer(x), written_out(layer, x))
    assert calls


def test_a_router_stays_the_same_parameter_with_the_same_values() -> None:
    layer = make_layer(*NAMES, mix=PerToken(linear()))
    router = layer.bank_mix.router.weight
    before = router.detach().clone()
    layer.join()
    assert layer.bank_mix.router.weight is router
    assert torch.equal(router, before)
    assert router.untyped_storage().data_ptr() == layer.bank_down["a"].untyped_storage().data_ptr()
    layer.part()
    assert torch.equal(router, before)
    assert router.untyped_storage().nbytes() == before.untyped_storage().nbytes()


def test_gradients_lie_in_one_piece() -> None:
    layer = routed_layer("own A")
    layer(torch.randn(4, WIDE)).sum().backward()
    weights = [*layer.bank_down.values(), layer.bank_mix.router.weight]
    assert len({weight.grad.untyped_storage().data_ptr() for weight in weights}) == 1
    assert all(weight.grad.stride() == weight.stride() for weight in layer.bank_up.values())


def test_a_transform_of_functions_sees_through_it() -> None:
    layer, x = routed_layer("one A"), torch.randn(4, WIDE)
    weights = {name: one.detach() for name, one in layer.named_parameters()}

    def loss(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(layer, weights, one[None]).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    layer(x).sum().backward()
    for name in ("bank_down.a", "bank_up.c", "bank_mix.gate.router.weight"):
        torch.testing.assert_close(each[name].sum(0), layer.get_parameter(name).grad)


def test_experts_of_several_ranks_are_weighed_by_their_mix(calls: list[int]) -> None:
    layer = make_layer("a", "b", mix=PerToken(nn.Linear(WIDE, 2, bias=False)))
    layer.bank_down["b"] = nn.Parameter(torch.randn(RANK + 1, WIDE))
    layer.bank_up["b"] = nn.Parameter(torch.randn(HIGH, RANK + 1))
    layer.join()
    x = torch.randn(4, WIDE)
    z = torch.cat(
        [
            x @ layer.bank_down[name].T * g
            for name, g in zip("ab", layer.bank_mix.gates(x).T[..., None], strict=True)
        ],
        -1,
    )
    up = torch.cat([layer.bank_up[name] for name in "ab"], 1)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + SCALE * z @ up.T)
    assert not calls


class Twice(nn.Dropout):
    """A dropout that does something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize("dropout", [Twice(0.5), nn.Sequential(nn.Dropout(0.0)), nn.Dropout(0.9).eval()])
def test_what_stands_in_the_place_of_a_dropout_is_what_drops(dropout: nn.Module, calls: list[int]) -> None:
    layer, x = routed_layer("own A"), torch.randn(2, 5, WIDE)
    layer.bank_dropout = dropout
    few = layer(x)
    assert len(calls) == (type(dropout) is nn.Dropout)
    layer.join(few=False)
    torch.testing.assert_close(few, layer(x))


def test_who_waits_for_a_call_of_the_dropout_gets_it(calls: list[int]) -> None:
    layer, seen = routed_layer("own A", 0.5), list[int]()
    layer.bank_dropout.register_forward_hook(lambda *_: seen.append(1))
    layer(torch.randn(2, 5, WIDE))
    assert seen == [1]
    assert not calls


@pytest.mark.parametrize("kind", MIXES)
def test_no_tokens_are_no_fault(kind: str) -> None:
    assert routed_layer(kind)(torch.randn(0, 5, WIDE)).shape == (0, 5, HIGH)
