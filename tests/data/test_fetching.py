"""Fetching against a hub of our own: a server in this process that speaks the part of the hub's protocol that is asked of it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cl_zoo.data.fetching import fetch, unpack
from cl_zoo.data.schema import Source
from cl_zoo.errors import DataError

COMMIT = "1" * 40


@dataclass
class Hub:
    """What the server holds, and what was asked of it."""

    files: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    breaks: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def source(self, **values: Any) -> Source:
        return Source.model_validate({"what": "pictures", "hub": "someone/birds", **values})

    def downloads(self) -> list[str]:
        return [line.partition(" ")[2] for line in self.asked if line.startswith("GET ")]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one dataset repository, `someone/birds`."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 10)
    held = Hub()

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            found = re.fullmatch(
                r"/(?:api/)?datasets/([^/]+/[^/]+?)(?:/(revision|tree|resolve)/([^/]+)(?:/(.+))?)?", path
            )
            name, what, _, file = found.groups() if found else ("", None, None, None)
            if name in held.refuse:
                code, reason = held.refuse[name]
                self.reply(b"{}", code, {"X-Error-Code": reason})
            elif name != "someone/birds":
                self.reply(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
            elif what == "tree":
                self.reply(json.dumps([described(*one) for one in held.files.items()]).encode())
            elif what == "resolve":
                self.file(file, held.files[file])
            else:
                self.reply(json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())

        def file(self, name: str, content: bytes) -> None:
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            held.asked.append(f"{self.command} {name}" + (f" from {start}" if start else ""))
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            cut = held.breaks.pop(name, None) if self.command == "GET" else None
            self.reply(content[start:], 206 if start else 200, headers, cut)

        def reply(
            self, body: bytes, code: int = 200, headers: dict[str, str] | None = None, cut: int | None = None
        ) -> None:
            self.send_response(code)
            for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    held.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield held
    server.shutdown()
    server.server_close()
    thread.join()


def described(name: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": name, "size": len(content), "oid": oid}


def zipped(members: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return archive.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    """What a user sees of a folder: all files but the library's own notes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".cache" not in path.parts
    }


@pytest.fixture
def fetched(hub: Hub, tmp_path: Path) -> Callable[..., tuple[list[str], dict[str, bytes]]]:
    """Fetch sources into this test's data folder; returns what was said and what is there."""

    def call(*sources: Source, **settings: Any) -> tuple[list[str], dict[str, bytes]]:
        lines: list[str] = []
        fetch(sources, tmp_path / "data", say=lines.append, endpoint=hub.url, **settings)
        return lines, contents(tmp_path / "data")

    return call


def test_what_matches_is_fetched_into_its_folder(hub, fetched):
    hub.files = {"train/1.jpg": b"one", "train/2.jpg": b"two", "README.md": b"words"}
    lines, there = fetched(hub.source(patterns=["train/*"], into="images"))

    assert there == {"images/train/1.jpg": b"one", "images/train/2.jpg": b"two"}
    assert lines == ["pictures: fetching 2 of 2 files (0.00 GiB) of someone/birds"]


def test_what_a_repository_says_of_itself_is_left_there(hub, fetched, tmp_path):
    """A user's own files of these names are not touched; deeper down they are data as any other."""
    hub.files = {
        "README.md": b"the hub's",
        ".gitattributes": b"lfs",
        "a.json": b"[]",
        "a/README.md": b"about a",
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_bytes(b"mine")
    lines, there = fetched(hub.source())

    assert there == {"README.md": b"mine", "a.json": b"[]", "a/README.md": b"about a"}
    assert lines == ["pictures: fetching 2 of 2 files (0.00 GiB) of someone/birds"]


def test_a_dry_run_names_the_files_and_writes_nothing(hub, fetched, tmp_path):
    hub.files = {"a.json": b"[]"}
    lines, there = fetched(hub.source(), dry_run=True)

    assert there == {}
    assert not (tmp_path / "data").exists()
    assert lines == [
        "pictures: would fetch 1 of 1 files (0.00 GiB) of someone/birds",
        f"  {tmp_path / 'data' / 'a.json'}",
    ]


def test_only_what_is_missing_is_fetched(hub, fetched, tmp_path):
    hub.files = {"a.json": b"[1]", "b.json": b"[2]", "c.json": b"[3, 4]"}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.json").write_bytes(b"[9]")  # laid there by hand, of the right length
    (tmp_path / "data" / "c.json").write_bytes(b"[3")  # cut off
    lines, there = fetched(hub.source())

    assert there == {"a.json": b"[9]", "b.json": b"[2]", "c.json": b"[3, 4]"}
    assert sorted(hub.downloads()) == ["b.json", "c.json"]
    assert lines[0].startswith("pictures: fetching 2 of 3 files")
    hub.asked.clear()
    fetched(hub.source())
    assert hub.asked == []


def test_a_file_cut_off_after_it_was_fetched_is_fetched_again(hub, fetched, tmp_path):
    hub.files = {"a.json": b"[1, 2, 3]"}
    fetched(hub.source())
    (tmp_path / "data" / "a.json").write_bytes(b"[1,")

    assert fetched(hub.source())[1] == {"a.json": b"[1, 2, 3]"}


def test_a_broken_transfer_goes_on_where_it_stopped(hub, fetched):
    content = os.urandom(10 << 10)
    hub.files, hub.breaks = {"big.bin": content}, {"big.bin": 4 << 10}
    _, there = fetched(hub.source())

    assert there == {"big.bin": content}
    first, second = hub.downloads()
    assert first == "big.bin"
    assert re.fullmatch(r"big.bin from [1-4]\d*", second)


def test_a_transfer_that_fails_leaves_nothing_under_its_name(hub, fetched, monkeypatch, tmp_path):
    hub.files = {"a.json": b"[1]", "b.json": b"[2]"}
    hub.refuse["someone/birds"] = (500, "")
    with pytest.raises(
        DataError, match=r"hub repository someone/birds: .*; run the same command again later"
    ):
        fetched(hub.source())
    assert contents(tmp_path) == {}

    hub.refuse.clear()
    assert fetched(hub.source())[1] == hub.files


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        ((404, "RepoNotFound"), "there is none at {url}/datasets/someone/birds, or it is private; for a private one run 'hf auth login' first"),
        ((403, "GatedRepo"), "is gated; accept its terms at {url}/datasets/someone/birds, then run 'hf auth login' and this command again"),
        ((404, "RevisionNotFound"), "its revision is gone; see {url}/datasets/someone/birds for what it holds now"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_sentence(hub, fetched, refusal, sentence):
    hub.refuse["someone/birds"] = refusal

    with pytest.raises(DataError) as raised:
        fetched(hub.source())
    assert str(raised.value) == "hub repository someone/birds: " + sentence.format(url=hub.url)


def test_a_hub_that_cannot_be_reached_is_one_sentence(hub, tmp_path):
    with pytest.raises(DataError, match=r"cannot reach http://127.0.0.1:9 \(.*\); the same command goes on"):
        fetch([hub.source()], tmp_path, endpoint="http://127.0.0.1:9")


def test_offline_mode_is_named(hub, fetched, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set; unset it to fetch"):
        fetched(hub.source())


def test_patterns_that_match_nothing_are_named(hub, fetched):
    hub.files = {"a.json": b"[]"}

    with pytest.raises(DataError, match=r"someone/birds: no file matches \*\.zip; see its page"):
        fetched(hub.source(patterns=["*.zip"]))


@pytest.mark.parametrize("name", ["../a.json", "/etc/a.json", "x/../../a.json"])
def test_a_repository_cannot_write_outside_the_data_folder(hub, fetched, tmp_path, name):
    hub.files = {name: b"[]"}

    with pytest.raises(DataError, match="would be written outside"):
        fetched(hub.source())
    assert contents(tmp_path) == {}


def test_what_the_hub_does_not_hold_is_explained(fetched, tmp_path):
    page = Source(what="more pictures", page="https://example.org/birds", into="wild", steps="unpack it")

    lines, _ = fetched(page)
    assert lines == [
        f"by hand: more pictures: https://example.org/birds, into {tmp_path / 'data/wild'}",
        "  unpack it",
    ]


# Archives


def test_archives_are_unpacked_where_the_source_says_so(hub, fetched):
    archive = zipped({"train/1.jpg": b"one", "train/2.jpg": b"two"})
    hub.files = {"pictures.zip": archive}

    assert fetched(hub.source())[1] == {"pictures.zip": archive}
    lines, there = fetched(hub.source(unpack=True))
    assert there == {"pictures.zip": archive, "train/1.jpg": b"one", "train/2.jpg": b"two"}
    assert lines[-1].endswith("pictures.zip: unpacked 2 files")
    assert fetched(hub.source(unpack=True))[0][-1].endswith("pictures.zip: unpacked 0 files")


def tarred(path: Path, name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> Path:
    with tarfile.open(path, "w:gz") as file:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, target, 3 if kind == tarfile.REGTYPE else 0
        file.addfile(member, io.BytesIO(b"one"))
    return path


def test_a_tar_file_is_unpacked_into_its_own_folder(tmp_path):
    archive = tarred(tmp_path / "pictures.tar.gz", "train/1.jpg")

    assert unpack(archive) == 1
    assert (tmp_path / "train/1.jpg").read_bytes() == b"one"
    assert unpack(archive) == 0


@pytest.mark.parametrize("name", ["../out.jpg", "/out.jpg", "a/../../out.jpg", "..\\out.jpg"])
def test_a_zip_member_that_would_leave_the_folder_is_refused(tmp_path, name):
    archive = tmp_path / "in" / "pictures.zip"
    archive.parent.mkdir()
    archive.write_bytes(zipped({name: b"one"}))

    with pytest.raises(DataError, match=r"pictures.zip: .*out.jpg' would be written outside"):
        unpack(archive)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["pictures.zip"]


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("../out.jpg", tarfile.REGTYPE, ""),
        ("/out.jpg", tarfile.REGTYPE, ""),
        ("../out", tarfile.DIRTYPE, ""),
        ("link", tarfile.SYMTYPE, "/etc/passwd"),
        ("link", tarfile.SYMTYPE, "inside.jpg"),
    ],
)
def test_a_tar_member_that_leaves_the_folder_or_is_a_link_is_refused(tmp_path, name, kind, target):
    (tmp_path / "in").mkdir()
    archive = tarred(tmp_path / "in" / "pictures.tar.gz", name, kind, target)

    with pytest.raises(DataError, match=r"pictures.tar.gz: "):
        unpack(archive)
    assert [path.name for path in tmp_path.rglob("*") if not path.is_dir()] == ["pictures.tar.gz"]


def test_a_member_is_never_written_through_a_link_that_leads_out(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "train").symlink_to(tmp_path / "out")
    archive = tmp_path / "in" / "pictures.zip"
    archive.write_bytes(zipped({"train/1.jpg": b"one"}))

    with pytest.raises(DataError, match="would be written outside"):
        unpack(archive)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_truncated_archive_is_named_and_leaves_no_half_file(tmp_path):
    archive = tmp_path / "pictures.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        member = tarfile.TarInfo("1.jpg")
        member.size = 1 << 17
        file.addfile(member, io.BytesIO(os.urandom(1 << 17)))
    archive.write_bytes(archive.read_bytes()[: 1 << 16])

    with pytest.raises(
        DataError, match=r"pictures.tar.gz: cannot be unpacked .*; delete it and fetch it again"
    ):
        unpack(archive)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures.tar.gz"]
    archive.rename(tmp_path / "pictures.zip")
    with pytest.raises(DataError, match=r"pictures.zip: cannot be unpacked"):
        unpack(tmp_path / "pictures.zip")


def archived(path: Path, content: bytes) -> Path:
    """A file `1.txt` in a compressed archive of the kind that the path says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("1.txt", content)
    else:
        with tarfile.open(path, f"w:{path.suffix[1:]}") as file:
            member = tarfile.TarInfo("1.txt")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("tenth", range(10))
@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "tar.bz2", "zip"])
def test_an_archive_that_is_damaged_anywhere_is_one_sentence_and_leaves_no_file(tmp_path, kind, tenth):
    """The libraries below raise what they like: zlib.error, LZMAError, BadGzipFile at the very end."""
    text = " ".join(str(number * number % 997) for number in range(20_000)).encode()
    archive = archived(tmp_path / f"pictures.{kind}", text)
    content = bytearray(archive.read_bytes())
    place = len(content) * (2 * tenth + 1) // 20
    content[place : place + 16] = bytes(byte ^ 0xFF for byte in content[place : place + 16])
    archive.write_bytes(content)

    with pytest.raises(
        DataError, match=rf"pictures.{kind}: cannot be unpacked \(.+\); delete it and fetch it"
    ):
        unpack(archive)
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


def test_a_full_disk_is_not_a_broken_archive(tmp_path, monkeypatch):
    archive = tarred(tmp_path / "pictures.tar.gz", "train/1.jpg")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(archive)


# The command


def described_by(tmp_path: Path, hub: Hub, sources: str) -> Path:
    file = tmp_path / "mine.yaml"
    split = "{files: [a.json], format: llava}"
    file.write_text(
        f"name: mine\nversion: '1'\nmethods: [finetune]\nbackbone: llava\nsources: {sources}\ntasks:\n"
        f"  - {{name: a, letter: A, instruction: Name it., metric: exact, max_new_tokens: 8, train: {split}, test: {split}}}\n"
    )
    return file


def command(hub: Hub, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`cl-zoo data fetch` in a process of its own: the library reads the hub's address when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    line = [sys.executable, "-m", "cl_zoo", "data", "fetch", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=environment, timeout=60)


def test_the_command_fetches_what_a_description_names(hub, tmp_path):
    hub.files = {"a.json": b"[]"}
    mine = described_by(tmp_path, hub, "[{what: records, hub: someone/birds}]")
    done = command(hub, mine, "--data", tmp_path / "data")

    assert done.returncode == 0, done.stderr
    assert done.stdout == "records: fetching 1 of 1 files (0.00 GiB) of someone/birds\n"
    assert contents(tmp_path / "data") == {"a.json": b"[]"}


def test_the_command_ends_with_2_and_one_sentence(hub, tmp_path):
    mine = described_by(tmp_path, hub, "[{what: records, hub: someone/else}]")
    done = command(hub, mine, "--data", tmp_path / "data")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: hub repository someone/else: there is none at {hub.url}/datasets/someone/else, or it is private; "
        "for a private one run 'hf auth login' first\n"
    )


@pytest.mark.parametrize(
    ("benchmark", "sentence"),
    [
        ("cl_zoo.testing:load_tiny", "benchmark cl_zoo.testing:load_tiny: no file describes it, so there is nothing to fetch"),
        ("nowhere", "no benchmark is called 'nowhere'"),
        ("nowhere.yaml", "benchmark nowhere.yaml: no such file"),
    ],
)  # fmt: skip
def test_a_benchmark_without_sources_ends_with_2(cli, tmp_path, benchmark, sentence):
    ended = cli("data", "fetch", benchmark, "--data", tmp_path)

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {sentence}")
