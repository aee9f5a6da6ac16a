"""A package for a method of one's own: the template with its names replaced.

The template is a complete third-party distribution. In a checkout it stands in `plugins/_template`, in an installed
package in the folder of cl_zoo.
"""

from __future__ import annotations

import ast
import importlib.util
import keyword
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cl_zoo.errors import PluginError
from cl_zoo.names import METHODS, installed

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
PLACEHOLDER = re.compile(r"cl-zoo-mine|cl_zoo_mine|test_mine|\bMine\b|\bmine\b")


def new(name: str, parent: Path) -> Path:
    """Write the template as `parent/cl-zoo-NAME` and return that folder; what fails leaves nothing behind.

    Args:
        name: of the method as on the command line: small letters, digits and single underscores.

    Raises:
        PluginError: the name cannot be a method's or is taken, or the folder exists.
    """
    template = {file.name: file.read_text("utf-8") for file in _template()}
    names = _names(name, template)
    target = parent / names["cl-zoo-mine"]
    if os.path.lexists(target):
        raise PluginError(f"{target} exists already; move it away or choose another name")
    files = {_renamed(file, names): _renamed(text, names) for file, text in template.items()}
    with tempfile.TemporaryDirectory(prefix=".cl-zoo-new-", dir=parent) as place:
        draft = Path(place) / target.name
        draft.mkdir()
        for file, text in files.items():
            (draft / file).write_text(text, "utf-8")
        draft.rename(target)
    return target


def _names(name: str, template: Mapping[str, str]) -> dict[str, str]:
    """What stands in place of each name of the template.

    Raises:
        PluginError: one of them cannot be used.
    """
    if not NAME.fullmatch(name):
        raise PluginError(
            f"{name!r} cannot be the name of a method; use small letters, digits and single underscores, as in my_method"
        )
    module, kind = f"cl_zoo_{name}", "".join(word.capitalize() for word in name.split("_"))
    for one in installed(METHODS):
        if one.name == name:
            raise PluginError(
                f"{one.distribution} {one.version} has a method called {name!r}; choose another name"
            )
    if name == "all":
        raise PluginError("'all' stands for every method in a comparison; choose another name")
    if importlib.util.find_spec(module) is not None:
        raise PluginError(f"a module called {module} is installed already; choose another name")
    if keyword.iskeyword(kind) or kind in _meanings(template):
        raise PluginError(
            f"the class of {name!r} would be called {kind}, which means something else; choose another name"
        )
    return {
        "cl-zoo-mine": module.replace("_", "-"),
        "cl_zoo_mine": module,
        "test_mine": f"test_{name}",
        "Mine": kind,
        "mine": name,
    }


def _renamed(text: str, names: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda found: names[found.group()], text)


def _meanings(template: Mapping[str, str]) -> set[str]:
    """Names that the template's code uses beside its own class."""
    trees = [ast.parse(text) for file, text in template.items() if file.endswith(".py")]
    return {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)} - {"Mine"}


def _template() -> list[Path]:
    """The template's files."""
    here = Path(__file__).parents[1]
    packaged, checkout = here / "_template", here.parent / "plugins" / "_template"
    return sorted(file for file in (packaged if packaged.is_dir() else checkout).iterdir() if file.is_file())
