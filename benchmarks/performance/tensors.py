"""What tensors a computation holds at once, in bytes: the same on every machine, and for tensors without values too."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Held(TorchDispatchMode):
    """Follows the memory of every tensor that is made inside, until nobody has it any more.

    What a kernel needs while it runs is not seen, nor is an allocator's rounding.

    Attributes:
        now: bytes of what was made inside and is still there.
        peak: the most that `now` has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        before = {_memory(one)._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        for one in tree_leaves(found):
            if isinstance(one, Tensor) and _memory(one)._cdata not in before:  # neither a view nor in place
                self._follow(_memory(one))
        return found

    def _follow(self, memory: torch.UntypedStorage) -> None:
        key, size = memory._cdata, memory.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(memory, self._left, key, size)

    def _left(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class Saved:
    """What autograd keeps for a backward pass, once however often it is kept.

    Args:
        but: tensors whose memory is there anyway, such as weights.

    Attributes:
        size: bytes of all of it.
    """

    def __init__(self, but: Iterator[Tensor]) -> None:
        self.size, self._known = 0, {_memory(one)._cdata for one in but}
        self._kept: list[Any] = []

    @contextmanager
    def counted(self) -> Iterator[None]:
        """What is kept inside counts."""
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
            yield

    def _keep(self, tensor: Tensor) -> Tensor:
        memory = _memory(tensor)
        if memory._cdata not in self._known:
            self._known.add(memory._cdata)
            self._kept.append(memory)  # a freed one's place could be another's
            self.size += memory.nbytes()
        return tensor


def _memory(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
