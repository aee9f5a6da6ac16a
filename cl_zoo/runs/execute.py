"""A job run: prepared, identified, trained and answered."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cl_zoo.data.conversations import conversations
from cl_zoo.engine.folder import RunFolder, cells_of_row, run_id
from cl_zoo.errors import OptionError
from cl_zoo.runs.faults import LOGS, logged
from cl_zoo.runs.identity import environment, identify, training_of
from cl_zoo.runs.job import Job
from cl_zoo.runs.prepared import Prepared, prepare
from cl_zoo.tasks import letters

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.engine.learning import Report
    from cl_zoo.engine.run import Run
    from cl_zoo.engine.trained import Trained
    from cl_zoo.processes import World


Training = Literal["own", "kept", "taken"]
"""Whether a run learns for itself alone, keeps for others what it learns, or only takes what another one has learnt."""

TRAINED = "trained"
"""The folder, in that of all runs, of trainings that several runs share."""


def execute(
    job: Job, report: Report, training: Training = "own", *, checked: bool = False
) -> tuple[RunFolder, dict[str, Any]]:
    """Train and answer, or find the finished run; scoring is left to `cl_zoo.runs.manifest`.

    Args:
        training: one that is kept takes over as well what was kept before.
        checked: whether the preflight was made already, by whoever starts many jobs.

    Returns:
        The run's folder, still to be entered by `cl_zoo.runs.manifest.finish`, and the facts for its manifest (empty for a finished run).

    Raises:
        ClZooError: the job cannot be run as described.
    """
    began = time.perf_counter()
    prepared, world = prepare(job), _world(job.device)
    if job.sharding != "none" and world.size == 1:
        raise OptionError(
            f"--sharding {job.sharding}: one process has nobody to share with; start several, torchrun --nproc-per-node 2 -m cl_zoo run …"
        )
    backbone = prepared.load_backbone(world.device)
    identity = identify(prepared, backbone)
    run = run_id(identity, job.label, job.seed)
    folder = RunFolder(Path(job.out), run, identity, keep=job.keeps_all, data=prepared.data_folders)
    trained = _trained(prepared, identity, training)
    report(phase="start", run=run, trained=trained and trained.folder.name, **_beginning(prepared))
    with logged(Path(job.out) / LOGS / f"{run}.log"), folder if world.main else folder.reading():
        if folder.finished:
            return folder, {}
        if job.preflight and not checked:
            _preflight(prepared, backbone, world, report)
        _inherit(prepared, folder, world, report)
        running = _built(prepared, backbone, folder, world, report, trained)
        starting = time.perf_counter() - began
        running.execute()
        if trained is not None and trained.whole(len(running.lessons)):
            report(phase="trained")
        facts = {"id": run, **_facts(prepared, running), "besides": {"start": starting}}
        facts |= {"environment": environment(world.device, world.size), "files": folder.files}
        if world.main:
            folder.note(facts)
    return folder, facts


def _built(
    prepared: Prepared,
    backbone: Backbone,
    folder: RunFolder,
    world: World,
    report: Report,
    trained: Trained | None,
) -> Run:
    from cl_zoo.engine.run import Run

    job = prepared.job
    return Run(
        prepared.plugins,
        prepared.stream,
        backbone,
        prepared.recipe,
        seed=job.seed,
        cells=job.cells,
        folder=folder,
        world=world,
        report=report,
        trained=trained,
        every=job.checkpoint_every,
        compiled=job.compiles(world.device.type),
    )


def _beginning(prepared: Prepared) -> dict[str, Any]:
    """What is told of a run when it begins."""
    job, tasks = prepared.job, [task.name for task in prepared.stream]
    return {"label": job.label, "seed": job.seed, "tasks": tasks, "work": prepared.work.to_json()}


def _preflight(prepared: Prepared, backbone: Backbone, world: World, report: Report) -> None:
    from cl_zoo.preflight.check import agreed, refuse

    def watch(task: str) -> None:
        report(phase="preflight", task=task)

    agreed(world, lambda: refuse(prepared.faults(backbone, world.size, watch)))


def _inherit(prepared: Prepared, folder: RunFolder, world: World, report: Report) -> None:
    """Take over what another run has learnt of the same tasks, and say so."""
    from cl_zoo.engine.inherited import inherit

    learnt, stream = [one["task"] for one in folder.identity["chain"]], prepared.stream
    protocol = prepared.plugins.protocol
    rows = {row: cells_of_row(prepared.job.cells, protocol, row, len(stream)) for row in range(len(learnt))}
    cells = [(row, place) for row, places in rows.items() for place in places]
    if world.main and (found := inherit(folder, cells)):
        report(
            phase="inherited",
            run=found.run,
            tasks=learnt[: found.done],
            again=[learnt[place] for place in found.again],
            next=learnt[found.done] if found.done < len(learnt) else None,
        )
    world.wait()  # the others read what was taken over


def _world(device: str) -> World:
    """The processes of the run, with nothing left of earlier ones."""
    import torch

    from cl_zoo.engine.ledger import forget_memory
    from cl_zoo.processes import World

    world = World(device)
    if world.device.type == "cpu":
        # Threads spin at barriers; a run's bits must not depend on the number of cores.
        torch.set_num_threads(1)
    forget_memory(world.device)
    return world


def _trained(prepared: Prepared, identity: dict[str, Any], training: Training) -> Trained | None:
    """Where the states of a training that is shared are."""
    from cl_zoo.engine.trained import Trained

    if training == "own":
        return None
    job, stack = prepared.job, "+".join(choice.name for choice in prepared.job.choices)
    name = run_id(training_of(identity, prepared.plugins), stack, job.seed)
    return Trained(Path(job.out) / TRAINED / name, keep=training == "kept")


def _facts(prepared: Prepared, run: Run) -> dict[str, Any]:
    names = [task.name for task in prepared.stream]
    talks = {task.name: found for task in prepared.stream if (found := dict(conversations(task.train)))}
    return {
        "job": prepared.lasting.to_json(),
        "label": prepared.job.label,
        "protocol": prepared.plugins.protocol,
        "seed": prepared.job.seed,
        "order": letters(prepared.stream),
        "tasks": names,
        "without": [task.name for task in prepared.benchmark.tasks if task.name not in names],
        "lessons": [asdict(lesson.task) for lesson in run.lessons],
        "metrics": [task.metric for task in prepared.stream],
        "ledger": run.ledger.to_json(),
        "measured": run.measured,
        **({"conversations": talks} if talks else {}),
    }
