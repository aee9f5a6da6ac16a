"""A job run: prepared, identified, trained and answered."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_zoo.engine.folder import RunFolder, run_id
from cl_zoo.runs.identity import environment, identify
from cl_zoo.runs.job import Job
from cl_zoo.runs.prepared import Prepared, prepare

if TYPE_CHECKING:
    from cl_zoo.engine.learning import Report
    from cl_zoo.engine.run import Run


def execute(job: Job, report: Report) -> tuple[RunFolder, dict[str, Any]]:
    """Train and answer, or find the finished run; scoring is left to `cl_zoo.runs.manifest`.

    Returns:
        The run's folder, still to be entered by `cl_zoo.runs.manifest.finish`, and the facts for its manifest (empty for a finished run).

    Raises:
        ClZooError: the job cannot be run as described.
    """
    import torch

    from cl_zoo.engine.ledger import forget_memory
    from cl_zoo.engine.run import Run
    from cl_zoo.processes import World

    prepared = prepare(job)
    world = World(job.device)
    if world.device.type == "cpu":
        # Threads spin at barriers; a run's bits must not depend on the number of cores.
        torch.set_num_threads(1)
    forget_memory(world.device)
    backbone = prepared.load_backbone(world.device)
    identity = identify(prepared, backbone)
    run = run_id(identity, job.label, job.seed)
    folder = RunFolder(Path(job.out), run, identity)
    report(
        phase="start", run=run, label=job.label, seed=job.seed, tasks=[task.name for task in prepared.stream]
    )
    with folder if world.main else folder.reading():
        if folder.finished:
            return folder, {}
        running = Run(
            prepared.plugins,
            prepared.stream,
            backbone,
            prepared.recipe,
            seed=job.seed,
            cells=job.cells,
            folder=folder,
            world=world,
            report=report,
        )
        running.execute()
        facts = {"id": run, **_facts(prepared, running), "environment": environment(world.device, world.size)}
        if world.main:
            folder.note(facts)
    return folder, facts


def _facts(prepared: Prepared, run: Run) -> dict[str, Any]:
    return {
        "job": prepared.lasting.to_json(),
        "label": prepared.job.label,
        "protocol": prepared.plugins.protocol,
        "seed": prepared.job.seed,
        "tasks": [task.name for task in prepared.stream],
        "lessons": [asdict(lesson.task) for lesson in run.lessons],
        "metrics": [task.metric for task in prepared.stream],
        "ledger": run.ledger.to_json(),
        "measured": run.measured,
    }
