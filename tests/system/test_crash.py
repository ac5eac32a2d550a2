"""Killed at any moment, `decide` decides each trigger once, and `learn` learns each reward once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from flows import decide, learn
from flows.children import FlowProcess
from models.arms import D
from models.posterior import Posterior, Statistics, merge, unpack_lower, unpack_vector
from operators.hops import RawMessage
from operators.messages import Decision, Feedback, PolicyShard
from tests.flows import world as w
from tests.system.harness import (
    DECISIONS,
    FEEDBACK,
    N_PARTITIONS,
    PACE,
    POLICY,
    Case,
    Stage,
    Verdict,
    as_messages,
    by_id,
    in_time_order,
    judge,
    moments,
    one_a_partition,
    total,
    wait,
)

pytestmark = [pytest.mark.system, pytest.mark.slow]

_SKIPPED = "pushflow_sink_skipped_total"
# Feedback waits this long for its decision, and is taken as long after: in a live stream the
# order between topics is that of arrival, and here two days pass in seconds.
_WINDOW_SECONDS = 10 * 86_400


def run_through_kills(
    stage: Stage, flow: str, messages: list[RawMessage], kills: list[int], rows: list[Any]
) -> tuple[FlowProcess, int]:
    """Send all messages at a steady pace, killing the flow after each number of them.

    Each time the flow is let live until it has written a new row. Returns the child that lives
    in the end, and how many records the sinks skipped before.
    """
    n_skipped = 0
    values = {"PUSHFLOW_REWARDS__WINDOW_SECONDS": str(_WINDOW_SECONDS)} if flow == "learn" else {}
    for start, kill_at in zip([0, *kills], kills, strict=False):
        [child] = stage.start(flow, **values)
        n_rows = len(rows)
        stage.send(messages[start:kill_at], PACE)
        assert wait("a new row", lambda n=n_rows: len(rows) > n, [child])  # type: ignore[misc]
        n_skipped += int(total(child, _SKIPPED))
        child.kill()
    [child] = stage.start(flow, **values)
    stage.send(messages[kills[-1] :], PACE)
    return child, n_skipped


def test_five_kills_of_decide_lose_nothing_and_change_no_byte(case: Case, stage: Stage) -> None:
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)
    kills = moments(1, len(case.events), 5)

    child, n_skipped = run_through_kills(stage, "decide", case.events, kills, decisions.rows)
    wait("all decisions", lambda: len(decisions.rows) >= len(case.expected), [child])

    assert child.stop() == 0
    assert judge(decisions.close(), case.expected) == Verdict(len(case.expected), 0, 0, 0, 0)
    assert n_skipped > 0  # a kill left decisions behind that no snapshot knew of


def test_a_graceful_stop_leaves_nothing_to_replay(case: Case, stage: Stage) -> None:
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)
    half = len(case.events) // 2

    [first] = stage.start("decide")
    stage.send(case.events[:half])
    wait("the first decisions", lambda: len(decisions.rows) > 50, [first])
    first_code = first.stop()
    n_before = len(decisions.rows)
    [second] = stage.start("decide")
    stage.send(case.events[half:])
    wait("all decisions", lambda: len(decisions.rows) >= len(case.expected), [second])
    skipped = {n for (name, _), n in second.samples().items() if name == _SKIPPED}

    assert (first_code, second.stop()) == (0, 0)
    assert n_before < len(case.expected)
    assert skipped == {0}
    assert judge(decisions.close(), case.expected) == Verdict(len(case.expected), 0, 0, 0, 0)


@pytest.fixture(scope="session")
def answers(case: Case) -> list[RawMessage]:
    """Decisions with the feedback that they earn; at the end a day passes, and settles all."""
    found = [msgspec.json.decode(value, type=Decision) for value in case.expected.values()]
    found.sort(key=lambda decision: (decision.decided_at, decision.decision_id))
    feedback = {f.feedback_id: f for d in found for f in case.population.respond(d, d.decided_at)}
    newest_ms = max(f.time_ms for f in feedback.values())
    end_ms = max(newest_ms, found[-1].learning.reward_deadline) + w.DAY_MS
    users = one_a_partition(case.population.profiles())
    last = [
        Feedback(feedback_id=f"l{n}", decision_id="-", user_id=u, type="accepted", time_ms=end_ms)
        for n, u in enumerate(users)
    ]
    rows = sorted(feedback.values(), key=lambda f: (f.time_ms, f.feedback_id)) + last
    return in_time_order(
        as_messages(DECISIONS, [(d.decided_at, d) for d in found]),
        as_messages(FEEDBACK, [(f.time_ms, f) for f in rows]),
    )


def learned(rows: list[PolicyShard]) -> Posterior:
    """Return what all shards together know."""
    statistics = [
        Statistics(unpack_lower(row.precision, D), unpack_vector(row.moment, D), row.n_rewards)
        for row in sorted(rows, key=lambda row: row.shard)
    ]
    return merge(statistics, prior=1.0)


def learned_undisturbed(messages: list[RawMessage], directory: Path) -> list[PolicyShard]:
    """Return the learners' rows of a run in this process."""
    of = w.settings(directory, rewards={"window_seconds": _WINDOW_SECONDS})
    steps = []
    for partition in range(N_PARTITIONS):
        decoder = decide.decoder(of, learn.TOPICS, learn.CLOCK)(partition, None)
        own = [message for message in messages if message.partition == partition]
        steps += [decoder.decode(own[at : at + 200]) for at in range(0, len(own), 200)]
    policy, _stats = w.run_learn(of, steps)
    return policy


def by_shard(message: RawMessage) -> PolicyShard:
    """Return a row of the policy."""
    return msgspec.json.decode(message.value or b"", type=PolicyShard)


def newest(rows: list[PolicyShard]) -> dict[str, PolicyShard]:
    """Return the last row of each shard."""
    return {row.shard: row for row in rows}


def counts(rows: list[PolicyShard]) -> dict[str, int]:
    """Return the rewards that each shard's newest row holds."""
    return {shard: row.n_rewards for shard, row in sorted(newest(rows).items())}


def test_three_kills_of_learn_learn_each_reward_once(
    answers: list[RawMessage], stage: Stage, tmp_path: Path
) -> None:
    expected = learned_undisturbed(answers, tmp_path / "undisturbed")
    policy = stage.collect(POLICY, by_shard)
    kills = moments(2, len(answers), 3)

    child, _ = run_through_kills(stage, "learn", answers, kills, policy.rows)
    all_learned: Callable[[], bool] = lambda: counts(policy.rows) == counts(expected)  # noqa: E731
    wait("all rewards", all_learned, [child])

    assert child.stop() == 0
    found, truth = learned(list(newest(policy.close()).values())), learned(expected)
    assert found.n == truth.n > 300
    assert np.abs(found.mean - truth.mean).max() < 1e-9
    assert np.abs(found.covariance - truth.covariance).max() < 1e-9
