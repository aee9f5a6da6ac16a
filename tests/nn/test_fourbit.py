"""Linears in four bits: W against NF4 written out by hand and against bitsandbytes itself, products and gradients against plain linears."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward, task_loss
from cl_zoo.engine.ledger import own_state, training_flops
from cl_zoo.export.card import Base
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.nn.fourbit import FourBit, dequantize, language_size, packed_bytes, quantize, quantized
from cl_zoo.nn.layer import BankConfig, BankLayer
from cl_zoo.nn.mixes import PerSample
from cl_zoo.nn.placing import adapters
from cl_zoo.recipe.recipe import Recipe, build_recipe
from cl_zoo.runs.prepared import load_backbone
from cl_zoo.testing import (
    tiny_benchmark,
    tiny_checkpoint,
    tiny_internvl,
    tiny_llava_next,
    tiny_llava_onevision,
    tiny_qwen,
    tiny_qwen3,
    tiny_smolvlm,
)

bitsandbytes = pytest.importorskip("bitsandbytes")

CPU, META = torch.device("cpu"), torch.device("meta")
BELOW = (-1.0, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004)
ABOVE = (0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0)
NF4 = torch.tensor([*BELOW, 0.0, *ABOVE])
"""The 16 levels, QLoRA's appendix E; the widest gap between two is 0.3038."""
LAYERS = 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32)
"""Parameters of the tiny model's decoder layers: four square projections, three of the MLP, two norms."""
SAMPLES = tiny_benchmark().tasks[0].train[:3]


def drawn(rows: int, columns: int, bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """A linear with normal weights; a seed of its own keeps the tests apart."""
    torch.manual_seed(rows * columns)
    linear = nn.Linear(columns, rows, bias=bias)
    nn.init.normal_(linear.weight, std=0.2)
    return linear.to(dtype).requires_grad_(False)


def packed(linear: nn.Linear) -> FourBit:
    return FourBit(linear, CPU)


# W


@pytest.mark.parametrize("shape", [(32, 48), (256, 512), (5, 6)], ids=str)
def test_w_is_the_nearest_level_times_the_scale_of_its_block(shape: tuple[int, int]) -> None:
    """5 · 6 = 30 and 32 · 48 = 24 · 64: where 64 does not divide, the last block is shorter."""
    W = drawn(*shape).weight
    made = packed(drawn(*shape)).weight
    numbers = nn.functional.pad(W.flatten(), (0, -W.numel() % 64)).view(-1, 64)
    largest = numbers.abs().amax(1, keepdim=True)
    nearest = NF4[(numbers[..., None] / largest[..., None] - NF4).abs().argmin(-1)] * largest
    by_hand, scale = (one.flatten()[: W.numel()].view(shape) for one in (nearest, largest.expand(-1, 64)))

    # A scale lies within 1/64 of the widest distance from their mean when it is rounded to 8 bits.
    slack = (largest - largest.mean()).abs().max() / 64
    assert ((made - by_hand).abs() <= by_hand.abs() / scale * slack + 1e-6).all()
    assert ((made - W).abs() <= 0.3038 / 2 * scale + slack + 1e-6).all()
    assert 0.05 < float((made - W).norm() / W.norm()) < 0.12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_w_is_what_bitsandbytes_makes_of_it(dtype: torch.dtype) -> None:
    linear = drawn(48, 128, dtype=dtype)  # whole blocks in a row, see `_written_out`
    theirs = bitsandbytes.nn.Linear4bit(128, 48, bias=False, quant_type="nf4", compress_statistics=True)
    theirs.weight = bitsandbytes.nn.Params4bit(linear.weight, quant_type="nf4", module=theirs)
    theirs = theirs.to("cpu")
    expected = bitsandbytes.functional.dequantize_4bit(theirs.weight.data, theirs.weight.quant_state)

    assert packed(linear).weight.dtype == expected.dtype == dtype
    assert torch.equal(packed(linear).weight, expected)
    assert torch.equal(packed(linear).plain().weight, expected)


def test_a_cast_or_a_copy_of_the_model_leaves_w_alone() -> None:
    """A scale in bf16 would be read as another number."""
    one = packed(drawn(32, 48))
    before = one.weight

    assert torch.equal(deepcopy(one).weight, before)
    assert torch.equal(deepcopy(one).to(torch.bfloat16).weight, before)
    assert torch.equal(deepcopy(one).double().weight, before)


@pytest.mark.parametrize("shape", [(32, 48), (5, 6), (256, 512)], ids=str)
def test_shapes_without_values_are_those_of_the_real_ones(shape: tuple[int, int]) -> None:
    """4 bits a number, 8 for each 64, 32 for each 16,384; a mean and 256 levels besides."""
    real, empty = packed(drawn(*shape)), FourBit(drawn(*shape), META)
    numbers = shape[0] * shape[1]
    blocks = -(-numbers // 64)

    assert [(n, b.shape, b.dtype) for n, b in real.named_buffers()] == [
        (n, b.shape, b.dtype) for n, b in empty.named_buffers()
    ]
    assert (empty.weight.shape, empty.weight.device) == (shape, META)
    held = sum(one.numel() * one.element_size() for one in real.buffers())
    assert held == packed_bytes(numbers) == -(-numbers // 2) + blocks + 4 * -(-blocks // 256) + 4 + 1024
    assert 8 * packed_bytes(4096 * 11008) / (4096 * 11008) == pytest.approx(4 + 8 / 64 + 32 / 16384, abs=2e-4)


# Products


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_product_and_its_gradient_are_those_of_a_plain_linear(dtype: torch.dtype, bias: bool) -> None:
    one = packed(drawn(32, 48, bias, dtype))
    plain = one.plain()
    x = torch.randn(2, 5, 48, dtype=dtype)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    made, wanted = one(ours), plain(theirs)
    made.square().sum().backward()
    wanted.square().sum().backward()

    assert torch.equal(made, wanted)
    assert torch.equal(one(x), wanted)
    assert torch.equal(ours.grad, theirs.grad)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(one(ours), plain(theirs))
        assert one(ours).dtype == torch.bfloat16


def test_a_gradient_of_the_gradient_and_transforms_of_functions_see_the_product() -> None:
    one = packed(drawn(32, 48))
    plain, x = one.plain(), torch.randn(4, 48, requires_grad=True)

    def twice(linear: nn.Module) -> Tensor:
        (first,) = torch.autograd.grad(linear(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), x)[0]

    def each(linear: nn.Module) -> Tensor:
        loss: Callable[[Tensor], Tensor] = lambda row: linear(row).pow(2).sum()  # noqa: E731
        return torch.func.vmap(torch.func.grad(loss))(x)

    torch.testing.assert_close(twice(one), twice(plain))
    torch.testing.assert_close(each(one), each(plain))


def test_nothing_is_kept_for_the_backward_pass_but_the_codes() -> None:
    """Not even by a compiler, which keeps what it sees in the forward and the backward pass alike."""
    net = nn.Sequential(packed(drawn(64, 48)), nn.SiLU(), packed(drawn(48, 64)))
    x, kept = torch.randn(4, 48, requires_grad=True), list[Tensor]()
    compiled = torch.compile(net, backend="aot_eager_decomp_partition", fullgraph=True)

    for called in (net, compiled):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
            y = called(x)
        assert any(one.dtype == torch.uint8 for one in kept)
        assert max(one.numel() for one in kept if one.is_floating_point()) < 64 * 48
        (gradient,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(gradient, torch.autograd.grad(net(x).sum(), x)[0])
    torch.compiler.reset()


@pytest.mark.slow
def test_a_compiled_product_of_an_x_that_needs_no_gradient_is_the_same() -> None:
    """As in the first layer where the projector stands still, and in a teacher's forward within a step."""
    one, x = packed(drawn(64, 48, bias=True)), torch.randn(4, 48)
    compiled = torch.compile(one, fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(x), one(x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), one(x))
    torch.compiler.reset()


def test_an_x_of_another_type_is_multiplied_alike_with_and_without_a_gradient() -> None:
    one, x = packed(drawn(64, 48, bias=True, dtype=torch.bfloat16)), torch.randn(4, 48)
    with torch.no_grad():
        here = one(x)
    torch.testing.assert_close(one(x.requires_grad_()), here)


# Adapted layers


class Held(nn.Module):
    """A model of one linear; `plain` holds what the other one rounded it to."""

    def __init__(self, plain: bool, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        one = packed(drawn(32, 48, bias, dtype))
        self.q_proj = one.plain() if plain else one


def adapted(plain: bool, *, bias: bool = False, dtype: torch.dtype = torch.float32) -> BankLayer:
    """A layer with two experts that learn, whose A and B are drawn."""
    config = BankConfig(target_modules=".*q_proj", rank=4, scale=2.0)
    bank = ExpertBank(Held(plain, bias, dtype), config, "a")
    bank.add("b")
    bank.use(["a", "b"], trainable=["a", "b"])
    (layer,) = bank.layers
    torch.manual_seed(7)
    for table in (layer.bank_down, layer.bank_up):
        for weight in table.values():
            nn.init.normal_(weight, std=0.3)
    return layer


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_an_adapted_layer_is_the_same_on_a_plain_linear(
    precision: torch.dtype, bias: bool, mixed: bool, joined: bool
) -> None:
    """y, and the gradients of x, A and B; in bf16 as a run has it: autocast on W in bf16 and experts in fp32."""
    found = []
    for plain in (True, False):
        layer = adapted(plain, bias=bias, dtype=precision)
        assert {weight.dtype for weight in layer.bank_up.values()} == {torch.float32}
        if joined:
            layer.join()
        if mixed:
            layer.bank_mix = mix = PerSample()
            mix.weights = torch.tensor([[0.3, 0.7], [1.0, 0.0]])
        torch.manual_seed(8)
        x = torch.randn(2, 5, 48).to(precision).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            y = layer(x)
            y.float().pow(2).sum().backward()
        gradients = [weight.grad for table in (layer.bank_down, layer.bank_up) for weight in table.values()]
        found.append([y.detach(), x.grad, *gradients])

    for ours, theirs in zip(*found, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_layer_tells_of_w_what_a_plain_one_does() -> None:
    layer, plain = adapted(False, dtype=torch.bfloat16), adapted(True, dtype=torch.bfloat16)

    assert torch.equal(layer.frozen(), plain.frozen())
    assert layer.made == plain.made == {"device": CPU, "dtype": torch.float32}
    torch.testing.assert_close(layer.delta(), plain.delta())
    assert layer.base_layer.weight.shape == (32, 48)


# Backbones


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava": tiny_checkpoint,
    "llava-next": tiny_llava_next,
    "llava-onevision": tiny_llava_onevision,
    "internvl": tiny_internvl,
    "qwen2.5-vl": tiny_qwen,
    "qwen3-vl": tiny_qwen3,
    "smolvlm2": tiny_smolvlm,
}


def loaded(name: str, folder: Path, device: torch.device = CPU, **recipe: Any) -> Backbone:
    return load_backbone((name, folder), build_recipe(recipe), device)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_linears_of_the_layers_alone_are_packed_and_the_model_is_otherwise_what_it_was(
    name: str, tmp_path: Path
) -> None:
    folder = FAMILIES[name](tmp_path / "model")
    plain, ours = loaded(name, folder), loaded(name, folder, quantization="nf4")
    inside = {id(one) for one in plain.layers.modules() if isinstance(one, nn.Linear)}
    expected = {path for path, one in plain.model.named_modules() if id(one) in inside}

    assert {path for path, one in ours.model.named_modules() if isinstance(one, FourBit)} == expected
    assert len(expected) == 2 * 7  # all that the bank adapts in two layers, and nothing more
    others = {path for path, one in plain.model.named_modules() if isinstance(one, nn.Linear)} - expected
    whole = Base.behind(ours).whole  # what stock transformers is told to leave whole too
    assert all(ours.hub_name(path).startswith(whole) for path in others)
    kept = dict(plain.model.named_parameters())
    for path, weight in ours.model.named_parameters():
        assert torch.equal(weight, kept.pop(path)), path
    assert {path.removesuffix(".weight") for path in kept} == expected

    # What it computes is what the same model computes that holds W as it was rounded.
    batch = ours.batch(SAMPLES, answers=True)
    with torch.no_grad():
        made = forward(ours.model, batch).logits
        unrounded = forward(plain.model, batch).logits
        dequantize(ours.model)
        assert not quantized(ours.model)
        assert torch.equal(made, forward(ours.model, batch).logits)
    assert 1e-4 < float((made - unrounded).abs().max()) < 1


def test_it_counts_as_what_it_stands_for(tiny_folder: Path) -> None:
    plain, ours, empty = (
        loaded("llava", tiny_folder / "llava", device, **recipe)
        for device, recipe in ((CPU, {}), (CPU, {"quantization": "nf4"}), (META, {"quantization": "nf4"}))
    )

    assert language_size(ours) == language_size(empty) == language_size(plain) == LAYERS
    assert training_flops(ours, 10, 3) == training_flops(plain, 10, 3)
    assert own_state(ours.model, ours) == {}
    assert {one.device for one in empty.model.buffers() if one.dtype == torch.uint8} == {META}
    for backbone in (plain, ours):
        adapters(backbone, Recipe(), "t0")
    assert language_size(ours) == language_size(plain) == LAYERS
    assert own_state(ours.model, ours).keys() == own_state(plain.model, plain).keys()


def test_a_batch_gives_the_gradients_of_the_plain_model_that_holds_what_was_rounded(
    tiny_folder: Path,
) -> None:
    found = []
    for plain in (True, False):
        backbone = loaded("llava", tiny_folder / "llava", quantization="nf4")
        if plain:
            dequantize(backbone.model)
        torch.manual_seed(3)
        bank = adapters(backbone, build_recipe({"adapter.dropout": 0.0}), "t0")
        for layer in bank.layers:
            nn.init.normal_(layer.bank_up["t0"], std=0.1)
        loss = task_loss(bank, backbone.batch(SAMPLES, answers=True))
        loss.backward()
        found.append([loss.detach(), *(w.grad for w in bank.parameters() if w.requires_grad)])

    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_weights_come_to_the_device_one_matrix_at_a_time(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that does not fit into a GPU in full is read into main memory, whatever the device."""
    seen = []
    from cl_zoo.backbones import llava

    read = llava.load_checkpoint
    monkeypatch.setattr(
        llava, "load_checkpoint", lambda *given, **more: seen.append(given[2]) or read(*given, **more)
    )
    loaded("llava", tiny_folder / "llava", META, quantization="nf4")
    loaded("llava", tiny_folder / "llava", quantization="nf4")
    monkeypatch.setattr("cl_zoo.nn.fourbit.quantize", lambda backbone, device: backbone)
    loaded("llava", tiny_folder / "llava", torch.device("cuda"), quantization="nf4")

    assert seen == [META, CPU, CPU]


def test_a_library_without_kernels_is_one_sentence(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no native library\nand much more")

    monkeypatch.setattr("bitsandbytes.functional.quantize_4bit", broken)
    from cl_zoo.errors import BackboneError

    with pytest.raises(BackboneError, match=r"cannot quantize on cpu \(no native library.*\); `python -m b"):
        quantize(tiny, CPU)
