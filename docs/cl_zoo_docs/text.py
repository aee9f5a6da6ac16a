"""Docstrings as Markdown, word for word: equations keep their columns, lists become lists, sections get a heading."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
"""Headings of Google's style; what stands below them is indented."""

ATOMS = re.compile(r"(?P<code>`[^`]+`)|(?P<link>https?://[^\s<>()]*[^\s<>(),.;:])|(?P<special>[\\*_<>\[\]|])")


def escaped(text: str) -> str:
    """Text that Markdown shows as it stands; code in backticks and addresses are what they look like."""

    def safe(found: re.Match[str]) -> str:
        if found["code"]:
            return found["code"]
        if found["link"]:
            return f"<{found['link']}>"
        return {"<": "&lt;", ">": "&gt;"}.get(found["special"], "\\" + found["special"])

    return re.sub(r"^([-+#]|\d+\.)(?= )", r"\\\1", ATOMS.sub(safe, text))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("\n", " ") for cell in line) + " |" for line in lines)


def code(text: str) -> str:
    """Inline code that may stand in a table."""
    return f"`{text}`" if "|" not in text else "<code>" + escaped(text).replace("\\|", "&#124;") + "</code>"


def fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text}\n```"


def markdown(docstring: str) -> str:
    """A docstring without its common indentation (`inspect.cleandoc`) as Markdown."""
    blocks = re.split(r"\n(?:[ \t]*\n)+", docstring.strip("\n"))
    return "\n\n".join(part for block in blocks for part in _block(block.split("\n")))


def _block(lines: Sequence[str]) -> Iterator[str]:
    """What one block between blank lines holds: runs of text, equations, lists and sections."""
    kinds, kind = [], ""
    for line in lines:
        kind = _kind(line, kind)
        kinds.append(kind)
    for one, group in groupby(zip(kinds, lines, strict=True), key=lambda pair: pair[0]):
        yield from WRITERS[one.split()[0]]([line for _, line in group])


def _kind(line: str, before: str) -> str:
    """`text`, `code`, `list N` (its mark stands in column N) or `section N`, by the line and what came before it."""
    indent = len(line) - len(line.lstrip())
    name, _, column = before.partition(" ")
    if line.lstrip().startswith("* "):
        return f"list {indent}"
    if name == "list" and indent > int(column):
        return before
    if indent == 0 and line.rstrip(":") in SECTIONS and line.endswith(":"):
        return f"section {SECTIONS.index(line[:-1])}"
    if name == "section" and indent > 0:
        return before
    return "code" if indent >= 4 else "text"


def _text(lines: list[str]) -> Iterator[str]:
    yield "\n".join(escaped(line.strip()) for line in lines)


def _code(lines: list[str]) -> Iterator[str]:
    text = _flush(lines)
    yield fenced(text, "pycon" if text.startswith(">>>") else "text")


def _list(lines: list[str]) -> Iterator[str]:
    """A list, or a table that is written as one: its columns are kept."""
    if any(re.search(r"\S {3,}\S", line) for line in lines):
        yield fenced(_flush(lines))
        return
    items = [re.sub(r"^\s*\* ", "* ", line) if line.lstrip().startswith("* ") else line for line in lines]
    yield "\n".join(
        "* " + escaped(line[2:].strip()) if line.startswith("* ") else "  " + escaped(line.strip())
        for line in items
    )


def _section(lines: list[str]) -> Iterator[str]:
    """`Args:` and what is said of each name, or `Returns:` and a sentence."""
    yield f"**{lines[0].rstrip(':')}**"
    body = _flush(lines[1:]).split("\n")
    if lines[0] in ("Returns:", "Yields:"):
        yield from _text(body)
        return
    items = []
    for line in body:
        name, colon, says = line.partition(":")
        if line.startswith(" ") or not colon:
            items.append("  " + escaped(line.strip()))
        else:
            names = ", ".join(f"`{part.strip()}`" for part in name.split(","))
            items.append(f"* {names}: {escaped(says.strip())}")
    yield "\n".join(items)


def _flush(lines: Sequence[str]) -> str:
    """The lines without the indentation that all of them have."""
    indent = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    return "\n".join(line[indent:] for line in lines)


WRITERS = {"text": _text, "code": _code, "list": _list, "section": _section}
