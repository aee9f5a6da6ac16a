"""An error out of a stranger's hook as a sentence: what it says, where it comes from, and what to do where that is known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from cl_zoo.contract import calls
from cl_zoo.engine.ledger import state_tensors
from cl_zoo.errors import ClZooError, PluginFault, first_line

REMEDIES = {
    **calls.REMEDIES,
    r"checkpoint in .* (lacks|holds an unknown) tensor|has shape .* the model wants": "let load_state_dict make anew what the hooks added",
}
"""What a first method meets in torch and in the engine, and what to do then; searched in the order in which they stand."""


def told(error: BaseException, packages: Iterable[str] = ()) -> str:
    """An error as the end of a sentence.

    Args:
        packages: names of the packages that the plugins stand in; the deepest line in one of them is the place.
    """
    if isinstance(error, PluginFault):
        return str(error)  # says where it comes from, and what to do
    said, ours = first_line(error).rstrip("."), isinstance(error, ClZooError)
    remedy = next((remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, said)), "")
    if ours and remedy:
        said = said.partition("; ")[0]  # its own remedy is that of somebody who runs a method
    text = said if ours else f"{type(error).__name__}: {said}"
    place = calls.place(error, packages)
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
