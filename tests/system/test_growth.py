"""Topics that get more partitions under a running flow: it ends with 75, and goes on with all."""

import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest
from confluent_kafka.admin import NewPartitions

from flows import learn
from flows.supervisor import TOPICS_CHANGED
from operators.kafka_admin import look_at_topics, open_admin
from operators.kafka_sink import Writer
from operators.messages import Decision
from tests.system.harness import (
    DECISIONS,
    EVENTS,
    FEEDBACK,
    N_PARTITIONS,
    PACE,
    USERS,
    Case,
    Stage,
    by_id,
    decided,
    total,
    wait,
)

pytestmark = [pytest.mark.system, pytest.mark.slow]

N_GROWN = 6
JOINED = [USERS, "push.erasures.v1", EVENTS, FEEDBACK, "push.user-signals.v1"]
_DECODED = "pushflow_messages_decoded_total"
WATCH = {"PUSHFLOW_KAFKA__WATCH_SECONDS": "0.2"}


@pytest.fixture
def stage(kafka_bootstrap: str, tmp_path: Path) -> Iterator[Stage]:
    """Topics of this test's own on a real broker."""
    built = Stage(kafka_bootstrap, f"{uuid.uuid4().hex[:12]}.", tmp_path)
    yield built
    built.close()


def grow(stage: Stage, names: list[str]) -> None:
    """Give topics six partitions, and wait until the broker shows them."""
    admin = open_admin(stage.client)
    topics = [stage.topic(name) for name in names]
    for future in admin.create_partitions([NewPartitions(t, N_GROWN) for t in topics]).values():
        future.result()
    wait(
        "six partitions",
        lambda: {s.n_partitions for s in look_at_topics(admin, topics).values()} == {N_GROWN},
    )


def intents(rows: Iterable[tuple[str, bytes]]) -> list[str]:
    """Return the ids of decisions that an event fired, not a timer.

    A timer goes by the clock of its user's partition. Where the user's next event stands in another
    one, and days pass in seconds, it may fire too early or too late.
    """
    found = [msgspec.json.decode(value, type=Decision) for _, value in rows]
    return [d.decision_id for d in found if d.trigger.type == "intent"]


def test_decide_starts_again_for_more_partitions_and_decides_each_trigger_once(
    case: Case, stage: Stage, tmp_path: Path
) -> None:
    half = len(case.events) // 2
    # Nobody is in the middle of a session when the topics grow: half an hour ends it.
    quiet_ms = case.events[half].timestamp_ms - 2_000_000
    first = [m for m in case.events[:half] if m.timestamp_ms < quiet_ms]
    second = case.events[half:]
    undisturbed = decided(case.world, case.profiles, first + second, tmp_path / "expected")
    expected = intents(undisturbed.items())
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)

    [before] = stage.start("decide", **WATCH)
    stage.send(first, PACE)
    # All of it: an event left in an old partition may be read after a later one in a new partition.
    wait("the first half", lambda: total(before, _DECODED, EVENTS) >= len(first), [before])
    grow(stage, JOINED[:2])
    grow(stage, [*JOINED[2:], DECISIONS])
    stage.writer = Writer(stage.client)  # the old one knows four partitions for five minutes more
    stage.send(second)
    assert wait("the end", lambda: before.code is not None, timeout_s=180)
    n_before = len(intents(decisions.close()))
    both = stage.collect(DECISIONS, by_id)
    [after] = stage.start("decide", **WATCH)
    wait("all decisions", lambda: len(intents(both.rows)) >= len(expected), [after])

    assert (before.code, after.stop()) == (TOPICS_CHANGED, 0)
    written = both.close()
    assert 0 < n_before < len(expected)
    assert len(written) == len(dict(written))
    assert sorted(intents(written)) == sorted(expected)


def test_learn_starts_again_for_more_partitions(stage: Stage) -> None:
    [child] = stage.start("learn", **WATCH)

    grow(stage, list(learn.TOPICS))

    assert wait("the end", lambda: child.code is not None, timeout_s=180)
    assert child.code == TOPICS_CHANGED
    [again] = stage.start("learn", **WATCH)
    assert again.stop() == 0
    assert N_GROWN > N_PARTITIONS
