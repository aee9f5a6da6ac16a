"""Commands of the pages as a shell starts them, without the seconds that starting costs.

    forked.py serve FOLDER               load torch and transformers once, then fork for each command that comes through a socket there
    forked.py call FOLDER PROGRAM …      what stands in the shell for `cl-zoo` and `python`: hands over arguments, folder and streams

A command runs as it would in a process of its own, with its own folder and environment. Three things differ: streams are cut to a few tasks and
samples, comparisons to their first methods and seeds; the workers of a comparison are forked, too; and all share one Java program for captions.
`python -m pip install -e FOLDER` puts the folder and its entry points on the path and asks no registry.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import socket
import sys
import tomllib
from pathlib import Path
from typing import Any

SOCKET = "s"
"""Its name in the folder, which it is reached from: the whole path of a socket has to be short."""

LIMIT, TASKS, METHODS, SEEDS = 8, 2, 2, 2
"""Samples per split, tasks of a stream, methods and seeds of a comparison: the first of each."""


def serve(folder: str) -> None:
    """Answer until standard input ends, which it does with whoever started this."""
    os.chdir(folder)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(SOCKET)
    prepare()
    listener.listen()
    print("ready", flush=True)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            answer(connection)
        connection.close()
        while True:  # those that have ended meanwhile
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break


def answer(connection: socket.socket) -> None:
    """One command, in this forked process, with the caller's streams, folder and environment."""
    text, streams, *_ = socket.recv_fds(connection, 1 << 20, 3)
    told = json.loads(text)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(told["folder"])
    os.environ.clear()
    os.environ.update(told["environment"])
    sys.path[:0] = [told["folder"], *os.environ["PYTHONPATH"].split(os.pathsep)]
    code: object = 1
    try:
        code = execute(told["program"], told["arguments"])
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send(str(code if isinstance(code, int) else int(code is not None)).encode())
    os._exit(0)


def execute(program: str, arguments: list[str]) -> object:
    """`cl-zoo …`, `python -c …`, `python -m …` or `python FILE …`."""
    sys.argv = [program, *arguments]
    if program == "cl-zoo" or arguments[:2] == ["-m", "cl_zoo"]:
        from cl_zoo.cli.main import main

        sys.argv = ["cl-zoo", *(arguments if program == "cl-zoo" else arguments[2:])]
        main()
    elif arguments[0] == "-c":
        sys.argv = arguments[:1] + arguments[2:]
        exec(compile(arguments[1], "<command>", "exec"), {"__name__": "__main__"})
    elif arguments[:3] == ["-m", "pip", "install"]:
        install(Path(arguments[-1]))
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
    return 0


def install(folder: Path) -> None:
    """A package's folder and entry points onto the path that all commands share, as an editable installation would."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    site = Path(os.environ["SITE"])
    version = project.get("version", "0")
    info = site / f"{project['name'].replace('-', '_')}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n")
    lines = []
    for group, entries in project.get("entry-points", {}).items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module in folder.glob("*.py"):
        (site / module.name).unlink(missing_ok=True)
        (site / module.name).symlink_to(module.resolve())


def prepare() -> None:
    """Load what is slow to load, and put the limits where all ways to a run pass."""
    import open_clip  # noqa: F401
    import torch

    import cl_zoo
    import cl_zoo.api as api
    import cl_zoo.runs.comparison as comparison
    from cl_zoo.data.benchmarks import load_benchmark
    from cl_zoo.names import BACKBONES, load
    from cl_zoo.runs.workers import Workers
    from cl_zoo.scoring.captions import Meteor
    from cl_zoo.scoring.scorer import Scorer

    torch.set_num_threads(1)
    # torch makes its pool of threads anew after a fork, and would do so in two threads at once where a model is loaded by several.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
    for module in pkgutil.walk_packages(cl_zoo.__path__, "cl_zoo."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    load(BACKBONES, "mini")(None, torch.device("cpu"), torch.float32)  # for what transformers does once
    load_benchmark("mini")
    gc.collect()
    gc.freeze()  # a run collects garbage between tasks; none of this is any
    run, compare, scorer = api.run, api.compare, Scorer()
    meteor = scorer._running_meteor()  # the tokenizer serves once, so each fork starts its own
    meteor.score(
        {"": ["a"]}, {"": ["a"]}
    )  # a fork that found its first answer unread would wait for one that another has read
    Scorer.close = Meteor.close = lambda self: None  # type: ignore[method-assign]
    Meteor.running = True  # type: ignore[method-assign, assignment]  # it is the parent's child, so that a fork cannot ask

    def short(settings: dict[str, Any]) -> dict[str, Any]:
        known = load_benchmark(settings.get("benchmark", "mini"), settings.get("data")).tasks
        order = settings.get("order") or ",".join(task.name for task in known)
        order = ",".join(order.split(",")[:TASKS]) if "," in order else order[:TASKS]
        return {**settings, "order": order, "limit": min(settings.get("limit") or LIMIT, LIMIT)}

    def short_run(method: str, **settings: Any) -> Any:
        return run(method, **short(settings))

    def short_compare(methods: Any = None, **settings: Any) -> Any:
        if methods is None:
            methods = load_benchmark(settings.get("benchmark", "mini"), settings.get("data")).default_methods
        seeds = settings.get("seeds", 1)
        settings["seeds"] = min(seeds, SEEDS) if isinstance(seeds, int) else seeds[:SEEDS]
        return compare(api.expanded(methods)[:METHODS], **short(settings))

    api.run, api.compare = short_run, short_compare  # type: ignore[assignment]
    api.Scorer = comparison.Scorer = lambda: scorer  # type: ignore[misc, assignment]
    Workers._start = lambda self, index: Worker(self._logs / f"worker-{index}.log")  # type: ignore[method-assign, assignment]


class Worker:
    """A worker process that is forked from here; to a comparison it looks like the one that it would start."""

    def __init__(self, log: Path) -> None:
        command, told = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._work(command[0], told[1], log)
        os.close(command[0])
        os.close(told[1])
        self.stdin, self.stdout = os.fdopen(command[1], "w"), os.fdopen(told[0])

    def poll(self) -> int | None:
        """It lives until it is told to end."""
        return None

    def terminate(self) -> None:
        os.kill(self.pid, 15)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _work(self, commands: int, events: int, log: Path) -> None:
        from cl_zoo.runs.worker import main

        os.dup2(commands, 0)
        os.dup2(events, 1)
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
        sys.argv = ["worker", str(os.getppid())]
        try:
            main()
        finally:
            os._exit(0)


def call(folder: str, program: str, arguments: list[str]) -> int:
    """Hand a command over and wait for its exit code."""
    told = {
        "program": program,
        "arguments": arguments,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
    }
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(SOCKET)
        socket.send_fds(connection, [json.dumps(told).encode()], [0, 1, 2])
        return int(connection.recv(16) or 1)


if __name__ == "__main__":
    role, home, *rest = sys.argv[1:]
    raise SystemExit(serve(home) if role == "serve" else call(home, rest[0], rest[1:]))
