"""Users' state on RocksDB, with checkpoints that Bytewax snapshots name.

Reads   the `SnapshotRef`s that Bytewax hands back when it resumes.
Emits   one `SnapshotRef` for each shard of an epoch.
Owns    what is in memory, what of it is written and when, and what an epoch's close names.

The one idea: state lives in RocksDB, a snapshot only *names* a checkpoint of it. An epoch then
costs what changed in it, not what is held, and state may outgrow memory. One store serves all
shards of one step on one worker thread; a key is stored as `shard|key`, so that a shard is one
range of keys and can move to another worker. `operators.live_database` makes the database of
checkpoints and saves it as such; `operators.lineage` says where they lie and when they may go.

Bytewax passes no epoch number. It calls `snapshot` for all shards awake in an epoch in one
unbroken block, so the first call after any `touch` closes the epoch, and the others name the same
checkpoint. This is why the blocks of two threads must not meet in one store.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from rocksdict import WriteBatch

from operators.checkpoints import key_range, scan
from operators.lineage import Lineage
from operators.live_database import LiveDatabase
from operators.shards import SnapshotRef

S = TypeVar("S")
"""The state of one key."""

_SLACK: Final = 1.25  # times the capacity: evictions are rare, and their scan is paid for


class StateStore(Generic[S]):
    """State of all shards of one step on one worker thread.

    Parameters
    ----------
    root
        Directory of all stores, shared by all workers of the cluster.
    name
        The step's name: a directory in `root`.
    encode, decode
        State to bytes and back. What `encode` gives is final: it is called at an epoch's close.
    new
        Makes the state of a key never seen, from the key.
    run_id
        The same for all workers of one start of the cluster, and never used for another start.
    n_workers
        Worker threads of the cluster, >= 1: guards against a `run_id` used twice.
    hot_capacity
        Decoded states held in memory, >= 1. Each costs what the Python object costs.
    owner
        The file that says which run owns the state: when it names another one, the store saves
        and deletes nothing more. None: nobody else can.
    retain
        How many committed epochs before the last one keep their checkpoints, >= 0. As many as
        Bytewax's backup interval (`-b`) spans, if that is used.
    block_cache_bytes, write_buffer_bytes
        RocksDB's read cache and the size of one of its at most two write buffers.
    write_back_seconds
        Write what was touched to RocksDB this often, and not all of it when the epoch closes:
        many short pauses in place of one long one. A state touched again is written again. None
        turns it off.
    flush_seconds
        So long after the close of an epoch, RocksDB begins to write to disk what came back by then,
        in a thread of its own: the next close has only the rest to write, so it costs much the same
        however many users an epoch touches. Wants `write_back_seconds`. None turns it off.
    clock, on_checkpoint
        Monotonic seconds, and what to call with (seconds, keys written) at each checkpoint.
    fault
        Called with the name of each point that a crash test aims at.

    Raises
    ------
    CheckpointError
        When what a resume asks for cannot be had, or `root` has a newer format.
    Fenced
        When another run owns the state.
    ValueError
        For arguments out of range and for a `run_id` used before.

    Notes
    -----
    Memory: after a snapshot at most `hot_capacity` states; between two at most 1.25 times that
    plus the keys of one activation, since `touch` writes back early when there are more.
    Disk: at most one checkpoint a shard and `retain` + 1 more, mostly hard links to the same
    files; shards that are all awake in each epoch share one.
    Time: an epoch costs O(keys touched). See `bench/state.py`.

    Examples
    --------
    >>> import shutil, tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> def store(run_id):
    ...     return StateStore(root, "users", encode=lambda s: str(s[0]).encode(),
    ...         decode=lambda b: [int(b)], new=lambda key: [0], run_id=run_id, n_workers=1)
    >>> shard = store("monday").open_shard("07", None)
    >>> shard.touch()
    >>> shard.get("ann")[0] += 3
    >>> ref = shard.snapshot()
    >>> ref
    SnapshotRef(shard='07', lineage='monday-0', number=1)
    >>> shard.get("ann")[0] += 100  # never snapshotted: lost in the crash
    >>> shard = store("tuesday").open_shard("07", ref)
    >>> shard.peek("ann"), shard.peek("bob")
    ([3], None)
    >>> shutil.rmtree(root)
    """

    def __init__(
        self,
        root: Path,
        name: str,
        *,
        encode: Callable[[S], bytes],
        decode: Callable[[bytes], S],
        new: Callable[[str], S],
        run_id: str,
        n_workers: int,
        hot_capacity: int = 50_000,
        owner: Path | None = None,
        retain: int = 0,
        block_cache_bytes: int = 32 << 20,
        write_buffer_bytes: int = 16 << 20,
        write_back_seconds: float | None = None,
        flush_seconds: float | None = None,
        clock: Callable[[], float] | None = None,
        on_checkpoint: Callable[[float, int], None] | None = None,
        fault: Callable[[str], None] | None = None,
    ) -> None:
        if hot_capacity < 1 or retain < 0 or n_workers < 1:
            raise ValueError("hot_capacity and n_workers must be >= 1, retain >= 0")
        if clock is None and (on_checkpoint is not None or write_back_seconds is not None):
            raise ValueError("on_checkpoint and write_back_seconds need a clock")
        if write_back_seconds is None and flush_seconds is not None:
            raise ValueError("flush_seconds needs write_back_seconds")
        self._encode, self._decode, self._new = encode, decode, new
        self._clock, self._on_checkpoint = clock, on_checkpoint
        self._write_back_s, self._write_back_due = write_back_seconds, 0.0
        self._flush_s, self._flush_due = flush_seconds, inf
        self._fault = fault or (lambda _: None)
        self._lineage = Lineage(
            root, name, run_id, n_workers, owner=owner, retain=retain, fault=self._fault
        )
        self._live = LiveDatabase(
            self._lineage, block_cache_bytes, write_buffer_bytes, fault=self._fault
        )
        self._db: Any = None  # opened by the first touch or read, when most shards are known

        self._shards: dict[str, Shard[S]] = {}
        self._names: dict[str, SnapshotRef] = {}  # what each shard's last snapshot said
        self._is_epoch_open = False  # touched since the last snapshot
        self._is_dirty = False  # the database differs from the newest checkpoint
        self._n_written = 0  # keys written since the newest checkpoint

        self._hot: dict[str, S] = {}  # by stored key, least recently written first
        self._n_deleted = 0  # keys deleted since they were last written back
        self._hot_capacity = hot_capacity

    def open_shard(self, shard: str, resume: SnapshotRef | None) -> "Shard[S]":
        """Take over `shard` as `resume` names it, or empty.

        Parameters
        ----------
        shard
            1 to 16 printable characters without "|".
        resume
            What Bytewax hands to the builder: a name from `Shard.snapshot`, or None.
        """
        if not 1 <= len(shard) <= 16 or "|" in shard or not shard.isprintable():
            raise ValueError(f"a shard is 1 to 16 printable characters without '|': {shard!r}")
        if shard in self._shards:
            raise ValueError(f"shard {shard!r} is open already")
        if resume is not None:
            if resume.shard != shard:
                raise ValueError(f"{resume} does not name shard {shard!r}")
            self._lineage.checkpoint(resume)  # raises now, not at the first touch
            self._names[shard] = resume
        opened = self._shards[shard] = Shard(self, shard)
        if self._db is not None:
            # A timer woke a shard while Bytewax was still loading others: were this one left
            # for later, the next checkpoint would name its state without holding it.
            self._adopt(shard)
        return opened

    def close(self) -> None:
        """Close the database. What no snapshot has named is lost, as in a crash."""
        self._hot.clear()
        self._db = None
        self._live.close()
        self._lineage.close()

    @property
    def n_hot(self) -> int:
        """Decoded states now in memory."""
        return len(self._hot)

    def _open(self) -> Any:
        if self._db is None:
            self._db = self._live.open(self._names.values())
            for shard in sorted(self._shards):
                self._adopt(shard)
        return self._db

    def _adopt(self, shard: str) -> None:
        if self._live.adopt(shard, self._names.get(shard)):
            self._is_dirty = self._is_epoch_open = True

    # Between snapshots.

    def _touch(self) -> None:
        self._open()
        self._is_epoch_open = True
        if len(self._hot) + self._n_deleted > _SLACK * self._hot_capacity:
            # Only here, where no logic holds a state it is still changing. The database may run
            # ahead of the epoch, for a resume never reads it.
            self._write_back()
            self._evict()
            self._fault("spilled")
        elif self._write_back_s is not None and self._clock is not None:
            now = self._clock()
            if now >= self._write_back_due:
                self._write_back_due = now + self._write_back_s
                self._write_back()
                self._evict()  # some at a time: the close would have an epoch's to free
                if now >= self._flush_due:
                    self._flush_due = inf
                    self._db.flush(wait=False)

    def _load(self, stored_key: str) -> S | None:
        stored = self._open().get(stored_key.encode())
        return None if stored is None else self._decode(stored)

    def _write_back(self) -> None:
        with self._lineage.owned():
            self._n_written += self._write(self._shards.values())
        for shard in self._shards.values():
            shard.touched.clear()
        self._n_deleted = 0

    def _write(self, shards: Iterable["Shard[S]"]) -> int:
        """Write what `shards` changed; touched keys stay so, as callers may hold on to them."""
        batch = WriteBatch(raw_mode=True)
        n_changed = sum(self._add_changes(shard, batch) for shard in shards)
        if n_changed:
            self._open().write(batch)
            self._is_dirty = True
        return n_changed

    def _add_changes(self, shard: "Shard[S]", batch: Any) -> int:
        n_changed = len(shard.touched) + len(shard.deleted)
        for key in shard.touched:
            state = self._hot.pop(key)
            self._hot[key] = state  # to the young end; evictions start at the other
            batch.put(key.encode(), self._encode(state))
        for key in shard.deleted:
            batch.delete(key.encode())
        shard.deleted.clear()
        return n_changed

    def _evict(self) -> None:
        # One pass from the old end. `pop(next(iter(d)))` one by one would walk over the holes of
        # all earlier pops each time: quadratic.
        for key in list(islice(self._hot, max(0, len(self._hot) - self._hot_capacity))):
            del self._hot[key]

    # The close of an epoch.

    def _snapshot(self, shard: str) -> SnapshotRef:
        if self._lineage.number == 0 and not self._is_epoch_open and shard in self._names:
            return self._names[shard]
        # Never a second close within one block: it would take this block's names for committed.
        if self._lineage.number == 0 or self._is_epoch_open:
            self._close_epoch()
        ref = self._names[shard] = SnapshotRef(shard, self._lineage.name, self._lineage.number)
        self._fault("named")
        return ref

    def _close_epoch(self) -> None:
        started = self._clock() if self._clock else 0.0
        self._open()
        self._write_back()
        self._fault("written")
        if self._is_dirty or self._lineage.number == 0:
            self._save()
        self._is_epoch_open = False
        self._lineage.commit_before(self._names)
        self._evict()
        now = self._clock() if self._clock else 0.0
        if self._flush_s is not None:
            self._flush_due = now + self._flush_s
        if self._on_checkpoint:
            self._on_checkpoint(now - started, self._n_written)
        self._n_written = 0

    def _save(self) -> None:
        with self._lineage.owned():
            self._live.save(self._shards)
        self._is_dirty = False


class Shard(Generic[S]):
    """One shard's keys, as one Bytewax logic sees them. Made by `StateStore.open_shard`.

    A state from `get` may be changed in place until the next `touch` or `snapshot` of any shard
    of the store; do not keep it longer. Keys are strings that UTF-8 can hold.
    """

    def __init__(self, store: StateStore[S], name: str) -> None:
        self.name = name
        self._prefix = f"{name}|"
        self._store = store
        self._hot = store._hot
        # Stored keys not yet written: `touched` are hot, `deleted` are not. The store reads them.
        self.touched: set[str] = set()
        self.deleted: set[str] = set()

    @property
    def is_settled(self) -> bool:
        """Whether this run has named the shard: if not, wake it once, so that old runs may go."""
        ref = self._store._names.get(self.name)
        return ref is None or ref.lineage == self._store._lineage.name

    def touch(self) -> None:
        """Say that this epoch may change the shard: the first line of every `on_*`."""
        self._store._touch()

    def get(self, key: str) -> S:
        """Return the state of `key` to be changed in place; create it if there is none."""
        stored_key = self._prefix + key
        state = self._peek(stored_key)
        if state is None:
            state = self._hot[stored_key] = self._store._new(key)
            self.deleted.discard(stored_key)
        self.touched.add(stored_key)
        self._store._is_epoch_open = True
        return state

    def peek(self, key: str) -> S | None:
        """Return the state of `key`, to be read only, or None. Changes to it may be lost."""
        return self._peek(self._prefix + key)

    def _peek(self, stored_key: str) -> S | None:
        state = self._hot.get(stored_key)
        if state is None and stored_key not in self.deleted:
            state = self._store._load(stored_key)
            if state is not None:
                self._hot[stored_key] = state
        return state

    def delete(self, key: str) -> None:
        """Forget `key`; a later `get` starts anew."""
        stored_key = self._prefix + key
        self._hot.pop(stored_key, None)
        self.touched.discard(stored_key)
        self.deleted.add(stored_key)
        self._store._n_deleted += 1
        self._store._is_epoch_open = True

    def scan(self) -> Iterator[tuple[str, S]]:
        """Yield all keys in order with their states, to be read only.

        Keys may be got or deleted on the way; new keys are not seen. O(keys of the shard), and
        states that were not hot do not become so.
        """
        decode = self._store._decode
        for key, value in self.scan_raw():
            stored_key = self._prefix + key
            if stored_key not in self.deleted:  # by the caller, on the way
                state = self._hot.get(stored_key)
                yield key, decode(value) if state is None else state

    def scan_raw(self) -> Iterator[tuple[str, bytes]]:
        """Yield all keys in order with their states as `encode` gave them."""
        self._store._write([self])  # one place to read from, and one order
        skip = len(self._prefix.encode())
        for stored_key, value in scan(self._store._open(), *key_range(self.name)):
            yield stored_key[skip:].decode(), value

    def snapshot(self) -> SnapshotRef:
        """Name the shard's state as of now; the first call after any `touch` saves all shards."""
        return self._store._snapshot(self.name)
