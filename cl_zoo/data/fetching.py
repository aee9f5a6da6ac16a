"""`cl-zoo data fetch`: what the Hugging Face hub holds of a benchmark, and where the rest comes from.

What a repository holds about itself, `README.md` and `.gitattributes` at its top, is no data and is never fetched. A file that
is there with the length that the hub names is not fetched again, whoever put it there; one of another length is replaced: an
older version, or cut off. The library brings a file under its final name only when it is whole, and takes up a broken transfer
where it stopped; after an interrupted command, the same command goes on with the files that are not there yet.

Archives of a source with `unpack: true` are unpacked where they lie, each member under its final name only when it is whole. At a
member that would leave the folder, or a link, unpacking stops; of an archive that turns out to be broken nothing new stays.
"""

from __future__ import annotations

import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from cl_zoo.data.faults import below
from cl_zoo.errors import DataError, first_line, full_disk_named

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from cl_zoo.data.schema import Source

THREADS = 4
ABOUT = ("README.md", ".gitattributes")
"""What stands at the top of a repository about itself."""
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
"""What the libraries raise at a broken archive, beside OSError without a number (gzip and bz2)."""
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
GIB = 1 << 30

Say = Callable[[str], None]
Members = Iterator[tuple[str, int, Callable[[], IO[bytes] | None]]]
"""Name, bytes and opener of every file in an archive."""


@dataclass(frozen=True)
class Wanted:
    """A file of a hub repository and where it goes.

    Attributes:
        name: path in the repository.
        size: bytes.
        path: where it goes.
    """

    name: str
    size: int
    path: Path

    @property
    def there(self) -> bool:
        """Whether the file is there, whole as far as its length says."""
        return self.path.is_file() and self.path.stat().st_size == self.size


def fetch(
    sources: Sequence[Source],
    data: Path,
    *,
    dry_run: bool = False,
    say: Say = print,
    endpoint: str | None = None,
) -> None:
    """Fetch every source that lies on the hub, then say for the others what to do.

    Args:
        sources: as a benchmark's description names them.
        data: the data folder; made where it is missing.
        dry_run: say what would be fetched, and write nothing.
        say: takes a line of text.
        endpoint: address of the hub; `None` for the usual one, or `HF_ENDPOINT`.

    Raises:
        DataError: the hub cannot be reached or refuses, or an archive is broken or would write outside its folder.
        RunError: the disk is full.
    """
    try:
        for source in sources:
            if source.hub is not None:
                with full_disk_named(data):
                    _fetch_one(source, data, dry_run, say, endpoint)
    finally:  # also where the hub cannot be reached
        for source in sources:
            if source.hub is None:
                say(f"by hand: {source.what}: {source.page}, into {data / source.into}")
                if source.steps:
                    say(f"  {source.steps}")


def _fetch_one(source: Source, data: Path, dry_run: bool, say: Say, endpoint: str | None) -> None:
    from huggingface_hub import HfApi

    repository, folder, hub = str(source.hub), data / source.into, HfApi(endpoint=endpoint)
    commit, wanted = _listing(source, folder, hub)
    missing = [one for one in wanted if not one.there]
    size = sum(one.size for one in missing) / GIB
    verb = "would fetch" if dry_run else "fetching"
    say(f"{source.what}: {verb} {len(missing):,} of {len(wanted):,} files ({size:.2f} GiB) of {repository}")
    if dry_run:
        for one in missing:
            say(f"  {one.path}")
    else:
        _download(repository, commit, missing, folder, hub.endpoint)
        if source.unpack:
            for one in wanted:
                if _is_archive(one.path):
                    say(f"  {one.path}: unpacked {unpack(one.path):,} files")
    if source.steps:
        say(f"  then: {source.steps}")


def _listing(source: Source, folder: Path, hub: HfApi) -> tuple[str, list[Wanted]]:
    """Commit and files of a repository that match the source's patterns."""
    from huggingface_hub.utils import filter_repo_objects

    repository = str(source.hub)
    with _hub_errors(repository, hub.endpoint):
        commit = str(hub.repo_info(repository, repo_type="dataset", revision=source.revision).sha)
        tree = hub.list_repo_tree(repository, recursive=True, revision=commit, repo_type="dataset")
        sizes = {one.path: one.size for one in tree if hasattr(one, "size")}
    names = list(
        filter_repo_objects(sizes, allow_patterns=list(source.patterns) or None, ignore_patterns=[*ABOUT])
    )
    if not names:
        raise DataError(
            f"hub repository {repository}: no file matches {', '.join(source.patterns) or 'anything'}; "
            "see its page for what it holds now"
        )
    return commit, [Wanted(name, sizes[name], _inside(folder, name, repository)) for name in names]


def _download(repository: str, commit: str, missing: Sequence[Wanted], folder: Path, endpoint: str) -> None:
    from huggingface_hub import hf_hub_download

    def download(one: Wanted) -> None:
        hf_hub_download(
            repository,
            one.name,
            repo_type="dataset",
            revision=commit,
            local_dir=folder,
            endpoint=endpoint,
            force_download=one.path.exists(),  # of another length: an older version, or cut off
        )

    with ThreadPoolExecutor(THREADS) as pool, _hub_errors(repository, endpoint):
        waiting = [pool.submit(download, one) for one in missing]
        try:
            for done in waiting:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _hub_errors(repository: str, endpoint: str) -> Iterator[None]:
    """Say in one sentence why the hub gave nothing."""
    from huggingface_hub import errors

    page = f"{endpoint}/datasets/{repository}"
    try:
        yield
    except errors.GatedRepoError:
        words = f"is gated; accept its terms at {page}, then run 'hf auth login' and this command again"
    except errors.RepositoryNotFoundError:
        words = f"there is none at {page}, or it is private; for a private one run 'hf auth login' first"
    except errors.RevisionNotFoundError:
        words = f"its revision is gone; see {page} for what it holds now"
    except errors.OfflineModeIsEnabled:
        words = "HF_HUB_OFFLINE is set; unset it to fetch"
    except errors.HFValidationError as error:
        words = f"is no name of a repository ({first_line(error)}); repair the description's sources"
    except errors.HfHubHTTPError as error:
        words = f"{endpoint} refuses: {first_line(error)}; run the same command again later"
    except (errors.HTTPError, errors.LocalEntryNotFoundError, TimeoutError, ConnectionError) as error:
        words = f"cannot reach {endpoint} ({first_line(error)}); the same command goes on where it stopped"
    else:
        return
    raise DataError(f"hub repository {repository}: {words}") from None


# Archives


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith((".zip", *TARS))


def unpack(archive: Path) -> int:
    """Unpack a zip or tar file into its own folder; members that are there with their length are left alone.

    Returns:
        How many files were written.

    Raises:
        DataError: it is broken, or a member would leave the folder or is a link.
    """
    written: list[Path] = []
    try:
        with _opened(archive) as members:
            for name, size, opened in members:
                path = _inside(archive.parent, name, str(archive))
                if not (path.is_file() and path.stat().st_size == size):
                    _write(path, opened)
                    written.append(path)
    except (*BROKEN, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the disk's fault, not the archive's
            raise
        for path in written:  # whole by their length, but nothing in a broken archive is sure
            path.unlink(missing_ok=True)
        raise DataError(
            f"{archive}: cannot be unpacked ({first_line(error)}); delete it and fetch it again"
        ) from error
    return len(written)


@contextmanager
def _opened(archive: Path) -> Iterator[Members]:
    if archive.name.lower().endswith(TARS):
        with tarfile.open(archive) as tar:
            yield _of_tar(tar, archive)
    else:
        with zipfile.ZipFile(archive) as packed:
            yield _of_zip(packed, archive)


def _of_tar(tar: tarfile.TarFile, archive: Path) -> Members:
    for member in tar:
        _inside(archive.parent, member.name, str(archive))  # of folders too, though none is made
        if member.isfile():
            yield member.name, member.size, partial(tar.extractfile, member)
        elif not member.isdir():
            raise DataError(f"{archive}: {member.name!r} is a link or a device; unpack it by hand")
    while tar.fileobj is not None and tar.fileobj.read(1 << 20):  # to the end, where gzip has its sum
        pass


def _of_zip(packed: zipfile.ZipFile, archive: Path) -> Members:
    for member in packed.infolist():
        if member.external_attr >> 16 & 0o170000 == 0o120000:
            raise DataError(f"{archive}: {member.filename!r} is a link; unpack it by hand")
        if not member.is_dir():
            yield member.filename, member.file_size, partial(packed.open, member)


def _write(path: Path, opened: Callable[[], IO[bytes] | None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with draft.open("wb") as file:
            content = opened()
            if content is not None:
                with content:
                    shutil.copyfileobj(content, file, 1 << 20)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _inside(folder: Path, name: str, owner: str) -> Path:
    """The path of a file that somebody else named, below `folder` whatever links lie on the way.

    Raises:
        DataError: it would lie elsewhere.
    """
    path = folder / PurePosixPath(name.replace("\\", "/"))
    if not below(folder, path):
        raise DataError(
            f"{owner}: {name!r} would be written outside {folder}; see what it holds and unpack or fetch it by hand"
        )
    return path
