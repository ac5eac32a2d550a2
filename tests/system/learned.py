"""What `learn` has learned, beside what a run in this process learns of the same input.

Owns    the input: decisions with the feedback that they earn; at the end a day passes, and settles
        all.
"""

from pathlib import Path

import msgspec

from flows import decide, learn
from models.arms import D
from models.posterior import Posterior, Statistics, merge, unpack_lower, unpack_vector
from operators.hops import RawMessage
from operators.messages import Decision, Feedback, PolicyShard
from tests.flows import world as w
from tests.system.harness import (
    DECISIONS,
    FEEDBACK,
    N_PARTITIONS,
    Case,
    as_messages,
    in_time_order,
    one_a_partition,
)

# Feedback waits this long for its decision, and is taken as long after: in a live stream the
# order between topics is that of arrival, and here two days pass in seconds.
_WINDOW_SECONDS = 10 * 86_400
VALUES = {"PUSHFLOW_REWARDS__WINDOW_SECONDS": str(_WINDOW_SECONDS)}


def answers(case: Case) -> list[RawMessage]:
    """Return a case's decisions, and the feedback to them, in order of time."""
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
