"""A base larger than one device: each process holds a part of the frozen decoder layers, by FSDP2 (`fully_shard`).

A layer is put together where it is needed, forward and backward, and left again behind it. Everything else is whole on
each process, what learns too, so that optimiser, checkpoints and answers know nothing of it. Accelerate's own FSDP is of no help
here: it wraps a whole model with its optimiser, before anything is placed on it.

Putting a layer together takes all processes, but they do not do the same: one has a micro-batch less, another generates longer answers,
a hook looks at a share of the batches. So before each layer a process tells which one it needs, and all put together that of
whoever is furthest behind, until it is their own. A process that has come to where all meet (a sum, a gathering) needs none, and
helps until nobody does. Processes in step so take each layer together once.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class Shards:
    """Decoder layers of which each process holds a part; made on all processes at once.

    Args:
        layers: bottom first, frozen and whole on each process, on any device; a part of each weight is left, on `device`.
        device: of this process.
    """

    def __init__(self, layers: Iterable[nn.Module], device: torch.device) -> None:
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.layers = list(layers)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        # What is needed is told from memory to memory, so that no accelerator is waited for.
        self._group: Any = dist.new_group(backend="gloo")
        self._nothing = 2 * len(self.layers)
        for place, layer in enumerate(self.layers):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
            # Before FSDP2's own hooks, which then find the layer whole.
            layer.register_forward_pre_hook(partial(self._enter, place), prepend=True)
            layer.register_forward_hook(partial(self._leave, self._nothing - 1 - place), prepend=True)
        self._marks = [self._mark(layer) for layer in self.layers]

    def rest(self) -> None:
        """Help the other processes until none needs a layer."""
        self._need(self._nothing)

    def _enter(self, place: int, layer: nn.Module, given: Any) -> None:
        if self._apart(place):  # in a backward pass that computes the layer again it is whole already
            self._need(place)

    def _leave(self, turn: int, layer: nn.Module, given: Any, output: Any) -> None:
        """Let the backward pass ask for the layer when it comes to what the layer gave."""
        for one in output if isinstance(output, tuple | list) else (output,):
            if isinstance(one, Tensor) and one.requires_grad:
                one.register_hook(partial(self._back, turn))  # type: ignore[no-untyped-call]

    def _back(self, turn: int, gradient: Tensor) -> None:
        if self._apart(self._place(turn)):
            self._need(turn)

    def _need(self, turn: int) -> None:
        """Put layers together with the other processes until it was this process's turn.

        Args:
            turn: n for the forward of layer n, 2N - 1 - n for its backward, 2N for none: what is furthest behind is least.
        """
        import torch.distributed as dist

        while True:
            least = torch.tensor(turn)
            dist.all_reduce(least, dist.ReduceOp.MIN, self._group)
            if (now := int(least)) == self._nothing:
                return
            layer: Any = self.layers[self._place(now)]
            layer.reshard()  # a forward that ended within the layer has left it whole
            layer.unshard()
            if now == turn:
                return
            layer.reshard()

    def _place(self, turn: int) -> int:
        return min(turn, self._nothing - 1 - turn)

    def _apart(self, place: int) -> bool:
        module, name = self._marks[place]
        return divided(getattr(module, name))

    @staticmethod
    def _mark(layer: nn.Module) -> tuple[nn.Module, str]:
        """A weight by which a layer is seen to be whole or not; its module stays when others are put around it."""
        return next((one, name) for one in layer.modules() for name, _ in one.named_parameters(recurse=False))


_current: list[Shards] = []


def shard(layers: Iterable[nn.Module], device: torch.device) -> Shards:
    """Divide the layers of this process's run among the processes."""
    forget()
    _current.append(Shards(layers, device))
    return _current[0]


def forget() -> None:
    """Before another run of this process."""
    _current.clear()


def rest() -> None:
    """Where all processes meet: wait for the others, and help them to the layers that they still need."""
    for shards in _current:
        shards.rest()


def divided(tensor: Tensor) -> bool:
    """Whether this process holds a part of a weight only."""
    return hasattr(tensor, "full_tensor")


def whole(weight: Tensor) -> Tensor:
    """A frozen weight to be read outside a forward: itself, or put together where processes hold parts of it.

    All processes must ask for it, in the same order.
    """
    if not divided(weight):
        return weight
    rest()
    together: Tensor = weight.full_tensor()  # type: ignore[attr-defined]
    return together
