"""Writing to Kafka: once each, last one wins, or by a tool.

Emits   records, with Kafka's own partitioner, so that every other client finds a key again.
Owns    the queue between a flow and its transactions, and how a writer opens and closes.

A writer owns one partition of one topic. A thread of its own fences the partition, reads what
stands there beyond the snapshot, and from then on commits what the flow has queued meanwhile: one
record when little comes, hundreds under load. So no commit stands in the flow's way; a full queue
does, and a snapshot waits until all is committed. Bytewax comes in at `operators.kafka`.
"""

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from operators.kafka_client import (
    ErrorLog,
    KafkaFailure,
    log,
    open_consumer,
    producer_settings,
    watermarks,
)
from operators.kafka_standing import (
    ID_HEADER,
    Ids,
    RecoverFrom,
    Standing,
    first_to_read,
    id_of,
    read_to_end,
    reader_settings,
)
from operators.kafka_transactions import Abandoned, Lanes, Record, not_delivered
from operators.metrics import SINK_SKIPPED

Headers = Sequence[tuple[str, bytes]]

_MASK = 0xFFFFFFFF
_IDLE_SECONDS: Final = 1.0  # between two looks at a connection that nothing is written to
_JOIN_SECONDS: Final = 5.0  # for a thread that was told to end and is within a call


class OutRecord(NamedTuple):
    """A record to write. Sinks add `id` as the header `ce_id`."""

    key: str  # "": no key
    id: str
    value: bytes | None  # None: a tombstone
    headers: Headers
    timestamp_ms: int  # 0: now
    is_standing: bool = False  # it is known to stand in the topic, and is not written again


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


class PartitionWriter:
    """Writes one partition of a topic, in transactions, from a thread of its own.

    Parameters
    ----------
    client
        librdkafka settings.
    topic, partition
        Where to write. Whoever wrote there before is fenced.
    resume
        Next offset, from `snapshot`; None where there is no snapshot.
    standing
        What of a replay is not written again: `Ids()` or `Versions()`.
    recover_from
        Without `resume`, and for ids: read the whole partition, or its newest n offsets.
    n_lanes
        See `operators.kafka_transactions.Lanes`.
    max_waiting
        Records in the queue from which on `write_batch` waits.

    Raises
    ------
    operators.kafka_transactions.Fenced
        From the next call, once another process has taken over the partition.
    operators.kafka_client.KafkaFailure
        From the next call, if the partition could not be opened or a record not delivered.

    Notes
    -----
    Memory: what `standing` keeps; the queue, `max_waiting` records and one batch more (30 MB of
    decisions); and as much again in the transaction under way. A writer that is dropped without
    `close`, as in a crash, leaves its queue unwritten.
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        topic: str,
        partition: int,
        *,
        resume: int | None = None,
        standing: Standing | None = None,
        recover_from: RecoverFrom = "earliest",
        n_lanes: int = 1,
        max_waiting: int = 10_000,
    ) -> None:
        lanes = Lanes(client, topic, partition, n_lanes)
        opening = _Opening(client, topic, partition, resume, recover_from)
        self._queue = _Queue(lanes, Ids() if standing is None else standing, opening, max_waiting)
        self._thread = threading.Thread(
            target=self._queue.run, name=f"{topic}[{partition}]", daemon=True
        )
        self._thread.start()
        self._drop = weakref.finalize(self, _abandon, self._queue, self._thread)

    def write_batch(self, records: list[OutRecord]) -> None:
        """Queue records; wait only while the queue is full."""
        self._queue.put(records)

    def snapshot(self) -> int:
        """Wait until all is committed; return the next offset."""
        return self._queue.settle()

    def close(self) -> None:
        """Wait until all is committed, and leave the broker."""
        try:
            self._queue.settle()
        finally:
            self._drop()


class _Opening(NamedTuple):
    """Where a writer begins."""

    client: Mapping[str, Any]
    topic: str
    partition: int
    resume: int | None
    recover_from: RecoverFrom


class _Queue:
    """What the flow's thread and the writing thread share."""

    def __init__(
        self, lanes: Lanes, standing: Standing, opening: _Opening, max_waiting: int
    ) -> None:
        self._lanes = lanes
        self._standing = standing
        self._opening = opening
        self._max_waiting = max_waiting
        self._skipped = SINK_SKIPPED.labels(opening.topic)
        self._change = threading.Condition()  # of all below
        self._waiting: list[OutRecord] = []
        self._is_busy = True  # with opening, or with a batch
        self._is_ending = False
        self._failure: Exception | None = None

    def put(self, records: list[OutRecord]) -> None:
        with self._change:
            self._wait(lambda: len(self._waiting) < self._max_waiting)
            self._waiting += records
            self._change.notify_all()

    def settle(self) -> int:
        with self._change:
            self._wait(lambda: not self._waiting and not self._is_busy)
            return self._lanes.next_offset

    def abandon(self) -> None:
        with self._change:
            self._is_ending = True
            self._waiting.clear()
            self._change.notify_all()
        self._lanes.abandon()

    def _wait(self, is_so: Callable[[], bool]) -> None:
        self._change.wait_for(lambda: self._failure is not None or is_so())
        if self._failure is not None:
            raise self._failure

    def run(self) -> None:
        """Open the partition, then write until abandoned or failed."""
        try:
            self._open()
            while (records := self._take()) is not None:
                self._write(records)
        except Abandoned:
            pass
        except Exception as error:  # whatever it is must stop the flow as well
            with self._change:
                self._failure = error
                self._change.notify_all()

    def _open(self) -> None:
        client, topic, partition, resume, recover_from = self._opening
        self._lanes.fence()  # ahead of any look at the end, which moves no more from here on
        self._lanes.settle()
        with open_consumer(reader_settings(client)) as consumer:
            low, end = watermarks(consumer, topic, partition)
            self._lanes.next_offset = end
            if resume is not None or self._standing.reads_all:
                begin = first_to_read(f"{topic}[{partition}]", low, end, resume, recover_from)
                place = TopicPartition(topic, partition, begin)
                for message in read_to_end(consumer, client, [place]):
                    if (found := id_of(message)) is not None:
                        self._standing.note(found)
        if len(self._standing):
            log.info("%s[%d]: %d beyond the snapshot", topic, partition, len(self._standing))

    def _take(self) -> list[OutRecord] | None:
        """Return all that waits; None when there will be no more."""
        with self._change:
            self._is_busy = False
            self._change.notify_all()
            while not self._waiting:
                if self._is_ending:
                    return None
                if not self._change.wait(_IDLE_SECONDS):
                    self._lanes.serve()
            records, self._waiting = self._waiting, []
            self._is_busy = True
            self._change.notify_all()
            return records

    def _write(self, records: list[OutRecord]) -> None:
        fresh = [
            _arguments(record)
            for record in records
            # In this order: what is known to stand there must be forgotten too.
            if not self._standing.withholds(record.id, record.value) and not record.is_standing
        ]
        if fresh:
            self._lanes.write(fresh)
        if len(fresh) < len(records):
            self._skipped.inc(len(records) - len(fresh))


def _arguments(record: OutRecord) -> Record:
    return {
        "key": record.key.encode() or None,
        "value": record.value,
        "headers": [
            *(header for header in record.headers if header[0] != ID_HEADER),
            (ID_HEADER, record.id.encode()),
        ],
        "timestamp": record.timestamp_ms,
    }


def _abandon(queue: _Queue, thread: threading.Thread) -> None:
    """End a writer's thread; also at the end of the process, ahead of the interpreter's own end."""
    queue.abandon()
    thread.join(_JOIN_SECONDS)


class Writer:
    """Writes to any topic, for tools: replays, simulations, the table of campaigns.

    Parameters
    ----------
    client
        librdkafka settings.

    Raises
    ------
    operators.kafka_client.KafkaFailure
        From `send` or `flush`, if an earlier record was not delivered. Within
        `message.timeout.ms` (2 minutes) librdkafka tries again by itself, in order and without
        repeats.

    Notes
    -----
    At least once through a crash of ours; once, in order, through a crash of the broker. Memory:
    a queue of at most 64 MB, then `send` waits.
    """

    def __init__(self, client: Mapping[str, Any]) -> None:
        self._client = client
        self._errors = ErrorLog(client)
        self._failure: KafkaFailure | None = None
        self._producer = Producer(producer_settings(client, {"error_cb": self._errors.on_error}))

    def send(
        self,
        topic: str,
        key: str | None,
        value: bytes | None,
        headers: Headers = (),
        timestamp_ms: int = 0,
    ) -> None:
        """Queue one record; a timestamp of 0 means now."""
        while True:
            try:
                self._producer.produce(
                    topic,
                    key=None if key is None else key.encode(),
                    value=value,
                    headers=list(headers),
                    timestamp=timestamp_ms,
                    on_delivery=self._on_delivery,
                )
                break
            except BufferError:  # full: wait for deliveries, and for nothing else
                self._producer.poll(0.1)
                self._check()
            except KafkaException as exception:
                raise not_delivered(self._client, topic, exception.args[0]) from exception
        self._producer.poll(0)
        self._check()

    def flush(self) -> None:
        """Wait until all is delivered."""
        while self._producer.flush(1.0):
            self._check()
        self._check()
        self._errors.all_well()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._errors.check()

    def _on_delivery(self, error: KafkaError | None, message: Any) -> None:
        if error is not None and self._failure is None:
            self._failure = not_delivered(self._client, message.topic(), error)
