"""Batches of pre-training, each a function of its step, drawn by worker processes and handed to a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Steps(Dataset[Any]):
    """The batches of the steps from `first` up to `last`.

    Args:
        draw: makes the batch of a step.
        first, last: steps; the last one is not among them.
    """

    def __init__(self, draw: Callable[[int], Any], first: int, last: int) -> None:
        self.draw, self.first, self.last = draw, first, last

    def __len__(self) -> int:
        return max(self.last - self.first, 0)

    def __getitem__(self, place: int) -> Any:
        return self.draw(self.first + place)


@dataclass(frozen=True)
class Place:
    """Where training runs, and how many processes draw its batches."""

    device: str
    workers: int = 0

    def each(self, steps: Steps) -> Iterator[tuple[int, Any]]:
        """Step and batch, on the device."""
        if not len(steps):
            return
        ahead = 4 if self.workers else None
        loader = DataLoader(steps, batch_size=None, num_workers=self.workers, prefetch_factor=ahead)
        for place, batch in enumerate(loader):
            yield steps.first + place, self.hold(batch)

    def hold(self, batch: Any) -> Any:
        """The batch with its tensors on the device."""
        if isinstance(batch, Tensor):
            return batch.to(self.device, non_blocking=True)
        if isinstance(batch, dict):
            return {name: self.hold(part) for name, part in batch.items()}
        if is_dataclass(batch) and not isinstance(batch, type):
            held = {f.name: getattr(batch, f.name) for f in fields(batch)}
            return replace(batch, **{name: self.hold(part) for name, part in held.items()})
        if isinstance(batch, (tuple, list)) and any(isinstance(part, (Tensor, dict)) for part in batch):
            return type(batch)(self.hold(part) for part in batch)
        return batch


CPU = Place("cpu")
