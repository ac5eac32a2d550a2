"""Redis: every user's features and latest decisions, for other services to read.

Reads   feature rows and decisions as the flow makes them.
Emits   the keys below.
Owns    the layout, in Redis and in the memory store that stands in for it.

The layout is a contract with other teams (prefix `pushflow:` unless set otherwise):

pushflow:features:{user_id}
    A string, JSON: `time_ms` (event time), `spec` (hash of the feature specification), and each
    name of `models.features.CONTEXT` with its raw value.
pushflow:decisions:{user_id}
    A list: the JSON of the latest 10 decisions, newest first.

Both end by themselves `ttl_seconds` after the last write. Nothing in the flow reads them back, so
a lost row costs freshness and never a decision. That is why the flow goes on while Redis is away:
see `operators.buffered_store`. Writing a row or a decision again changes nothing, so a replay may.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import msgspec
import orjson
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from models.features import CONTEXT, spec_hash
from operators.hops import FeatureRow
from operators.metrics import FALLBACKS

DecisionRow = tuple[str, str, bytes, int]  # user_id, decision_id, JSON, time_ms

KEEP_DECISIONS: Final = 10  # a user's
# Rows in one script: Redis serves nobody else while it runs one, here for about 0.3 ms.
_A_SCRIPT: Final = 100
_PUT_FEATURES: Final = """
for i = 1, #KEYS do
  redis.call('SET', KEYS[i], ARGV[i + 1], 'EX', ARGV[1])
end
"""
# LREM first: a replay puts a decision in again, and once is enough. It also finds out whether the
# key is ours: the number returned is of keys that hold another type.
_PUT_DECISIONS: Final = """
local foreign = 0
for i = 1, #KEYS do
  local key, value = KEYS[i], ARGV[i + 2]
  local removed = redis.pcall('LREM', key, 0, value)
  if type(removed) == 'number' then
    redis.call('LPUSH', key, value)
    redis.call('LTRIM', key, 0, ARGV[2] - 1)
    redis.call('EXPIRE', key, ARGV[1])
  elseif string.find(removed.err, 'WRONGTYPE', 1, true) then
    foreign = foreign + 1
  else
    return removed
  end
end
return foreign
"""
_redis_failures = FALLBACKS.labels("redis")
# A quarter of the time that orjson takes for a dictionary: the thread that writes keeps the flow's
# own waiting for as long, once in `flush_ms`.
_Features: Final = msgspec.defstruct(
    "_Features", [("time_ms", int), ("spec", str), *((name, float) for name in CONTEXT)]
)
_ENCODER: Final = msgspec.json.Encoder()


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
    return _ENCODER.encode(_Features(row.time_ms, spec, *row.context))


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


def _drop_oldest(entries: "OrderedDict[str, Any]", most: int) -> None:
    # OrderedDict: taking the first of a plain dict again and again is quadratic.
    while len(entries) > most:
        entries.popitem(last=False)


# Redis --------------------------------------------------------------------------------------


def connector(url: str, timeout_seconds: float = 2.0) -> "Callable[[], redis.Redis]":
    """Return what `RedisStore` takes: a function that makes a client, which connects when used.

    One retry at once mends a connection that the server closed while idle; waiting longer is up
    to `operators.buffered_store`.
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
    A script for each 100 rows, which Redis must allow us (EVALSHA, SCRIPT LOAD): 8 us a row of one
    core with the encoding (slow machine) and 9 us a decision of 8 KB, where a pipeline of commands
    took 15 and 41; the flow's own thread waits for what this one uses. A decision that meets a key
    of another type is left out and counted, for to try again would not help. One Redis or one with
    replicas, no cluster: the keys of a script lie in many slots.
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
        self._scripts: dict[str, Any] = {}  # by their text

    def features_key(self, user_id: str) -> str:
        """Return the key of a user's features."""
        return f"{self._prefix}features:{user_id}"

    def decisions_key(self, user_id: str) -> str:
        """Return the key of a user's latest decisions."""
        return f"{self._prefix}decisions:{user_id}"

    def put_features(self, rows: Sequence[FeatureRow]) -> None:
        """Keep each user's row in place of an older one."""
        for start in range(0, len(rows), _A_SCRIPT):
            part = rows[start : start + _A_SCRIPT]
            keys = [self.features_key(row.user_id) for row in part]
            values = [encode_features(row, self._spec) for row in part]
            self._run(_PUT_FEATURES, keys, [self._ttl_seconds, *values])

    def put_decisions(self, rows: Sequence[DecisionRow]) -> None:
        """Put each decision before the user's older ones."""
        for start in range(0, len(rows), _A_SCRIPT):
            part = rows[start : start + _A_SCRIPT]
            keys = [self.decisions_key(user_id) for user_id, _, _, _ in part]
            values = [payload for _, _, payload, _ in part]
            foreign = self._run(_PUT_DECISIONS, keys, [self._ttl_seconds, KEEP_DECISIONS, *values])
            _redis_failures.inc(foreign)

    def get_features(self, user_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return each user's features, None for one unknown."""
        if not user_ids:
            return []
        found = self._execute("MGET", *map(self.features_key, user_ids))
        return [_loads(payload) for payload in found]

    def latest_decisions(self, user_id: str, n: int) -> list[dict[str, Any]]:
        """Return the latest n decisions of a user, newest first."""
        if n <= 0:
            return []
        found = self._execute("LRANGE", self.decisions_key(user_id), 0, n - 1)
        return [orjson.loads(payload) for payload in found]

    def forget(self, user_id: str) -> None:
        """Remove all that is kept of a user."""
        self._execute("DEL", self.features_key(user_id), self.decisions_key(user_id))

    def ping(self) -> None:
        """Raise StoreUnavailableError unless Redis answers."""
        self._execute("PING")

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def _connected(self) -> "redis.Redis":
        if self._client is None:
            self._client = self._connect()
        return self._client

    def _execute(self, *command: str | int) -> Any:
        with _outages():
            return self._connected().execute_command(*command)  # type: ignore[no-untyped-call]

    def _run(self, text: str, keys: list[str], arguments: list[Any]) -> Any:
        """Run a script; Redis knows it by its hash from the first time on."""
        with _outages():
            script = self._scripts.get(text)
            if script is None:
                script = self._scripts[text] = self._connected().register_script(text)
            return script(keys, arguments)


@contextmanager
def _outages() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise StoreUnavailableError(str(error)) from error
