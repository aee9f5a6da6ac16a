"""Pictures inside a table of Hugging Face `datasets`, as they are stored: one or a list in a cell."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from cl_zoo.data.faults import REPAIR, Undecoded
from cl_zoo.data.roots import Roots
from cl_zoo.errors import first_line
from cl_zoo.images.kinds import as_rgb
from cl_zoo.tasks import ImageSource


def stored_in(cell: Any) -> list[Any]:
    """The pictures of a cell, {"bytes": …, "path": …} each."""
    return [one for one in (cell if isinstance(cell, list) else [cell]) if one is not None]


def how_many(column: Any) -> list[int]:
    """How many pictures each cell of an arrow column holds, none of them read."""
    if hasattr(column.type, "value_type"):  # a list
        return [count or 0 for chunk in column.chunks for count in chunk.value_lengths().to_pylist()]
    return [int(valid) for valid in column.is_valid().to_pylist()]


def picture(value: Any, roots: Roots, faithful: bool, decoded: bool) -> ImageSource:
    """A picture as RGB as files are opened: `datasets` would always turn it by its EXIF tag.

    Args:
        value: {"bytes": …, "path": …}.
        roots: where it lies if only its path is stored.
        faithful: how it is read.
        decoded: without it only the header is read.

    Raises:
        DataError: it is damaged, or its path leaves the data folder.
    """
    if value["bytes"] is None:
        return roots.path(value["path"] or "")
    try:
        opened = Image.open(io.BytesIO(value["bytes"]))
        return as_rgb(opened, faithful=faithful) if decoded else opened
    except Exception as error:  # a damaged picture raises nearly anything, SyntaxError included
        raise Undecoded(f"its image cannot be decoded: {first_line(error)}; {REPAIR}") from None
