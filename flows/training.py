"""Training sets from events: the same code that serves makes the history and the context.

Reads   events in time order, and items.
Emits   `models.dataset.Histories`: each item event with the user's context right after it.
Owns    the parity of training and serving: a user's state is kept by `operators.users` here too,
        so features are as of each event, never from the future.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from flows.recorded import Recording
from flows.replay import Pace, choose, parse_time
from flows.settings import Settings
from models.checkpoint import checksum
from models.dataset import Histories, build_histories
from models.features import EVENT_CODE, spec_hash
from operators.codec import PartitionDecoder
from operators.hops import RawMessage, ShardBatch
from operators.item_text import own_text
from operators.kafka_tables import Reader
from operators.messages import Event, Item, ModelCard
from operators.model_table import SERVED
from operators.shards import DictShard
from operators.triggers import TriggerRules
from operators.user_state import decode_state, encode_state, new_state
from operators.users import UserShard

_TOPIC = "recording"
_PROGRESS_EVERY = 1_000


class HistoryBuilder:
    """Collects what each user did, as serving would see it.

    Parameters
    ----------
    items
        The catalogue; events of other items move counters, but are not predicted.
    rules
        As `decide` runs with, for sessions end by them.

    Notes
    -----
    Memory: about 600 bytes an event. Time: about 30 us an event. An action on the item that a
    user's history ends with takes that entry's place, as it does in serving.

    Examples
    --------
    >>> builder = HistoryBuilder({"a": Item(item_id="a", title="Red lamp")}, TriggerRules())
    >>> builder.add(Event(event_id="1", user_id="u", type="view", item_id="a",
    ...                   time_ms=1_700_000_000_000))
    >>> histories, item_ids, texts = builder.build()
    >>> histories.user_ids, item_ids, texts, histories.contexts.shape
    (['u'], ['a'], ['Red lamp'], (1, 56))
    """

    def __init__(self, items: dict[str, Item], rules: TriggerRules) -> None:
        self._items = items
        states = DictShard("00", encode=encode_state, decode=decode_state, new=new_state)
        self._states = states
        self._shard = UserShard("00", states, rules, self._category_of)
        self._last: dict[str, int] = {}  # user_id -> position of their newest entry
        self._users: list[str] = []
        self._item_ids: list[str] = []
        self._types: list[int] = []
        self._times: list[int] = []
        self._contexts: list[Any] = []

    def _category_of(self, item_id: str) -> str:
        item = self._items.get(item_id)
        return item.categories[0] if item is not None and item.categories else ""

    def add(self, event: Event) -> None:
        """Fold in one event; they come in time order, but for a few seconds."""
        batch = ShardBatch("00", 0, event.time_ms, [(event.time_ms, event)])
        [output] = self._shard.on_batch([batch])
        if event.item_id not in self._items or not output.rows:
            return
        state = self._states.peek(event.user_id)
        if state is None or not state.item_ids or state.item_ids[-1] != event.item_id:
            return
        context = np.array(output.rows[-1].context, np.float32)
        at = self._last.get(event.user_id)
        if at is not None and self._item_ids[at] == event.item_id:
            self._types[at], self._times[at] = state.types[-1], state.times_s[-1]
            self._contexts[at] = context
            return
        self._last[event.user_id] = len(self._users)
        self._users.append(event.user_id)
        self._item_ids.append(state.item_ids[-1])
        self._types.append(state.types[-1])
        self._times.append(state.times_s[-1])
        self._contexts.append(context)

    def __len__(self) -> int:
        return len(self._users)

    def build(self) -> tuple[Histories, list[str], list[str]]:
        """Return the histories, and the ids and texts of the items they are about."""
        item_ids = sorted(self._items)
        texts = [own_text(self._items[item_id]) for item_id in item_ids]
        histories = build_histories(
            self._users,
            self._item_ids,
            self._types,
            self._times,
            item_ids=item_ids,
            contexts=np.array(self._contexts, np.float32) if self._contexts else None,
        )
        return histories, item_ids, texts


def from_events(
    events: Iterable[Event],
    items: Iterable[Item],
    rules: TriggerRules,
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[Histories, list[str], list[str]]:
    """Return histories, item ids and texts; `on_progress` gets the number of events read."""
    builder = HistoryBuilder({item.item_id: item for item in items}, rules)
    n_read = 0
    for n_read, event in enumerate(events, start=1):
        if event.type in EVENT_CODE:
            builder.add(event)
        if n_read % _PROGRESS_EVERY == 0:
            on_progress(n_read)
    on_progress(n_read)
    return builder.build()


def of_items(
    events: Iterable[Event],
    items: Iterable[Item],
    rules: TriggerRules,
    item_ids: Sequence[str],
) -> tuple[Histories, list[str]]:
    """Return histories of these items alone, in their order, and the items' texts.

    An item that is not there any more has no text.
    """
    row_of = {item_id: row for row, item_id in enumerate(item_ids, start=1)}
    known = (item for item in items if item.item_id in row_of)
    histories, found, texts = from_events(events, known, rules)
    rows = np.array([0, *(row_of[item_id] for item_id in found)], np.int64)
    text_of = dict(zip(found, texts, strict=True))
    ordered = histories._replace(rows=rows[histories.rows])
    return ordered, [text_of.get(item_id, "") for item_id in item_ids]


def recorded_events(recording: Recording, until: str | None = None) -> Iterator[Event]:
    """Yield a recording's usable events before a date, "2011-06-01"; all of them without one.

    What `decide` would refuse is left out here too.
    """
    end_ms = parse_time(until) if until else None
    decoder = PartitionDecoder(0, {_TOPIC: Event}, n_shards=1, max_ahead_ms=1 << 60)
    for record in choose(recording.events(), Pace(until_ms=end_ms)):
        message = RawMessage(_TOPIC, 0, 0, None, record.value, record.time_ms)
        for shard in decoder.decode([message]).shards:
            for _watermark, entry in shard.entries:
                if isinstance(entry, Event):
                    yield entry


def recorded_items(recording: Recording) -> Iterator[Item]:
    """Yield a recording's items."""
    for record in recording.items:
        yield msgspec.json.decode(record.value, type=Item)


def topic_items(settings: Settings) -> Iterator[Item]:
    """Yield the items that push.items.v1 holds now, the newest of each id."""
    newest: dict[str, bytes | None] = {}
    for message in _read_whole(settings, "push.items.v1"):
        if message.key is not None:
            newest[message.key.decode(errors="replace")] = message.value
    for value in newest.values():
        if value is not None:
            yield msgspec.json.decode(value, type=Item)


def topic_events(settings: Settings) -> Iterator[Event]:
    """Yield the events that push.events.v1 holds now, sorted by time; all of them in memory."""
    topic = settings.kafka.topic("push.events.v1")
    decoders: dict[int, PartitionDecoder] = {}
    events: list[Event] = []
    for message in _read_whole(settings, "push.events.v1"):
        decoder = decoders.setdefault(
            message.partition, PartitionDecoder(message.partition, {topic: Event}, n_shards=1)
        )
        for shard in decoder.decode([message]).shards:
            events += [entry for _, entry in shard.entries if isinstance(entry, Event)]
    events.sort(key=lambda event: (event.time_ms, event.user_id))
    yield from events


def _read_whole(settings: Settings, name: str) -> Iterator[RawMessage]:
    reader = Reader(settings.kafka.client(), [settings.kafka.topic(name)])
    try:
        for batch in reader:
            yield from batch
    finally:
        reader.close()


def card_of(path: Path, version: str) -> ModelCard:
    """Return the card that has `decide` serve a model file."""
    return ModelCard(
        name=SERVED,
        version=version,
        path=str(path.resolve()),
        checksum=checksum(path),
        feature_spec=spec_hash(),
    )
