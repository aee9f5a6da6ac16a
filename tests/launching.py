"""A program started as one process, or by `torchrun` as several on this machine."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def launch(program: str, tmp_path: Path, processes: int, *arguments: str) -> str:
    """What it printed."""
    script = tmp_path / "program.py"
    script.write_text(program)
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(processes),
        "--master_port",
        str(free_port()),
    ]
    command = [sys.executable, *(launcher if processes > 1 else []), str(script)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
