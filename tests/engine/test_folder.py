"""Runs on disk: identity, lock, checkpoints, whole files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cl_zoo.engine.files import canonical, damage, entry, read_sealed, write_json, write_sealed
from cl_zoo.engine.folder import RunFolder, read_manifest, run_id
from cl_zoo.engine.states import read_state_in, write_state
from cl_zoo.errors import RunError

IDENTITY = {"benchmark": {"name": "tiny"}, "seed": 0, "recipe": {"lr": {"adapters": 1e-2}}}


def folder_in(root: Path, identity: dict[str, Any] | None = None) -> RunFolder:
    return RunFolder(root, "tiny-x-s0-0123", identity or IDENTITY)


def begun(root: Path) -> RunFolder:
    folder = folder_in(root)
    with folder:
        folder.begin()
    return folder


# --- identity -------------------------------------------------------------------------------------------------------


def test_an_id_is_readable_and_hashes_the_whole_identity() -> None:
    one = run_id(IDENTITY, "hide[variant=released]+ewc", 3)

    assert one.startswith("tiny-hide_variant_released_ewc-s3-")
    assert len(one.rpartition("-")[2]) == 12
    changed = {**IDENTITY, "recipe": {"lr": {"adapters": 1e-3}}}
    assert run_id(changed, "hide[variant=released]+ewc", 3) != one


def test_an_id_does_not_depend_on_the_order_in_which_the_identity_was_written() -> None:
    backwards = dict(reversed(list(IDENTITY.items())))

    assert run_id(backwards, "x", 0) == run_id(IDENTITY, "x", 0)
    assert canonical({"b": 1, "a": "ü"}) == '{"a":"ü","b":1}'


def test_a_folder_of_another_configuration_is_refused(tmp_path: Path) -> None:
    begun(tmp_path)

    with (
        pytest.raises(RunError, match="holds another configuration; move it away"),
        folder_in(tmp_path, {"seed": 1}),
    ):
        pass
    with folder_in(tmp_path):  # the lock was given back
        pass


def test_a_folder_without_an_identity_is_refused(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    (folder.partial / "identity.json").write_text("{")

    with (
        pytest.raises(RunError, match=r"identity\.json: .*; .*verify .*\.partial --repair"),
        folder_in(tmp_path),
    ):
        pass


# --- lock -----------------------------------------------------------------------------------------------------------


HOLDER = """
import sys
from pathlib import Path
from cl_zoo.engine.folder import RunFolder
with RunFolder(Path(sys.argv[1]), "tiny-x-s0-0123", {"seed": 0}):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        with (
            pytest.raises(RunError, match="another process is working on it"),
            folder_in(tmp_path, {"seed": 0}),
        ):
            pass
    finally:
        holder.communicate("")
    with folder_in(tmp_path, {"seed": 0}):
        pass
    assert not list(tmp_path.glob(".*.lock"))


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.kill()
    holder.communicate()

    assert list(tmp_path.glob(".*.lock"))
    with folder_in(tmp_path, {"seed": 0}):
        pass


def test_a_lock_on_a_file_that_is_gone_guards_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, the former holder may have removed the file."""
    import fcntl

    real = fcntl.flock
    folder = folder_in(tmp_path)

    def slow(file: Any, operation: int) -> None:
        real(file, operation)
        (tmp_path / ".tiny-x-s0-0123.lock").unlink()

    monkeypatch.setattr(fcntl, "flock", slow)
    with pytest.raises(RunError, match="another process"), folder:
        pass


# --- checkpoints ----------------------------------------------------------------------------------------------------

KEYS = st.text(st.characters(codec="utf-8"), max_size=4).filter(lambda key: key != "$tensor")
TENSORS = st.builds(
    lambda shape, kind, seed: torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(seed)).to(
        kind
    ),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.float64]),
    st.integers(0, 99),
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | TENSORS
)
STATES = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_size=4,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(state=STATES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_plugins_state_comes_back_as_it_was(tmp_path: Path, state: dict[str, Any]) -> None:
    folder = folder_in(tmp_path)
    folder.begin()
    folder.save_state(1, {}, {"mine": state}, {})

    found = folder.load_state()

    assert found is not None
    assert same(found[1], {"mine": state})


def test_keys_that_look_alike_in_a_path_stay_apart(tmp_path: Path) -> None:
    state = {"a/b": torch.tensor(1), "a": {"b": torch.tensor(2)}, "a~1b": torch.tensor(3)}
    folder = folder_in(tmp_path)
    folder.begin()
    folder.save_state(1, {}, state, {})

    found = folder.load_state()
    assert found is not None
    assert same(found[1], state)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"seen": {1, 2}}, "plugin state /seen: a set is neither JSON nor a tensor"),
        ({"by": {3: "x"}}, "plugin state /by: the key 3 would not come back"),
        ({"$tensor": "x"}, r"plugin state /: the key '\$tensor' would not come back"),
    ],
)
def test_a_state_that_would_not_come_back_is_refused(
    tmp_path: Path, state: dict[str, Any], words: str
) -> None:
    folder = folder_in(tmp_path)
    folder.begin()

    with pytest.raises(RunError, match=words):
        folder.save_state(1, {}, state, {})
    assert folder.load_state() is None


def test_tensors_and_notes_come_back_and_checkpoints_before_the_former_go(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    shared = torch.arange(6.0).reshape(2, 3)
    for done in (1, 9, 10):
        folder.save_state(done, {"w": shared.T, "v": shared}, {}, {"measured": [{"x": done}]})

    found = folder.load_state()
    assert found is not None
    tensors, plugins, notes = found
    assert same(tensors, {"w": shared.T.contiguous(), "v": shared})
    assert plugins == {}
    assert notes == {"done": 10, "measured": [{"x": 10}]}
    assert sorted(path.name for path in folder.partial.iterdir()) == ["identity.json", "state-10", "state-9"]


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    from safetensors import safe_open

    folder = begun(tmp_path)
    folder.save_state(1, {"w": torch.ones(2)}, {"mine": {"t": torch.ones(1), "n": [1]}}, {"ledger": {}})

    files = [file for file in folder.partial.rglob("*") if file.is_file()]
    assert len(files) == 5
    for file in files:
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:
            with safe_open(file, framework="pt") as opened:
                assert opened.keys()


def test_an_interrupted_checkpoint_leaves_the_former_one(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.save_state(1, {"w": torch.ones(2)}, {}, {})

    with pytest.raises(RunError):
        folder.save_state(2, {"w": torch.zeros(2)}, {"bad": object()}, {})

    found = folder.load_state()
    assert found is not None
    assert found[2]["done"] == 1
    folder.save_state(2, {"w": torch.zeros(2)}, {}, {})
    assert {path.name for path in folder.partial.iterdir()} == {"identity.json", "state-1", "state-2"}


@pytest.mark.parametrize("file", ["model.safetensors", "plugins.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_corrupt_checkpoint_is_named_with_a_remedy(tmp_path: Path, file: str, damage: str) -> None:
    folder = begun(tmp_path)
    folder.save_state(1, {"w": torch.ones(200)}, {"mine": {"t": torch.ones(100)}}, {})
    target = folder.partial / "state-1" / file
    if damage == "gone":
        target.unlink()
    else:
        target.write_bytes(target.read_bytes()[:-10])

    with pytest.raises(RunError, match=rf"state-1: {file} .*; .*\.partial --repair") as caught:
        folder.load_state()
    assert "\n" not in str(caught.value)


# --- files ----------------------------------------------------------------------------------------------------------


def test_lines_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.write_lines("answers/0-0.jsonl", [{"id": "1", "answer": "ü"}])

    def dies() -> Any:
        yield {"id": "1", "answer": "red"}
        raise KeyboardInterrupt

    for name in ("answers/0-0.jsonl", "answers/0-1.jsonl"):
        with pytest.raises(KeyboardInterrupt):
            folder.write_lines(name, dies())

    assert [file.name for file in (folder.partial / "answers").iterdir()] == ["0-0.jsonl"]
    assert (folder.partial / "answers/0-0.jsonl").read_bytes() == '{"answer":"ü","id":"1"}\n'.encode()


def test_a_full_disk_leaves_nothing_half_written_under_a_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_text

    def full(self: Path, text: str, **options: Any) -> int:
        real(self, text[: len(text) // 2], **options)
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "facts.json", {"a": 1})
    assert not (tmp_path / "facts.json").exists()


def test_a_run_gets_its_name_with_its_manifest_last(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    assert not folder.finished
    with folder:
        folder.note({"label": "x"})
        folder.finish({"matrix": []})

    assert folder.finished
    assert not folder.partial.exists()
    assert sorted(path.name for path in folder.final.iterdir()) == ["identity.json", "manifest.json"]
    manifest = read_manifest(folder.final)
    assert manifest["matrix"] == []
    assert manifest["files"] == {"identity.json": entry(folder.final / "identity.json")}


def test_an_unfinished_or_corrupt_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no manifest\.json, so it is no finished run"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match=r"manifest\.json cannot be read .*; .*verify .* --repair"):
        read_manifest(tmp_path)


# --- whole or damaged -----------------------------------------------------------------------------------------------


def test_every_changed_bit_of_a_sealed_file_shows(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    write_sealed(
        file, {"files": {"a": {"size": 1, "sha256": "x"}}, "last": 26.39, "tasks": ["ü", "b"], "n": {3: 1}}
    )
    whole = file.read_bytes()
    assert read_sealed(file, tmp_path)["last"] == 26.39

    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with pytest.raises(RunError, match=r"manifest\.json .*; .*verify .* --repair") as caught:
            read_sealed(file, tmp_path)
        assert "\n" not in str(caught.value)


def test_a_manifest_from_before_there_were_lists_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"matrix": []}')

    assert read_manifest(tmp_path) == {"matrix": []}


def test_damage_is_told_by_what_it_is(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    wanted = entry(file)

    assert damage(file, wanted) is None
    file.write_bytes(b"12346")
    assert damage(file, wanted) == "is not what was written (its SHA-256 differs)"
    file.write_bytes(b"1234")
    assert damage(file, wanted) == "holds 4 of 5 bytes"
    file.unlink()
    assert damage(file, wanted) == "is missing"


def test_a_file_is_read_for_its_digest_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint may hold gigabytes: it is hashed when it is written, and not again when the run is finished."""
    from cl_zoo.engine import folder as folders
    from cl_zoo.engine import states

    hashed: list[str] = []

    def counted(file: Path) -> Any:
        hashed.append(file.name)
        return entry(file)

    for module in (folders, states):
        monkeypatch.setattr(module, "entry", counted)
    folder = begun(tmp_path)
    folder.save_state(1, {"w": torch.ones(2)}, {}, {})
    folder.write_lines("answers/0-0.jsonl", [{"id": "1"}])
    folder.finish({"matrix": []})

    assert sorted(hashed) == [
        "files.json",
        "identity.json",
        "model.safetensors",
        "plugins.safetensors",
        "state.json",
    ]
    listed = read_manifest(folder.final)["files"]
    assert all(damage(folder.final / name, one) is None for name, one in listed.items())
    assert len(listed) == 6


def test_answers_of_an_interrupted_run_are_checked_and_those_that_were_taken_out_are_told(
    tmp_path: Path,
) -> None:
    folder = begun(tmp_path)
    for name in ("answers/0-0.jsonl", "answers/1-0.jsonl"):
        folder.write_lines(name, [{"id": "1", "answer": "red"}])
    folder.save_state(2, {}, {}, {})
    again = folder_in(tmp_path)
    again.load_state()

    assert again.lost({0: [0], 1: [0, 1]}) == {1: [1]}
    (folder.partial / "answers/1-0.jsonl").write_text('{"answer":"rad","id":"1"}\n')
    with pytest.raises(RunError, match=r"1-0\.jsonl is not what was written .*--repair"):
        again.lost({0: [0], 1: [0]})


def test_an_unfinished_run_without_its_identity_goes_on_and_a_finished_one_says_what_it_lacks(
    tmp_path: Path,
) -> None:
    """The name of the folder holds the hash of the identity, so an unfinished run writes it again."""
    folder = begun(tmp_path)
    written = (folder.partial / "identity.json").read_bytes()
    (folder.partial / "identity.json").unlink()
    with folder_in(tmp_path) as again:
        again.begin()
        assert (folder.partial / "identity.json").read_bytes() == written
        again.finish({})
    (folder.final / "identity.json").unlink()

    with pytest.raises(RunError, match=r"has no identity\.json; .*verify .* --repair"), folder_in(tmp_path):
        pass


def test_a_matrix_that_lies_column_by_column_comes_back_so(tmp_path: Path) -> None:
    """Sums go through a tensor in the order of memory, so a run that goes on must find it as it was."""
    place = tmp_path / "state-1"
    place.mkdir()
    turned, plain = torch.arange(6.0).view(2, 3).T, torch.arange(6.0).view(3, 2)
    write_state(place, 1, {}, {"ewc": {"turned": turned, "plain": plain}}, {})

    _, kept, _ = read_state_in(place)

    for name, wanted in {"turned": turned, "plain": plain}.items():
        assert torch.equal(kept["ewc"][name], wanted)
        assert kept["ewc"][name].stride() == wanted.stride()
