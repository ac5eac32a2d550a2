"""Bytes to structs and back, a whole batch at a time; bad bytes become dead letters.

Reads   raw messages of one source partition, of several topics that are partitioned alike.
Emits   `SourceBatch`: entries by shard, each with the partition's watermark, and dead letters.
Owns    what makes a message unusable (`REASONS`), the event clock of a partition, and the
        CloudEvents headers.

A message is never dropped in silence and never stops the flow: it is an entry, or it is a dead
letter that says why and where it stood.

The *event clock* of a partition is the newest `time_ms` accepted from it, and its watermark is
the clock less the lateness. One event dated far ahead would push the clock forward for everybody
behind it, so it is refused where it is more than `max_ahead_ms` ahead of

- the clock, less the time that passed by the timestamps that the broker keeps with messages (a
  topic may be quiet for a week, and then its event time jumps by a week, but so do those), or
- its own message's timestamp.

A replay of old events should therefore send them with their own times as timestamps, as
`pushflow replay` does; on a topic with `message.timestamp.type=LogAppendTime` raise the bound.
"""

import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import msgspec
import orjson
import xxhash

from operators import metrics
from operators.hops import Entry, Forget, ShardBatch
from operators.messages import (
    DeadLetter,
    Decision,
    Erasure,
    Event,
    Feedback,
    UserProfile,
    UserSignal,
)

M = TypeVar("M", bound=msgspec.Struct)
"""A message type of the wire."""

MAX_BYTES: Final = 65_536  # a larger message is a mistake: our own largest is about 12 KiB
# Levels of an event's props. Workers hand events to each other by pickle, which gives up at some
# 500 levels, and that would stop the flow.
MAX_DEPTH: Final = 16
_PAYLOAD_KEPT: Final = 8_192
ITEM_SHARDS: Final = tuple(f"i{number:02d}" for number in range(16))  # fixed for ever

REASONS: Final = {
    "too_large": "the value is longer than 65,536 bytes",
    "null_value": "the topic is not compacted, and the value is null",
    "bad_json": "the value is not JSON, or not UTF-8, or nested too deep",
    "bad_field": "a field is missing, of the wrong type, too long or out of range",
    "unknown_type": "the event's or feedback's type is not known to this version",
    "missing_item": "this type of event needs an item_id",
    "ahead_of_time": "dated too far ahead of the partition's event time",
}

_NEEDS_ITEM: Final = frozenset(
    ("view", "click", "cart", "cart_remove", "purchase", "refund", "favorite", "rate")
)


class Message(Protocol):
    """What the decoder reads of a raw Kafka message; `timestamp_ms` is -1 where unknown."""

    @property
    def topic(self) -> str: ...  # noqa: D102
    @property
    def partition(self) -> int: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def key(self) -> bytes | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102
    @property
    def timestamp_ms(self) -> int: ...  # noqa: D102


class SourceBatch(NamedTuple):
    """One poll of one partition, decoded. `n_entries` counts what the shards hold together."""

    shards: list[ShardBatch]
    dead: list[DeadLetter]
    n_entries: int


def shard_of(user_id: str, n_shards: int) -> str:
    """Return the shard that a user belongs to for the life of the state.

    >>> shard_of("u1", 64)
    '49'
    """
    return f"{xxhash.xxh3_64_intdigest(user_id.encode()) % n_shards:02d}"


def item_shard(item_id: str) -> str:
    """Return the shard of an item, one of `ITEM_SHARDS`, the same for ever.

    >>> item_shard("i1")
    'i14'
    """
    return ITEM_SHARDS[xxhash.xxh3_64_intdigest(item_id.encode()) % len(ITEM_SHARDS)]


def encode(message: msgspec.Struct) -> bytes:
    """Return a message as JSON; arrays of NumPy inside it are written as they are.

    >>> from operators.messages import Erasure
    >>> encode(Erasure(user_id="u1", time_ms=1_700_000_000_000))
    b'{"user_id":"u1","time_ms":1700000000000,"reason":""}'
    """
    return orjson.dumps(message, default=msgspec.structs.asdict, option=orjson.OPT_SERIALIZE_NUMPY)


def headers(message_id: str, type_name: str, source: str) -> list[tuple[str, bytes]]:
    """Return CloudEvents 1.0 headers in Kafka's binary mode."""
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", message_id.encode()),
        ("ce_source", source.encode()),
        ("ce_type", type_name.encode()),
        ("content-type", b"application/json"),
    ]


def dead_letter(message: Message, reason: str, detail: str) -> DeadLetter:
    """Return what is kept of a message that cannot be used."""
    value = message.value or b""
    return DeadLetter(
        reason=reason,
        detail=detail[:500],
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        size_bytes=len(value),
        payload=base64.b64encode(value[:_PAYLOAD_KEPT]).decode(),
    )


class _Unusable(Exception):
    """A message that becomes a dead letter: (reason, detail)."""


def _parse(decoder: msgspec.json.Decoder[M], value: bytes) -> M:
    try:
        if not value.isascii():
            value.decode()  # msgspec passes over fields that it does not know without a look
        return decoder.decode(value)
    except msgspec.ValidationError as error:
        known = "Invalid enum value" in str(error) and str(error).endswith("`$.type`")
        raise _Unusable("unknown_type" if known else "bad_field", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Unusable("bad_json", str(error)) from None


def _is_deeper(value: Any, levels: int) -> bool:
    """Say whether lists and dictionaries are nested in more than `levels` levels."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inner)


class PartitionDecoder:
    """Decodes one source partition, and keeps its event clock.

    Parameters
    ----------
    partition
        Number of the partition in all of its topics.
    kinds
        Topic name on the cluster -> the message type it holds.
    n_shards
        Number of shards that users are spread over.
    clock_kinds
        Message types whose `time_ms` moves the clock. In `decide` only events do: feedback that
        is read ahead of lagging events must not close their sessions.
    lateness_ms
        How far the watermark trails the clock, >= 0.
    max_ahead_ms
        How far ahead of the clock and of the broker's timestamp an entry may be dated, > 0.
    state
        A value from `snapshot`, or None at the start of the partition.

    Notes
    -----
    State: two integers. Time: about 1.5 us a message, most of it JSON.

    Examples
    --------
    >>> from operators.hops import RawMessage
    >>> decoder = PartitionDecoder(0, {"events": Event}, n_shards=4, lateness_ms=1_000)
    >>> good = b'{"event_id":"e1","user_id":"u1","type":"app_open","time_ms":1700000000000}'
    >>> batch = decoder.decode([RawMessage("events", 0, 0, None, good, -1),
    ...                         RawMessage("events", 0, 1, None, b"{", -1)])
    >>> batch.n_entries, [letter.reason for letter in batch.dead]
    (1, ['bad_json'])
    >>> [(s.shard, s.watermark_ms) for s in batch.shards if s.entries]
    [('01', 1699999999000)]
    """

    def __init__(
        self,
        partition: int,
        kinds: Mapping[str, type[msgspec.Struct]],
        *,
        n_shards: int,
        clock_kinds: tuple[type[msgspec.Struct], ...] = (Event,),
        lateness_ms: int = 10_000,
        max_ahead_ms: int = 3_600_000,
        tick_ms: int = 1_000,
        state: tuple[int, int] | None = None,
    ) -> None:
        self._partition = partition
        self._decoders = {topic: msgspec.json.Decoder(kind) for topic, kind in kinds.items()}
        self._kinds = dict(kinds)
        self._shards = [f"{shard:02d}" for shard in range(n_shards)]
        self._clock_kinds = clock_kinds
        self._lateness_ms = lateness_ms
        self._max_ahead_ms = max_ahead_ms
        self._tick_ms = tick_ms
        # The clock, and the broker's timestamp of the message that set it (-1: unknown).
        self._clock_ms, self._set_ms = state or (0, -1)
        self._ticked_ms = 0
        self._counters = {topic: metrics.EVENTS_DECODED.labels(topic) for topic in kinds}

    def snapshot(self) -> tuple[int, int]:
        """Return the event clock, and the broker's timestamp that goes with it."""
        return self._clock_ms, self._set_ms

    def decode(self, messages: Iterable[Message]) -> SourceBatch:
        """Return the entries of a poll by shard, with ticks for shards that only time passed for.

        Every shard is told of the time at least each `tick_ms` of event time. When it is told
        does not change what it does, for entries carry their own watermark.
        """
        by_shard: dict[str, list[tuple[int, Entry]]] = {}
        dead: list[DeadLetter] = []
        counts = dict.fromkeys(self._counters, 0)
        shards, n_shards, digest = self._shards, len(self._shards), xxhash.xxh3_64_intdigest
        for message in messages:
            try:
                entry = self._entry(message)
            except _Unusable as unusable:
                reason, detail = unusable.args
                dead.append(dead_letter(message, reason, detail))
                continue
            counts[message.topic] += 1
            shard = shards[digest(entry.user_id.encode()) % n_shards]
            stamped = (self._clock_ms - self._lateness_ms, entry)
            if shard in by_shard:
                by_shard[shard].append(stamped)
            else:
                by_shard[shard] = [stamped]
        self._count(counts, dead)
        n_entries = sum(counts.values())
        return SourceBatch(self._batches(by_shard), dead, n_entries)

    def _batches(self, by_shard: dict[str, list[tuple[int, Entry]]]) -> list[ShardBatch]:
        watermark = self._clock_ms - self._lateness_ms
        if watermark - self._ticked_ms >= self._tick_ms:
            self._ticked_ms = watermark
            for shard in self._shards:
                by_shard.setdefault(shard, [])
        partition = self._partition
        return [ShardBatch(shard, partition, watermark, by_shard[shard]) for shard in by_shard]

    def _entry(self, message: Message) -> Entry:
        value = message.value
        kind = self._kinds[message.topic]
        if value is None:
            return self._tombstone(message, kind)
        if len(value) > MAX_BYTES:
            raise _Unusable("too_large", f"{len(value):,} bytes, at most {MAX_BYTES:,} are taken")
        entry = _parse(self._decoders[message.topic], value)
        if isinstance(entry, Event):
            if entry.item_id is None and entry.type in _NEEDS_ITEM:
                raise _Unusable("missing_item", f"type {entry.type}")
            if entry.props is not None and _is_deeper(entry.props, MAX_DEPTH):
                raise _Unusable("bad_json", f"props nested deeper than {MAX_DEPTH} levels")
            self._check_time(entry.time_ms, message.timestamp_ms)
        elif isinstance(entry, Feedback | UserSignal):
            self._check_time(entry.time_ms, message.timestamp_ms)
        elif isinstance(entry, Erasure):
            return Forget(entry.user_id)
        if isinstance(entry, self._clock_kinds):
            time_ms = entry.decided_at if isinstance(entry, Decision) else entry.time_ms  # type: ignore[attr-defined]
            if time_ms > self._clock_ms:
                self._clock_ms, self._set_ms = time_ms, message.timestamp_ms
        return entry  # type: ignore[return-value] # `kinds` holds entry types only

    def _check_time(self, time_ms: int, stamp_ms: int) -> None:
        ahead_ms = 0
        if self._clock_ms:
            passed_ms = max(stamp_ms - self._set_ms, 0) if self._set_ms > 0 else 0
            ahead_ms = time_ms - self._clock_ms - passed_ms
        if stamp_ms > 0:
            ahead_ms = max(ahead_ms, time_ms - stamp_ms)
        if ahead_ms > self._max_ahead_ms:
            raise _Unusable("ahead_of_time", f"{ahead_ms / 1_000:,.0f} s ahead of its partition")

    def _tombstone(self, message: Message, kind: type[msgspec.Struct]) -> Forget:
        if kind is not UserProfile or not message.key:
            raise _Unusable("null_value", "only a compacted topic may hold null")
        try:
            return Forget(message.key.decode())
        except UnicodeDecodeError as error:
            raise _Unusable("bad_json", f"key: {error}") from None

    def _count(self, counts: dict[str, int], dead: list[DeadLetter]) -> None:
        for topic, count in counts.items():
            if count:
                self._counters[topic].inc(count)
        for letter in dead:
            metrics.DEAD_LETTERS.labels(letter.reason).inc()


def table_handler(
    kind: type[M], apply: Callable[[str, M | None], None], topic: str
) -> Callable[[bytes, bytes | None], None]:
    """Return a handler for a compacted topic: decode, apply; a bad row is counted and left out.

    A global table has no flow of its own to send dead letters through, and the row before it
    stays in use; `pushflow_dead_letters{reason="table_..."}` tells of it. `apply` may refuse a
    row by ValueError: that is "table_invalid".
    """
    decoder = msgspec.json.Decoder(kind)
    decoded = metrics.EVENTS_DECODED.labels(topic)

    def handle(key: bytes, value: bytes | None) -> None:
        try:
            name = key.decode()
            row = None if value is None else _parse(decoder, value)
        except (_Unusable, UnicodeDecodeError) as error:
            reason = error.args[0] if isinstance(error, _Unusable) else "bad_json"
            metrics.DEAD_LETTERS.labels(f"table_{reason}").inc()
            return
        decoded.inc()
        try:
            apply(name, row)
        except ValueError:
            metrics.DEAD_LETTERS.labels("table_invalid").inc()

    return handle
