"""What docstrings, comments and documents name is there: modules, functions, arguments, attributes, files."""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDERS = ("cl_zoo", "plugins", "benchmarks", "tests", "docs")
MODULES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *(p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.md"))),
]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
GROUPS = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"])
MISSPELT = {"cl_zoo.rnu"}
"""Names that a test writes wrongly on purpose."""
CLASSES: dict[str, list[ast.ClassDef]] = {}
for tree in TREES.values():
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            CLASSES.setdefault(node.name, []).append(node)


def texts(path: Path) -> Iterator[str]:
    """A document; of a module its docstrings, those of its values, and its comments."""
    content = path.read_text(encoding="utf-8")
    if path not in TREES:
        yield content
        return
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def in_ticks(path: Path) -> Iterator[str]:
    """What stands between backticks on one line."""
    for text in texts(path):
        yield from re.findall(r"`([^`\n]+)`", text)


def there(name: str) -> bool:
    """Whether a dotted name is a module, or something in one; a field of a class counts."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if part in getattr(found, "__annotations__", {}):
                return part == parts[-1]
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def real(said: str) -> bool:
    """Whether what stands between backticks is there, where it is a path or an attribute that can be looked up."""
    if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]+", said) and not said.rpartition("/")[2].isupper():
        return (ROOT / said).exists()
    owner, dot, attribute = said.partition("(")[0].partition(".")
    if dot and attribute.isidentifier() and owner[:1].isupper() and owner in CLASSES:
        return any(attribute in attributes(one) for one in CLASSES[owner])
    return True


def attributes(owner: ast.ClassDef) -> set[str]:
    """What a class and its bases in this repository define or set on themselves."""
    names = {node.name for node in owner.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(owner):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    for base in owner.bases:
        for found in CLASSES.get(ast.unparse(base).partition("[")[0].rpartition(".")[2], []):
            names |= attributes(found) if found is not owner else set()
    return names


def described(documented: str, section: str) -> list[str]:
    """The names that a section of a docstring describes, `first, second` as two."""
    block = re.search(rf"^{section}:\n((?: .*\n?|\n)+)", documented, re.MULTILINE)
    entries = re.findall(r"^ {4}\*{0,2}(\w[\w, ]*):", block.group(1), re.MULTILINE) if block else []
    return [name.strip() for entry in entries for name in entry.split(",")]


def arguments(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    if isinstance(node, ast.ClassDef):
        made = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        return arguments(made[0]) if made else attributes(node)
    return {one.arg for one in ast.walk(node.args) if isinstance(one, ast.arg)}


def test_a_text_names_modules_and_what_is_in_them() -> None:
    """`cl_zoo.tasks.Part`, wherever it stands: in code, in what code holds as a text, in docstrings and documents."""
    named = {
        (path, name)
        for path in (*MODULES, *DOCUMENTS)
        for name in re.findall(
            r"\bcl_zoo(?:_bench_\w+)?(?:\.[A-Za-z_]\w*)+", path.read_text(encoding="utf-8")
        )
        if name not in GROUPS and name not in MISSPELT
    }
    gone = sorted(f"{path.relative_to(ROOT)}: {name}" for path, name in named if not there(name))

    assert not gone


def test_what_stands_between_backticks_is_there() -> None:
    """Attributes of the classes of this repository, and paths from its root."""
    said = {(path, name) for path in (*MODULES, *DOCUMENTS) for name in in_ticks(path)}
    gone = sorted(f"{path.relative_to(ROOT)}: {name}" for path, name in said if not real(name))

    assert not gone


def test_a_docstring_describes_arguments_and_attributes_that_there_are() -> None:
    gone = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                documented = ast.get_docstring(node) or ""
                names = set(described(documented, "Args")) - arguments(node)
                if isinstance(node, ast.ClassDef):
                    names |= set(described(documented, "Attributes")) - attributes(node)
                gone += [f"{path.relative_to(ROOT)}: {node.name} describes {name}" for name in sorted(names)]

    assert not gone
