"""Lineages: where the checkpoints of a state store lie, and when each may go.

Reads   the files `shards` of other runs' lineages; the name of the run that owns the state.
Owns    the layout of the state's directory, the rules by which parts of it are deleted, and what
        becomes of a run whose state another run has taken over.

    <root>/FORMAT                    version of this layout
    <root>/<name>/<lineage>/live/    the open database; means nothing after a crash
    <root>/<name>/<lineage>/17/      checkpoint 17, hard links: what (shard, lineage, 17) names
    <root>/<name>/<lineage>/.gone-16 a checkpoint that nobody names any more, until it is deleted
    <root>/<name>/<lineage>/shards   lines "named 07" and "committed 07"

A *lineage* is what one incarnation of one worker writes; nobody else ever writes to it. Two rules
say what may go:

- An epoch's sources wait until the epoch before is committed on the whole cluster. At the close
  of an epoch, the names given in the one before are therefore what a resume would ask for: only
  the checkpoints that they name are kept.
- Another run's lineage may go once each shard it ever named is committed in a lineage of this
  run. This does not need every worker to hold a shard. `shards` is append-only, and a line
  counts only with its newline: "named" is synced before a name is given out, while a lost
  "committed" does nothing worse than keep a directory until the next start.

A run that was cut off, and takes itself for alive, must spoil nothing that its successor needs. So
before it saves or deletes anything, a lineage looks who owns the state. This look and the deletion
need not be one: a successor names itself owner *before* it copies Bytewax's recovery store, so
its copy knows all commits that a deletion decided on before that look can rest on, and asks for
nothing that it takes away. It is no lock: one that a lost host held would hold up its successor.

Here are names and files alone; what is in a checkpoint is up to `operators.state`. All workers
need one file system with hard links, since shards move.
"""

import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from operators.shards import SnapshotRef

# 1: one recovery store for all starts; 2: one for each. A release of 1 would not find it, and begin
# anew: hence the number.
FORMAT: Final = 2
_GONE: Final = ".gone-"
# Deletes files: the last link to a large one takes 5 to 10 ms, for which a flow would stand still.
_REMOVER: Final = ThreadPoolExecutor(1, thread_name_prefix="remover")


class CheckpointError(RuntimeError):
    """A checkpoint that a resume needs is missing, torn, or of another format."""


class Fenced(RuntimeError):
    """Another run owns the state: this one must end, and may change nothing any more."""


class Lineage:
    """The checkpoints that one worker makes in one run, and the clearing of old ones.

    Parameters
    ----------
    root, name, run_id, n_workers, owner, retain, fault
        As for `operators.state.StateStore`.

    Raises
    ------
    CheckpointError
        When `root` has a newer format.
    Fenced
        Here, and from `add` and `commit_before`, when another run owns the state.
    ValueError
        For a `run_id` used before.

    Attributes
    ----------
    name
        Of the lineage, `run_id` and a number below `n_workers`.
    path
        Its directory.
    number
        Of its newest checkpoint, 0 before the first.

    Notes
    -----
    Disk: at most one checkpoint a shard and `retain` + 1 more.

    Examples
    --------
    >>> root = Path(tempfile.mkdtemp())
    >>> lineage = Lineage(root, "users", "monday", n_workers=1)
    >>> for _ in range(3):
    ...     lineage.add({"07"}, Path.mkdir)
    ...     lineage.commit_before({"07": SnapshotRef("07", lineage.name, lineage.number)})
    >>> lineage.name, sorted(path.name for path in lineage.path.glob("[!.]*"))
    ('monday-0', ['3', 'shards'])
    >>> lineage.close()
    >>> shutil.rmtree(root)
    """

    def __init__(
        self,
        root: Path,
        name: str,
        run_id: str,
        n_workers: int,
        *,
        owner: Path | None = None,
        retain: int = 0,
        fault: Callable[[str], None] = lambda _: None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", run_id):
            raise ValueError(f"run_id must be 1 to 64 of A-Za-z0-9_.-, got {run_id!r}")
        self._home = root / name
        self._run_id = run_id
        self._owner = owner
        self._check_owner()
        self._home.mkdir(parents=True, exist_ok=True)
        check_format(root)
        # Only what stood here before: a later run's young lineage must not look superseded.
        self._others = [d.name for d in self._home.iterdir() if _run_of(d.name) != run_id]
        self.name = self._claim(run_id, n_workers)
        self.path = self._home / self.name
        self.number = 0
        self._fault = fault
        self._recorded: dict[str, set[str]] = {"named": set(), "committed": set()}
        # Names as of the last committed epochs, oldest first: a resume may ask for any of them.
        self._committed: deque[dict[str, SnapshotRef]] = deque(maxlen=retain + 1)
        self._on_disk: set[int] = set()
        self._removals: list[Future[None]] = []
        sync_directory(self._home)
        sync_directory(root)

    def _claim(self, run_id: str, n_workers: int) -> str:
        for worker in range(n_workers):
            try:
                (self._home / f"{run_id}-{worker}").mkdir()  # atomic: each worker gets its own
            except FileExistsError:
                continue
            return f"{run_id}-{worker}"
        raise ValueError(
            f"run id {run_id!r} has {n_workers} lineages in {self._home} already: each start of "
            "the cluster needs a run id of its own, and n_workers must count all its workers"
        )

    def checkpoint(self, ref: SnapshotRef) -> Path:
        """Return where the checkpoint that `ref` names lies; CheckpointError if it is missing."""
        path = self._home / ref.lineage / str(ref.number)
        if not path.is_dir():
            raise CheckpointError(
                f"checkpoint {path} of shard {ref.shard} is missing. {_mend(self._home)}"
            )
        return path

    def torn(self, ref: SnapshotRef, error: Exception) -> CheckpointError:
        """Return what to raise when the checkpoint that `ref` names cannot be opened."""
        path = self._home / ref.lineage / str(ref.number)
        return CheckpointError(f"checkpoint {path} cannot be opened: {error}. {_mend(self._home)}")

    def add(self, shards: Collection[str], write: Callable[[Path], None]) -> None:
        """Have `write` make the next checkpoint in a directory not yet there; it holds `shards`."""
        self._check_owner()
        self._record("named", set(shards))
        number = self.number + 1
        write(self.path / str(number))
        sync_directory(self.path)
        self.number = number
        self._on_disk.add(number)
        self._fault("saved")

    def commit_before(self, names: dict[str, SnapshotRef]) -> None:
        """Delete what no resume can ask for, now that the epoch before is committed.

        `names` says by shard what snapshots said as of that epoch.
        """
        self._check_owner()
        self._committed.append(dict(names))
        refs = [ref for epoch in self._committed for ref in epoch.values()]
        keep = {ref.number for ref in refs if ref.lineage == self.name} | {self.number}
        with self.owned():
            for number in sorted(self._on_disk - keep):
                self._remove(number)
                self._on_disk.discard(number)
                self._fault("pruned")
        if len(self._committed) == self._committed.maxlen:
            elsewhere = {ref.shard for ref in refs if ref.lineage != self.name}
            self._record("committed", {ref.shard for ref in refs} - elsewhere)
            if self._drop_superseded():
                self._fault("dropped")

    def _remove(self, number: int) -> None:
        """Put a checkpoint out of the way, and have it deleted."""
        gone = self.path / f"{_GONE}{number}"
        (self.path / str(number)).rename(gone)
        self._removals = [one for one in self._removals if not one.done()]
        # A successor that takes the whole lineage away may be at it too.
        self._removals.append(_REMOVER.submit(shutil.rmtree, gone, ignore_errors=True))

    def close(self) -> None:
        """Wait until what is to be deleted is."""
        wait(self._removals)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Explain an error by the loss of the state: a successor may have removed our files."""
        try:
            yield
        except Exception:
            self._check_owner()
            raise

    def _check_owner(self) -> None:
        owner = owner_of(self._owner) if self._owner is not None else ""
        if owner not in ("", self._run_id):
            raise Fenced(
                f"the state in {self._home} belongs to run {owner} by now, not to this run, "
                f"{self._run_id}: another start has taken it over. If two clusters run on one "
                "state directory, stop one of them, or give it a directory of its own"
            )

    def _record(self, kind: str, shards: set[str]) -> None:
        """Append `kind` ("named" or "committed") for each of `shards` not yet recorded."""
        fresh = sorted(shards - self._recorded[kind])
        if not fresh:
            return
        with (self.path / "shards").open("a", encoding="utf-8") as file:
            file.writelines(f"{kind} {shard}\n" for shard in fresh)
            file.flush()
            os.fsync(file.fileno())
        self._recorded[kind].update(fresh)

    def _drop_superseded(self) -> bool:
        """Delete lineages of other runs that no resume can ask for; tell whether any went."""
        if not self._others:
            return False
        ours = [d.name for d in self._home.iterdir() if _run_of(d.name) == self._run_id]
        committed = {s for name in ours for s in _recorded(self._home / name, "committed")}
        gone = [o for o in self._others if _recorded(self._home / o, "named") <= committed]
        for other in gone:
            shutil.rmtree(self._home / other, ignore_errors=True)  # a sibling may be at it too
        self._others = [other for other in self._others if other not in gone]
        return bool(gone)


def owner_of(path: Path) -> str:
    """Return the run that owns the state, as the file `path` says; "" where none has said so."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def _run_of(lineage: str) -> str:
    return lineage.rpartition("-")[0]


def _recorded(lineage: Path, kind: str) -> set[str]:
    try:
        text = (lineage / "shards").read_text(encoding="utf-8")
    except FileNotFoundError:
        return set()
    whole = text[: text.rfind("\n") + 1]  # the last line may be torn
    pairs = (line.split(" ", 1) for line in whole.splitlines())
    return {shard for found, shard in pairs if found == kind}


def check_format(root: Path) -> None:
    """Raise `CheckpointError` where a newer pushflow wrote `root`; note our format where not."""
    path = root / "FORMAT"
    found = path.read_text(encoding="utf-8").strip() if path.exists() else "0"
    if not found.isdigit() or int(found) > FORMAT:
        raise CheckpointError(
            f"{path} says {found!r}, this pushflow reads formats up to {FORMAT}: run the newer "
            "pushflow that wrote it, or point the state at another directory"
        )
    if int(found) < FORMAT:
        write_atomic(path, f"{FORMAT}\n")


def write_atomic(path: Path, text: str) -> None:
    """Write a small file: after a crash it holds all of `text`, or what it held before."""
    handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=".fresh-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(fresh).replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make what was created, renamed or removed in a directory outlast a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _mend(home: Path) -> str:
    return (
        f"To mend: move {home.parent.parent} away, then put a savepoint in its place "
        "(pushflow state import), or replay the topics from the start"
    )
