"""100,000 malformed messages among 5,000 good ones: each tells where it stood and why."""

import base64
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer

from operators.hops import RawMessage
from operators.kafka_client import producer_settings
from operators.kafka_sink import partition_of
from operators.messages import DeadLetter
from tests.system import rubbish
from tests.system.harness import (
    DEAD,
    DECISIONS,
    EVENTS,
    N_PARTITIONS,
    Case,
    Collector,
    Stage,
    Verdict,
    by_id,
    decided,
    judge,
    stop,
    total,
    wait,
)

pytestmark = [pytest.mark.system, pytest.mark.slow]

N_MALFORMED, N_VALID = 100_000, 5_000
_BEHIND = 8_000  # malformed messages under way at most: the embedded broker drops what is older

Origin = tuple[str, int, int]  # topic, partition, offset


class Sender:
    """Sends messages, and notes where the broker has put the malformed ones."""

    def __init__(self, stage: Stage) -> None:
        self._topic = stage.topic
        self._producer = Producer(producer_settings(stage.client))
        self.origins: dict[Origin, rubbish.Malformed] = {}

    def send(self, message: rubbish.Malformed | RawMessage, time_ms: int) -> None:
        """Send one message, dated `time_ms`, to the partition of its key (0 without one)."""
        key = message.key.decode(errors="replace") if message.key else ""
        is_bad = isinstance(message, rubbish.Malformed)

        def note(error: Any, where: Any) -> None:
            assert error is None, error
            if is_bad:
                self.origins[where.topic(), where.partition(), where.offset()] = message

        self._producer.produce(
            self._topic(message.topic),
            value=message.value,
            key=message.key,
            partition=partition_of(key, N_PARTITIONS),
            on_delivery=note,
            timestamp=time_ms,
        )
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until all has arrived."""
        assert self._producer.flush(30) == 0


def letter(message: RawMessage) -> DeadLetter:
    """Return a dead letter."""
    return msgspec.json.decode(message.value or b"", type=DeadLetter)


def origin(found: DeadLetter) -> Origin:
    """Return where it stood."""
    return found.topic, found.partition, found.offset


def send_mixed(
    sender: Sender, good: list[RawMessage], bad: list[rubbish.Malformed], letters: Collector
) -> None:
    """Send good messages evenly among the bad, no faster than dead letters come back."""
    share, n_bad = len(bad) // len(good), 0
    for message in good:
        for one in bad[n_bad : n_bad + share]:
            sender.send(one, message.timestamp_ms)
        sender.send(message, message.timestamp_ms)
        n_bad += share
        too_far = n_bad - _BEHIND
        assert wait("dead letters", lambda n=too_far: len(letters.rows) >= n)  # type: ignore[misc]
    sender.flush()


def is_told(found: DeadLetter, sent: rubbish.Malformed | None) -> bool:
    """Whether a dead letter says what was sent, and a reason that is right for it."""
    if sent is None or found.reason not in sent.reasons:
        return False
    value = sent.value or b""
    payload = base64.b64encode(value[:8_192]).decode()
    return (found.size_bytes, found.payload) == (len(value), payload) and found.detail != ""


def test_rubbish_is_told_of_and_takes_nothing_from_good_events(
    case: Case, one_stage: Stage, tmp_path: Path
) -> None:
    good = case.events[: N_VALID - N_PARTITIONS] + case.events[-N_PARTITIONS:]
    expected = decided(case.world, case.profiles, good, tmp_path / "expected")
    samples = {topic: [rubbish.valid(topic)] for topic in rubbish.VALID}
    samples[EVENTS] += [message.value or b"" for message in good]
    times_ms = [message.timestamp_ms for message in good for _ in range(N_MALFORMED // N_VALID)]
    bad = list(rubbish.malformed(1, N_MALFORMED, samples, times_ms))
    one_stage.fill_tables(case)
    sender, letters = Sender(one_stage), one_stage.collect(DEAD, letter)
    decisions = one_stage.collect(DECISIONS, by_id)
    [child] = one_stage.start("decide")

    send_mixed(sender, good, bad, letters)
    wait("all dead letters", lambda: len(letters.rows) >= N_MALFORMED, [child])
    wait("all decisions", lambda: len(decisions.rows) >= len(expected), [child])
    n_decoded = total(child, "pushflow_messages_decoded_total", EVENTS)
    n_counted = total(child, "pushflow_dead_letters_total")
    code = child.stop()

    assert (code, n_decoded, n_counted) == (0, N_VALID, N_MALFORMED)
    origins = Counter(origin(found) for found in letters.close())
    assert (len(letters.rows), max(origins.values())) == (N_MALFORMED, 1)
    assert origins.keys() == sender.origins.keys()
    wrong = [row for row in letters.rows if not is_told(row, sender.origins.get(origin(row)))]
    assert wrong[:5] == []
    assert judge(decisions.close(), expected) == Verdict(len(expected), 0, 0, 0, 0)


def test_odd_but_good_messages_stop_no_cluster(case: Case, stage: Stage, tmp_path: Path) -> None:
    good = case.events[:1_000] + case.events[-N_PARTITIONS:]
    expected = decided(case.world, case.profiles, good, tmp_path / "expected")
    odd = rubbish.odd(good[500].timestamp_ms)
    n_events = len(good) + sum(message.topic == EVENTS for message in odd)
    stage.fill_tables(case)
    sender, letters = Sender(stage), stage.collect(DEAD, letter)
    decisions = stage.collect(DECISIONS, by_id)
    children = stage.start("decide", size=2)
    name = "pushflow_messages_decoded_total"

    for message in [*good[:500], *odd, *good[500:]]:
        sender.send(message, message.timestamp_ms)
    sender.flush()
    wait("events", lambda: sum(total(c, name, EVENTS) for c in children) >= n_events, children)
    wait("decisions", lambda: len(decisions.rows) >= len(expected), children)
    codes = stop(children)
    verdict = judge(decisions.close(), expected)

    assert codes == [0, 0]
    assert letters.close() == []
    assert (verdict.lost, verdict.twice, verdict.other_bytes) == (0, 0, 0)
