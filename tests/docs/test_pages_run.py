"""Every command and every program of the pages runs, on `mini` with a few samples; the few that cannot run here are parsed by the real parser."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from doc_blocks import PAGES, ROOT, Block, Command, blocks, commands, commands_of, hidden

pytestmark = pytest.mark.xdist_group("pages")

NOT_HERE = {
    r"--data DATA\b": "needs the data of a published benchmark",
    r"^cl-zoo data fetch": "needs the network",
    r"pip install (?!-e \./cl-zoo-|-e docs/examples/)": "needs the network",
    r"^(tox|mkdocs|ruff|mypy)\b": "tox runs it in an environment of its own",
    r"^pytest\b|-m pytest\b": "is the suite, or a part of it",
    r"list --check": "imports every plugin in a process of its own; the tests of the command line have it",
    r"-m cl_zoo_bench_mini\.": "trains or measures for minutes to hours; its tests call its parts",
}
"""Commands that cannot run here, by a pattern, with the reason."""

PRINTS_OTHERWISE = re.compile(
    r"^(cl-zoo|python -m cl_zoo) (run|compare|analyze|predict|export|check|doctor)\b"
)
"""What these print depends on the number of samples, on the machine, or on the time it took."""

ONLY_LOOKS = re.compile(r"cl-zoo (forecast|ledger|doctor|show|list)\b[^&|;]*$")

FAILS = " || true"
"""How a page marks a command that shows an error."""

NAMED = [f"{page.relative_to(ROOT)}" for page in PAGES]

FIRST = ("README.md", "docs/quickstart.md")
"""Pages whose commands run in every run of the tests; those of the others take minutes and are marked slow."""

RUN = [
    pytest.param(page, id=name, marks=() if name in FIRST else pytest.mark.slow)
    for page, name in zip(PAGES, NAMED, strict=True)
]


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A shell in a folder of its own, one for all pages, so that equal runs are made once."""
    home = tmp_path_factory.mktemp("pages")
    with Shell(home) as one:
        yield one
    shutil.rmtree(home)  # a hundred runs


class Shell:
    """Runs lines as bash does, with `cl-zoo` and `python` forked from one process that has torch loaded."""

    def __init__(self, home: Path) -> None:
        self.folder, self.site = home / "work", home / "site"
        self.seen: dict[str, subprocess.CompletedProcess[str]] = {}
        program = [sys.executable, "-IS", str(Path(__file__).with_name("forked.py"))]
        for place in (self.folder, self.site, home / "bin"):
            place.mkdir()
        for name in ("cl-zoo", "python"):
            file = home / "bin" / name
            file.write_text(f'#!/bin/sh\nexec {shlex.join([*program, "call", str(home), name])} "$@"\n')
            file.chmod(0o755)
        shutil.copytree(ROOT / "docs" / "examples", self.folder / "docs" / "examples")
        (self.folder / "benchmarks").symlink_to(ROOT / "benchmarks")
        _photograph(self.folder / "photo.jpg")
        paths = [str(self.site), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        self.environment = {
            **os.environ,
            "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(paths),
            "SITE": str(self.site),
            "COLUMNS": "120",
        }
        self.server = subprocess.Popen(
            [sys.executable, program[-1], "serve", str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def __enter__(self) -> Shell:
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.communicate()  # it ends with its standard input

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line; what only looks is run once, however many pages have it."""
        if line not in self.seen:
            self.seen[line] = self._run(line)
        return self.seen[line] if ONLY_LOOKS.match(line) else self.seen.pop(line)

    def _run(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def filled(self, line: str) -> str:
        """The line with a finished run in the place of `RUN`, and a new folder in that of `DIR`."""
        if re.search(r"\bRUN\b", line):
            assert self.run("cl-zoo run finetune").returncode == 0
            (run, *_) = (self.folder / "runs").glob("mini-finetune-s0-*")
            line = re.sub(r"\bRUN\b", str(run.relative_to(self.folder)), line)
        return re.sub(r"\bDIR\b", lambda _: f"{tempfile.mkdtemp(dir=self.folder)}/new", line)


@pytest.mark.parametrize("page", RUN)
def test_the_commands_and_programs_of_a_page_run(page: Path, shell: Shell) -> None:
    for block in blocks(page):
        if block.language == "python":
            run_program(block, shell)
        elif block.language in ("yaml", "toml"):
            write_file(block, shell)
        for command in commands_of(block):
            if reason_against(command) is None:
                run_command(command, shell)


@pytest.mark.parametrize("page", PAGES, ids=NAMED)
def test_the_command_line_reads_every_command_of_a_page(page: Path) -> None:
    """Also those in the text, and those that cannot run here: an unknown flag, method, option or recipe key fails."""
    for command in commands(page):
        for arguments in calls(command.text) if not command.text.endswith(FAILS) else ():
            read(arguments, command.place)
    outside = re.sub(
        r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    for text in re.findall(r"`((?:cl-zoo|python -m cl_zoo) [^`…]+)`", outside):
        for arguments in calls(text):
            read(arguments, f"{page.name}, {text}", whole=False)


@pytest.mark.parametrize("page", PAGES, ids=NAMED)
def test_no_command_hides_from_these_tests(page: Path) -> None:
    assert hidden(page) == []


def test_every_reason_not_to_run_a_command_is_needed() -> None:
    given = [command.text for page in PAGES for command in commands(page)]

    assert [pattern for pattern in NOT_HERE if not any(re.search(pattern, text) for text in given)] == []


@pytest.mark.parametrize(
    ("written", "equal"),
    [
        ("a\nb\nc", True),
        ("a\n…\nc", True),
        ("a\n…", True),
        ("…", True),
        ("a\nc", False),
        ("a\nb", False),
        ("…\nb", False),
    ],
)
def test_what_a_page_leaves_out_stands_as_an_ellipsis(written: str, equal: bool) -> None:
    assert same("a  \nb\nc\n", written) == equal


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("cl-zoo compare --methods finetune,hidee", "hidee"),
        ("cl-zoo compare --metods finetune", "metods"),
        ("cl-zoo run hide -o hide.temprature=1", "temprature"),
        ("cl-zoo run hide --set adapter.rnk=1", "rnk"),
        ("cl-zoo data chek mini", "chek"),
        ("cl-zoo ledger hide --backbone llava-1.5-8b", "llava-1.5-8b"),
        ("OMP_NUM_THREADS=1 cl-zoo list && python -m cl_zoo show hidee", "hidee"),
    ],
)
def test_a_misspelt_command_is_found(text: str, fault: str) -> None:
    *_, last = calls(text)

    with pytest.raises(AssertionError, match=fault):
        read(last, text)


def run_command(command: Command, shell: Shell) -> None:
    """Run it, and compare what it prints with what the page says. One that ends in `|| true` is there to fail."""
    fails = command.text.endswith(FAILS)
    done = shell.run(shell.filled(command.text.removesuffix(FAILS)))
    printed = done.stdout + (done.stderr if fails else "")

    assert (done.returncode != 0) == fails, f"{command.place}\n{done.stdout}\n{done.stderr}"
    if command.output and (fails or not PRINTS_OTHERWISE.match(command.text)):
        assert same(printed, command.output), (
            f"{command.place} prints\n{printed}\nand the page says\n{command.output}"
        )


def same(printed: str, written: str) -> bool:
    """Whether both are equal but for spaces at line ends and for what a page leaves out where it has a line with `…`."""
    lines = [line.rstrip() for line in written.strip("\n").split("\n")]
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() in ("…", "...") else re.escape(line) + r"\n" for line in lines
    )
    text = "".join(line.rstrip() + "\n" for line in printed.strip("\n").split("\n"))
    return re.fullmatch(pattern, text) is not None


def run_program(block: Block, shell: Shell) -> None:
    """Run a Python block. One that names its file, `# pull.py`, is written there; one that names a file of the repository is that
    file's text; one that imports nothing is a fragment and only has to parse."""
    tree = ast.parse(block.text)
    if listing := listed(block):
        assert listing.read_text(encoding="utf-8").strip() == block.text.strip(), (
            f"{block.place}: {listing} says something else"
        )
    elif file := re.match(r"# (\w+\.py)\n", block.text):
        (shell.folder / file[1]).write_text(block.text + "\n", encoding="utf-8")
    elif any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree)):
        done = shell.run(f"python -c {shlex.quote(shell.filled(block.text))}")
        assert done.returncode == 0, f"{block.place}\n{done.stdout}\n{done.stderr}"


def write_file(block: Block, shell: Shell) -> None:
    """A YAML or TOML block parses; one that names its file, `# my.yaml`, is written there."""
    yaml.safe_load(block.text) if block.language == "yaml" else tomllib.loads(block.text)
    if listing := listed(block):
        assert listing.read_text(encoding="utf-8").strip() == block.text.strip(), (
            f"{block.place}: {listing} says something else"
        )
    elif file := re.match(r"# ([\w.-]+\.(?:yaml|toml))\n", block.text):
        (shell.folder / file[1]).write_text(block.text + "\n", encoding="utf-8")


def listed(block: Block) -> Path | None:
    """The file of the repository whose text a block repeats, as the line before it says: (`docs/examples/…`):"""
    named = re.search(r"\(`([^`]+)`\)\S*$", block.before)
    return ROOT / named[1] if named and (ROOT / named[1]).is_file() else None


def reason_against(command: Command) -> str | None:
    return next((reason for pattern, reason in NOT_HERE.items() if re.search(pattern, command.text)), None)


def calls(text: str) -> Iterator[list[str]]:
    """The arguments of each `cl-zoo` in a line of shell."""
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("&|;<>"):
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words[:1] == ["cl-zoo"]:
                yield words[1:]
            elif "-m" in words and "cl_zoo" in words[words.index("-m") :]:
                yield words[words.index("cl_zoo") + 1 :]
            words = []
        else:
            words.append(word)


def read(arguments: list[str], place: str, *, whole: bool = True) -> None:
    """Let the command line's own parser read the arguments, and look up what they name.

    Args:
        whole: also arguments that are missing are a fault; text may name a command alone.
    """
    import typer.main

    from cl_zoo.cli.main import app

    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        assert arguments[0] in command.commands, f"{place}: there is no command {arguments[0]!r}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if not arguments and not whole:
        return
    try:
        asked = [one for one in arguments if one not in ("--help", "--version")]
        if asked:
            look_up(command.name, command.make_context(command.name, asked).params)
    except Exception as error:
        words = getattr(error, "message", None) or str(error)
        if whole or not words.startswith("Missing parameter"):
            raise AssertionError(f"{place}: {words}") from error


def look_up(command: str, given: dict[str, Any]) -> None:
    """Plugins, options, recipes and benchmarks that a command names; files and words in capitals stand for the reader's own."""
    from cl_zoo.cli.flags import options, values
    from cl_zoo.cli.showing import show
    from cl_zoo.contract.plugins import make
    from cl_zoo.data.benchmarks import benchmark_loader
    from cl_zoo.names import BACKBONES, find, split, stack
    from cl_zoo.planning.sizes import published
    from cl_zoo.recipe.recipe import build_recipe

    named = [
        part for text in (given.get("methods"), given.get("method")) if text for part in split(text, ",")
    ]
    pairs = options(given.get("option"))
    for method in named:
        for choice in stack(method, given.get("with_") or (), given.get("probe") or (), pairs, strict=False):
            if known(choice.name) and choice.name != "all":
                make(choice)
    recipe = given.get("recipe")
    build_recipe(values(recipe if recipe and known(recipe) else None, given.get("set_")))
    if given.get("benchmark") and known(given["benchmark"]):
        benchmark_loader(given["benchmark"])
    backbone = (given.get("backbone") or "").partition(":")[0]
    if backbone and known(backbone) and not (command in ("ledger", "forecast") and backbone in published()):
        find(BACKBONES, backbone)
    if command == "show" and known(given["what"]) and known(given["name"] or given["what"]):
        show(given["what"], given["name"])


def known(name: str) -> bool:
    """Whether a name is one that cl_zoo must know: no file, no `module:Class`, no placeholder, and not the reader's `mine` or the example's `slow`."""
    return not re.search(r"[:/]|\.py\b|\.yaml\b|^[A-Z<]|^(mine|slow)$", name.partition("[")[0])


def _photograph(file: Path) -> None:
    from PIL import Image

    Image.new("RGB", (96, 64), (120, 160, 90)).save(file)
