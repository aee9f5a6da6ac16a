"""What a device reaches: its fastest product of matrices, measured here, and the share of it that a step makes use of."""

from __future__ import annotations

import time
from typing import Any

import torch

PEAK_SIDE = {"cuda": 8192, "cpu": 512}
"""Rows and columns of the square matrices that are multiplied, by kind of device."""
PEAK_SECONDS = 0.5
"""How long they are; the fastest group of products counts."""
GROUP = 4


def peak(device: torch.device, precision: str) -> dict[str, Any]:
    """FLOP/s of a plain product of two square matrices in the type that a step computes in.

    Args:
        precision: of a recipe, `bf16` or `fp32`.
    """
    kind = "cuda" if device.type == "cuda" else "cpu"
    side, dtype = PEAK_SIDE[kind], torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, began = 0.0, time.perf_counter()
    while time.perf_counter() - began < PEAK_SECONDS or not best:
        wait(device)
        start = time.perf_counter()
        for _ in range(GROUP):
            torch.mm(left, right)
        wait(device)
        best = max(best, GROUP * 2 * side**3 / (time.perf_counter() - start))
    return {"flops_per_second": best, "side": side, "dtype": str(dtype).removeprefix("torch.")}


def wait(device: torch.device) -> None:
    """Until a device has done what it was told; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
