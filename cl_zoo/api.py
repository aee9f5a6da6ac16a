"""The Python interface: `run`, `compare`, `load` and `load_runs`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from cl_zoo.contract.plugins import every_method
from cl_zoo.data.benchmarks import load_benchmark
from cl_zoo.errors import OptionError, full_disk_named, nearest
from cl_zoo.names import Options, stack
from cl_zoo.runs.ahead import Ahead
from cl_zoo.runs.comparison import Comparison, Result, Told, Watch, load_result
from cl_zoo.runs.comparison import compare as run_all
from cl_zoo.runs.comparison import plan as plan_all
from cl_zoo.runs.curves import Curves
from cl_zoo.runs.equal import Fair
from cl_zoo.runs.execute import execute
from cl_zoo.runs.exported import is_exported, load_exported
from cl_zoo.runs.finding import Found, find_runs
from cl_zoo.runs.gate import Gate, read_gate
from cl_zoo.runs.grid import Vary, orders_of, varied
from cl_zoo.runs.job import Job
from cl_zoo.runs.manifest import finish
from cl_zoo.runs.plan import Plan
from cl_zoo.scoring.scorer import Scorer


def run(
    method: str,
    *,
    benchmark: str = "mini",
    with_: Sequence[str] = (),
    probes: Sequence[str] = (),
    options: Options | None = None,
    gate: str | Path | None = None,
    trackers: Sequence[str] = (),
    watch: Watch = lambda event: None,
    **settings: Any,
) -> Result:
    """Run one stack on one benchmark with one seed, in this process.

    Args:
        method: `hide`, `hide[variant=released]`, `moelora+ewc`, `package.module:Class` or `file.py:Class`.
        benchmark: an installed name, a YAML file, or either with options: `coin[instructions=type2]`.
        with_, probes: further plugins of the stack.
        options: option values by plugin name.
        gate: a publication or the folder of a finished run, `=POINTS` behind it; before anything is trained the untouched model must
            score as its zero-shot row does.
        trackers: `tensorboard`, `wandb`, `mlflow`, `trackio`: where curves of loss, terms and scores go; they decide nothing of the run.
        settings: fields of `Job`: backbone, features, cache, cache_limit, data, order, seed, recipe, limit, cells, device, out, preflight,
            keep_states, checkpoint_every, sharding, compile.

    Returns:
        The finished run, from disk where the same run was finished before.

    Raises:
        ClZooError: the run cannot be made as described, or does not pass its gate.
    """
    job = Job(stack(method, with_, probes, options or {}), benchmark, **_known(settings))
    with closing(Curves(trackers, [job])) as curves:
        if gate is not None:
            _guarded(job, _gate(gate, [job]), watch)
        return _run(job, watch, curves)


def _run(job: Job, watch: Watch, curves: Watch = lambda event: None) -> Result:
    about = {"event": "progress", "seed": job.seed, "label": job.label}
    with full_disk_named(job.out), Scorer() as scorer:
        ahead = Ahead([job], scorer)
        if "RANK" not in os.environ:  # the processes of a distributed run are told apart later
            ahead.begin()

        def report(**progress: Any) -> None:
            if _main_process():
                ahead.heard(progress)
                curves({**about, **progress})
            watch({**about, **progress})

        folder, facts = execute(job, report)
        if not _main_process():
            return Result(job.label, job.seed, facts, folder.partial)
        if facts:
            watch({**about, "phase": "score", "waits": ahead.waits_for(facts["metrics"])})
        finish(folder, facts, scorer)
    curves({**about, "event": "finished", "run": folder.final.name, "facts": facts})
    return load_result(folder.final, trust=job.names)


def compare(
    methods: Sequence[str] | None = None,
    *,
    benchmark: str = "mini",
    seeds: int | Sequence[int] = 1,
    orders: int | Sequence[str] | None = None,
    vary: Vary | None = None,
    with_: Sequence[str] = (),
    probes: Sequence[str] = (),
    options: Options | None = None,
    processes: int | None = None,
    executor: str | None = None,
    gate: str | Path | None = None,
    trackers: Sequence[str] = (),
    watch: Watch = lambda event: None,
    told: Told = lambda plan: None,
    fair: Fair | None = None,
    **settings: Any,
) -> Comparison:
    """Run several stacks on one benchmark, in parallel processes, over one or more seeds and orders of the tasks.

    Args:
        methods: as in `run`; `all` stands for every installed method; default: those that the benchmark names.
        seeds: how many (0 … n−1), or which.
        orders: how many, the benchmark's own first and the others drawn, the same for everybody; or which, as for the setting
            `order`; default: that one.
        vary: values of options, each of them a run: `{"hide": {"coefficient": [0.3, 0.5]}}`; of several options all combinations.
        processes: how many runs at a time.
        executor: who makes them, `ray[address=auto]`, `slurm[partition=gpu]`, `print` or another one that is installed; default: processes here.
        trackers: as for `run`.
        gate: as for `run`; what is measured for it is a run like others, and taken over where the comparison has it too.
        told: called with the plan before the first run begins; with a gate with that of its run first.
        fair: what is held equal, by default steps, samples and trained parameters; and whether unequal budgets are refused, stamped
            (`Fair(allow=True)`) or made equal by other ranks (`Fair(match=True)`).

    Raises:
        ClZooError: something is unknown; nothing has been started then. Or the gate is not passed; nothing has been trained then. A run that fails later is a row of the result.
    """
    jobs = _grid(methods, benchmark, seeds, orders, vary or {}, (with_, probes, options or {}), settings)
    with closing(Curves(trackers, jobs)) as curves:
        if gate is not None:
            asked = _gate(gate, jobs)
            first = run_all([_untouched(jobs[0], asked)], watch=watch, told=told)
            asked.passes(first.results[0])

        def heard(event: dict[str, Any]) -> None:
            curves(event)
            watch(event)

        return run_all(jobs, processes=processes, executor=executor, watch=heard, told=told, fair=fair)


def _gate(text: str | Path, jobs: Sequence[Job]) -> Gate:
    """The gate of some jobs.

    Raises:
        ClZooError: there is no such anchor, or it is of other tasks.
    """
    gate = read_gate(str(text))
    benchmark = load_benchmark(jobs[0].benchmark, jobs[0].data)
    for order in dict.fromkeys(job.order for job in jobs):
        gate.fits(benchmark, order)
    return gate


def _untouched(job: Job, gate: Gate) -> Job:
    """What a gate has scored before a job begins."""
    return replace(job, choices=stack(gate.method, (), (), {}))


def _guarded(job: Job, gate: Gate, watch: Watch) -> None:
    """Run what a gate asks for in this process.

    Raises:
        ClZooError: it is not passed, or that run cannot be made.
    """
    result = _run(_untouched(job, gate), watch)
    if result.complete:  # in the side processes of a distributed run it is not; the main one decides for all
        about = {"label": result.label, "seed": result.seed, "seconds": result.ledger["seconds"]}
        watch({**about, "event": "finished", "last": result.matrix.last})
        gate.passes(result)


def plan(
    methods: Sequence[str] | None = None,
    *,
    benchmark: str = "mini",
    seeds: int | Sequence[int] = 1,
    orders: int | Sequence[str] | None = None,
    vary: Vary | None = None,
    with_: Sequence[str] = (),
    probes: Sequence[str] = (),
    options: Options | None = None,
    processes: int | None = None,
    executor: str | None = None,
    fair: Fair | None = None,
    **settings: Any,
) -> Plan:
    """What `compare` with the same arguments would run, everything looked up and nothing run: runs, what they share, steps, time.

    Raises:
        ClZooError: something is unknown.
    """
    jobs = _grid(methods, benchmark, seeds, orders, vary or {}, (with_, probes, options or {}), settings)
    return plan_all(jobs, processes=processes, executor=executor, fair=fair)


def _grid(
    methods: Sequence[str] | None,
    benchmark: str,
    seeds: int | Sequence[int],
    orders: int | Sequence[str] | None,
    vary: Vary,
    stacked: tuple[Sequence[str], Sequence[str], Options],
    settings: Mapping[str, Any],
) -> list[Job]:
    """The jobs of a comparison: methods and varied options by seed by order."""
    known, data = _known(settings), settings.get("data")
    if methods is None:
        methods = load_benchmark(benchmark, data).default_methods
    methods = expanded(methods)
    chosen = range(seeds) if isinstance(seeds, int) else seeds
    if not methods or not len(chosen):
        raise OptionError(
            f"nothing to compare: {len(methods)} methods and {len(chosen)} seeds; name at least one of each"
        )
    ordered: list[str | None] = [settings.get("order")]
    if orders is not None:
        if ordered != [None]:
            raise OptionError(f"order {ordered[0]!r} and orders {orders!r} are both given; use one of them")
        ordered = orders_of(load_benchmark(benchmark, data), orders)
    stacks = [stack(method, *stacked, strict=False) for method in methods]
    first = [Job(choices, benchmark, **known) for choices in varied(stacks, vary)]
    _all_used(stacked[2], first)
    return [replace(job, seed=seed, order=order) for order in ordered for seed in chosen for job in first]


def expanded(methods: Sequence[str]) -> list[str]:
    """The methods of a comparison, with every installed one in the place of `all`."""
    return [name for text in methods for name in (every_method() if text.strip() == "all" else [text])]


def load(
    run_folder: str | Path,
    *,
    backbone: str | None = None,
    features: str | None = None,
    device: str = "auto",
    trust: Sequence[str | Path] = (),
) -> Result:
    """A finished run from its folder: its scores, its costs, and its model once it is asked to `generate`.

    A folder of `cl-zoo export` that answers by itself, one with an `export.json`, is loaded alike; it needs no run and no plugin.

    Args:
        backbone, features: another place of the weights that the run was made on.
        device: where the model answers: `auto`, `cpu` or `cuda`.
        trust: files of plugins that the run names and that may be imported, `("my_method.py",)`; a run's folder never runs code by
            itself. An installed plugin may be named where its source is no longer the one of the run.

    Raises:
        RunError: it has no readable manifest.
    """
    folder = Path(run_folder)
    found = load_exported if is_exported(folder) else load_result
    return found(folder, backbone=backbone, features=features, device=device, trust=trust)


def load_runs(*places: str | Path) -> Found:
    """All runs in some folders, for tables, frames and figures; nothing is computed anew.

    Args:
        places: folders of runs, of folders of runs, runs themselves, or patterns: `"runs"`, `"runs/mini-hide-*"`.

    Returns:
        A `Comparison` for each benchmark and order, and the unfinished and damaged runs by name.

    Raises:
        OptionError: no run is there.
    """
    return find_runs(places)


def _all_used(options: Options, jobs: Sequence[Job]) -> None:
    names = {choice.name for job in jobs for choice in job.choices}
    for name in options.keys() - names:
        raise OptionError(
            f"options are given for {name!r}, which is in no stack of this comparison{nearest(name, names)}"
        )


def _known(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    fields = [name for name in Job.__dataclass_fields__ if name not in ("choices", "benchmark")]
    for name in settings:
        if name not in fields:
            raise OptionError(f"there is no setting {name!r}{nearest(name, fields)}")
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}


def _main_process() -> bool:
    from accelerate import PartialState

    return bool(PartialState().is_main_process)
