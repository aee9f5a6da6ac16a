"""What every result file of this folder says of itself: the command, the machine, the versions."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


def command(script: str, arguments: Sequence[str] | None) -> str:
    """The line that ran a script of this folder."""
    told = sys.argv[1:] if arguments is None else arguments
    return shlex.join(["python", f"benchmarks/performance/{script}", *told])


def options(about: str | None) -> argparse.ArgumentParser:
    """The options of a script: what its docstring says of it, and `--json`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file of the result")
    return parser


def given(
    parser: argparse.ArgumentParser, script: str, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """What a script is asked for, with the line that ran it as `command`."""
    found = parser.parse_args(arguments)
    found.command = command(script, arguments)
    return found


def machine() -> dict[str, Any]:
    """Processor, cores and system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "system": platform.system(),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of Python and of the named packages."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def write(file: Path, result: dict[str, Any]) -> None:
    """A result under its final name in one go."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


def carried_out(
    asked: argparse.Namespace,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    then: Callable[[dict[str, Any]], None] = lambda result: None,
) -> int:
    """Measure on `asked.threads` threads (else one), write, and print the table; returns the exit code, 2 where the user can put something right.

    Args:
        then: what else is made of the result when it is written.
    """
    import torch

    from cl_zoo.errors import ClZooError

    torch.set_num_threads(getattr(asked, "threads", 1))
    try:
        asked.json.parent.mkdir(parents=True, exist_ok=True)  # before minutes are spent
        result = measure(asked)
        write(asked.json, result)
        then(result)
    except (ClZooError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(table(result))
    return 0


def positive(text: str) -> int:
    """A command line's whole number of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)
