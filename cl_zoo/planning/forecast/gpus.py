"""GPUs to plan for: what their maker's data sheets promise."""

from __future__ import annotations

from dataclasses import dataclass

from cl_zoo.errors import OptionError, nearest


@dataclass(frozen=True)
class Gpu:
    """A GPU's peak in FLOP/s by precision (dense), its memory and its memory bandwidth in bytes (per second)."""

    name: str
    bf16: float
    fp32: float
    memory: float
    bandwidth: float

    def peak(self, precision: str) -> float:
        return self.bf16 if precision == "bf16" else self.fp32


GPUS = {
    name.lower(): Gpu(name, bf16 * 1e12, fp32 * 1e12, memory * 1e9, bandwidth * 1e9)
    for name, bf16, fp32, memory, bandwidth in (
        ("A100-40G", 312, 19.5, 40, 1555),
        ("A100", 312, 19.5, 80, 2039),
        ("A800", 312, 19.5, 80, 2039),
        ("H100", 989, 67, 80, 3350),
        ("H200", 989, 67, 141, 4800),
        ("L40S", 362, 91.6, 48, 864),
        ("A6000", 155, 38.7, 48, 768),
        ("RTX-4090", 165, 82.6, 24, 1008),
        ("RTX-3090", 71, 35.6, 24, 936),
    )
}
"""TFLOP/s in bf16 and fp32 without sparsity, GB and GB/s, as the maker's data sheets have them."""


def find_gpu(text: str) -> Gpu:
    """A GPU by name, or one of so many TFLOP/s with an A100's proportions and no known memory.

    Raises:
        OptionError: neither a known name nor a positive number.
    """
    name = text.lower().replace(" ", "-")
    if name in GPUS:
        return GPUS[name]
    like = GPUS["a100"]
    try:
        share = float(text) * 1e12 / like.bf16
    except ValueError:
        raise OptionError(f"--gpu {text}{nearest(name, GPUS)}; or its TFLOP/s in bf16 as a number") from None
    if not 0 < share < float("inf"):
        raise OptionError(f"--gpu {text}: TFLOP/s must be positive")
    return Gpu(f"{text} TFLOP/s", like.bf16 * share, like.fp32 * share, 0.0, like.bandwidth * share)
