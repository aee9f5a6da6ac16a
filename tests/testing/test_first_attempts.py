"""What somebody is told whose first method is not right yet: one sentence with what to do, and never torch's own words alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cl_zoo.errors import ClZooError
from cl_zoo.testing import ConformanceError, check_method, check_promise

ATTEMPTS = Path(__file__).with_name("first_attempts.py")

TOLD = {
    "ReturnsNothing": "build_inference_model returned nothing; return the module that answers, the model itself where it does",
    "HasNoState": r"HasNoState has no state_dict, but its attribute 'anchor' holds tensors: define state_dict and load_state_dict",
    "GeneratesOnly": "build_inference_model returned an answers without forward; derive it from cl_zoo.nn.Around, whose forward",
    "NeverGenerates": "build_inference_model returned an answers without generate; derive it from cl_zoo.nn.Around",
    "AnswersByAnObject": "build_inference_model returned an answers; return an nn.Module with forward and generate",
    "AnswersByAClass": "build_inference_model returned the class Around; return an nn.Module",
    "ForgetsSuper": r"\(first_attempts.py, line \d+, in __init__\): .* Module.__init__\(\) call; call super\(\).__init__\(\) first",
    "GeneratesTexts": "generate of answers returned a list .*; return token ids, in each row the prompt's and then the answer's",
    "GeneratesTheAnswerAlone": r"generate of answers returned a Tensor of shape \(4, 4\) to prompts \(4, 24\); return token ids",
    "PreparesForNothing": r"prepare\(\) takes 1 positional argument but 2 were given; write def prepare\(self, batch\)",
    "RoutesTheBatch": r"a route of shape \(2,\) for 4 samples; make it \(batch, tasks\) in prepare",
    "BuildsTwo": "build_model returned a tuple; return an nn.Module with forward and generate",
    "BuildsNothingThatRuns": "build_model returned a model without forward and generate; derive it from cl_zoo.nn.Around",
    "ReturnsLogits": "the model's forward returned a Tensor; return what the backbone's forward returns, with logits",
    "TakesThreeInputs": r"forward\(\) got an unexpected .*; let it take \*\*inputs and pass them on",
    "DropsInputs": r"returned logits \(4, \d+, \d+\) for targets \(4, \d+\); pass all of batch.inputs on",
    "HoldsAList": r"of shape \(\) requires a gradient and is no parameter .*; make it an nn.Parameter",
    "ClaimsNoPart": r"gain is trainable but belongs to no part; name it in the method's parts\(model\)",
    "OnAnotherDevice": "out of meta tensor.*; make tensors where the model's are, with device=weight.device",
    "ReturnsATerm": "loss returned a Tensor; return a mapping from names to values",
    "ReturnsANumber": "the term 'x' is a float; return a tensor",
    "MeasuresAList": "after_task measured 'norms' as a list; return a number or a tensor with one element",
    "MeasuresOneValue": "after_task returned a float; return a mapping from names to values",
    "RehearsesBatches": "rehearse returned a list with a Batch in it; return a list of cl_zoo.Sample",
    "RehearsesOne": "rehearse returned a Sample; return a list of cl_zoo.Sample",
    "ListsItsParts": "parts returned a list; return a mapping from a part to a list of names",
    "FreezesEverything": "nothing requires a gradient; let before_task choose what learns",
    "TrainsEverything": "belongs to the frozen backbone .*; train an expert or a module beside it",
    "AddsNoExpert": r"\(first_attempts.py, line \d+, in before_task\): .*no expert 't1'; it has t0\"; bank.add\(name\) makes one",
    "WritesInPlace": r"in before_task\): before_task raised RuntimeError: a leaf Variable .*; change weights inside torch.no_grad\(\)",
    "KeepsASet": "first_attempts.py:KeepsASet/seen: a set is neither JSON nor a tensor; keep numbers, texts, lists",
    "CountsByNumber": r"first_attempts.py:CountsByNumber/seen: the key 0 is no string; write str\(key\)",
    "KeepsNothing": "state_dict returned nothing; return a mapping, which load_state_dict then gets",
    "AddsALateParameter": "unknown tensor late0; let load_state_dict make anew what the hooks added",
}
"""What the check says of each attempt."""

BREAKS = {
    "HasNoState": "resuming",
    "HoldsAList": "terms",
    "TrainsEverything": "frozen",
    "KeepsASet": "state",
    "CountsByNumber": "state",
    "AddsALateParameter": "saving",
}
"""The promise that an attempt breaks, if it is not that tasks are learnt and answered."""

REFUSED = {
    "ForgetsSelf": r"before_task takes 'model' first; write def before_task\(self, model, task\)",
    "InventsAnArgument": "loss takes 'data', which it is not given; known: batch, model, outputs, task",
    "IgnoresItsOptions": r"too many positional arguments; write __init__\(self, options\), since it has Options",
    "HasNoOptions": r"missing a required argument: 'options'; give it a class Options\(BaseModel",
    "AsksForAnOption": "strength has no value; set it, or give it a default where it is defined",
}
"""What is said of those with which no trial is begun."""


@pytest.mark.parametrize("name", TOLD)
def test_a_first_attempt_is_told_what_to_do(name: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_promise(f"{ATTEMPTS}:{name}", BREAKS.get(name, "streams"))

    assert re.search(TOLD[name], str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(f" (see docs/write-a-method.md#promise-{caught.value.promise})")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_begun_is_refused(name: str) -> None:
    with pytest.raises(ClZooError, match=REFUSED[name]):
        check_method(f"{ATTEMPTS}:{name}")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (f"{ATTEMPTS}", f"{ATTEMPTS} is a file; say which method in it, as in {ATTEMPTS}:Name"),
        ("no_such_file.py:Mine", "there is no file no_such_file.py; give its path from "),
    ],
)
def test_a_file_without_a_class_or_a_class_without_a_file_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(ClZooError, match=re.escape(sentence)):
        check_method(name)
