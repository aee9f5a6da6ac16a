"""What keeps the house standing: who may import whom, what is loaded when, and how long things may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cl_zoo
from cl_zoo.entrypoints import BENCHMARKS, METHODS, installed

ENGINE = Path(cl_zoo.__file__).parent
LAYERS = (
    "errors machine hookspecs config choices tasks entrypoints plugins data templates checkpoints "  # what a run consists of; no torch
    "batches ahead features backbones mixes bank prompts world anchors ledger learn generate streams "  # tensors
    "runs engine "  # one run
    "scoring metrics stats sheets report "  # from answers to a table; no torch
    "manifests jobs restore results comparison worker catalogue inspection fetching "  # from names to results
    "sizes forecast export api "
    "tiny_models testing conformance newcomer "  # for those who write methods
    "progress doctor flags commands data_commands model_commands cli"
).split()
"""A module may import those before it, at its top or inside a function. Imports for annotations alone do not count."""

NO_TORCH = (
    set(LAYERS[: LAYERS.index("batches")])
    | set(LAYERS[LAYERS.index("scoring") : LAYERS.index("sizes")])
    | {"api", "newcomer", "progress", "flags", "commands", "data_commands", "model_commands", "cli"}
)
FOR_METHODS = {"cl_zoo", "bank", "mixes", "prompts", "anchors", "batches", "tasks", "features", "errors"}
"""What of the engine a method may import beside the names of `cl_zoo` itself."""

LINES_OF_A_FUNCTION, LINES_OF_A_MODULE = 40, 350
LONG_FUNCTIONS = {"cli.run", "cli.compare", "commands.forecast", "jobs.execute"}
"""Three command signatures with an option per line, and a sequence of calls without a decision in it."""

LONG_MODULES = {"bank", "conformance.promises"}
"""The bank is one idea: its layer, its tuner and the checks that both share. The promises are a list, a function each."""


def methods() -> list[Path]:
    import importlib.util

    found = {one.value.partition(":")[0] for one in installed(METHODS) if one.distribution == "cl-zoo"}
    specs = [importlib.util.find_spec(name) for name in sorted(found)]
    return [Path(spec.origin) for spec in specs if spec and spec.origin]


ENGINE_FILES = sorted(path for path in ENGINE.rglob("*.py") if path != ENGINE / "__init__.py")
"""A package is one layer."""
FILES = [*ENGINE_FILES, ENGINE / "__init__.py", *methods()]


def named(path: Path) -> str:
    """`jobs`, `features.shelves`, and the package's own name for its `__init__`."""
    inside = path.parent.name if path.parent not in (ENGINE,) and ENGINE in path.parents else ""
    return ".".join(part for part in (inside, path.stem) if part and part != "__init__")


def layer(path: Path) -> str:
    return path.stem if path.parent == ENGINE else path.parent.name


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(node: ast.AST) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(module, names) of every import below a node that runs; `if TYPE_CHECKING:` never does."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, ()) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield child.module or "", tuple(alias.name for alias in child.names)
        else:
            yield from imports(child)


def of_the_engine(path: Path) -> set[str]:
    """Modules of cl_zoo that a file imports; `cl_zoo` for names of the package itself."""
    found = set()
    for module, names in imports(tree(path)):
        if module == "cl_zoo":
            found |= {name if name in LAYERS and name != "compare" else "cl_zoo" for name in names}
        elif module.startswith("cl_zoo."):
            found.add(module.removeprefix("cl_zoo.").partition(".")[0])
    return found


# Who imports whom


def test_every_module_has_its_layer():
    assert set(LAYERS) == {layer(path) for path in ENGINE_FILES}


@pytest.mark.parametrize("path", ENGINE_FILES, ids=named)
def test_a_module_imports_only_what_stands_before_it(path: Path):
    allowed = {*LAYERS[: LAYERS.index(layer(path))], "cl_zoo"}

    assert of_the_engine(path) - ({layer(path)} if path.parent != ENGINE else set()) <= allowed


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nothing_imports_a_method_or_a_benchmark(path: Path):
    """Methods and benchmarks are loaded through entry points only; methods do not import each other."""
    assert not [module for module, _ in imports(tree(path)) if module.startswith("cl_zoo_")]


def test_no_module_of_the_engine_knows_a_method_by_name():
    """`mini` as a default of the command line is the one name that stands in the engine; its own test bench aside."""
    names = {one.name for one in installed(METHODS) if one.distribution == "cl-zoo"}
    names |= {one.name for one in installed(BENCHMARKS) if one.distribution == "cl-zoo"} - {"mini"}
    for path in ENGINE_FILES:
        if layer(path) not in ("testing", "conformance"):
            strings = {
                n.value
                for n in ast.walk(tree(path))
                if isinstance(n, ast.Constant) and isinstance(n.value, str)
            }
            assert not names & strings, path.stem


@pytest.mark.parametrize("path", methods(), ids=named)
def test_a_method_imports_only_what_the_contract_offers(path: Path):
    assert of_the_engine(path) <= FOR_METHODS


@pytest.mark.parametrize("path", [one for one in ENGINE_FILES if layer(one) in NO_TORCH], ids=named)
def test_what_plans_and_reports_imports_torch_only_inside_functions(path: Path):
    body = ast.Module([n for n in tree(path).body if isinstance(n, ast.Import | ast.ImportFrom)], [])

    assert not [
        module for module, _ in imports(body) if module.partition(".")[0] in ("torch", "transformers", "peft")
    ]


# What is loaded

LIGHT = """
import runpy, sys
sys.argv = ["cl-zoo", *{arguments!r}]
try:
    {code}
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"torch", "transformers", "peft", "accelerate", "open_clip", "numpy", "scipy", "matplotlib"}} & sys.modules.keys()
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("import cl_zoo", []),
        ("import cl_zoo.plugins, cl_zoo.config, cl_zoo.catalogue", []),
        ("from cl_zoo.cli import main; main()", ["--help"]),
        ("from cl_zoo.cli import main; main()", ["compare", "--help"]),
        ("from cl_zoo.cli import main; main()", ["list"]),
    ],
    ids=["import cl_zoo", "import plugins", "--help", "compare --help", "list"],
)
def test_nothing_heavy_is_loaded_by(code: str, arguments: list[str]):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(code=code, arguments=arguments)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_the_names_of_the_package_stay_what_they_are_when_its_modules_are_imported():
    """A module called `compare` would take the place of the function `cl_zoo.compare` once it is imported."""
    assert not set(cl_zoo.__all__) & {path.stem for path in ENGINE_FILES}
    assert set(cl_zoo.__all__) <= set(dir(cl_zoo)) | set(cl_zoo._HOMES)


# What is written


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nothing_is_pickled_evaluated_or_asserted(path: Path):
    banned = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    assert not [module for module, _ in imports(tree(path)) if module.partition(".")[0] in banned]
    for node in ast.walk(tree(path)):
        assert not isinstance(node, ast.Assert), f"{path.name}:{node.lineno} asserts"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load", "torch.save"), f"{path.name}:{node.lineno}"


def test_no_module_is_called_utils():
    names = {part for path in FILES for part in path.stem.split("_")}

    assert not names & {"util", "utils", "helpers", "common", "misc"}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_modules_and_functions_fit_in_a_head(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert named(path) in LONG_MODULES or lines <= LINES_OF_A_MODULE, f"{path.name} has {lines} lines"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef) and f"{named(path)}.{node.name}" not in LONG_FUNCTIONS:
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            documented = ast.get_docstring(node, clean=False)
            length -= len(documented.splitlines()) if documented else 0
            assert length <= LINES_OF_A_FUNCTION, (
                f"{path.stem}.{node.name} has {length} lines beside its docstring"
            )


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_module_and_public_class_says_what_it_is(path: Path):
    assert ast.get_docstring(tree(path))
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.stem}.{node.name}"
