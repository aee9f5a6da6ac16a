"""Finding and loading plugins: installed ones by metadata, others by module or file, broken and doubled ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_zoo import names
from cl_zoo.cli import catalogue
from cl_zoo.contract.plugins import Plugins, load_class
from cl_zoo.errors import OptionError, PluginError
from cl_zoo.names import (
    BACKBONES,
    BENCHMARKS,
    METHODS,
    Choice,
    Installed,
    find,
    installed,
    load,
    parse_stack,
    split,
)

MINE = '''
"""Mine: a method of somebody else.

More about it.
"""
from pydantic import BaseModel, Field
from cl_zoo import hookimpl

class Mine:
    class Options(BaseModel, frozen=True, extra="forbid"):
        strength: float = Field(1.0, ge=0, description="how strong it is")

    def __init__(self, options):
        self.options = options

    @hookimpl
    def before_task(self, task):
        pass
'''
MISSPELT = """
from cl_zoo import hookimpl

class Mine:
    @hookimpl
    def after_tsk(self): ...
"""

BROKEN = "import a_module_that_is_not_there\n"


# What is installed


def test_bundled_plugins_are_found_through_their_entry_points():
    own = {group: [one.name for one in installed(group) if one.distribution == "cl-zoo"] for group in
           (METHODS, BENCHMARKS, BACKBONES)}  # fmt: skip

    assert {"ewc", "finetune", "hide", "multitask", "zeroshot"} <= set(own[METHODS])
    assert "mini" in own[BENCHMARKS]
    assert {"llava", "mini"} <= set(own[BACKBONES])


def test_an_installed_plugin_is_loaded_by_its_name(install: Callable[..., Path]):
    install("cl-zoo-mine", methods={"mine": "third_mine:Mine"}, modules={"third_mine": MINE})

    assert find(METHODS, "mine").distribution == "cl-zoo-mine"
    assert find(METHODS, "mine").version == "1.0"
    assert Plugins([Choice("mine", {"strength": 3})]).method.options.strength == 3


def test_loading_imports_the_named_plugin_and_no_other(install: Callable[..., Path]):
    modules = {"third_mine": MINE, "third_other": MINE, "third_broken": BROKEN}
    install("cl-zoo-mine", methods={name: f"{name}:Mine" for name in modules}, modules=modules)

    load_class("third_mine")

    assert "third_mine" in sys.modules
    assert "third_other" not in sys.modules
    assert "third_broken" not in sys.modules


def test_two_distributions_with_one_name_are_both_named(install: Callable[..., Path]):
    install("cl-zoo-mine", methods={"mine": "third_mine:Mine"}, modules={"third_mine": MINE})
    install("other-mine", "2.1", methods={"mine": "third_other:Mine"}, modules={"third_other": MINE})

    with pytest.raises(
        PluginError,
        match=r"two installed methods are called 'mine': cl-zoo-mine 1\.0 and other-mine 2\.1; uninstall one",
    ):
        load_class("mine")


def test_a_distribution_may_not_take_a_bundled_name(install: Callable[..., Path]):
    install("other-ewc", methods={"ewc": "third_mine:Mine"}, modules={"third_mine": MINE})

    with pytest.raises(
        PluginError, match=r"two installed methods are called 'ewc': cl-zoo .* and other-ewc 1.0"
    ):
        Plugins([Choice("ewc")])


def test_an_older_copy_further_down_the_path_is_no_second_distribution(
    install: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Python imports the first copy on the path; a virtual environment may well lie over an older installation."""
    site = install("cl-zoo-mine", "2.0", methods={"mine": "third_mine:Mine"}, modules={"third_mine": MINE})
    older = tmp_path / "older" / "cl_zoo_mine-1.0.dist-info"
    older.mkdir(parents=True)
    for file in (site / "cl_zoo_mine-2.0.dist-info").iterdir():
        (older / file.name).write_text(file.read_text().replace("Version: 2.0", "Version: 1.0"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(older.parent)])

    assert find(METHODS, "mine").version == "2.0"


def test_one_name_may_stand_in_several_groups(install: Callable[..., Path]):
    install("cl-zoo-mine", methods={"mini": "third_mine:Mine"}, modules={"third_mine": MINE})

    assert find(METHODS, "mini").distribution == "cl-zoo-mine"
    assert find(BENCHMARKS, "mini").distribution == "cl-zoo"


@pytest.mark.parametrize(
    ("group", "name", "sentence"),
    [
        (METHODS, "hid", "no method is called 'hid'; did you mean 'hide'\\? known: .*ewc, finetune, hide"),
        (METHODS, "xyzzy", "no method is called 'xyzzy'; known: "),
        (BENCHMARKS, "minni", "no benchmark is called 'minni'; did you mean 'mini'"),
        (BACKBONES, "lava", "no backbone is called 'lava'; did you mean 'llava'"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest_and_the_list(group: str, name: str, sentence: str):
    with pytest.raises(PluginError, match=sentence):
        load(group, name)


# Modules and files


def test_a_class_is_loaded_from_a_module(install: Callable[..., Path]):
    install("cl-zoo-mine", modules={"third_mine": MINE})

    assert load_class("third_mine:Mine").__name__ == "Mine"


def test_a_class_is_loaded_from_a_file(tmp_path: Path):
    file = tmp_path / "experiment.py"
    file.write_text(MINE)

    assert Plugins([Choice(f"{file}:Mine", {"strength": 2})]).method.options.strength == 2


def test_a_file_never_stands_in_for_a_module_of_its_name(tmp_path: Path):
    """`colorsys.py:Mine` is an experiment; `import colorsys` stays what it is."""
    import colorsys

    file = tmp_path / "colorsys.py"
    file.write_text(MINE)
    load_class(f"{file}:Mine")

    assert sys.modules["colorsys"] is colorsys


def test_two_files_of_one_name_are_two_plugins(tmp_path: Path):
    choices = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "experiment.py").write_text(f"{MINE}\nplace = {folder!r}\n")
        choices.append(Choice(f"{tmp_path / folder / 'experiment.py'}:Mine"))
    stack = Plugins(choices)

    assert len(stack.sources()) == 2
    assert len(set(stack.sources().values())) == 2


def test_the_source_hash_changes_with_the_file(tmp_path: Path):
    file = tmp_path / "experiment.py"
    file.write_text(MINE)
    before = Plugins([Choice(f"{file}:Mine")]).sources()
    again = Plugins([Choice(f"{file}:Mine")]).sources()
    file.write_text(MINE + "# changed\n")

    assert before == again
    assert before != Plugins([Choice(f"{file}:Mine")]).sources()


@pytest.mark.parametrize(
    ("source", "name", "sentence"),
    [
        (
            BROKEN,
            "Mine",
            "importing .*mine.py failed with ModuleNotFoundError: No module named 'a_module_that",
        ),
        ("def (", "Mine", "failed with SyntaxError"),
        (
            "raise RuntimeError('not today')",
            "Mine",
            r"failed with RuntimeError: not today \(line 1\); repair it$",
        ),
        (MINE, "Mien", "has no 'Mien'; did you mean 'Mine'\\? known: Mine"),
        (None, "Mine", "no file .*mine.py"),
    ],
)
def test_a_file_that_cannot_be_loaded_says_why(tmp_path: Path, source: str | None, name: str, sentence: str):
    if source is not None:
        (tmp_path / "mine.py").write_text(source)

    with pytest.raises(PluginError, match=sentence):
        load_class(f"{tmp_path / 'mine.py'}:{name}")


# The catalogue


@pytest.fixture
def third_party(install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound method, a broken one, and one that two distributions claim; the bundled ones are hidden for speed."""
    install(
        "cl-zoo-mine",
        methods={
            "mine": "third_mine:Mine",
            "broken": "third_broken:Mine",
            "twice": "third_mine:Mine",
            "misspelt": "third_misspelt:Mine",
        },
        benchmarks={"gone": "third_gone:load"},
        modules={"third_mine": MINE, "third_broken": BROKEN, "third_misspelt": MISSPELT},
    )
    install("other-mine", methods={"twice": "third_mine:Mine"}, modules={})
    everything = names.installed_in

    def strangers(groups: Sequence[str]) -> dict[str, list[Installed]]:
        found = everything(groups).items()
        return {group: [one for one in ones if one.distribution != "cl-zoo"] for group, ones in found}

    for module in (catalogue, names):
        monkeypatch.setattr(module, "installed_in", strangers)


def test_the_list_is_made_without_importing_anything(third_party: None):
    found = {(entry.kind, entry.name): entry for entry in catalogue.entries()}

    assert found["method", "broken"].fault == ""
    assert found["method", "twice"].fault == "claimed by 2 distributions; uninstall all but one"
    assert found["benchmark", "gone"].distribution == "cl-zoo-mine"
    assert "third_broken" not in sys.modules
    assert "third_mine" not in sys.modules


def test_a_broken_plugin_disturbs_no_other(third_party: None):
    assert Plugins([Choice("mine")]).method.options.strength == 1.0
    with pytest.raises(PluginError, match="broken: importing third_broken failed"):
        Plugins([Choice("broken")])


def test_the_check_shows_why_a_plugin_is_broken(third_party: None):
    faults = {entry.name: entry.fault for entry in catalogue.entries(check=True)}

    assert faults["mine"] == ""
    assert "No module named 'a_module_that_is_not_there'" in faults["broken"]
    assert "No module named 'third_gone'" in faults["gone"]
    assert faults["misspelt"].endswith(
        "did you mean 'after_task'? known: after_answers, after_step, after_task, before_step, before_task, build_inference_model, build_model, loss, rehearse"
    )


def test_a_broken_plugin_has_its_line_in_the_markdown_table(third_party: None):
    table = catalogue.markdown(catalogue.entries())

    assert "| `mine` | Mine: a method of somebody else. |" in table
    assert "| `broken` | broken: importing third_broken failed" in table
    assert "two installed methods are called 'twice'" in table


def test_a_plugin_that_ends_the_process_is_a_fault_of_its_own(install: Callable[..., Path]):
    install(
        "cl-zoo-mine", methods={"gone": "third_gone:Mine"}, modules={"third_gone": "import os; os.abort()"}
    )

    assert catalogue._import_fault(METHODS, find(METHODS, "gone")) == "importing it ended with code -6"


def test_a_method_is_described_with_options_hooks_and_origin(third_party: None):
    described = catalogue.describe("mine")

    assert described.startswith("Mine: a method of somebody else.\n\nMore about it.\n")
    assert (
        "class     third_mine:Mine\nfrom      cl-zoo-mine 1.0\nprotocol  sequential\nhooks     before_task\n"
        in described
    )
    assert "  strength = 1.0   how strong it is" in described


# Method expressions

WORD = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True).filter(
    lambda word: (
        word not in ("y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf", "infinity")
    )
)
VALUE = (
    st.integers(-1000, 1000)
    | st.floats(-1e6, 1e6)
    | st.booleans()
    | WORD
    | st.lists(st.integers(0, 9), max_size=3)
)
CHOICE = st.builds(Choice, WORD, st.dictionaries(WORD, VALUE, max_size=3))


@given(st.lists(CHOICE, min_size=1, max_size=3))
def test_a_label_reads_as_the_stack_it_stands_for(choices: list[Choice]):
    assert parse_stack("+".join(choice.label for choice in choices)) == choices


@given(st.lists(st.text("ab[],+", max_size=6), min_size=1, max_size=4))
def test_split_loses_no_letter(parts: list[str]):
    text = ",".join(parts)

    assert ",".join(split(text, ",")) == text


def test_a_stack_is_read_with_its_options():
    assert parse_stack("moelora + ewc[strength=3, samples=2e2]") == [
        Choice("moelora"),
        Choice("ewc", {"strength": 3, "samples": 200.0}),
    ]


@pytest.mark.parametrize(
    "text", ["", "+ewc", "hide[", "hide]", "[variant=paper]", "hide[variant]", "hide[=3]"]
)
def test_an_unreadable_expression_is_shown_with_the_right_form(text: str):
    with pytest.raises((PluginError, ValueError), match=r"write (it as |name\[option=)"):
        parse_stack(text)


def test_options_stand_in_a_label_in_one_order_only():
    one: dict[str, Any] = {"beta": 1, "alpha": 0.5}

    assert Choice("hide", one).label == "hide[alpha=0.5,beta=1]"


# What the recipe says of options


def test_an_option_of_the_recipe_is_weaker_than_the_users_and_stands_in_no_label():
    said = {"olora": {"strength": 0.05, "penalty": "squared"}, "ewc": {"samples": 3}, "absent": {"odd": 1}}
    plugins = Plugins(parse_stack("olora[strength=0.1]+ewc"), said)

    assert [choice.label for choice in plugins.choices] == ["olora[strength=0.1]", "ewc"]
    olora, ewc = (one["options"] for one in plugins.options())
    assert (olora["strength"], olora["penalty"], ewc["samples"]) == (0.1, "squared", 3)
    assert (plugins.method.options.strength, plugins.method.options.penalty) == (0.1, "squared")


@pytest.mark.parametrize(
    ("stack", "said", "sentence"),
    [
        (
            "olora",
            {"strenght": 1},
            r"recipe\.options\.olora has no option 'strenght'; did you mean 'strength'",
        ),
        (
            "olora",
            {"strength": -1},
            r"recipe\.options\.olora\.strength: .*greater than or equal to 0, got -1",
        ),
        ("olora[strenght=1]", {"strength": 1}, r"^olora has no option 'strenght'"),
        ("olora[strength=-1]", {"strength": 1}, r"^olora\.strength: .*got -1"),
    ],
)
def test_a_wrong_option_is_told_of_whoever_gave_it(stack: str, said: dict[str, Any], sentence: str):
    with pytest.raises(OptionError, match=sentence):
        Plugins(parse_stack(stack), {"olora": said})


def test_a_package_that_is_here_but_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cl-zoo-gentle-pull").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        PluginError,
        match=r"no method is called 'gentle_pull'; \./cl-zoo-gentle-pull is not installed: python -m pip install -e",
    ):
        find(METHODS, "gentle_pull")
