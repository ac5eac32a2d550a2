"""Writing to Kafka: once each, last one wins, or by a tool.

Emits   records, with Kafka's own partitioner, so that every other client finds a key again.
Owns    how a resumed writer finds out what stands in its partition already, and what becomes
        of a delivery that fails.

A writer owns one partition of one topic. At a snapshot it waits until all is delivered and
returns the next offset. When it is resumed it reads from there to the end, remembers the ids,
and skips what is written again. Bytewax comes in at `operators.kafka`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from operators.kafka_client import (
    ErrorLog,
    KafkaFailure,
    address,
    consumer_settings,
    log,
    open_consumer,
    producer_settings,
    take,
    watermarks,
)
from operators.metrics import SINK_SKIPPED

ID_HEADER = "ce_id"  # CloudEvents: where a record carries its id
RecoverFrom = Literal["earliest"] | int
Headers = Sequence[tuple[str, bytes]]

_MASK = 0xFFFFFFFF


class OutRecord(NamedTuple):
    """A record to write. Sinks add `id` as the header `ce_id`."""

    key: str  # "": no key
    id: str
    value: bytes | None  # None: a tombstone
    headers: Headers
    timestamp_ms: int  # 0: now


def murmur2(data: bytes) -> int:
    """Return Kafka's 32-bit hash of a key, unsigned.

    >>> murmur2(b"21") == -973932308 % 2**32  # a vector of the Java client's tests
    True
    """
    m, n = 0x5BD1E995, len(data)
    h = (0x9747B28C ^ n) & _MASK
    end = n & ~3
    for i in range(0, end, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & _MASK
        k = (k ^ (k >> 24)) * m & _MASK
        h = (h * m & _MASK) ^ k
    if end < n:
        h = (h ^ int.from_bytes(data[end:], "little")) * m & _MASK
    h = (h ^ (h >> 13)) * m & _MASK
    return h ^ (h >> 15)


def partition_of(key: str, n_partitions: int) -> int:
    """Return the partition where Kafka's default partitioner puts a key.

    >>> partition_of("u1", 4)
    0
    """
    return (murmur2(key.encode()) & 0x7FFFFFFF) % n_partitions


class _Deliveries:
    """A producer that pushes back when its queue is full, and tells of each failed delivery.

    Raises
    ------
    operators.kafka_client.KafkaFailure
        At the next call, if a record was not taken. Within `message.timeout.ms` (2 minutes)
        librdkafka tries again by itself, in order and without repeats.
    """

    def __init__(self, client: Mapping[str, Any]) -> None:
        self.errors = ErrorLog(client)
        self._address = address(client)
        self._failure: KafkaFailure | None = None
        self.offsets: dict[tuple[str, int], int] = {}  # next, by (topic, partition)
        settings = producer_settings(client, {"error_cb": self.errors.on_error})
        # The fence goes here, ahead of any look at the topic's end: a `transactional.id` for
        # each partition and `init_transactions`, so that a dead process's late record is refused.
        self._producer = Producer(settings)

    def send(self, topic: str, **record: Any) -> None:
        while True:
            try:
                self._producer.produce(topic, on_delivery=self._on_delivery, **record)
                return
            except BufferError:  # full: wait for deliveries, and for nothing else
                self._producer.poll(0.1)
                self.check()
            except KafkaException as exception:
                raise self._explain(topic, exception.args[0]) from exception

    def poll(self) -> None:
        self._producer.poll(0)
        self.check()

    def flush(self) -> None:
        while self._producer.flush(1.0):
            self.check()
        self.check()
        self.errors.all_well()

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure
        self.errors.check()

    def _on_delivery(self, error: KafkaError | None, message: Any) -> None:
        if error is not None:
            self._failure = self._failure or self._explain(message.topic(), error)
            return
        # A repeat that the broker recognised comes without an offset: the next offset then stays
        # too low, and a resumed writer reads a little more than it must.
        where = message.topic(), message.partition()
        self.offsets[where] = max(self.offsets.get(where, 0), message.offset() + 1)

    def _explain(self, topic: str, error: KafkaError) -> KafkaFailure:
        return KafkaFailure(
            f"a record for {topic} was not delivered to {self._address}: {error.name()}: "
            f"{error.str()}. See the broker's log, and the topic's settings for size, timestamps "
            "and rights. Started again, a flow goes on from its last snapshot and loses nothing"
        )


class PartitionWriter:
    """Writes one partition of a topic.

    Parameters
    ----------
    client
        librdkafka settings.
    topic, partition
        Where to write. We must be the only writer.
    resume
        Next offset, from `snapshot`; None where there is no snapshot.
    keeps_ids
        Skip records whose ids stand in the partition beyond `resume`.
    recover_from
        Without `resume`: read the whole partition, or its newest n records.

    Notes
    -----
    Memory: about 130 bytes for each id read at the start, until it is replayed; and a queue of
    at most 64 MB.
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        topic: str,
        partition: int,
        *,
        resume: int | None = None,
        keeps_ids: bool = True,
        recover_from: RecoverFrom = "earliest",
    ) -> None:
        self._topic = topic
        self._partition = partition
        self._deliveries = _Deliveries(client)
        self._skipped = SINK_SKIPPED.labels(topic)
        self._ids: set[bytes] = set()
        with open_consumer(
            consumer_settings(client, {"auto.offset.reset": "earliest"})
        ) as consumer:
            low, end = watermarks(consumer, topic, partition)
            if keeps_ids:
                begin = self._begin(low, end, resume, recover_from)
                self._ids = _standing_ids(consumer, client, TopicPartition(topic, partition, begin))
        self._deliveries.offsets[topic, partition] = end
        if self._ids:
            log.info("%s[%d]: %d records beyond the snapshot", topic, partition, len(self._ids))

    def write_batch(self, records: list[OutRecord]) -> None:
        """Hand records to Kafka; wait only while the queue is full."""
        n_skipped = 0
        for record in records:
            record_id = record.id.encode()
            if self._ids and record_id in self._ids:
                self._ids.discard(record_id)
                n_skipped += 1
                continue
            self._deliveries.send(
                self._topic,
                partition=self._partition,
                key=record.key.encode() or None,
                value=record.value,
                headers=[*(h for h in record.headers if h[0] != ID_HEADER), (ID_HEADER, record_id)],
                timestamp=record.timestamp_ms,
            )
        if n_skipped:
            self._skipped.inc(n_skipped)
        self._deliveries.poll()

    def snapshot(self) -> int:
        """Wait until all is delivered; return the next offset."""
        self._deliveries.flush()
        return self._deliveries.offsets[self._topic, self._partition]

    def close(self) -> None:
        """Wait until all is delivered."""
        self._deliveries.flush()

    def _begin(self, low: int, end: int, resume: int | None, recover_from: RecoverFrom) -> int:
        """Return the first offset to read ids from."""
        if resume is None:
            return low if recover_from == "earliest" else max(low, end - recover_from)
        if not low <= resume <= end:
            log.warning(
                "%s[%d]: offset %d of the snapshot is gone (there are %d to %d): records may "
                "be written twice",
                *(self._topic, self._partition, resume, low, end),
            )
        return max(low, resume)


def _standing_ids(
    consumer: Consumer, client: Mapping[str, Any], begin: TopicPartition
) -> set[bytes]:
    """Return the ids of all records from an offset to the end."""
    errors = ErrorLog(client)
    ids: set[bytes] = set()
    consumer.assign([begin])
    while True:
        for message in take(consumer, 1_000, 0.2):
            error = message.error()
            if error is None:
                ids.update(v for k, v in message.headers() or () if k == ID_HEADER)
            elif error.code() == KafkaError._PARTITION_EOF:
                return ids
            else:
                errors.wait_out(f"{begin.topic}[{begin.partition}]", error)


class Writer:
    """Writes to any topic, for tools: replays, simulations, the table of campaigns.

    Parameters
    ----------
    client
        librdkafka settings.

    Raises
    ------
    operators.kafka_client.KafkaFailure
        From `send` or `flush`, if an earlier record was not delivered.

    Notes
    -----
    At least once through a crash of ours; once, in order, through a crash of the broker. Memory:
    a queue of at most 64 MB, then `send` waits.
    """

    def __init__(self, client: Mapping[str, Any]) -> None:
        self._deliveries = _Deliveries(client)

    def send(
        self,
        topic: str,
        key: str | None,
        value: bytes | None,
        headers: Headers = (),
        timestamp_ms: int = 0,
    ) -> None:
        """Queue one record; a timestamp of 0 means now."""
        self._deliveries.send(
            topic,
            key=None if key is None else key.encode(),
            value=value,
            headers=list(headers),
            timestamp=timestamp_ms,
        )
        self._deliveries.poll()

    def flush(self) -> None:
        """Wait until all is delivered."""
        self._deliveries.flush()
