"""How many operations a step of each method launches: the script as a user runs it, and what no method may exceed.

A time is different on every machine and in every minute; the number of operations is not. A method that keeps apart in memory what
learns together, or walks over layers where one product would do, shows here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "performance" / "operations.py"

CEILINGS = {
    "hide": 1.0,
    "olora": 1.05,
    "ewc": 1.04,
    "lwf": 1.05,
    "si": 1.09,
    "moelora": 1.3,
    "hydralora": 1.3,
    "branchlora": 1.57,
    "modeltailor": 1.27,
    "sefe": 1.46,
    "same": 2.53,
    "smolora": 2.73,
}
"""Operations of a step over those of fine-tuning, without the making of the batch and without a teacher's forward."""


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    file = tmp_path_factory.mktemp("operations") / "counts.json"
    command = [sys.executable, str(SCRIPT), "--methods", ",".join(CEILINGS), "--json", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("bare")
    found: dict[str, dict[str, Any]] = json.loads(file.read_text())["operations"]
    return found


@pytest.mark.parametrize("method", CEILINGS)
def test_a_method_launches_no_more_operations_than_its_ceiling(counts: Any, method: str) -> None:
    assert counts[method]["besides_ratio"] <= CEILINGS[method]


def test_the_engine_launches_fewer_operations_than_a_plain_loop(counts: Any) -> None:
    assert counts["finetune"]["all"] < counts["bare"]["all"]


def test_the_teacher_is_a_second_forward_and_counted_as_such(counts: Any) -> None:
    assert 0 < counts["lwf"]["teacher"] < counts["lwf"]["forward"]
    assert counts["finetune"]["teacher"] == counts["ewc"]["teacher"] == 0


def test_the_phases_of_a_step_add_up(counts: Any) -> None:
    phases = ("feeding", "forward", "hooks", "teacher", "backward", "optimiser")
    for one in counts.values():
        assert sum(one[phase] for phase in phases) == one["all"]
    assert counts["finetune"]["hooks"] == 0


def test_experts_that_learn_together_cost_no_operation_to_be_joined(counts: Any) -> None:
    """Fine-tuning joins nothing; so what a mixture of more experts joins or takes apart would be seen here."""
    assert counts["moelora"]["tensors"] > counts["finetune"]["tensors"]
    # of each of 14 linears: router, softmax and weighting, and what takes their gradients back
    assert counts["moelora"]["forward"] - counts["finetune"]["forward"] == 3 * 14
    assert counts["moelora"]["backward"] - counts["finetune"]["backward"] == 6 * 14


def test_a_penalty_on_all_weights_costs_no_operation_for_each_of_them(counts: Any) -> None:
    plain = counts["finetune"]
    for method in ("ewc", "si"):
        one = counts[method]
        assert one["hooks"] + one["backward"] - plain["backward"] < plain["tensors"] + 2
