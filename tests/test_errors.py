"""Sentences of errors: what others say, on one line."""

from __future__ import annotations

from cl_zoo.errors import LONGEST, cut, first_line, printable


def test_what_the_operating_system_says_stands_without_its_number():
    assert (
        first_line(FileNotFoundError(2, "No such file or directory", "a.json")) == "no such file or directory"
    )
    assert first_line(OSError("the disk\nis gone")) == "the disk"
    assert first_line(ValueError()) == "ValueError"


def test_what_moves_or_paints_a_terminal_is_spelled_and_all_else_stands():
    assert printable("a\x1b[31mb\u202ec") == r"a\x1b[31mb\u202ec"
    assert printable("été 猫\n\tdone") == "été 猫\n\tdone"


def test_a_very_long_name_loses_its_middle():
    whole = "a" * LONGEST
    assert cut(whole) == whole
    assert cut(f"{whole}z") == f"{'a' * (LONGEST // 2)}…{'a' * (LONGEST // 3 - 1)}z"
