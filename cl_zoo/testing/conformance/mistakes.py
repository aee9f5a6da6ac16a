"""An error out of a stranger's hook as a sentence: what it says, where it comes from, and what to do where that is known."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path

from cl_zoo.engine.ledger import state_tensors
from cl_zoo.errors import ClZooError, first_line

REMEDIES = {
    r"before Module.__init__\(\) call": "call super().__init__() first in the __init__ of a module",
    r"(forward|generate)\(\) (got|missing|takes)": "let it take **inputs and pass them on, as cl_zoo.nn.Around does",
    r"prepare\(\) (missing|takes)": "write def prepare(self, batch)",
    r"NVIDIA|CUDA|on the same device|meta tensor": "make tensors where the model's are, with device=weight.device",
    r"the bank has no expert": "bank.add(name) makes one",
    r"does not require grad": "something was detached, or made under no_grad, on the way to it",
    r"modified by an inplace operation": "change weights in before_task or after_task, not between forward and backward",
    r"a leaf Variable that requires grad|in-place operation": "change weights inside torch.no_grad()",
    r"backward through the graph a second time": "detach what is kept from one step for the next",
    r"Only Tensors created explicitly": "keep tensors as tensor.detach().clone()",
    r"checkpoint in .* (lacks|holds an unknown) tensor|has shape .* the model wants": "let load_state_dict make anew what the hooks added",
}
"""What a first method meets in torch, and what to do then; searched in the order in which they stand."""


def told(error: BaseException, packages: Iterable[str] = ()) -> str:
    """An error as the end of a sentence.

    Args:
        packages: names of the packages that the plugins stand in; the deepest line in one of them is the place.
    """
    said, ours = first_line(error).rstrip("."), isinstance(error, ClZooError)
    remedy = next((remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, said)), "")
    if ours and remedy:
        said = said.partition("; ")[0]  # its own remedy is that of somebody who runs a method
    text = said if ours else f"{type(error).__name__}: {said}"
    place = _place(error, set(packages))
    return text + (f" ({place})" if place else "") + (f"; {remedy}" if remedy else "")


def unkept(instances: Mapping[str, object]) -> str:
    """What plugins hold and would lose, as the end of a sentence: tensors of a class without `state_dict`."""
    for name, plugin in instances.items():
        held = (
            [] if hasattr(plugin, "state_dict") else [k for k, v in vars(plugin).items() if state_tensors(v)]
        )
        if held:
            return f"; {name} has no state_dict, but its attribute {held[0]!r} holds tensors: define state_dict and load_state_dict"
    return ""


def _place(error: BaseException, packages: set[str]) -> str:
    """File, line and function where the plugins' own code raised an error, or asked for what did; empty where it is elsewhere."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in packages:
            code = frame.f_code
            return f"{Path(code.co_filename).name}, line {line}, in {code.co_name}"
    return ""
