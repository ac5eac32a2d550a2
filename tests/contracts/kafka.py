"""One suite for every broker: what sources, sinks, tables and tools promise.

`tests/operators/test_kafka.py` runs it on the embedded broker, `tests/system/test_kafka.py` on a
real one. A subclass gives the fixture `broker`.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, run_main

from operators import metrics
from operators.kafka import (
    CopartitionedSource,
    ExactlyOnceSink,
    KafkaFailure,
    OutRecord,
    RawMessage,
    Reader,
    TableFollower,
    TableSink,
    Writer,
    clear_stop,
    partition_of,
    request_stop,
    stop_requested,
)
from operators.kafka_admin import topic_shapes
from operators.kafka_sink import PartitionWriter
from operators.kafka_source import PartitionReader

# Where brokers keep the producer's timestamps, they take none far ahead of their own clock.
T0_MS = 1_700_000_000_000


class Broker:
    """A broker's settings, and topics of one test's own."""

    def __init__(self, client: dict[str, str], make: Callable[[str], object], test: str) -> None:
        self.client = client
        self._make = make
        self._test = test

    def topic(self, name: str) -> str:
        """Make a topic with 4 partitions; return its full name."""
        full = f"{self._test}.{name}"
        self._make(full)
        return full

    def write(self, topic: str, key: str, values: list[str], stamps: list[int]) -> None:
        """Write values under one key, so to one partition, with timestamps from T0_MS on."""
        # Without idempotence, for that takes half a second to set up.
        writer = Writer(self.client | {"enable.idempotence": "false"})
        for value, stamp in zip(values, stamps, strict=True):
            writer.send(topic, key, value.encode(), timestamp_ms=T0_MS + stamp)
        writer.flush()

    def read(self, topic: str) -> list[RawMessage]:
        """Return all messages of a topic."""
        reader = Reader(self.client, [topic])
        messages = [message for batch in reader for message in batch]
        reader.close()
        return messages


class Words:
    """A decoder that hands on values as words, and counts them."""

    def __init__(self, partition: int = 0, state: int | None = None) -> None:
        self.n_words = state or 0

    def decode(self, messages: list[RawMessage]) -> list[str]:
        self.n_words += len(messages)
        return [(m.value or b"").decode() for m in messages]

    def snapshot(self) -> int:
        return self.n_words


def flat(batches: list[list[str]]) -> list[str]:
    """Return the words of batches, whose limits are the broker's and the network's affair."""
    return [word for batch in batches for word in batch]


def drain(part: PartitionReader[list[str]]) -> list[str]:
    """Return all words up to the noted end."""
    words: list[str] = []
    try:
        while True:
            words += flat(part.next_batch())
    except StopIteration:
        part.close()
    return words


def read_words(broker: Broker, topics: list[str], key: str, **options: Any) -> list[str]:
    """Return the words of the partition where `key` is, in the reader's order."""
    partition = partition_of(key, 4)
    return drain(
        PartitionReader(
            broker.client, topics, partition, decoder=Words(), stop_at_end=True, **options
        )
    )


def record(record_id: str, key: str = "u1") -> OutRecord:
    """Return a record whose value is its id."""
    return OutRecord(key, record_id, record_id.encode(), [("ce_type", b"test")], T0_MS)


def row(key: str, version: int, value: bytes | None = None) -> OutRecord:
    """Return a table's row whose value is its version."""
    return OutRecord(key, f"{key}:{version}", value or b"%d" % version, [], T0_MS)


def recovery(folder: Path) -> RecoveryConfig:
    """Return a recovery store in a new folder."""
    folder.mkdir()
    init_db_dir(folder, 1)
    return RecoveryConfig(str(folder))


class KafkaContract:
    """What holds on every broker; who inherits it has the fixture `broker`."""

    def test_source_resumes_after_the_last_message_it_handed_out(
        self, broker: Broker, tmp_path: Path
    ) -> None:
        topic, out, store = broker.topic("in"), [], recovery(tmp_path / "db")

        def run() -> None:
            source = CopartitionedSource(
                broker.client, [topic], make_decoder=Words, stop_at_end=True
            )
            flow = Dataflow("resume")
            op.output("out", op.input("in", flow, source), TestingSink(out))
            run_main(flow, epoch_interval=timedelta(0), recovery_config=store)

        broker.write(topic, "u1", ["a", "b"], [0, 1])
        run()
        broker.write(topic, "u1", ["c"], [2])
        run()

        assert flat(out) == ["a", "b", "c"]

    def test_decoder_gets_its_snapshot_back(self, broker: Broker) -> None:
        topic = broker.topic("in")
        broker.write(topic, "u1", ["a", "b"], [0, 1])
        source = CopartitionedSource(broker.client, [topic], make_decoder=Words, stop_at_end=True)
        part = source.build_part("in", str(partition_of("u1", 4)), None)
        drain(part)

        topic_id = topic_shapes(broker.client, [topic])[topic].topic_id
        assert part.snapshot() == (((topic, 2, topic_id),), 2)

    def test_the_end_mark_comes_once_behind_what_was_there_at_the_start(
        self, broker: Broker
    ) -> None:
        topic, partition = broker.topic("in"), partition_of("u1", 4)
        broker.write(topic, "u1", ["a", "b"], [0, 1])

        words = read_words(broker, [topic], "u1", batch_size=1, end_mark=["end"])
        following = PartitionReader(
            broker.client, [topic], partition, decoder=Words(), end_mark=["end"]
        )
        found: list[str] = []
        while "end" not in found:
            found += flat(following.next_batch())
        broker.write(topic, "u1", ["c"], [2])
        while "c" not in found:
            found += flat(following.next_batch())
        resumed = PartitionReader(
            *(broker.client, [topic], partition),
            decoder=Words(),
            positions=following.snapshot()[0],
            end_mark=["end"],
        )
        again = resumed.next_batch()
        while not again:
            again += resumed.next_batch()
        following.close()
        resumed.close()

        assert words == ["a", "b", "end"]
        assert found == ["a", "b", "end", "c"]
        assert again == [["end"]]

    def test_an_empty_topic_has_its_end_mark_too(self, broker: Broker) -> None:
        topic = broker.topic("in")

        assert read_words(broker, [topic], "u1", end_mark=["end"]) == ["end"]

    def test_lead_topic_is_read_whole_before_the_others(self, broker: Broker) -> None:
        events, users = broker.topic("events"), broker.topic("users")
        broker.write(events, "u1", ["e1", "e2"], [0, 1])
        broker.write(users, "u1", ["p1", "p2", "p3"], [5, 6, 7])

        words = read_words(broker, [events, users], "u1", lead=[users], batch_size=2)

        assert words == ["p1", "p2", "p3", "e1", "e2"]

    @pytest.mark.parametrize("batch_size", [1, 2, 1_000])
    def test_backlog_is_merged_by_timestamp_whatever_the_batch_size(
        self, broker: Broker, batch_size: int
    ) -> None:
        events, feedback = broker.topic("events"), broker.topic("feedback")
        broker.write(events, "u1", ["e0", "e4", "e2", "e5"], [0, 4, 2, 5])
        broker.write(feedback, "u1", ["f1", "f4", "f9"], [1, 4, 9])

        words = read_words(broker, [events, feedback], "u1", batch_size=batch_size)

        # e2 came late to its own partition, so it stays behind e4; of equals the first topic wins.
        assert words == ["e0", "f1", "e4", "e2", "f4", "e5", "f9"]

    def test_batches_grow_with_what_is_there(self, broker: Broker) -> None:
        topic, sizes = broker.topic("in"), []
        part = PartitionReader(
            *(broker.client, [topic], partition_of("u1", 4)), decoder=Words(), batch_size=100
        )
        broker.write(topic, "u1", ["alone"], [0])
        while sum(sizes) < 1:
            sizes += [len(batch) for batch in part.next_batch()]
        broker.write(topic, "u1", ["many"] * 1_000, [1] * 1_000)
        while sum(sizes) < 1_001:
            sizes += [len(batch) for batch in part.next_batch()]
        part.close()

        assert (sizes[0], max(sizes)) == (1, 100)

    def test_topic_far_ahead_of_the_other_is_paused_and_loses_nothing(self, broker: Broker) -> None:
        events, feedback = broker.topic("events"), broker.topic("feedback")
        broker.write(events, "u1", [f"e{i}" for i in range(3_000)], list(range(3_000)))
        broker.write(feedback, "u1", [f"f{i}" for i in range(3_000)], [2_999] * 3_000)

        words = read_words(broker, [events, feedback], "u1", batch_size=20)

        assert words == [f"e{i}" for i in range(3_000)] + [f"f{i}" for i in range(3_000)]

    def test_interrupted_merge_goes_on_as_if_unbroken(self, broker: Broker) -> None:
        events, feedback = broker.topic("events"), broker.topic("feedback")
        broker.write(events, "u1", ["e0", "e2", "e4"], [0, 2, 4])
        broker.write(feedback, "u1", ["f1", "f3", "f5"], [1, 3, 5])
        part = PartitionReader(
            *(broker.client, [events, feedback], partition_of("u1", 4)),
            decoder=Words(),
            batch_size=3,
        )
        first: list[str] = []
        while not first:
            first = flat(part.next_batch())
        positions, _ = part.snapshot()
        part.close()

        rest = read_words(broker, [events, feedback], "u1", positions=positions)

        assert first + rest == ["e0", "f1", "e2", "f3", "e4", "f5"]

    def test_messages_past_the_noted_end_arrive_too(self, broker: Broker) -> None:
        events, feedback = broker.topic("events"), broker.topic("feedback")
        broker.write(events, "u1", ["e0"], [0])
        part = PartitionReader(
            broker.client, [events, feedback], partition_of("u1", 4), decoder=Words()
        )
        words: list[str] = []
        while words != ["e0"]:
            words += flat(part.next_batch())
        broker.write(feedback, "u1", ["f1"], [1])
        while len(words) < 2:
            words += flat(part.next_batch())
        part.close()

        assert words == ["e0", "f1"]

    def test_snapshot_from_before_topics_had_ids_resumes(self, broker: Broker) -> None:
        topic = broker.topic("in")
        broker.write(topic, "u1", ["a", "b"], [0, 1])

        assert read_words(broker, [topic], "u1", positions=[(topic, 1)]) == ["b"]

    def test_log_that_stays_short_of_our_offset_is_read_on_at_its_end(
        self, broker: Broker, caplog: pytest.LogCaptureFixture
    ) -> None:
        topic = broker.topic("in")
        broker.write(topic, "u1", ["a"], [0])
        lost = metrics.SOURCE_GAPS.labels(topic, "truncated")._value

        with caplog.at_level(logging.WARNING, "pushflow.kafka"):
            part = PartitionReader(
                *(broker.client, [topic], partition_of("u1", 4)),
                decoder=Words(),
                positions=[(topic, 10)],
                come_back_seconds=0.3,
            )
        broker.write(topic, "u1", ["b"], [1])
        words: list[str] = []
        while not words:
            words += flat(part.next_batch())
        part.close()

        assert words == ["b"]
        assert "the log ends at 1, 9 messages before our offset" in caplog.text
        assert lost.get() == 9

    def test_log_that_comes_back_is_read_on_where_we_stood(
        self, broker: Broker, caplog: pytest.LogCaptureFixture
    ) -> None:
        topic = broker.topic("in")
        broker.write(topic, "u1", ["a"], [0])

        def come_back() -> None:
            while "its log ends before" not in caplog.text:
                time.sleep(0.01)
            broker.write(topic, "u1", ["b", "c"], [1, 2])

        with caplog.at_level(logging.WARNING, "pushflow.kafka"):
            broker_heals = threading.Thread(target=come_back)
            broker_heals.start()
            words = read_words(broker, [topic], "u1", positions=[(topic, 2)])
            broker_heals.join()

        assert words == ["c"]
        assert "going on" not in caplog.text

    def test_start_at_latest_passes_over_what_is_there(self, broker: Broker) -> None:
        topic = broker.topic("in")
        broker.write(topic, "u1", ["a"], [0])

        assert read_words(broker, [topic], "u1", start="latest") == []

    def test_source_shows_its_lag(self, broker: Broker) -> None:
        topic, partition = broker.topic("in"), partition_of("u1", 4)
        broker.write(topic, "u1", ["a", "b", "c"], [0, 1, 2])
        gauge = metrics.LAG.labels(topic, str(partition))
        clock = iter(float(second) for second in range(1_000_000))
        part = PartitionReader(
            *(broker.client, [topic], partition),
            decoder=Words(),
            batch_size=2,
            monotonic=lambda: next(clock),
        )
        while not part.next_batch():
            pass
        after_two = gauge._value.get()
        while not part.next_batch():
            pass
        part.close()

        assert (after_two, gauge._value.get()) == (1.0, 0.0)

    def test_source_ends_when_asked_to_stop(self, broker: Broker) -> None:
        topic = broker.topic("in")
        part = CopartitionedSource(broker.client, [topic], make_decoder=Words).build_part(
            "in", "0", None
        )
        request_stop()
        try:
            assert stop_requested()
            with pytest.raises(StopIteration):
                part.next_batch()
        finally:
            clear_stop()
            part.close()

    def test_lead_that_is_not_read_is_refused(self, broker: Broker) -> None:
        with pytest.raises(ValueError, match="users"):
            PartitionReader(broker.client, ["events"], 0, decoder=Words(), lead=["users"])

    def test_resumed_sink_skips_what_stands_beyond_its_snapshot(self, broker: Broker) -> None:
        topic = broker.topic("out")
        first = PartitionWriter(broker.client, topic, 0)
        first.write_batch([record("d1")])
        resume = first.snapshot()
        first.write_batch([record("d2"), record("d3")])
        first.close()
        skipped = metrics.SINK_SKIPPED.labels(topic)._value

        again = PartitionWriter(broker.client, topic, 0, resume=resume)
        again.write_batch([record("d2"), record("d3"), record("d4")])
        again.close()

        assert [m.value for m in broker.read(topic)] == [b"d1", b"d2", b"d3", b"d4"]
        assert skipped.get() == 2

    def test_sink_without_a_snapshot_skips_all_that_stands_there(self, broker: Broker) -> None:
        topic = broker.topic("out")
        first = PartitionWriter(broker.client, topic, 0)
        first.write_batch([record("d1"), record("d2")])
        first.close()

        again = PartitionWriter(broker.client, topic, 0)
        again.write_batch([record("d1"), record("d2"), record("d3")])
        again.close()

        assert [m.value for m in broker.read(topic)] == [b"d1", b"d2", b"d3"]

    def test_recover_from_bounds_what_a_first_start_reads(self, broker: Broker) -> None:
        topic = broker.topic("out")
        first = PartitionWriter(broker.client, topic, 0)
        first.write_batch([record("d1"), record("d2")])
        first.close()

        # Two offsets: the second record's, and that of its transaction's mark.
        again = PartitionWriter(broker.client, topic, 0, recover_from=2)
        again.write_batch([record("d1"), record("d2")])
        again.close()

        assert [m.value for m in broker.read(topic)] == [b"d1", b"d2", b"d1"]

    def test_record_keeps_key_headers_and_timestamp(self, broker: Broker) -> None:
        topic = broker.topic("out")
        sink = PartitionWriter(broker.client, topic, 2)
        sink.write_batch([record("d1", key="用户"), OutRecord("", "d2", None, [], T0_MS + 5)])
        sink.close()

        first, second = broker.read(topic)

        assert first == RawMessage(topic, 2, 0, "用户".encode(), b"d1", T0_MS)
        assert second == RawMessage(topic, 2, 1, None, None, T0_MS + 5)

    def test_sink_and_writer_put_a_key_where_the_client_library_does(self, broker: Broker) -> None:
        topic = broker.topic("out")
        keys = [f"user-{i}" * (i % 4 + 1) for i in range(200)] + ["用户", "é"]
        writer = Writer(broker.client)
        for key in keys:
            writer.send(topic, key, b"", timestamp_ms=T0_MS)
        writer.flush()

        found = {(m.key or b"").decode(): m.partition for m in broker.read(topic)}

        assert found == {key: partition_of(key, 4) for key in keys}

    def test_flow_that_crashes_at_any_item_writes_each_record_once(
        self, broker: Broker, tmp_path: Path
    ) -> None:
        source_topic, topic = broker.topic("in"), broker.topic("out")
        words = [f"w{i}" for i in range(12)]
        broker.write(source_topic, "u1", words, list(range(12)))
        store = recovery(tmp_path / "db")
        crashes = {"w0", "w3", "w4", "w11"}

        def split(batch: list[str]) -> list[tuple[str, OutRecord]]:
            return [(word, record(word, key=word)) for word in batch]

        def crash_after(item: tuple[str, OutRecord]) -> tuple[str, OutRecord]:
            if item[0] in crashes:
                crashes.discard(item[0])
                raise RuntimeError("power cut")
            return item

        def run() -> None:
            source = CopartitionedSource(
                *(broker.client, [source_topic]),
                make_decoder=Words,
                batch_size=2,
                stop_at_end=True,
            )
            flow = Dataflow("once")
            items = op.flat_map("split", op.input("in", flow, source), split)
            op.output("out", items, ExactlyOnceSink(broker.client, topic))
            op.output("crash", op.map("m", items, crash_after), TestingSink([]))
            run_main(flow, epoch_interval=timedelta(0), recovery_config=store)

        n_crashes = 0
        while n_crashes < 10:
            try:
                run()
                break
            except RuntimeError:
                n_crashes += 1

        assert n_crashes == 4
        assert sorted((m.value or b"").decode() for m in broker.read(topic)) == sorted(words)

    def test_sink_tells_what_stands_beyond_its_snapshots(self, broker: Broker) -> None:
        topic = broker.topic("out")
        sink = ExactlyOnceSink(broker.client, topic)
        parts = {key: sink.list_parts()[partition_of(key, 4)] for key in ("u1", "u3")}
        snapshots = {}
        for key, part in parts.items():
            writer = sink.build_part("out", part, None)
            writer.write_batch([record(f"{key}-old", key)])
            snapshots[part] = writer.snapshot()
            writer.write_batch([record(f"{key}-new", key)])
            writer.snapshot()
            writer.close()

        found = [m.value for m in sink.standing({parts["u1"]: snapshots[parts["u1"]]})]

        assert parts["u1"] != parts["u3"]
        assert sorted(found) == [b"u1-new", b"u3-new", b"u3-old"]

    def test_a_record_known_to_stand_elsewhere_is_not_written(self, broker: Broker) -> None:
        topic = broker.topic("out")
        sink = PartitionWriter(broker.client, topic, 0)
        sink.write_batch([record("d1")._replace(is_standing=True), record("d2")])
        sink.close()

        assert [m.value for m in broker.read(topic)] == [b"d2"]

    def test_a_replay_takes_no_table_back(self, broker: Broker) -> None:
        topic, rows = broker.topic("table"), {}
        sink = TableSink(broker.client, topic)
        name = sink.list_parts()[sink.part_fn("p0") % 4]
        first = sink.build_part("out", name, None)
        first.write_batch([row("p0", 1)])
        resume = first.snapshot()
        first.write_batch([row("p0", 2), row("p0", 3), row("p0", 4, b"4 too early")])
        first.snapshot()

        again = sink.build_part("out", name, resume)
        again.write_batch([row("p0", 2), row("p0", 3), row("p0", 4), row("p0", 5)])
        again.snapshot()
        follower = TableFollower(broker.client, {topic: rows.__setitem__})
        follower.load()
        follower.close()

        assert rows == {b"p0": b"5"}
        written = [m.value for m in broker.read(topic)]
        assert written == [b"1", b"2", b"3", b"4 too early", b"4", b"5"]

    def test_a_table_begun_anew_withholds_nothing(self, broker: Broker) -> None:
        topic = broker.topic("table")
        sink = TableSink(broker.client, topic)
        name = sink.list_parts()[sink.part_fn("p0") % 4]
        for version in (7, 1):
            part = sink.build_part("out", name, None)
            part.write_batch([row("p0", version)])
            part.snapshot()

        assert [m.value for m in broker.read(topic)] == [b"7", b"1"]

    def test_follower_loads_tables_whole_and_in_order_then_follows(self, broker: Broker) -> None:
        items, stats, seen, progress = broker.topic("items"), broker.topic("stats"), [], []
        writer = Writer(broker.client)
        for key in ("i1", "i2", "i3"):
            writer.send(items, key, b"item", timestamp_ms=T0_MS)
        writer.send(stats, "i1", b"stats", timestamp_ms=T0_MS)
        writer.send(items, None, b"no key", timestamp_ms=T0_MS)
        writer.flush()
        follower = TableFollower(
            broker.client,
            {items: lambda k, v: seen.append((k, v)), stats: lambda k, v: seen.append((k, v))},
        )

        follower.load(lambda *step: progress.append(step))
        loaded = list(seen)
        writer.send(items, "i2", None, timestamp_ms=T0_MS)
        writer.flush()
        while follower.poll() == 0:
            pass
        follower.close()

        assert sorted(loaded[:3]) == [(b"i1", b"item"), (b"i2", b"item"), (b"i3", b"item")]
        assert loaded[3:] == [(b"i1", b"stats")]
        assert seen[4:] == [(b"i2", None)]
        assert progress[0] == (items, 0, 4)
        assert progress[-1] == (stats, 1, 1)

    def test_reader_knows_its_end(self, broker: Broker) -> None:
        topic = broker.topic("in")
        reader = Reader(broker.client, [topic])
        is_empty = reader.at_end()
        broker.write(topic, "u1", ["a"], [0])
        has_more = not reader.at_end()
        values = [message.value for batch in reader for message in batch]

        assert (is_empty, has_more, values, reader.at_end()) == (True, True, [b"a"], True)
        reader.close()

    def test_reader_from_latest_sees_only_what_comes(self, broker: Broker) -> None:
        topic = broker.topic("in")
        broker.write(topic, "u1", ["a"], [0])
        reader = Reader(broker.client, [topic], "latest")
        broker.write(topic, "u1", ["b"], [1])

        assert [message.value for batch in reader for message in batch] == [b"b"]
        reader.close()

    def test_record_that_is_too_large_is_an_error(self, broker: Broker) -> None:
        topic = broker.topic("out")
        writer = Writer(broker.client | {"message.max.bytes": "2000"})

        with pytest.raises(KafkaFailure, match="MSG_SIZE_TOO_LARGE"):
            writer.send(topic, "u1", b"x" * 3_000)

    def test_full_queue_pushes_back_and_loses_nothing(self, broker: Broker) -> None:
        topic = broker.topic("out")
        small = {"queue.buffering.max.messages": "10"}
        sink = PartitionWriter(broker.client | small, topic, 0)
        sink.write_batch([record(f"d{i}") for i in range(500)])
        sink.close()

        assert [m.value for m in broker.read(topic)] == [b"d%d" % i for i in range(500)]
