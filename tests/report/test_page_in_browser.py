"""The page of a report in a real browser: read at both widths and in both schemes, sorted and filtered by keyboard and mouse."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kept_runs import begin_run, write_run

from cl_zoo.runs.finding import find_runs
from cl_zoo.runs.written import html, parts

pytestmark = pytest.mark.browser

TASKS = ("render", "chart", "a task of a rather long name")
SCRIPT = "<script>window.hit = 1</script>"
NASTY = {
    "label": "x<img src=x onerror='window.hit=1'>",
    "question": f"What?</pre></script>{SCRIPT}",
    "right": '"><svg onload="window.hit=1">',
    "wrong": "{{ 7 * 7 }} ' onmouseover='window.hit=1",
}
METHODS = {
    "ewc": ([100], [50, 75], [25, 50, 100]),
    "hide[variant=released]": ([75], [75, 75], [50, 75, 75]),
    "a method whose name is longer than any chart can show": ([100], [100, 75], [100, 75, 100]),
    NASTY["label"]: ([75], [50, 50], [0, 25, 50]),
}
PAPER = {
    "about": "a paper on the zoo.",
    "source": {"paper": f"Somebody {SCRIPT}", "table": "1"},
    "benchmark": "zoo",
    "backbone": "eagle-7b",
    "order": "RCA",
    "tasks": {task: task for task in TASKS},
    "rows": [
        {"method": "Base", "ours": "zeroshot", "protocol": "none", "cells": [20.0, 40.0, 30.0], "mean": 30.0},
        {
            "method": NASTY["label"],
            "ours": "ewc",
            "metric": "Last",
            "cells": [40.0, 80.0, 60.0],
            "mean": 60.0,
        },
    ],
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no Chromium here; install Debian's package `chromium`, or name one in CHROMIUM")
    with api.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a comparison with names and texts that would like to be more than text."""
    root = tmp_path_factory.mktemp("page")
    nasty = {key: text for key, text in NASTY.items() if key != "label"}
    for label, scores in METHODS.items():
        for seed in (0, 1):
            last = [*scores[:2], [min(score + 25 * seed, 100) for score in scores[2]]]
            write_run(root, label, seed, last, tasks=TASKS, **nasty)
    write_run(root, "zeroshot", 0, ([25, 0, 25],), tasks=TASKS, protocol="none")
    begin_run(root, "lwf")
    found = find_runs([root])
    place = root / "report.html"
    paper = root / "paper.yaml"
    paper.write_text(yaml.safe_dump(PAPER))
    place.write_text(html(parts(found, papers=[str(paper)]), found), encoding="utf-8")
    return place


class Opened:
    """The page in a window, with everything that went wrong in it."""

    def __init__(self, browser: Any, file: Path, width: int = 1280, scheme: str = "light") -> None:
        size = {"width": width, "height": 900}
        self.context = browser.new_context(viewport=size, color_scheme=scheme)
        self.page = self.context.new_page()
        self.told: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.told.append(message.text))
        self.page.on("pageerror", lambda error: self.told.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.told.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *_: object) -> None:
        self.context.close()
        assert self.told == []
        assert all(url.startswith(("file:", "data:")) for url in self.asked)


def labels(page: Any, table: str = ".view:not([hidden]) table") -> list[str]:
    """Methods in the order of a table, those that are shown."""
    rows = page.query_selector_all(f"{table} tbody tr")
    return [row.get_attribute("data-label") for row in rows if row.is_visible()]


OVERLAPS = """() => {
  const boxes = (all) => all.map((one) => [one, one.getBoundingClientRect()]).filter(([, b]) => b.width && b.height);
  const found = [];
  const compare = (all) => {
    all.forEach(([one, a], n) => all.slice(n + 1).forEach(([other, b]) => {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1.5 && high > 3.5) found.push(one.textContent.trim().slice(0, 40) + " / " + other.textContent.trim().slice(0, 40));
    }));
  };
  for (const svg of document.querySelectorAll(".chart svg")) compare(boxes([...svg.querySelectorAll("text")]));
  for (const group of document.querySelectorAll("main article, section, .charts, .heats, .cards, .chips, .keys, .views, .asked, .bar ul, tr"))
    compare(boxes([...group.children].filter((one) => getComputedStyle(one).position === "static")));
  return found;
}"""
OUTSIDE = """() => [...document.querySelectorAll("svg text, h1, h2, h3, p, button, figcaption, summary, img")]
  .filter((one) => !one.closest(".scroll") && !one.closest(".live") && one.getBoundingClientRect().width)
  .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5 || one.getBoundingClientRect().left < -0.5)
  .map((one) => one.textContent.trim().slice(0, 40))"""
CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((one) => one / 255).map((p) => p <= 0.04045 ? p / 12.92 : ((p + 0.055) / 1.055) ** 2.4)
    .reduce((sum, p, n) => sum + p * [0.2126, 0.7152, 0.0722][n], 0);
  const ground = (one) => { for (; one; one = one.parentElement) { const c = parse(getComputedStyle(one).backgroundColor); if (c.length < 4 || c[3] === 1) return c; } };
  return [...document.querySelectorAll("h1, h2, p, a, td, th, button, summary, small, li, em")].filter((one) => one.getBoundingClientRect().width && one.textContent.trim())
    .map((one) => { const [a, b] = [light(parse(getComputedStyle(one).color)), light(ground(one))]; return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.tagName + " " + one.textContent.trim().slice(0, 30)]; })
    .filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_is_read_at_each_width_and_in_each_scheme(browser: Any, file: Path, width: int, scheme: str):
    with Opened(browser, file, width, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate(OVERLAPS) == []
        assert page.evaluate(CONTRASTS) == []
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground.strip("rgb()").split(","))) < 200) == (scheme == "dark")


def test_what_comes_from_runs_stays_text(browser: Any, file: Path):
    with Opened(browser, file) as page:
        for details in page.query_selector_all("summary"):
            details.click()
        page.hover(".card td")
        assert page.evaluate("window.hit") is None
        assert NASTY["label"] in labels(page)
        shown = page.inner_text("#c1-examples")
        assert NASTY["question"] in shown
        assert NASTY["right"] in shown
        assert NASTY["wrong"] in shown
        assert page.query_selector("main img, main script, main svg svg") is None


def test_a_column_is_sorted_by_mouse_and_by_keyboard(browser: Any, file: Path):
    with Opened(browser, file) as page:
        assert labels(page)[0] == "zeroshot"
        head = page.locator(".view:not([hidden]) thead th", has_text="Last")
        head.get_by_role("button").click()
        falling = labels(page)

        assert head.get_attribute("aria-sort") == "descending"
        assert falling[0].startswith("a method whose name")
        assert falling[-1] == "zeroshot"
        page.keyboard.press("Enter")  # the button has the focus
        assert head.get_attribute("aria-sort") == "ascending"
        assert labels(page) == falling[::-1]
        assert page.inner_text(".live") == "sorted by Last, ascending"

        page.locator(".view:not([hidden]) thead th", has_text="Avg").get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "none"
        assert labels(page)[-1] == "zeroshot"  # a bound has no Avg, and stays last either way
        page.keyboard.press("Enter")
        assert labels(page)[-1] == "zeroshot"


def test_names_are_sorted_from_a(browser: Any, file: Path):
    with Opened(browser, file) as page:
        page.locator(".view:not([hidden]) thead th button").first.click()

        assert labels(page)[0].startswith("a method")
        assert labels(page)[-1] == "zeroshot"


def test_a_filter_hides_other_methods_in_tables_matrices_charts_and_examples(browser: Any, file: Path):
    with Opened(browser, file) as page:
        page.get_by_label("Filter methods").fill("HIDE rel")

        assert labels(page) == ["hide[variant=released]"]
        assert labels(page, "#c1-budget table") == ["hide[variant=released]"]
        assert page.inner_text(".live") == "1 of 5 methods"
        assert [
            one.inner_text() for one in page.query_selector_all(".heat figcaption") if one.is_visible()
        ] == ["hide[variant=released]"]
        assert len([one for one in page.query_selector_all("#c1-costs .series") if one.is_visible()]) == 3
        page.get_by_label("Filter methods").fill("")
        assert len(labels(page)) == 5


def test_each_view_of_the_scores_is_chosen_by_keyboard(browser: Any, file: Path):
    with Opened(browser, file) as page:
        page.get_by_role("button", name="Last by task").focus()
        page.keyboard.press("Space")

        heads = [
            one.inner_text().strip(" ↕") for one in page.query_selector_all(".view:not([hidden]) thead th")
        ]
        assert heads == ["Method", *TASKS, "Mean"]
        assert page.get_by_role("button", name="Last by task").get_attribute("aria-pressed") == "true"


def test_the_focus_is_seen_and_the_first_stop_skips_to_the_results(browser: Any, file: Path):
    with Opened(browser, file) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
        for _ in range(12):
            page.keyboard.press("Tab")
            style = page.evaluate(
                "(({outlineStyle, outlineWidth}) => [outlineStyle, outlineWidth])(getComputedStyle(document.activeElement))"
            )
            assert style == ["solid", "3px"]


def test_only_what_has_to_be_scrolled_is_a_stop_for_the_keyboard(browser: Any, file: Path):
    stops = "[...document.querySelectorAll('.scroll')].filter((one) => one.tabIndex === 0).length"
    with Opened(browser, file) as page, Opened(browser, file, 360) as small:
        assert page.evaluate(stops) < small.evaluate(stops)
        assert small.query_selector(".view:not([hidden]) .scroll").get_attribute("tabindex") == "0"


def test_a_method_is_brought_out_in_the_charts(browser: Any, file: Path):
    with Opened(browser, file) as page:
        page.locator(".keys button", has_text="ewc").click()
        page.mouse.move(0, 0)
        page.wait_for_timeout(200)
        shades = page.evaluate(
            "[...document.querySelectorAll('#c1-forgetting .chart')[0].querySelectorAll('.series')].map((one) => [one.dataset.label, getComputedStyle(one).opacity])"
        )

        assert dict(shades)["ewc"] == "1"
        assert {shade for label, shade in shades if label != "ewc"} == {"0.12"}


def test_without_scripts_everything_is_there(browser: Any, file: Path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())

    assert all(one.is_visible() for one in page.query_selector_all(".view"))
    context.close()


def test_it_opens_within_a_second(browser: Any, file: Path):
    """The quickest of three times: other processes may have the machine meanwhile."""
    times = []
    for _ in range(3):
        with Opened(browser, file) as page:
            times.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))

    assert min(times) < 1000
