"""Templates: known by name, or a text with `{prompt}`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cl_zoo.backbones.templates import TEMPLATES, around, resolve
from cl_zoo.errors import OptionError


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_known_name_stands_for_a_text_around_a_prompt(name: str) -> None:
    assert resolve(name).count("{prompt}") == 1
    assert resolve(resolve(name)) == resolve(name)


def test_a_text_with_a_place_for_the_prompt_is_taken_as_it_is() -> None:
    assert resolve("Q: {prompt} {x} A:") == "Q: {prompt} {x} A:"
    assert around("Q: {prompt} {x} A:") == ("Q: ", " {x} A:")


def test_vicunas_template_ends_where_the_answer_begins() -> None:
    head, tail = around(resolve("vicuna_v1"))

    assert head.startswith("A chat between a curious user and an artificial intelligence assistant. The ")
    assert head.endswith("answers to the user's questions. USER: ")
    assert tail == " ASSISTANT:"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            "vicuna",
            r"--template 'vicuna': .*did you mean 'vicuna_v1'\? known: internvl, .*plain, .*vicuna_v1",
        ),
        ("Q: A:", r"--template 'Q: A:': neither a text with {prompt} nor the name of a template; known: "),
        ("{prompt} {prompt}", "holds {prompt} 2 times; write it once"),
    ],
)
def test_anything_else_is_refused_with_the_known_names(template: str, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        resolve(template)


@pytest.mark.parametrize("command", [("run", "finetune"), ("compare", "--methods", "finetune")], ids=" ".join)
def test_an_unknown_template_ends_a_command_with_2_before_anything_is_loaded(
    cli: Callable[..., Any], command: tuple[str, ...]
) -> None:
    ended = cli(*command, "--benchmark", "cl_zoo.testing:load_tiny", "--template", "vicuna")

    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith("error: --template 'vicuna': neither a text with {prompt}")
