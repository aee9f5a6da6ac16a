"""The figures of a score matrix: published tables, complete matrices, and properties that hold for every matrix.

`hide_tables.json` holds every row of Tables 1 and 2 of the HiDe-LLaVA paper as printed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_zoo.errors import DataError
from cl_zoo.scoring.matrix import Matrix

TABLES = json.loads((Path(__file__).parent / "hide_tables.json").read_text(encoding="utf-8"))
MISPRINTED = ("CoIN", "Last", "HiDe-LLaVA")

BOUNDS = [(b, name) for b in ("UCIT", "CoIN") for name in TABLES[b]["bounds"]]
METHODS = [(b, name) for b in ("UCIT", "CoIN") for name in TABLES[b]["Avg"]]

UCIT_LORA = [
    [90.97],
    [90.38, 92.6],
    [73.9, 86.33, 59.54],
    [75.67, 68.77, 47.34, 53.3],
    [75.1, 74.53, 46.73, 52.3, 69.73],
    [65.77, 71.27, 45.05, 51.2, 49.6, 57.47],
]
"""A complete UCIT history of sequential LoRA fine-tuning, published by a user of the MCITlib library."""

COIN_MOELORA = {
    # column: (index of the task in CoIN's order, scores from its own training on)
    "TextVQA": (1, [51.73, 13.15, 35.53, 41.69, 13.97, 50.48, 38.63]),
    "ImageNet": (2, [96.70, 6.62, 5.53, 0.25, 8.15, 10.50]),
    "GQA": (3, [59.42, 45.27, 32.62, 51.75, 37.38]),
    "VizWiz": (4, [58.88, 30.40, 28.52, 43.62]),
    "Grounding": (5, [37.50, 0.97, 0.59]),
    "VQAv2": (6, [64.22, 43.15]),
    "OCRVQA": (7, [60.08]),
}
"""MoELoRA's history as in the CoIN repository; ScienceQA, the first task, is known in its final score only."""


def from_columns(average: list[float], last: list[float]) -> Matrix:
    """The plainest history with these column means and this final row: earlier cells of a column are all alike.

    A column of n cells with mean a and final score l has n - 1 earlier cells of (n·a - l) / (n - 1) each.
    """
    tasks = len(last)
    cells = {(tasks - 1, i): score for i, score in enumerate(last)}
    for i in range(tasks - 1):
        n = tasks - i
        cells |= {(t, i): (n * average[i] - last[i]) / (n - 1) for t in range(i, tasks - 1)}
    return of_cells(cells, tasks)


def of_cells(cells: Mapping[tuple[int, int], float], tasks: int) -> Matrix:
    """The (T, T) matrix of the cells (t, i) that are known."""
    return Matrix(tuple(tuple(cells.get((t, i)) for i in range(tasks)) for t in range(tasks)))


def coin_moelora(**science: float) -> Matrix:
    """MoELoRA's known cells, with those of ScienceQA that are given as `own` and `final`."""
    cells = {(i + k, i): s for i, scores in COIN_MOELORA.values() for k, s in enumerate(scores)}
    cells |= {(row, 0): science[name] for name, row in (("own", 0), ("final", 7)) if name in science}
    return of_cells(cells, 8)


def test_the_fixtures_hold_every_row_of_both_tables():
    rows = {b: [len(TABLES[b][part]) for part in ("bounds", "Avg", "Last")] for b in ("UCIT", "CoIN")}

    assert rows == {"UCIT": [2, 7, 7], "CoIN": [2, 7, 7]}


@pytest.mark.parametrize(("benchmark", "name"), BOUNDS)
def test_the_mean_of_a_bound_is_the_printed_one(benchmark, name):
    row = TABLES[benchmark]["bounds"][name]

    assert Matrix.from_rows([row["scores"]]).last == pytest.approx(row["mean"], abs=0.01)


@pytest.mark.parametrize(("benchmark", "name"), METHODS)
def test_avg_and_last_of_a_published_history_are_the_printed_ones(benchmark, name):
    average, last = TABLES[benchmark]["Avg"][name], TABLES[benchmark]["Last"][name]

    matrix = from_columns(average["scores"], last["scores"])

    assert matrix.last_i == tuple(last["scores"])
    assert matrix.avg_i == pytest.approx(average["scores"], abs=0.005)
    assert matrix.avg == pytest.approx(average["mean"], abs=0.01)
    if (benchmark, "Last", name) != MISPRINTED:
        assert matrix.last == pytest.approx(last["mean"], abs=0.01)


def test_one_printed_mean_is_not_the_mean_of_its_row():
    """CoIN, HiDe-LLaVA, Last: 63.95 is printed, the row's mean is 62.82 (and 2.05 above O-LoRA, not 3.2)."""
    benchmark, part, name = MISPRINTED
    row = TABLES[benchmark][part][name]

    mean = Matrix.from_rows([row["scores"]]).last

    assert row["mean"] == 63.95
    assert round(mean, 2) == 62.82
    assert mean - Matrix.from_rows([TABLES["CoIN"]["Last"]["O-LoRA"]["scores"]]).last == pytest.approx(
        2.05, abs=0.01
    )


def test_the_printed_last_of_ewc_is_right_up_to_rounding():
    row = TABLES["UCIT"]["Last"]["EWC"]

    assert round(Matrix.from_rows([row["scores"]]).last, 2) == 50.19
    assert row["mean"] == 50.20


@pytest.mark.parametrize(
    ("benchmark", "column", "diagonal"),
    [
        (
            "UCIT",
            4,
            {
                "FineTune": 75.43,
                "LwF": 75.59,
                "EWC": 75.32,
                "L2P": 47.07,
                "O-LoRA": 72.23,
                "MoELoRA": 76.23,
                "HiDe-LLaVA": 70.27,
            },
        ),
        (
            "CoIN",
            6,
            {
                "FineTune": 67.94,
                "LwF": 67.85,
                "EWC": 66.94,
                "L2P": 64.72,
                "O-LoRA": 68.21,
                "MoELoRA": 66.36,
                "HiDe-LLaVA": 69.18,
            },
        ),
    ],
)
def test_a_column_of_two_cells_gives_the_score_right_after_training(benchmark, column, diagonal):
    """Avg_i is the mean of A[T-2][i] and A[T-1][i] there, so the diagonal is 2·Avg_i - Last_i."""
    for name, expected in diagonal.items():
        table = TABLES[benchmark]
        matrix = from_columns(table["Avg"][name]["scores"], table["Last"][name]["scores"])

        assert matrix.scores[column][column] == pytest.approx(expected, abs=0.0051)


def test_a_complete_history_gives_all_its_published_figures():
    matrix = Matrix.from_rows(UCIT_LORA)

    assert round(matrix.last, 2) == round(matrix.acc, 2) == 56.73
    assert round(matrix.maa, 2) == 72.90
    assert round(matrix.immediate, 2) == 70.60
    assert round(matrix.bwt_t1, 2) == -16.65
    assert round(matrix.avg, 2) == 62.73


def test_avg_and_maa_of_one_history_differ_by_ten_points():
    matrix = Matrix.from_rows(UCIT_LORA)

    assert matrix.maa - matrix.avg > 10


def test_moeloras_final_row_has_the_published_acc():
    assert round(coin_moelora(final=63.09).acc, 2) == 37.13


def test_moeloras_seven_later_tasks_lose_the_published_sum():
    matrix = coin_moelora(final=63.09)

    drops = [matrix.scores[7][i] - matrix.scores[i][i] for i in range(1, 8)]

    assert sum(drops) == pytest.approx(-194.58)
    assert matrix.bwt is None  # ScienceQA right after its training was not published


def test_coins_bwt_divides_by_the_number_of_tasks():
    """-25.91 is published: times 8 it leaves ScienceQA a drop of 12.70, from 75.79; times 7 it would have to gain 13.21."""
    matrix = coin_moelora(own=63.09 + 12.70, final=63.09)

    assert round(matrix.bwt, 2) == -25.91
    assert round(matrix.bwt_t1, 2) == -29.61
    assert pytest.approx(13.21) == -25.91 * 7 + 194.58


def test_the_figures_of_a_small_history_are_those_of_the_hand_calculation():
    """Columns 80, 90, 60 | 50, 30 | 70: the first task's best score before the end is 90, after the second task.

    Last = 160/3; Avg = (230/3 + 40 + 70)/3; MAA = (80 + 70 + 160/3)/3; BWT = (-20 - 20)/3; Forgetting = (30 + 20)/2.
    """
    matrix = Matrix.from_rows([[80.0], [90.0, 50.0], [60.0, 30.0, 70.0]])

    assert matrix.last == pytest.approx(160 / 3)
    assert matrix.avg_i == pytest.approx((230 / 3, 40.0, 70.0))
    assert matrix.avg == pytest.approx((230 / 3 + 110) / 3)
    assert matrix.maa == pytest.approx((150 + 160 / 3) / 3)
    assert matrix.immediate == pytest.approx(200 / 3)
    assert matrix.bwt == pytest.approx(-40 / 3)
    assert matrix.bwt_t1 == pytest.approx(-20.0)
    assert matrix.forgetting == pytest.approx(25.0)


def test_fwt_compares_the_cells_just_above_the_diagonal_with_zero_shot():
    """(A[0][1] - Z[1] + A[1][2] - Z[2]) / 2 = (12 - 10 + 4 - 8) / 2 = -1."""
    matrix = Matrix.from_rows([[80.0, 12.0, 99.0], [70.0, 50.0, 4.0], [60.0, 40.0, 30.0]])

    assert matrix.fwt([0.0, 10.0, 8.0]) == pytest.approx(-1.0)
    assert matrix.fwt(None) is None
    assert matrix.fwt([0.0, None, 8.0]) is None
    assert Matrix.from_rows([[80.0], [70.0, 50.0]]).fwt([0.0, 10.0]) is None
    with pytest.raises(DataError, match="2 scores but the stream has 3"):
        matrix.fwt([0.0, 10.0])


def test_one_row_for_all_tasks_has_a_last_and_nothing_over_time():
    matrix = Matrix.from_rows([[90.0, 60.0]])

    assert matrix.last == matrix.acc == 75.0
    assert {name for name, value in matrix.summary().items() if value is not None} == {"last"}
    assert matrix.avg_i == (None, None)
    assert matrix.fwt([1.0, 2.0]) is None


def test_a_stream_of_one_task_has_nothing_to_forget():
    matrix = Matrix.from_rows([[40.0]])

    assert matrix.avg == matrix.maa == matrix.immediate == 40.0
    assert matrix.bwt == 0.0
    assert matrix.bwt_t1 is matrix.forgetting is matrix.fwt([1.0]) is None


def test_a_cell_that_was_not_measured_leaves_only_what_does_not_need_it():
    matrix = of_cells({(0, 0): 80.0, (2, 0): 60.0, (1, 1): 50.0, (2, 1): 40.0, (2, 2): 70.0}, tasks=3)

    assert matrix.avg_i == (None, 45.0, 70.0)
    assert matrix.avg is matrix.maa is matrix.forgetting is None
    assert matrix.last == pytest.approx(170 / 3)
    assert matrix.bwt == pytest.approx(-10.0)


def test_a_task_may_come_twice_because_columns_are_places_in_the_stream():
    """Order A B A: both columns of A hold A's score, but the second one starts after the third task."""
    matrix = Matrix.from_rows([[80.0], [50.0, 70.0], [90.0, 60.0, 90.0]])

    assert matrix.immediate == 80.0
    assert matrix.bwt == pytest.approx((10 - 10 + 0) / 3)


def test_a_matrix_comes_back_from_json_as_it_was():
    matrix = Matrix.from_rows([[80.0], [90.0, None]])

    assert Matrix.from_json(json.loads(json.dumps(matrix.to_json()))) == matrix


@pytest.mark.parametrize(
    "data", [None, {}, {"version": 0, "scores": [[1.0]]}, {"version": 1}, {"version": 1, "scores": [["x"]]}]
)
def test_json_that_is_no_matrix_of_this_version_is_refused(data):
    with pytest.raises(DataError, match="score the run again"):
        Matrix.from_json(data)


@pytest.mark.parametrize("rows", [[], [[]], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[1.0], [2.0], [3.0]]])
def test_other_shapes_are_refused(rows):
    with pytest.raises(DataError, match="T rows of T cells"):
        Matrix.from_rows(rows)


def test_a_score_that_is_not_a_number_is_refused_with_its_place():
    with pytest.raises(DataError, match="task 1 after task 1 is nan"):
        Matrix.from_rows([[1.0], [2.0, float("nan")]])


score = st.floats(0, 100)
histories = st.integers(2, 6).flatmap(
    lambda tasks: st.tuples(*(st.lists(score, min_size=t + 1, max_size=t + 1) for t in range(tasks)))
)


@given(value=score, tasks=st.integers(1, 6))
def test_all_means_of_a_constant_history_are_that_constant(value, tasks):
    matrix = Matrix.from_rows([[value] * (t + 1) for t in range(tasks)])

    assert [matrix.last, matrix.avg, matrix.maa, matrix.immediate] == pytest.approx([value] * 4)
    assert matrix.bwt == pytest.approx(0.0)


@given(history=histories)
def test_bwt_is_zero_where_the_final_row_is_the_diagonal(history):
    kept = [*history[:-1], [row[-1] for row in history]]

    assert Matrix.from_rows(kept).bwt == pytest.approx(0.0, abs=1e-9)


@given(history=histories)
def test_both_bwt_are_one_sum_divided_by_two_numbers(history):
    matrix, tasks = Matrix.from_rows(history), len(history)

    assert matrix.bwt * tasks == pytest.approx(matrix.bwt_t1 * (tasks - 1), abs=1e-9)
    assert matrix.bwt * tasks == pytest.approx((matrix.last - matrix.immediate) * tasks, abs=1e-9)


@given(history=histories)
def test_forgetting_is_at_least_the_loss_since_the_diagonal(history):
    """The best score before the end is at least the one right after training, task by task."""
    matrix = Matrix.from_rows(history)

    assert matrix.forgetting >= -matrix.bwt_t1 - 1e-9


@given(history=histories)
def test_the_last_task_has_one_cell_which_is_its_avg_and_its_last(history):
    matrix = Matrix.from_rows(history)

    assert matrix.avg_i[-1] == matrix.last_i[-1]
