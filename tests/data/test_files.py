"""Files of records: lists and lines, and a broken file named with the place at which it breaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cl_zoo.data.files import read_json, read_records
from cl_zoo.errors import DataError


def content(tmp_path: Path, text: str | bytes, name: str = "train.json") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '[{"a": 1}, {"a": 2}]'),
        ("a.jsonl", '{"a": 1}\n\n{"a": 2}\n'),
        ("a.json", '{"a": 1}\n{"a": 2}'),
        ("a.json", '\ufeff[{"a": 1}, {"a": 2}]'),
    ],
)
def test_records_are_a_list_or_lines(tmp_path: Path, name: str, text: str):
    assert read_records(content(tmp_path, text, name)) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", ": is empty; "),
        ('[{"a": 1},\n {"a": 2]', ", line 2, column 9: broken JSON (Expecting ',' delimiter); "),
        ("[{'a': 1}]", ", line 1, column 3: broken JSON (Expecting property name"),
        ('{"a": 1}', ": holds an object where a list of records is expected; "),
        ("null", ": holds null where a list of records is expected; "),
        ('"text"', ": holds a text where a list of records is expected; "),
        ('[{"a": 1}, 3]', ", record 2: is a number, not an object; "),
        (b'[{"a": "\xff"}]', ", line 1: is no UTF-8 text; "),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            ": is a Git LFS pointer, not the data; ",
        ),
        ("[" * 100_000, ": nested too deeply to be records; "),
        ("[" + "9" * 5000 + "]", ": Exceeds the limit"),
    ],
)
def test_a_broken_file_is_named_with_the_place(tmp_path: Path, text: str | bytes, sentence: str):
    path = content(tmp_path, text)

    with pytest.raises(DataError) as caught:
        read_records(path)

    assert str(caught.value).startswith(f"{path}{sentence}")


def test_a_broken_line_is_named_with_its_number(tmp_path: Path):
    path = content(tmp_path, '{"a": 1}\n{"a" 2}\n{"a": 3}\n', "train.jsonl")

    with pytest.raises(DataError, match=r"train.jsonl, line 2, column 6: broken JSON"):
        read_records(path)


WHOLE = """[{"id": -1.5e-3, "more": [true, null], "conversations": [
 {"from": "human", "value": "Ü \\u00fc \\n?"}, {"from": "gpt", "value": "ja"}]}]"""


def test_a_file_that_ends_too_early_is_called_truncated_wherever_it_ends(tmp_path: Path):
    whole = WHOLE.encode()
    assert len(read_records(content(tmp_path, whole))) == 1

    for end in range(1, len(whole)):
        with pytest.raises(DataError, match=r"truncated; fetch (it|the file) again"):
            read_records(content(tmp_path, whole[:end]))


def test_lines_that_end_too_early_are_truncated_and_only_the_last_is(tmp_path: Path):
    with pytest.raises(DataError, match="line 2, column 7: the file is truncated"):
        read_records(content(tmp_path, '{"a": 1}\n{"a": ', "a.jsonl"))
    with pytest.raises(DataError, match="line 1, column 7: broken JSON"):
        read_records(content(tmp_path, '{"a": \n{"a": 1}', "a.jsonl"))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"none.json: no such file; check the data folder"):
        read_records(tmp_path / "none.json")
    with pytest.raises(DataError, match="is a folder; pass the path of a file"):
        read_json(tmp_path)


@pytest.mark.parametrize("name", ["lines.jsonl", "lines.json"])
@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_only_a_newline_ends_a_line_of_json(tmp_path: Path, name: str, sign: str):
    path = tmp_path / name
    records = [{"text": f"a{sign}b"}, {"text": "c"}]
    path.write_text("\r\n\n".join(json.dumps(one, ensure_ascii=False) for one in records), newline="")

    assert read_records(path) == records
    path.write_text(f'{{"text": "a{sign}b"}}\n{{"text": c}}\n{{}}')
    with pytest.raises(DataError, match=f"{name}, line 2, column 10: broken JSON"):
        read_records(path)
    path.write_text(f'{{"text": "a{sign}b"}}\n{{"text": "c{sign}\n\n')
    with pytest.raises(DataError, match=f"{name}, line 2, column 10: the file is truncated"):
        read_records(path)
