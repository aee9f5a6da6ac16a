"""The errors a user can cause, one class per thing a caller may want to catch.

ClZooError
├── PluginError      a method, benchmark or backbone cannot be found, loaded or combined
│   └── PluginFault  a plugin's code did or returned what the contract does not allow
├── OptionError      an option or a recipe key is unknown or out of range
├── DataError        a task, an image or an answer file is not usable
├── BackboneError    a checkpoint is missing, incomplete or of another class
└── RunError         a run folder is corrupt, or belongs to another configuration
    └── RunHeld      another process is working on it

The message is one sentence with the value, the place and the remedy; the command line prints it and exits with 2.
"""

from __future__ import annotations

import difflib
import errno
import os
import stat
import threading
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

UNPRINTED = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories that a terminal takes as orders: controls, formats (which turn text around), halves, line ends."""
LONGEST = 300
"""Letters of a name, or of what a plugin's exception says, that a sentence shows."""


class ClZooError(Exception):
    """Something the user can put right."""


class PluginError(ClZooError, LookupError):
    """A plugin cannot be found, loaded or combined with the others of its stack."""


class PluginFault(PluginError):
    """What a plugin's code did or gave back against the contract, while it was called.

    Whoever sees it says what went wrong; the guard around the call (`cl_zoo.contract.calls`) adds who, when and where.

    Attributes:
        what, asks: the halves of the sentence: what went wrong, what the contract asks.
        where: its beginning: plugin, task, step, file and line; empty until the guard has said so.
        packages: names of the packages that the plugins stand in, whose lines of a traceback are theirs.
    """

    def __init__(self, what: str, asks: str, where: str = "", packages: Iterable[str] = ()) -> None:
        super().__init__(f"{where}: {what}; {asks}" if where else f"{what}; {asks}")
        self.what, self.asks, self.where, self.packages = what, asks, where, frozenset(packages)


class OptionError(ClZooError, ValueError):
    """An option or a recipe key is unknown, or its value is out of range."""


class DataError(ClZooError, ValueError):
    """A task, a sample or an answer file cannot be used."""


class BackboneError(ClZooError, ValueError):
    """A backbone or a feature encoder cannot be loaded."""


class RunError(ClZooError, RuntimeError):
    """A run folder cannot be used: corrupt, in use, or of another configuration."""


class RunHeld(RunError):
    """Another process is working on a run."""


class Exit(SystemExit):
    """What `os._exit` raises while the code of a plugin runs, see `Staying`."""


class Staying:
    """Inside, `os._exit` raises `Exit` in the thread that entered, so that the command can say who has called it.

    A process that was forked inside, and every other thread, ends as it always does. It can be entered again, but not inside itself.
    """

    def __enter__(self) -> None:
        self._here, self._exit = (os.getpid(), threading.get_ident()), os._exit
        os._exit = self._leave

    def __exit__(self, *_: object) -> None:
        os._exit = self._exit

    def _leave(self, status: int) -> NoReturn:
        if (os.getpid(), threading.get_ident()) == self._here:
            raise Exit(status)
        self._exit(status)


def exit_called(error: SystemExit) -> str:
    """`called sys.exit(0)`, `called os._exit(9)`."""
    name = "os._exit" if isinstance(error, Exit) else "sys.exit"
    return f"called {name}({'' if error.code is None else repr(error.code)})"


DEBUG = "CL_ZOO_DEBUG"
"""The variable by which `--debug` reaches the worker processes of a comparison."""


def debugging() -> bool:
    """Whether tracebacks are told whole."""
    return bool(os.environ.get(DEBUG))


@contextmanager
def full_disk_named(place: Any) -> Iterator[None]:
    """Say plainly that a disk is full; each library that writes has an exception of its own for it.

    Raises:
        RunError: there is no space left.
    """
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) != errno.ENOSPC and f"(os error {errno.ENOSPC})" not in str(error):
            raise
        raise RunError(
            f"{place}: no space left on the device; free some and run the same command again"
        ) from error


def first_line(error: BaseException) -> str:
    """An error's text on one line, fit for a terminal: what the operating system says of a file without its number; its class where it says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = str(error).strip().splitlines()
    return printable(lines[0]) if lines else type(error).__name__


def printable(text: str) -> str:
    """A text without a character that moves a terminal's cursor, paints or turns what follows; such a one is written as `\\x1b`."""
    if text.isprintable():
        return text
    kept = (
        one if one in "\n\t" or unicodedata.category(one) not in UNPRINTED else ascii(one)[1:-1]
        for one in text
    )
    return "".join(kept)


def shown(text: str) -> str:
    """A text in quotes as a sentence holds it: a very long one without its middle."""
    return repr(cut(text))


def cut(text: object) -> str:
    """What stands for a path or a text in a sentence: a very long one without its middle."""
    whole = str(text)
    return whole if len(whole) <= LONGEST else f"{whole[: LONGEST // 2]}…{whole[-LONGEST // 3 :]}"


def no_file(path: str | Path) -> str:
    """Why nothing can be read from a path that is there, in words; empty where it is a file. Opening a pipe would wait for ever.

    Raises:
        OSError: there is nothing, or it may not be looked at.
    """
    kind = os.stat(path).st_mode
    if stat.S_ISREG(kind):
        return ""
    return "is a folder" if stat.S_ISDIR(kind) else "is no file but a pipe, a socket or a device"


def nearest(value: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the nearest known one, then all of them.

    Returns:
        `"; did you mean 'ewc'? Known: ewc, hide"`, without the question where nothing is near.
    """
    names = sorted(known)
    close = difflib.get_close_matches(value, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} known: {', '.join(names) or 'none'}"
