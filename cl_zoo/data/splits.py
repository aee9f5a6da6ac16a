"""Splits that are read when they are first used, and kept compactly: 200,000 records take little more memory than their text.

A split is a JSON file in one of the formats of `cl_zoo.data.records`, a folder of Hugging Face `datasets`, or shards of WebDataset. Every record is checked when the
split is read; the file of an image must be there when its sample is asked for, and is opened by whoever uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from cl_zoo.data.faults import REPAIR, fault, unread
from cl_zoo.data.files import read_records
from cl_zoo.data.needs import ANSWER, lack
from cl_zoo.data.packed import Packed
from cl_zoo.data.pictures import how_many, picture, stored_in
from cl_zoo.data.records import Entry, completed, entries, other_form
from cl_zoo.data.references import referred
from cl_zoo.data.roots import Roots
from cl_zoo.data.shards import PACKED, Shards
from cl_zoo.data.turns import KEYS
from cl_zoo.errors import DataError, cut, first_line, nearest, no_file
from cl_zoo.images.kinds import Faithful
from cl_zoo.tasks import ImageSource, OnDemand, Sample
from cl_zoo.videos import FRAMES, called, file_names, file_of


@dataclass(frozen=True)
class Plan:
    """How one split is read.

    Attributes:
        file: a JSON file, or what `datasets` reads.
        form: a format of `cl_zoo.data.records`, or one of `PACKED`.
        roots: folders of images.
        needs: what every entry must have: an "answer" to learn, or what its scoring rule needs.
        repeats: whether ids may come twice; samples are told apart by place then.
        references: file, format and note of what answers are scored against.
        split: which split of a `datasets` folder.
        columns: `text`, `answer`, `image`, `question_id`, … to the columns of a `datasets` folder that hold them.
        turns: what of conversations is learnt: `all`, `last` or `split`.
        faithful: whether pictures are to be read as a person sees them, see `cl_zoo.images.kinds`.
        frames: how many images stand for a video.
        truth, closing: what of a test record is kept for its rule and put behind its prompt, see `completed`.
    """

    file: Path
    form: str
    roots: Roots
    needs: str
    repeats: bool = False
    references: tuple[Path, str, str] | None = None
    split: str = "train"
    columns: Mapping[str, str] = field(default_factory=dict)
    turns: str = "all"
    faithful: bool = False
    frames: int = FRAMES
    truth: tuple[str, ...] = ()
    closing: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where records stand, as a message begins."""
        return f"{self.file}, split {self.split}" if self.form in PACKED else str(self.file)

    def column(self, *keys: str) -> str:
        """` (column 'sentence')` where one of these keys stands in a column of another name."""
        names = [self.columns[key] for key in keys if self.columns.get(key, key) != key]
        return f" (column {names[0]!r})" if names else ""

    def in_columns(self, says: str) -> str:
        """A message with the columns of the dataset beside the keys that they stand for."""
        for key in self.columns:
            says = says.replace(f"'{key}'", f"'{key}'{self.column(key)}", 1)
        return says


class Split(OnDemand[Sample]):
    """The samples of a file, read when first used.

    Args:
        plan: gives the plan; called when the split is first used.

    Raises:
        DataError: on first use, what is wrong with the file; for a sample, an image that is not there or leads out of the data
            folder.
    """

    def __init__(self, plan: Callable[[], Plan]) -> None:
        self._plan = plan

    @cached_property
    def plan(self) -> Plan:
        """Which file it is."""
        return self._plan()

    @cached_property
    def table(self) -> Any:
        """What `datasets` reads; `None` for a file of records."""
        return open_dataset(self.plan) if self.plan.form == "datasets" else None

    @cached_property
    def shards(self) -> Shards | None:
        """Shards of WebDataset; `None` for other files."""
        return Shards(self.plan.file, self.plan.split) if self.plan.form == "webdataset" else None

    @cached_property
    def _pictures(self) -> Any:
        """The column of pictures as it is stored; `None` where images are names of files."""
        column = _pictures(self.table, self.plan) if self.table is not None else None
        return None if column is None else self.table.with_format("arrow", columns=[column])

    @cached_property
    def entries(self) -> Packed:
        """What the records say, with their numbers from 1; images are names."""
        plan = self.plan
        if self.table is not None:
            rows, form = _rows(self.table, plan), _form(self.table.column_names, plan)
        elif self.shards is not None:
            records = self.shards.read(plan.columns)
            rows, form = enumerate(records, 1), _form([key for one in records[:1] for key in one], plan)
        else:
            records, form = read_records(plan.file), plan.form
            rows = enumerate(records, 1)
            if says := other_form(records, form):
                raise DataError(f"{plan.file}: {says}")
        try:
            found = [
                (number, completed(one, row, number, plan.place, plan.truth, plan.closing))
                for number, row in rows
                for one in entries(row, number, plan.place, form, plan.turns, plan.frames)
            ]
        except DataError as error:
            raise DataError(plan.in_columns(str(error))) from None
        return Packed(_checked(found, plan, by_id=form == "question"))

    def __len__(self) -> int:
        return len(self.entries)

    def make(self, place: int) -> Sample:
        number, one = self.entries[place]
        return self._shown(number, one, looked_for=True)

    @property
    def of_files(self) -> bool:
        """Whether images are names of files, which `entries` hold as they are written."""
        return self._pictures is None and self.shards is None

    def as_named(self, index: int) -> Sample:
        """A sample whose image may be the path of a file that is not there."""
        number, one = self.entries[index]
        return self._shown(number, one, looked_for=False)

    def undecoded(self, index: int) -> Sample:
        """A sample whose image may be the path of a file that is not there, or a picture of which only the header was read."""
        number, one = self.entries[index]
        return self._shown(number, one, looked_for=False, decoded=False)

    def without_images(self, index: int) -> Sample:
        """A sample whose image is neither looked for nor opened; it is `None` here."""
        _, one = self.entries[index]
        return _text(one)

    def origin(self, index: int) -> dict[str, str]:
        """The record's own id where a sample has another one, and the image's name as the record writes it."""
        _, one = self.entries[index]
        return {"record": one.record, "picture": ", ".join(file_names(map(PurePosixPath, one.images)))}

    def _shown(self, number: int, one: Entry, *, looked_for: bool, decoded: bool = True) -> Sample:
        """The sample of an entry with its images."""
        sample = _text(one)
        if one.image is None:
            return sample
        found: Sequence[ImageSource]
        faithful = self.plan.faithful
        try:
            if self._pictures is not None:
                stored = self._pictures[number - 1].column(0)[0].as_py()
                found = [picture(one, self.plan.roots, faithful, decoded) for one in stored_in(stored)]
            elif self.shards is not None and (held := self.shards.picture(number)) is not None:
                found = [picture({"bytes": held, "path": None}, self.plan.roots, faithful, decoded)]
            else:
                found = [self.plan.roots.path(name) for name in one.images]
            for path in found:
                if looked_for and isinstance(path, Path):
                    _look_for(path)
        except DataError as error:
            where = f"{self.plan.place}, record {number}{self.plan.column('image', 'images')}"
            raise type(error)(f"{where}: {error}") from None
        read = [Faithful(path) if faithful and isinstance(path, Path) else path for path in found]
        return replace(sample, image=read[0] if read else None, more_images=tuple(read[1:]))


def _look_for(path: Path) -> None:
    """Refuse an image file that is not there while its record is known; who opens it later knows the path alone."""
    name = cut(called(path))
    try:
        what = no_file(file_of(path))
    except (FileNotFoundError, NotADirectoryError):
        remedy = "fetch it, or drop the record; 'cl-zoo data check' finds all"
        raise DataError(f"{name}: no such file; {remedy}") from None
    except OSError as error:
        raise DataError(f"{name}: {unread(error)}") from None
    if what:
        raise DataError(f"{name}: {what}; replace it by the picture")


def _text(one: Entry) -> Sample:
    texts = (one.prompt, one.answer, one.references, one.truth, one.before, one.learns_before)
    return Sample(one.id, None, *texts)


def _checked(found: Sequence[tuple[int, Entry]], plan: Plan, *, by_id: bool) -> Iterable[tuple[int, Entry]]:
    """The entries with their ids and references.

    Raises:
        DataError: an id comes twice, or an entry lacks what it is learnt from or scored against.
    """
    numbers, asked = [number for number, _ in found], [one for _, one in found]
    if not asked:
        raise DataError(f"{plan.place}: holds no records; fetch the file again")
    if by_id and not plan.repeats:
        first: dict[str, int] = {}
        for number, one in found:
            if first.setdefault(one.id, number) != number:
                says = f"question_id {one.id!r} stands in record {first[one.id]} already"
                fault(plan.place, number, says, "give every test record an id of its own")
    if plan.references is not None:
        asked = referred(asked, *plan.references).entries
    for place, (number, one) in enumerate(zip(numbers, asked, strict=True)):
        if what := lack(plan.needs, one.answer, one.references, one.truth):
            fault(plan.place, number, plan.in_columns(f"lacks {what}"), REPAIR)
        if plan.needs == ANSWER and not (one.answer or "").strip():
            fault(plan.place, number, f"has an empty answer{plan.column('answer')}", REPAIR)
        name = str(place) if not by_id else f"{one.id}-{place}" if plan.repeats else one.id
        yield number, replace(one, id=name, record=one.id if one.id != name else "")


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
    except PermissionError as error:
        raise DataError(f"{plan.file}: {unread(error)}") from None
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


def _form(columns: Iterable[str], plan: Plan) -> str:
    return "sharegpt" if {*KEYS} & {*columns, *plan.columns} else "question"


def _rows(table: Any, plan: Plan) -> Iterable[tuple[int, dict[str, Any]]]:
    """Rows as records, numbered from 1; pictures inside the dataset stay there and are named by their row."""
    renamed = {column: key for key, column in plan.columns.items()}
    if unknown := sorted(renamed.keys() - set(table.column_names)):
        raise DataError(
            f"{plan.place}: has no column {unknown[0]!r}{nearest(unknown[0], table.column_names)}"
        )
    pictures = _pictures(table, plan)
    if videos := sorted(name for name, kind in table.features.items() if type(kind).__name__ == "Video"):
        raise DataError(
            f"{plan.place}: column {videos[0]!r} holds videos themselves; save them as files and their paths in the column 'video'"
        )
    labels = {name: kind for name, kind in table.features.items() if hasattr(kind, "int2str")}
    texts = table.remove_columns([pictures]) if pictures else table
    there = how_many(table.data.column(pictures)) if pictures else []
    for number, row in enumerate(texts, 1):
        for name, kind in labels.items():
            row[name] = None if row[name] is None else kind.int2str(row[name])
        record = {renamed.get(key, key): _plain(value) for key, value in row.items()}
        if pictures and there[number - 1] == 1:
            record["image"] = f"row {number}"
        elif pictures and there[number - 1]:
            record["images"] = [f"row {number}, image {place}" for place in range(1, there[number - 1] + 1)]
        if record.get("question_id") is None and record.get("id") is None:
            record["question_id"] = number
        yield number, record


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
