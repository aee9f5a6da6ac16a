"""Splits that are read when they are first used, and kept compactly: 200,000 records take little more memory than their text.

A split is a JSON file in one of the formats of `cl_zoo.data.records`, or a folder of Hugging Face `datasets`. Every record is checked when the
split is read; an image is looked for when its sample is asked for, and opened by whoever uses it.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, overload

from cl_zoo.data.records import Entry, entries, fault, image_path, read_records
from cl_zoo.data.references import referred
from cl_zoo.errors import DataError, first_line, nearest
from cl_zoo.tasks import ImageSource, Sample

NEEDS = {"caption": "references", "textvqa": "answers", "grounding": "box"}
"""What a scoring rule needs beyond an answer, by its name."""


class Packed(Sequence[tuple[int, Entry]]):
    """Entries with the numbers of their records, kept as one block of JSON texts."""

    def __init__(self, numbered: Iterable[tuple[int, Entry]]) -> None:
        block, self._ends = bytearray(), array("Q", [0])
        for number, one in numbered:
            values = [number, one.id, one.image, one.prompt, one.answer, one.references, one.truth]
            block += json.dumps(values, separators=(",", ":")).encode()
            self._ends.append(len(block))
        self._block = bytes(block)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> tuple[int, Entry]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[int, Entry]]: ...
    def __getitem__(self, index: int | slice) -> tuple[int, Entry] | Sequence[tuple[int, Entry]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        number, name, image, prompt, answer, references, truth = json.loads(
            self._block[self._ends[place] : self._ends[place + 1]]
        )
        return number, Entry(name, image, prompt, answer, tuple(references), truth)


@dataclass(frozen=True)
class Roots:
    """Where the images of a split may lie: in the first folder that has the first two folders of a path.

    Attributes:
        folders: those of the candidates that are there.
    """

    folders: tuple[Path, ...]
    _found: dict[PurePosixPath, Path] = field(default_factory=dict, compare=False, repr=False)

    def path(self, text: str) -> Path:
        """The path of an image, whether or not there is such a file.

        Raises:
            DataError: it leaves the data folder.
        """
        top = PurePosixPath(*PurePosixPath(text).parent.parts[:2])
        if top not in self._found:
            inside = not top.is_absolute() and ".." not in top.parts
            here = (folder for folder in self.folders if inside and (folder / top).is_dir())
            self._found[top] = next(here, self.folders[0])
        return image_path(self._found[top], text)


@dataclass(frozen=True)
class Plan:
    """How one split is read.

    Attributes:
        file: a JSON file, or what `datasets` reads.
        form: a format of `cl_zoo.data.records`, or `datasets`.
        roots: folders of images.
        needs: what every entry must have: an "answer" to learn, or what its scoring rule needs.
        repeats: whether ids may come twice; samples are told apart by place then.
        references: file, format and note of what answers are scored against.
        split: which split of a `datasets` folder.
        columns: `text`, `answer`, `image`, `question_id`, … to the columns of a `datasets` folder that hold them.
    """

    file: Path
    form: str
    roots: Roots
    needs: str
    repeats: bool = False
    references: tuple[Path, str, str] | None = None
    split: str = "train"
    columns: Mapping[str, str] = field(default_factory=dict)


class Split(Sequence[Sample]):
    """The samples of a file, read when first used.

    Args:
        plan: gives the plan; called when the split is first used.

    Raises:
        DataError: on first use, what is wrong with the file; for a sample, a path that leaves the data folder.
    """

    def __init__(self, plan: Callable[[], Plan]) -> None:
        self._plan = plan

    @cached_property
    def plan(self) -> Plan:
        """Which file it is."""
        return self._plan()

    @cached_property
    def _table(self) -> Any:
        return open_dataset(self.plan) if self.plan.form == "datasets" else None

    @cached_property
    def entries(self) -> Packed:
        """What the records say, with their numbers from 1; images are names."""
        plan = self.plan
        if self._table is not None:
            rows, form = _rows(self._table, plan), _form(self._table, plan)
        else:
            rows, form = enumerate(read_records(plan.file), 1), plan.form
        found = [(number, one) for number, row in rows for one in entries(row, number, plan.file, form)]
        return Packed(_checked(found, plan, by_id=form == "question"))

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        number, one = self.entries[index]
        return Sample(one.id, self._image(number, one), one.prompt, one.answer, one.references, one.truth)

    def _image(self, number: int, one: Entry) -> ImageSource | None:
        if one.image is None:
            return None
        if self._table is not None and (column := _pictures(self._table, self.plan)):
            return _picture(self._table[number - 1][column], number, self.plan.file)
        try:
            return self.plan.roots.path(one.image)
        except DataError as error:
            raise DataError(f"{self.plan.file}, record {number}: {error}") from None


def _checked(found: Sequence[tuple[int, Entry]], plan: Plan, *, by_id: bool) -> Iterable[tuple[int, Entry]]:
    """The entries with their ids and references.

    Raises:
        DataError: an id comes twice, or an entry lacks what it is learnt from or scored against.
    """
    numbers, asked = [number for number, _ in found], [one for _, one in found]
    if not asked:
        raise DataError(f"{plan.file}: holds no records; fetch the file again")
    if by_id and not plan.repeats:
        first: dict[str, int] = {}
        for number, one in found:
            if first.setdefault(one.id, number) != number:
                says = f"question_id {one.id!r} stands in record {first[one.id]} already"
                fault(plan.file, number, says, "give every test record an id of its own")
    if plan.references is not None:
        asked = referred(asked, *plan.references)
    for place, (number, one) in enumerate(zip(numbers, asked, strict=True)):
        if lack := _lack(one, plan.needs):
            fault(plan.file, number, lack, "repair or drop the record")
        name = str(place) if not by_id else f"{one.id}-{place}" if plan.repeats else one.id
        yield number, replace(one, id=name)


def _lack(one: Entry, needs: str) -> str:
    if needs == "references" and not one.references:
        return "has no references to score a caption against"
    if needs in ("answers", "box") and needs not in one.truth:
        return f"has no {needs} to score an answer against"
    if needs == "answer" and not (one.answer or "").strip():
        return "has no answer" if one.answer is None else "has an empty answer"
    return ""


# Hugging Face datasets


def open_dataset(plan: Plan) -> Any:
    """The table of a split: saved by `save_to_disk`, or parquet or arrow files.

    Raises:
        DataError: `datasets` is not installed, or cannot read it, or there is no such split.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{plan.file}: reading it takes the package datasets; pip install 'cl-zoo[datasets]'"
        ) from None
    datasets.disable_progress_bars()  # a run shows its own progress
    try:
        if any((plan.file / name).is_file() for name in ("dataset_dict.json", "state.json")):
            table = datasets.load_from_disk(str(plan.file))
        else:
            table = _from_files(datasets, plan)
    except DataError:
        raise
    except Exception as error:  # datasets and pyarrow raise whatever they meet
        raise DataError(f"{plan.file}: {first_line(error)}; save the dataset again") from None
    if isinstance(table, datasets.DatasetDict):
        if plan.split not in table:
            raise DataError(f"{plan.file}: has no split {plan.split!r}{nearest(plan.split, table)}")
        table = table[plan.split]
    return table


def _from_files(datasets: Any, plan: Plan) -> Any:
    if plan.file.is_file():
        files = [plan.file]
    else:
        everything = sorted(f for f in plan.file.rglob("*") if f.suffix in (".parquet", ".arrow"))
        files = [file for file in everything if file.name.startswith(plan.split)]
        if not files:
            raise DataError(
                f"{plan.file}: holds no dataset and no file {plan.split}*.parquet; save it with save_to_disk"
            )
    names = [str(file) for file in files]
    if files[0].suffix == ".parquet":
        return datasets.Dataset.from_parquet(names)
    return datasets.concatenate_datasets([datasets.Dataset.from_file(name) for name in names])


def _form(table: Any, plan: Plan) -> str:
    return "sharegpt" if {"conversations", "messages"} & {*table.column_names, *plan.columns} else "question"


def _rows(table: Any, plan: Plan) -> Iterable[tuple[int, dict[str, Any]]]:
    """Rows as records, numbered from 1; pictures inside the dataset stay there and are named by their row."""
    renamed = {column: key for key, column in plan.columns.items()}
    if unknown := sorted(renamed.keys() - set(table.column_names)):
        raise DataError(f"{plan.file}: has no column {unknown[0]!r}{nearest(unknown[0], table.column_names)}")
    pictures = _pictures(table, plan)
    labels = {name: kind for name, kind in table.features.items() if hasattr(kind, "int2str")}
    texts = table.remove_columns([pictures]) if pictures else table
    there = table.data.column(pictures).is_valid().to_pylist() if pictures else []
    for number, row in enumerate(texts, 1):
        for name, kind in labels.items():
            row[name] = None if row[name] is None else kind.int2str(row[name])
        record = {renamed.get(key, key): _plain(value) for key, value in row.items()}
        if pictures and there[number - 1]:
            record["image"] = f"row {number}"
        yield number, {"question_id": number, **record}


def _pictures(table: Any, plan: Plan) -> str | None:
    """The column that holds pictures rather than names of files."""
    for key in ("image", "images"):
        column = plan.columns.get(key, key)
        kind = table.features.get(column)
        kind = getattr(kind, "feature", kind)  # of a list, what it holds
        if type(kind).__name__ == "Image":
            return column
    return None


def _plain(value: Any) -> Any:
    """A list of turns, also where it is stored as lists of speakers and of texts."""
    if isinstance(value, dict) and value and all(isinstance(one, list) for one in value.values()):
        return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    return value


def _picture(value: Any, number: int, file: Path) -> ImageSource | None:
    pictures = value if isinstance(value, list) else [value]
    if len(pictures) > 1:
        fault(
            file, number, f"names {len(pictures)} images where a sample has one", "repair or drop the record"
        )
    image: ImageSource | None = pictures[0] if pictures else None
    return image
