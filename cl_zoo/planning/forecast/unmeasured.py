"""The time of a comparison of which nothing was measured yet: by the shapes of the model, where the GPU at hand is a known one."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from cl_zoo.errors import ClZooError
from cl_zoo.planning.forecast.gpus import GPUS
from cl_zoo.planning.forecast.outlook import plan as outlook
from cl_zoo.planning.forecast.planner import EFFICIENCY, Planner
from cl_zoo.runs.job import Job
from cl_zoo.runs.plan import Forecast, Plan


def by_shapes(plan: Plan) -> Forecast | None:
    """How long what is left of a plan may take by the formulas of `cl_zoo.planning.forecast.planner`.

    Returns:
        `None` where the runs stand on no GPU whose data sheet is known, or some stack cannot be placed without values.
    """
    gpu = known(plan)
    if gpu is None:
        return None

    @cache
    def planner(order: str) -> Planner:
        job: Job = next(one.job for one in plan.left if one.order == order)
        about: dict[str, Any] = {
            "data": job.data,
            "order": order,
            "limit": job.limit,
            "cells": job.cells,
            "gpu": gpu,
        }
        return outlook(job.benchmark, job.backbone, job.recipe, **about, shelved=job.cache is not None)[0]

    @cache
    def seconds(order: str, label: str) -> dict[str, float]:
        job = next(one.job for one in plan.left if one.order == order and one.job.label == label)
        return planner(order).forecast(job.choices).seconds

    try:
        found = [(one, seconds(one.order, one.job.label)) for one in plan.left]
    except ClZooError:
        return None
    each = [sum(by.values()) - (0.0 if plan.learns(one) else by["training"]) for one, by in found]
    how = f"by the shapes of the model at {EFFICIENCY:.0%} of the peak of one {GPUS[gpu].name}; nothing was measured here yet"
    return Forecast(tuple(each), 0, plan.until(each), by=how)


def known(plan: Plan) -> str | None:
    """The name, in the list of data sheets, of the GPU on which the runs of a plan stand."""
    grounds = {one.ground for one in plan.left}
    ground = grounds.pop() if len(grounds) == 1 else None
    name = "" if ground is None else json.loads(ground)["machine"]["accelerator"] or ""
    named = name.lower().replace(" ", "-")
    return max((gpu for gpu in GPUS if gpu in named), key=len, default=None)
