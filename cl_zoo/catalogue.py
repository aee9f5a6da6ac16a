"""What is installed, and what a method says of itself."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cl_zoo.entrypoints import BACKBONES, BENCHMARKS, METHODS, Installed, find, installed
from cl_zoo.errors import ClZooError
from cl_zoo.plugins import HOOKS, load_class

KINDS = {METHODS: "method", BENCHMARKS: "benchmark", BACKBONES: "backbone"}


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
    found = []
    for group, kind in KINDS.items():
        everything = installed(group)
        for one in everything:
            claims = [other for other in everything if other.name == one.name]
            fault = (
                f"claimed by {len(claims)} distributions; uninstall all but one" if len(claims) > 1 else ""
            )
            if check and not fault:
                fault = _import_fault(group, one)
            found.append(Entry(kind, one.name, one.distribution, one.version, one.value, fault))
    return found


def text(found: Sequence[Entry]) -> str:
    """The entries as aligned columns."""
    rows = [(one.kind, one.name, f"{one.distribution} {one.version}", one.value, one.fault) for one in found]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]).rstrip()
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


def describe(name: str) -> str:
    """A method's documentation, options, hooks and origin.

    Raises:
        PluginError: there is no such method, or it cannot be imported.
    """
    plugin = load_class(name)
    origin = name if ":" in name else f"{find(METHODS, name).distribution} {find(METHODS, name).version}"
    hooks = [hook for hook in HOOKS if hasattr(plugin, hook)]
    lines = [
        documentation(name),
        "",
        f"class     {plugin.__module__}:{plugin.__qualname__}",
        f"from      {origin}",
        f"protocol  {getattr(plugin, 'protocol', 'sequential')}",
        f"hooks     {', '.join(hooks) or 'none'}",
        "options" + ("" if getattr(plugin, "Options", None) and plugin.Options.model_fields else "   none"),
    ]
    for key, field in getattr(getattr(plugin, "Options", None), "model_fields", {}).items():
        lines.append(f"  {key} = {field.default!r}   {field.description or ''}")
    return "\n".join(lines)


def every_method() -> list[str]:
    """Names of all installed methods that are no probes; one that cannot be imported is among them, and says so when it runs."""
    found = []
    for one in installed(METHODS):
        try:
            measures = getattr(load_class(one.name), "probe", False)
        except ClZooError:
            measures = False
        if not measures:
            found.append(one.name)
    return found


def documentation(name: str) -> str:
    """The docstring of a method's module, else of its class."""
    plugin = load_class(name)
    module = sys.modules[plugin.__module__]
    return inspect.cleandoc(module.__doc__ or plugin.__doc__ or f"{name}: no documentation")


def _import_fault(group: str, one: Installed) -> str:
    loader = "load_class" if group == METHODS else f"load({group!r}, "
    call = f"{loader}({one.name!r})" if group == METHODS else f"{loader}{one.name!r})"
    code = f"from cl_zoo.entrypoints import load\nfrom cl_zoo.errors import ClZooError\nfrom cl_zoo.plugins import load_class\ntry:\n    {call}\nexcept ClZooError as error:\n    raise SystemExit(str(error))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    return (
        done.stderr.strip().splitlines()[-1]
        if done.stderr.strip()
        else f"importing it ended with code {done.returncode}"
    )
