"""How a method stands to its authors' code: the last section of its module's docstring, read strictly.

    Held against:
      paper     arXiv 2403.08350
      code      zackschen/CoIN@4122465, CoIN/peft/tuners/coinmoelora.py
      verdict   equal: layer outputs and gradients (tests/oracles/test_moelora.py)
      differs   dropout: theirs draws a mask per expert, ours one per layer; nothing at dropout 0, less noise above
      variants  none

`paper`, `verdict` and `variants` stand once, `code` at least once, `differs` as often as needed. A longer entry goes on in lines
that are indented deeper than the keys. A method without the section is held against nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cl_zoo.errors import PluginError, nearest

HEADING = "Held against:"
KEYS = ("paper", "code", "verdict", "differs", "variants")
VERDICTS = ("equal", "equal but", "from the paper alone", "differs")
NONE_RELEASED = "none released"


@dataclass(frozen=True)
class Source:
    """Public code that was read.

    Attributes:
        repository: owner and name on GitHub.
        commit: the version that was read, as Git names it.
        files: what was read of it.
    """

    repository: str
    commit: str
    files: str

    def __str__(self) -> str:
        return f"{self.repository}@{self.commit}, {self.files}"


@dataclass(frozen=True)
class Deviation:
    """One thing that we do in another way.

    Attributes:
        topic: what it is about.
        says: what theirs does and what ours does.
        effect: what that changes.
    """

    topic: str
    says: str
    effect: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.says}; {self.effect}"


@dataclass(frozen=True)
class Held:
    """How a method stands to its paper and to its authors' code.

    Attributes:
        paper: where it was published.
        code: what was read of it; nothing where none was released.
        verdict: one of `VERDICTS` and what it rests on.
        differs: what we do in another way, on purpose.
        variants: options that switch to theirs, or `none`.
    """

    paper: str
    code: tuple[Source, ...]
    verdict: str
    differs: tuple[Deviation, ...]
    variants: str

    @property
    def tests(self) -> tuple[str, ...]:
        """The files that the verdict rests on, from the root of the repository."""
        return tuple(re.findall(r"\btests/\w+/\w+\.py", self.verdict))

    def rows(self) -> list[tuple[str, str]]:
        """Key and text of every entry, in the order of `KEYS`."""
        code = [str(one) for one in self.code] or [NONE_RELEASED]
        return [
            ("paper", self.paper),
            *(("code", one) for one in code),
            ("verdict", self.verdict),
            *(("differs", str(one)) for one in self.differs),
            ("variants", self.variants),
        ]


def parted(documentation: str, owner: str) -> tuple[str, Held | None]:
    """What a docstring says (`inspect.cleandoc`) without its last section, and that section where there is one.

    Args:
        owner: name of the method, for errors.

    Raises:
        PluginError: the section has an unknown key, lacks one or says it twice, cannot be read, or is not the last.
    """
    before, heading, section = f"\n{documentation}".partition(f"\n{HEADING}\n")
    if not heading:
        return documentation, None
    found: dict[str, list[str]] = {key: [] for key in KEYS}
    for key, text in _entries(section.splitlines(), owner):
        if key not in found:
            raise _error(owner, f"has no key {key!r}{nearest(key, KEYS)}")
        if not text:
            raise _error(owner, f"says nothing under {key!r}; write it, or take the line out")
        found[key].append(text)
    for key, texts in found.items():
        if not texts and key != "differs":
            raise _error(owner, f"lacks {key!r}; it has one line for each of {', '.join(KEYS)}")
        if len(texts) > 1 and key not in ("code", "differs"):
            raise _error(owner, f"says {key!r} {len(texts)} times; join the lines")
    return before.strip("\n"), _held(found, owner)


def _entries(lines: Sequence[str], owner: str) -> Iterator[tuple[str, str]]:
    """Key and text of each entry, its lines joined by a space."""
    filled = [line for line in lines if line.strip()]
    margin = min((_indent(line) for line in filled), default=0)
    if not margin:
        wrong = next((line for line in filled if not _indent(line)), "")
        raise _error(
            owner,
            f"goes on with {wrong[:40]!r}; indent its lines, and put what is no part of it before it",
        )
    if _indent(filled[0]) > margin:
        raise _error(owner, f"begins with {filled[0].strip()[:40]!r}; indent all keys alike")
    entry: list[str] = []
    for line in [*filled, " " * margin]:
        if _indent(line) <= margin and entry:
            key, _, text = " ".join(entry).partition(" ")
            yield key, text.strip()
            entry = []
        entry.append(line.strip())


def _held(found: dict[str, list[str]], owner: str) -> Held:
    (verdict,) = found["verdict"]
    if not re.match(r"(equal|equal but [^:]+|from the paper alone|differs( [^:]+)?): \S", verdict):
        raise _error(
            owner,
            f"has the verdict {verdict[:40]!r}; begin it with {', '.join(f'`{one}`' for one in VERDICTS)}"
            " and say behind a colon what was compared",
        )
    return Held(
        found["paper"][0],
        () if found["code"] == [NONE_RELEASED] else tuple(_source(text, owner) for text in found["code"]),
        verdict,
        tuple(_deviation(text, owner) for text in found["differs"]),
        found["variants"][0],
    )


def _source(text: str, owner: str) -> Source:
    read = re.fullmatch(r"([\w.-]+/[\w.-]+)@([\w.-]+), (.+)", text)
    if read is None:
        raise _error(
            owner, f"has the code {text[:60]!r}; write owner/name@commit, file, or `{NONE_RELEASED}`"
        )
    return Source(*read.groups())


def _deviation(text: str, owner: str) -> Deviation:
    read = re.fullmatch(r"([^:;]+): ([^;]+); (.+)", text)
    if read is None:
        raise _error(
            owner,
            f"differs in {text[:60]!r}; write topic: what theirs does, what ours does; what it changes",
        )
    return Deviation(*read.groups())


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _error(owner: str, says: str) -> PluginError:
    return PluginError(f"{owner}: the section {HEADING.rstrip(':')!r} of its docstring {says}")
