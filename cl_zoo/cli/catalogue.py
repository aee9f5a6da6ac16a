"""What is installed, and what a method, a benchmark, a backbone or a recipe says of itself."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cl_zoo.errors import ClZooError
from cl_zoo.machine import cores
from cl_zoo.names import BACKBONES, BENCHMARKS, EXECUTORS, METHODS, Installed, find, installed_in

if TYPE_CHECKING:
    from pydantic import BaseModel

    from cl_zoo.contract.ablations import Ablation
    from cl_zoo.contract.held import Held

KINDS = {METHODS: "method", BENCHMARKS: "benchmark", BACKBONES: "backbone", EXECUTORS: "executor"}
IMPORT_SECONDS = 120
"""How long `list --check` waits for one plugin; importing torch from a cold disk takes a while."""

OURS = "cl-zoo"
"""The distribution that this package comes in."""


@dataclass(frozen=True)
class Entry:
    """An installed plugin; `fault` says what is wrong with it, where that was checked."""

    kind: str
    name: str
    distribution: str
    version: str
    value: str
    fault: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def entries(*, check: bool = False) -> list[Entry]:
    """All plugins by kind and name, from metadata alone; with `check` each is imported in a process of its own."""
    found = [(group, one) for group, ones in installed_in(tuple(KINDS)).items() for one in ones]
    names = [(group, one.name) for group, one in found]

    def fault(place: int) -> str:
        claims = names.count(names[place])
        if claims > 1:
            return f"claimed by {claims} distributions; uninstall all but one"
        return _import_fault(*found[place]) if check else ""

    faults = _at_once(fault, len(found)) if check else map(fault, range(len(found)))
    return [
        Entry(KINDS[group], one.name, one.distribution, one.version, one.value, says)
        for (group, one), says in zip(found, faults, strict=True)
    ]


def _at_once(fault: Callable[[int], str], count: int) -> list[str]:
    """What each of so many entries says of itself, asked in as many threads as there are cores."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(fault, range(count)))


def all_importable() -> bool:
    """Whether every plugin can be imported, all of them in one other process: quick, and silent about which one cannot."""
    if any(entry.fault for entry in entries()):
        return False
    calls = "\n".join(
        _import_call(group, one) for group, ones in installed_in(tuple(KINDS)).items() for one in ones
    )
    code = f"from cl_zoo.names import load\nfrom cl_zoo.contract.plugins import load_class\n{calls}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def text(found: Sequence[Entry]) -> str:
    """The entries as aligned columns."""
    return aligned(
        [(one.kind, one.name, f"{one.distribution} {one.version}", one.value, one.fault) for one in found]
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as columns, the last of them ragged."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)] if rows else []
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )


def markdown(found: Sequence[Entry]) -> str:
    """The methods as a Markdown table, with the first line of their documentation."""
    lines = ["| method | what it is |", "|---|---|"]
    for one in found:
        if one.kind == "method":
            try:
                what = documentation(one.name).splitlines()[0]
            except ClZooError as error:
                what = str(error)
            lines.append(f"| `{one.name}` | {what} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Card:
    """What a method says of itself.

    Attributes:
        about: its documentation, the docstring of its module without what follows.
        held: how it stands to its authors' code, the last section of that docstring; none where it has no such section.
        where: `module:Class`.
        origin: distribution and version; where it is not installed, the name it was asked for by.
        probe: it only measures.
        hooks: those it implements, in the order in which they are called.
        options: its `Options`, or none.
        answering: names of those that answers alone read.
        ablations: rows of its paper's ablations that it declares.
    """

    name: str
    about: str
    held: Held | None
    where: str
    origin: str
    protocol: str
    probe: bool
    hooks: tuple[str, ...]
    options: type[BaseModel] | None
    answering: tuple[str, ...]
    ablations: tuple[Ablation, ...]


def card(name: str) -> Card:
    """A method's card.

    Raises:
        PluginError: there is no such method, it cannot be imported, or what it is held against cannot be read.
    """
    from cl_zoo.contract.ablations import ablations
    from cl_zoo.contract.held import parted
    from cl_zoo.contract.plugins import HOOKS, load_class

    plugin = load_class(name)
    about, held = parted(documentation(name), name)
    return Card(
        name,
        about,
        held,
        f"{plugin.__module__}:{plugin.__qualname__}",
        name if ":" in name else f"{find(METHODS, name).distribution} {find(METHODS, name).version}",
        getattr(plugin, "protocol", "sequential"),
        bool(getattr(plugin, "probe", False)),
        tuple(hook for hook in HOOKS if hasattr(plugin, hook)),
        getattr(plugin, "Options", None),
        tuple(getattr(plugin, "answering", ())),
        ablations(name, plugin),
    )


def describe(name: str) -> str:
    """A method's documentation, what it is held against, options, hooks and origin.

    Raises:
        PluginError: there is no such method, it cannot be imported, or what it is held against cannot be read.
    """
    from cl_zoo.contract.held import HEADING

    found = card(name)
    fields = found.options.model_fields if found.options else {}
    lines = [
        found.about,
        "",
        *([HEADING, *_hanging(found.held.rows()), ""] if found.held else []),
        f"class     {found.where}",
        f"from      {found.origin}",
        f"protocol  {found.protocol}",
        f"hooks     {', '.join(found.hooks) or 'none'}",
        "options" + ("" if fields else "   none"),
    ]
    lines += [f"  {key} = {field.default!r}   {field.description or ''}" for key, field in fields.items()]
    if found.answering:
        lines.append(f"answering {', '.join(found.answering)}, which answers alone read")
    for source in dict.fromkeys(one.source for one in found.ablations):
        rows = [one.name for one in found.ablations if one.source == source]
        lines.append(f"ablations {source}: {', '.join(rows)}")
    return "\n".join(lines)


def _hanging(rows: Sequence[tuple[str, str]], width: int = 120) -> list[str]:
    """Keys in a column, and beside it their texts on lines of at most `width` letters."""
    column = max(len(key) for key, _ in rows) + 4
    return [
        textwrap.fill(
            text,
            width,
            initial_indent=f"  {key}".ljust(column),
            subsequent_indent=" " * column,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for key, text in rows
    ]


def plain(value: Any) -> str:
    """A value as one would write it in a recipe file."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {plain(one)}" for key, one in value.items()) + "}"
    return str(list(value)) if isinstance(value, tuple | list) else str(value)


def documentation(name: str) -> str:
    """The docstring of a method's module, else of its class."""
    from cl_zoo.contract.plugins import load_class

    plugin = load_class(name)
    module = sys.modules[plugin.__module__]
    return inspect.cleandoc(module.__doc__ or plugin.__doc__ or f"{name}: no documentation")


def _import_call(group: str, one: Installed) -> str:
    return f"load_class({one.name!r})" if group == METHODS else f"load({group!r}, {one.name!r})"


def _import_fault(group: str, one: Installed) -> str:
    call = _import_call(group, one)
    code = f"from cl_zoo.names import load\nfrom cl_zoo.errors import ClZooError\nfrom cl_zoo.contract.plugins import load_class\ntry:\n    {call}\nexcept ClZooError as error:\n    raise SystemExit(str(error))"
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"importing it was not done after {IMPORT_SECONDS} s; a module is imported for what it defines, take out what waits"
    if done.returncode == 0:
        return ""
    return (
        done.stderr.strip().splitlines()[-1]
        if done.stderr.strip()
        else f"importing it ended with code {done.returncode}"
    )
