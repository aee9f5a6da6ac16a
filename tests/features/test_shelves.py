"""Features on disk: what is put comes back, whoever writes at the same time and whoever is killed while writing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cl_zoo.errors import RunError
from cl_zoo.features import shelves
from cl_zoo.features.shelves import HEADER, STRIDE, Shelf, file_stem


@pytest.fixture(autouse=True)
def _no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine of these tests may have a small disk."""
    monkeypatch.setattr(shelves, "RESERVE", 0)


def tensor_of(key: int) -> Tensor:
    """Shape, type and values follow from the key alone."""
    dtype = (torch.float32, torch.bfloat16, torch.float16)[key % 3]
    return torch.full((key % 4 + 1, 32 + key % 5), float(key), dtype=dtype)


def assert_holds(shelf: Shelf, keys: Sequence[int]) -> None:
    for key in keys:
        found, expected = shelf.get(b"%d" % key), tensor_of(key)
        assert found is not None, key
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


# What is kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3), (1, 2, 3, 4, 5, 6)])
def test_a_tensor_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    Shelf(tmp_path, "tower").put(b"a", tensor)
    found = Shelf(tmp_path, "tower").get(b"a")

    assert found is not None
    assert (found.dtype, found.shape) == (dtype, shape)
    assert torch.equal(found, tensor)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=30))
@settings(max_examples=40, deadline=None)
def test_two_shelves_on_one_file_are_one_dictionary(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[int, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("shelf")
    first, second, put = Shelf(folder, "tower"), Shelf(folder, "tower"), set[int]()
    for key, one in calls:
        assert ((first if one else second).get(b"%d" % key) is not None) == (key in put)
        (second if one else first).put(b"%d" % key, tensor_of(key))
        put.add(key)

    assert len(first) == len(second) == len(put)
    assert_holds(first, sorted(put))


def test_what_comes_back_belongs_to_who_asked(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "tower")
    shelf.put(b"a", torch.ones(3))
    found = shelf.get(b"a")
    assert found is not None
    found += 1

    again = shelf.get(b"a")
    assert again is not None
    assert again.tolist() == [1.0, 1.0, 1.0]


def test_a_key_is_stored_once(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "tower")
    for value in (1.0, 2.0):
        shelf.put(b"a", torch.full((8,), value))

    assert shelf.data.stat().st_size == 8 * 4
    assert shelf.index.stat().st_size == HEADER + STRIDE
    found = shelf.get(b"a")
    assert found is not None
    assert found[0] == 1.0


def test_a_strided_tensor_keeps_its_values(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "tower")
    shelf.put(b"a", torch.arange(6.0).reshape(2, 3).T.requires_grad_())
    found = shelf.get(b"a")

    assert found is not None
    assert found.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert not found.requires_grad


def test_encoders_do_not_mix(tmp_path: Path) -> None:
    Shelf(tmp_path, "ViT/a").put(b"key", torch.ones(1))

    assert Shelf(tmp_path, "ViT_a").get(b"key") is None
    assert len({file_stem(name) for name in ("a/b", "a_b", "a b", "a:b", "../b", ".b")}) == 6
    assert not any("/" in file_stem(name) for name in ("a/b", "../b"))


@pytest.mark.parametrize("tensor", [torch.zeros(2, dtype=torch.int64), torch.zeros(1, 1, 1, 1, 1, 1, 1)])
def test_what_a_shelf_cannot_hold_is_refused(tmp_path: Path, tensor: Tensor) -> None:
    with pytest.raises(ValueError, match="a shelf holds fp32, bf16 and fp16 of up to 6 axes, not torch"):
        Shelf(tmp_path, "tower").put(b"a", tensor)


# Limits


def test_nothing_is_stored_beyond_the_limit(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "tower", limit_bytes=100 + HEADER + 2 * STRIDE)
    for key in range(2):
        shelf.put(b"%d" % key, torch.zeros(10))
    with pytest.warns(
        UserWarning,
        match=r"tower\.data: the shelves of this folder reach the limit of .* GiB; raise --cache-limit or delete .*; no further",
    ):
        shelf.put(b"2", torch.zeros(10))
    shelf.put(b"3", torch.zeros(10))

    assert [shelf.get(b"%d" % key) is not None for key in range(4)] == [True, True, False, False]
    assert shelf.data.stat().st_size == 80


def test_the_disk_alone_bounds_a_shelf_that_nobody_bounds(tmp_path: Path) -> None:
    assert Shelf(tmp_path, "tower").limit_bytes is None


def test_a_shelf_says_what_it_holds_without_reading_it(tmp_path: Path) -> None:
    shelf, other = Shelf(tmp_path, "tower"), Shelf(tmp_path, "tower")
    shelf.put(b"a", torch.ones(3))
    shelf.data.unlink()

    assert b"a" in shelf
    assert b"a" in other
    assert b"b" not in other


def test_a_full_disk_ends_storing_and_not_the_run(tmp_path: Path) -> None:
    Path(tmp_path / "tower.data").symlink_to("/dev/full")  # every write to it fails as on a full disk
    shelf = Shelf(tmp_path, "tower")

    with pytest.warns(UserWarning, match=r"tower\.data: No space left on device; no further features"):
        shelf.put(b"a", torch.ones(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shelf.put(b"b", torch.ones(4))
    assert len(shelf) == 0


def test_some_of_a_disk_is_left_to_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "RESERVE", 2**60)

    with pytest.warns(UserWarning, match="the disk is almost full; no further features are stored"):
        Shelf(tmp_path, "tower").put(b"a", torch.ones(4))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(RunError, match=rf"--cache {tmp_path}/file/cache: Not a directory; pass a folder"):
        Shelf(tmp_path / "file" / "cache", "tower")


# Several processes


def fill(folder: Path, keys: list[int], others: list[int], start: object) -> None:
    """Put `keys`, reading some that other processes put in between; every one that is there must be whole."""
    torch.set_num_threads(1)
    shelves.RESERVE = 0
    shelf = Shelf(folder, "tower")
    start.wait()  # type: ignore[attr-defined]
    for key, other in zip(keys, others, strict=True):
        shelf.put(b"%d" % key, tensor_of(key))
        found = shelf.get(b"%d" % other)
        if found is not None and not torch.equal(found, tensor_of(other)):
            os._exit(3)


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    """Three processes put overlapping keys in different orders; each is there once, and whole."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "cl_zoo.features.shelves"])  # loaded once, not by each of them
    start = context.Barrier(3)
    orders = [list(range(300)), list(range(399, 99, -1)), [place * 7 % 400 for place in range(300)]]
    processes = [
        context.Process(target=fill, args=(tmp_path, keys, orders[(number + 1) % 3], start))
        for number, keys in enumerate(orders)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0, 0, 0]
    distinct = sorted({key for keys in orders for key in keys})
    shelf = Shelf(tmp_path, "tower")
    assert len(shelf) == len(distinct)
    assert_holds(shelf, distinct)
    sizes = [tensor_of(key).numel() * tensor_of(key).element_size() for key in distinct]
    assert shelf.data.stat().st_size == sum(sizes)
    assert shelf.index.stat().st_size == HEADER + STRIDE * len(distinct)


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from cl_zoo.features import shelves
shelves.RESERVE = 0
real, writes = os.pwrite, 0
def pwrite(descriptor, content, offset):
    global writes
    writes += 1
    if writes == int(sys.argv[2]):  # half of it reaches the disk
        real(descriptor, bytes(content)[: len(content) // 2], offset)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(descriptor, content, offset)
os.pwrite = pwrite
shelves.Shelf(Path(sys.argv[1]), "tower").put(b"1", torch.full((50,), 7.0))
"""


@pytest.mark.parametrize(("write", "what"), [(1, "data"), (2, "record")])
def test_a_writer_killed_in_the_middle_leaves_nothing_behind(tmp_path: Path, write: int, what: str) -> None:
    """Its lock is gone, what it half wrote is not seen, and the next writer puts its own in that place."""
    watching = Shelf(tmp_path, "tower")
    watching.put(b"0", tensor_of(0))
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(write)], check=False)
    assert done.returncode == -signal.SIGKILL

    for shelf in (watching, Shelf(tmp_path, "tower")):
        assert (len(shelf), shelf.get(b"1")) == (1, None)
    watching.put(b"2", tensor_of(2))
    assert_holds(Shelf(tmp_path, "tower"), [0, 2])
    assert (watching.index.stat().st_size - HEADER) % STRIDE == 0


def test_a_reader_waits_for_nobody(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "tower")
    shelf.put(b"1", tensor_of(1))

    with shelf._locked():
        assert_holds(Shelf(tmp_path, "tower"), [1])


def test_a_deleted_shelf_starts_again(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "tower")
    for key in range(3):
        shelf.put(b"%d" % key, tensor_of(key))
    shelf.index.unlink()
    shelf.data.unlink()

    shelf.put(b"5", tensor_of(5))
    assert len(shelf) == 1
    assert_holds(shelf, [5])


def test_a_shelf_that_another_process_has_made_anew_is_another_shelf(tmp_path: Path) -> None:
    """Though its files are as long, and may even be the same inodes."""
    old = Shelf(tmp_path, "tower")
    for key in (1, 2):
        old.put(b"%d" % key, tensor_of(key))
    old.index.unlink()
    old.data.unlink()
    new = Shelf(tmp_path, "tower")
    for key in (3, 4, 5):
        new.put(b"%d" % key, tensor_of(key))

    assert len(old) == 3
    assert_holds(old, [3, 4, 5])
    old.put(b"6", tensor_of(6))
    assert_holds(new, [3, 4, 5, 6])


# Damage


def test_data_lost_with_the_power_is_computed_again(tmp_path: Path) -> None:
    """The record reached the disk and the data did not: the key counts as unknown, and can be put again."""
    shelf = Shelf(tmp_path, "tower")
    shelf.put(b"1", tensor_of(1))
    shelf.put(b"2", tensor_of(2))
    content = shelf.data.read_bytes()
    shelf.data.write_bytes(b"\0" * 8 + content[8:-8])

    reader = Shelf(tmp_path, "tower")
    assert (reader.get(b"1"), reader.get(b"2")) == (None, None)
    reader.put(b"1", tensor_of(1))
    reader.put(b"2", tensor_of(2))
    assert_holds(reader, [1, 2])
    assert_holds(Shelf(tmp_path, "tower"), [1, 2])


def test_a_damaged_index_is_named_with_what_to_delete(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "tower")
    for key in range(3):
        shelf.put(b"%d" % key, tensor_of(key))
    content = bytearray(shelf.index.read_bytes())
    content[HEADER + STRIDE + 5] ^= 1
    shelf.index.write_bytes(content)

    with pytest.raises(
        RunError, match=r"tower\.index: record 2 is damaged; delete tower\.index and tower\.data"
    ):
        Shelf(tmp_path, "tower")
    shelf.index.write_bytes(b"something else entirely " * 3)
    with pytest.raises(RunError, match=r"tower\.index: not an index of features; delete"):
        Shelf(tmp_path, "tower")


def test_the_limit_is_of_all_shelves_of_a_folder(tmp_path: Path) -> None:
    """Those of another encoder count, with their records: 40 bytes and a record are in, 40 more would pass 2 · 40 + records."""
    other, shelf = Shelf(tmp_path, "other"), Shelf(tmp_path, "tower", limit_bytes=2 * (HEADER + STRIDE) + 79)
    other.put(b"a", torch.zeros(10))
    with pytest.warns(UserWarning, match="the shelves of this folder reach the limit of"):
        shelf.put(b"a", torch.zeros(10))
    assert len(shelf) == 0

    roomy = Shelf(tmp_path, "tower", limit_bytes=2 * (HEADER + STRIDE) + 80)
    roomy.put(b"a", torch.zeros(10))
    assert len(roomy) == 1
