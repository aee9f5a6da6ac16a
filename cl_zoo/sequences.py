"""Sequences whose items are made when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

Item = TypeVar("Item")


class OnDemand(Sequence[Item]):
    """A sequence whose items are made when they are asked for, each time anew; a slice of it makes none of them.

    A subclass says how many items there are (`__len__`) and makes one (`make`).
    """

    @abstractmethod
    def make(self, place: int) -> Item:
        """The item at a place, from 0 to the length − 1."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        places = range(len(self))
        if isinstance(index, slice):
            return Part(self, places[index])
        try:
            place = places[index]
        except IndexError:
            raise IndexError(f"there is no item {index}; the sequence has {len(self)}") from None
        return self.make(place)

    def __iter__(self) -> Iterator[Item]:
        # Not until the first IndexError, as `Sequence` does it: that of a faulty `make` would end it in silence.
        return map(self.make, range(len(self)))


class Part(OnDemand[Item]):
    """Some places of a sequence, which is read when an item is asked for.

    Args:
        whole: where the items come from.
        places: which of them, in this order.
    """

    def __init__(self, whole: Sequence[Item], places: Sequence[int]) -> None:
        self.whole, self.places = whole, places

    def __len__(self) -> int:
        return len(self.places)

    def make(self, place: int) -> Item:
        return self.whole[self.places[place]]
