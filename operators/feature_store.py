"""Redis: every user's features and latest decisions, for other services to read.

Reads   feature rows and decisions as the flow makes them.
Emits   the keys below, and counts in `operators.metrics`.
Owns    the layout, the writer thread, and what happens while Redis is away.

The layout is a contract with other teams (prefix `pushflow:` unless set otherwise):

pushflow:features:{user_id}
    A string, JSON: `time_ms` (event time), `spec` (hash of the feature specification), and each
    name of `models.features.CONTEXT` with its raw value.
pushflow:decisions:{user_id}
    A list: the JSON of the latest 10 decisions, newest first.

Both end by themselves `ttl_seconds` after the last write. Nothing in the flow reads them back, so
a lost row costs freshness and never a decision. That is why the flow hands rows to a writer
thread and goes on: `BufferedStore` keeps the newest row a user while Redis is away, and catches
up. Writing a row or a decision again changes nothing, so a replay may.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import orjson
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from models.features import CONTEXT, spec_hash
from operators.hops import FeatureRow
from operators.metrics import FALLBACKS, REDIS_DROPPED, REDIS_PENDING

DecisionRow = tuple[str, str, bytes, int]  # user_id, decision_id, JSON, time_ms

KEEP_DECISIONS: Final = 10  # a user's
# Commands a pipeline. 500 take about 5 ms of one core to encode and send, which is as long as
# Python lets the writer keep the flow's thread waiting.
_CHUNK: Final = 500
_MAX_PAUSE_S: Final = 5.0  # between two tries while Redis is away
_COMMANDS_A_DECISION: Final = 4
_redis_failures = FALLBACKS.labels("redis")


class StoreUnavailableError(Exception):
    """The store did not take the write, or did not answer; the same call may work later."""


class FeatureStore(Protocol):
    """What a store of features does; `tests/contracts/store.py` holds each one to it.

    Every method may raise `StoreUnavailableError`. To put again what was put before, in the same
    order, changes nothing.
    """

    def put_features(self, rows: Sequence[FeatureRow]) -> None:
        """Keep each user's row in place of an older one."""
        ...

    def put_decisions(self, rows: Sequence[DecisionRow]) -> None:
        """Put each decision before the user's older ones; the last `KEEP_DECISIONS` stay."""
        ...

    def get_features(self, user_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return `time_ms`, `spec` and the named values of each user, None for one unknown."""
        ...

    def latest_decisions(self, user_id: str, n: int) -> list[dict[str, Any]]:
        """Return the latest n decisions of a user as they are on the topic, newest first."""
        ...

    def forget(self, user_id: str) -> None:
        """Remove all that is kept of a user."""
        ...


def encode_features(row: FeatureRow, spec: str) -> bytes:
    """Return the JSON of one user's features; not-a-number becomes null.

    >>> row = FeatureRow("u1", 5, [1.5] * len(CONTEXT))
    >>> encode_features(row, "abc")[:50]
    b'{"time_ms":5,"spec":"abc","session_events":1.5,"se'
    """
    named = dict(zip(CONTEXT, row.context, strict=True))
    return orjson.dumps({"time_ms": row.time_ms, "spec": spec, **named})


class MemoryStore:
    """The store in this process: for tests, and for flows without Redis.

    Parameters
    ----------
    max_users
        Users kept; the one written least recently goes first.

    Examples
    --------
    >>> store = MemoryStore()
    >>> store.put_features([FeatureRow("u1", 5, [1.5] * len(CONTEXT))])
    >>> [row and row["session_events"] for row in store.get_features(["u1", "u2"])]
    [1.5, None]
    >>> store.put_decisions([("u1", "d1", b'{"decision_id": "d1"}', 5)])
    >>> store.latest_decisions("u1", 3)
    [{'decision_id': 'd1'}]
    >>> store.forget("u1")
    >>> store.get_features(["u1"]), store.latest_decisions("u1", 3)
    ([None], [])
    """

    def __init__(self, max_users: int = 100_000) -> None:
        self._max_users = max_users
        self._spec = spec_hash()
        self._features: OrderedDict[str, bytes] = OrderedDict()
        self._decisions: OrderedDict[str, list[bytes]] = OrderedDict()

    def put_features(self, rows: Sequence[FeatureRow]) -> None:
        """Keep each user's row in place of an older one."""
        for row in rows:
            self._features[row.user_id] = encode_features(row, self._spec)
            self._features.move_to_end(row.user_id)
        _drop_oldest(self._features, self._max_users)

    def put_decisions(self, rows: Sequence[DecisionRow]) -> None:
        """Put each decision before the user's older ones."""
        for user_id, _, payload, _ in rows:
            older = [one for one in self._decisions.get(user_id, []) if one != payload]
            self._decisions[user_id] = [payload, *older][:KEEP_DECISIONS]
            self._decisions.move_to_end(user_id)
        _drop_oldest(self._decisions, self._max_users)

    def get_features(self, user_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return each user's features, None for one unknown."""
        return [_loads(self._features.get(user_id)) for user_id in user_ids]

    def latest_decisions(self, user_id: str, n: int) -> list[dict[str, Any]]:
        """Return the latest n decisions of a user, newest first."""
        return [orjson.loads(payload) for payload in self._decisions.get(user_id, [])[: max(n, 0)]]

    def forget(self, user_id: str) -> None:
        """Remove all that is kept of a user."""
        self._features.pop(user_id, None)
        self._decisions.pop(user_id, None)


def _loads(payload: bytes | None) -> dict[str, Any] | None:
    return None if payload is None else orjson.loads(payload)


def _drop_oldest(entries: "OrderedDict[str, Any]", most: int) -> int:
    # OrderedDict: taking the first of a plain dict again and again is quadratic.
    dropped = max(len(entries) - most, 0)
    for _ in range(dropped):
        entries.popitem(last=False)
    return dropped


# Redis --------------------------------------------------------------------------------------


def connector(url: str, timeout_seconds: float = 2.0) -> "Callable[[], redis.Redis]":
    """Return what `RedisStore` takes: a function that makes a client, which connects when used.

    One retry at once mends a connection that the server closed while idle; waiting longer is up
    to `BufferedStore`.
    """

    def connect() -> redis.Redis:
        return redis.Redis.from_url(
            url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 1),
        )

    return connect


class RedisStore:
    """The store in Redis, by the layout above.

    Parameters
    ----------
    connect
        Makes a client with timeouts, from `connector`. Called on the first use.
    prefix
        Of every key.
    ttl_seconds
        How long a key stays after its last write, > 0.

    Raises
    ------
    StoreUnavailableError
        From every method, when Redis is away, starting, full, read-only or refuses us.

    Notes
    -----
    One pipeline a call, not a transaction: 14 us a row of one core with the encoding. A decision
    that meets a key of another type is left out and counted, for to try again would not help.
    One Redis or one with replicas; on a cluster `get_features` needs its users in one slot.
    """

    def __init__(
        self,
        connect: "Callable[[], redis.Redis]",
        *,
        prefix: str = "pushflow:",
        ttl_seconds: int = 7 * 86_400,
    ) -> None:
        if ttl_seconds <= 0:
            raise ValueError(f"ttl_seconds must be positive, got {ttl_seconds}")
        self._connect = connect
        self._prefix = prefix
        self._ttl_seconds = ttl_seconds
        self._spec = spec_hash()
        self._client: redis.Redis | None = None

    def features_key(self, user_id: str) -> str:
        """Return the key of a user's features."""
        return f"{self._prefix}features:{user_id}"

    def decisions_key(self, user_id: str) -> str:
        """Return the key of a user's latest decisions."""
        return f"{self._prefix}decisions:{user_id}"

    def put_features(self, rows: Sequence[FeatureRow]) -> None:
        """Keep each user's row in place of an older one."""
        self._execute(
            (
                "SET",
                self.features_key(row.user_id),
                encode_features(row, self._spec),
                "EX",
                self._ttl_seconds,
            )
            for row in rows
        )

    def put_decisions(self, rows: Sequence[DecisionRow]) -> None:
        """Put each decision before the user's older ones."""
        self._execute(
            command
            for user_id, _, payload, _ in rows
            for key in (self.decisions_key(user_id),)
            for command in (
                ("LREM", key, 0, payload),  # a replay puts it in again: once is enough
                ("LPUSH", key, payload),
                ("LTRIM", key, 0, KEEP_DECISIONS - 1),
                ("EXPIRE", key, self._ttl_seconds),
            )
        )

    def get_features(self, user_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return each user's features, None for one unknown."""
        if not user_ids:
            return []
        found = self._execute([("MGET", *map(self.features_key, user_ids))])[0]
        return [_loads(payload) for payload in found]

    def latest_decisions(self, user_id: str, n: int) -> list[dict[str, Any]]:
        """Return the latest n decisions of a user, newest first."""
        if n <= 0:
            return []
        found = self._execute([("LRANGE", self.decisions_key(user_id), 0, n - 1)])[0]
        return [orjson.loads(payload) for payload in found]

    def forget(self, user_id: str) -> None:
        """Remove all that is kept of a user."""
        self._execute([("DEL", self.features_key(user_id), self.decisions_key(user_id))])

    def ping(self) -> None:
        """Raise StoreUnavailableError unless Redis answers."""
        self._execute([("PING",)])

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def _execute(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Send the commands in one pipeline; return the replies."""
        if self._client is None:
            self._client = self._connect()
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]  # a third faster than .set
        try:
            replies: list[Any] = pipeline.execute(raise_on_error=False)
        except (redis.RedisError, OSError) as error:
            raise StoreUnavailableError(str(error)) from error
        for reply in replies:
            if isinstance(reply, Exception):
                if not str(reply).startswith("WRONGTYPE"):
                    raise StoreUnavailableError(str(reply)) from reply
                _redis_failures.inc()
        return replies


# The writer ---------------------------------------------------------------------------------


class _Chunk(NamedTuple):
    """What one round writes, in this order."""

    forgotten: list[str]
    features: list[FeatureRow]
    decisions: list[DecisionRow]

    @property
    def n_keys(self) -> int:
        return len(self.forgotten) + len(self.features) + len(self.decisions)

    @property
    def n_commands(self) -> int:
        return self.n_keys + (_COMMANDS_A_DECISION - 1) * len(self.decisions)


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
    as long as it takes to move 500 entries. Erasures are kept like rows: at most `max_pending`.

    Examples
    --------
    >>> import time
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
        self._lock = threading.Lock()  # of the four above
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
            dropped = _drop_oldest(features, self._max_pending)
        if dropped:
            REDIS_DROPPED.inc(dropped)

    def put_decisions(self, rows: Sequence[DecisionRow]) -> None:
        """Have each decision put before the user's older ones."""
        self._raise_bug()
        with self._lock:
            for row in rows:
                self._decisions[row[1]] = row
            dropped = _drop_oldest(self._decisions, self._max_decisions)
        if dropped:
            REDIS_DROPPED.inc(dropped)

    def forget(self, user_id: str) -> None:
        """Have all of a user removed, and drop what waits to be written of them."""
        self._raise_bug()
        with self._lock:
            self._features.pop(user_id, None)
            waiting = [id_ for id_, row in self._decisions.items() if row[0] == user_id]
            for decision_id in waiting:
                del self._decisions[decision_id]
            self._forgotten[user_id] = None
            dropped = _drop_oldest(self._forgotten, self._max_pending)
        if dropped:
            REDIS_DROPPED.inc(dropped)

    def get_features(self, user_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return each user's features as they are in the store."""
        return self._store.get_features(user_ids)

    def latest_decisions(self, user_id: str, n: int) -> list[dict[str, Any]]:
        """Return the latest n decisions of a user as they are in the store."""
        return self._store.latest_decisions(user_id, n)

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until nothing is left to write; False if the time is up first."""
        self._wake.set()
        with self._written:
            done = self._written.wait_for(
                lambda: self._bug is not None or not self._n_pending(), timeout_seconds
            )
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
        """Write chunk after chunk until one is not full; False if the store is away."""
        is_full = True
        while is_full and (chunk := self._in_flight or self._take()):
            is_full = chunk.n_commands > _CHUNK - _COMMANDS_A_DECISION
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
        REDIS_PENDING.set(self.n_pending)
        return True

    def _take(self) -> _Chunk | None:
        with self._lock:
            forgotten = [user_id for user_id, _ in _pop_oldest(self._forgotten, _CHUNK)]
            # A row that came after an erasure must not be written before it.
            room = 0 if self._forgotten else _CHUNK - len(forgotten)
            features = [row for _, row in _pop_oldest(self._features, room)]
            room = (room - len(features)) // _COMMANDS_A_DECISION
            decisions = [row for _, row in _pop_oldest(self._decisions, room)]
            chunk = _Chunk(forgotten, features, decisions)
            self._in_flight = chunk if chunk.n_keys else None
            return self._in_flight

    def _write(self, chunk: _Chunk) -> None:
        for user_id in chunk.forgotten:
            self._store.forget(user_id)
        if chunk.features:
            self._store.put_features(chunk.features)
        if chunk.decisions:
            self._store.put_decisions(chunk.decisions)


def _pop_oldest(entries: "OrderedDict[str, Any]", most: int) -> list[tuple[str, Any]]:
    return [entries.popitem(last=False) for _ in range(min(most, len(entries)))]
