"""Where the traceback of a plugin's fault is kept: one file per run, beside all runs."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cl_zoo.contract.calls import own_traceback
from cl_zoo.errors import PluginFault, debugging

LOGS = "logs"
"""The folder, in that of all runs, of what libraries print and of tracebacks."""


@contextmanager
def logged(file: Path) -> Iterator[None]:
    """Write the traceback of a plugin's fault to a file, and say so in its sentence.

    It has the lines of the plugins alone, and with `--debug` all of them. What an earlier try left there goes.

    Raises:
        PluginFault: the one that was met, which says where its traceback is.
    """
    with suppress(OSError):
        file.unlink(missing_ok=True)
    try:
        yield
    except PluginFault as fault:
        if fault.__cause__ is not None:
            with suppress(OSError):  # the sentence matters more than the file
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text_of(fault), encoding="utf-8")
                fault.args = (f"{fault} (its traceback: {file})",)
        raise


def text_of(fault: PluginFault) -> str:
    """The sentence and the traceback of what the plugin raised."""
    cause = fault.__cause__
    if cause is None or debugging():
        return "".join(traceback.format_exception(fault))
    return f"{fault}\n\n{own_traceback(cause, fault.packages)}"
