"""What a method declares of the ablations of its paper: options by name of the row, their source, and what was published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cl_zoo.contract.options import kind_of
from cl_zoo.errors import OptionError, PluginError, nearest
from cl_zoo.recipe.recipe import validated

KEYS = ("options", "source", "published", "on")
FIGURES = ("avg", "last", "immediate", "maa", "bwt", "bwt_t1", "forgetting")
"""What may be published of a row, by the names of `cl_zoo.scoring.matrix`."""


@dataclass(frozen=True)
class Ablation:
    """A row of a paper's ablation that the method's options express.

    Attributes:
        name: of the row, as in the paper.
        options: values of the method's options; the others are as they are by default.
        source: where the row stands: `Table 3`, `Figure 4`.
        published: what the paper gives for it, by a name in `FIGURES`; may be empty.
        on: the benchmark of the published figures.
    """

    name: str
    options: Mapping[str, Any]
    source: str
    published: Mapping[str, float]
    on: str


def ablations(name: str, plugin: type) -> tuple[Ablation, ...]:
    """The declared ablations of a method, in their order; none where it declares none.

    Args:
        name: of the method, for messages.
        plugin: its class, which may have `ablations`.

    Raises:
        PluginError: a declaration is of another form, or names an option or a value that the method does not have.
    """
    declared = getattr(plugin, "ablations", {})
    if not isinstance(declared, Mapping):
        raise PluginError(
            f'{name}: ablations is a {type(declared).__name__}; write {{"row": {{"options": …, "source": …}}}}'
        )
    return tuple(_ablation(f"{name}: ablation {row!r}", row, one, plugin) for row, one in declared.items())


def _ablation(where: str, row: Any, declared: Any, plugin: type) -> Ablation:
    if not isinstance(row, str) or not isinstance(declared, Mapping):
        raise PluginError(f'{where} is a {type(declared).__name__}; write {{"options": …, "source": …}}')
    for key in declared:
        if key not in KEYS:
            raise PluginError(f"{where} has {key!r}{nearest(str(key), KEYS)}")
    for key, kind in (("options", Mapping), ("source", str)):
        if not isinstance(declared.get(key), kind):
            raise PluginError(
                f"{where} has {declared.get(key)!r} as its {key}; give its options and its source"
            )
    published = declared.get("published", {})
    for figure in published:
        if figure not in FIGURES:
            raise PluginError(
                f"{where}, published: there is no figure {figure!r}{nearest(str(figure), FIGURES)}"
            )
    if published and not declared.get("on"):
        raise PluginError(f"{where} has published figures and no benchmark; name it as 'on'")
    try:
        validated(kind_of(plugin), declared["options"], where)
    except OptionError as error:
        raise PluginError(str(error)) from None
    return Ablation(
        row, dict(declared["options"]), declared["source"], dict(published), declared.get("on", "")
    )
