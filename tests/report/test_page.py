"""The page of a report as text: whole, alone, of bounded size; and the geometry of its charts."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from kept_runs import write_run

from cl_zoo.report.estimates import Estimate
from cl_zoo.report.page.charts import Scale, Steps, Values, lines, scatter, short, spread
from cl_zoo.report.page.view import interval
from cl_zoo.runs.finding import find_runs
from cl_zoo.runs.written import html, parts

VOID = {"meta", "link", "input", "img", "br"}
MEASURED = (
    {},
    {"cka/0/render~chart": 0.7, "cka/1/render~chart": 0.4, "cka/shuffled/0/render~chart": 0.2, "loss": 1.5},
)


class Tags(HTMLParser):
    """Every tag is closed where it has to be, and no attribute names another place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        given = dict(attrs)
        self.ids += [str(given["id"])] if "id" in given else []
        self.links += [str(given[key]) for key in ("href", "src", "action") if key in given]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """As `<circle/>` in a chart."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(root: Path, **settings) -> str:
    found = find_runs([root])
    return html(parts(found), found, **settings)


def test_it_is_whole_and_names_no_other_place(tmp_path: Path):
    write_run(tmp_path, "ewc", measured=MEASURED, probes=("cka",))
    write_run(tmp_path, "hide", scores=([100], [100, 75]))
    write_run(tmp_path, "ewc", tasks=("chart", "render"))

    text = page(tmp_path)
    tags = Tags(text)

    assert len(tags.ids) == len(set(tags.ids))
    inside = {f"#{one}" for one in tags.ids}
    assert {one for one in tags.links if one.startswith("#")} <= inside
    assert all(one.startswith(("#", "data:")) for one in tags.links)
    assert not re.search(
        r"@import|url\(|fetch\(|XMLHttpRequest|https?://", re.sub(r"<pre.*?</pre>", "", text, flags=re.S)
    )
    assert "CKA by layer" in text


def test_it_says_what_was_left_out_and_what_a_method_forgot(tmp_path: Path):
    damaged = write_run(tmp_path, "lwf")
    write_run(tmp_path, "ewc", scores=([100], [25, 100]))
    (damaged / "answers" / "0-0.jsonl").unlink()

    text = page(tmp_path)

    assert f"<li>{damaged}: answers/0-0.jsonl is missing" in text
    assert text.count("forgotten by 1 of 1") == 3
    assert "zoo is no installed benchmark, and a run&#39;s folder runs no code" in text


def test_the_number_of_examples_is_bounded(tmp_path: Path):
    write_run(tmp_path, "ewc")

    assert page(tmp_path, count=2).count('<div class="card">') == 2 * 2
    assert page(tmp_path, count=0).count('<div class="card">') == 0


def test_the_page_of_many_runs_is_small(tmp_path: Path):
    for seed in range(3):
        for n in range(12):
            write_run(tmp_path, f"method {n}", seed)

    assert len(page(tmp_path).encode()) < 1_000_000


def last_of(text: str) -> tuple[float, ...]:
    """The ends of the second interval of the summary."""
    return tuple(map(float, re.findall(r"<small>\[(.*?)\]", text)[1].split(", ")))


def test_the_interval_of_one_run_is_that_of_its_samples_and_of_several_that_of_the_seeds(tmp_path: Path):
    """3 of 4 answers of one of two tasks are right: 87.5 ± 1.96 · √(100² · 0.75 · 0.25 / 4) / 2 = ± 21.2. A second run has 62.5."""
    write_run(tmp_path, "ewc", scores=([100], [100, 75]))
    alone = page(tmp_path)
    write_run(tmp_path, "ewc", 1, scores=([100], [50, 75]))
    several = page(tmp_path)

    low, high = last_of(alone)
    assert (low, high) == pytest.approx((66.3, 108.7), abs=0.3)
    wide_low, wide_high = last_of(several)
    assert wide_low < low < high < wide_high
    assert (wide_low + wide_high) / 2 == pytest.approx(75.0, abs=0.1)
    assert interval(Estimate(1.0, 1)) == ""


@pytest.mark.parametrize(("cells", "scores"), [("last", ([], [25, 75])), ("full", ([100, 0], [25, 75]))])
def test_runs_that_measured_fewer_or_more_cells_have_a_page(
    tmp_path: Path, cells: str, scores: list[list[int]]
):
    write_run(tmp_path, "ewc", scores=scores, cells=cells)

    text = page(tmp_path)

    Tags(text)
    assert text.count('class="none"') == (2 if cells == "last" else 0)
    assert ("100</td>" in text) == (cells == "full")


def test_a_comparison_of_bounds_alone_has_a_page(tmp_path: Path):
    write_run(tmp_path, "zeroshot", scores=([25, 50],), protocol="none")

    assert "None: no run of tasks learnt one after the other" in page(tmp_path)


# Charts


def test_labels_stand_apart_in_their_order_and_within_the_ends():
    places = spread([50, 52, 51, 10, 200], 0, 100, gap=10)

    assert places[3] == 10
    assert sorted([places[0], places[2], places[1]]) == [places[0], places[2], places[1]]
    ordered = sorted(places)
    assert all(b - a >= 10 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert max(places) <= 100
    assert spread([5, 5, 5], 0, 10, gap=10) == [0, 5, 10]  # no room: closer, evenly
    assert spread([], 0, 10) == []


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([12.0, 88.0], (0, 100)),
        ([393_024, 414_656], (390_000, 415_000)),
        ([7.0], (6.6, 7.4)),
        ([0.0], (-0.6, 0.6)),
    ],
)
def test_a_scale_has_round_ends_around_its_values(values: list[float], ends: tuple[float, float]):
    scale = Scale.over(values, 0, 200)

    assert (pytest.approx(scale.low), pytest.approx(scale.high)) == ends
    assert all(0 <= scale.at(value) <= 200 for value in values)
    assert len(scale.ticks) >= 2


def test_a_scale_of_scores_does_not_make_a_small_difference_look_great():
    scale = Scale.of([Estimate(27.0, 1), Estimate(27.4, 1)], 200, 0)

    assert scale.high - scale.low >= 10
    assert Scale.of([Estimate(98.0, 2, 1.0, 90.0, 106.0)], 200, 0).high <= 100


def test_a_line_goes_through_its_means_and_its_band_through_the_ends_of_its_intervals():
    points = [(0, Estimate(50.0, 2, 1.0, 40.0, 60.0)), (1, Estimate(100.0, 2, 1.0, 90.0, 110.0))]
    chart = lines("t", "t", [Values("ewc", 0, points)], Steps("x", ("a", "b"), ("1", "2")), least=100.0)
    (series,) = chart.series

    (x0, y0, words), (x1, y1, _) = series.marks
    assert series.path == f"{x0:g},{y0:g} {x1:g},{y1:g}"
    assert words == "ewc, a: 50.00 [40.0, 60.0]"
    top, floor = chart.top, chart.height - chart.bottom
    assert y1 == top
    assert y0 == pytest.approx((top + floor) / 2, abs=0.1)
    assert series.band.split() == [
        f"{x0:g},{y0 - 0.1 * (floor - top):g}",
        f"{x1:g},{top:g}",
        f"{x1:g},{top + 0.1 * (floor - top):g}",
        f"{x0:g},{y0 + 0.1 * (floor - top):g}",
    ]


def test_of_equal_costs_the_labels_still_stand_apart():
    values = [Values(f"m{n}", n, [(414_656.0, Estimate(60.0 + n / 10, 1))]) for n in range(20)]
    chart = scatter("t", "t", values, "x", [(414_656.0, 61.9)])
    heights = sorted(one.name[1] for one in chart.series)

    assert all(b - a >= 13.9 for a, b in itertools.pairwise(heights))


def test_numbers_on_an_axis_are_short():
    assert [short(one) for one in (414_656, 2_092_224, 0.25, 3.0, -5e9)] == [
        "414.7 k",
        "2.092 M",
        "0.25",
        "3",
        "-5 B",
    ]
