"""Bytewax's recovery store: what a resume begins with, and a copy of it that can be rewound.

Reads   `part-*.sqlite3` in a directory, as Bytewax 0.21.1 writes them.
Emits   the snapshots of an epoch by step and key; copies of a store.
Owns    what we know about Bytewax's tables, which it documents nowhere; the queries in its binary
        say it, and `tests/operators/test_recovery.py` holds it against Bytewax itself.

    parts     part_index, part_count      one row in each file
    exs       ex_num, worker_count, resume_epoch      one row a start
    fronts    ex_num, worker_index, worker_frontier   the first epoch a worker has not finished
    commits   part_index, commit_epoch    older snapshots than this epoch's are collected
    snaps     step_id, state_key, snap_epoch, ser_change   pickled; NULL where a key was discarded

A resume begins with epoch R: the least frontier of the newest start's workers, where one without a
row counts as `resume_epoch`. It takes of each key the newest snapshot *before* R. Collecting
epoch C keeps of each key the newest snapshot up to C, so a resume from any epoch of C + 1 to R
finds all it asks for: `rewind` uses this.

Snapshots of R and later are of epochs that were never finished. Bytewax leaves them; were a
key then asleep in the next start's epoch R, its snapshot of the lost R would count. A copy drops
them.

Never open these files in a process where Bytewax has them open: it brings its own SQLite, POSIX
locks belong to the process, and one library's close would drop the other's locks. A flow reads
them before it starts; while it runs, another process does (`python -m operators.recovery`).
"""

import io
import logging
import pickle  # our own files, and see `_Plain`
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from operators.lineage import CheckpointError, sync_directory

Snapshots = dict[str, dict[str, Any]]
"""Values by step id ("decide.users") and state key."""

log = logging.getLogger("pushflow")

_BUSY_S: Final = 10.0  # a worker holds a lock for milliseconds; a busy disk for longer


class Recovery(NamedTuple):
    """What a recovery store holds.

    Attributes
    ----------
    epoch
        Where the next start resumes; 1 where nothing ever ran.
    oldest_epoch
        The earliest epoch that a rewound store can resume from.
    n_parts
        Files of the store.
    rows
        (step id, state key, epoch, pickled value or None) of each snapshot, in this order.
    """

    epoch: int
    oldest_epoch: int
    n_parts: int
    rows: list[tuple[str, str, int, bytes | None]]

    def before(self, epoch: int) -> Snapshots:
        """Return what a resume from `epoch` hands to the steps."""
        newest = {(step, key): value for step, key, at, value in self.rows if at < epoch}
        return _decoded(newest)

    def oldest(self) -> Snapshots:
        """Return of each key the oldest snapshot: no resume asks for one before it."""
        rows = reversed(self.rows)
        return _decoded({(step, key): value for step, key, _, value in rows if value is not None})


def oldest_snapshots(directory: Path, step_id: str) -> dict[str, Any]:
    """Return by state key the oldest snapshot still held: at or before what any resume asks for.

    Parameters
    ----------
    directory
        A recovery store that Bytewax does not have open in this process.
    step_id
        "decide.decisions": the flow's name and the step's.

    Raises
    ------
    CheckpointError
        When a file is torn or missing. A directory without files holds nothing.

    Examples
    --------
    >>> oldest_snapshots(Path("no/such/directory"), "decide.decisions")
    {}
    """
    return load(directory).oldest().get(step_id, {})


def resume_snapshots(directory: Path) -> tuple[int, Snapshots]:
    """Return the epoch that Bytewax resumes from, and what it then hands to each step."""
    store = load(directory)
    return store.epoch, store.before(store.epoch)


def load(directory: Path) -> Recovery:
    """Read a whole store, as of one moment; see `oldest_snapshots` for what it raises."""
    with _locked(directory) as parts:
        return _read(directory, parts)


def copy(source: Path, target: Path) -> None:
    """Copy a store as of one moment, while its flow runs or not; `target` must not be there.

    Snapshots of epochs that were never finished stay behind, and so does what older starts left.
    All is on disk when it returns; a crash leaves `target` half made.
    """
    target.mkdir()
    with _locked(source) as parts:
        epoch = _read(source, parts).epoch
        for file in _files(source):
            # A connection that holds a write lock cannot be the source of a backup.
            with closing(_connect(file)) as reader, closing(_connect(target / file.name)) as copied:
                reader.backup(copied)
    rewind(target, epoch)
    sync_directory(target)


def rewind(directory: Path, epoch: int) -> None:
    """Make Bytewax resume from `epoch`, of `Recovery.oldest_epoch` to `Recovery.epoch`.

    What was snapshotted from there on is gone for good: do this to a copy.
    """
    store = load(directory)
    if not store.oldest_epoch <= epoch <= store.epoch:
        raise ValueError(
            f"{directory} can resume from epochs {store.oldest_epoch} to {store.epoch}, "
            f"not from {epoch}"
        )
    with _locked(directory) as parts:
        newest = max(
            (n for part in parts for (n,) in part.execute("SELECT ex_num FROM exs")), default=-1
        )
        for part in parts:
            part.execute("DELETE FROM snaps WHERE snap_epoch >= ?", [epoch])
            part.execute("DELETE FROM exs WHERE ex_num < ?", [newest])
            part.execute("UPDATE exs SET resume_epoch = ?", [epoch])
            part.execute("DELETE FROM fronts")  # all workers begin at `resume_epoch`
            part.execute("COMMIT")


@contextmanager
def _locked(directory: Path) -> Iterator[list[sqlite3.Connection]]:
    """Yield a connection to each file, all of them locked against writers.

    A process that was stopped in the middle of a commit holds a lock for as long as it is
    stopped, and must not hold up its successor. Each file is then read as of its last commit:
    who holds the lock writes no other file meanwhile.
    """
    with ExitStack() as stack:
        try:
            parts = [stack.enter_context(closing(_connect(f))) for f in _files(directory)]
            for part in parts:
                try:
                    part.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                        raise
                    log.warning("%s: another process holds a lock, and is stuck", directory)
                    part.execute("BEGIN")
                    part.execute("SELECT part_index FROM parts").fetchall()
            yield parts
        except sqlite3.DatabaseError as error:
            raise CheckpointError(
                f"the recovery store {directory} cannot be read: {error}. {_MEND}"
            ) from error


_MEND: Final = (
    "To mend: put a savepoint in place of the state (pushflow state import), or move the state's "
    "directory away and replay the topics from the start"
)


def _connect(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file, timeout=_BUSY_S, isolation_level=None)


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("part-*.sqlite3"))


def _read(directory: Path, parts: list[sqlite3.Connection]) -> Recovery:
    if not parts:
        return Recovery(epoch=1, oldest_epoch=1, n_parts=0, rows=[])
    (n_parts,) = {n for _, n in _rows(parts, "SELECT part_index, part_count FROM parts")}
    if n_parts != len(parts):
        raise CheckpointError(
            f"the recovery store {directory} has {len(parts)} files of {n_parts}. {_MEND}"
        )
    epoch = _resume_epoch(parts)
    committed = max((e for (e,) in _rows(parts, "SELECT commit_epoch FROM commits")), default=0)
    rows = _rows(parts, "SELECT step_id, state_key, snap_epoch, ser_change FROM snaps")
    # Before anything is committed the first epoch is the oldest, and it hands out nothing.
    return Recovery(
        epoch, min(committed + 1, epoch), n_parts, sorted(rows, key=lambda row: row[:3])
    )


def _resume_epoch(parts: list[sqlite3.Connection]) -> int:
    starts = _rows(parts, "SELECT ex_num, worker_count, resume_epoch FROM exs")
    if not starts:
        return 1
    newest, n_workers, resume_epoch = max(starts)
    frontiers: dict[int, int] = dict.fromkeys(range(n_workers), resume_epoch)
    query = "SELECT ex_num, worker_index, worker_frontier FROM fronts"
    for ex_num, worker, frontier in _rows(parts, query):
        if ex_num == newest:
            frontiers[worker] = max(frontiers.get(worker, 0), frontier)
    return min(frontiers.values())


def _rows(parts: list[sqlite3.Connection], query: str) -> list[Any]:
    return [row for part in parts for row in part.execute(query)]


def _decoded(values: dict[tuple[str, str], bytes | None]) -> Snapshots:
    snapshots: Snapshots = {}
    for (step, key), value in sorted(values.items()):
        if value is None:  # the key was discarded
            continue
        try:
            snapshots.setdefault(step, {})[key] = _Plain(io.BytesIO(value)).load()
        except (pickle.UnpicklingError, ImportError, AttributeError, EOFError) as error:
            raise CheckpointError(f"the snapshot of {key} of {step}: {error}. {_MEND}") from error
    return snapshots


class _Plain(pickle.Unpickler):
    """Builds plain values and our named tuples, such as `SnapshotRef`, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        found = getattr(import_module(module), name) if module.startswith("operators.") else None
        if isinstance(found, type) and issubclass(found, tuple):
            return found
        raise pickle.UnpicklingError(f"a snapshot holds a {module}.{name}")


if __name__ == "__main__":
    copy(Path(sys.argv[1]), Path(sys.argv[2]))
