"""A plugin that misbehaves: every hook and every way end in one sentence with who, when, where and what the contract asks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cl_zoo.contract.calls import ASKS, MODULE, own_traceback
from cl_zoo.contract.plugins import HOOKS, Plugins
from cl_zoo.engine.files import entry
from cl_zoo.engine.folder import RunFolder
from cl_zoo.engine.run import Run
from cl_zoo.engine.states import read_list, write_list
from cl_zoo.errors import OptionError, PluginFault, RunError
from cl_zoo.names import Choice
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.testing import tiny_backbone, tiny_benchmark

BENCHMARK = tiny_benchmark(1, size=8)
FILE = Path(__file__).with_name("misbehaving.py")

WHEN = {
    "build_model": "",
    "before_task": ", task colour",
    "rehearse": ", task colour",
    "loss": ", task colour, step 1",
    "before_step": ", task colour, step 1",
    "after_step": ", task colour, step 1",
    "after_task": ", task colour",
    "build_inference_model": ", answers after task colour",
    "after_answers": ", answers after task colour",
    "parts": ", task colour",
    "state_dict": ", answers after task colour",
    "load_state_dict": ", checkpoint in .*run.partial",
}
"""What each hook's sentence says of the time."""

RETURNS = [
    hook for hook in WHEN if hook not in ("before_task", "before_step", "after_step", "load_state_dict")
]
"""Hooks whose result the engine reads."""


@pytest.fixture
def misbehave(tiny_folder: Path, tmp_path: Path) -> Callable[..., Run]:
    """Learn and answer one task with a plugin of `misbehaving.py`, then go back to the checkpoint."""

    def run(name: str, beside: Sequence[str] = (), **recipe: Any) -> Run:
        choice = Choice(f"{FILE}:{name}", probe=name.startswith("after_answers"))
        first = [Choice("finetune")] if choice.probe else []
        with RunFolder(tmp_path, "run", {}) as folder:
            made = Run(
                Plugins([*first, choice, *map(Choice, beside)]),
                BENCHMARK.tasks,
                tiny_backbone(tiny_folder),
                build_recipe(BENCHMARK.recipe, {"adapter.rank": 2, **recipe}),
                seed=0,
                cells="lower",
                folder=folder,
                world=World("cpu"),
                report=lambda **_: None,
            )
            made.execute()
            made._restore()
        return made

    return run


def told(misbehave: Callable[..., Run], name: str, **settings: Any) -> str:
    """The one sentence that it ends in."""
    with pytest.raises(PluginFault) as caught:
        misbehave(name, **settings)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.startswith(f"{FILE}:{name}")
    return sentence.removeprefix(f"{FILE}:{name}")


def test_every_hook_is_in_the_table() -> None:
    assert set(HOOKS) < set(WHEN)
    assert set(WHEN) < set(ASKS)


@pytest.mark.parametrize("hook", WHEN)
@pytest.mark.parametrize(
    ("way", "did", "asks"),
    [
        ("raises", "raised ValueError: boom", ""),
        ("exits", r"called sys.exit\(0\)", "let it return, or raise an exception that says what is wrong"),
    ],
)
def test_a_hook_that_raises_or_exits_is_named_with_its_line(
    misbehave: Callable[..., Run], hook: str, way: str, did: str, asks: str
) -> None:
    sentence = told(misbehave, f"{hook}_{way}")

    place = r"\(misbehaving.py, line \d+, in act\)"
    assert re.fullmatch(rf"{WHEN[hook]} {place}: {hook} {did}; {re.escape(asks or ASKS[hook])}", sentence), (
        sentence
    )


@pytest.mark.parametrize("hook", RETURNS)
@pytest.mark.parametrize("way", ["text", "number"])
def test_a_result_of_another_type_is_named_with_the_hook_that_gave_it(
    misbehave: Callable[..., Run], hook: str, way: str
) -> None:
    sentence = told(misbehave, f"{hook}_{way}")

    what = "a str( with a str in it)?" if way == "text" else "an int"
    assert re.fullmatch(
        rf"{WHEN[hook]} \(misbehaving.py, line \d+\): {hook} returned {what}; return .*", sentence
    ), sentence


@pytest.mark.parametrize(
    ("part", "when"),
    [
        ("prepare", ", task colour, step 1"),
        ("forward", ", task colour, step 1"),
        ("generate", ", answers after task colour"),
    ],
)
@pytest.mark.parametrize(
    ("way", "did"), [("raises", "raised ValueError: boom"), ("exits", r"called sys.exit\(0\)")]
)
def test_a_returned_module_that_raises_or_exits_is_named(
    misbehave: Callable[..., Run], part: str, when: str, way: str, did: str
) -> None:
    sentence = told(misbehave, f"{part}_{way}")

    assert re.match(
        rf"{when} \(misbehaving.py, line \d+, in act\): the module of build_model {did}; ", sentence
    ), sentence
    assert way == "exits" or sentence.endswith(MODULE)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("forward_text", r", task colour, step 1 \(.*\): the model's forward returned a str; return what the backbone's"),
        ("generate_number", r", answers after task colour \(.*\): generate of Model returned a int to prompts .*; return token"),
        ("LossOfAnotherShape", r", task colour, step 1 \(.*\): loss: the term 'odd' has shape \(5, 7\); return a scalar"),
        ("LossIsNan", r", task colour, step 2 \(.*\): the term 'odd' is nan; lower its learning rate or weight"),
        ("GradientIsNan", r", task colour, step 1 \(.*\): the gradient of .*bank_up.shared is nan in \d+ of \d+ values; keep roots"),
        ("GradientIsNanBeforeTheStep", r", task colour, step 1 \(.*\): the gradient of .*bank_up.shared is nan in \d+ of \d+ values; keep roots"),
        ("StepSpoilsGradient", r", task colour, step 1 \(.*\): behind before_step the gradient of .*bank_up.shared is nan in 1 of \d+ values; keep div"),
        ("StepIsTooLong", r", task colour, step 1 \(.*\): behind before_step the gradient is beyond the range of its numbers; keep divisions"),
        ("LearnsNothingFurther", r", task colour \(.*, in after_task\): nothing that learn finds requires a gradient; let after_task choose"),
        ("TermIsDetached", r", task colour, step 1 \(.*\): the backward pass raised RuntimeError: .*; change weights in before_task"),
        ("BuildsNan", r" \(.*\): behind build_model the weight .*bank_up.shared is nan in 1 of \d+ values; keep"),
        ("BeforeTaskNan", r", task colour \(.*\): behind before_task the weight .*bank_up.shared is nan in 1 of \d+ values"),
        ("AfterTaskInf", r", task colour \(.*\): behind after_task the weight .*bank_up.shared is inf in 1 of \d+ values"),
        ("MeasuresNan", r", task colour \(.*\): after_task measured 'size' as nan; return finite numbers"),
        ("RoutesNan", r", answers after task colour \(.*\): the model that answers has the route \[nan\] for sample 0"),
    ],
)  # fmt: skip
def test_shapes_and_numbers_are_told_as_what_they_are(
    misbehave: Callable[..., Run], name: str, sentence: str
) -> None:
    found = told(misbehave, name)

    assert re.match(sentence, found), found
    assert "misbehaving.py, line " in found


def test_whose_step_spoilt_a_gradient_is_told_of_those_who_change_it(misbehave: Callable[..., Run]) -> None:
    """The others of the stack, which change none, are not named."""
    with pytest.raises(PluginFault) as caught:
        misbehave("StepSpoilsGradient", beside=("ewc", f"{FILE}:StepDoubles"))

    assert str(caught.value).startswith(
        f"{FILE}:StepSpoilsGradient and {FILE}:StepDoubles, task colour, step 1: "
    )


def test_clipping_leaves_a_gradient_that_is_no_number_where_it_is(misbehave: Callable[..., Run]) -> None:
    """A norm that is nan would make all gradients nan, and the first of them would be told."""
    assert re.search(
        r"the gradient of .*bank_up.shared is nan in \d+ of \d+ values; keep",
        told(misbehave, "GradientIsNan", clip="norm"),
    )


def test_a_weight_spoilt_while_it_learnt_is_told_with_the_last_step(misbehave: Callable[..., Run]) -> None:
    found = told(misbehave, "SpoilsASpare")

    assert re.match(
        r", task colour, step 2 \(.*\): behind step 2, the last one, the weight spare is nan in 1 of 1 values; keep",
        found,
    ), found


def test_what_is_no_number_in_a_buffer_is_like_itself(misbehave: Callable[..., Run]) -> None:
    """It is neither a weight nor changed by answering."""
    assert torch.isnan(misbehave("BufferIsNan").model.state_dict()["mask"][0])


@pytest.mark.parametrize(
    ("way", "kind", "words"),
    [
        ("interrupts", KeyboardInterrupt, ""),
        ("refuses", OptionError, "strength is 3; take 2"),
        ("starves", MemoryError, ""),
    ],
)
def test_an_interrupt_our_own_errors_and_want_of_memory_stay_what_they_are(
    misbehave: Callable[..., Run], way: str, kind: type[BaseException], words: str
) -> None:
    with pytest.raises(kind) as caught:
        misbehave(f"loss_{way}")

    assert type(caught.value) is kind
    assert str(caught.value) == words


def test_what_a_plugin_prints_is_no_result(
    misbehave: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    misbehave("loss_prints")
    misbehave_out = capsys.readouterr()

    assert misbehave_out.out == ""
    assert misbehave_out.err.count("said to standard output") == 2


def test_an_exception_cannot_paint_the_terminal(misbehave: Callable[..., Run]) -> None:
    assert r"raised ValueError: \x1b[31mboom;" in told(misbehave, "loss_paints")


# --- checkpoints ----------------------------------------------------------------------------------------------------


def listed(file: Path) -> None:
    """List a state's files as they are now, as one writes them who means what stands there."""
    state = file.parent
    known = read_list(state)
    assert known is not None
    write_list(state, {name: entry(state / name) for name in known["files"]}, known["run"])


def test_a_state_that_names_an_unknown_expert_is_one_sentence(misbehave: Callable[..., Run]) -> None:
    run = misbehave("NamesExperts")
    file = run.folder.partial / "state-1" / "state.json"
    file.write_text(file.read_text().replace('"answers": "shared"', '"answers": "shaped"'))
    listed(file)

    sentence = told(misbehave, "NamesExperts")
    assert re.match(
        r", checkpoint in .*run.partial \(misbehaving.py, line \d+, in load_state_dict\): load_state_dict raised KeyError: "
        r""".*no expert 'shaped'; it has shared.*; .*delete the run's folder and run again""",
        sentence,
    ), sentence


def test_a_state_that_lacks_a_plugin_is_one_sentence(misbehave: Callable[..., Run]) -> None:
    file = misbehave("NamesExperts").folder.partial / "state-1" / "state.json"
    notes = json.loads(file.read_text())
    file.write_text(json.dumps({**notes, "plugins": {"other": {}}}))
    listed(file)

    with pytest.raises(
        RunError, match=r"checkpoint in .* holds nothing of .*NamesExperts; delete the run's folder"
    ):
        misbehave("NamesExperts")


def test_a_checkpoint_with_weights_that_are_no_numbers_is_refused(misbehave: Callable[..., Run]) -> None:
    file = misbehave("NamesExperts").folder.partial / "state-1" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "bank_up" in name)
    tensors[name][0] = torch.nan
    save_file(tensors, file)
    listed(file)

    with pytest.raises(
        RunError, match=rf"checkpoint in .*run.partial: the weight {name} is nan in 2 of \d+ values; delete"
    ):
        misbehave("NamesExperts")


# --- tracebacks -----------------------------------------------------------------------------------------------------


def test_a_traceback_is_cut_to_the_lines_of_the_plugin(misbehave: Callable[..., Run]) -> None:
    with pytest.raises(PluginFault) as caught:
        misbehave("loss_raises")
    cause = caught.value.__cause__
    assert cause is not None

    text = own_traceback(cause, caught.value.packages)
    files = re.findall(r'File "(.*?)"', text)
    assert files == [str(FILE)] * 2
    assert text.endswith("ValueError: boom\n")
