"""After a kill, what was written holds, though the replay would choose otherwise by now."""

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from bench.chaos_state import of_decide
from flows.children import FlowProcess
from models.arms import D
from models.posterior import pack_vector, unpack_vector
from operators.codec import encode
from operators.fatigue import PushState, decode_state
from operators.hops import RawMessage
from operators.kafka_tables import Reader
from operators.messages import Decision
from tests.system.harness import (
    DECISIONS,
    POLICY,
    Case,
    Stage,
    Verdict,
    by_id,
    judge,
    total,
    wait,
)

pytestmark = [pytest.mark.system, pytest.mark.slow]

_HOUR = "3600"  # no epoch ends in a test


def move_the_policy(stage: Stage, case: Case) -> None:
    """Teach `decide` the opposite: what it liked to send earns less than nothing."""
    for row in case.world.policy:
        moment = pack_vector(-10 * unpack_vector(row.moment, D))
        other = msgspec.structs.replace(row, version=row.version + 1, moment=moment)
        stage.writer.send(stage.topic(POLICY), row.shard, encode(other))
    stage.writer.flush()


def kill_and_go_on(
    stage: Stage, case: Case, n_written: Callable[[], int], meanwhile: Callable[[], None]
) -> FlowProcess:
    """Stop once, kill once with all since the stop beyond the snapshot, and go on to the end."""
    third = len(case.events) // 3
    stage.fill_tables(case)
    following = {"PUSHFLOW_RANKING__FROZEN": "false"}

    [first] = stage.start("decide", **following)
    stage.send(case.events[:third])
    wait("the first decisions", lambda: n_written() > 50, [first])
    assert first.stop() == 0

    n_before = n_written()
    [second] = stage.start("decide", PUSHFLOW_STATE__EPOCH_SECONDS=_HOUR, **following)
    stage.send(case.events[third : 2 * third])
    assert wait("more decisions", lambda: n_written() > n_before + 100, [second])
    second.kill()
    meanwhile()

    [last] = stage.start("decide", **following)
    stage.send(case.events[2 * third :])
    wait("all decisions", lambda: n_written() >= len(case.expected), [last])
    return last


def sends(rows: list[tuple[str, bytes]]) -> dict[str, PushState]:
    """Return what was sent to each user, as the written decisions say."""
    states: dict[str, PushState] = defaultdict(PushState)
    for _, value in rows:
        decision = msgspec.json.decode(value, type=Decision)
        if decision.outcome in ("send", "defer"):
            assert decision.content is not None
            states[decision.user_id].record_send(
                decision.delivery.send_after, decision.content.item_id
            )
    return dict(states)


def state_of_pushes(directory: Path) -> dict[str, PushState]:
    """Return what the stopped flow knows of each user's sends."""
    rows = of_decide(directory).items()
    found = {user: decode_state(value) for (step, _, user), value in rows if step.endswith("cide")}
    return {user: state for user, state in found.items() if state.sends}


def check(stage: Stage, case: Case, last: FlowProcess, rows: list[tuple[str, bytes]]) -> None:
    """Hold what was written, and the state that is left, against each other."""
    n_withheld = total(last, "pushflow_sink_skipped_total")
    assert last.stop() == 0
    verdict = judge(rows, case.expected)
    assert verdict._replace(other_bytes=0) == Verdict(len(case.expected), 0, 0, 0, 0)
    assert n_withheld > 50  # decisions that a replay came upon again
    assert verdict.other_bytes > 50  # the policy has moved: replays would choose otherwise
    assert state_of_pushes(stage.state) == sends(rows)


def test_the_state_follows_what_was_written_before_a_kill(case: Case, one_stage: Stage) -> None:
    decisions = one_stage.collect(DECISIONS, by_id)

    last = kill_and_go_on(
        one_stage, case, lambda: len(decisions.rows), lambda: move_the_policy(one_stage, case)
    )

    check(one_stage, case, last, decisions.close())


@pytest.fixture
def real_stage(kafka_bootstrap: str, tmp_path: Path) -> Iterator[Stage]:
    """A stage on a broker that can add partitions."""
    built = Stage(kafka_bootstrap, f"{uuid.uuid4().hex[:12]}.", tmp_path)
    yield built
    built.close()


def test_no_trigger_is_answered_twice_where_the_topic_has_grown(
    case: Case, real_stage: Stage
) -> None:
    stage, topic = real_stage, real_stage.topic(DECISIONS)
    rows: list[tuple[str, bytes]] = []
    readers = [Reader(stage.client, [topic])]

    def n_written() -> int:
        messages: list[RawMessage] = readers[-1].read(2_000, 0.05)
        rows.extend(map(by_id, messages))
        return len(rows)

    def meanwhile() -> None:
        move_the_policy(stage, case)
        n_written()
        admin: Any = AdminClient({"bootstrap.servers": stage.client["bootstrap.servers"]})
        admin.create_partitions([NewPartitions(topic, 7)])[topic].result()
        readers.pop().close()
        rows.clear()
        readers.append(Reader(stage.client, [topic]))

    last = kill_and_go_on(stage, case, n_written, meanwhile)

    assert wait("the last decisions", lambda: n_written() >= len(case.expected), [last])
    readers[-1].close()
    check(stage, case, last, rows)
