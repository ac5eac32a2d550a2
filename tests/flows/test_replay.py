"""Recorded data sent to a broker."""

from collections.abc import Iterator
from io import StringIO
from uuid import uuid4

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition
from rich.console import Console

from flows.recorded import Record, Recording
from flows.replay import Pace, Pacer, replay
from operators.kafka_sink import Writer
from tests.conftest import T0_MS

EVENTS = "push.events.v1"


def recording(*events: Record) -> Recording:
    return Recording(
        [Record("push.items.v1", "i1", b'{"item_id":"i1","title":"T"}', 0)],
        [Record("push.users.v1", "u1", b'{"user_id":"u1"}', 0)],
        lambda: iter(events),
    )


def quiet() -> Console:
    return Console(file=StringIO())


@pytest.fixture
def topics() -> dict[str, str]:
    """Names of this test's own."""
    prefix = uuid4().hex
    return {name: f"{prefix}.{name}" for name in (EVENTS, "push.items.v1", "push.users.v1")}


def read(bootstrap: str, topic: str, n: int) -> "list[Message]":
    settings = {"bootstrap.servers": bootstrap, "group.id": "test", "fetch.wait.max.ms": 10}
    consumer = Consumer(settings)
    # By hand: joining a group takes three seconds.
    consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(4)])
    try:
        return consumer.consume(n, timeout=20)
    finally:
        consumer.close()


def test_events_arrive_in_order_with_their_own_time_as_timestamp(
    embedded_bootstrap: str, topics: dict[str, str]
) -> None:
    events = [Record(EVENTS, "u1", b"%d" % i, T0_MS + i) for i in range(100)]
    writer = Writer({"bootstrap.servers": embedded_bootstrap})

    totals = replay(recording(*events), writer, topics, console=quiet())

    messages = read(embedded_bootstrap, topics[EVENTS], 100)
    assert [m.value() for m in messages] == [e.value for e in events]
    assert [m.timestamp()[1] for m in messages] == [e.time_ms for e in events]
    assert {m.key() for m in messages} == {b"u1"}
    assert (totals.sent, totals.items, totals.users) == (100, 1, 1)


def test_items_and_users_are_delivered_before_the_first_event_is_read(
    embedded_bootstrap: str, topics: dict[str, str]
) -> None:
    found: list[bytes] = []

    def events() -> Iterator[Record]:
        found.extend(m.value() for m in read(embedded_bootstrap, topics["push.items.v1"], 1))
        found.extend(m.value() for m in read(embedded_bootstrap, topics["push.users.v1"], 1))
        yield Record(EVENTS, "u1", b"{}", T0_MS)

    writer = Writer({"bootstrap.servers": embedded_bootstrap})
    replay(recording()._replace(events=events), writer, topics, console=quiet())

    assert found == [b'{"item_id":"i1","title":"T"}', b'{"user_id":"u1"}']


def test_a_limit_and_a_range_of_time_choose_the_events(
    embedded_bootstrap: str, topics: dict[str, str]
) -> None:
    events = [Record(EVENTS, "u1", b"%d" % i, T0_MS + i) for i in range(10)]
    writer = Writer({"bootstrap.servers": embedded_bootstrap})
    pace = Pace(limit=3, from_ms=T0_MS + 2, until_ms=T0_MS + 9)

    totals = replay(recording(*events), writer, topics, pace, quiet())

    assert totals.sent == 3
    assert [m.value() for m in read(embedded_bootstrap, topics[EVENTS], 3)] == [b"2", b"3", b"4"]


def test_an_event_without_a_time_goes_with_the_one_before(
    embedded_bootstrap: str, topics: dict[str, str]
) -> None:
    events = [Record(EVENTS, "u1", b"a", T0_MS), Record(EVENTS, "u1", b"{broken", 0)]
    writer = Writer({"bootstrap.servers": embedded_bootstrap})

    replay(recording(*events), writer, topics, console=quiet())

    messages = read(embedded_bootstrap, topics[EVENTS], 2)
    assert [m.timestamp()[1] for m in messages] == [T0_MS, T0_MS]


def test_old_events_bring_a_warning_about_retention(
    embedded_bootstrap: str, topics: dict[str, str]
) -> None:
    out = StringIO()
    writer = Writer({"bootstrap.servers": embedded_bootstrap})

    replay(recording(Record(EVENTS, "u1", b"{}", T0_MS)), writer, topics, console=Console(file=out))

    assert "older than the 7 days that push.events.v1 is kept" in out.getvalue().replace("\n", " ")


def test_a_late_event_is_sent_at_once_and_does_not_shift_the_clock() -> None:
    now = iter([10.0, 11.0, 12.0])
    pacer = Pacer(1.0, lambda: next(now))

    waits = [pacer.wait_seconds(ms) for ms in (5_000, 4_000, 8_000)]

    assert waits == [0.0, 0.0, 1.0]


def test_as_fast_as_it_goes_never_looks_at_the_clock() -> None:
    assert Pacer(0, lambda: 1 / 0).wait_seconds(T0_MS) == 0.0


def test_a_negative_speed_is_refused() -> None:
    with pytest.raises(ValueError, match="speed must be 0 or more, got -1"):
        Pacer(-1)
