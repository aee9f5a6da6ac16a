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

import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cl_zoo.errors import OptionError, nearest
from cl_zoo.names import Choice, parse_stack, stack
from cl_zoo.testing.conformance import promises
from cl_zoo.testing.conformance.moments import ConformanceError, Moment, far, flat, told
from cl_zoo.testing.conformance.promises import Promise, needs, seeds, sequential
from cl_zoo.testing.conformance.subjects import Subject, Undecided
from cl_zoo.testing.conformance.trials import tiny_files, trial


def check_method(name: str, *, slow: bool = False, **options: Any) -> None:
    """Check all promises of a method, stopping at the first that is broken.

    Args:
        name: an installed name, `module:Class`, `file.py:Class`, or a stack such as `moelora+ewc[strength=3]`.
        slow: with the promises that start processes of their own.
        options: of the first plugin of the stack.

    Raises:
        ConformanceError: a promise is broken.
        ClZooError: there is no such method or option.
    """
    subject = _subject(name, options)
    for promise in (*PROMISES, *(SLOW if slow else ())):
        _settle(subject, promise)


def check_promise(name: str, promise: str, **options: Any) -> None:
    """Check one promise; the runs it needs are kept for the next one of the same method.

    Raises:
        ConformanceError: it is broken.
        Undecided: it does not apply to the method, or another broken promise hides it; pytest takes it as skipped.
        ClZooError: there is no such method, option or promise.
    """
    broken = _settle(_subject(name, options), promise)
    if broken is not None:
        raise broken


def verdicts(
    name: str, options: Mapping[str, Mapping[str, Any]], *, slow: bool = False
) -> Iterator[tuple[str, str, ConformanceError | Undecided | None]]:
    """Every promise as (name, what it says, verdict), each when it has been checked."""
    subject = Subject(stack(name, (), (), options))
    for promise in (*PROMISES, *(SLOW if slow else ())):
        yield promise, _promise(promise).__doc__ or "", subject.verdict(_promise(promise))


def check_and_print(name: str, options: Mapping[str, Mapping[str, Any]], *, slow: bool = False) -> bool:
    """Print a line per promise; returns whether none is broken."""
    warnings.simplefilter("ignore", FutureWarning)  # a library's own words to whoever calls it
    sound = True
    for promise, says, verdict in verdicts(name, options, slow=slow):
        if isinstance(verdict, ConformanceError):
            sound = False
            print(f"BROKEN  {promise}: {says}\n        {verdict.sentence}", flush=True)
        elif verdict is not None:
            print(f"-       {promise}: {verdict}", flush=True)
        else:
            print(f"ok      {promise}: {says}", flush=True)
    return sound


def _settle(subject: Subject, name: str) -> Undecided | None:
    verdict = subject.verdict(_promise(name))
    if isinstance(verdict, ConformanceError):
        raise verdict
    return verdict


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


# --- two processes --------------------------------------------------------------------------------------------------


def processes(subject: Subject) -> None:
    """two processes give the gradients and the statistics of one (dropout 0, relative 1e-4)"""
    sequential(subject, "none")
    needs(subject, seeds)
    run, root = subject.silent, subject.folder("processes")
    root.mkdir()
    (root / "choices.json").write_text(json.dumps([asdict(choice) for choice in subject.choices]))
    write_gradients(run.record.gradients, root / "gradients.safetensors")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    worker = ["--no-python", sys.executable, "-c", f"from {__name__} import one_of_two; one_of_two()"]
    done = subprocess.run(
        [*command, *worker, str(root), str(tiny_files())], capture_output=True, text=True, check=False
    )
    # The process that fails first says why; the other one then fails of being left alone.
    found = sorted(root.glob("broken-*"), key=lambda file: file.stat().st_mtime_ns)
    if found:
        raise ConformanceError("processes", f"{subject.label}, two processes: {found[0].read_text()}")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line]
        why = lines[0].strip() if lines else f"exit code {done.returncode}"
        raise ConformanceError("processes", f"{subject.label}, two processes: {why}")
    measured = json.loads((root / "measured.json").read_text())
    if off := far(flat(measured, "measured"), flat(run.measured, "measured")):
        raise ConformanceError("processes", f"{subject.label}, two processes: {off}")
    for index, moment in enumerate(run.record.moments):
        other = load_file(root / f"moment-{index}.safetensors")
        if off := far(other, tensors_of(moment)):
            raise ConformanceError(
                "processes", f"{subject.label}, two processes, after {index + 1} tasks: {off}"
            )


def one_of_two() -> None:
    """What each of the two processes does: go along with the single process and compare every step.

    Raises:
        ConformanceError: a gradient is off, or the processes differ after a task.
    """
    root, files = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    choices = [Choice(**choice) for choice in json.loads((root / "choices.json").read_text())]
    gradients = read_gradients(root / "gradients.safetensors")
    try:
        made = trial(choices, root / "run", follow=gradients, silent=True, files=files)
        if made.record.apart:
            raise ConformanceError("processes", made.record.apart)
        moments = [tensors_of(moment) for moment in made.record.moments]
        for index, moment in enumerate(moments):
            prints = made.world.gather([fingerprint(moment)])
            if len(set(prints)) > 1:
                raise ConformanceError("processes", f"after {index + 1} tasks the processes differ")
    except Exception as error:
        sentence = error.sentence if isinstance(error, ConformanceError) else told(error)
        (root / f"broken-{os.environ['RANK']}").write_text(sentence)
        raise
    if made.world.main:
        (root / "measured.json").write_text(json.dumps(made.measured))
        for index, moment in enumerate(moments):
            save_file(moment, root / f"moment-{index}.safetensors")
    made.world.wait()  # who leaves first would close the other's connection


def tensors_of(moment: Moment) -> dict[str, Tensor]:
    """The tensors of a moment as safetensors take them."""
    return {name: value.contiguous() for name, value in moment.items() if isinstance(value, Tensor)}


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Equal for equal tensors only."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().numpy().tobytes())
    return digest.hexdigest()


def write_gradients(steps: Sequence[Mapping[str, Tensor | None]], path: Path) -> None:
    """One file of all gradients of a run; a missing one is left out."""
    save_file(
        {
            f"{step}/{n}": g.contiguous()
            for step, grads in enumerate(steps)
            for n, g in grads.items()
            if g is not None
        },
        path,
    )


def read_gradients(path: Path) -> list[dict[str, Tensor | None]]:
    """What `write_gradients` wrote."""
    steps: dict[int, dict[str, Tensor | None]] = {}
    for name, gradient in load_file(path).items():
        step, _, parameter = name.partition("/")
        steps.setdefault(int(step), {})[parameter] = gradient
    return [steps.get(step, {}) for step in range(max(steps, default=-1) + 1)]


PROMISES = tuple(promises.PROMISES)
"""Names of the quick promises, in the order in which they are checked."""

SLOW = (processes.__name__,)
"""Names of those that start processes of their own."""

ALL: dict[str, Promise] = {**promises.PROMISES, processes.__name__: processes}
