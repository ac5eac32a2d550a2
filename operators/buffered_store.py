"""The writer: a store of features whose writes return at once, and wait out an outage.

Reads   feature rows, decisions and erasures from the flow's thread.
Emits   the same to another store, from a thread of its own, and counts in `operators.metrics`.
Owns    that thread, and what happens while the store is away.

The flow must not wait for Redis. So it puts rows into dictionaries here and goes on; the newest
row of each user is kept while the store is away, and the writer catches up. What is written twice
after a failure does no harm, for a store takes the same row again without a change.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from operators.feature_store import DecisionRow, FeatureStore, StoreUnavailableError
from operators.hops import FeatureRow
from operators.metrics import FALLBACKS, REDIS_DROPPED, REDIS_PENDING

# Rows taken at once: 100 take 1 to 3 ms of one core to encode and send, which the flow's thread
# waits for in part. So there is a pause behind them, and the rows of one flush are spread over
# half of the time until the next: written in one go, 600 delayed decisions by up to 60 ms.
_CHUNK: Final = 100
_SPREAD: Final = 0.5
_MAX_PAUSE_S: Final = 5.0  # between two tries while Redis is away
_ROWS_A_DECISION: Final = 4  # a decision is some 8 KB, a row 2
_redis_failures = FALLBACKS.labels("redis")


class _Chunk(NamedTuple):
    """What one round writes, in this order."""

    forgotten: list[str]
    features: list[FeatureRow]
    decisions: list[DecisionRow]

    @property
    def n_keys(self) -> int:
        return len(self.forgotten) + len(self.features) + len(self.decisions)

    @property
    def n_rows(self) -> int:
        return self.n_keys + (_ROWS_A_DECISION - 1) * len(self.decisions)


class BufferedStore:
    """A store whose writes return at once; a thread of its own carries them out.

    Parameters
    ----------
    store
        Where to. Reads go straight to it, and do not see what still waits.
    flush_ms
        Rows of one user within this time become one write.
    max_pending, max_pending_decisions
        Users whose row waits, and decisions that wait, while the store is away. Beyond, the
        oldest are dropped and counted. A row takes about 2 KB, a decision about 8 KB.
    clock
        Seconds that never go back: `time.monotonic`.
    on_error
        Called with each failure, in the writer's thread: to log it.

    Raises
    ------
    Exception
        From `put_*` and `forget`, what stopped the writer, if that was a bug. An unavailable
        store never raises here: it is counted (FALLBACKS, "redis"), and tried again after
        `flush_ms`, then twice as long, and so on up to 5 s.

    Notes
    -----
    A put costs less than 1 us a row: a dictionary entry under a lock, which the writer holds for
    as long as it takes to move 100 entries. Erasures are kept like rows: at most `max_pending`.

    Examples
    --------
    >>> import time
    >>> from models.features import CONTEXT
    >>> from operators.feature_store import MemoryStore
    >>> store = MemoryStore()
    >>> buffered = BufferedStore(store, flush_ms=1, clock=time.monotonic)
    >>> buffered.put_features([FeatureRow("u1", t, [float(t)] * len(CONTEXT)) for t in (5, 6)])
    >>> buffered.flush(timeout_seconds=10)
    True
    >>> [row and row["time_ms"] for row in buffered.get_features(["u1"])]
    [6]
    >>> buffered.close(timeout_seconds=10)
    True
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        clock: Callable[[], float],
        flush_ms: int = 50,
        max_pending: int = 200_000,
        max_pending_decisions: int = 10_000,
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        self._store = store
        self._flush_s = flush_ms / 1_000
        self._max_pending = max_pending
        self._max_decisions = max_pending_decisions
        self._clock = clock
        self._on_error = on_error
        self._features: OrderedDict[str, FeatureRow] = OrderedDict()  # by user_id
        self._decisions: OrderedDict[str, DecisionRow] = OrderedDict()  # by decision_id
        self._forgotten: OrderedDict[str, None] = OrderedDict()  # user_ids
        self._in_flight: _Chunk | None = None  # taken, not known to be written
        self._n_waiting = 0  # for the end of all that is to be written
        self._lock = threading.Lock()  # of the five above
        self._written = threading.Condition(self._lock)
        self._wake = threading.Event()
        self._closes_at: float | None = None
        self._bug: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="feature-store", daemon=True)
        self._thread.start()

    @property
    def n_pending(self) -> int:
        """Users' rows, decisions and erasures that are not yet written."""
        with self._lock:
            return self._n_pending()

    def _n_pending(self) -> int:
        in_flight = self._in_flight.n_keys if self._in_flight else 0
        return len(self._features) + len(self._decisions) + len(self._forgotten) + in_flight

    def put_features(self, rows: Sequence[FeatureRow]) -> None:
        """Have each user's row written in place of an older one."""
        self._raise_bug()
        with self._lock:
            features = self._features
            for row in rows:
                features[row.user_id] = row
            _drop_oldest(features, self._max_pending)

    def put_decisions(self, rows: Sequence[DecisionRow]) -> None:
        """Have each decision put before the user's older ones."""
        self._raise_bug()
        with self._lock:
            for row in rows:
                self._decisions[row[1]] = row
            _drop_oldest(self._decisions, self._max_decisions)

    def forget(self, user_id: str) -> None:
        """Have all of a user removed, and drop what waits to be written of them."""
        self._raise_bug()
        with self._lock:
            self._features.pop(user_id, None)
            waiting = [id_ for id_, row in self._decisions.items() if row[0] == user_id]
            for decision_id in waiting:
                del self._decisions[decision_id]
            self._forgotten[user_id] = None
            _drop_oldest(self._forgotten, self._max_pending)

    def get_features(self, user_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return each user's features as they are in the store."""
        return self._store.get_features(user_ids)

    def latest_decisions(self, user_id: str, n: int) -> list[dict[str, Any]]:
        """Return the latest n decisions of a user as they are in the store."""
        return self._store.latest_decisions(user_id, n)

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until nothing is left to write; False if the time is up first."""
        with self._written:
            self._n_waiting += 1
            self._wake.set()
            done = self._written.wait_for(
                lambda: self._bug is not None or not self._n_pending(), timeout_seconds
            )
            self._n_waiting -= 1
        self._raise_bug()
        return done

    def close(self, timeout_seconds: float) -> bool:
        """Write what is left for at most so long, and end the thread; False if some was lost."""
        self._closes_at = self._clock() + timeout_seconds
        self._wake.set()
        self._thread.join(timeout_seconds)
        self._raise_bug()
        return not self.n_pending

    def _raise_bug(self) -> None:
        if self._bug is not None:
            raise self._bug

    # The writer's thread alone runs what follows.

    def _run(self) -> None:
        try:
            failures = 0
            while not self._is_over():
                self._wake.wait(self._pause_s(failures))
                self._wake.clear()
                failures = 0 if self._drain() else failures + 1
        except Exception as error:  # a bug: the flow's thread raises it, and stops the flow
            self._bug = error
            with self._written:
                self._written.notify_all()

    def _is_over(self) -> bool:
        closes_at = self._closes_at
        return closes_at is not None and (not self.n_pending or self._clock() >= closes_at)

    def _pause_s(self, failures: int) -> float:
        # min: two to the power of many failures is no float.
        pause_s = min(self._flush_s * 2.0 ** min(failures, 30), max(_MAX_PAUSE_S, self._flush_s))
        closes_at = self._closes_at
        if closes_at is None:
            return pause_s
        # Once closing: at once, or soon after a failure.
        return max(min(pause_s, closes_at - self._clock()), 0.0) if failures else 0.0

    def _drain(self) -> bool:
        """Write chunk after chunk until one is not full; False if the store is away.

        With a pause between two, the shorter the more there is to write.
        """
        is_full = True
        while is_full and (chunk := self._in_flight or self._take()):
            is_full = chunk.n_rows > _CHUNK - _ROWS_A_DECISION
            try:
                self._write(chunk)
            except StoreUnavailableError as error:
                _redis_failures.inc()
                if self._on_error is not None:
                    self._on_error(error)
                REDIS_PENDING.set(self.n_pending)
                return False
            with self._written:
                self._in_flight = None
                self._written.notify_all()
            if is_full and not self._n_waiting:
                # Ends at once where somebody begins to wait, or closes.
                self._wake.wait(self._flush_s * _SPREAD * _CHUNK / max(self.n_pending, _CHUNK))
        REDIS_PENDING.set(self.n_pending)
        return True

    def _take(self) -> _Chunk | None:
        with self._lock:
            forgotten = [user_id for user_id, _ in _pop_oldest(self._forgotten, _CHUNK)]
            # A row that came after an erasure must not be written before it.
            room = 0 if self._forgotten else _CHUNK - len(forgotten)
            # Decisions have half of the room to themselves: a backlog of features, which are soon
            # made anew, must not keep them waiting until a crash takes them.
            decisions = _pop_oldest(self._decisions, room // 2 // _ROWS_A_DECISION)
            features = _pop_oldest(self._features, room - _ROWS_A_DECISION * len(decisions))
            room -= len(features) + _ROWS_A_DECISION * len(decisions)
            decisions += _pop_oldest(self._decisions, room // _ROWS_A_DECISION)
            chunk = _Chunk(forgotten, [row for _, row in features], [row for _, row in decisions])
            self._in_flight = chunk if chunk.n_keys else None
            return self._in_flight

    def _write(self, chunk: _Chunk) -> None:
        for user_id in chunk.forgotten:
            self._store.forget(user_id)
        if chunk.features:
            self._store.put_features(chunk.features)
        if chunk.decisions:
            self._store.put_decisions(chunk.decisions)


def _drop_oldest(entries: "OrderedDict[str, Any]", most: int) -> None:
    """Drop and count what is over the bound."""
    if dropped := _pop_oldest(entries, len(entries) - most):
        REDIS_DROPPED.inc(len(dropped))


def _pop_oldest(entries: "OrderedDict[str, Any]", most: int) -> list[tuple[str, Any]]:
    # OrderedDict: taking the first of a plain dict again and again is quadratic.
    return [entries.popitem(last=False) for _ in range(min(most, len(entries)))]
