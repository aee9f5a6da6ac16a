"""What the records of a split say, kept compactly: a hundred thousand take little more memory than their text."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

from cl_zoo.data.records import Entry
from cl_zoo.tasks import OnDemand


class Packed(OnDemand[tuple[int, Entry]]):
    """Entries with the numbers of their records, kept as one block of JSON texts.

    Attributes:
        several: how many of them have turns before their question.
        records: how many they come from.
    """

    def __init__(self, numbered: Iterable[tuple[int, Entry]]) -> None:
        block, self._ends = bytearray(), array("Q", [0])
        self.several = self.records = 0
        self._told: dict[int, tuple[str, str]] = {}
        last: int | None = None
        for number, one in numbered:
            values = [
                number,
                one.id,
                one.image,
                one.prompt,
                one.answer,
                one.references,
                one.truth,
                one.record,
                *((one.before, one.learns_before, one.more_images) if one.before or one.more_images else ()),
            ]
            self.several += bool(one.before)
            self.records += number != last
            last = number
            block += json.dumps(values, separators=(",", ":")).encode()
            self._ends.append(len(block))
        self._block = bytes(block)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @property
    def digest(self) -> bytes:
        """Of all that the entries say."""
        return hashlib.sha256(self._block).digest()

    def digest_of(self, count: int) -> str:
        """Of all that the first entries say."""
        return hashlib.sha256(memoryview(self._block)[: self._ends[count]]).hexdigest()

    def digests_of(self, count: int) -> tuple[str, str]:
        """Of what the first entries ask, and of what answers to them are scored against: answer, references, truth."""
        if count in self._told:  # every job of a grid asks
            return self._told[count]
        asked, wanted = hashlib.sha256(), hashlib.sha256()
        for start, end in pairwise(self._ends[: count + 1]):
            _, *values = json.loads(self._block[start:end])
            wanted.update(json.dumps(values[3:6]).encode() + b"\n")
            record, *turns = values[6:]
            del turns[1:2]  # which answers are learnt is nothing that is asked
            asked.update(json.dumps([values[:3], [record, *turns]]).encode() + b"\n")
        self._told[count] = asked.hexdigest(), wanted.hexdigest()
        return self._told[count]

    def make(self, place: int) -> tuple[int, Entry]:
        number, name, image, prompt, answer, references, truth, record, *turns = json.loads(
            self._block[self._ends[place] : self._ends[place + 1]]
        )
        one = Entry(name, image, prompt, answer, tuple(references), truth, record=record)
        if turns:
            before, learns, more = turns
            before = tuple((asked, said) for asked, said in before)
            one = replace(one, before=before, learns_before=learns, more_images=tuple(more))
        return number, one
