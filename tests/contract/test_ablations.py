"""Declared ablations: what a method may write, and what the bundled ones have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, Field

from cl_zoo.contract.ablations import Ablation, ablations
from cl_zoo.contract.plugins import load_class
from cl_zoo.errors import PluginError
from cl_zoo.names import METHODS, installed

BUNDLED = [one.name for one in installed(METHODS) if one.distribution == "cl-zoo"]


class Pulled:
    """A method with one option and two rows."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        strength: float = Field(1.0, ge=0, description="λ")

    ablations: ClassVar[Any] = {
        "whole": {"options": {}, "source": "Table 2", "published": {"last": 61.5}, "on": "birds"},
        "no pull": {"options": {"strength": 0}, "source": "Table 2"},
    }


def declared(**rows: Any) -> type:
    return type("Changed", (Pulled,), {"ablations": rows})


def test_rows_come_in_the_order_in_which_they_are_declared():
    assert ablations("pulled", Pulled) == (
        Ablation("whole", {}, "Table 2", {"last": 61.5}, "birds"),
        Ablation("no pull", {"strength": 0}, "Table 2", {}, ""),
    )
    assert ablations("plain", object) == ()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"options": {"strenght": 0}, "source": "S"}, "no option 'strenght'; did you mean 'strength'"),
        (
            {"options": {"strength": -1}, "source": "S"},
            "strength: input should be greater than or equal to 0",
        ),
        ({"options": {}}, "has None as its source; give its options and its source"),
        ({"options": [], "source": "S"}, r"has \[\] as its options"),
        ({"options": {}, "source": "S", "publish": {}}, "has 'publish'; did you mean 'published'"),
        ({"options": {}, "source": "S", "published": {"lats": 1}, "on": "b"}, "'lats'; did you mean 'last'"),
        ({"options": {}, "source": "S", "published": {"last": 1}}, "no benchmark; name it as 'on'"),
        (3, "is a int; write"),
    ],
)
def test_what_cannot_be_run_or_compared_is_told_when_the_method_is_loaded(row: Any, says: str):
    with pytest.raises(PluginError, match=f"^pulled: ablation 'row'.*{says}"):
        ablations("pulled", declared(row=row))


def test_a_misspelt_option_is_found_before_anything_runs(tmp_path: Path):
    file = tmp_path / "pulled.py"
    file.write_text('class Pulled:\n    ablations = {"row": {"options": {"depth": 1}, "source": "S"}}\n')

    with pytest.raises(PluginError, match="ablation 'row' has no option 'depth'"):
        load_class(f"{file}:Pulled")


def test_published_rows_of_bundled_methods_are_the_papers():
    """HiDe's Table 3, BranchLoRA's ablation and SAME's, in the papers' own order."""
    found = {name: ablations(name, load_class(name)) for name in BUNDLED}

    assert {name for name, rows in found.items() if rows} == {
        "hide",
        "branchlora",
        "same",
        "smolora",
        "merging",
        "pgp",
    }
    table = [row for row in found["hide"] if row.source == "Table 3"]
    assert [row.published["last"] for row in table] == [64.19, 61.26, 60.64, 67.62, 66.84]
    assert [row.published["avg"] for row in table] == [68.94, 65.43, 63.28, 70.91, 70.13]
    steps = found["branchlora"][1:]
    assert [row.published["last"] for row in steps] == [38.19, 39.96, 42.22, 44.20]
    assert [sum(row.options.values()) for row in steps] == [1, 2, 3, 4]
    assert [row.published["last"] for row in found["same"]] == [50.58, 61.32, 65.89, 66.82]
    assert [sum(row.options.values()) for row in found["same"]] == [0, 1, 2, 3]
    assert [row.name for row in found["smolora"]] == ["VU", "IF", "VU, IF", "VU, IF, AF"]
