"""One partition number of several topics, read as one sequence.

Reads   partition p of every topic given, by one consumer.
Emits   one decoded item for each poll that found messages.
Owns    the order between topics, and the rule for an offset that is not there.

The order is what a replay rests on. A reader first notes where each topic ends. Up to there it
merges the topics by message timestamp (ties: the order of `topics`), and waits for the topic
whose next message it does not have yet, so the sequence follows from the topics alone and not
from the network. Topics named in `lead` are read to that end before the others begin. Past the
noted ends messages are handed out as they arrive.

The rule for an offset that is not there, at the start and while running, each time with a warning
and counted in `pushflow_source_gaps_total`:

- The topic was made anew (its id is another): begin at its first message.
- Retention has deleted the offset: go on at the first message that is left.
- The log ends before the offset: wait, for a broker that recovers shows a short log for a moment.
  If the log does not come back, the broker has lost what we have read (an unclean election): go on
  at its end. What was read is never read again.

Bytewax comes in at `operators.kafka`; nothing here knows it.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, Literal, NamedTuple, Protocol, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from operators.hops import RawMessage
from operators.kafka_admin import look_at_topics, open_admin, topic_shapes
from operators.kafka_client import (
    ErrorLog,
    attempts,
    consumer_settings,
    is_filler,
    log,
    watermarks,
)
from operators.metrics import LAG, SOURCE_GAPS

Start = Literal["earliest", "latest"]
Item_co = TypeVar("Item_co", covariant=True)
# (topic, next offset, id of the topic); snapshots of releases before ids lack the third.
Position = tuple[str, int, str | None] | tuple[str, int]
Snapshot = tuple[tuple[Position, ...], Any]  # positions, decoder's state

_LAG_SECONDS: Final = 1.0  # between two updates of the lag
_LOOK_SECONDS: Final = 0.5  # between two looks for an offset that is not there
# How long a short log may take to come back: a broker that was killed serves its logs within
# seconds of answering; an unclean election never gives back what it has lost.
COME_BACK_SECONDS: Final = 30.0


class Log(NamedTuple):
    """What a partition holds now: offsets from `low` to before `end`."""

    topic_id: str | None
    low: int
    end: int


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
    positions
        Where to go on, from `snapshot`. A topic that they lack begins at `start`.
    topic_ids
        The topics' ids now, by topic, where they are known already; None: ask the broker.
    batch_size
        Messages a poll hands out at most.
    start
        Where a topic without an offset begins. "latest" takes the end at the first start; a
        crash before the first snapshot then loses what came in between.
    stop_at_end
        End where the topics ended when the reader started.
    end_mark
        An item to hand out once, when all is read that was there at the start.
    come_back_seconds
        How long to wait for logs that end before our offsets: at the start in all, while running
        for each.
    monotonic
        Clock in seconds, for the lag gauge and for that wait while running.

    Raises
    ------
    operators.kafka_client.KafkaFailure
        If Kafka refuses (access, authentication), or does not answer within a minute at the
        start. A broker that goes away later is waited for.

    Attributes
    ----------
    waited_seconds
        How much of `come_back_seconds` the start has used.

    Notes
    -----
    While running, a topic made anew is noticed when its log is shorter than our offset; else
    `operators.kafka_watch` notices. Its messages up to that offset are then read by the next
    start, and those behind it twice. Where the broker has no ids (the embedded one), such a topic
    counts as a log that is shorter, or as the old one.

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
        positions: Sequence[Position] = (),
        topic_ids: Mapping[str, str | None] | None = None,
        batch_size: int = 1_000,
        start: Start = "earliest",
        stop_at_end: bool = False,
        end_mark: Item_co | None = None,
        come_back_seconds: float = COME_BACK_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if unknown := set(lead) - set(topics):
            raise ValueError(f"lead names topics that are not read: {sorted(unknown)}")
        self._decoder = decoder
        self._partition = partition
        self._batch_size = batch_size
        self._stop_at_end = stop_at_end
        self._come_back_seconds = come_back_seconds
        self.waited_seconds = 0.0
        self._monotonic = monotonic
        self._lag_due = self._look_due = monotonic()
        self._lag = {topic: LAG.labels(topic, str(partition)) for topic in topics}
        self._client = client
        self._errors = ErrorLog(client)
        self._consumer = Consumer(
            consumer_settings(client, {"error_cb": self._errors.on_error}),
        )
        self._next: dict[str, int] = {}  # of what was handed out
        self._fetched: dict[str, int] = {}  # of what came from the broker
        self._ends: dict[str, int] = {}  # as noted at the start
        self._ahead: dict[str, deque[RawMessage]] = {topic: deque() for topic in topics}
        self._paused: set[str] = set()
        self._astray: dict[str, float | None] = {}  # offset not there -> since when, if known
        if topic_ids is None:
            topic_ids = {name: s.topic_id for name, s in topic_shapes(client, topics).items()}
        self._ids = {topic: topic_ids.get(topic) for topic in topics}
        known = {position[0]: position for position in positions}
        for topic in topics:
            self._place(topic, known.get(topic), start)
        self._stages = [stage for stage in (list(lead), list(topics)) if stage]
        self._open: list[str] = []
        self._is_merging = True
        self._end_mark = end_mark
        self._was_at_end = False
        self._open_stage()

    def next_batch(self) -> list[Item_co]:
        """Return the next item, if any; never wait.

        Raises
        ------
        StopIteration
            At the noted ends, if `stop_at_end`.
        """
        self._errors.check()
        if self._astray:
            self._find_again()
        messages = self._merged() if self._is_merging else self._arrived()
        self._show_lag()
        item = self._decoder.decode(messages) if messages else None
        mark = None
        if self._was_at_end:
            mark, self._end_mark = self._end_mark, None
        return [found for found in (item, mark) if found is not None]

    def snapshot(self) -> Snapshot:
        """Return what resumes reading after the last message handed out."""
        positions = ((topic, at, self._ids[topic]) for topic, at in sorted(self._next.items()))
        return tuple(positions), self._decoder.snapshot()

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def _place(self, topic: str, position: Position | None, start: Start) -> None:
        """Note a topic's end and where reading begins."""
        low, end = watermarks(self._consumer, topic, self._partition)
        if position is None:
            self._go_on(topic, low if start == "earliest" else end, end)
            return
        offset, topic_id = position[1], position[2] if len(position) > 2 else None
        what = f"offset {offset} of {topic}[{self._partition}]: its log ends before"
        began = time.monotonic()
        for is_last in attempts(self._come_back_seconds - self.waited_seconds, what):
            low, end = watermarks(self._consumer, topic, self._partition)
            there = Log(self._ids[topic], low, end)
            found = self._where(topic, offset, topic_id, there, may_wait=not is_last)
            if found is not None:
                self.waited_seconds += time.monotonic() - began
                self._go_on(topic, found, end)
                return

    def _go_on(self, topic: str, offset: int, end: int) -> None:
        self._next[topic] = self._fetched[topic] = offset
        self._ends[topic] = end

    def _where(
        self, topic: str, offset: int, topic_id: str | None, there: Log, *, may_wait: bool
    ) -> int | None:
        """Return where to go on by the rule of the module; None: wait."""
        if topic_id and there.topic_id and topic_id != there.topic_id:
            self._warn(topic, "recreated", 1, f"was made anew: beginning at offset {there.low}")
            return there.low
        if offset < there.low:
            n = there.low - offset
            text = f"offset {offset} is gone: going on at {there.low}, {n} messages unread"
            self._warn(topic, "retention", n, text)
            return there.low
        if offset <= there.end:
            return offset
        if may_wait:
            return None
        n = offset - there.end
        text = f"the log ends at {there.end}, {n} messages before our offset: going on at its end"
        self._warn(topic, "truncated", n, text)
        return there.end

    def _warn(self, topic: str, reason: str, n: int, text: str) -> None:
        SOURCE_GAPS.labels(topic, reason).inc(n)
        log.warning("%s[%d]: %s", topic, self._partition, text)

    def _find_again(self) -> None:
        """Look now and then for the offsets that the broker did not have, and go on."""
        now = self._monotonic()
        if now < self._look_due:
            return
        self._look_due = now + _LOOK_SECONDS
        # What is left of a topic goes first, for a snapshot holds one position of it.
        for topic in [topic for topic in self._astray if not self._ahead[topic]]:
            if (there := self._look_at(topic)) is None:
                continue
            since = self._astray[topic]
            since = self._astray[topic] = now if since is None else since
            may_wait = now - since < self._come_back_seconds
            where = self._fetched[topic], self._ids[topic]
            if (found := self._where(topic, *where, there, may_wait=may_wait)) is not None:
                del self._astray[topic]
                self._ids[topic] = there.topic_id
                self._go_on(topic, found, there.end)
                self._assign()

    def _look_at(self, topic: str) -> Log | None:
        """Return what a topic holds now; None where the broker does not tell at once."""
        try:
            shape = look_at_topics(open_admin(self._client), [topic], _LOOK_SECONDS).get(topic)
            if shape is None:
                return None
            where = TopicPartition(topic, self._partition)
            found = self._consumer.get_watermark_offsets(where, timeout=_LOOK_SECONDS)
        except KafkaException as exception:
            self._errors.wait_out(f"{topic}[{self._partition}]", exception.args[0])
            return None
        return None if found is None else Log(shape.topic_id, *found)

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
        fetched = self._fetched
        for message in self._consumer.consume(self._batch_size, 0):
            if (error := message.error()) is not None:
                self._on_error(message, error)
                continue
            if is_filler(message):
                fetched[message.topic()] = message.offset() + 1
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
        return messages

    def _on_error(self, message: Any, error: KafkaError) -> None:
        topic = message.topic()
        if error.code() == KafkaError._PARTITION_EOF:
            # The end may lie behind the last message: transactions leave marks of their own.
            self._fetched[topic] = max(self._fetched[topic], message.offset())
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            self._astray.setdefault(topic, None)
        else:
            self._errors.wait_out(f"{topic or 'Kafka'}[{self._partition}]", error)

    def _arrived(self) -> list[RawMessage]:
        """Return messages in the order of arrival."""
        messages = self._fetch()
        self._next |= self._fetched  # past marks of transactions too, or the lag would not end
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
            return
        if not self._stop_at_end:
            self._is_merging = False
        elif is_idle and self._was_at_end:
            raise StopIteration
        self._was_at_end = True

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
