"""Steps: the thin adapters between Bytewax and the pure classes.

Owns    how a shard's state is opened, touched, snapshotted and resumed, and nothing else.

`ShardLogic` is the only stateful adapter. Bytewax calls it by shard; it opens the shard in the
worker's store, marks the store touched before anything can change, and hands on. A resumed shard
is woken once at the start, so that its snapshot names the new store soon, and the old one can be
removed. On the end of input nothing is fired: a stop is not the end of the users' sessions.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from threading import get_ident
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import bytewax.operators as op
from bytewax.dataflow import Stream
from bytewax.operators import KeyedStream, StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition

from operators.codec import SourceBatch
from operators.hops import ShardBatch
from operators.shards import SnapshotRef
from operators.state import Shard, StateStore

S = TypeVar("S")
"""The state of one key of a shard."""

_AT_ONCE: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Processor(Protocol):
    """A pure class that holds the keys of one shard."""

    def on_batch(self, values: Any, /) -> Iterable[Any]:
        """Take a list of values in order; return what follows from them."""
        ...


class Learner(Protocol):
    """What `LearnerLogic` asks of `operators.learning.LearnerShard`.

    Its library takes a second and a half to load, and `decide` has no use for it.
    """

    def on_batch(self, values: list[Any], /) -> None:
        """Learn in order."""
        ...

    def row(self) -> Any:
        """Return what is to be published."""
        ...

    def snapshot(self) -> Any:
        """Return the state, immutable."""
        ...


class PerWorker(Generic[S]):
    """One `StateStore` for each worker thread, made on first use.

    Bytewax closes the epoch worker by worker, so a store that two threads shared would be
    checkpointed in the middle of the other's epoch. Stores are kept by thread number and not in
    a `threading.local`: Bytewax's threads are not Python's, and lose theirs between two calls.
    """

    def __init__(self, make: Callable[[], StateStore[S]]) -> None:
        self._make = make
        self._stores: dict[int, StateStore[S]] = {}

    def open_shard(self, shard: str, resume: SnapshotRef | None) -> Shard[S]:
        """Open a shard in this thread's store."""
        thread = get_ident()
        store = self._stores.get(thread)
        if store is None:
            store = self._stores[thread] = self._make()
        return store.open_shard(shard, resume)


class ShardLogic(StatefulBatchLogic):
    """One shard of a keyed step: state in a store, work in a `Processor`."""

    def __init__(
        self,
        stores: PerWorker[Any],
        make: Callable[[str, Shard[Any]], Processor],
        shard_of: Callable[[Any], str],
        resume: SnapshotRef | None,
    ) -> None:
        self._stores, self._make, self._shard_of = stores, make, shard_of
        self._must_wake = resume is not None
        self._shard: Shard[Any] | None = None
        self._processor: Any = None
        if resume is not None:
            self._open(resume.shard, resume)

    def _open(self, shard: str, resume: SnapshotRef | None) -> Shard[Any]:
        self._shard = self._stores.open_shard(shard, resume)
        self._name = shard
        return self._shard

    def _ready(self, shard: Shard[Any]) -> Any:
        """Touch the store and return the processor; made only once all shards are adopted."""
        shard.touch()
        if self._processor is None:
            self._processor = self._make(self._name, shard)
        return self._processor

    def on_batch(self, values: list[Any]) -> tuple[Iterable[Any], bool]:
        """Touch the store, then let the processor work."""
        shard = self._shard or self._open(self._shard_of(values[0]), None)
        return self._ready(shard).on_batch(values), StatefulBatchLogic.RETAIN

    def on_notify(self) -> tuple[Iterable[Any], bool]:
        """Touch the store once after a resume."""
        self._must_wake = False
        if self._shard is not None:
            self._ready(self._shard)
        return (), StatefulBatchLogic.RETAIN

    def notify_at(self) -> datetime | None:
        """Ask to be woken at once after a resume."""
        return _AT_ONCE if self._must_wake else None

    def on_eof(self) -> tuple[Iterable[Any], bool]:
        """Keep everything: the input's end is a stop, and event time stands still."""
        return (), StatefulBatchLogic.RETAIN

    def snapshot(self) -> SnapshotRef:
        """Name the checkpoint of this epoch."""
        if self._shard is None:
            raise RuntimeError("a shard was snapshotted before its first batch")
        return self._shard.snapshot()


class Publishing(NamedTuple):
    """How often a step tells what has changed: at most `every` after the first change.

    `now` is the wall clock; it decides when something is told, never what.
    """

    every: timedelta
    now: Callable[[], datetime]


class PublishingShardLogic(ShardLogic):
    """A shard whose processor gathers changes, and gives them out on a timer by `publish`.

    What was gathered and not given out before a crash is not known after it, so a resumed shard
    gives out all it holds (`mark_all`).
    """

    def __init__(self, publishing: Publishing, *logic: Any) -> None:
        super().__init__(*logic)
        self._publishing = publishing
        self._due: datetime | None = None

    def on_batch(self, values: list[Any]) -> tuple[Iterable[Any], bool]:
        """Let the processor gather; set the timer."""
        out = super().on_batch(values)
        if self._due is None:
            self._due = self._publishing.now() + self._publishing.every
        return out

    def on_notify(self) -> tuple[Iterable[Any], bool]:
        """Give out what has changed."""
        is_resumed = self._must_wake
        super().on_notify()
        if is_resumed and self._processor is not None:
            self._processor.mark_all()
        return self._published(), StatefulBatchLogic.RETAIN

    def _published(self) -> Iterable[Any]:
        self._due = None
        return self._processor.publish() if self._processor is not None else ()

    def notify_at(self) -> datetime | None:
        """Ask to be woken when something is to be told."""
        return super().notify_at() or self._due

    def on_eof(self) -> tuple[Iterable[Any], bool]:
        """Give out what is left."""
        return self._published(), StatefulBatchLogic.RETAIN


class SelfTimed(Protocol):
    """A `Processor` that knows when it wants to be called."""

    @property
    def due_ms(self) -> int | None:
        """Wall clock, ms since 1970; None: not before the next batch."""
        ...

    def on_batch(self, values: Any, /) -> Iterable[Any]:
        """Take a list of values in order; return what follows from them."""
        ...

    def on_timer(self) -> Iterable[Any]:
        """Return what is due; also called at a resume and at the end of input."""
        ...


class SelfTimedShardLogic(ShardLogic):
    """A shard whose processor says when `on_timer` is due."""

    def on_notify(self) -> tuple[Iterable[Any], bool]:
        """Let the processor do what is due."""
        super().on_notify()
        return self._timer(), StatefulBatchLogic.RETAIN

    def _timer(self) -> Iterable[Any]:
        return () if self._shard is None else self._ready(self._shard).on_timer()

    def notify_at(self) -> datetime | None:
        """Ask to be woken when the processor wants it."""
        due_ms = self._processor.due_ms if self._processor is not None else None
        return super().notify_at() or (
            None if due_ms is None else datetime.fromtimestamp(due_ms / 1_000, UTC)
        )

    def on_eof(self) -> tuple[Iterable[Any], bool]:
        """Let the processor give out what is left."""
        return self._timer(), StatefulBatchLogic.RETAIN


class LearnerLogic(StatefulBatchLogic):
    """One learner shard; its state is small, and is its own snapshot."""

    def __init__(
        self, publishing: Publishing, make: Callable[[Any], Learner], resume: Any | None
    ) -> None:
        self._learner = make(resume)
        self._publishing = publishing
        self._due = _AT_ONCE if resume else None

    def on_batch(self, values: list[Any]) -> tuple[Iterable[Any], bool]:
        """Learn; set the timer."""
        self._learner.on_batch(values)
        if self._due is None:
            self._due = self._publishing.now() + self._publishing.every
        return (), StatefulBatchLogic.RETAIN

    def on_notify(self) -> tuple[Iterable[Any], bool]:
        """Publish the statistics."""
        self._due = None
        return (self._learner.row(),), StatefulBatchLogic.RETAIN

    def notify_at(self) -> datetime | None:
        """Ask to be woken when the statistics are to be published."""
        return self._due

    def on_eof(self) -> tuple[Iterable[Any], bool]:
        """Publish what is left."""
        due, self._due = self._due, None
        return (self._learner.row(),) if due else (), StatefulBatchLogic.RETAIN

    def snapshot(self) -> Any:
        """Return the learner's bytes."""
        return self._learner.snapshot()


def keyed(
    step_id: str,
    up: KeyedStream,
    stores: PerWorker[S],
    make: Callable[[str, Shard[S]], Processor],
    shard_of: Callable[[Any], str],
    *,
    publishing: Publishing | None = None,
) -> KeyedStream:
    """Add a keyed step whose state lives in `stores`. `step_id` is its recovery key."""

    def build(resume: SnapshotRef | None) -> ShardLogic:
        if publishing is None:
            return ShardLogic(stores, make, shard_of, resume)
        return PublishingShardLogic(publishing, stores, make, shard_of, resume)

    return op.stateful_batch(step_id, up, build)


def self_timed(
    step_id: str,
    up: KeyedStream,
    stores: PerWorker[S],
    make: Callable[[str, Shard[S]], SelfTimed],
    shard_of: Callable[[Any], str],
) -> KeyedStream:
    """Add a step as `keyed` does, of processors that have times of their own."""
    return op.stateful_batch(
        step_id, up, lambda resume: SelfTimedShardLogic(stores, make, shard_of, resume)
    )


def learner(
    step_id: str, up: KeyedStream, make: Callable[[Any], Learner], publishing: Publishing
) -> KeyedStream:
    """Add the step that learns rewards, keyed by learner shard."""
    return op.stateful_batch(step_id, up, lambda resume: LearnerLogic(publishing, make, resume))


def by_shard(step_id: str, up: Stream) -> KeyedStream:
    """Turn polls into a keyed stream of `ShardBatch`."""

    def split(polls: list[SourceBatch]) -> list[tuple[str, ShardBatch]]:
        return [(batch.shard, batch) for poll in polls for batch in poll.shards]

    return op.flat_map_batch(step_id, up, split)


class _CallPartition(StatelessSinkPartition):
    def __init__(self, write: Callable[[list[Any]], None], close: Callable[[], None]) -> None:
        self._write, self._close = write, close

    def write_batch(self, items: list[Any]) -> None:
        self._write(items)

    def close(self) -> None:
        self._close()


class CallSink(DynamicSink):
    """Hands whole batches to a function, for sinks that may lose or repeat (Redis)."""

    def __init__(
        self, write: Callable[[list[Any]], None], close: Callable[[], None] = lambda: None
    ) -> None:
        self._write, self._close = write, close

    def build(self, _step_id: str, _worker_index: int, _worker_count: int) -> _CallPartition:
        """Return a partition that calls the function on this worker."""
        return _CallPartition(self._write, self._close)
