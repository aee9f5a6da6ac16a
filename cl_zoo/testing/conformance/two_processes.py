"""The promise that needs two processes: what each of them computes is compared with what one process did."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cl_zoo.names import Choice
from cl_zoo.testing.conformance.mistakes import told
from cl_zoo.testing.conformance.moments import ConformanceError, Moment, far, flat
from cl_zoo.testing.conformance.promises import needs, seeds, sequential
from cl_zoo.testing.conformance.subjects import Subject
from cl_zoo.testing.conformance.trials import trial
from cl_zoo.testing.streams import tiny_files


def processes(subject: Subject) -> None:
    """two processes give the gradients and the statistics of one (dropout 0, relative 2e-4)"""
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
