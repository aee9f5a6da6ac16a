"""What a user names: plugins with their options, `moelora+ewc[strength=3]`, and what is installed under a name.

Entry points are found by their metadata; nothing is imported before it is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cl_zoo.errors import OptionError, PluginError, Staying, exit_called, first_line, nearest

METHODS, BENCHMARKS, BACKBONES = "cl_zoo.methods", "cl_zoo.benchmarks", "cl_zoo.backbones"
EXECUTORS = "cl_zoo.executors"
"""The groups of entry points."""

Options = Mapping[str, Mapping[str, Any]]
"""Option values by plugin name: `{"ewc": {"strength": 100}}`."""


@dataclass(frozen=True)
class Choice:
    """A plugin as a user names it.

    Attributes:
        name: an installed name, `package.module:Class` or `file.py:Class`.
        options: values by option name.
        probe: measures only.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    probe: bool = False

    @property
    def label(self) -> str:
        """`hide[variant=released]`; options in alphabetical order."""
        inner = ",".join(f"{key}={value}" for key, value in sorted(self.options.items()))
        return f"{self.name}[{inner}]" if inner else self.name


def parse_stack(text: str) -> list[Choice]:
    """`moelora+ewc[strength=3]` to its choices.

    Raises:
        PluginError: it cannot be read.
    """
    from cl_zoo.recipe.keys import parse_pairs

    choices = []
    for part in split(text, "+"):
        found = re.fullmatch(r"\s*([^\[\]]+?)\s*(?:\[(.*)\])?\s*", part, flags=re.DOTALL)
        if not found:
            raise PluginError(f"method {text!r}: cannot read {part!r}; write name[option=value,option=value]")
        pairs = split(found.group(2), ",") if found.group(2) else []
        choices.append(Choice(found.group(1), parse_pairs(pairs, f"method {found.group(1)}, option")))
    return choices


def split(text: str, separator: str) -> list[str]:
    """Split outside square brackets."""
    parts, depth, current = [], 0, ""
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == separator and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += letter
    return [*parts, current]


def stack(
    method: str, with_: Sequence[str], probes: Sequence[str], options: Options, *, strict: bool = True
) -> tuple[Choice, ...]:
    """The choices that a method expression, further plugins, probes and options make together.

    Raises:
        OptionError: options are given for a plugin that is not in the stack (unless not `strict`).
    """
    choices = [choice for text in (method, *with_) for choice in parse_stack(text)]
    choices += [replace(choice, probe=True) for text in probes for choice in parse_stack(text)]
    if strict:
        for name in options.keys() - {choice.name for choice in choices}:
            raise OptionError(
                f"options are given for {name!r}, which is not in the stack{nearest(name, [c.name for c in choices])}"
            )
    return tuple(
        replace(choice, options={**choice.options, **options.get(choice.name, {})}) for choice in choices
    )


@dataclass(frozen=True)
class Installed:
    """An entry point as its metadata tells, nothing imported."""

    name: str
    value: str
    distribution: str
    version: str


def installed(group: str) -> list[Installed]:
    """All entry points of a group, by name; metadata only, so a broken plugin is listed like any other."""
    return installed_in([group])[group]


def installed_in(groups: Sequence[str]) -> dict[str, list[Installed]]:
    """All entry points of several groups, as `installed` gives those of one; the metadata of all distributions are read once."""
    from importlib import metadata  # takes longer to import than all else here, and few commands ask

    everything = metadata.entry_points()
    named: dict[
        int, tuple[str, str]
    ] = {}  # a distribution parses its metadata whenever it is asked for its name
    by_group = {}
    for group in groups:
        found: set[Installed] = set()  # of one distribution found twice, Python imports the first
        for entry in everything.select(group=group):
            if entry.dist is not None:
                if id(entry.dist) not in named:
                    named[id(entry.dist)] = entry.dist.name, entry.dist.version
                found.add(Installed(entry.name, entry.value, *named[id(entry.dist)]))
        by_group[group] = sorted(found, key=lambda one: (one.name, one.distribution, one.version))
    return by_group


def find(group: str, name: str) -> Installed:
    """The one installed entry point of that name.

    Raises:
        PluginError: there is none, or two distributions claim it.
    """
    everything = installed(group)
    kind = group.rpartition(".")[2].removesuffix("s")
    matches = [one for one in everything if one.name == name]
    if not matches and name.endswith(".py"):
        raise PluginError(f"{name} is a file; say which {kind} in it, as in {name}:Name")
    if not matches and (here := Path(f"cl-zoo-{name.replace('_', '-')}")).is_dir():
        raise PluginError(
            f"no {kind} is called {name!r}; ./{here} is not installed: python -m pip install -e ./{here}"
        )
    if not matches:
        raise PluginError(f"no {kind} is called {name!r}{nearest(name, {one.name for one in everything})}")
    if len(matches) > 1:
        claims = " and ".join(f"{one.distribution} {one.version}" for one in matches)
        raise PluginError(f"two installed {kind}s are called {name!r}: {claims}; uninstall one")
    return matches[0]


def load(group: str, name: str) -> Any:
    """The object that a name stands for; imports that one plugin and no other.

    Args:
        group: entry-point group.
        name: an installed name, `package.module:Object` or `path/file.py:Object`.

    Raises:
        PluginError: unknown, claimed twice, or its import fails.
    """
    value = name if ":" in name else find(group, name).value
    module_name, _, attribute = value.rpartition(":")
    if module_name.endswith(".py") and not Path(module_name).is_file():
        raise PluginError(f"{name}: there is no file {module_name}; give its path from {Path.cwd()}")
    file = Path(module_name) if module_name.endswith(".py") else None
    try:
        with contextlib.redirect_stdout(sys.stderr), Staying():  # what it prints is no result of the command
            module = importlib.import_module(module_name) if file is None else _module_of_file(file)
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything, or end the process
        raise PluginError(f"{name}: importing {module_name} {_failed(error, name, module_name)}") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        classes = inspect.getmembers(module, inspect.isclass)
        known = [key for key, item in classes if item.__module__ == module.__name__]
        raise PluginError(f"{name}: {module_name} has no {attribute!r}{nearest(attribute, known)}") from None


def source_file(module: str) -> Path | None:
    """The source of a module, found without importing it or its packages; `None` where there is none."""
    path: list[str] | None = None
    spec = None
    for place in range(1, module.count(".") + 2):
        named = ".".join(module.split(".")[:place])
        finders = (finder.find_spec for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next((found for find_spec in finders if (found := find_spec(named, path))), None)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec and spec.origin and Path(spec.origin).suffix == ".py" else None


def _failed(error: BaseException, name: str, module: str) -> str:
    """How an import failed, in which line, and what to do."""
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if module in (frame.f_code.co_filename, frame.f_globals.get("__name__"))
    ]
    where = f" (line {lines[-1]})" if lines else ""
    if isinstance(error, SystemExit):
        return f"{exit_called(error)}{where}; a module is imported for what it defines, take the call out"
    missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
    if missing and ":" in name:
        remedy = f"install what it belongs to, or write {name.replace(':', '.py:')} where it is a file"
    else:
        remedy = "repair it" if module.endswith(".py") else "repair or uninstall it"
    return f"failed with {type(error).__name__}: {first_line(error)}{where}; {remedy}"


def _module_of_file(file: Path) -> Any:
    from cl_zoo.tasks import source_hash

    # Named after its content: a first experiment called `random.py` must not become everybody's `random`.
    name = f"{file.stem}_{source_hash(file)[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python source")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic and inspect look a class's module up by name
    spec.loader.exec_module(module)
    return module
