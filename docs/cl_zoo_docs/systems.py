"""What cl_zoo and other systems hold: methods, benchmarks and families of models side by side, each with its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cl_zoo.names import BACKBONES, BENCHMARKS, METHODS, installed
from cl_zoo_docs.text import code, escaped, table

FILE = Path(__file__).parent / "systems.yaml"

KINDS = {"methods": METHODS, "benchmarks": BENCHMARKS, "families": BACKBONES}
"""Headings, and the entry points that ours are found by."""

ALIASES = ("llava-1.5-7b", "llava-1.5-13b", "mini")
"""Backbones that are a family's under another name, and the base of `mini`."""


@dataclass(frozen=True)
class System:
    """A repository at a commit: what it holds, by its name here, and the place of each there."""

    name: str
    repository: str
    commit: str
    about: str
    holds: Mapping[str, Mapping[str, str]]

    def link(self, place: str) -> str:
        return f"[✓](https://github.com/{self.repository}/tree/{self.commit}/{place})"


def systems() -> list[System]:
    """The other systems, as `systems.yaml` has them."""
    return [_system(name, said) for name, said in yaml.safe_load(FILE.read_text(encoding="utf-8")).items()]


def ours(kind: str) -> list[str]:
    """What this distribution brings of a kind, in the order of their names."""
    found = {one.name for one in installed(KINDS[kind]) if one.distribution == "cl-zoo"}
    return sorted(found - set(ALIASES) - _probes(kind))


def page() -> str:
    """The page: a table for each kind."""
    others = systems()
    parts = [
        "# cl_zoo and other systems",
        "What can be run where. Of cl_zoo it is what is installed when this page is written; of the others, what lies in their "
        "repositories at the commits below, with a link to the place. A mark says that something is there, not that it does the same: "
        "how methods here stand to their authors' code is [another page](methods/held-against.md), and what the systems train and keep "
        "equal differs ([fairness](fairness.md)).",
        table(
            ["system", "read at", "remark"],
            [
                [
                    escaped(one.name),
                    f"[{one.repository}@{one.commit}](https://github.com/{one.repository}/tree/{one.commit})",
                    escaped(one.about),
                ]
                for one in others
            ],
        ),
    ]
    for kind in KINDS:
        parts += [f"## {kind.capitalize()}", _table(kind, others)]
    return "\n\n".join(parts) + "\n"


def _table(kind: str, others: list[System]) -> str:
    here = ours(kind)
    elsewhere = dict.fromkeys(name for one in others for name in one.holds[kind] if name not in here)
    shown = [one for one in others if one.holds[kind]]
    rows = [
        [
            code(name) if name in here else escaped(name),
            "✓" if name in here else "",
            *(one.link(one.holds[kind][name]) if name in one.holds[kind] else "" for one in shown),
        ]
        for name in [*here, *elsewhere]
    ]
    return table([kind, "cl_zoo", *(escaped(one.name) for one in shown)], rows)


def _system(name: str, said: Mapping[str, Any]) -> System:
    return System(
        name, said["repository"], said["commit"], said.get("about", ""), {kind: said[kind] for kind in KINDS}
    )


def _probes(kind: str) -> set[str]:
    if kind != "methods":
        return set()
    from cl_zoo.contract.plugins import every_method

    methods = set(every_method())
    return {one.name for one in installed(METHODS)} - methods
