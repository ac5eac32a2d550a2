"""`decide`: events in, one decision for each trigger out.

Reads   push.events.v1, push.users.v1, push.feedback.v1, push.erasures.v1 and
        push.user-signals.v1, partition by partition; items, statistics, vectors, campaigns,
        policy and model as global tables.
Emits   push.decisions.v1 once each; push.dlq.v1; features and latest decisions to Redis.

    source -> shards -> users -> rank -> decide -> decisions
       |                  '-> features            '-> latest
       '-> dead letters

`build` takes all ends as arguments. `from_settings` connects the real ones, and is what
`pushflow run decide` runs. Step names are recovery keys: renaming one loses its state.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source
from bytewax.outputs import Sink

from flows.settings import Settings
from flows.tables import Tables
from models.encoders import HASH_ID
from models.policies import KINDS, NEURAL
from models.text import encode_texts
from operators import fatigue, metrics, user_state
from operators.buffered_store import BufferedStore
from operators.codec import PartitionDecoder, SourceBatch, encode, headers
from operators.decider import Decider
from operators.emitted import Emitted
from operators.hops import Forget, Ranked, ShardBatch, Standing, Trigger
from operators.kafka import CopartitionedSource, ExactlyOnceSink, OutRecord
from operators.messages import (
    DeadLetter,
    Decision,
    Erasure,
    Event,
    Feedback,
    UserProfile,
    UserSignal,
)
from operators.ranking import Ranker
from operators.recovery import oldest_snapshots
from operators.state import Shard, StateStore
from operators.steps import CallSink, PerWorker, by_shard, keyed
from operators.triggers import TriggerRules
from operators.users import ShardOutput, UserShard
from operators.written import ServedTexts, TextVectors

log = logging.getLogger("pushflow")

SOURCE_NAME = "pushflow/decide"
LEAD = ("push.users.v1",)  # read whole before events: a push needs consent
TOPICS: dict[str, type] = {
    "push.users.v1": UserProfile,
    "push.erasures.v1": Erasure,
    "push.events.v1": Event,
    "push.feedback.v1": Feedback,
    "push.user-signals.v1": UserSignal,
}
# Where each flow's states lie: the stores, by the id of the step that keeps them.
STORES = {
    "decide": {"decide.users": "users", "decide.decide": "pushes"},
    "learn": {"learn.attribute": "attribution", "learn.items": "items"},
    "catalog": {"catalog.contents": "contents", "catalog.interest": "interest"},
    "archive": {},  # its files are its state
}
CLOCK = (Event,)  # what moves event time: feedback read ahead of events must not
# Before an epoch's end: on a busy disk RocksDB takes some 100 ms to write what an epoch touched.
_FLUSH_AHEAD_S = 0.5
_SECOND_MS = 1_000
_DAY_MS = 86_400_000


class Ends(NamedTuple):
    """Where a `decide` flow begins and ends. None leaves an end out.

    `emitted` holds what stands at the end `decisions` and may be decided again.
    """

    source: Source
    decisions: Sink
    emitted: Emitted | None = None
    dead_letters: Sink | None = None
    features: Callable[[list[ShardOutput]], None] | None = None
    latest: Callable[[list[tuple[str, OutRecord]]], None] | None = None
    close: Callable[[], None] = lambda: None


def rules(settings: Settings) -> TriggerRules:
    """Return the triggers' rules in milliseconds."""
    triggers = settings.triggers
    return TriggerRules(
        session_gap_ms=settings.time.session_gap_seconds * _SECOND_MS,
        intent_views=triggers.intent_views,
        cart_left_ms=triggers.cart_left_seconds * _SECOND_MS,
        session_ended_min_events=triggers.session_ended_min_events,
        idle_ms=int(triggers.idle_days * _DAY_MS),
        expire_ms=settings.state.idle_days * _DAY_MS,
        price_drop=triggers.price_drop,
        back_in_stock=triggers.back_in_stock,
    )


def stores(settings: Settings, flow: str, n_workers: int) -> Callable[..., PerWorker[Any]]:
    """Return a maker of one state store a worker, under the settings' directory."""

    def make(name: str, encode: Any, decode: Any, new: Any) -> PerWorker[Any]:
        epoch_s = settings.state.epoch_seconds
        seconds = metrics.CHECKPOINT_SECONDS.labels(name)
        touched = metrics.STATE_TOUCHED.labels(name)

        def on_checkpoint(took: float, n_touched: int) -> None:
            seconds.observe(took)
            touched.inc(n_touched)

        return PerWorker(
            lambda: StateStore(
                settings.state.directory / flow / "shards",
                name,
                encode=encode,
                decode=decode,
                new=new,
                run_id=settings.run_id,
                n_workers=n_workers,
                owner=settings.state.directory / flow / "owner",
                retain=settings.state.keep_epochs,
                hot_capacity=settings.state.hot_users,
                write_back_seconds=settings.state.write_back_ms / 1_000,
                flush_seconds=max(epoch_s - _FLUSH_AHEAD_S, epoch_s / 2),
                block_cache_bytes=settings.state.block_cache_mb << 20,
                clock=time.monotonic,
                on_checkpoint=on_checkpoint,
            )
        )

    return make


def build(settings: Settings, tables: Tables, ends: Ends, *, n_workers: int = 1) -> Dataflow:
    """Connect the steps.

    Parameters
    ----------
    settings
        All of it but the addresses.
    tables
        Loaded before the flow starts.
    ends
        Source of `SourceBatch`es, and sinks of `(user_id, OutRecord)`.
    n_workers
        Workers of the whole cluster.
    """
    make_stores = stores(settings, "decide", n_workers)
    user_stores = make_stores(
        "users", user_state.encode_state, user_state.decode_state, user_state.new_state
    )
    push_stores = make_stores(
        "pushes", fatigue.encode_state, fatigue.decode_state, fatigue.new_state
    )
    ranker = _ranker(settings, tables)

    flow = Dataflow("decide")
    polls = op.input("source", flow, ends.source)

    if ends.dead_letters is not None:
        letters = op.flat_map_batch("dead", polls, dead_records)
        op.output("dead_letters", letters, ends.dead_letters)

    shards = by_shard("shards", polls)
    outputs = keyed("users", shards, user_stores, _user_shard(settings, tables), _shard_of_batch)

    if ends.features is not None:
        rows = op.key_rm("features_of", outputs)
        op.output("features", rows, CallSink(ends.features, ends.close))

    ranked = op.flat_map_batch("rank", outputs, lambda keyed_outputs: rank(ranker, keyed_outputs))
    make_decider = _decider(settings, tables, ends.emitted)
    decided = keyed("decide", ranked, push_stores, make_decider, _shard_of_ranked)

    records = op.flat_map_batch("encode", decided, decision_records)
    op.output("decisions", records, ends.decisions)
    if ends.latest is not None:
        op.output("latest", records, CallSink(ends.latest))
    return flow


def _ranker(settings: Settings, tables: Tables) -> Ranker:
    return Ranker(
        campaigns=tables.campaigns,
        catalogue=tables.catalogue,
        models=tables.models,
        generator=tables.generator,
        action_set=settings.ranking.action_set,
        explore_share=settings.candidates.explore_share,
        is_neural=KINDS[settings.ranking.policy].learner == NEURAL,
        refresh=tables.refresh,
        clock=time.monotonic,
    )


def _user_shard(settings: Settings, tables: Tables) -> Callable[[str, Shard[Any]], UserShard]:
    trigger_rules = rules(settings)
    category_of = tables.catalogue.category_of
    texts = ServedTexts(lambda: tables.catalogue.encoder, HASH_ID, TextVectors(encode_texts))
    return lambda shard, states: UserShard(shard, states, trigger_rules, category_of, texts)


def _decider(
    settings: Settings, tables: Tables, emitted: Emitted | None
) -> Callable[[str, Shard[Any]], Decider]:
    return lambda _shard, states: Decider(
        states,
        campaigns=tables.campaigns,
        policies=tables.policies,
        item_of=tables.catalogue.item,
        window_ms=settings.rewards.window_seconds * _SECOND_MS,
        top_explanations=settings.ranking.top_explanations,
        emitted=emitted,
        apprentice_share=settings.ranking.apprentice_share,
    )


def _shard_of_batch(batch: ShardBatch) -> str:
    return batch.shard


def _shard_of_ranked(entry: Ranked | Forget) -> str:
    return entry.trigger.shard if isinstance(entry, Ranked) else entry.shard


def rank(ranker: Ranker, outputs: list[tuple[str, ShardOutput]]) -> list[tuple[str, Any]]:
    """Rank the triggers of all shards together, and key them by shard again."""
    shards: list[str] = []
    triggers: list[Trigger | Forget] = []
    for shard, output in outputs:
        shards += [shard] * len(output.triggers)
        triggers += output.triggers
    return list(zip(shards, ranker.on_batch(triggers), strict=True))


def decision_records(
    decided: list[tuple[str, Decision | Standing]],
) -> list[tuple[str, OutRecord]]:
    """Encode decisions; the outcome is repeated in a header, so that a gateway may filter by it."""
    records = []
    for _shard, answer in decided:
        is_standing = isinstance(answer, Standing)
        decision = answer.decision if isinstance(answer, Standing) else answer
        extra = headers(decision.decision_id, "push.decision.v1", SOURCE_NAME)
        extra.append(("outcome", decision.outcome.encode()))
        record = OutRecord(
            key=decision.user_id,
            id=decision.decision_id,
            value=encode(decision),
            headers=extra,
            timestamp_ms=decision.decided_at,
            is_standing=is_standing,
        )
        records.append((decision.user_id, record))
    return records


def dead_records(polls: list[SourceBatch]) -> list[tuple[str, OutRecord]]:
    """Encode dead letters; their origin is their id."""
    return [_dead_record(letter) for poll in polls for letter in poll.dead]


def _dead_record(letter: DeadLetter) -> tuple[str, OutRecord]:
    origin = f"{letter.topic}-{letter.partition}-{letter.offset}"
    extra = headers(origin, "push.dead-letter.v1", SOURCE_NAME)
    extra.append(("reason", letter.reason.encode()))
    return origin, OutRecord(origin, origin, encode(letter), extra, timestamp_ms=0)


def decoder(
    settings: Settings, topics: dict[str, type], clock_kinds: tuple[type, ...]
) -> Callable[[int, Any], PartitionDecoder]:
    """Return a maker of the decoder of a partition; `topics` by their own names."""
    kinds = {settings.kafka.topic(name): kind for name, kind in topics.items()}

    def make(partition: int, state: Any) -> PartitionDecoder:
        return PartitionDecoder(
            partition,
            kinds,
            n_shards=settings.state.shards,
            clock_kinds=clock_kinds,
            lateness_ms=settings.time.lateness_seconds * _SECOND_MS,
            max_ahead_ms=settings.time.max_ahead_seconds * _SECOND_MS,
            state=state,
        )

    return make


def kafka_source(
    settings: Settings, on_poll: Callable[[], None], *, stop_at_end: bool = False
) -> CopartitionedSource[Any]:
    """Return the source of `decide` on the settings' cluster."""
    return CopartitionedSource(
        settings.kafka.client(),
        [settings.kafka.topic(name) for name in TOPICS],
        lead=[settings.kafka.topic(name) for name in LEAD],
        make_decoder=decoder(settings, TOPICS, CLOCK),
        batch_size=settings.kafka.batch_size,
        stop_at_end=stop_at_end,
        on_poll=on_poll,
    )


def redis_ends(
    store: BufferedStore,
) -> tuple[
    Callable[[list[ShardOutput]], None],
    Callable[[list[tuple[str, OutRecord]]], None],
]:
    """Return what writes feature rows and latest decisions to Redis."""

    def put_rows(outputs: list[ShardOutput]) -> None:
        for output in outputs:
            store.put_features(output.rows)
            for entry in output.triggers:
                if isinstance(entry, Forget):
                    store.forget(entry.user_id)

    def put_decisions(records: list[tuple[str, OutRecord]]) -> None:
        store.put_decisions(
            [(user, r.id, r.value, r.timestamp_ms) for user, r in records if r.value is not None]
        )

    return put_rows, put_decisions


def decisions_sink(settings: Settings) -> ExactlyOnceSink:
    """Return the sink of decisions on the settings' cluster."""
    return ExactlyOnceSink(
        settings.kafka.client(), settings.kafka.topic("push.decisions.v1"), n_lanes=2
    )


def emitted_beyond(settings: Settings, recovery: Path) -> Emitted:
    """Fence whoever wrote decisions before, and read those that no snapshot knows of.

    Parameters
    ----------
    recovery
        Bytewax's store that the flow is to resume from, not opened yet.
    """
    snapshots = oldest_snapshots(recovery, "decide.decisions")
    found = decisions_sink(settings).standing(snapshots)
    emitted = Emitted(message.value for message in found)
    if emitted.n_dropped:
        log.warning(
            "%d decisions beyond the snapshot are too many to keep: where their triggers come "
            "again they are decided anew, and not written",
            emitted.n_dropped,
        )
    return emitted


def from_settings(
    settings: Settings,
    tables: Tables,
    store: BufferedStore | None,
    *,
    n_workers: int,
    emitted: Emitted | None = None,
    stop_at_end: bool = False,
) -> Dataflow:
    """Return the flow with its real ends."""
    client = settings.kafka.client()
    features, latest = redis_ends(store) if store is not None else (None, None)
    ends = Ends(
        # While no event comes tables follow too: what came meanwhile is not the next one's wait.
        source=kafka_source(settings, tables.refresh, stop_at_end=stop_at_end),
        decisions=decisions_sink(settings),
        emitted=emitted,
        dead_letters=ExactlyOnceSink(client, settings.kafka.topic("push.dlq.v1")),
        features=features,
        latest=latest,
    )
    return build(settings, tables, ends, n_workers=n_workers)
