"""Sentences of errors: what others say, on one line."""

from __future__ import annotations

from cl_zoo.errors import first_line


def test_what_the_operating_system_says_stands_without_its_number():
    assert (
        first_line(FileNotFoundError(2, "No such file or directory", "a.json")) == "no such file or directory"
    )
    assert first_line(OSError("the disk\nis gone")) == "the disk"
    assert first_line(ValueError()) == "ValueError"
