"""What a docstring says of a method's paper and its authors' code, read strictly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cl_zoo.cli import catalogue
from cl_zoo.contract.held import Deviation, Held, Source, parted
from cl_zoo.errors import PluginError

SAID = """A method.

It does this.

    y = W x

Held against:
  paper     arXiv 2403.08350
  code      one/Name@4122465, peft/layer.py and
            peft/model.py
  code      an-other/name.two@v1.2, train.py
  verdict   equal but for rounding: outputs and gradients
            (tests/oracles/test_a.py, tests/oracles/test_b.py)
  differs   dropout: theirs draws a mask per expert,
              ours one per layer; nothing at dropout 0
  differs   start: theirs is uniform, ours is normal; a larger A; a larger first step
  variants  none"""

HELD = Held(
    "arXiv 2403.08350",
    (
        Source("one/Name", "4122465", "peft/layer.py and peft/model.py"),
        Source("an-other/name.two", "v1.2", "train.py"),
    ),
    "equal but for rounding: outputs and gradients (tests/oracles/test_a.py, tests/oracles/test_b.py)",
    (
        Deviation("dropout", "theirs draws a mask per expert, ours one per layer", "nothing at dropout 0"),
        Deviation("start", "theirs is uniform, ours is normal", "a larger A; a larger first step"),
    ),
    "none",
)


def without(key: str) -> str:
    """The same but for one key and what goes on below it."""
    kept, inside = [], False
    for line in SAID.split("\n"):
        inside = line.startswith(f"  {key}") or (inside and line.startswith("   "))
        kept += [] if inside else [line]
    return "\n".join(kept)


def test_a_section_is_parted_from_what_stands_before_it() -> None:
    about, held = parted(SAID, "a")

    assert about == "A method.\n\nIt does this.\n\n    y = W x"
    assert held == HELD
    assert held.tests == ("tests/oracles/test_a.py", "tests/oracles/test_b.py")


def test_what_is_read_says_the_same_again() -> None:
    section = SAID.partition("Held against:\n")[2]

    told = "\n".join(f"  {key} {text}" for key, text in HELD.rows())

    assert told.split() == section.split()


def test_a_method_without_the_section_is_held_against_nothing() -> None:
    assert parted("A method.\n\nHeld against time it stands.", "a") == (
        "A method.\n\nHeld against time it stands.",
        None,
    )


def test_a_method_may_differ_in_nothing_and_have_no_code() -> None:
    _, held = parted(without("differs"), "a")
    assert held is not None
    assert held.differs == ()

    _, held = parted(without("code") + "\n  code none released", "a")
    assert held is not None
    assert held.code == ()
    assert ("code", "none released") in held.rows()


@pytest.mark.parametrize(
    "verdict", ["equal: x", "equal but y: x", "from the paper alone: x", "differs: x", "differs in y: x"]
)
def test_a_verdict_begins_with_one_of_four(verdict: str) -> None:
    _, held = parted(without("verdict") + f"\n  verdict {verdict}", "a")

    assert held is not None
    assert held.verdict == verdict


@pytest.mark.parametrize("key", ["paper", "code", "verdict", "variants"])
def test_a_key_that_is_missing_is_named(key: str) -> None:
    with pytest.raises(PluginError, match=f"^a: the section 'Held against' of its docstring lacks '{key}'"):
        parted(without(key), "a")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("  papper  arXiv", "has no key 'papper'; did you mean 'paper'?"),
        ("  paper  arXiv", "says 'paper' 2 times; join the lines"),
        ("  differs", "says nothing under 'differs'; write it, or take the line out"),
        ("  differs dropout", r"differs in 'dropout'; write topic: what theirs does"),
        ("  differs dropout: a mask each", r"differs in 'dropout: a mask each'; write topic"),
        ("  code  Name@4122465, layer.py", "has the code 'Name@4122465, layer.py'; write owner/name@commit"),
        ("  code  one/Name, layer.py", "has the code 'one/Name, layer.py'; write owner/name@commit"),
        (
            "\nAnd more.",
            "goes on with 'And more.'; indent its lines, and put what is no part of it before it",
        ),
        (" odd  line", "begins with 'paper     arXiv"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, says: str) -> None:
    with pytest.raises(PluginError, match=says):
        parted(f"{SAID}\n{line}", "a")


@pytest.mark.parametrize(
    "verdict", ["the same: x", "equality: x", "equal", "equal but for y", "equal in y: x"]
)
def test_another_verdict_is_refused(verdict: str) -> None:
    with pytest.raises(PluginError, match=f"has the verdict '{verdict}'; begin it with `equal`, `equal but`"):
        parted(without("verdict") + f"\n  verdict {verdict}", "a")


def test_show_prints_the_section_once_in_columns(cli: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f'"""{SAID}"""\n\n\nclass Mine:\n    """Mine."""\n')

    shown = cli("show", f"{file}:Mine").out

    assert shown.count("Held against") == 1
    assert shown.count("theirs draws a mask per expert, ours one per layer; nothing at dropout 0") == 1
    (start,) = (line for line in shown.split("\n") if line.startswith("  differs   start"))
    assert start == "  differs   start: theirs is uniform, ours is normal; a larger A; a larger first step"
    assert "  code      one/Name@4122465, peft/layer.py and peft/model.py\n" in shown
    assert max(map(len, shown.split("\n"))) <= 120 or str(tmp_path) in shown
    assert shown.index("y = W x") < shown.index("Held against:\n  paper") < shown.index("class     ")


def test_show_names_the_method_whose_section_cannot_be_read(cli: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f'"""{without("paper")}"""\n\n\nclass Mine:\n    """Mine."""\n')

    ended = cli("show", f"{file}:Mine")

    assert ended.code == 2
    assert f"{file}:Mine: the section 'Held against' of its docstring lacks 'paper'" in " ".join(
        ended.err.split()
    )


def test_a_card_has_what_the_docstring_says_in_two_parts(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f'"""{SAID}"""\n\n\nclass Mine:\n    """Mine."""\n')

    card = catalogue.card(f"{file}:Mine")

    assert "Held against" not in card.about
    assert card.held == HELD
