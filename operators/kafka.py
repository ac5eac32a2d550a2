"""Kafka as Bytewax sees it: a source of co-partitioned topics and two sinks.

Reads   `operators.kafka_source` and `operators.kafka_sink`, which do the work.
Owns    how partitions become Bytewax parts, and the wish to stop.

Bytewax's own connectors poll each partition for up to a millisecond, decode one message at a
time, and never learn that a delivery failed (FACTS: what bites, 8 and 9); hence these.

A part's name is a recovery key: renaming one loses its position. The other names of
`operators.kafka_*` that flows use can be had from here too.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Generic

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from confluent_kafka import TopicPartition

from operators.hops import RawMessage
from operators.kafka_admin import (
    broker_info,
    create_topics,
    topic_drift,
    topic_shapes,
    touch_topics,
)
from operators.kafka_client import (
    KafkaFailure,
    address,
    attempts,
    consumer_settings,
    count_partitions,
    is_filler,
    open_consumer,
    watermarks,
)
from operators.kafka_sink import OutRecord, PartitionWriter, Writer, murmur2, partition_of
from operators.kafka_source import (
    COME_BACK_SECONDS,
    Decoder,
    Item_co,
    PartitionReader,
    Snapshot,
    Start,
)
from operators.kafka_standing import (
    Ids,
    RecoverFrom,
    Standing,
    Versions,
    first_to_read,
    read_to_end,
    reader_settings,
)
from operators.kafka_tables import Reader, TableFollower
from operators.kafka_transactions import Fenced, Lanes

__all__ = [
    "CopartitionedSource",
    "Decoder",
    "ExactlyOnceSink",
    "Fenced",
    "KafkaFailure",
    "OutRecord",
    "RawMessage",
    "Reader",
    "TableFollower",
    "TableSink",
    "Writer",
    "broker_info",
    "clear_stop",
    "create_topics",
    "partition_of",
    "request_stop",
    "stop_requested",
    "topic_drift",
    "touch_topics",
]

_STOP = threading.Event()
_GROWING_SECONDS = 10.0  # for topics that are given more partitions one after another
_FENCES_AT_ONCE: Final = 16  # each is two producers for half a second


def request_stop() -> None:
    """Ask every source of this process to end at its next poll, for a signal handler.

    The flow then runs dry, takes its last snapshot and returns, so that nothing is left to
    replay. Steps that would treat the end of input as the end of time ask `stop_requested`.
    """
    _STOP.set()


def stop_requested() -> bool:
    """Say whether the input ends because we were asked to stop, not because it is complete."""
    return _STOP.is_set()


def clear_stop() -> None:
    """Forget the wish to stop, so that another flow can run in this process."""
    _STOP.clear()


class _ReaderPart(PartitionReader[Item_co], StatefulSourcePartition):
    """A reader that ends when we are asked to stop."""

    on_poll: Callable[[], None]

    def next_batch(self) -> list[Item_co]:
        if _STOP.is_set():
            raise StopIteration
        self.on_poll()
        return super().next_batch()


class _WriterPart(PartitionWriter, StatefulSinkPartition):
    """A writer, by the type that Bytewax asks for."""

    def close(self) -> None:
        """Leave the broker, and wait for nothing: the last snapshot has.

        Bytewax closes its parts also when an error ends the flow. Another error from here would
        then abort the process, and nobody would learn of the first.
        """
        self._drop()


class CopartitionedSource(FixedPartitionedSource, Generic[Item_co]):
    """Reads topics that are partitioned alike; part "p" holds partition p of each.

    Parameters
    ----------
    client
        librdkafka settings.
    topics
        Full names; the first says how many partitions there are.
    lead
        Topics that a part reads to their end before the others begin: profiles before events.
    make_decoder
        Called with the partition and the decoder's own snapshot, or None the first time.
    batch_size
        Messages in one item at most.
    start
        Where a topic begins that has no position yet.
    stop_at_end
        End where the topics ended at the start: for replays and tests.
    make_end_mark
        Called with the partition; its item is handed out once, when all is read that was there at
        the start. Each start does so again.
    on_poll
        Called before each poll of each part, also while nothing comes.

    Raises
    ------
    operators.kafka_client.KafkaFailure
        If the topics differ in partitions, or Kafka does not answer within a minute.

    Notes
    -----
    Bytewax polls an idle part once a millisecond; a poll costs 2 µs. See
    `operators.kafka_source.PartitionReader` for the order between topics, what happens when an
    offset is not there, and the bound of memory.

    Examples
    --------
    >>> from bytewax.dataflow import Dataflow
    >>> from bytewax.testing import TestingSink, run_main
    >>> import bytewax.operators as op
    >>> from operators.embedded import EmbeddedBroker
    >>> from operators.kafka_sink import Writer
    >>> class Values:
    ...     def __init__(self, partition, state):
    ...         self.n_seen = state or 0
    ...     def decode(self, messages):
    ...         self.n_seen += len(messages)
    ...         return [m.value for m in messages]
    ...     def snapshot(self):
    ...         return self.n_seen
    >>> with EmbeddedBroker() as broker:
    ...     writer = Writer(broker.client)
    ...     for value in (b"first", b"second"):
    ...         writer.send("events", "u1", value)
    ...     writer.flush()
    ...     source = CopartitionedSource(
    ...         broker.client, ["events"], make_decoder=Values, stop_at_end=True
    ...     )
    ...     flow, out = Dataflow("doc"), []
    ...     op.output("out", op.input("in", flow, source), TestingSink(out))
    ...     run_main(flow)
    >>> out
    [[b'first', b'second']]
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        topics: Sequence[str],
        *,
        make_decoder: Callable[[int, Any], Decoder[Item_co]],
        lead: Sequence[str] = (),
        batch_size: int = 1_000,
        start: Start = "earliest",
        stop_at_end: bool = False,
        make_end_mark: Callable[[int], Item_co | None] = lambda partition: None,
        on_poll: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._topics = topics
        self._topic_ids: dict[str, str | None] | None = None  # asked once for all parts
        self._come_back_seconds = COME_BACK_SECONDS
        self._make_decoder = make_decoder
        self._make_end_mark = make_end_mark
        self._on_poll = on_poll
        self._options: dict[str, Any] = {
            "lead": lead,
            "batch_size": batch_size,
            "start": start,
            "stop_at_end": stop_at_end,
        }

    def list_parts(self) -> list[str]:
        """Return a part for each partition of the first topic."""
        found = self._widths()
        if len(set(found.values())) != 1:
            raise KafkaFailure(
                f"these topics must have the same number of partitions, but have {found}. "
                "Add partitions to the short ones: kafka-topics.sh --alter --partitions"
            )
        shapes = topic_shapes(self._client, self._topics)
        self._topic_ids = {topic: shape.topic_id for topic, shape in shapes.items()}
        return [str(partition) for partition in range(found[self._topics[0]])]

    def _widths(self) -> dict[str, int]:
        """Return how many partitions each topic has; wait for topics that grow just now."""
        found: dict[str, int] = {}
        where = address(self._client)
        with open_consumer(consumer_settings(self._client)) as consumer:
            for _ in attempts(_GROWING_SECONDS, "topics to have the same number of partitions"):
                found = {topic: count_partitions(consumer, topic, where) for topic in self._topics}
                if len(set(found.values())) == 1:
                    break
        return found

    def build_part(
        self, step_id: str, for_part: str, resume_state: Snapshot | None
    ) -> _ReaderPart[Item_co]:
        """Begin or resume one partition."""
        positions, state = resume_state or ((), None)
        decoder = self._make_decoder(int(for_part), state)
        part = _ReaderPart(
            self._client,
            self._topics,
            int(for_part),
            decoder=decoder,
            positions=positions,
            topic_ids=self._topic_ids,
            end_mark=self._make_end_mark(int(for_part)),
            come_back_seconds=self._come_back_seconds,
            **self._options,
        )
        self._come_back_seconds -= part.waited_seconds  # shared: one wait for all parts
        part.on_poll = self._on_poll
        return part


class _PartitionedSink(FixedPartitionedSink):
    """A part for each partition of one topic; a key goes where Kafka would put it."""

    _make_standing: Callable[[], Standing]

    def __init__(
        self,
        client: Mapping[str, Any],
        topic: str,
        *,
        recover_from: RecoverFrom = "earliest",
        n_lanes: int = 1,
    ) -> None:
        self._client = client
        self._topic = topic
        self._recover_from = recover_from
        self._n_lanes = n_lanes

    def list_parts(self) -> list[str]:
        """Return a part for each partition; Bytewax sorts names, hence the zeros."""
        with open_consumer(consumer_settings(self._client)) as consumer:
            n_partitions = count_partitions(consumer, self._topic, address(self._client))
        return [f"{partition:05d}" for partition in range(n_partitions)]

    def part_fn(self, item_key: str) -> int:
        """Return a key's hash as Kafka's own partitioner takes it."""
        return murmur2(item_key.encode()) & 0x7FFFFFFF

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _WriterPart:
        """Begin or resume one partition."""
        return _WriterPart(
            self._client,
            self._topic,
            int(for_part),
            resume=resume_state,
            standing=self._make_standing(),
            recover_from=self._recover_from,
            n_lanes=self._n_lanes,
        )


class ExactlyOnceSink(_PartitionedSink):
    """Writes each record once, through crashes: decisions and dead letters.

    Items are (key, `OutRecord`); the key picks the partition, as it does in Kafka.

    Parameters
    ----------
    client
        librdkafka settings.
    topic
        Full name. This sink must be its only writer; the newest start fences those before it.
    recover_from
        How much of a partition is read for ids where no snapshot says where to begin (the
        first start, or a crash before the first snapshot): all of it, or its newest n offsets, of
        which each transaction takes one. Set n where the topic is long and the input begins at
        "latest".
    n_lanes
        2 where a record is to be seen within milliseconds, 1 where that does not count.

    Notes
    -----
    Records are written in transactions: read the topic with `isolation.level=read_committed`.
    A snapshot is taken once all is committed, and holds the partition's next offset. A resumed
    part reads its own partition from there to the end, and skips a replayed record whose id
    stands there. So ids must follow from the input alone, and never repeat.

    The default of `recover_from` reads all, for then even the loss of the recovery store sends
    no user a second push. Memory: about 130 bytes an id read. A partition costs a thread, and
    four more and 700 KB for each lane.
    """

    _make_standing = Ids

    def standing(self, snapshots: Mapping[str, int]) -> Iterator[RawMessage]:
        """Fence all partitions, then yield what stands in them beyond their parts' snapshots.

        Parameters
        ----------
        snapshots
            By part. A partition without one is read as `recover_from` says.

        Notes
        -----
        Call it before the flow starts: it would fence the flow's own parts. Each process of a
        cluster may do so, for Bytewax builds no part before all processes have met. After the
        fence nobody can add to what is read here.
        """
        parts = self.list_parts()
        with ThreadPoolExecutor(_FENCES_AT_ONCE) as pool:
            list(pool.map(self._fence, parts))
        with open_consumer(reader_settings(self._client)) as consumer:
            begins = []
            for part in parts:
                low, end = watermarks(consumer, self._topic, int(part))
                place, resume = f"{self._topic}[{int(part)}]", snapshots.get(part)
                begin = first_to_read(place, low, end, resume, self._recover_from)
                begins.append(TopicPartition(self._topic, int(part), begin))
            for found in read_to_end(consumer, self._client, begins):
                if is_filler(found):
                    continue
                where = found.topic(), found.partition(), found.offset()
                yield RawMessage(*where, found.key(), found.value(), found.timestamp()[1])

    def _fence(self, part: str) -> None:
        lanes = Lanes(self._client, self._topic, int(part), self._n_lanes)
        lanes.fence()
        lanes.settle()


class TableSink(_PartitionedSink):
    """Writes rows of a compacted topic, where the last write of a key wins.

    Items are (key, `OutRecord`), as for `ExactlyOnceSink`; an id ends with ":" and the version.
    A snapshot waits until all is committed. A resumed part reads which versions stand beyond its
    snapshot, and withholds what a replay makes anew of older ones: no table goes back.
    """

    _make_standing = Versions
