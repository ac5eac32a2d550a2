"""The branch of `catalog` that works for users: whom a changed item concerns, and what they write.

Reads   push.events.v1 and push.erasures.v1, partition by partition; the items of `flows.catalog`.
Emits   push.user-signals.v1 once each, keyed by user, which `decide` reads beside its events.

    events -> interests -+-> interest -+-> signals
       |   items -> updates            |
       '-> texts ----------------------'

Events are keyed by user and changes by item: an interest goes to the shard of its item, and meets
the item's changes there. An erasure goes to all shards. What users write is encoded here where
the encoder is not the one that `decide` has: batches at a time, and far from its hot path.
Step names are recovery keys: renaming one loses its state.
"""

import base64
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import bytewax.operators as op
import xxhash
from bytewax.dataflow import Dataflow, Stream
from bytewax.inputs import Source
from bytewax.outputs import Sink

from flows.decide import decoder, stores
from flows.settings import Settings
from models.encoders import ContentEncoder
from operators import interest
from operators.codec import ITEM_SHARDS, SourceBatch, encode, headers, item_shard
from operators.hops import Forget, Interest, ItemUpdate
from operators.interest import InterestShard, interest_of
from operators.item_contents import ItemPoll
from operators.kafka import CopartitionedSource, ExactlyOnceSink, OutRecord
from operators.messages import Erasure, Event, UserSignal
from operators.state import Shard
from operators.steps import keyed
from operators.written import TextVectors, text_of

SOURCE_NAME: Final = "pushflow/catalog"
SIGNALS: Final = "push.user-signals.v1"
TOPICS: Final[dict[str, type]] = {  # that it reads
    "push.erasures.v1": Erasure,
    "push.events.v1": Event,
}
CLOCK: Final = (Event,)

_DAY_MS: Final = 86_400_000

Keyed = tuple[str, OutRecord]
Told = Interest | ItemUpdate | Forget


class UserEnds(NamedTuple):
    """Where the branch begins and ends: `SourceBatch`es, and records of signals."""

    events: Source
    signals: Sink


def add_signals(
    flow: Dataflow,
    settings: Settings,
    items: Stream[ItemPoll],
    ends: UserEnds,
    content: ContentEncoder | None,
    *,
    n_workers: int,
) -> None:
    """Connect the branch.

    Parameters
    ----------
    flow
        To add to.
    settings
        All of it but the addresses.
    items
        Polls of push.items.v1.
    ends
        See `UserEnds`.
    content
        Encodes what users write; None where `decide` does.
    n_workers
        Workers of the whole cluster.
    """
    polls = op.input("events_source", flow, ends.events)
    interests = op.flat_map_batch("interests", polls, interests_by_shard)
    updates = op.flat_map_batch("updates", items, updates_by_shard)
    told = op.merge("told", interests, updates)
    make_stores = stores(settings, "catalog", n_workers)
    states = make_stores(
        "interest", interest.encode_state, interest.decode_state, interest.new_state
    )
    concerned = keyed("interest", told, states, _interest_shard(settings), _shard_of)
    found = op.key_rm("found", concerned)
    if content is not None:
        vectors = TextVectors(content.encode_queries)
        texts = op.flat_map_batch("texts", polls, TextSignals(content.id, vectors))
        found = op.merge("found_all", found, texts)
    op.output("signals", op.flat_map_batch("signal_records", found, signal_records), ends.signals)


def _interest_shard(settings: Settings) -> Callable[[str, Shard[Any]], InterestShard]:
    triggers = settings.triggers
    return lambda _shard, states: InterestShard(
        states,
        price_drop=triggers.price_drop,
        tells_of_stock=triggers.back_in_stock,
        max_users=triggers.interest_users,
        keep_ms=triggers.interest_days * _DAY_MS,
    )


def _shard_of(entry: Told) -> str:
    return entry.shard if isinstance(entry, Forget) else item_shard(entry.item_id)


def _entries(polls: list[SourceBatch]) -> Iterator[Any]:
    return (entry for poll in polls for batch in poll.shards for _, entry in batch.entries)


def interests_by_shard(polls: list[SourceBatch]) -> list[tuple[str, Told]]:
    """Key users' interest by the shard of its item; an erasure goes to all shards."""
    out: list[tuple[str, Told]] = []
    for entry in _entries(polls):
        if isinstance(entry, Forget):
            out += ((shard, Forget(entry.user_id, shard)) for shard in ITEM_SHARDS)
        elif (found := interest_of(entry)) is not None:
            out.append((item_shard(found.item_id), found))
    return out


def updates_by_shard(polls: list[ItemPoll]) -> list[tuple[str, Told]]:
    """Key items' new versions by their shard."""
    return [
        (item_shard(c.item_id), ItemUpdate(c.item_id, c.item, c.version, c.time_ms))
        for poll in polls
        for c in poll.changes
    ]


class TextSignals:
    """The step that encodes what users write, one call for all that there is.

    Parameters
    ----------
    encoder
        Id of what the vectors are by.
    vectors
        Makes them, and remembers.
    """

    def __init__(self, encoder: str, vectors: TextVectors) -> None:
        self._encoder = encoder
        self._vectors = vectors

    def __call__(self, polls: list[SourceBatch]) -> list[UserSignal]:
        """Return a signal for each text that says something, in order."""
        found = [e for e in _entries(polls) if isinstance(e, Event) and text_of(e)]
        vectors = self._vectors.many([text_of(event) for event in found])
        return [
            self._signal(event, vector)
            for event, vector in zip(found, vectors, strict=True)
            if vector
        ]

    def _signal(self, event: Event, vector: bytes) -> UserSignal:
        what = f"{self._encoder}|{event.event_id}|{event.user_id}"
        return UserSignal(
            signal_id=xxhash.xxh3_128_hexdigest(what.encode()),
            user_id=event.user_id,
            type="searched" if event.type == "search" else "commented",
            time_ms=event.time_ms,
            item_id=event.item_id,
            encoder=self._encoder,
            vector=base64.b64encode(vector).decode(),
        )


def signal_records(signals: list[UserSignal]) -> list[Keyed]:
    """Encode signals, keyed by user and stamped with their event time."""
    return [
        (
            signal.user_id,
            OutRecord(
                key=signal.user_id,
                id=signal.signal_id,
                value=encode(signal),
                headers=headers(signal.signal_id, SIGNALS, SOURCE_NAME),
                timestamp_ms=signal.time_ms,
            ),
        )
        for signal in signals
    ]


def ends_of(settings: Settings, *, stop_at_end: bool = False) -> UserEnds:
    """Return the ends of the branch on the settings' cluster."""
    client = settings.kafka.client()
    source: CopartitionedSource[SourceBatch] = CopartitionedSource(
        client,
        [settings.kafka.topic(name) for name in TOPICS],
        make_decoder=decoder(settings, TOPICS, CLOCK),
        batch_size=settings.kafka.batch_size,
        stop_at_end=stop_at_end,
    )
    return UserEnds(source, ExactlyOnceSink(client, settings.kafka.topic(SIGNALS)))
