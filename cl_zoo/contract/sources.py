"""What decides a run's result beside its settings: the code of the classes that take part in it."""

from __future__ import annotations

import inspect

from cl_zoo.tasks import source_hash


def source_of(kind: type) -> str:
    """A hash of the module that a class stands in; empty where it has no source."""
    file = inspect.getsourcefile(kind)
    return source_hash(file) if file else ""
