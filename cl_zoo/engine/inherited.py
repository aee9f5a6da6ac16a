"""What another run has learnt and answered, taken over by a run that begins with the same tasks.

The identity of a run holds a chain of links, one for each task that it learns; runs whose first links are equal learn the same up
to there. So a run that has nothing of its own yet looks at the other runs beside it, finished or not, and takes a copy of the
state behind the most of these tasks, with the answers that were given to the questions that it asks itself. From there on it is a
run that was interrupted. Every file is compared with the list of the run that it comes from; what is damaged is not taken, and no
state in which a plugin keeps paths into data that lie elsewhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_zoo.engine.files import Entry, damage, entry, entry_of, write_json
from cl_zoo.engine.folder import IDENTITY, RunFolder, read_identity
from cl_zoo.engine.states import read_list, states_in, write_list
from cl_zoo.errors import RunError

STATE = "state.json"

Cell = tuple[int, int]
"""A row of the matrix, which is that of a task learnt, and a place of the stream."""


@dataclass(frozen=True)
class Inherited:
    """What was taken over.

    Attributes:
        run: the folder that it came from.
        done: how many tasks need not be learnt for what comes next.
        again: places of tasks among them that are learnt once more, for answers that are not there.
    """

    run: str
    done: int
    again: tuple[int, ...]


@dataclass(frozen=True)
class Donor:
    """Another run that has begun as this one.

    Attributes:
        shared: how many tasks both learn alike.
        answers: names of its answer files by the cell of this run that they belong to.
    """

    folder: Path
    shared: int
    answers: Mapping[Cell, str]

    def states(self) -> dict[int, Path]:
        """Its states up to the last task in common, by the number of tasks learnt."""
        found = {number(state): state for state in states_in(self.folder)}
        return {done: state for done, state in found.items() if done <= self.shared}

    def listed(self) -> dict[str, Entry]:
        """What it had written before its states, by the lists of these; one that is damaged tells nothing."""
        found: dict[str, Entry] = {}
        for state in states_in(self.folder):
            with suppress(RunError):
                found |= (read_list(state) or {"run": {}})["run"]
        return found


def inherit(folder: RunFolder, cells: Collection[Cell]) -> Inherited | None:
    """Take over what another run has learnt, into a folder that is held and holds no state.

    Args:
        cells: what this run is going to answer.

    Returns:
        `None` where nothing fits or is whole, or where the run has begun before.
    """
    if states_in(folder.partial):
        return None
    # The most tasks first, then the most answers.
    ways = [
        (done, len(one.answers), one.folder.name, one)
        for one in _donors(folder, cells)
        for done in one.states()
    ]
    for done, *_, donor in sorted(ways, key=lambda way: way[:3], reverse=True):
        folder.begin()
        asked = {cell for cell in cells if cell[0] < done}
        answers = _take_answers(folder, donor, asked)
        if not _take_state(folder, donor, done, answers):
            continue
        lost = {row for row, place in asked - answers.keys() if row < done - 1}
        states = donor.states()
        needed = set(states) if folder.keep else {start for _, start, _ in ways_back(lost, states)}
        for earlier in sorted(needed & set(range(1, done))):
            _take_state(folder, donor, earlier, answers)
        there = {number(state) for state in states_in(folder.partial)}
        again = tuple(place for *_, places in ways_back(lost, there) for place in places)
        return Inherited(donor.folder.name, done, again)
    return None


def ways_back(rows: Iterable[int], states: Collection[int]) -> Iterator[tuple[int, int, range]]:
    """How a model comes again to what it was in earlier rows, one after the other, where it was not kept in all of them.

    Args:
        states: numbers of tasks after which there is a state.

    Yields:
        The row, the state to put back (0: go on from the model of the row before, or from a new one), and the places of the
        tasks that are learnt behind it.
    """
    at = 0
    for row in sorted(rows):
        start = max((done for done in states if at < done <= row + 1), default=at)
        yield row, start if start > at else 0, range(start, row + 1)
        at = row + 1


def number(state: Path) -> int:
    """After how many tasks a state was written."""
    return int(state.name.removeprefix("state-"))


def _donors(folder: RunFolder, cells: Collection[Cell]) -> Iterator[Donor]:
    """Runs beside this one with a link in common; what answers in them is the same, so that what they say of it holds here too."""
    own, chain = folder.identity, _links(folder.identity)
    beside = folder.final.parent.glob(f"*/{IDENTITY}") if chain else ()
    for file in sorted(beside):
        if file.parent in (folder.final, folder.partial) or file.parent.suffix == ".damaged":
            continue
        try:
            other = read_identity(file.parent)
        except RunError:
            continue
        links = _links(other)
        if links and all(own[key] == other.get(key) for key in ("stack", "probes")):
            same = [here == there for here, there in zip(chain, links, strict=False)]
            count = same.index(False) if False in same else len(same)
            if count:
                yield Donor(file.parent, count, dict(_same_answers(own, other, cells)))


def _links(identity: Any) -> list[str]:
    """The links in an identity; none in one from before there were any."""
    try:
        return [str(one["link"]) for one in identity["chain"]]
    except (KeyError, TypeError):
        return []


def _same_answers(
    own: Mapping[str, Any], other: Mapping[str, Any], cells: Collection[Cell]
) -> Iterator[tuple[Cell, str]]:
    """Answer files of another run to what this one asks, where they have learnt the same."""
    here, there = own["benchmark"], other["benchmark"]
    for row, place in cells:
        name = here["order"][place]
        if name in there["order"] and here["tests"][name]["asked"] == there["tests"][name]["asked"]:
            same = place < len(there["order"]) and there["order"][place] == name
            yield (row, place), _answers(row, place if same else there["order"].index(name))


def _answers(row: int, place: int) -> str:
    return f"answers/{row}-{place}.jsonl"


def _take_answers(folder: RunFolder, donor: Donor, cells: Collection[Cell]) -> dict[Cell, Entry]:
    """Copy the donor's answers to some cells; returns what could be copied."""
    taken, listed = dict[Cell, Entry](), donor.listed()
    for cell in sorted(cells):
        name = donor.answers.get(cell, "")
        if name not in listed:
            continue
        try:
            content = (donor.folder / name).read_bytes()
        except OSError:
            continue
        if entry_of(content) == listed[name]:
            target = folder.partial / _answers(*cell)
            target.parent.mkdir(exist_ok=True)
            draft = target.with_suffix(".draft")
            draft.write_bytes(content)
            draft.rename(target)
            taken[cell] = listed[name]
    return taken


def _take_state(folder: RunFolder, donor: Donor, done: int, answers: Mapping[Cell, Entry]) -> bool:
    """Copy a state of the donor; returns whether it was whole."""
    draft = folder.partial / "state.draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        made = _copied(donor.folder / f"state-{done}", draft, done, folder.data)
    except (RunError, OSError, ValueError, KeyError, TypeError):
        return False  # damaged, or its own run goes on and has deleted it
    rows = {_answers(*cell): one for cell, one in answers.items() if cell[0] < done}
    write_list(draft, made, {IDENTITY: folder.files[IDENTITY], **rows})
    draft.rename(folder.partial / f"state-{done}")
    return True


def _copied(state: Path, draft: Path, done: int, data: list[str]) -> dict[str, Entry]:
    """The files of a state as they were listed, but that the ledger says who has learnt.

    Args:
        data: folders of this run's data.

    Raises:
        RunError, OSError, ValueError, KeyError, TypeError: a file is missing or damaged, it is no state, or it names files of
            other data.
    """
    listed = (read_list(state) or {"files": {}})["files"]
    for name, wanted in listed.items():
        copy = draft / Path(name).name
        shutil.copyfile(state / name, copy)
        if wrong := damage(copy, wanted):
            raise RunError(f"{state / name} {wrong}")
    notes = json.loads((draft / STATE).read_text(encoding="utf-8"))
    for other in set(notes["data"]) - set(data):
        if any(text.startswith(str(Path(other, "x"))[:-1]) for text in _texts(notes["plugins"])):
            raise RunError(f"{state} names files in {other}")
    notes["data"], notes["ledger"]["taken"] = data, done  # these tasks have cost what they have cost there
    write_json(draft / STATE, notes)
    return {name: entry(draft / Path(name).name) for name in listed}


def _texts(value: Any) -> Iterator[str]:
    """All texts in a plugin's state."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)
