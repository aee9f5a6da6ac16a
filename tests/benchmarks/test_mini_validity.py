"""How `mini` is judged and tuned: what sums of LoRAs keep, which tasks share an instruction, which rate is chosen, what CLIP sees."""

from __future__ import annotations

import itertools

import pytest
from cl_zoo_bench_mini import load
from cl_zoo_bench_mini.tuning import TRIALS, best, load_validation
from cl_zoo_bench_mini.validity import FACTORS, instructions_apart, kept, separation

TASKS = load().tasks
LETTERS = [task.letter for task in TASKS]


def scores(pair: float, joint: float):
    """The base has 20, each task alone 100; pairs and the sum of all have what is said."""
    found = {((), 1.0): dict.fromkeys(LETTERS, 20.0)}
    found |= {((letter,), 1.0): {letter: 100.0} for letter in LETTERS}
    found |= {(two, 1.0): dict.fromkeys(two, pair) for two in itertools.combinations(LETTERS, 2)}
    return found | {(tuple(LETTERS), factor): dict.fromkeys(LETTERS, factor * joint) for factor in FACTORS}


def test_a_share_of_the_gain_is_counted_from_zero_shot():
    figures = kept(scores(pair=80.0, joint=60.0), TASKS)
    assert figures["pairs, mean"] == pytest.approx(0.75)  # (80 - 20) / (100 - 20)
    assert len(figures["pairs"]) == 30
    assert figures["all, mean kept by factor"] == pytest.approx({"1.00": 0.5, "0.50": 0.125, "0.33": 0.0})


def test_a_task_that_learnt_nothing_alone_has_no_share():
    """A LoRA that stayed at zero-shot, or below it, would give shares without meaning, or none at all."""
    found = scores(pair=60.0, joint=60.0)
    found[("A",), 1.0] = {"A": 20.0}
    found[("A", "C"), 1.0] = {"A": 70.0, "C": 80.0}
    figures = kept(found, TASKS)
    assert figures["not learnt alone"] == ["A"]
    assert len(figures["pairs"]) == 25
    assert figures["pairs"]["C with A"] == pytest.approx(0.75)  # what the others keep beside it does count
    assert figures["pairs, mean"] == pytest.approx((24 * 0.5 + 0.75) / 25)
    assert figures["all, mean kept by factor"]["1.00"] == pytest.approx(0.5)  # of five tasks


def test_the_mean_over_tasks_without_a_common_instruction_leaves_the_others_out():
    found = scores(pair=20.0, joint=20.0)
    found[("V", "C"), 1.0] = {"V": 100.0, "C": 60.0}
    figures = kept(found, TASKS)
    apart = instructions_apart(TASKS)
    assert figures["pairs without a common instruction, mean"] == pytest.approx((1 + 0.5) / len(apart))


def test_tasks_share_an_instruction_as_ucits_do():
    """Word with word (R, I, C), letter with letter (A, I), caption with caption (V, F)."""
    shared = {"RI", "RC", "IC", "AI", "VF"}
    apart = {f"{one} with {other}" for one, other in itertools.permutations("RAVICF", 2)} - {
        f"{one} with {other}" for pair in shared for one, other in (pair, pair[::-1])
    }
    assert instructions_apart(TASKS) == apart


def test_the_best_rate_is_chosen_and_the_smaller_where_two_are_equal():
    found = {1e-2: {"a": 70.0, "b": 80.0}, 1e-3: {"a": 80.0, "b": 70.0}, 1e-4: {"a": 60.0, "b": 70.0}}
    assert best(found) == 1e-3
    assert best(found | {1e-4: {"a": 75.1, "b": 75.0}}) == 1e-4


def test_every_part_gets_the_same_number_of_trials():
    assert {len(rates) for _, _, rates in TRIALS.values()} == {4}


def test_tuning_answers_the_validation_splits():
    for task, tuned in zip(TASKS, load_validation().tasks, strict=True):
        assert [sample.prompt for sample in tuned.test[:20]] == [s.prompt for s in task.validation[:20]]
        assert len(tuned.train) == len(task.train)


def test_the_clip_tells_tasks_apart_by_picture_and_the_caption_tasks_not_by_text():
    shares = separation("validation")
    assert shares["picture"]["mean"] > 95
    assert shares["text"]["V"] + shares["text"]["F"] == 100  # one prompt: a tie, which one of the two gets
    assert shares["both"]["mean"] > 95
