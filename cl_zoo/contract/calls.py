"""Calls of a plugin's code: what goes wrong in one ends in one sentence that says who, when, where and what the contract asks.

One guard stands around every hook, around `__init__`, `parts` and the state, and around the modules that hooks return:

    mine, task colour, step 3 (mine.py, line 12, in pull): loss raised ZeroDivisionError: division by zero; return a …

What the plugin prints meanwhile goes to standard error, so that results can be piped, and `os._exit` ends no process. An error of `cl_zoo` that the plugin
raises itself keeps its words, an interrupt stays one, and so does a lack of memory or disk, which is nobody's fault.
"""

from __future__ import annotations

import errno
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from cl_zoo.errors import (
    ClZooError,
    PluginError,
    PluginFault,
    Staying,
    cut,
    exit_called,
    first_line,
    printable,
)

if TYPE_CHECKING:
    from cl_zoo.tasks import Sample

MODULE = "let its prepare(batch), forward and generate take what the backbone's own model takes, as cl_zoo.nn.Around does"
MEASUREMENTS = "return a mapping from names to numbers, or nothing"

ASKS = {
    "__init__": "repair its __init__",
    "build_model": "return an nn.Module with forward and generate, as cl_zoo.nn.Around(bank) is one",
    "before_task": "let it get the model ready for the task, and return nothing",
    "rehearse": "return a list of cl_zoo.Sample, or nothing",
    "loss": "return a mapping from names to tensors, or nothing",
    "before_step": "let it change the gradients in place, and return nothing",
    "after_step": "let it look at the step, and return nothing",
    "after_task": MEASUREMENTS,
    "build_inference_model": "return the module that answers, the model itself where it does",
    "after_answers": MEASUREMENTS,
    "parts": "return a mapping from a part to a list of names of model.named_parameters()",
    "state_dict": "return a mapping of JSON values and tensors, which load_state_dict then gets",
    "load_state_dict": "let it take what state_dict gave; where the checkpoint was damaged or another version wrote it, delete the run's folder and run again",
}
"""What the contract asks of each hook, as the end of a sentence."""

REMEDIES = {
    r"TORCHDYNAMO_VERBOSE": "torch cannot compile it; take --compile off",
    r"before Module.__init__\(\) call": "call super().__init__() first in the __init__ of a module",
    r"(forward|generate)\(\) (got|missing|takes)": "let it take **inputs and pass them on, as cl_zoo.nn.Around does",
    r"prepare\(\) (missing|takes)": "write def prepare(self, batch)",
    r"NVIDIA|CUDA|on the same device|meta tensor": "make tensors where the model's are, with device=weight.device",
    r"the bank has no expert": "bank.add(name) makes one",
    r"does not require grad": "something was detached, or made under no_grad, on the way to it",
    r"modified by an inplace operation": "change weights in before_task or after_task, not between forward and backward",
    r"a leaf Variable that requires grad|in-place operation": "change weights inside torch.no_grad()",
    r"backward through the graph a second time": "detach what is kept from one step for the next",
    r"Only Tensors created explicitly": "keep tensors as tensor.detach().clone()",
}
"""What a first method meets in torch, and what to do then; searched in the order in which they stand."""


class Call:
    """The guard around one call of plugins' code; it can be entered again, but not inside itself.

    Args:
        hook: what is called, a key of `ASKS`.
        plugins: whom it may be, by name in the stack.
        when: gives task and step where there are any.
        subject: what runs, where that is not the hook itself but something that it returned.
        asks: what the contract asks of that.
        catches: whether an error that the call raises is the plugin's; else only `PluginFault`s are told who, when and where.
    """

    def __init__(
        self,
        hook: str,
        plugins: Mapping[str, Any],
        when: Callable[[], str] = str,
        *,
        subject: str = "",
        asks: str = "",
        catches: bool = True,
    ) -> None:
        self._hook, self._plugins, self._when, self._catches = hook, plugins, when, catches
        self._subject, self._asks = subject or hook, asks or ASKS[hook]
        self._stdout: TextIO = sys.stdout
        self._staying = Staying()

    def __enter__(self) -> Call:
        self._stdout = sys.stdout
        if self._catches:
            sys.stdout = sys.stderr
            self._staying.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout = self._stdout
        if self._catches:
            self._staying.__exit__()
        if isinstance(error, PluginFault):
            if not error.where:
                raise self._told(error, error.what, error.asks) from error.__cause__
        elif error is not None and self._catches and self._plugins and is_fault(error):
            raise self._told(error, f"{self._subject} {_did(error)}", self._remedy(error)) from error

    def _told(self, error: BaseException, what: str, asks: str) -> PluginFault:
        packages = {package(plugin): name for name, plugin in self._plugins.items()}
        place, found = _place(error, packages)
        owner = packages.get(found) or " and ".join(self._plugins)
        place = place or (self._defined() if len(self._plugins) == 1 else "")
        where = ", ".join(part for part in (owner, self._when()) if part) + (f" ({place})" if place else "")
        return PluginFault(what, asks, printable(where), packages)

    def _remedy(self, error: BaseException) -> str:
        if isinstance(error, SystemExit):
            return "let it return, or raise an exception that says what is wrong"
        if self._hook == "load_state_dict":
            return self._asks  # where a checkpoint is damaged no other remedy helps
        said = str(error)
        return next((remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, said)), self._asks)

    def _defined(self) -> str:
        """Where the hook of the one plugin begins; empty where that cannot be told."""
        (plugin,) = self._plugins.values()
        function = getattr(type(plugin), self._hook, None)
        code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
        return f"{Path(code.co_filename).name}, line {code.co_firstlineno}" if code else ""


def not_here(samples: Sequence[Sample], epochs: int) -> None:
    """The `learn` of `after_task` where nothing is trained, as for a probe that looks at a model by itself."""
    raise PluginError("after_task was asked to learn where nothing is trained; run the method")


def is_fault(error: BaseException) -> bool:
    """Whether an error out of a plugin's code is the plugin's own: no interrupt, no sentence of ours, no lack of memory or disk."""
    scarce = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    return isinstance(error, Exception | SystemExit) and not (scarce or full or isinstance(error, ClZooError))


def package(plugin: Any) -> str:
    """Name of the package that a plugin's class, or an instance's, stands in; the whole module's inside `cl_zoo` itself."""
    name = str((plugin if inspect.isclass(plugin) else type(plugin)).__module__)
    first = name.partition(".")[0]
    return name if first == "cl_zoo" else first


def place(error: BaseException, packages: Iterable[str]) -> str:
    """File, line and function where code of some packages raised an error, or asked for what did; empty where it is elsewhere."""
    return _place(error, dict.fromkeys(packages, ""))[0]


def own_traceback(error: BaseException, packages: Iterable[str]) -> str:
    """An error's traceback as text with the lines of some packages alone, those of what it came from too."""
    known = frozenset(packages)
    told = traceback.TracebackException.from_exception(error)
    link: traceback.TracebackException | None = told
    at: BaseException | None = error
    while link is not None and at is not None:
        frames = [frame for frame, _ in traceback.walk_tb(at.__traceback__)]
        kept = [one for one, frame in zip(link.stack, frames, strict=False) if _of(frame, known)]
        link.stack = traceback.StackSummary.from_list(kept)
        link, at = (
            (link.__cause__, at.__cause__) if at.__cause__ is not None else (link.__context__, at.__context__)
        )
    return "".join(told.format())


def _did(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return exit_called(error)
    said = cut(first_line(error).rstrip(".")) if str(error).strip() else ""
    return f"raised {type(error).__name__}" + (f": {said}" if said else "")


def _place(error: BaseException, packages: Mapping[str, str]) -> tuple[str, str]:
    """The place in the deepest line of one of the packages, and which one that is."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if name := _of(frame, packages.keys()):
            code = frame.f_code
            return f"{Path(code.co_filename).name}, line {line}, in {code.co_name}", name
    return "", ""


def _of(frame: Any, packages: Iterable[str]) -> str:
    """The package that a frame's code stands in; empty where it is another."""
    name = str(frame.f_globals.get("__name__", ""))
    return next((one for one in packages if name == one or name.startswith(f"{one}.")), "")
