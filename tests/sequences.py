"""What every sequence whose items are made on demand owes to those who use it as a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import strategies as st

PLACES = st.integers(-12, 12)
PARTS = st.slices(10)


def reads_as(
    sequence: Sequence[Any],
    wanted: list[Any],
    index: int,
    part: slice,
    seen: Callable[[Any], Any] = lambda item: item,
) -> None:
    """Length, one place and one slice are those of the list, and so is the same place of the slice.

    Args:
        seen: what of an item is compared.
    """
    for found, expected in ((sequence, wanted), (sequence[part], wanted[part])):
        assert len(found) == len(expected)
        assert [seen(item) for item in found] == expected
        if -len(expected) <= index < len(expected):
            assert seen(found[index]) == expected[index]
        else:
            with pytest.raises(IndexError, match=f"no item {index}; the sequence has {len(expected)}"):
                found[index]
