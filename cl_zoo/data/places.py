"""Where a sample of a split stands, and what identifies a split: what a check of many samples says and remembers."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from cl_zoo.data.files import read_records
from cl_zoo.data.shards import PACKED
from cl_zoo.data.splits import Split
from cl_zoo.errors import shown


def where(split: Split, index: int) -> str:
    """File, record from 1 and the record's own id, as a sentence about a sample begins."""
    number, one = split.entries[index]
    if split.plan.form not in PACKED:
        name = _ids(split.plan.file)[number - 1]
    else:  # those without an id are called by their number or place
        name = one.record or one.id
        name = "" if name in (str(number), str(index)) else name
    return f"{split.plan.place}, record {number}" + (f" (id {shown(name)})" if name else "")


def digest(split: Split) -> str:
    """Identifies what the records of a split say, where they lie, and how their pictures are read."""
    plan = split.plan
    # of pictures inside, by `datasets`
    stored = split.shards.fingerprint if split.shards else getattr(split.table, "_fingerprint", "")
    about = repr((plan.place, plan.roots.folders, plan.roots.bases, plan.faithful, stored))
    return hashlib.sha256(about.encode() + split.entries.digest).hexdigest()


@lru_cache(maxsize=2)
def _ids(file: Path) -> list[str]:
    """What the records of a file call themselves; samples have names of their own where those may repeat."""
    return [str(row.get("question_id", row.get("id", ""))) for row in read_records(file)]
