"""Savepoints: consistent copies of a flow's state in another place, made while it runs or not.

Reads   the newest recovery store and the checkpoints that it names.
Emits   files by checksum and a manifest, through fsspec: to a directory, `s3://`, `memory://`, ...
Owns    the layout of that place, and when a savepoint counts as whole.

    <url>/<flow>/owner                run id of the start that may write here
    <url>/<flow>/files/<sha256>       contents, each once: tables never change, so most are there
    <url>/<flow>/savepoint-000017     JSON: epoch, run id, and (checksum, bytes) of each path

A savepoint is the state as of one committed epoch, so a flow that begins with it elsewhere reads
its sources again from there, and its sinks look up what stands behind their own older offsets:
nothing is lost and nothing is written twice. A manifest comes last, after all that it names; one
that is torn, or names what is gone, is passed over for the one before it.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import fsspec
import orjson

from operators import recovery
from operators.incarnations import checkpoints_of, is_empty, newest, number_of
from operators.lineage import CheckpointError, Fenced, sync_directory, write_atomic
from operators.recovery import Snapshots

log = logging.getLogger("pushflow")

FORMAT: Final = 1
_ATTEMPTS: Final = 5  # a flow may prune a checkpoint between our copy of its name and our link
_CHUNK_BYTES: Final = 1 << 20

Copy = Callable[[Path, Path], None]
"""Copies a recovery store: `recovery.copy`, or another process that calls it."""


class Held(NamedTuple):
    """A state that nobody will change or prune: links and copies in a directory of their own."""

    home: Path  # laid out as the flow's own
    run_id: str
    epoch: int
    snapshots: Snapshots


class Saved(NamedTuple):
    """What a savepoint took."""

    number: int
    epoch: int
    files: int
    bytes: int
    sent_files: int
    sent_bytes: int


@contextmanager
def hold(home: Path, stores: Mapping[str, str], copy: Copy = recovery.copy) -> Iterator[Held]:
    """Hold a flow's state as of its last committed epoch, at the cost of some hard links.

    Raises
    ------
    CheckpointError
        When there is no state, or a checkpoint that a resume asks for is missing.
    """
    if newest(home) is None:
        raise CheckpointError(f"there is no state in {home}")
    with tempfile.TemporaryDirectory(dir=home, prefix=".held-") as directory:
        for attempt in range(_ATTEMPTS):
            try:
                yield _held(home, Path(directory) / str(attempt), stores, copy)
                return
            except _GoneError as error:
                gone = error
        raise CheckpointError(f"checkpoint {gone} is missing")


class _GoneError(Exception):
    """A file was not there any more."""


def _held(home: Path, target: Path, stores: Mapping[str, str], copy: Copy) -> Held:
    source = newest(home)
    if source is None:
        raise CheckpointError(f"there is no state in {home}")
    run_id = source.name if source.parent.name == "bytewax" else "first"
    store = target / "bytewax" / run_id
    store.parent.mkdir(parents=True)
    copy(source, store)
    write_atomic(store / "number", f"{number_of(source)}\n")
    epoch, snapshots = recovery.resume_snapshots(store)
    for checkpoint in checkpoints_of(home, snapshots, stores):
        _link_checkpoint(checkpoint, target / checkpoint.relative_to(home))
    if (home / "shards" / "FORMAT").exists():
        shutil.copy(home / "shards" / "FORMAT", target / "shards" / "FORMAT")
    return Held(target, run_id, epoch, snapshots)


def _link_checkpoint(checkpoint: Path, target: Path) -> None:
    try:
        shutil.copytree(checkpoint, target, copy_function=os.link)
        # Says which shards the lineage holds, until which are named anew elsewhere.
        shutil.copy(checkpoint.parent / "shards", target.parent / "shards")
    except (FileNotFoundError, shutil.Error) as error:
        raise _GoneError(str(checkpoint)) from error


class Place:
    """Where savepoints of one flow lie.

    Parameters
    ----------
    url
        A directory, in any form that fsspec knows.
    flow
        "decide", "learn" or "catalog".

    Examples
    --------
    >>> Place("memory://doctest", "decide").numbers()
    []
    """

    def __init__(self, url: str, flow: str) -> None:
        self._fs, root = fsspec.core.url_to_fs(url)
        self._root = f"{root.rstrip('/')}/{flow}"
        # The checksum of a file that was read once, by what no other content of it can have.
        self._checksums: dict[tuple[int, int, int], str] = {}

    def claim(self, run_id: str) -> None:
        """Name the start that may save here from now on, and remove what no savepoint names."""
        self._fs.makedirs(self._root, exist_ok=True)
        self._fs.pipe_file(f"{self._root}/owner", run_id.encode())
        self._sweep()

    def save(self, held: Held, *, run_id: str = "", keep: int | None = None) -> Saved:
        """Send a savepoint, and keep at most `keep`.

        Raises
        ------
        Fenced
            When another start than `run_id` has claimed the place.
        """
        self._check_owner(run_id)
        self._fs.makedirs(f"{self._root}/files", exist_ok=True)
        there = self._files()
        named: dict[str, tuple[str, int]] = {}
        n_sent = bytes_sent = 0
        known, self._checksums = self._checksums, {}
        for path in sorted(p for p in held.home.rglob("*") if p.is_file()):
            status = path.stat()
            key = (status.st_ino, status.st_size, status.st_mtime_ns)
            checksum = self._checksums[key] = known.get(key) or _checksum(path)
            named[path.relative_to(held.home).as_posix()] = (checksum, status.st_size)
            if there.get(checksum) != status.st_size:
                self._fs.put_file(str(path), f"{self._root}/files/{checksum}")
                there[checksum] = status.st_size
                n_sent, bytes_sent = n_sent + 1, bytes_sent + status.st_size
        self._check_owner(run_id)
        number = max(self.numbers(), default=0) + 1
        manifest = {"format": FORMAT, "run_id": held.run_id, "epoch": held.epoch, "files": named}
        self._fs.pipe_file(self._path(number), orjson.dumps(manifest))
        if keep is not None:
            for old in self.numbers()[:-keep]:
                self._fs.rm_file(self._path(old))
            self._sweep()
        sizes = dict(named.values())
        return Saved(number, held.epoch, len(sizes), sum(sizes.values()), n_sent, bytes_sent)

    def numbers(self) -> list[int]:
        """Return the numbers of all savepoints, oldest first."""
        names = (Path(name).name.partition("savepoint-")[2] for name in self._names(self._root))
        return sorted(int(name) for name in names if name.isdigit())

    def restore(self, home: Path) -> tuple[int, int]:
        """Put the newest whole savepoint in place of a missing state; return (number, epoch).

        Raises
        ------
        CheckpointError
            When there is a state in `home`, or no whole savepoint here.
        """
        if not is_empty(home):
            raise CheckpointError(f"there is a state in {home}: move it away first")
        home.parent.mkdir(parents=True, exist_ok=True)
        reasons = []
        for number in reversed(self.numbers()):
            with tempfile.TemporaryDirectory(dir=home.parent, prefix=".fetched-") as directory:
                fetched = Path(directory) / home.name
                try:
                    epoch = self._fetch(number, fetched)
                except CheckpointError as error:
                    log.warning("savepoint %d: %s", number, error)
                    reasons.append(str(error))
                    continue
                shutil.rmtree(home, ignore_errors=True)
                fetched.rename(home)
                sync_directory(home.parent)
                return number, epoch
        raise CheckpointError(f"no savepoint in {self._root}{''.join(f'; {r}' for r in reasons)}")

    def _fetch(self, number: int, target: Path) -> int:
        manifest = self._manifest(number)
        if manifest is None:
            raise CheckpointError("its manifest is torn")
        if manifest["format"] > FORMAT:
            raise CheckpointError("a newer pushflow wrote it: import it with that")
        first: dict[str, Path] = {}
        for name, (checksum, _size) in manifest["files"].items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if checksum in first and path.suffix == ".sst":
                os.link(first[checksum], path)
                continue
            try:
                self._fs.get_file(f"{self._root}/files/{checksum}", str(path))
            except FileNotFoundError as error:
                raise CheckpointError(f"{name} is missing") from error
            if _checksum(path) != checksum:
                raise CheckpointError(f"{name} has another checksum")
            first.setdefault(checksum, path)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for directory in [target, *(path for path in target.rglob("*") if path.is_dir())]:
            sync_directory(directory)
        return int(manifest["epoch"])

    def _check_owner(self, run_id: str) -> None:
        if not run_id:
            return
        try:
            owner = self._fs.cat_file(f"{self._root}/owner").decode()
        except FileNotFoundError:
            owner = run_id
        if owner != run_id:
            raise Fenced(f"savepoints in {self._root} belong to run {owner} by now, not {run_id}")

    def _sweep(self) -> None:
        """Remove contents that no savepoint names; where a manifest is torn, remove none."""
        manifests = [self._manifest(number) for number in self.numbers()]
        named = {c for m in manifests if m is not None for c, _ in m["files"].values()}
        if None not in manifests:
            for checksum in self._files().keys() - named:
                self._fs.rm_file(f"{self._root}/files/{checksum}")

    def _manifest(self, number: int) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = orjson.loads(self._fs.cat_file(self._path(number)))
        except (FileNotFoundError, orjson.JSONDecodeError):
            return None
        return found

    def _path(self, number: int) -> str:
        return f"{self._root}/savepoint-{number:06d}"

    def _files(self) -> dict[str, int]:
        """Return the size of each content that is there."""
        self._fs.invalidate_cache()
        try:
            rows = self._fs.ls(f"{self._root}/files", detail=True)
        except FileNotFoundError:
            return {}
        return {Path(row["name"]).name: row["size"] for row in rows if row["type"] == "file"}

    def _names(self, directory: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            names: list[str] = self._fs.ls(directory, detail=False)
        except FileNotFoundError:
            return []
        return names


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)  # Python's lock is free meanwhile
    return digest.hexdigest()
