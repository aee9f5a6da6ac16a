"""Reading images in threads while an accelerator computes: decoding and resizing are what a step would else wait for."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch

from cl_zoo.machine import cores

Key = TypeVar("Key")


class Ahead(Generic[Key]):
    """Prepares images in threads, those of the next batch while this one is computed on.

    What comes out does not depend on the number of threads, nor on whether it was begun.

    Args:
        prepare: what is done to one image, or an image and how it is wanted; it may raise, and does so in `take`. The object of a method is not kept alive: it may
            own this one.
        threads: how many; with none everything is done when it is taken.
    """

    def __init__(self, prepare: Callable[[Any], Any], threads: int) -> None:
        self._prepare = weakref.WeakMethod(prepare) if inspect.ismethod(prepare) else lambda: prepare
        self.threads = threads
        self._begun: dict[Key, Future[Any]] = {}

    def begin(self, images: Mapping[Key, Any]) -> None:
        """Start on the images that are wanted next; what was begun before and not taken is forgotten."""
        for key in self._begun.keys() - images.keys():
            self._begun[key].cancel()
        if self.threads:
            self._begun = {
                key: self._begun[key] if key in self._begun else self._pool.submit(self._one, image)
                for key, image in images.items()
            }

    def take(self, images: Mapping[Key, Any]) -> list[Any]:
        """What `prepare` makes of each image, in their order.

        Raises:
            DataError: an image cannot be read.
        """
        if not self.threads:
            return [self._one(image) for image in images.values()]
        ready = [
            self._begun.pop(key) if key in self._begun else self._pool.submit(self._one, image)
            for key, image in images.items()
        ]
        return [one.result() for one in ready]

    def _one(self, image: Any) -> Any:
        prepare = self._prepare()
        # Where its object is gone, nobody is left to take what was begun.
        return None if prepare is None else prepare(image)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, thread_name_prefix="images")


def reading_threads(device: torch.device) -> int:
    """Threads that may read beside a device: none beside the CPU, which they would take the cores from."""
    if device.type == "cpu":
        return 0
    return min(8, cores())
