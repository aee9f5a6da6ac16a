"""What `show published` prints of a publication."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cl_zoo.published import published


def test_publications_are_listed_with_a_sentence_each(cli: Callable[..., Any]):
    told = cli("show", "published").out.splitlines()

    assert [line.split()[0] for line in told] == list(published())
    assert all(line.rstrip().endswith(".") for line in told)


def test_a_table_is_printed_with_its_source_and_its_slip_is_marked(cli: Callable[..., Any]):
    told = cli("show", "published", "hide-table2").out

    assert "source     Guo et al., HiDe-LLaVA, ACL 2025, table 2" in told
    assert "benchmark  coin, order STIGVRQO" in told
    (slip,) = [line for line in told.splitlines() if "right:" in line]
    assert slip.split()[0] == "HiDe-LLaVA"
    assert slip.endswith("63.95 (right: 62.82)")
    assert told.index("Bounds") < told.index("\nAvg") < told.index("\nLast")


def test_a_matrix_is_printed_stage_by_stage(cli: Callable[..., Any]):
    told = cli("show", "published", "mcitlib-issue6").out

    assert "after CLEVR" in told
    assert told.splitlines()[-1].split() == [
        "after",
        "Flickr30k",
        *"65.77 71.27 45.05 51.20 49.60 57.47 56.73".split(),
    ]


def test_an_order_of_the_tasks_tells_rows_of_one_method_apart(cli: Callable[..., Any]):
    assert "HiDe-LLaVA, AIRFCV" in cli("show", "published", "hide-table4").out
    assert cli("show", "published", "nobody").code == 2
