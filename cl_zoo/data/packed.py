"""What the records of a split say, kept compactly: a hundred thousand take little more memory than their text."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

from cl_zoo.data.records import Entry


class Packed(Sequence[tuple[int, Entry]]):
    """Entries with the numbers of their records, kept as one block of JSON texts."""

    def __init__(self, numbered: Iterable[tuple[int, Entry]]) -> None:
        block, self._ends = bytearray(), array("Q", [0])
        for number, one in numbered:
            values = [number, one.id, one.image, one.prompt, one.answer, one.references, one.truth]
            block += json.dumps(values, separators=(",", ":")).encode()
            self._ends.append(len(block))
        self._block = bytes(block)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> tuple[int, Entry]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[int, Entry]]: ...
    def __getitem__(self, index: int | slice) -> tuple[int, Entry] | Sequence[tuple[int, Entry]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        number, name, image, prompt, answer, references, truth = json.loads(
            self._block[self._ends[place] : self._ends[place + 1]]
        )
        return number, Entry(name, image, prompt, answer, tuple(references), truth)
