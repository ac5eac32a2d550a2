"""The Kafka suite on a real broker, and what only a real one can show: kills, marks, settings."""

import time
import uuid
from collections.abc import Callable
from pathlib import Path

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSource, run_main
from confluent_kafka import KafkaError, KafkaException, Producer

from operators.kafka import (
    CopartitionedSource,
    ExactlyOnceSink,
    Fenced,
    KafkaFailure,
    Reader,
    TableFollower,
    broker_info,
    create_topics,
    partition_of,
    topic_drift,
)
from operators.kafka_sink import PartitionWriter
from operators.kafka_source import PartitionReader
from operators.kafka_transactions import Lanes, Record, transactional_id
from tests.contracts.kafka import Broker, KafkaContract, Words, drain, record
from tests.system.brokers import KEPT, kill, own_topics, script

pytestmark = pytest.mark.system


class TestOnARealBroker(KafkaContract):
    @pytest.fixture
    def broker(self, client: dict[str, str]) -> Broker:
        return own_topics(client)


def test_topics_of_different_widths_are_refused(client: dict[str, str]) -> None:
    prefix = uuid.uuid4().hex
    specs = [(f"{prefix}.four", 4, 1, KEPT), (f"{prefix}.five", 5, 1, KEPT)]
    create_topics(client, specs)
    source = CopartitionedSource(client, [spec[0] for spec in specs], make_decoder=Words)

    with pytest.raises(KafkaFailure, match=r"same number of partitions.*Add partitions"):
        source.list_parts()


def test_sink_of_twelve_partitions_puts_each_key_in_its_own(client: dict[str, str]) -> None:
    topic = uuid.uuid4().hex
    create_topics(client, [(topic, 12, 1, KEPT)])
    keys = [f"user-{i}" for i in range(100)]
    flow = Dataflow("twelve")
    items = op.input("in", flow, TestingSource([(key, record(key, key)) for key in keys], 100))
    op.output("out", items, ExactlyOnceSink(client, topic))
    run_main(flow)

    found = {(m.key or b"").decode(): m.partition for m in Broker(client, print, "").read(topic)}

    assert found == {key: partition_of(key, 12) for key in keys}


def test_topics_are_made_as_specified_and_drift_is_told(client: dict[str, str]) -> None:
    topic = uuid.uuid4().hex
    made = create_topics(client, [(topic, 3, 1, {"cleanup.policy": "compact"})])
    same = topic_drift(client, [(topic, 3, 1, {"cleanup.policy": "compact"})])
    other = topic_drift(
        client, [(topic, 4, 1, {"cleanup.policy": "delete", "retention.ms": "86400000"})]
    )

    assert made == [topic]
    assert create_topics(client, [(topic, 3, 1, {})]) == []
    assert broker_info(client).partitions[topic] == 3
    assert same == []
    assert other == [
        f"{topic}: has 3 partitions, should have 4",
        f"{topic}: cleanup.policy is compact, should be delete",
        f"{topic}: retention.ms is 604800000, should be 86400000",
    ]


def test_marks_of_transactions_do_not_hide_the_end(client: dict[str, str]) -> None:
    topic, rows = own_topics(client).topic("in"), {}
    producer = Producer(
        client | {"transactional.id": uuid.uuid4().hex, "partitioner": "murmur2_random"}
    )
    producer.init_transactions()
    producer.begin_transaction()
    producer.produce(topic, b"a", "u1")
    producer.commit_transaction()
    follower = TableFollower(client, {topic: rows.__setitem__})
    reader = Reader(client, [topic])

    follower.load()
    words = drain(
        PartitionReader(client, [topic], partition_of("u1", 4), decoder=Words(), stop_at_end=True)
    )
    read = [message.value for batch in reader for message in batch]

    assert (words, rows, read, reader.at_end()) == (["a"], {b"u1": b"a"}, [b"a"], True)
    follower.close()
    reader.close()


def test_a_writer_that_was_taken_over_writes_nothing_more(client: dict[str, str]) -> None:
    broker = own_topics(client)
    topic = broker.topic("out")
    first = PartitionWriter(client, topic, 0, n_lanes=2)
    first.write_batch([record("d1")])
    first.snapshot()
    second = PartitionWriter(client, topic, 0, n_lanes=2)
    second.snapshot()

    first.write_batch([record("d2")])
    with pytest.raises(Fenced, match=rf"another process has taken over {topic}\[0\]"):
        first.snapshot()
    with pytest.raises(Fenced):
        first.write_batch([record("d3")])
    second.write_batch([record("d1"), record("d2")])
    second.close()

    assert [m.value for m in broker.read(topic)] == [b"d1", b"d2"]


class Overtaken(Lanes):
    """Lanes that are taken over behind the first record of a batch, and know it before the last."""

    def _produce(self, lane: Producer, record: Record) -> bool:
        is_taken = super()._produce(lane, record)
        time.sleep(0.5)  # no poll: what librdkafka has found out, only the next call says
        if record["value"] == b"d1":
            Lanes(self._client, self._topic, self._partition).fence()
        return is_taken


def test_a_writer_that_is_taken_over_while_it_hands_out_a_batch_says_so(
    client: dict[str, str],
) -> None:
    lanes = Overtaken(client, own_topics(client).topic("out"), 0)
    lanes.fence()

    with pytest.raises(Fenced, match="another process has taken over"):
        lanes.write([{"value": b"d%d" % n, "headers": [("ce_id", b"d%d" % n)]} for n in (1, 2, 3)])


def test_a_look_at_what_stands_in_a_topic_fences_whoever_wrote_it(client: dict[str, str]) -> None:
    topic = own_topics(client).topic("out")
    sink = ExactlyOnceSink(client, topic)
    writer = sink.build_part("out", "00000", None)
    writer.write_batch([record("d1")])
    writer.snapshot()

    found = [m.value for m in sink.standing({})]
    writer.write_batch([record("d2")])

    assert found == [b"d1"]
    with pytest.raises(Fenced):
        writer.snapshot()


def test_what_a_dead_writer_left_uncommitted_is_written_again(client: dict[str, str]) -> None:
    broker = own_topics(client)
    topic = broker.topic("out")
    dead = Producer(client | {"transactional.id": transactional_id(topic, 0, 0)})
    dead.init_transactions()
    dead.begin_transaction()
    dead.produce(topic, b"d1", partition=0, headers=[("ce_id", b"d1")])
    dead.flush()

    successor = PartitionWriter(client, topic, 0)
    successor.write_batch([record("d1")])
    successor.close()

    assert [(m.value, m.offset) for m in broker.read(topic)] == [(b"d1", 2)]  # behind d1, aborted
    with pytest.raises(KafkaException):
        dead.commit_transaction()


class Stumbling(Lanes):
    """Lanes whose first commit fails as one does whose records were not delivered."""

    has_stumbled = False

    def _repeat(self, call: Callable[[float], None], seconds: float) -> None:
        if call.__name__ == "commit_transaction" and not self.has_stumbled:
            self.has_stumbled = True
            error = KafkaError(KafkaError.UNKNOWN_PRODUCER_ID, "stumbled", txn_requires_abort=True)
            raise KafkaException(error)
        super()._repeat(call, seconds)


def test_a_transaction_that_failed_is_aborted_and_written_again(client: dict[str, str]) -> None:
    broker = own_topics(client)
    topic = broker.topic("out")
    lanes = Stumbling(client, topic, 0)
    lanes.fence()
    lanes.write([{"value": value, "headers": [("ce_id", value)]} for value in (b"d1", b"d2")])
    lanes.write([{"value": b"d3", "headers": [("ce_id", b"d3")]}])

    assert lanes.has_stumbled
    assert [m.value for m in broker.read(topic)] == [b"d1", b"d2", b"d3"]


def test_what_a_failed_transaction_committed_after_all_is_not_written_again(
    client: dict[str, str],
) -> None:
    lanes = Lanes(client, own_topics(client).topic("out"), 0)
    first, second = ({"value": value, "headers": [("ce_id", value)]} for value in (b"d1", b"d2"))
    lanes.fence()
    lanes.write([first])
    lanes.next_offset = 0  # as when the answer to the commit was lost

    assert lanes._not_standing([first, second]) == [second]


def test_killed_broker_loses_nothing_of_a_sink_and_hides_nothing_from_a_source(
    mortal_kafka: Path,
) -> None:
    client = {"bootstrap.servers": script("status", mortal_kafka).stdout.split()[-1]}
    create_topics(client, [("out", 1, 1, KEPT)])
    sink = PartitionWriter(client, "out", 0, n_lanes=2)
    source = PartitionReader(client, ["out"], 0, decoder=Words())
    n_records, read = 0, []
    for n_written in (5_000, 10_000, 15_000):
        while n_records < n_written:
            sink.write_batch([record(f"d{i}") for i in range(n_records, n_records + 100)])
            n_records += 100
            read += [word for batch in source.next_batch() for word in batch]
        kill(mortal_kafka)  # with records on their way
        sink.write_batch([record(f"d{i}") for i in range(n_records, n_records + 100)])
        n_records += 100
        restarted = script("start", mortal_kafka)
        assert restarted.returncode == 0, restarted.stderr
        sink.snapshot()
    while len(read) < n_records:
        read += [word for batch in source.next_batch() for word in batch]
    sink.close()
    source.close()

    assert read == [f"d{i}" for i in range(n_records)]


def test_script_keeps_data_and_address_over_a_stop(mortal_kafka: Path) -> None:
    before = script("status", mortal_kafka).stdout.split()[-1]
    create_topics({"bootstrap.servers": before}, [("kept", 3, 1, KEPT)])
    script("stop", mortal_kafka)
    stopped = script("status", mortal_kafka)
    after = script("start", mortal_kafka).stdout.split()[-1]

    assert stopped.returncode == 1
    assert "deploy/kafka/kafka start" in stopped.stderr
    assert after == before
    assert broker_info({"bootstrap.servers": after}).partitions["kept"] == 3
