"""Decoder layers in compiled kernels while a task is learnt: `torch.compile` of each layer of the language model, adapters included.

A layer is compiled in place (`nn.Module.compile`), so that its name, its parameters, the state of the model and all hooks stay what they
are; layers that are alike share one compilation. Outside the steps of a task everything is computed as ever: hooks of plugins look at few
batches, and a decoding step reads the number of its layer and the length of its cache, which would be compiled for each layer anew.

Kernels sum in another order, so the numbers are those of uncompiled layers up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cl_zoo.errors import OptionError

REPAID = 100_000
"""Passes through a decoder layer, forward and backward, from which `auto` compiles a task: what a compilation costs over what it saves.

Three or four graphs (short batches and masks aside, layers that learn otherwise) cost about a minute of one processor at 7B. A layer with
seven adapted linears launches some two hundred kernels per pass at 5 µs each where the accelerator waits for the processor, and compiled
less than half of them: 0.6 ms saved. One minute over 0.6 ms is 100,000 passes, 3,125 micro-batches of 32 layers.
"""

LIMIT = 1024
"""Compilations of a layer in one run from which torch would go on without compiling; its own limit of 8 is that of one task."""


class Compiled:
    """How the decoder layers of a run are computed while it learns.

    Args:
        layers: bottom first.
        how: `on`; `auto`, tasks that are long enough; or `off`.
        backend: of `torch.compile`.
    """

    def __init__(self, layers: Iterable[nn.Module], how: str, backend: Any = "inductor") -> None:
        self.layers, self.how, self.backend = list(layers), how, backend
        self._kernels: list[Any] = []
        if how != "off":
            torch.compiler.reset()  # kernels must not depend on the runs that this process made before

    def repays(self, forwards: int) -> bool:
        """Whether the layers are compiled for a task of so many forwards, each with its backward."""
        return self.how == "on" or (self.how == "auto" and forwards * len(self.layers) >= REPAID)

    @contextmanager
    def learning(self, forwards: int) -> Iterator[dict[str, float]]:
        """Inside, the layers are compiled where that repays; what it took stands in the result afterwards, nothing where it does not.

        Yields:
            Empty at first: `graphs` that were compiled, `breaks` in them, and `seconds` that this took.

        Raises:
            OptionError: torch finds no compiler for the layers' device.
        """
        told: dict[str, float] = {}
        if not self.repays(forwards):
            yield told
            return
        from torch import _dynamo as dynamo  # takes seconds
        from torch.fx.experimental import _config as shapes

        kernels, before = self._compiled(), _spent()
        # A hook that comes or goes must be seen; torch looks at those of the first forward only. And lengths that were equal by chance
        # when a layer was compiled need not stay so.
        with (
            dynamo.config.patch(skip_nnmodule_hook_guards=False, accumulated_recompile_limit=LIMIT),
            shapes.patch(use_duck_shape=False),
        ):
            for layer, kernel in zip(self.layers, kernels, strict=True):
                layer._compiled_call_impl = kernel
            try:
                yield told
            finally:
                for layer in self.layers:
                    layer._compiled_call_impl = None
        told.update({name: value - before[name] for name, value in _spent().items()})

    def _compiled(self) -> list[Any]:
        """What computes each layer; made once in a run, so that a task meets the compilations of those before."""
        if not self._kernels:
            _compiler(self.layers, self.how, self.backend)
            # Lengths of batches are no part of a compilation, and dropout draws what it draws uncompiled.
            options = {"fallback_random": True} if self.backend == "inductor" else None
            for layer in self.layers:
                layer.compile(backend=self.backend, dynamic=True, recompile_limit=LIMIT, options=options)
                self._kernels.append(layer._compiled_call_impl)
                layer._compiled_call_impl = None
        return self._kernels


def _compiler(layers: Iterable[nn.Module], how: str, backend: Any) -> None:
    """Whether the default backend can make kernels for the layers' device: by Triton, on a CPU by a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    if backend != "inductor":
        return
    device = next(weight.device.type for layer in layers for weight in layer.parameters())
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise OptionError(
            f"--compile {how}: torch finds no C++ compiler here; install g++, or take --compile off"
        ) from None
    if device != "cpu" and not has_triton():
        raise OptionError(
            f"--compile {how}: torch finds no Triton for {device} here; install triton, or take --compile off"
        )


def _spent() -> dict[str, float]:
    """What was compiled in this process so far."""
    from torch._dynamo.utils import calculate_time_spent, counters

    # A function that torch gives up as a whole is no break of a graph to it.
    given_up = counters["frames"]["total"] - counters["frames"]["ok"]
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()) + given_up,
        "seconds": calculate_time_spent().get("total_wall_time", 0.0),
    }
