"""Topics that change under a flow, on a real broker: made anew, cut short, grown."""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewPartitions

from operators import metrics
from operators.kafka_admin import create_topics, open_admin
from operators.kafka_sink import partition_of
from operators.kafka_source import PartitionReader, Position
from operators.kafka_tables import TableFollower
from operators.kafka_watch import TopicWatch
from tests.contracts.kafka import Broker, Words, read_words
from tests.system.brokers import KEPT, kill, own_topics, start

pytestmark = pytest.mark.system

PARTITION = partition_of("u1", 4)


def make_anew(client: dict[str, str], topic: str) -> None:
    """Delete a topic and make it again."""
    admin = open_admin(client)  # must outlive its futures
    for future in admin.delete_topics([topic], request_timeout=30).values():
        future.result()
    while not create_topics(client, [(topic, 4, 1, KEPT)]):
        time.sleep(0.05)


def delete_before(client: dict[str, str], topic: str, offset: int) -> None:
    """Delete what lies before an offset, as retention does."""
    asked = [TopicPartition(topic, PARTITION, offset)]
    admin = open_admin(client)  # must outlive its futures
    for future in admin.delete_records(asked, request_timeout=30).values():
        future.result()


def grow(client: dict[str, str], topics: list[str], n_partitions: int) -> None:
    """Add partitions."""
    asked = [NewPartitions(topic, n_partitions) for topic in topics]
    admin = open_admin(client)  # must outlive its futures
    for future in admin.create_partitions(asked, request_timeout=30).values():
        future.result()


def read_until(part: PartitionReader[list[str]], n_words: int) -> list[str]:
    """Return the next words, at least `n_words` of them."""
    words: list[str] = []
    deadline = time.monotonic() + 60
    while len(words) < n_words:
        assert time.monotonic() < deadline, words
        words += [word for batch in part.next_batch() for word in batch]
    return words


@pytest.fixture
def broker(client: dict[str, str]) -> Broker:
    return own_topics(client)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What sources have warned of so far."""
    caplog.set_level(logging.WARNING, "pushflow.kafka")
    return lambda: caplog.text


def positions_of(broker: Broker, topic: str, n_words: int) -> tuple[Position, ...]:
    """Read some words; return the snapshot's positions."""
    part = PartitionReader(broker.client, [topic], PARTITION, decoder=Words())
    read_until(part, n_words)
    positions, _ = part.snapshot()
    part.close()
    return positions


@pytest.mark.parametrize("new", [["x"], ["x", "y", "z"]], ids=["shorter", "longer"])
def test_topic_made_anew_is_read_from_its_first_message(
    broker: Broker, warnings: Callable[[], str], new: list[str]
) -> None:
    topic = broker.topic("in")
    broker.write(topic, "u1", ["a", "b"], [0, 1])
    positions = positions_of(broker, topic, 2)

    make_anew(broker.client, topic)
    broker.write(topic, "u1", new, [10] * len(new))

    assert read_words(broker, [topic], "u1", positions=positions) == new
    assert "was made anew: beginning at offset 0" in warnings()
    assert metrics.SOURCE_GAPS.labels(topic, "recreated")._value.get() == 1


def test_offset_that_retention_deleted_is_passed_over(
    broker: Broker, warnings: Callable[[], str]
) -> None:
    topic = broker.topic("in")
    broker.write(topic, "u1", ["a"], [0])
    positions = positions_of(broker, topic, 1)

    broker.write(topic, "u1", ["b", "c", "d"], [1, 2, 3])
    delete_before(broker.client, topic, 3)

    assert read_words(broker, [topic], "u1", positions=positions) == ["d"]
    assert "offset 1 is gone: going on at 3, 2 messages unread" in warnings()
    assert metrics.SOURCE_GAPS.labels(topic, "retention")._value.get() == 2


def test_offset_that_retention_deletes_while_running_is_passed_over(broker: Broker) -> None:
    users, events = broker.topic("users"), broker.topic("events")
    broker.write(users, "u1", ["p1"], [0])
    broker.write(events, "u1", ["a", "b", "c"], [1, 2, 3])
    # Events are placed now, and fetched once users have been read.
    part = PartitionReader(
        *(broker.client, [users, events], PARTITION), decoder=Words(), lead=[users]
    )

    delete_before(broker.client, events, 2)
    words = read_until(part, 2)
    part.close()

    assert words == ["p1", "c"]
    assert metrics.SOURCE_GAPS.labels(events, "retention")._value.get() == 2


def test_topic_made_anew_while_running_is_read_from_its_first_message(broker: Broker) -> None:
    topic = broker.topic("in")
    broker.write(topic, "u1", ["a", "b"], [0, 1])
    part = PartitionReader(broker.client, [topic], PARTITION, decoder=Words())
    before = read_until(part, 2)
    (_, _, old_id), *_ = part.snapshot()[0]

    make_anew(broker.client, topic)
    broker.write(topic, "u1", ["x"], [10])
    after = read_until(part, 1)
    (_, offset, new_id), *_ = part.snapshot()[0]
    part.close()

    assert (before, after, offset) == (["a", "b"], ["x"], 1)
    assert old_id != new_id
    assert metrics.SOURCE_GAPS.labels(topic, "recreated")._value.get() == 1


def test_log_that_a_broker_has_lost_is_never_read_again_from_the_first(
    mortal_kafka: Path, warnings: Callable[[], str]
) -> None:
    client = start(mortal_kafka)
    create_topics(client, [("in", 4, 1, KEPT)])
    broker = Broker(client, print, "")
    broker.write("in", "u1", ["a", "b", "c"], [0, 1, 2])
    running = PartitionReader(*(client, ["in"], PARTITION), decoder=Words(), come_back_seconds=0.5)
    read_until(running, 3)
    positions, _ = running.snapshot()

    kill(mortal_kafka)
    shutil.rmtree(mortal_kafka / "node1" / "data" / f"in-{PARTITION}")
    start(mortal_kafka)
    while "going on at its end" not in warnings():
        assert running.next_batch() == []
    broker.write("in", "u1", ["d"], [3])
    went_on = read_until(running, 1)
    running.close()
    resumed = read_words(broker, ["in"], "u1", positions=positions, come_back_seconds=0.3)
    broker.write("in", "u1", ["e", "f", "g"], [4, 5, 6])

    assert went_on == ["d"]
    assert resumed == []
    assert read_words(broker, ["in"], "u1", positions=positions) == ["g"]


def test_table_made_anew_is_read_again_whole(broker: Broker) -> None:
    topic, rows = broker.topic("items"), {}
    broker.write(topic, "u1", ["1", "2"], [0, 1])
    follower = TableFollower(broker.client, {topic: rows.__setitem__})
    follower.load()

    make_anew(broker.client, topic)
    broker.write(topic, "u1", ["3"], [2])
    broker.write(topic, "u2", ["new"], [2])
    deadline = time.monotonic() + 60
    while rows != {b"u1": b"3", b"u2": b"new"}:
        assert time.monotonic() < deadline, rows
        follower.poll()
    follower.close()


class Told(list[str]):
    """Keeps what a watch tells."""


def watch(client: dict[str, str], joined: list[str], others: list[str], told: Told) -> TopicWatch:
    """Watch topics, a look every 50 ms."""
    return TopicWatch(client, joined, others, told.append, seconds=0.05)


def test_watch_tells_once_when_joined_topics_have_all_grown(
    client: dict[str, str], broker: Broker, warnings: Callable[[], str]
) -> None:
    joined, told = [broker.topic("events"), broker.topic("users")], Told()
    looking = watch(client, joined, [broker.topic("out")], told)

    grow(client, joined[:1], 6)
    while "differ in partitions" not in warnings():
        time.sleep(0.01)
    told_early = list(told)
    grow(client, joined[1:], 6)
    while not told:
        time.sleep(0.01)
    looking.close()

    assert told_early == []
    assert told == [f"{joined[0]} has 6 partitions, had 4; {joined[1]} has 6 partitions, had 4"]
    assert warnings().count("differ in partitions") == 1


def test_watch_tells_of_a_topic_made_anew(client: dict[str, str], broker: Broker) -> None:
    events, out, told = broker.topic("events"), broker.topic("out"), Told()
    looking = watch(client, [events], [out], told)

    make_anew(client, out)
    while not told:
        time.sleep(0.01)
    looking.close()

    assert told == [f"{out} was made anew"]
