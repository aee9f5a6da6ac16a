"""A worker process of a comparison: one JSON command per line in, JSON events out.

    {"load": true}                     →  nothing; what every run needs is imported while another worker looks up the jobs
    {"check": [job, …]}                →  {"event": "checked", "jobs": [facts, …]} or {"event": "refused", "message": …}; "elsewhere": true
                                          beside it where the jobs run on machines that may have other devices
    {"run": job, "training": "own"}    →  {"event": "progress", …} …, then "answered", "finished" or "failed", `logged` where a traceback was printed,
                                          `held` where another process holds the run's folder

The facts of a job are those of `cl_zoo.runs.foreseen`. Jobs may share a training; `training` says whether this one does, see `cl_zoo.runs.execute`.

It ends with its parent: one that is killed cannot say so.

Everything that libraries print goes to standard error, which the parent keeps in a log file.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

from cl_zoo.errors import ClZooError, RunHeld, full_disk_named, printable

if TYPE_CHECKING:
    from cl_zoo.runs.execute import Training


def main() -> None:
    """Serve commands until standard input ends, or the process whose id is the only argument does."""
    if len(sys.argv) > 1:
        end_with(int(sys.argv[1]))
    # The event stream keeps the original descriptor; whoever prints to standard output prints to the log.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    faulthandler.enable(2)

    def send(event: str, **facts: Any) -> None:
        events.write(json.dumps({"event": event, **facts}) + "\n")
        events.flush()

    for line in sys.stdin:
        command = json.loads(line)
        try:
            if "load" in command:
                import cl_zoo.engine.run  # noqa: F401
            elif "check" in command:
                send(
                    "checked",
                    **check(command["check"], command["fair"], elsewhere=command.get("elsewhere", False)),
                )
            else:
                run(command["run"], command["training"], send)
        except ClZooError as error:
            held = {"held": True} if isinstance(error, RunHeld) else {}
            send("refused" if "check" in command else "failed", message=str(error), user=True, **held)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            if "load" not in command:  # the run that comes next fails of the same, and says so
                send("failed", message=describe(error), user=isinstance(error, OSError), logged=True)


def end_with(parent: int) -> None:
    """End this process within a second of its parent, also while it trains; files are written under draft names."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check(
    jobs: list[dict[str, Any]], fair: dict[str, Any] | None = None, *, elsewhere: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Look up everything that the jobs name, before any of them starts.

    Args:
        fair: fields of `Fair`; without them budgets are not counted.
        elsewhere: whether they run on machines that may have other devices.

    Returns:
        `jobs` as they shall run, and `foreseen` of each.
    """
    from cl_zoo.backbones.checkpoints import check_folder, read_by
    from cl_zoo.names import BACKBONES, load
    from cl_zoo.processes import World
    from cl_zoo.runs.checking import check_data
    from cl_zoo.runs.equal import Fair, hold_equal
    from cl_zoo.runs.foreseen import foreseen
    from cl_zoo.runs.job import Job
    from cl_zoo.runs.prepared import prepare

    everything = []
    for values in jobs:
        job = Job.from_json(values)
        prepared = prepare(job)
        name, path = prepared.backbone
        load(BACKBONES, name)
        if path is not None and (kind := read_by(name)):
            check_folder(path, kind)
        if not elsewhere:
            World(job.device)
        everything.append(prepared)
    for features in {values["features"] for values in jobs if values["features"]}:
        from cl_zoo.features.loading import encoder_source

        encoder_source(features)
    check_data(everything)
    held = [one.job for one in everything] if fair is None else hold_equal(everything, Fair(**fair))
    everything = [one if one.job == job else prepare(job) for one, job in zip(everything, held, strict=True)]
    return {"jobs": [job.to_json() for job in held], "foreseen": foreseen(everything, elsewhere=elsewhere)}


def run(values: dict[str, Any], training: Training, send: Any) -> None:
    """One job; the parent scores its answers."""
    from cl_zoo.runs.execute import execute
    from cl_zoo.runs.job import Job

    job = Job.from_json(values)
    with full_disk_named(job.out):
        folder, facts = execute(job, lambda **progress: send("progress", **progress), training, checked=True)
    send("answered", run=folder.final.name, facts=facts)


def describe(error: BaseException) -> str:
    """An unexpected error in one sentence; one about a file with the file and what to look at."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        about = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{about}: {error.strerror.lower()}; check the path and who may read and write it"
    text = printable(" ".join(str(error).split())) or "no further words"
    return f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    main()
