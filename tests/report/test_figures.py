"""Figures show the numbers of the table, in colours that are told apart, and are written as PNG and SVG."""

from __future__ import annotations

from pathlib import Path

import pytest

import cl_zoo
from cl_zoo.errors import DataError, OptionError
from cl_zoo.report import colours
from cl_zoo.report.figures import frontier, write_figures
from cl_zoo.report.rows import Row
from cl_zoo.report.table import Table
from cl_zoo.scoring.matrix import Matrix

TASKS = ("render", "chart")
CKA = {"cka/0/render~chart": 0.9, "cka/1/render~chart": 0.4, "cka/mean/render~chart": 0.65}
SHUFFLED = {"cka/shuffled/0/render~chart": 0.3, "cka/shuffled/1/render~chart": 0.2}


def row(label: str, scores: list[list[float]], seed: int = 0, **values) -> Row:
    costs = {"trained": 1000, "stored": 2000, "seconds": 10.0, **values}
    return Row(label, "sequential", seed, TASKS, Matrix.from_rows(scores), **costs)


@pytest.fixture
def table() -> Table:
    """Two methods, one of them with two seeds, and a bound."""
    return Table(
        [
            Row("zeroshot", "none", 0, TASKS, Matrix.from_rows([[10.0, 20.0]])),
            row("ewc", [[80.0], [40.0, 60.0]], measured=({}, {**CKA, **SHUFFLED}), probes=("cka",)),
            row("ewc", [[90.0], [60.0, 80.0]], seed=1),
            row("hide", [[80.0], [70.0, 90.0]], trained=3000),
        ]
    )


def test_a_heat_map_has_the_means_in_its_cells(table: Table):
    axes = cl_zoo.plot_matrix(table, "ewc")

    assert {one.get_position(): one.get_text() for one in axes.texts} == {
        (0, 0): "85.0",
        (0, 1): "50.0",
        (1, 1): "70.0",
    }
    assert [one.get_text() for one in axes.get_yticklabels()] == ["after render", "after chart"]


def test_the_curve_of_a_method_is_its_mean_over_the_tasks_learnt(table: Table):
    first, second = cl_zoo.plot_forgetting(table).get_lines()

    assert list(first.get_ydata()) == [85.0, 60.0]
    assert list(second.get_ydata()) == [80.0, 80.0]


def test_cost_and_score_of_each_method_are_a_point(table: Table):
    axes = cl_zoo.plot_pareto(table, "trained")
    points = {tuple(map(float, (*one.get_xdata(), *one.get_ydata()))) for one in axes.get_lines()[:2]}

    assert points == {(1000.0, 60.0), (3000.0, 80.0)}
    with pytest.raises(OptionError, match="known: seconds, stored, trained"):
        cl_zoo.plot_pareto(table, "money")


def test_the_frontier_is_made_of_what_none_beats():
    assert frontier([(2, 50), (1, 40), (3, 45), (2, 60), (4, 70)]) == [(1, 40), (2, 60), (4, 70)]


def test_likeness_is_drawn_by_layer_with_what_chance_gives(table: Table):
    pair, shuffled = cl_zoo.plot_cka(table, "ewc").get_lines()

    assert list(pair.get_xdata()) == [0, 1]
    assert list(pair.get_ydata()) == [0.9, 0.4]
    assert list(shuffled.get_ydata()) == [0.3, 0.2]
    with pytest.raises(DataError, match="hide: no run measured CKA; run it with `--probe cka`"):
        cl_zoo.plot_cka(table, "hide")


def test_an_unknown_method_is_named_with_the_known_ones(table: Table):
    with pytest.raises(OptionError, match="did you mean 'hide'"):
        cl_zoo.plot_matrix(table, "hid")


def test_all_figures_are_written(table: Table, tmp_path: Path):
    files = {file.name for file in write_figures(table, tmp_path)}
    again = Table([row("a b", [[50.0], [50.0, 50.0]]), row("a[b]", [[50.0], [50.0, 50.0]])])

    assert {"matrix-a_b.png", "matrix-a_b-2.png"} <= {file.name for file in write_figures(again, tmp_path)}
    names = ["cka-ewc", "forgetting", "matrix-ewc", "matrix-hide", "matrix-zeroshot"]
    names += ["pareto-seconds", "pareto-stored", "pareto-trained"]
    assert files == {f"{name}.{ending}" for name in names for ending in ("png", "svg")}
    assert all((tmp_path / file).read_bytes()[:4] in (b"\x89PNG", b"<?xm") for file in files)


def test_text_is_read_on_every_colour_of_the_scale():
    grounds = [colours.of_score(score / 4) for score in range(401)]

    assert min(colours.contrast(colours.on(ground), ground) for ground in grounds) >= 4.5
    assert colours.contrast((255, 255, 255), (0, 0, 0)) == pytest.approx(21)
    assert colours.as_hex(colours.of_score(100.0)) == "#fee838"
    assert colours.of_score(130.0) == colours.of_score(100.0)


def test_the_scale_becomes_brighter_with_the_score():
    """So it is read in grey too."""
    bright = [colours.contrast(colours.of_score(score), (0, 0, 0)) for score in range(0, 101, 5)]

    assert bright == sorted(bright)


def test_no_two_of_many_methods_look_alike():
    assert len({colours.of_method(place) for place in range(32)}) == 32
