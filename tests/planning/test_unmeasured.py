"""The time of a comparison before anything was measured: only where the GPU is one whose data sheet is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cl_zoo.names import parse_stack
from cl_zoo.planning.forecast.outlook import plan as outlook
from cl_zoo.planning.forecast.unmeasured import by_shapes, known
from cl_zoo.runs.foreseen import foreseen
from cl_zoo.runs.job import Job
from cl_zoo.runs.plan import Plan, planned
from cl_zoo.runs.prepared import prepare

TINY, BACKBONE = "cl_zoo.testing:load_tiny", "cl_zoo.testing:load_tiny_backbone"


def on(accelerator: str, out: Path) -> Plan:
    """A sweep and another method, as if they stood on that accelerator."""
    methods = ("hide[coefficient=0.3]", "hide", "finetune")
    jobs = [Job(tuple(parse_stack(one)), TINY, BACKBONE, device="cpu", out=str(out)) for one in methods]
    made = planned(jobs, foreseen([prepare(job) for job in jobs]), 1)
    there = [
        replace(
            one, ground=(one.ground or "").replace('"accelerator":null', f'"accelerator":"{accelerator}"')
        )
        for one in made.runs
    ]
    return replace(made, runs=tuple(there))


@pytest.mark.parametrize(
    ("accelerator", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_gpu_is_known_by_what_its_driver_calls_it(
    accelerator: str, gpu: str | None, tmp_path: Path
) -> None:
    assert known(on(accelerator, tmp_path)) == gpu


def test_on_a_known_gpu_the_shapes_foretell_the_time_and_a_shared_training_is_counted_once(
    tmp_path: Path,
) -> None:
    """The seconds are those of `cl-zoo forecast` for each method; a run that takes over its training has no seconds of that."""
    found = by_shapes(on("NVIDIA H100 80GB HBM3", tmp_path))
    planner, *_ = outlook(TINY, BACKBONE, {}, gpu="h100")
    whole = planner.forecast(parse_stack("hide")).seconds

    assert found is not None
    assert found.each[0] == pytest.approx(sum(whole.values()))
    assert found.each[1] == pytest.approx(sum(whole.values()) - whole["training"])
    assert found.seconds == pytest.approx(sum(one or 0.0 for one in found.each))
    assert "by the shapes of the model at 35% of the peak of one H100; nothing was measured here yet" in str(
        found
    )


def test_elsewhere_nothing_is_foretold(tmp_path: Path) -> None:
    assert by_shapes(on("", tmp_path)) is None
