"""What a comparison holds equal: by hand, on methods as they are, and on the published settings that do not share a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cl_zoo.errors import OptionError
from cl_zoo.names import stack
from cl_zoo.planning.suites import spent_by
from cl_zoo.recipe.suite import read_suite, suites
from cl_zoo.runs.equal import HELD, Difference, Fair, Spent, counted_of, differences, held, hold_equal
from cl_zoo.runs.job import Job
from cl_zoo.runs.prepared import Prepared, prepare

PLAIN = Spent((100, 200, 300), (10, 20, 30), trained=1000, budget=1000, stored=3000, flops=8000)

HEAVY = """
from cl_zoo.testing import load_tiny_backbone
def load(path, device, dtype):
    if device.type == "meta":
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")
    return load_tiny_backbone(path, device, dtype)
"""


def words(others: dict[str, Spent], holds: dict[str, float] = HELD) -> dict[str, list[str]]:
    """Differences from three that share one budget."""
    runs = {"a": PLAIN, "b": PLAIN, "c": PLAIN, **others}
    return {key: [one.what for one in found] for key, found in differences(runs, holds).items()}


def job(method: str, **recipe: object) -> Prepared:
    return prepare(Job(stack(method, (), (), {}), "mini", recipe=recipe))


def test_equal_budgets_differ_by_nothing():
    assert words({"d": replace(PLAIN, trained=1100), "e": replace(PLAIN, steps=(10, 20, 30))}) == {}


def test_steps_are_compared_task_by_task():
    found = words(
        {
            "all": replace(PLAIN, steps=(20, 40, 60)),
            "later": replace(PLAIN, steps=(10, 40, 60)),
            "one": replace(PLAIN, steps=(10, 30, 30)),
            "mixed": replace(PLAIN, steps=(5, 20, 90)),
        }
    )

    assert found == {
        "all": ["steps ×2"],
        "later": ["steps ×2 from task 2"],
        "one": ["steps ×1.5 in task 2"],
        "mixed": ["steps ×0.5 in task 1, ×3 in task 3"],
    }


def test_what_learns_all_at_once_is_held_to_the_sum_of_the_tasks():
    joint = replace(PLAIN, samples=(600,), steps=(61,))

    assert words({"joint": joint}) == {}
    assert words({"joint": replace(joint, steps=(120,))}) == {"joint": ["steps ×2"]}


def test_runs_of_other_orders_are_held_equal_task_by_task_and_not_place_by_place():
    """A task of 200 samples is the second of one order and the first of another."""
    first = replace(PLAIN, tasks=("a", "b", "c"))
    other = replace(PLAIN, samples=(200, 300, 100), steps=(20, 30, 10), tasks=("b", "c", "a"))
    joint = replace(PLAIN, samples=(600,), steps=(61,), tasks=("joint",))

    assert differences({"first": first, "other": other, "joint": joint}, HELD) == {}
    found = differences({"first": first, "again": first, "other": replace(other, steps=(20, 30, 30))}, HELD)
    assert [one.what for one in found["other"]] == ["steps ×3 in task 3"]


def test_training_less_than_the_budget_favours_nobody():
    runs = {"more": replace(PLAIN, trained=4800), "less": replace(PLAIN, trained=35), "a": PLAIN}

    assert differences(runs, HELD) == {
        "more": [Difference("trained-parameters", "trained parameters ×4.8", 4.8, more=True)],
        "less": [Difference("trained-parameters", "trained parameters ×0.035", 0.035, more=False)],
    }


def test_stored_parameters_and_flops_are_held_where_one_asks_for_it():
    more = {"d": replace(PLAIN, stored=9000, flops=16000)}

    assert words(more) == {}
    assert words(more, held(["stored-parameters,inference-flops=0.5"])) == {
        "d": ["stored parameters ×3", "inference flops ×2"]
    }


@pytest.mark.parametrize("asked", ["step", "steps=much", "steps=-1", "samples=inf"])
def test_what_cannot_be_held_is_named(asked: str):
    with pytest.raises(OptionError, match=r"--hold (step|samples)"):
        held([asked])


def test_a_finished_run_has_spent_what_was_counted_before_it(run_tiny):
    """The plan and the ledger are two countings; FLOPs of an answer are read back from those of training."""
    result = run_tiny("finetune")
    counted = counted_of(prepare(Job.from_json(result.manifest["job"])), HELD)

    assert counted == Spent.from_ledger(result.ledger)


def test_a_comparison_with_a_larger_budget_is_refused_and_runs_where_one_allows_it():
    jobs = [job("finetune"), job("ewc"), job("moelora", budget="published")]

    with pytest.raises(OptionError, match=r"moelora has trained parameters ×8\.23; --allow-unequal"):
        hold_equal(jobs, Fair())
    assert hold_equal(jobs, Fair(allow=True)) == [one.job for one in jobs]


def test_a_backbone_that_cannot_be_had_without_weights_is_held_equal_after_its_runs(
    install: Callable[..., Any],
):
    install("heavy", modules={"heavy": HEAVY})
    stacks = [stack(method, (), (), {}) for method in ("finetune", "ewc")]
    jobs = [prepare(Job(one, "cl_zoo.testing:load_tiny", backbone="heavy:load")) for one in stacks]

    assert hold_equal(jobs, Fair()) == [one.job for one in jobs]


def test_matching_gives_a_method_the_rank_that_comes_nearest():
    """MoELoRA's experts of whole ranks leave a sixth of the budget; prompts have no rank that would help."""
    jobs = [job("finetune"), job("zeroshot"), job("moelora"), job("l2p")]
    matched = hold_equal(jobs, Fair(match=True))

    assert [one.recipe for one in matched] == [{}, {}, {"adapter.rank": 17}, {}]
    budget = counted_of(jobs[0], HELD)
    spent = counted_of(prepare(matched[2]), HELD)
    assert budget is not None
    assert spent is not None
    assert abs(spent.trained / budget.budget - 1) < 0.1


def test_the_suites_name_a_source_for_every_value():
    assert suites().keys() == {"mcitlib-ucit", "prism-ucit"}
    for name, about in suites().items():
        suite = read_suite(name)
        assert about.endswith(".")
        assert all(len(one.source) > 20 for settings in suite.methods.values() for one in settings), name


@pytest.mark.slow
def test_published_settings_are_flagged_where_they_are_not_equal():
    """MCITlib: O-LoRA's batch from the second task, all experts of CL-MoE and MoELoRA at once, ModalPrompt's ten epochs.

    Its 240 M and 45.0 M trained parameters (3 · 6 · 2,498,560) are without routers, which are 6.7 M more.
    """
    spent = spent_by(read_suite("mcitlib-ucit"), "llava-1.5-7b")
    found = {name: [one.what for one in many] for name, many in differences(spent, HELD).items()}

    assert found == {
        "olora": ["steps ×2 from task 2"],
        "clmoe": ["trained parameters ×6.17"],
        "moelora": ["trained parameters ×1.3"],
        "modalprompt": ["samples ×10", "steps ×3.34", "trained parameters ×0.5"],
    }
    assert spent["finetune"].trained == 16 * 2_498_560


@pytest.mark.slow
def test_prisms_settings_are_flagged_where_they_are_not_equal():
    """Batches of 4, 6 and 8 on a GPU, attention or MLP alone, EWC and all experts of MoELoRA at rank 96, ten epochs of prompts."""
    spent = spent_by(read_suite("prism-ucit"), "llava-1.5-7b")
    found = {name: [one.what for one in many] for name, many in differences(spent, HELD).items()}

    assert found == {
        "finetune": ["trained parameters ×1.26"],
        "replay": ["trained parameters ×1.26"],
        "ewc": ["steps ×0.75 in tasks 1 to 5, ×1.5 in task 6", "trained parameters ×6"],
        "moelora": ["steps ×1.5", "trained parameters ×6.17"],
        "hide": ["steps ×1.5"],
        "olora": ["steps ×1.5 from task 2"],
        "disco": ["trained parameters ×0.29"],
        "modalprompt": ["steps ×15", "samples ×10", "trained parameters ×0.5"],
        "same": ["steps ×0.75 in task 1", "trained parameters ×1.83"],
    }
    assert spent["ewc"].trained == 96 * 2_498_560
