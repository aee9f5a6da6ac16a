"""Where commands write: results to standard output, everything else to standard error, files where they are asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any


@contextmanager
def working() -> Iterator[None]:
    """Ctrl-C ends a command with a sentence; what is finished stays.

    Whatever is printed meanwhile, by Python or past it, goes to standard error: standard output is for results.
    """
    sys.stdout.flush()
    results = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        print("interrupted; the same command goes on after the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        os.dup2(results, 1)
        os.close(results)


def write_file(name: str | None, make: Callable[[], str]) -> None:
    """Write a file where one is asked for, and say so on standard error.

    Raises:
        OptionError: its folder is not there.
    """
    from pathlib import Path

    from cl_zoo.engine.files import write_text
    from cl_zoo.errors import OptionError

    if name is None:
        return
    file = Path(name)
    if not file.parent.is_dir():
        raise OptionError(f"{file}: there is no folder {file.parent}; make it first")
    write_text(file, make())
    print(f"wrote {file}", file=sys.stderr)


def check_writable(option: str, path: Any) -> None:
    """Find out before hours of work that a file could not be written.

    Raises:
        OptionError: it could not.
    """
    from cl_zoo.errors import OptionError

    what = ""
    if os.path.isdir(path):
        what = "is a folder"
    elif not os.path.isdir(path.parent):
        what = f"there is no folder {path.parent}"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        what = f"nothing may be written in {path.parent}"
    elif os.path.exists(path) and not os.access(path, os.W_OK):
        what = "may not be written"
    if what:
        raise OptionError(f"{option} {path}: {what}; pass the path of a file to write")
