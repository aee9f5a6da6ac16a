"""What stands in the pages of the documentation: their code blocks, and the commands in them.

indented by four spaces          commands, one a line
```console                       lines after `$ ` are commands, what follows is their output
```bash, ```sh                   commands, one a line
```python                        code
```text, ```yaml, ```json, …     neither
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "benchmarks" / "README.md",
        *(ROOT / "docs").glob("*.md"),
    ]
)

PROGRAMS = ("cl-zoo", "python", "pip", "torchrun", "pytest", "tox", "mkdocs", "ruff", "mypy")
DATA = ("text", "yaml", "json", "toml", "bibtex", "diff", "csv")
"""Languages of blocks that hold no command."""

COMMAND = re.compile(r"([A-Z_]+=\S+ )*(" + "|".join(PROGRAMS) + r")\b")


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        line: of the page on which its text begins, from 1.
        language: of the fence; `indented` where there is none.
        before: the last line of text before it.
    """

    page: Path
    line: int
    language: str
    text: str
    before: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a page, with what the page says that it prints (nothing, where it does not say)."""

    place: str
    text: str
    output: str = ""


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page in order."""
    lines = page.read_text(encoding="utf-8").split("\n")
    found, place, before, listed = [], 0, "", False
    while place < len(lines):
        line = lines[place]
        fence = re.match(r"( *)(```+)\s*(\w*)", line)
        blank_before = place == 0 or not lines[place - 1].strip()
        if fence:
            end = next(n for n in range(place + 1, len(lines)) if lines[n].strip() == fence[2])
            inside = [one.removeprefix(fence[1]) for one in lines[place + 1 : end]]
            found.append(Block(page, place + 2, fence[3], "\n".join(inside), before))
            place = end + 1
        elif line.startswith("    ") and line.strip() and blank_before and not listed:
            end = place
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            inside = [one.removeprefix("    ") for one in lines[place:end]]
            found.append(Block(page, place + 1, "indented", "\n".join(inside).rstrip(), before))
            place = end
        else:
            if line.strip():
                listed = (
                    bool(re.match(r" {0,3}([*+-]|\d+\.) ", line))
                    or (listed and not blank_before)
                    or (listed and line.startswith("  "))
                )
                before = line
            place += 1
    return found


def commands(page: Path) -> list[Command]:
    """All commands of a page in order."""
    return [command for block in blocks(page) for command in commands_of(block)]


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a block.

    Raises:
        ValueError: its language is unknown, or a command hides where none is looked for.
    """
    lines = block.text.split("\n")
    if block.language == "console":
        starts = [n for n, line in enumerate(lines) if line.startswith("$ ")]
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            count = _lines([line.removeprefix("$ ") for line in lines[start:end]])
            text = "\n".join(lines[start : start + count]).removeprefix("$ ")
            yield Command(f"{block.place}, {text}", text, "\n".join(lines[start + count : end]).strip("\n"))
    elif block.language in ("bash", "sh", "shell") or (
        block.language == "indented" and COMMAND.match(block.text)
    ):
        place = 0
        while place < len(lines):
            count = _lines(lines[place:])
            text = "\n".join(lines[place : place + count])
            place += count
            if not text.strip() or text.startswith("#"):
                continue
            if not COMMAND.match(text):
                raise ValueError(
                    f"{block.place}: {text!r} stands among commands; write it in a block of its own"
                )
            yield Command(f"{block.place}, {text}", text)
    elif block.language in (*DATA, "indented"):
        for line in lines:
            if re.match(r"\s*(\$ |cl-zoo \w|(import|from) \w+)", line):
                raise ValueError(
                    f"{block.place}: {line!r} stands in a block of {block.language}; write commands in a console block and Python in one of python"
                )
    elif block.language not in ("python", "pycon"):
        raise ValueError(f"{block.place}: a block of {block.language!r}; name its language")


def hidden(page: Path) -> list[str]:
    """Lines that look like commands and stand in no block, as in a list."""
    inside = {n for one in blocks(page) for n in range(one.line - 1, one.line + one.text.count("\n") + 1)}
    lines = enumerate(page.read_text(encoding="utf-8").split("\n"), start=1)
    return [
        line for n, line in lines if n not in inside and re.match(r"\s+(\$ )?(cl-zoo \w|python -m )", line)
    ]


def _lines(lines: list[str]) -> int:
    """How many lines the first command takes: up to one that ends neither in a backslash nor within quotes."""
    for count in range(1, len(lines) + 1):
        text = re.sub(r"\\.", "", "\n".join(lines[:count]).replace("\\\n", ""), flags=re.DOTALL)
        open_quote = ""
        for letter in text:
            if letter in "'\"":
                open_quote = "" if letter == open_quote else open_quote or letter
        if not open_quote and not lines[count - 1].endswith("\\"):
            return count
    return len(lines)
