"""Sources, sinks, tables and tools on the embedded broker, and what needs no broker at all."""

import gc
import re

import pytest
from confluent_kafka import KafkaError

from operators.embedded import EmbeddedBroker
from operators.kafka import (
    KafkaFailure,
    Reader,
    Writer,
    broker_info,
    create_topics,
    topic_drift,
    touch_topics,
)
from operators.kafka_client import count_partitions, is_transient, open_consumer
from operators.kafka_sink import PartitionWriter, murmur2
from tests.conftest import free_port
from tests.contracts.kafka import Broker, KafkaContract, record


class TestOnTheEmbeddedBroker(KafkaContract):
    @pytest.fixture
    def broker(self, embedded_bootstrap: str, request: pytest.FixtureRequest) -> Broker:
        client = {"bootstrap.servers": embedded_bootstrap}
        test = re.sub(r"\W", "_", request.node.name)
        return Broker(client, lambda topic: touch_topics(client, [topic]), test)


@pytest.mark.parametrize(
    ("key", "expected"),
    [  # UtilsTest.testMurmur2 of the Java client
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_the_java_clients(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected % 2**32


def test_embedded_broker_is_found_through_the_port_asked_for() -> None:
    port = free_port()
    with EmbeddedBroker(port) as broker:
        writer = Writer({"bootstrap.servers": f"127.0.0.1:{port}"})
        writer.send("through-the-door", "u1", b"hello")
        writer.flush()
        reader = Reader(broker.client, ["through-the-door"])
        values = [message.value for batch in reader for message in batch]
        reader.close()

    assert broker.bootstrap == f"127.0.0.1:{port}"
    assert values == [b"hello"]


def test_embedded_broker_says_when_its_port_is_taken() -> None:
    port = free_port()
    with EmbeddedBroker(port), pytest.raises(OSError, match=f"port {port}"):
        EmbeddedBroker(port).__enter__()


def test_embedded_broker_makes_topics_when_they_are_asked_for(embedded_bootstrap: str) -> None:
    client = {"bootstrap.servers": embedded_bootstrap}
    specs = [("made-anew", 4, 1, {"cleanup.policy": "compact"}), ("made-wide", 9, 1, {})]

    before = topic_drift(client, specs)
    made = create_topics(client, specs)

    assert before == ["made-anew: is not there", "made-wide: is not there"]
    assert made == ["made-anew", "made-wide"]
    assert broker_info(client).partitions["made-anew"] == 4
    assert topic_drift(client, specs) == ["made-wide: has 4 partitions, should have 9"]
    assert create_topics(client, specs) == []


def test_broker_that_does_not_answer_is_named_with_a_mend() -> None:
    client = {"bootstrap.servers": f"127.0.0.1:{free_port()}", "log_level": "0"}

    with pytest.raises(KafkaFailure, match=r"no Kafka answers at 127\.0\.0\.1.*doctor"):
        broker_info(client, timeout_s=0.5)


def test_start_says_what_it_waits_for_and_then_gives_up_with_a_mend(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = {"bootstrap.servers": f"127.0.0.1:{free_port()}", "group.id": "g", "log_level": "0"}

    with open_consumer(client) as consumer, pytest.raises(KafkaFailure, match="topics create"):
        count_partitions(consumer, "push.events.v1", "here", wait_s=0.3)

    assert "waiting up to 0 s for topic push.events.v1 at here" in caplog.text


@pytest.mark.parametrize("name", ["_TRANSPORT", "_DESTROY_BROKER", "NOT_LEADER_FOR_PARTITION"])
def test_trouble_of_a_cluster_whose_nodes_come_and_go_is_waited_out(name: str) -> None:
    assert is_transient(KafkaError(getattr(KafkaError, name)))


@pytest.mark.parametrize("name", ["_AUTHENTICATION", "TOPIC_AUTHORIZATION_FAILED", "_FATAL"])
def test_trouble_that_waiting_does_not_mend_is_not_waited_out(name: str) -> None:
    assert not is_transient(KafkaError(getattr(KafkaError, name)))


def test_record_that_is_not_delivered_stops_the_sink() -> None:
    with EmbeddedBroker() as broker:
        touch_topics(broker.client, ["out"])
        sink = PartitionWriter(
            broker.client | {"message.timeout.ms": "300", "log_level": "0"}, "out", 0
        )
        sink.snapshot()  # it is open
    sink.write_batch([record("d1")])

    with pytest.raises(KafkaFailure, match=r"out was not delivered.*_MSG_TIMED_OUT"):
        sink.snapshot()


def test_a_full_queue_makes_the_flow_wait() -> None:
    with EmbeddedBroker() as broker:
        touch_topics(broker.client, ["out"])
        sink = PartitionWriter(
            broker.client | {"message.timeout.ms": "300", "log_level": "0"}, "out", 0, max_waiting=3
        )
        sink.snapshot()  # it is open
    n_taken = 0

    def write_on() -> None:
        nonlocal n_taken
        while True:
            sink.write_batch([record(f"d{n_taken}")])
            n_taken += 1

    with pytest.raises(KafkaFailure, match="out was not delivered"):
        write_on()  # nothing goes out, so it waits until that is known
    assert n_taken <= 6  # as many on their way, and as many waiting


def test_a_writer_that_is_dropped_ends_its_thread_and_leaves_its_queue_unwritten() -> None:
    with EmbeddedBroker() as broker:
        touch_topics(broker.client, ["out"])
        sink = PartitionWriter(broker.client, "out", 0)
        sink.snapshot()
        thread = sink._thread
        del sink
        gc.collect()

    assert not thread.is_alive()
