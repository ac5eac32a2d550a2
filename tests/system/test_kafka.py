"""The Kafka suite on a real broker, and what only a real one can show: kills, marks, settings."""

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSource, run_main
from confluent_kafka import Producer

from operators.kafka import (
    CopartitionedSource,
    ExactlyOnceSink,
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
from tests.conftest import ROOT, absent
from tests.contracts.kafka import Broker, KafkaContract, Words, drain, record

pytestmark = pytest.mark.system

SCRIPT = [sys.executable, str(ROOT / "deploy" / "kafka" / "kafka")]
# Messages of tests are dated 2023: with a retention Kafka may drop them at any moment.
KEPT = {"retention.ms": "-1"}


@pytest.fixture
def client(kafka_bootstrap: str) -> dict[str, str]:
    return {"bootstrap.servers": kafka_bootstrap}


def own_topics(client: dict[str, str]) -> Broker:
    """Return the broker, with topics named by a uuid."""
    test = f"test-{uuid.uuid4().hex[:12]}"
    return Broker(client, lambda topic: create_topics(client, [(topic, 4, 1, KEPT)]), test)


class TestOnARealBroker(KafkaContract):
    @pytest.fixture
    def broker(self, client: dict[str, str]) -> Broker:
        return own_topics(client)


def test_topics_of_different_widths_are_refused(client: dict[str, str]) -> None:
    prefix = uuid.uuid4().hex
    specs = [(f"{prefix}.four", 4, 1, KEPT), (f"{prefix}.five", 5, 1, KEPT)]
    create_topics(client, specs)
    source = CopartitionedSource(client, [spec[0] for spec in specs], make_decoder=Words)

    with pytest.raises(KafkaFailure, match=r"same number of partitions.*topics create"):
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


@pytest.fixture
def mortal_kafka(tmp_path: Path) -> Iterator[Path]:
    """The directory of a broker of this test's own, to kill."""
    if not (shutil.which("java") and shutil.which("mvn")):
        absent("java and mvn, for a broker to kill")
    subprocess.run([*SCRIPT, "start", "--dir", str(tmp_path)], check=True, capture_output=True)
    yield tmp_path
    subprocess.run([*SCRIPT, "stop", "--dir", str(tmp_path)], check=True, capture_output=True)


def script(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run the start and stop script."""
    return subprocess.run(
        [*SCRIPT, command, "--dir", str(folder)], check=False, capture_output=True, text=True
    )


def kill(folder: Path) -> None:
    """Kill the broker as a power cut would."""
    os.kill(int((folder / "node1" / "pid").read_text()), signal.SIGKILL)


def test_killed_broker_loses_nothing_of_a_sink_and_hides_nothing_from_a_source(
    mortal_kafka: Path,
) -> None:
    client = {"bootstrap.servers": script("status", mortal_kafka).stdout.split()[-1]}
    create_topics(client, [("out", 1, 1, KEPT)])
    sink = PartitionWriter(client, "out", 0)
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
