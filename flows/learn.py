"""`learn`: feedback in; a better policy, fresher item statistics and neighbours out.

Reads   push.decisions.v1, push.feedback.v1, push.events.v1 and push.erasures.v1, partition by
        partition.
Emits   push.policy.v1 and push.item-stats.v1, both compacted; push.dlq.v1.

    source -> shards -> attribute -> rewards -> learner -> policy
       |                    '-> signals -> items -> item_stats
       '-> dead letters

The learner's shards are the source's partitions, so that each learns its rewards in one order.
Step names are recovery keys: renaming one loses its state.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source
from bytewax.outputs import Sink

from flows.decide import dead_records, decoder, stores
from flows.settings import Settings
from models.learners import LearnerKind
from models.log_odds import Scale
from models.policies import LINEAR
from operators import attribution_state, item_stats
from operators.attribution import Attribution
from operators.codec import encode, headers, item_shard
from operators.hops import ItemSignal, Reward, ShardBatch
from operators.item_stats import InteractionTracker, ItemStatsShard
from operators.kafka import CopartitionedSource, OutRecord, TableSink
from operators.learning import LearnerShard, LearningItems, LearningUsers
from operators.messages import Decision, Erasure, Event, Feedback, ItemStats, PolicyShard
from operators.rewards import RewardRules
from operators.state import Shard
from operators.steps import Publishing, by_shard, keyed, learner

SOURCE_NAME = "pushflow/learn"
TOPICS: dict[str, type] = {
    "push.erasures.v1": Erasure,
    "push.decisions.v1": Decision,
    "push.feedback.v1": Feedback,
    "push.events.v1": Event,
}
# Events come well before the decisions that they lead to, so they move no clock.
CLOCK = (Decision, Feedback)
_SECOND_MS = 1_000
DAY_MS = 86_400_000
KEEP_ITEMS_MS = 730 * DAY_MS  # a half-life of what is counted longest


Keyed = tuple[str, OutRecord]


class Ends(NamedTuple):
    """Where a `learn` flow begins and ends. None leaves an end out."""

    source: Source
    policy: Sink
    item_stats: Sink
    dead_letters: Sink | None = None


def _now() -> datetime:
    return datetime.now(UTC)


def build(settings: Settings, ends: Ends, *, n_workers: int = 1) -> Dataflow:
    """Connect the steps; see `flows.decide.build` for the arguments."""
    make_stores = stores(settings, "learn", n_workers)
    user_stores = make_stores(
        "attribution",
        attribution_state.encode_state,
        attribution_state.decode_state,
        attribution_state.new_state,
    )
    item_stores = make_stores(
        "items", item_stats.encode_state, item_stats.decode_state, item_stats.new_state
    )
    publishing = Publishing(timedelta(milliseconds=settings.learning.publish_ms), _now)

    flow = Dataflow("learn")
    polls = op.input("source", flow, ends.source)

    if ends.dead_letters is not None:
        letters = op.flat_map_batch("dead", polls, dead_records)
        op.output("dead_letters", letters, ends.dead_letters)

    shards = by_shard("shards", polls)
    learned = keyed("attribute", shards, user_stores, _users(settings), _shard_of_batch)

    rewards = op.flat_map_batch("rewards", learned, rewards_by_shard)
    make_learner = partial(
        LearnerShard,
        kind=learner_kind(settings),
        drift_keeps=settings.learning.drift_keeps,
    )
    rows = learner("learner", rewards, make_learner, publishing)
    op.output("policy", op.flat_map_batch("policy_rows", rows, policy_records), ends.policy)

    signals = op.flat_map_batch("signals", learned, signals_by_shard)
    stats = keyed("items", signals, item_stores, _items, _shard_of_signal, publishing=publishing)
    op.output("item_stats", op.flat_map_batch("item_rows", stats, item_records), ends.item_stats)
    return flow


def learner_kind(settings: Settings) -> LearnerKind:
    """Return the learner of the policy that `decide` is to use."""
    return LearnerKind.of(
        settings.ranking.policy,
        half_life_ms=round(settings.learning.half_life_days * DAY_MS),
        scale=Scale(*settings.rewards.scale),
        prior=settings.learning.prior_precision,
    )


def attribution(settings: Settings, states: Any) -> Attribution:
    """Return what turns a shard's decisions and feedback into rewards."""
    kind = learner_kind(settings)
    return Attribution(
        states,
        reward_rules(settings),
        estimates_delays=settings.rewards.estimate_delays,
        separate_arms=settings.learning.separate_arms,
        feature_spec=kind.spec,
        n_columns=len(kind.columns),
    )


def reward_rules(settings: Settings) -> RewardRules:
    """Return what outcomes are worth by the settings."""
    rewards = settings.rewards
    credit = rewards.credit_seconds.model_dump()
    return RewardRules(
        opened=rewards.opened,
        clicked=rewards.clicked,
        converted=rewards.converted,
        dismissed=rewards.dismissed,
        opted_out=rewards.opted_out,
        no_response=rewards.no_response,
        window_ms=rewards.window_seconds * _SECOND_MS,
        credit_ms={kind: seconds * _SECOND_MS for kind, seconds in credit.items()},
        conversion_value=rewards.conversion_value,
        conversion_max=rewards.conversion_max,
    )


def _users(settings: Settings) -> Callable[[str, Shard[Any]], LearningUsers]:
    gap_ms = settings.time.session_gap_seconds * _SECOND_MS

    def make(_shard: str, states: Shard[Any]) -> LearningUsers:
        return LearningUsers(attribution(settings, states), InteractionTracker(gap_ms=gap_ms))

    return make


def _items(_shard: str, states: Shard[Any]) -> LearningItems:
    return LearningItems(ItemStatsShard(states), keep_ms=KEEP_ITEMS_MS)


def _shard_of_batch(batch: ShardBatch) -> str:
    return batch.shard


def _shard_of_signal(signal: ItemSignal) -> str:
    return item_shard(signal.item_id)


def rewards_by_shard(learned: list[tuple[str, Any]]) -> list[tuple[str, Reward]]:
    """Key rewards by the learner that is to learn them."""
    return [(entry.shard, entry) for _shard, entry in learned if isinstance(entry, Reward)]


def signals_by_shard(learned: list[tuple[str, Any]]) -> list[tuple[str, ItemSignal]]:
    """Key signals by the shard of their item."""
    return [
        (item_shard(entry.item_id), entry)
        for _shard, entry in learned
        if isinstance(entry, ItemSignal)
    ]


def policy_records(rows: list[tuple[str, PolicyShard]]) -> list[Keyed]:
    """Encode learners' rows, keyed by shard.

    What makes a row old for `TableSink` is that it holds fewer rewards. Versions count corrections
    too, and how many there are depends on which of two topics came first: a replay that hears a
    response before its silence is learned ends at a lower version, and its last rows would be
    withheld. A release that changes the columns begins at no rewards again: they are in the id.
    """
    records = []
    for _key, row in rows:
        record_id = f"{row.shard}:{_of_columns(row)}:rewards:{row.n_rewards}"
        records.append(_record(row.shard, record_id, encode(row), "push.policy.v1", row.time_ms))
    return records


def _of_columns(row: PolicyShard) -> str:
    """Return what a learner's rewards count for: its columns, and which learner it is."""
    return row.feature_spec if row.policy_id == LINEAR else f"{row.feature_spec}-{row.policy_id}"


def item_records(rows: list[tuple[str, tuple[str, ItemStats | None]]]) -> list[Keyed]:
    """Encode items' statistics, keyed by item; a dropped item becomes a tombstone."""
    records = []
    for _shard, (item_id, row) in rows:
        as_of_ms = row.as_of_ms if row is not None else 0
        value = encode(row) if row is not None else None
        record_id = f"{item_id}:{as_of_ms}"
        records.append(_record(item_id, record_id, value, "push.item-stats.v1", as_of_ms))
    return records


def _record(key: str, record_id: str, value: bytes | None, kind: str, time_ms: int) -> Keyed:
    return key, OutRecord(key, record_id, value, headers(record_id, kind, SOURCE_NAME), time_ms)


def from_settings(settings: Settings, *, n_workers: int, stop_at_end: bool = False) -> Dataflow:
    """Return the flow with its real ends."""
    client = settings.kafka.client()
    source = CopartitionedSource(
        client,
        [settings.kafka.topic(name) for name in TOPICS],
        make_decoder=decoder(settings, TOPICS, CLOCK),
        batch_size=settings.kafka.batch_size,
        stop_at_end=stop_at_end,
    )
    ends = Ends(
        source=source,
        policy=TableSink(client, settings.kafka.topic("push.policy.v1")),
        item_stats=TableSink(client, settings.kafka.topic("push.item-stats.v1")),
        dead_letters=None,  # `decide` reads the same topics and tells of what is wrong in them
    )
    return build(settings, ends, n_workers=n_workers)
