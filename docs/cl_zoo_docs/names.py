"""The public names with their signatures and docstrings, and the hooks: what a method author may rely on."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

import cl_zoo_docs.text as text
from cl_zoo.contract import hookspecs
from cl_zoo_docs.values import fields

MODULES = ("cl_zoo", "cl_zoo.nn", "cl_zoo.testing")
"""Whose `__all__` is public."""

FIXTURES = "cl_zoo.testing.pytest"
"""The pytest plugin for those who write methods; it is read and not imported, so that the pages need no pytest."""

WIDTH = 88
"""Characters of a signature that still stand on one line."""


def page() -> str:
    """`api.md`."""
    parts = [
        "# Public names",
        "What stands here is the whole public surface: a method, a benchmark or a script imports these names from these places and "
        "nothing deeper. Arguments and hooks are only ever added.",
        *(part for module in MODULES for part in _module(importlib.import_module(module))),
        f"## Fixtures: `{FIXTURES}` {{#fixtures}}",
        text.markdown(ast.get_docstring(_tree(FIXTURES)) or ""),
        *(
            part
            for name, says in fixtures().items()
            for part in (f"### `{name}` {{#fixture-{name}}}", text.markdown(says))
        ),
        "## The hooks of a plugin",
        text.markdown(inspect.getdoc(hookspecs) or ""),
        *(part for name, hook in hooks() for part in _hook(name, hook)),
    ]
    return "\n\n".join(parts) + "\n"


def hooks() -> Iterator[tuple[str, Any]]:
    """The hooks by name, in the order in which they are called."""
    yield from ((name, hook) for name, hook in vars(hookspecs.HookSpecs).items() if not name.startswith("_"))


def fixtures() -> dict[str, str]:
    """What the fixtures of the pytest plugin say of themselves, by name."""
    return {
        node.name: ast.get_docstring(node) or ""
        for node in _tree(FIXTURES).body
        if isinstance(node, ast.FunctionDef)
        and any("fixture" in ast.unparse(one) for one in node.decorator_list)
    }


def documented(module: ModuleType, name: str) -> str:
    """What a public name says of itself: the text under its assignment, else its docstring; empty where it says nothing."""
    value = getattr(module, name)
    own = Source(module).says(name)
    return own or (inspect.getdoc(value) or "" if inspect.isclass(value) or inspect.isfunction(value) else "")


def signature(name: str, value: Any) -> str:
    """`name(arguments) -> result`, an argument per line where that is long; annotations as they are written in the source."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    given = [one.replace(annotation=_as_written(one.annotation)) for one in found.parameters.values()]
    plain = found.replace(parameters=given, return_annotation=_as_written(found.return_annotation))
    line = f"{name}{plain}"
    if len(line) <= WIDTH or not given:
        return line
    arguments: list[str] = []
    starred = any(one.kind is one.VAR_POSITIONAL for one in given)
    for one in given:
        if one.kind is one.KEYWORD_ONLY and not starred:
            arguments, starred = [*arguments, "*"], True
        arguments.append(str(one))
    result = str(plain.replace(parameters=[])).removeprefix("()")
    return f"{name}(\n" + "".join(f"    {one},\n" for one in arguments) + f"){result}"


class Source:
    """A package's own text: where its names come from, and what is written under an assignment."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(inspect.getsource(self.module))

    def says(self, name: str) -> str:
        """The text under the assignment of a name, here or in the module that it is imported from."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    if (alias.asname or alias.name) == name and node.module.startswith("cl_zoo"):
                        return Source(importlib.import_module(node.module)).says(alias.name)
        body = self.tree.body
        for node, after in itertools.pairwise(body):
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            if any(isinstance(one, ast.Name) and one.id == name for one in targets):
                value = getattr(getattr(after, "value", None), "value", None)
                return inspect.cleandoc(value) if isinstance(value, str) else ""
        return ""


class Written:
    """An annotation that prints as its source does: annotations are texts here, and `inspect` would put them in quotes."""

    def __init__(self, annotation: str) -> None:
        self.annotation = annotation

    def __repr__(self) -> str:
        return self.annotation


def _as_written(annotation: Any) -> Any:
    return Written(annotation) if isinstance(annotation, str) else annotation


def _tree(module: str) -> ast.Module:
    """The source of a module that is not imported."""
    package, _, name = module.rpartition(".")
    folder = Path(importlib.import_module(package).__path__[0])
    return ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))


def _module(module: ModuleType) -> Iterator[str]:
    yield f"## `{module.__name__}` {{#{module.__name__.replace('.', '-')}}}"
    yield text.markdown(inspect.getdoc(module) or "")
    for name in module.__all__:
        yield from _name(module, name)


def _name(module: ModuleType, name: str) -> Iterator[str]:
    value = getattr(module, name)
    yield f"### `{name}` {{#{module.__name__.replace('.', '-')}-{name}}}"
    if inspect.isclass(value):
        yield text.fenced(f"class {_class(name, value)}", "python")
    elif inspect.isfunction(value):
        yield text.fenced(signature(name, value), "python")
    elif isinstance(value, str | tuple | list | dict):
        shown = repr(value)
        yield text.fenced(
            f"{name} = {shown if len(shown) <= 3 * WIDTH else shown[: 3 * WIDTH] + ' …'}", "python"
        )
    yield text.markdown(documented(module, name))
    if inspect.isclass(value):
        yield from _members(value)


def _class(name: str, value: type) -> str:
    """How it is made; of an error, what it is a kind of."""
    if issubclass(value, BaseModel):
        return f"{name}(**values)"
    if issubclass(value, BaseException):
        return f"{name}({', '.join(base.__name__ for base in value.__bases__)})"
    return signature(name, value).removesuffix(" -> None")


def _members(value: type) -> Iterator[str]:
    if issubclass(value, BaseModel):
        rows = [[text.code(one.key), text.code(one.default), text.escaped(one.says)] for one in fields(value)]
        yield text.table(["field", "default", "what it is"], rows)
    for name, member in vars(value).items():
        read = isinstance(member, property | cached_property)
        function = getattr(member, "fget", None) or getattr(member, "func", None) or inspect.unwrap(member)
        function = getattr(function, "__func__", function)
        if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        shown = name if read else _without_self(signature(name, function))
        yield text.fenced(f"{value.__name__}.{shown}", "python")
        yield text.markdown(inspect.cleandoc(function.__doc__))


def _hook(name: str, hook: Any) -> Iterator[str]:
    yield f"### `{name}` {{#hook-{name}}}"
    yield text.fenced(signature(name, hook), "python")
    yield text.markdown(inspect.cleandoc(hook.__doc__))


def _without_self(line: str) -> str:
    for start in ("(self, ", "(cls, ", "(\n    self,", "(\n    cls,"):
        line = line.replace(start, start[0] if "\n" not in start else "(", 1)
    return line.replace("(self)", "()", 1).replace("(cls)", "()", 1)
