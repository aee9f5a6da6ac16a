"""The products of an adapted layer against the expressions written out, and experts that lie together in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from adapted import SCALE, WIDE, gradients, make_layer, written_out
from torch import Tensor, nn
from torch.func import functional_call

from cl_zoo.nn.layer import BankConfig, BankLayer
from cl_zoo.nn.mixes import AllOnes, PerToken, SharedDown

NAMES = ("a", "b", "c")

Mix = Callable[[], nn.Module | None]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


MIXES: dict[str, tuple[str | None, Mix]] = {
    "none": (None, lambda: None),
    "none, one A for all": ("a", lambda: None),
    "per token": (None, lambda: PerToken(nn.Linear(WIDE, 3, bias=False))),
    "all ones": (None, AllOnes),
    "shared A": ("a", lambda: SharedDown(lambda z, x: x[..., :3].softmax(-1))),
}


@pytest.mark.parametrize("frozen", [(), ("a",), ("b",), ("a", "b", "c")])
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("kind", MIXES)
def test_outputs_and_all_gradients_are_those_of_the_equation_written_out(
    kind: str, joined: bool, frozen: tuple[str, ...]
) -> None:
    reads, mix = MIXES[kind]
    layer = make_layer(*NAMES, reads=reads, mix=mix()).double()
    for name in frozen:
        layer.bank_up[name].requires_grad_(False)
        if name in layer.bank_down:
            layer.bank_down[name].requires_grad_(False)
    x = torch.randn(2, 5, WIDE, dtype=torch.float64, requires_grad=True)
    if joined:
        layer.join()

    wanted, here = written_out(layer, x), layer(x)

    torch.testing.assert_close(here, wanted)
    for name, gradient in gradients(layer, wanted, x).items():
        other = gradients(layer, layer(x), x)[name]
        assert (other is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(other, gradient, msg=name)


def test_a_single_expert_ends_in_the_bits_of_the_equation_written_out() -> None:
    layer = make_layer("a")
    layer.scale = 2.0  # as in the recipe; of a power of two nothing is rounded
    x = torch.randn(64, WIDE, requires_grad=True)
    z = torch.nn.functional.linear(x, layer.bank_down["a"])
    wanted = layer.base_layer(x) + torch.nn.functional.linear(2.0 * z, layer.bank_up["a"])

    assert torch.equal(layer(x), wanted)
    for name, gradient in gradients(layer, wanted, x).items():
        assert torch.equal(gradients(layer, layer(x), x)[name], gradient), name


def test_experts_that_lie_together_stay_the_same_parameters_with_the_same_values() -> None:
    layer = make_layer(*NAMES)
    before = {name: (one, one.detach().clone()) for name, one in layer.named_parameters()}
    layer.join()
    for name, one in layer.named_parameters():
        assert one is before[name][0]
        assert torch.equal(one, before[name][1])
    assert len({one.untyped_storage().data_ptr() for one in layer.bank_down.values()}) == 1

    layer.part()
    for name, one in layer.named_parameters():
        assert torch.equal(one, before[name][1])
        assert one.is_contiguous()
    assert len({one.untyped_storage().data_ptr() for one in layer.bank_down.values()}) == 3


def test_each_expert_gets_its_rows_of_one_gradient_without_a_copy() -> None:
    layer = make_layer(*NAMES)
    layer.join()
    layer(torch.randn(4, WIDE)).sum().backward()
    for table in (layer.bank_down, layer.bank_up):
        assert len({weight.grad.untyped_storage().data_ptr() for weight in table.values()}) == 1
        assert all(weight.grad.stride() == weight.stride() for weight in table.values())


def test_a_change_of_a_parameter_in_place_is_seen_at_once() -> None:
    layer = make_layer(*NAMES)
    layer.join()
    x = torch.randn(4, WIDE)
    with torch.no_grad():
        layer.bank_up["b"].mul_(3)
        layer.bank_down["c"].data.zero_()
    torch.testing.assert_close(layer(x), written_out(layer, x))


@pytest.mark.parametrize("table", ["bank_down", "bank_up"])
def test_a_matrix_that_is_replaced_is_not_taken_from_where_it_lay(table: str) -> None:
    layer = make_layer(*NAMES)
    layer.join()
    x, tensors = torch.randn(4, WIDE), getattr(layer, table)
    tensors["b"] = nn.Parameter(torch.randn_like(tensors["b"]))
    torch.testing.assert_close(layer(x), written_out(layer, x))
    tensors["c"].data = torch.randn_like(tensors["c"])
    torch.testing.assert_close(layer(x), written_out(layer, x))


def test_other_tensors_stand_in_for_joined_parameters_and_get_the_gradient() -> None:
    layer = make_layer(*NAMES)
    layer.join()
    x = torch.randn(4, WIDE)
    others = {name: torch.randn_like(one).requires_grad_() for name, one in layer.named_parameters()}
    y = functional_call(layer, others, x)
    (gradient,) = torch.autograd.grad(y.sum(), others["bank_down.b"])
    for name, one in layer.named_parameters():
        one.data = others[name].detach()
    torch.testing.assert_close(y, written_out(layer, x))
    (wanted,) = torch.autograd.grad(written_out(layer, x).sum(), layer.bank_down["b"])
    torch.testing.assert_close(gradient, wanted)


def test_a_copy_of_a_joined_layer_learns_for_itself() -> None:
    layer = make_layer(*NAMES)
    layer.join()
    other, x = copy.deepcopy(layer), torch.randn(4, WIDE)
    before = layer(x)
    with torch.no_grad():
        for weight in other.bank_up.values():
            weight.zero_()
    torch.testing.assert_close(layer(x), before)
    torch.testing.assert_close(other(x), other.base_layer(x))


@pytest.mark.parametrize("joined", [False, True])
def test_a_gradient_of_the_gradient_is_that_of_the_equation_written_out(joined: bool) -> None:
    layer = make_layer("a", "b").double()
    if joined:
        layer.join()
    x = torch.randn(3, WIDE, dtype=torch.float64, requires_grad=True)
    weights = [*layer.bank_down.values(), *layer.bank_up.values()]

    def second(y: Tensor) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), weights)

    for here, wanted in zip(second(layer(x)), second(written_out(layer, x)), strict=True):
        torch.testing.assert_close(here, wanted)


@pytest.mark.parametrize("joined", [False, True])
def test_in_bf16_products_are_taken_in_bf16_and_gradients_come_back_in_fp32(joined: bool) -> None:
    layer = make_layer(*NAMES, mix=PerToken(nn.Linear(WIDE, 3, bias=False)))
    if joined:
        layer.join()
    x = torch.randn(4, WIDE)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), written_out(layer, x), rtol=0.05, atol=0.2)
    y.float().sum().backward()
    for weight in (*layer.bank_down.values(), *layer.bank_up.values()):
        assert weight.grad.dtype == torch.float32


def test_a_frozen_weight_in_half_precision_is_added_to_in_its_own_type() -> None:
    layer = make_layer("a", "b")
    layer.base_layer.to(torch.bfloat16)
    y = layer(torch.randn(4, WIDE, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.bank_up["a"].grad.dtype == torch.float32


def test_a_transform_of_functions_sees_through_a_layer() -> None:
    layer = make_layer(*NAMES)
    layer.join()
    x = torch.randn(4, WIDE)
    weights = {name: one.detach() for name, one in layer.named_parameters()}

    def loss(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(layer, weights, one[None]).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    layer(x).sum().backward()
    for name in ("bank_down.b", "bank_up.c"):
        torch.testing.assert_close(each[name].sum(0), layer.get_parameter(name).grad)


def test_matrices_that_would_begin_off_the_grid_stay_where_they_are() -> None:
    layer = BankLayer(nn.Linear(5, 5), "layers.0.lin", SCALE, 0.0)  # 20 bytes a row
    for name in NAMES:
        layer.grow(name, BankConfig(rank=1))
    layer._active_adapter = list(NAMES)
    layer.join()
    assert len({one.untyped_storage().data_ptr() for one in layer.bank_down.values()}) == 3


def test_who_lies_together_depends_on_who_is_active_and_not_on_who_was() -> None:
    layer, fresh = make_layer(*NAMES), make_layer(*NAMES)
    layer.join()
    layer._active_adapter = fresh._active_adapter = ["c", "a"]
    layer.join()
    fresh.join()
    for table in ("bank_down", "bank_up"):
        here, there = getattr(layer, table), getattr(fresh, table)
        assert {name: one.stride() for name, one in here.items()} == {
            name: one.stride() for name, one in there.items()
        }
    assert layer.bank_up["b"].is_contiguous()
    x = torch.randn(4, WIDE)
    torch.testing.assert_close(layer(x), written_out(layer, x))


def test_experts_that_lie_together_already_are_left_where_they_are() -> None:
    layer = make_layer(*NAMES)
    layer.join()
    places = [one.data_ptr() for one in layer.bank_up.values()]
    layer.join()
    assert [one.data_ptr() for one in layer.bank_up.values()] == places


def test_an_expert_that_becomes_active_lies_with_the_others() -> None:
    layer = make_layer(*NAMES)
    layer._active_adapter = ["a", "b"]
    layer.join()
    layer._active_adapter = list(NAMES)
    layer.join()
    assert len({one.untyped_storage().data_ptr() for one in layer.bank_up.values()}) == 1
