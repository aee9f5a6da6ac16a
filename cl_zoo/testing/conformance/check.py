"""Check that a method keeps the promises that comparisons rest on.

    >>> from cl_zoo.testing import check_method
    >>> check_method("hide", variant="released")

or, promise by promise, in pytest:

    @pytest.mark.parametrize("promise", cl_zoo.testing.PROMISES)
    def test_mine(promise):
        cl_zoo.testing.check_promise("mine", promise)

A method is an installed name, `module:Class`, `file.py:Class` or a stack; a regulariser and a probe run on the default
model, one expert on all linears. All promises of one method share their runs.
"""

from __future__ import annotations

import json
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from cl_zoo.errors import OptionError, PluginFault, debugging, nearest, printable
from cl_zoo.names import parse_stack, stack
from cl_zoo.testing.conformance import promises
from cl_zoo.testing.conformance.moments import ConformanceError
from cl_zoo.testing.conformance.promises import Promise
from cl_zoo.testing.conformance.subjects import Subject, Undecided
from cl_zoo.testing.conformance.two_processes import processes


def check_method(name: str, *, slow: bool = False, **options: Any) -> None:
    """Check all promises of a method.

    Args:
        name: an installed name, `module:Class`, `file.py:Class`, or a stack such as `moelora+ewc[strength=3]`.
        slow: with the promises that start processes of their own.
        options: of the first plugin of the stack.

    Raises:
        ConformanceError: the first broken promise, with the names of those that cannot be told because of it; each further
            one is a note of it.
        ClZooError: there is no such method or option.
    """
    broken = _broken(_verdicts(_subject(name, options), slow=slow))
    if broken:
        for further in broken[1:]:
            broken[0].add_note(str(further))
        raise broken[0]


def check_promise(name: str, promise: str, **options: Any) -> None:
    """Check one promise; the runs it needs are kept for the next one of the same method.

    Raises:
        ConformanceError: it is broken.
        Undecided: it does not apply to the method, or another broken promise hides it; pytest takes it as skipped.
        ClZooError: there is no such method, option or promise.
    """
    verdict = _subject(name, options).verdict(_promise(promise))
    if verdict is not None:
        raise verdict


Verdict = ConformanceError | Undecided | None
"""What came of a promise: broken, undecided, or kept."""


def verdicts(
    name: str, options: Mapping[str, Mapping[str, Any]], *, slow: bool = False
) -> Iterator[tuple[str, Verdict]]:
    """Every promise with its verdict, when it has been checked."""
    return _verdicts(Subject(stack(name, (), (), options)), slow=slow)


def check_and_print(name: str, options: Mapping[str, Mapping[str, Any]], *, slow: bool = False) -> bool:
    """Print a line for each promise that is kept or does not apply, then each that is broken; returns whether none is."""
    warnings.simplefilter("ignore", FutureWarning)  # a library's own words to whoever calls it
    found: list[tuple[str, Verdict]] = []
    for promise, verdict in verdicts(name, options, slow=slow):
        found.append((promise, verdict))
        if verdict is None:
            print(f"ok      {promise}: {_says(promise)}", flush=True)
        elif isinstance(verdict, Undecided) and verdict.cause is None:
            print(f"-       {promise}: {verdict}", flush=True)
    broken = _broken(found)
    for error in broken:
        print(f"BROKEN  {error.promise}: {_says(error.promise)}\n        {printable(error.sentence)}")
        print(f"        how to keep it: {error.page}")
        if error.hides:
            print(f"        cannot be told because of it: {', '.join(error.hides)}")
        if debugging() and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
    return not broken


def _verdicts(subject: Subject, *, slow: bool) -> Iterator[tuple[str, Verdict]]:
    for promise in (*PROMISES, *(SLOW if slow else ())):
        yield promise, subject.verdict(_promise(promise))


def _broken(found: Iterable[tuple[str, Verdict]]) -> list[ConformanceError]:
    """The broken promises, each once, with the names of those that it hides: what one fault of the method breaks is told once."""
    broken: dict[str, ConformanceError] = {}
    for promise, verdict in found:
        cause = verdict.cause if isinstance(verdict, Undecided) else verdict
        if cause is not None:
            told = ConformanceError(cause.promise, cause.sentence, cause.__cause__)
            first = broken.setdefault(_fault(cause), told)
            if promise != first.promise:
                first.hides.append(promise)
    return list(broken.values())


def _fault(broken: ConformanceError) -> str:
    """What the method itself raised; the name of the promise where it raised nothing."""
    raised = broken.__cause__
    if raised is None or isinstance(raised, ConformanceError):
        return broken.promise
    return raised.what if isinstance(raised, PluginFault) else f"{type(raised).__name__}: {raised}"


def _says(promise: str) -> str:
    """The promise itself."""
    return _promise(promise).__doc__ or ""


def _promise(name: str) -> Promise:
    if name not in ALL:
        raise OptionError(f"there is no promise {name!r}{nearest(name, ALL)}")
    return ALL[name]


def _subject(name: str, options: Mapping[str, Any]) -> Subject:
    return _kept(name, json.dumps(options, sort_keys=True))


@lru_cache(maxsize=4)
def _kept(name: str, options: str) -> Subject:
    first, values = parse_stack(name)[0].name, json.loads(options)
    return Subject(stack(name, (), (), {first: values} if values else {}))


PROMISES = tuple(promises.PROMISES)
"""Names of the quick promises, in the order in which they are checked."""

SLOW = (processes.__name__,)
"""Names of those that start processes of their own."""

ALL: dict[str, Promise] = {**promises.PROMISES, processes.__name__: processes}
