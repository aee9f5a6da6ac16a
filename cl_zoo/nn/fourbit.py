"""The frozen linears of the language model in four bits: NF4, as QLoRA has it.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023 (https://arxiv.org/abs/2305.14314), by the kernels of
bitsandbytes. A weight matrix becomes, row by row and 64 numbers at a time, one of 16 levels for each number and a scale for the 64; the scales
themselves become 8 bits, 256 at a time (double quantization). That is 4 + 8/64 + 32/(64 · 256) = 4.127 bits for a number.

A product writes W out in the type that the model had, and forgets it; the backward pass writes it out anew. So one matrix at a time is
there in full, and what is computed is what a plain linear computes that holds W as it was rounded. The fused kernels of bitsandbytes are not used:
they round otherwise for a single row than for several, and an answer must not depend on who else is in the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo.errors import BackboneError, first_line

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone

Family = TypeVar("Family", bound="Backbone")

BLOCK, SCALES = 64, 256
"""Numbers that share a scale, and scales that share one of theirs; the last of either may be fewer."""
LEVELS = 256
"""Values that an 8-bit scale can have."""


class FourBit(nn.Linear):
    """A frozen linear whose W (d_out, d_in) is held in NF4.

    Whatever reads `weight` gets W as it was rounded, written out anew each time: what is written into it is lost.

    Args:
        linear: is left as it is.
        device: of what is made; on `meta` it has shapes and no values.

    Attributes:
        kind: the type that W had and is written out in.
        codes: (⌈n/2⌉, 1), two numbers a byte.
        scales: (⌈n/64⌉,), of the blocks, each a place in `table`.
        coarse, mean, table: fp32 as bytes, so that a cast of the whole model leaves them alone: the scales of the scales, the mean that
            was taken off them, and the 256 values that they can have.
    """

    codes: Tensor
    scales: Tensor
    coarse: Tensor
    mean: Tensor
    table: Tensor

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        nn.Module.__init__(self)  # the parameter of a plain linear is what is not wanted here
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind = linear.weight.dtype
        bias = linear.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(device), bias.requires_grad)
        for name, tensor in zip(_STATE, _quantized(linear.weight.detach(), device), strict=True):
            self.register_buffer(name, tensor if tensor.dtype == torch.uint8 else tensor.view(torch.uint8))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # it is written out, and no parameter
        """W (d_out, d_in) as it was rounded."""
        return _written_out(self._state, self.out_features, self.in_features, self.kind)

    @property
    def _state(self) -> list[Tensor]:
        floats = (one.view(torch.float32) for one in (self.coarse, self.mean, self.table))
        return [self.codes, self.scales, *floats]

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_in) to (..., d_out)."""
        on = x.device.type
        if torch.is_autocast_enabled(on):
            x = x.to(torch.get_autocast_dtype(on))
        # A transform of functions wants to see the product, a compiler must not; without gradients nothing is kept anyway.
        learns = torch.is_grad_enabled() and x.requires_grad
        if torch._C._are_functorch_transforms_active() or not (learns or torch.compiler.is_compiling()):
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.linear(x, self.weight.to(x.dtype), bias)
        made = _product(x, self.bias, self._state, self.out_features, self.in_features, self.kind)
        return cast(Tensor, made)

    def plain(self) -> nn.Linear:
        """An ordinary linear that holds W as it was rounded."""
        made = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        made.weight = nn.Parameter(self.weight, requires_grad=False)
        made.bias = self.bias
        return made


def quantize(backbone: Family, device: torch.device) -> Family:
    """The backbone with the linears of its decoder layers in four bits, on a device.

    Its weights may lie anywhere: they are brought to the device matrix by matrix, so that no more than one is there in full.

    Raises:
        BackboneError: bitsandbytes has no kernels for the device.
    """
    for layer in backbone.layers:
        linears = {path: one for path, one in layer.named_modules() if isinstance(one, nn.Linear)}
        for path, linear in linears.items():
            _put(layer, path, FourBit(linear, device))
    backbone.model.to(device)
    return backbone.with_model(backbone.model)  # what it owns now are the codes


def dequantize(model: nn.Module) -> None:
    """Put ordinary linears in the place of those in four bits; their W is what it was rounded to."""
    for path, one in list(model.named_modules()):
        if isinstance(one, FourBit):
            _put(model, path, one.plain())


def place_of(linear: nn.Linear) -> tuple[torch.device, torch.dtype]:
    """Where the W of a linear is, and its type; nothing is written out for it."""
    if isinstance(linear, FourBit):
        return linear.codes.device, linear.kind
    return linear.weight.device, linear.weight.dtype


def quantized(model: nn.Module) -> bool:
    """Whether linears of a model are in four bits."""
    return any(isinstance(one, FourBit) for one in model.modules())


def language_size(backbone: Backbone) -> int:
    """Frozen weights of the decoder layers, in however many bits they are held."""
    weights = sum(weight.numel() for weight in backbone.layers.parameters() if backbone.owns(weight))
    packed = (one for one in backbone.layers.modules() if isinstance(one, FourBit))
    return weights + sum(one.in_features * one.out_features for one in packed)


def packed_bytes(numbers: int) -> int:
    """Bytes in which a matrix of so many numbers is held."""
    blocks = -(-numbers // BLOCK)
    return -(-numbers // 2) + blocks + 4 * (-(-blocks // SCALES) + 1 + LEVELS)


def _put(model: nn.Module, path: str, one: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, one)


_STATE = ("codes", "scales", "coarse", "mean", "table")
"""Names of the buffers, in the order in which the products take them."""


def _quantized(weight: Tensor, device: torch.device) -> list[Tensor]:
    """What `_STATE` names, of a matrix (d_out, d_in)."""
    if device.type == "meta":
        blocks = -(-weight.numel() // BLOCK)
        codes = torch.empty(-(-weight.numel() // 2), 1, dtype=torch.uint8, device=device)
        scales = torch.empty(blocks, dtype=torch.uint8, device=device)
        floats = (torch.empty(size, device=device) for size in (-(-blocks // SCALES), 1, LEVELS))
        return [codes, scales, *floats]
    try:
        from bitsandbytes.functional import quantize_4bit

        codes, state = quantize_4bit(
            weight.to(device), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
    except torch.OutOfMemoryError:
        raise
    except (ImportError, RuntimeError, AttributeError) as error:  # broken, or without kernels
        raise BackboneError(
            f"bitsandbytes cannot quantize on {device} ({first_line(error)}); `python -m bitsandbytes` says what its installation lacks"
        ) from None
    return [codes, state.absmax, state.state2.absmax, state.offset.reshape(1), state.state2.code]


def _written_out(state: list[Tensor], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    codes, scales, coarse, mean, table = state
    if codes.device.type == "meta":
        return codes.new_empty(rows, columns, dtype=dtype)
    kernels = torch.ops.bitsandbytes
    fine = kernels.dequantize_blockwise.default(scales, coarse, table, SCALES, torch.float32) + mean
    # In one row, as it was quantized: with AVX-512 the kernel for CPUs begins each row with a new block.
    made = kernels.dequantize_4bit.default(codes, fine, BLOCK, "nf4", (rows * columns,), dtype)
    return cast(Tensor, made).view(rows, columns)


# The product as an operation of torch, since a compiler that saw W being written out would keep it for the backward pass.

_GIVEN = "Tensor[] state, int rows, int columns, ScalarType dtype) -> Tensor"


@torch.library.custom_op("cl_zoo::product", mutates_args=(), schema=f"(Tensor x, Tensor? bias, {_GIVEN}")
def _product(
    x: Tensor, bias: Tensor | None, state: list[Tensor], rows: int, columns: int, dtype: torch.dtype
) -> Tensor:
    W, flat = _written_out(state, rows, columns, dtype).to(x.dtype), x.reshape(-1, columns)
    y = x.new_empty(*x.shape[:-1], rows)  # no view of a product, which could not be added to in place
    out = y.view(-1, rows)
    if bias is None:
        torch.mm(flat, W.T, out=out)
    else:
        torch.addmm(bias.to(x.dtype), flat, W.T, out=out)
    return y


@torch.library.custom_op("cl_zoo::product_back", mutates_args=(), schema=f"(Tensor back, {_GIVEN}")
def _product_back(back: Tensor, state: list[Tensor], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return back @ _written_out(state, rows, columns, dtype).to(back.dtype)


@_product.register_fake
def _(x: Tensor, bias: Any, state: Any, rows: int, columns: int, dtype: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


@_product_back.register_fake
def _(back: Tensor, state: Any, rows: int, columns: int, dtype: Any) -> Tensor:
    return back.new_empty(*back.shape[:-1], columns)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *_, state, rows, columns, dtype = inputs
    ctx.save_for_backward(*state)
    ctx.given = rows, columns, dtype


def _back(ctx: Any, back: Tensor) -> tuple[Any, ...]:
    needs_x, needs_bias, *_ = ctx.needs_input_grad
    for_x = _product_back(back, list(ctx.saved_tensors), *ctx.given) if needs_x else None
    return for_x, back.flatten(0, -2).sum(0) if needs_bias else None, [None] * len(_STATE), None, None, None


def _back_again(ctx: Any, back: Tensor) -> tuple[Any, ...]:
    """The gradient of the gradient: the product itself."""
    return _product(back, None, list(ctx.saved_tensors), *ctx.given), [None] * len(_STATE), None, None, None


_product.register_autograd(_back, setup_context=_keep)
_product_back.register_autograd(_back_again, setup_context=_keep)
