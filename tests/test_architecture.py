"""What keeps the house standing: who may import whom, what is loaded when, and how long things may be."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cl_zoo
from cl_zoo import nn
from cl_zoo.names import BENCHMARKS, METHODS, installed

ROOT = Path(__file__).parents[1]
ENGINE = Path(cl_zoo.__file__).parent
TEMPLATE = ROOT / "plugins" / "_template"

FLOORS = """
__main__
cli
cl_zoo analysis testing
api inspection planning export
runs
engine report preflight
nn contract scoring statistics
backbones data
features processes
batches images names published sharding
recipe tasks
errors machine sequences videos _version
"""
"""From the roof to the ground. A room imports rooms of lower floors only, for annotations too; `cl_zoo` is `__init__`."""

HEAVY = {"torch", "transformers", "peft", "accelerate", "open_clip", "numpy", "scipy", "matplotlib"}
WITH_TORCH = "analysis backbones batches engine export features images nn planning preflight processes sharding testing".split()
"""Rooms whose modules may import heavy packages at their top; all others plan and report, and start at once."""

LIGHT = {"backbones.checkpoints", "backbones.templates", "engine.files", "engine.folder", "preflight.looks"}
"""Their modules that rooms without torch look into."""

LINES_OF_A_FUNCTION, LINES_OF_A_MODULE = 40, 350
LONG_FUNCTIONS = {"cli.running.run", "cli.running.compare", "cli.looking.forecast", "cli.looking.ledger"}
LONG_FUNCTIONS |= {
    "cli.premises.leakage",
    "cli.premises.screen",
    "cli.premises.ablate",
    "cli.reproducing.reproduce",
}
"""Command signatures with an option per line."""

LONG_MODULES = {"testing.conformance.promises"}
"""The promises are a list, a function each."""


def methods() -> list[Path]:
    found = {one.value.partition(":")[0] for one in installed(METHODS) if one.distribution == "cl-zoo"}
    specs = [importlib.util.find_spec(name) for name in sorted(found)]
    return [Path(spec.origin) for spec in specs if spec and spec.origin]


ENGINE_FILES = sorted(ENGINE.rglob("*.py"))
METHOD_FILES = methods()
FILES = [*ENGINE_FILES, *METHOD_FILES]
BENCHMARK_FILES = sorted((ROOT / "benchmarks").rglob("*.py"))


def named(path: Path) -> str:
    """`batches`, `features.shelves`, and a package's own name for its `__init__`."""
    inside = path.relative_to(ENGINE).parent.parts if ENGINE in path.parents else ()
    return ".".join((*inside, *([] if path.stem == "__init__" else [path.stem]))) or "cl_zoo"


def room(path: Path) -> str:
    return named(path).partition(".")[0]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(node: ast.AST) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(module, names) of every import below a node, those for annotations too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, ()) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield child.module or "", tuple(alias.name for alias in child.names)
        else:
            yield from imports(child)


def rooms_of(path: Path) -> set[str]:
    """Rooms of cl_zoo that a file imports, its own aside."""
    known = set(FLOORS.split())
    found = set()
    for module, names in imports(tree(path)):
        if module == "cl_zoo":
            found |= {name if name in known else "cl_zoo" for name in names} or {"cl_zoo"}
        elif module.startswith("cl_zoo."):
            found.add(module.split(".")[1])
    return found - {room(path)}


def test_a_room_imports_rooms_of_lower_floors_only() -> None:
    floors = {name: place for place, line in enumerate(FLOORS.split("\n")) for name in line.split()}
    assert set(floors) == {room(path) for path in ENGINE_FILES}
    back = [
        f"{named(f)} imports {t}" for f in ENGINE_FILES for t in rooms_of(f) if floors[t] <= floors[room(f)]
    ]

    assert not back
    assert len(FLOORS.split("\n")) - 2 <= 12


def test_nothing_imports_a_method_or_a_benchmark() -> None:
    """Methods and benchmarks are loaded through entry points only; methods do not import each other."""
    found = [
        (named(f), module) for f in FILES for module, _ in imports(tree(f)) if module.startswith("cl_zoo_")
    ]

    assert not found


def test_no_module_of_the_engine_knows_a_method_by_name() -> None:
    """`mini` as a default of the command line is the one name that stands in the engine; its own test bench aside."""
    names = {one.name for one in installed(METHODS) if one.distribution == "cl-zoo"}
    names |= {one.name for one in installed(BENCHMARKS) if one.distribution == "cl-zoo"} - {"mini"}
    for path in ENGINE_FILES:
        if room(path) != "testing":
            nodes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Constant)]
            assert not names & {node.value for node in nodes if isinstance(node.value, str)}, named(path)


def test_a_method_imports_only_the_public_surface() -> None:
    """`from cl_zoo import …` and `from cl_zoo.nn import …`, names that are in `__all__`; for the template too."""
    public = {"cl_zoo": set(cl_zoo.__all__), "cl_zoo.nn": set(nn.__all__)}
    for path in (*METHOD_FILES, *TEMPLATE.glob("cl_zoo_*.py")):
        for module, names in imports(tree(path)):
            if module.partition(".")[0] == "cl_zoo":
                assert module in public, f"{path.name} imports from {module}"
                assert set(names) <= public[module], f"{path.name} imports {set(names) - public[module]}"
    for module, names in (("cl_zoo", cl_zoo.__all__), ("cl_zoo.nn", nn.__all__)):
        for name in names:
            assert getattr(importlib.import_module(module), name) is not None


def test_what_plans_and_reports_starts_without_torch() -> None:
    """No import at the top of its modules is heavy, and the commands that only look load nothing heavy."""
    for path in ENGINE_FILES:
        if room(path) not in WITH_TORCH or named(path) in LIGHT:
            top = ast.Module([n for n in tree(path).body if isinstance(n, ast.Import | ast.ImportFrom)], [])
            assert not HEAVY & {module.partition(".")[0] for module, _ in imports(top)}, named(path)
    for arguments in (["--help"], ["compare", "--help"], ["list"]):
        code = f"""
import sys
import cl_zoo, cl_zoo.contract.plugins, cl_zoo.recipe.recipe
from cl_zoo.cli.main import main
sys.argv = ["cl-zoo", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
assert not {HEAVY!r} & sys.modules.keys(), {HEAVY!r} & sys.modules.keys()
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_nothing_is_pickled_evaluated_or_asserted_and_nothing_is_called_utils() -> None:
    banned = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for path in FILES:
        assert not banned & {module.partition(".")[0] for module, _ in imports(tree(path))}, named(path)
        assert not {"util", "utils", "helpers", "common", "misc"} & set(path.stem.split("_")), named(path)
        for node in ast.walk(tree(path)):
            assert not isinstance(node, ast.Assert), f"{named(path)}:{node.lineno} asserts"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load", "torch.save"), (
                    f"{named(path)}:{node.lineno}"
                )


def test_modules_and_functions_fit_in_a_head() -> None:
    assert BENCHMARK_FILES
    for path in (*FILES, *BENCHMARK_FILES):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert named(path) in LONG_MODULES or lines <= LINES_OF_A_MODULE, f"{path} has {lines} lines"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and f"{named(path)}.{node.name}" not in LONG_FUNCTIONS:
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                documented = ast.get_docstring(node, clean=False)
                length -= len(documented.splitlines()) if documented else 0
                assert length <= LINES_OF_A_FUNCTION, f"{named(path)}.{node.name} has {length} lines"


def test_every_module_and_public_class_says_what_it_is() -> None:
    """And the names of the package are no names of its modules, which would take their place once imported."""
    for path in FILES:
        assert ast.get_docstring(tree(path)), path
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{named(path)}.{node.name}"
    assert not set(cl_zoo.__all__) & {room(path) for path in ENGINE_FILES}


def test_a_package_hands_names_on_or_says_what_it_is() -> None:
    """In its `__init__` stand a docstring, imports and `__all__`; `cl_zoo` and `cl_zoo.testing` look their names up late."""
    for path in ENGINE_FILES:
        if path.stem == "__init__" and path.parent not in (ENGINE, ENGINE / "testing"):
            for node in tree(path).body:
                assert isinstance(node, ast.Expr | ast.ImportFrom) or (
                    isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
                ), f"{path}:{node.lineno}"
