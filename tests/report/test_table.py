"""The table of a comparison: layout, rounding, ranks, seeds, failures, and the three ways to print it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from cl_zoo.errors import DataError
from cl_zoo.report.estimates import Estimate
from cl_zoo.report.rows import Row
from cl_zoo.report.sheets import distinct, parameters, seconds
from cl_zoo.report.table import Table
from cl_zoo.scoring.matrix import Matrix

TASKS = ("render", "chart")


def sequential(label: str, rows: list[list[float | None]], **values) -> Row:
    return Row(label, "sequential", values.pop("seed", 0), TASKS, Matrix.from_rows(rows), **values)


def bound(label: str, protocol: str, row: list[float]) -> Row:
    return Row(label, protocol, 0, TASKS, Matrix.from_rows([row]))


FINETUNE = sequential("finetune", [[80.0], [40.0, 90.0]], trained=180_224, stored=180_224, seconds=55.31)
HIDE = sequential(
    "hide[variant=released]",
    [[80.0], [65.5, 88.0]],
    trained=180_224,
    stored=640_000,
    seconds=155.4,
    stamps=("unequal: steps ×2",),
    flops=1.5e12,
    memory=910.4,
)
EWC = sequential("ewc", [[80.0], [50.0, 70.0]], trained=180_224, stored=180_224, seconds=60.0)
BOUNDS = [bound("multitask", "joint", [91.0, 92.0]), bound("zeroshot", "none", [10.0, 2.0])]


LAYOUT = """\
                          render  chart   Mean
----------------------------------------------
Bounds
  zeroshot                 10.00   2.00   6.00
  multitask                91.00  92.00  91.50
Avg
  finetune                 60.00  90.00  75.00
  hide[variant=released]   72.75  88.00  80.38
Last
  finetune                 40.00  90.00  65.00
  hide[variant=released]   65.50  88.00  76.75

                            Avg   Last  Immediate    MAA     BWT  Forgetting  Trained  Stored  FLOPs  Seconds  Memory  Notes
----------------------------------------------------------------------------------------------------------------------------
  zeroshot                    –   6.00          –      –       –           –        –       –      –        –       –
  multitask                   –  91.50          –      –       –           –        –       –      –        –       –
  finetune                75.00  65.00      85.00  72.50  -20.00       40.00   0.18 M  0.18 M      –     55.3       –
  hide[variant=released]  80.38  76.75      84.00  78.38   -7.25       14.50   0.18 M  0.64 M  1.5 T      155  910 MB  unequal: steps ×2

Avg: mean over the tasks"""


def line(text: str, label: str, occurrence: int = 0) -> list[str]:
    """The values of one line of a plain table."""
    found = [row for row in text.splitlines() if row.strip().startswith(label)]
    return [cell.strip() for cell in found[occurrence].strip().split("  ")[1:] if cell.strip()]


def test_the_layout_is_that_of_the_papers_table():
    """Bounds first, zero-shot before joint training; then Avg and Last by task; then the summary.

    finetune: Avg = ((80 + 40)/2 + 90)/2, Last = 130/2, Immediate = 170/2, MAA = (80 + 65)/2, BWT = -40/2, Forgetting 40.
    hide: Avg = ((80 + 65.5)/2 + 88)/2, Last = 153.5/2, Immediate = 168/2, MAA = (80 + 76.75)/2, BWT = -14.5/2.
    """
    assert Table([FINETUNE, HIDE, *BOUNDS]).text().startswith(LAYOUT)


def test_methods_keep_the_order_in_which_they_were_given():
    assert [m.label for m in Table([HIDE, EWC, FINETUNE]).methods] == [
        "hide[variant=released]",
        "ewc",
        "finetune",
    ]


def test_blocks_without_a_method_are_left_out():
    assert "Bounds" not in Table([FINETUNE]).text()
    only_bounds = Table(BOUNDS).text().split("\n\n")[0]
    assert "Avg" not in only_bounds
    assert "Last" not in only_bounds


def three(row: Row) -> list[Row]:
    """The row with three seeds, a tenth of a point apart."""
    assert row.matrix is not None
    moved = [
        [[None if one is None else one + seed / 10 for one in line] for line in row.matrix.scores]
        for seed in (-1, 0, 1)
    ]
    return [replace(row, seed=seed, matrix=Matrix.from_rows(rows)) for seed, rows in enumerate(moved)]


def test_markdown_marks_the_best_sequential_value_bold_and_the_second_italic():
    """Bounds are higher everywhere and are not marked; the least forgetting is the best."""
    markdown = Table([*BOUNDS, *three(FINETUNE), *three(HIDE), *three(EWC)]).markdown()

    assert "| multitask | 91.00 | 92.00 | 91.50 |" in markdown
    assert "| finetune | 60.00 ± 0.10 | **90.00 ± 0.10** | _75.00 ± 0.10_ |" in markdown
    assert "| hide\\[variant=released\\] | **72.75 ± 0.10** | _88.00 ± 0.10_ | **80.38 ± 0.10** |" in markdown
    assert "| ewc | _65.00 ± 0.10_ | 70.00 ± 0.10 | 67.50 ± 0.10 |" in markdown
    assert (
        "| **-7.25 ± 0.00** | **14.50 ± 0.00** | 0.18 M | 0.64 M | 1.5 T | 155 | 910 MB | unequal: steps ×2 |"
        in markdown
    )
    assert "| _-15.00 ± 0.00_ | _30.00 ± 0.00_ |" in markdown
    assert "Bold: the best and all that cannot be told from it" in markdown


def test_a_higher_mean_of_one_seed_is_no_mark_and_says_nothing_of_marks():
    """Nothing is known of other seeds, nor of test samples, so nobody is called the best."""
    markdown = Table([FINETUNE, HIDE, EWC]).markdown()

    assert "**" not in markdown
    assert "Bold" not in markdown
    assert "**" not in Table([*BOUNDS, *three(FINETUNE)]).markdown()


def test_values_that_cannot_be_told_apart_share_a_mark():
    twin = sequential("twin", [[80.0], [40.004, 90.0]])
    noisy = [
        replace(row, matrix=Matrix.from_rows([[80.0], [40.0 + d, 90.0 + d]]))
        for row, d in zip(three(twin), (3, -4, 1), strict=True)
    ]
    markdown = Table([*three(FINETUNE), *noisy, *three(EWC)]).markdown()

    assert "**90.00 ± 0.10**" in markdown
    assert "**90.00 ± 3.61**" in markdown
    assert "_70.00 ± 0.10_" in markdown


def test_markdown_shows_signs_of_its_own_as_they_are():
    odd = sequential("a|b_c*", [[1.0], [1.0, 2.0]], stamps=("x|y",))

    assert "| a\\|b\\_c\\* |" in Table([odd]).markdown()
    assert "| x\\|y |" in Table([odd]).markdown()


def test_seeds_are_one_line_of_mean_and_sample_standard_deviation():
    """Last of the first task 40, 43, 49: mean 44, s² = (16 + 1 + 25)/2 = 21, s = 4.58; seconds and parameters are means."""
    rows = [
        sequential("finetune", [[80.0], [last, 90.0]], seed=seed, seconds=10.0 + seed, trained=1000)
        for seed, last in enumerate((40.0, 43.0, 49.0))
    ]
    table = Table([rows[0], HIDE, *rows[1:]])
    text = table.text()

    assert len(table.methods) == 2
    assert line(text, "finetune", 1) == ["44.00 ± 4.58", "90.00 ± 0.00", "67.00 ± 2.29"]
    assert line(text, "finetune", 2)[-5:] == ["1.00 k", "–", "–", "11.0", "–"]
    assert "sample standard deviation" in text
    assert "sample standard deviation" not in Table([FINETUNE]).text()


def test_what_is_not_defined_is_a_dash_and_never_a_zero():
    unfinished = sequential("finetune", [[80.0], [None, 90.0]])

    text = Table([unfinished]).text()

    assert line(text, "finetune", 0) == ["–", "90.00", "–"]
    assert line(text, "finetune", 2) == ["–", "–", "85.00", *"––––––––"]


def test_notes_of_several_seeds_name_each_task_once():
    rows = [
        sequential("ewc", [[80.0], [70.0, 90.0]], seed=0, stamps=("ewc: paper", "wrong in form alone: icon")),
        sequential(
            "ewc", [[80.0], [70.0, 90.0]], seed=1, stamps=("wrong in form alone: counting, icon", "slow")
        ),
    ]
    assert Table(rows).text().count("ewc: paper; wrong in form alone: icon, counting; slow") == 1


def test_notes_that_are_sentences_stay_whole():
    """Two notes of one task that have words in common, of two seeds."""
    notes = (
        "views: CIDEr is 0 whatever is answered, with one sample",
        "views: METEOR is low, with one sample",
    )
    rows = [sequential("ewc", [[80.0], [70.0, 90.0]], seed=seed, stamps=notes) for seed in (0, 1)]
    assert Table(rows).text().count("; ".join(notes)) == 1


def test_seeds_of_which_one_lacks_a_value_have_no_mean():
    unfinished = sequential("finetune", [[80.0], [None, 90.0]], seed=1)

    assert line(Table([FINETUNE, unfinished]).text(), "finetune", 1) == ["–", "90.00 ± 0.00", "–"]


def test_a_joint_run_over_one_task_has_no_bwt():
    single = Row("multitask", "joint", 0, ("render",), Matrix.from_rows([[90.0]]))

    assert line(Table([single]).text(), "multitask", 1)[:6] == ["–", "90.00", "–", "–", "–", "–"]


def test_a_failed_run_shows_its_sentence_instead_of_numbers():
    failed = Row("lwf", "sequential", 0, (), error="lwf.strength must lie in [0.0, None], got -1.0")

    text = Table([FINETUNE, failed]).text()

    assert line(text, "lwf", 0) == ["–", "–", "failed"]
    assert line(text, "lwf", 2) == [
        *"–––––––––––",
        "seed 0 failed: lwf.strength must lie in [0.0, None], got -1.0",
    ]
    assert "_" not in Table([FINETUNE, failed]).markdown().split("Avg: ")[0].replace("lwf.strength", "")


def test_one_failed_seed_leaves_the_others_and_is_named():
    failed = Row("finetune", "sequential", 1, TASKS, error="the disk is full")

    text = Table([FINETUNE, failed]).text()

    assert line(text, "finetune", 0) == ["60.00", "90.00", "75.00"]
    assert line(text, "finetune", 2)[-1] == "seed 1 failed: the disk is full"


def test_a_task_that_comes_again_has_a_numbered_column():
    row = Row(
        "finetune", "sequential", 0, ("a", "b", "a"), Matrix.from_rows([[1.0], [1.0, 2.0], [1.0, 2.0, 3.0]])
    )

    assert "a     b  a (2)  Mean" in Table([row]).text()
    assert distinct(["a", "a", "b", "a"]) == ["a", "a (2)", "b", "a (3)"]


@pytest.mark.parametrize(
    ("count", "printed"),
    [
        (0, "0"),
        (512, "512"),
        (5300, "5.30 k"),
        (180_224, "0.18 M"),
        (44_270_000, "44.27 M"),
        (7.06e9, "7.06 B"),
    ],
)
def test_parameters_are_printed_for_people(count, printed):
    assert parameters(Estimate(count, 1)) == printed


def test_seconds_have_a_decimal_while_it_tells_something():
    assert [seconds(Estimate(s, 1)) for s in (3.04, 99.94, 155.4)] == ["3.0", "99.9", "155"]


# printing


def test_plain_text_is_as_wide_as_it_needs_to_be():
    tasks = tuple(f"a-task-with-a-long-name-{n}" for n in range(12))
    row = Row("finetune", "sequential", 0, tasks, Matrix.from_rows([[50.0] * (t + 1) for t in range(12)]))

    heading = Table([row]).text().splitlines()[0]

    assert heading.split() == [*tasks, "Mean"]
    assert len(heading) > 300


def test_a_wide_table_is_not_cut_when_it_is_printed_into_a_pipe():
    """Rich takes a pipe to be 80 columns wide and cuts what does not fit."""
    program = (
        "from cl_zoo.scoring.matrix import Matrix; from cl_zoo.report.table import Row, Table; from rich.console import Console\n"
        "tasks = tuple('task-number-%d' % n for n in range(12))\n"
        "row = Row('m', 'sequential', 0, tasks, Matrix.from_rows([[50.0] * (t + 1) for t in range(12)]))\n"
        "Table([row]).show(Console())\n"
    )
    environment = {"PYTHONIOENCODING": "utf-8", "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=True)
    printed = done.stdout.decode()

    assert printed.splitlines()[0].split() == [*(f"task-number-{n}" for n in range(12)), "Mean"]
    assert printed.splitlines()[3].split() == ["m", *["50.00"] * 13]
    assert "…" not in printed
    assert "\x1b" not in printed


def test_plain_text_of_a_given_width_continues_columns_below():
    table = Table([FINETUNE, *BOUNDS])

    text = table.text(40)

    assert max(map(len, text.splitlines())) <= 40
    columns = [name for row in text.splitlines() if row.startswith("     ") for name in row.split()]
    scores, summary = (block.splitlines()[0].split() for block in table.text().split("\n\n")[:2])
    assert columns == scores + summary


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_of_any_width_shows_every_value(width):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)

    Table([FINETUNE, HIDE, EWC, *BOUNDS]).show(console)

    printed = console.file.getvalue()
    assert "…" not in printed
    for value in (
        "80.38",
        "-20.00",
        "40.00",
        "0.64 M",
        "55.3",
        "hide[variant=released]",
        "Forgetting",
        "Notes",
    ):
        assert value in printed


def test_a_terminal_wraps_notes_and_neither_labels_nor_values():
    label, note = (
        "moelora[experts=8,top_k=2]+ewc[strength=0.25]",
        "unequal: steps ×2 and a long story about the reasons",
    )
    rows = [
        sequential(label, [[80.0], [last, 90.0]], seed=seed, stamps=(note,))
        for seed, last in enumerate((40.0, 50.0))
    ]
    table = Table(rows)
    full = max(map(len, table.text().splitlines()))
    console = Console(file=io.StringIO(), force_terminal=True, width=full - 20, color_system=None)

    table.show(console)

    summary = console.file.getvalue().split("Notes")[1].splitlines()[2:5]
    assert summary[0].split()[:4] == [label, "76.25", "±", "1.77"]
    assert note not in summary[0]
    assert " ".join(" ".join(row[full - len(note) - 1 :] for row in summary).split()) == note


def test_a_terminal_shows_the_best_bold_and_the_second_underlined():
    console = Console(file=io.StringIO(), force_terminal=True, width=200)

    console.print(Table([*three(FINETUNE), *three(HIDE), *three(EWC)]).rich())

    printed = console.file.getvalue()
    assert "\x1b[1m80.38 ± 0.10\x1b[0m" in printed
    assert "\x1b[4m75.00 ± 0.10\x1b[0m" in printed
    assert " 67.50 ± 0.10" in printed


def test_there_is_no_style_where_there_is_no_terminal():
    console = Console(file=io.StringIO(), width=200)

    console.print(Table([FINETUNE, HIDE, *BOUNDS]).rich())

    assert "\x1b" not in console.file.getvalue()
    assert "hide[variant=released]" in console.file.getvalue()


def test_json_holds_every_run_and_every_method_over_its_seeds():
    other = sequential("finetune", [[80.0], [50.0, 90.0]], seed=1)
    failed = Row("ewc", "sequential", 0, (), error="no")

    data = json.loads(json.dumps(Table([FINETUNE, other, failed]).to_json(), allow_nan=False))

    assert data["tasks"] == list(TASKS)
    assert [run["error"] for run in data["runs"]] == [None, None, "no"]
    assert Matrix.from_json(data["runs"][0]["matrix"]) == FINETUNE.matrix
    assert data["runs"][0]["figures"]["bwt"] == -20.0
    finetune, ewc = data["methods"]
    assert finetune["seeds"] == [0, 1]
    assert finetune["figures"]["last"]["mean"] == 67.5
    assert finetune["last_i"][0]["std"] == pytest.approx(50**0.5)
    assert ewc["figures"]["last"] is None


# what probes measured

DRIFT = [{"drift/adapters": 1.0}, {"drift/adapters": 2.5, "ewc/fisher": 9.0}]


def test_what_probes_measured_stands_in_a_line_below_the_table():
    """The values after the last task, means over the seeds; what the method itself measured is in the JSON alone."""
    rows = [
        sequential("ewc", [[80.0], [50.0, 70.0]], seed=seed, measured=measured, probes=("drift",))
        for seed, measured in enumerate((DRIFT, [{}, {"drift/adapters": 3.5}]))
    ]
    table = Table([FINETUNE, *rows])
    said = "Measured after the last task (all of it in --json): ewc: drift/adapters 3 ± 0.71."

    assert f"\n\n{said}\n\nAvg: mean" in table.text()
    assert said.replace("_", "\\_") in table.markdown()
    console = Console(file=io.StringIO(), width=200)
    table.show(console)
    assert said in console.file.getvalue()
    data = json.loads(json.dumps(table.to_json()))
    assert data["runs"][1]["measured"] == DRIFT
    assert data["runs"][1]["probes"] == ["drift"]


def test_of_many_measurements_those_over_everything_come_first_and_the_others_are_counted():
    many = {**{f"routing/0->{n}": 0.1 for n in range(9)}, "routing/accuracy": 0.75}
    row = sequential("hide", [[80.0], [50.0, 70.0]], measured=[many], probes=("routing",))

    text = " ".join(Table([row]).text().split())

    assert "hide: routing/accuracy 0.75, routing/0->0 0.1, " in text
    assert "routing/0->4 0.1 and 4 more." in text


def test_without_probes_there_is_no_such_line():
    row = sequential("ewc", [[80.0], [50.0, 70.0]], measured=DRIFT)

    assert "Measured" not in Table([row, FINETUNE]).text()


# bad input


def test_a_table_needs_a_run():
    with pytest.raises(DataError, match="at least one run"):
        Table([])


def test_two_runs_of_one_name_and_seed_are_refused():
    with pytest.raises(DataError, match="2 runs are called 'finetune' with seed 0"):
        Table([FINETUNE, FINETUNE])


def test_runs_of_other_tasks_do_not_fit_into_one_table():
    other = Row("hide", "sequential", 0, ("chart", "clock"), Matrix.from_rows([[1.0], [1.0, 2.0]]))

    with pytest.raises(DataError, match="render,chart and chart,clock"):
        Table([FINETUNE, other])


def test_a_run_without_scores_and_error_is_refused():
    with pytest.raises(DataError, match="hide, seed 3: a run has scores or an error"):
        Row("hide", "sequential", 3, TASKS)


def test_scores_must_have_a_column_for_each_task():
    with pytest.raises(DataError, match="1 columns of scores for 2 tasks"):
        Row("hide", "sequential", 0, TASKS, Matrix.from_rows([[1.0]]))


# Orders


def ordered(label: str, tasks: str, rows: list[list[float | None]], **values) -> Row:
    """A run on tasks of one letter each, in that order."""
    names = {"R": "render", "C": "chart", "V": "voice"}
    stream = tuple(names[letter] for letter in tasks)
    return Row(
        label, "sequential", values.pop("seed", 0), stream, Matrix.from_rows(rows), order=tasks, **values
    )


ORDERS = [
    ordered("ewc", "RC", [[80.0], [40.0, 90.0]], trained=1000),
    ordered("ewc", "CR", [[70.0], [60.0, 50.0]], trained=1000),
]
"""Last of render 40 and 50, of chart 90 and 60; BWT −40/2 and −10/2, each in its own order."""


def test_the_runs_of_several_orders_are_one_line_under_the_columns_of_the_first():
    """Avg of render 60 and 50, of chart 90 and 65; s is the difference over √2."""
    table = Table([*ORDERS, bound("zeroshot", "none", [10.0, 2.0])])
    text = table.text()

    assert table.tasks == ("render", "chart")
    assert line(text, "zeroshot", 0) == ["10.00", "2.00", "6.00"]
    assert line(text, "ewc", 0) == ["55.00 ± 7.07", "77.50 ± 17.68", "66.25 ± 12.37"]
    assert line(text, "ewc", 1) == ["45.00 ± 7.07", "75.00 ± 21.21", "60.00 ± 7.07"]
    assert line(text, "ewc", 2)[4:7] == ["-12.50 ± 10.61", "25.00 ± 21.21", "2"]
    assert (
        "learnt in 2 orders, RC, CR; ±: sample standard deviation over seeds and orders together, n runs."
        in (" ".join(text.split()))
    )


def test_json_has_the_lines_of_each_order_beside_their_mean():
    (method,) = Table(ORDERS).to_json()["methods"]

    assert [one["order"] for one in method["by_order"]] == ["RC", "CR"]
    assert [one["figures"]["bwt"]["mean"] for one in method["by_order"]] == [-20.0, -5.0]
    assert [one["last_i"][0]["mean"] for one in method["by_order"]] == [40.0, 50.0]
    assert (method["n"], method["seeds"]) == (2, [0])
    assert Table(ORDERS).to_json()["orders"] == ["RC", "CR"]
    assert "by_order" not in Table(ORDERS[:1]).to_json()["methods"][0]


def test_a_task_that_comes_twice_is_a_column_for_each_time_in_every_order():
    first = ordered("ewc", "RCR", [[1.0], [1.0, 2.0], [3.0, 4.0, 5.0]])
    second = ordered("ewc", "RRC", [[1.0], [1.0, 2.0], [6.0, 7.0, 8.0]])

    assert line(Table([first, second]).text(), "ewc", 1)[:3] == ["4.50 ± 2.12", "6.00 ± 2.83", "6.00 ± 1.41"]


def test_a_failed_order_is_named_in_the_notes_and_counts_in_no_mean():
    failed = Row("ewc", "sequential", 0, (), error="no space left", order="CR")
    text = Table([ORDERS[0], failed]).text()

    assert line(text, "ewc", 1) == ["40.00", "90.00", "65.00"]
    assert line(text, "ewc", 2)[6] == "1"
    assert "seed 0, CR failed: no space left" in text


def test_one_order_twice_is_refused():
    with pytest.raises(DataError, match="2 runs are called 'ewc' with seed 0 and order RC"):
        Table([ORDERS[0], ORDERS[0]])


def test_forward_transfer_is_a_column_where_cells_above_the_diagonal_were_measured():
    """After the first task the second scores 30, the untouched model 2: FWT 28."""
    full = sequential("ewc", [[80.0, 30.0], [50.0, 70.0]])
    table = Table([FINETUNE, full, bound("zeroshot", "none", [10.0, 2.0])])

    assert line(table.text(), "ewc", 2)[6] == "28.00"
    assert line(table.text(), "finetune", 2)[6] == "–"
    assert "FWT: mean score before learning" in table.text()
    assert [run["figures"]["fwt"] for run in table.to_json()["runs"]] == [None, 28.0, None]
    assert "FWT" not in Table([FINETUNE, *BOUNDS]).text()
    assert "FWT" not in Table([full]).text()


def test_json_says_how_well_figures_are_known_and_who_can_be_told_from_whom():
    found = Table([*BOUNDS, *three(FINETUNE), *three(EWC)]).to_json()
    by_label = {method["label"]: method["intervals"] for method in found["methods"]}

    assert by_label["multitask"]["last"] == {"low": None, "high": None, "units": 1, "sampled": False}
    assert by_label["multitask"]["bwt"] is None
    assert by_label["ewc"]["last"]["low"] == pytest.approx(60 - 4.302653 * 0.1 / 3**0.5)
    (pair,) = found["tests"]["pairs"]
    assert (pair["first"], pair["second"], pair["told_apart"]) == ("finetune", "ewc", True)
