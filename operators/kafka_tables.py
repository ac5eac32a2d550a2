"""Reading whole topics: tables that every process holds, and tools that look on.

Reads   all partitions of its topics.
Emits   (key, value) to a handler for each topic, or batches of messages.
Owns    "whole before the start": a table is read to the end it had when loading began.

A compacted topic is a table: the last value of a key is its row, no value removes it. Each
process reads such tables whole and then follows them, as Kafka Streams' global tables do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from confluent_kafka import Consumer, KafkaError, TopicPartition

from operators.hops import RawMessage
from operators.kafka_client import (
    ErrorLog,
    address,
    consumer_settings,
    count_partitions,
    is_filler,
    take,
    watermarks,
)

Handler = Callable[[bytes, bytes | None], None]  # key, value; None removes
Progress = Callable[[str, int, int], None]  # topic, offsets read, offsets to read

_POLL_SECONDS = 0.1


class TableFollower:
    """Keeps tables up to date with their topics.

    Parameters
    ----------
    client
        librdkafka settings.
    handlers
        What takes the rows of each topic, by full name. A bad row is the handler's to turn away:
        what it raises stops the flow. Messages without a key are passed over, as compaction
        refuses them.

    Raises
    ------
    operators.kafka_client.KafkaFailure
        If a topic is not there, or Kafka does not answer within a minute at the start.

    Notes
    -----
    Rows of one key come in order; rows of different partitions in any order. `load` reads one
    topic after the other, in the order of `handlers`, so a table may lean on an earlier one.
    Where an offset is not there (the topic was made anew, or its log ends before), the topic is
    read again from its first message: older rows of a key then show for a moment. Rows of an old
    topic that the new one lacks stay until the next start, which `operators.kafka_watch` brings
    about: the process then begins with an empty table.
    Memory: librdkafka's queue, at most 16 MB a partition and in practice one fetch.

    Examples
    --------
    >>> from operators.embedded import EmbeddedBroker
    >>> from operators.kafka_sink import Writer
    >>> rows = {}
    >>> with EmbeddedBroker() as broker:
    ...     writer = Writer(broker.client)
    ...     writer.send("prices", "tea", b"3")
    ...     writer.send("prices", "tea", b"4")
    ...     writer.flush()
    ...     follower = TableFollower(broker.client, {"prices": rows.__setitem__})
    ...     follower.load()
    ...     follower.close()
    >>> rows
    {b'tea': b'4'}
    """

    def __init__(self, client: Mapping[str, Any], handlers: Mapping[str, Handler]) -> None:
        self._handlers = dict(handlers)
        self._client = client
        self._errors = ErrorLog(client)
        self._consumer = Consumer(
            consumer_settings(
                client,
                {"error_cb": self._errors.on_error, "auto.offset.reset": "earliest"},
            )
            # Rows change slowly, and a table's lag is no event's latency: fetch seldom.
            | {"fetch.wait.max.ms": 100}
        )
        self._next: dict[tuple[str, int], int] = {}

    def load(self, on_progress: Progress | None = None) -> None:
        """Read every topic to the end it has now; then be ready to `poll`.

        Parameters
        ----------
        on_progress
            Told (topic, offsets read, offsets to read) at the start of a topic, ten times a
            second and at its end. Compaction leaves gaps, so offsets are more than messages.
        """
        for topic in self._handlers:
            self._load_topic(topic, on_progress or (lambda topic, n_read, n_all: None))
        self._assign(self._next)

    def poll(self, max_messages: int = 200) -> int:
        """Take in what has changed, without waiting; return how many messages that was."""
        self._errors.check()
        return self._apply(self._consumer.consume(max_messages, 0))

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def _load_topic(self, topic: str, on_progress: Progress) -> None:
        n_partitions = count_partitions(self._consumer, topic, address(self._client))
        begins, ends = {}, {}
        for partition in range(n_partitions):
            where = topic, partition
            begins[where], ends[where] = watermarks(self._consumer, topic, partition)
        self._next |= begins
        self._assign(begins)
        n_all = sum(ends.values()) - sum(begins.values())
        on_progress(topic, 0, n_all)
        while any(self._next[where] < end for where, end in ends.items()):
            self._errors.check()
            self._apply(take(self._consumer, 1_000, _POLL_SECONDS))
            n_read = sum(min(self._next[w], ends[w]) - begin for w, begin in begins.items())
            on_progress(topic, max(0, n_read), n_all)
        # A fetch that waits at the broker holds up whatever is asked next on its connection: each
        # partition of the next topic would cost `fetch.wait.max.ms`.
        self._consumer.unassign()

    def _assign(self, places: Mapping[tuple[str, int], int]) -> None:
        self._consumer.assign([TopicPartition(*where, self._next[where]) for where in places])

    def _apply(self, messages: list[Any]) -> int:
        n_messages = 0
        for message in messages:
            where = message.topic(), message.partition()
            error = message.error()
            if error is None:
                n_messages += 1
                if (key := message.key()) is not None and not is_filler(message):
                    self._handlers[where[0]](key, message.value())
                self._next[where] = message.offset() + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                self._next[where] = message.offset()
            else:
                self._errors.wait_out(f"table {where[0]}", error)
        if n_messages:
            self._errors.all_well()
        return n_messages


class Reader:
    """Reads all partitions of some topics, for tools.

    Parameters
    ----------
    client
        librdkafka settings.
    topics
        Full names.
    start
        The first message, only what comes from now on, or offsets by topic and partition; of a
        partition that is not among them the first message.

    Notes
    -----
    Messages of one partition come in order. Where the broker has dropped an offset, reading goes
    on at the first message it has.
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        topics: Sequence[str],
        start: Literal["earliest", "latest"] | Mapping[tuple[str, int], int] = "earliest",
    ) -> None:
        self._errors = ErrorLog(client)
        self._consumer = Consumer(
            consumer_settings(
                client, {"error_cb": self._errors.on_error, "auto.offset.reset": "earliest"}
            )
        )
        self._next: dict[tuple[str, int], int] = {}
        for topic in topics:
            for partition in range(count_partitions(self._consumer, topic, address(client))):
                low, end = watermarks(self._consumer, topic, partition)
                first = end if start == "latest" else low
                if not isinstance(start, str):
                    first = min(max(start.get((topic, partition), low), low), end)
                self._next[topic, partition] = first
        self._consumer.assign([TopicPartition(*where, at) for where, at in self._next.items()])

    def read(self, max_messages: int = 1_000, timeout_s: float = 0.1) -> list[RawMessage]:
        """Return the next messages, in at most `timeout_s` seconds; [] if there are none."""
        self._errors.check()
        batch = []
        for message in take(self._consumer, max_messages, timeout_s):
            where = message.topic(), message.partition()
            error = message.error()
            if error is None:
                if not is_filler(message):
                    key, value, stamp = message.key(), message.value(), message.timestamp()[1]
                    batch.append(RawMessage(*where, message.offset(), key, value, stamp))
                self._next[where] = message.offset() + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                self._next[where] = message.offset()
            else:
                self._errors.wait_out(f"topic {where[0]}", error)
        return batch

    def n_partitions(self, topic: str) -> int:
        """Return how many partitions of a topic are read."""
        return sum(name == topic for name, _ in self._next)

    def at_end(self) -> bool:
        """Ask the broker whether all there is now has been read."""
        return all(at >= watermarks(self._consumer, *where)[1] for where, at in self._next.items())

    def __iter__(self) -> Iterator[list[RawMessage]]:
        """Yield batches until the ends that the topics have when iteration begins."""
        ends = {where: watermarks(self._consumer, *where)[1] for where in self._next}
        while any(self._next[where] < end for where, end in ends.items()):
            if batch := self.read():
                yield batch

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()
