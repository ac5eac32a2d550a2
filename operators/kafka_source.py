"""One partition number of several topics, read as one sequence.

Reads   partition p of every topic given, by one consumer.
Emits   one decoded item for each poll that found messages.
Owns    the order between topics, and what happens at an offset that is gone.

The order is what a replay rests on. A reader first notes where each topic ends. Up to there it
merges the topics by message timestamp (ties: the order of `topics`), and waits for the topic
whose next message it does not have yet, so the sequence follows from the topics alone and not
from the network. Topics named in `lead` are read to that end before the others begin. Past the
noted ends messages are handed out as they arrive.

Bytewax comes in at `operators.kafka`; nothing here knows it.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

from confluent_kafka import Consumer, KafkaError, TopicPartition

from operators.hops import RawMessage
from operators.kafka_client import (
    ErrorLog,
    consumer_settings,
    log,
    watermarks,
)
from operators.metrics import LAG

Start = Literal["earliest", "latest"]
Item_co = TypeVar("Item_co", covariant=True)
Snapshot = tuple[tuple[tuple[str, int], ...], Any]  # ((topic, next offset), ...), decoder's state

_LAG_SECONDS = 1.0  # between two updates of the lag


class Decoder(Protocol[Item_co]):
    """What turns one poll's messages into one item; it may keep state, such as a watermark."""

    def decode(self, messages: list[RawMessage]) -> Item_co | None:
        """Return an item for these messages, never empty and in order, or None for nothing."""

    def snapshot(self) -> Any:
        """Return the state as an immutable value that pickles."""


class PartitionReader(Generic[Item_co]):
    """Reads partition `partition` of all `topics`.

    Parameters
    ----------
    client
        librdkafka settings.
    topics
        Full names, each with this partition. Their order breaks ties of timestamps.
    lead
        Those of `topics` that are read to their end before the others begin.
    decoder
        Gets the messages of each poll.
    offsets
        Next offset by topic, from `snapshot`. A topic that it lacks begins at `start`.
    batch_size
        Messages a poll hands out at most.
    start
        Where a topic without an offset begins. "latest" takes the end at the first start; a
        crash before the first snapshot then loses what came in between.
    stop_at_end
        End where the topics ended when the reader started.
    monotonic
        Clock in seconds, for the lag gauge alone.

    Raises
    ------
    operators.kafka_client.KafkaFailure
        If Kafka refuses (access, authentication), or does not answer within a minute at the
        start. A broker that goes away later is waited for.

    Notes
    -----
    An offset that is no longer there (retention, a topic made anew) starts that topic again
    from its first message, with a warning. A topic made anew that is already longer than the
    offset cannot be told from the old one.

    Memory: librdkafka's queue (16 MB a topic) and, while merging, 10 batches a topic; a topic
    that runs ahead of the others is paused.
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        topics: Sequence[str],
        partition: int,
        *,
        decoder: Decoder[Item_co],
        lead: Sequence[str] = (),
        offsets: Mapping[str, int] | None = None,
        batch_size: int = 1_000,
        start: Start = "earliest",
        stop_at_end: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if unknown := set(lead) - set(topics):
            raise ValueError(f"lead names topics that are not read: {sorted(unknown)}")
        self._decoder = decoder
        self._partition = partition
        self._batch_size = batch_size
        self._stop_at_end = stop_at_end
        self._monotonic = monotonic
        self._lag_due = monotonic()
        self._lag = {topic: LAG.labels(topic, str(partition)) for topic in topics}
        self._errors = ErrorLog(client)
        self._consumer = Consumer(
            consumer_settings(client, {"error_cb": self._errors.on_error}),
        )
        self._next: dict[str, int] = {}  # of what was handed out
        self._fetched: dict[str, int] = {}  # of what came from the broker
        self._ends: dict[str, int] = {}  # as noted at the start
        self._ahead: dict[str, deque[RawMessage]] = {topic: deque() for topic in topics}
        self._paused: set[str] = set()
        for topic in topics:
            self._place(topic, (offsets or {}).get(topic), start)
        self._stages = [stage for stage in (list(lead), list(topics)) if stage]
        self._open: list[str] = []
        self._is_merging = True
        self._open_stage()

    def next_batch(self) -> list[Item_co]:
        """Return the next item, if any; never wait.

        Raises
        ------
        StopIteration
            At the noted ends, if `stop_at_end`.
        """
        self._errors.check()
        messages = self._merged() if self._is_merging else self._arrived()
        self._show_lag()
        if not messages:
            return []
        item = self._decoder.decode(messages)
        return [] if item is None else [item]

    def snapshot(self) -> Snapshot:
        """Return what resumes reading after the last message handed out."""
        return tuple(sorted(self._next.items())), self._decoder.snapshot()

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def _place(self, topic: str, offset: int | None, start: Start) -> None:
        """Note a topic's end and where reading begins."""
        low, end = watermarks(self._consumer, topic, self._partition)
        if offset is None:
            offset = low if start == "earliest" else end
        elif not low <= offset <= end:
            log.warning(
                "%s[%d]: offset %d is gone (there are %d to %d): starting again from the first",
                *(topic, self._partition, offset, low, end),
            )
            offset = low
        self._next[topic] = self._fetched[topic] = offset
        self._ends[topic] = end

    def _open_stage(self) -> None:
        """Begin the next stage whose topics are not all read to their ends."""
        while self._stages:
            self._open = self._stages.pop(0)
            if not self._stages or not all(self._is_at_end(topic) for topic in self._open):
                break
        self._assign()

    def _assign(self) -> None:
        """Fetch the open topics from where fetching stands."""
        self._consumer.resume([TopicPartition(t, self._partition) for t in self._paused])
        self._paused.clear()
        self._consumer.assign(
            [TopicPartition(t, self._partition, self._fetched[t]) for t in self._open]
        )

    def _is_at_end(self, topic: str) -> bool:
        return self._fetched[topic] >= self._ends[topic] and not self._ahead[topic]

    def _fetch(self) -> list[RawMessage]:
        """Return what has come from the broker, at most a batch."""
        messages = []
        gone = []
        fetched = self._fetched
        for message in self._consumer.consume(self._batch_size, 0):
            if (error := message.error()) is not None:
                if error.code() == KafkaError._AUTO_OFFSET_RESET:
                    gone.append(message.topic())
                else:
                    self._on_error(message, error)
                continue
            raw = RawMessage(
                message.topic(),
                message.partition(),
                message.offset(),
                message.key(),
                message.value(),
                message.timestamp()[1],
            )
            fetched[raw.topic] = raw.offset + 1
            messages.append(raw)
        if messages:
            self._errors.all_well()
        # After the loop: assigning anew goes by `_fetched`, which is whole only here.
        for topic in gone:
            self._restart(topic)
        return messages

    def _on_error(self, message: Any, error: KafkaError) -> None:
        topic = message.topic()
        if error.code() == KafkaError._PARTITION_EOF:
            # The end may lie behind the last message: transactions leave marks of their own.
            self._fetched[topic] = max(self._fetched[topic], message.offset())
        else:
            self._errors.wait_out(f"{topic or 'Kafka'}[{self._partition}]", error)

    def _restart(self, topic: str) -> None:
        """Read a topic again from its first message: the offset that we asked for is gone."""
        offset = self._fetched[topic]
        self._place(topic, offset, "earliest")
        log.warning(
            "%s[%d]: offset %d is gone: reading from %d",
            *(topic, self._partition, offset, self._fetched[topic]),
        )
        self._assign()

    def _arrived(self) -> list[RawMessage]:
        """Return messages in the order of arrival."""
        messages = self._fetch()
        for message in messages:
            self._next[message.topic] = message.offset + 1
        return messages

    def _merged(self) -> list[RawMessage]:
        """Return messages in the order of their timestamps, and move on at the ends."""
        merged = self._take()
        if len(merged) < self._batch_size:
            for message in self._fetch():
                if not self._stop_at_end or message.offset < self._ends[message.topic]:
                    self._ahead[message.topic].append(message)
            merged += self._take(self._batch_size - len(merged))
        self._hold_back()
        for message in merged:
            self._next[message.topic] = message.offset + 1
        if all(self._is_at_end(topic) for topic in self._open):
            self._finish_stage(is_idle=not merged)
        return merged

    def _finish_stage(self, is_idle: bool) -> None:
        for topic in self._open:  # past marks of transactions, short of what we leave unread
            read = min(self._fetched[topic], self._ends[topic])
            self._next[topic] = max(self._next[topic], read)
        if self._stages:
            self._open_stage()
        elif not self._stop_at_end:
            self._is_merging = False
        elif is_idle:
            raise StopIteration

    def _take(self, n: int | None = None) -> list[RawMessage]:
        """Take at most `n` messages, for as long as the next one is certain."""
        n = self._batch_size if n is None else n
        merged: list[RawMessage] = []
        ahead = [self._ahead[topic] for topic in self._open]
        while len(merged) < n:
            first: deque[RawMessage] | None = None
            for topic, queue in zip(self._open, ahead, strict=True):
                if not queue:
                    if self._fetched[topic] < self._ends[topic]:
                        return merged  # its next message may be the oldest: wait for it
                elif first is None or queue[0].timestamp_ms < first[0].timestamp_ms:
                    first = queue
            if first is None:
                break
            merged.append(first.popleft())
        return merged

    def _hold_back(self) -> None:
        """Pause a topic that is far ahead of the others, and let it go on later."""
        for topic in self._open:
            n_ahead = len(self._ahead[topic])
            where = [TopicPartition(topic, self._partition)]
            if topic in self._paused:
                if n_ahead < self._batch_size:
                    self._paused.discard(topic)
                    self._consumer.resume(where)
            elif n_ahead >= 9 * self._batch_size:
                self._paused.add(topic)
                self._consumer.pause(where)

    def _show_lag(self) -> None:
        now = self._monotonic()
        if now < self._lag_due:
            return
        self._lag_due = now + _LAG_SECONDS
        for topic, gauge in self._lag.items():
            where = TopicPartition(topic, self._partition)
            end = self._consumer.get_watermark_offsets(where, cached=True)[1]
            gauge.set(max(0, max(end, self._ends[topic]) - self._next[topic]))
