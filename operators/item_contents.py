"""What of the catalogue must be encoded: changed items, and all of them for a new encoder.

Reads   items and removals, message by message, and the end of what stood in the topic.
Emits   contents to encode; removals of vectors; and once all is encoded, a row that says so.
Owns    the cache: what was encoded of each item, and by which encoder.

An item whose texts and given vectors are unchanged is never encoded again, through restarts too:
its vector stands in `push.item-vectors.v1`, and the state here knows what it was made of.

A new encoder reads the topic of items from its first message (`flows.catalog` sees to that), so
all items pass by again and are encoded behind the old vectors. When the end is reached, the shard
says so, and how many vectors it has; `decide` serves the new encoder when all shards have said
so and it holds as many. Then, after a while, the old vectors are removed: by then every `decide`
has had time to read the new ones.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

import msgspec

from operators import metrics
from operators.codec import table_handler
from operators.hops import RawMessage
from operators.item_text import content_key, texts_of
from operators.messages import Item, ItemVector
from operators.packed import Versions

STATE_VERSION: Final = 1
_PROGRESS: Final = ""  # the key of the shard's own state; an item's id has a letter at least
_TELL_MS: Final = 500  # between two rows that tell how many vectors there are
_RETIRE_AT_ONCE: Final = 1_000  # items, some 10 ms: what else waits must not wait for long


class ItemChange(NamedTuple):
    """An item as it is from now on; None: removed. `version` rises with each change of an item.

    It is the message's offset. A new encoder, or a topic made anew, brings old ones again.
    `time_ms` is the message's timestamp.
    """

    item_id: str
    item: Item | None
    version: int
    time_ms: int = 0


class ItemPoll(NamedTuple):
    """What one poll of a partition brought; the end mark comes without changes, once a start."""

    partition: int
    changes: list[ItemChange]
    is_end: bool = False


class ItemBatch(NamedTuple):
    """A poll's changes of one shard's items; an end mark is for all shards."""

    shard: str
    partition: int
    changes: list[ItemChange]
    is_end: bool


class Contents(NamedTuple):
    """What is to be encoded of one item."""

    item_id: str
    version: int
    key: str
    texts: list[str]
    item: Item


class Removal(NamedTuple):
    """A vector to remove, by its encoder; `item_id` "" is the encoder's row of this shard."""

    encoder: str
    item_id: str
    version: int


Output = Contents | Removal | ItemVector


class ItemDecoder:
    """Decodes one partition of the topic of items; bad rows are counted and left out.

    Parameters
    ----------
    partition, topic
        What it decodes.
    encoder
        For whom it reads; kept beside the position in the topic.

    Examples
    --------
    >>> decoder = ItemDecoder(0, "items", "hash-1")
    >>> row = b'{"item_id":"i1","title":"Lamp"}'
    >>> poll = decoder.decode([RawMessage("items", 0, 7, b"i1", row, -1),
    ...                        RawMessage("items", 0, 8, b"i2", b"{", -1),
    ...                        RawMessage("items", 0, 9, b"i1", None, -1)])
    >>> [(c.item_id, c.item and c.item.title, c.version) for c in poll.changes]
    [('i1', 'Lamp', 7), ('i1', None, 9)]
    """

    def __init__(self, partition: int, topic: str, encoder: str) -> None:
        self._partition, self._encoder = partition, encoder
        self._handle = table_handler(Item, self._take, topic)
        self._offset = self._time_ms = 0
        self._changes: list[ItemChange] = []

    def _take(self, item_id: str, item: Item | None) -> None:
        self._changes.append(ItemChange(item_id, item, self._offset, self._time_ms))

    def decode(self, messages: list[RawMessage]) -> ItemPoll:
        """Return the changes of a poll, in order."""
        for message in messages:
            if message.key:
                self._offset, self._time_ms = message.offset, message.timestamp_ms
                self._handle(message.key, message.value)
        changes, self._changes = self._changes, []
        return ItemPoll(self._partition, changes)

    def snapshot(self) -> str:
        """Return the encoder: what another one has read, this one must read again."""
        return self._encoder


class ItemState(msgspec.Struct, array_like=True, tag="i"):
    """What was encoded of one item, about 120 bytes."""

    key: str = ""  # of operators.item_text.content_key
    encoder: str = ""  # whose vector stands for it, "": none
    older: list[str] = []  # encoders that may have left vectors of it


class Progress(msgspec.Struct, array_like=True, tag="p"):
    """How far a shard's encoder has come."""

    encoder: str = ""
    since_ms: int = 0
    is_whole: bool = False  # all items that were there when it came are encoded
    older: list[str] = []  # encoders before it, not all of whose vectors are removed


State = ItemState | Progress
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(State)
_versions: Versions[State] = Versions(
    "contents", {STATE_VERSION: lambda packed: _decoder.decode(memoryview(packed)[1:])}
)


def new_state(key: str) -> State:
    """Return the state of an item, or of the shard, never seen before."""
    return ItemState() if key != _PROGRESS else Progress()


def encode_state(state: State) -> bytes:
    """Return the state as a version and MessagePack."""
    return bytes([STATE_VERSION]) + _encoder.encode(state)


def decode_state(data: bytes) -> State:
    """Return the state that `encode_state` packed; NewerStateError for a newer release's.

    >>> decode_state(encode_state(Progress("hash-1", 5, True))).is_whole
    True
    """
    return _versions.read(data)


class States(Protocol):
    """The shard: `operators.state.Shard`, or `operators.shards.DictShard` in memory."""

    def get(self, key: str, /) -> State: ...  # noqa: D102
    def peek(self, key: str, /) -> State | None: ...  # noqa: D102
    def delete(self, key: str, /) -> None: ...  # noqa: D102
    def scan(self) -> Iterator[tuple[str, State]]: ...  # noqa: D102


class ContentShard:
    """The items of one shard, and how far they are encoded.

    Parameters
    ----------
    shard
        The shard's name.
    states
        By item id, and the shard's own.
    encoder
        Id of the encoder in use.
    n_partitions
        Of the topic of items: so many ends make the whole.
    n_shards
        Of the catalogue, for its rows.
    files_of
        The files that an item's vector is made from, beside what it brings.
    retire_ms
        How long the vectors of an older encoder stay after the last is encoded anew.
    now_ms
        Wall clock. It decides when something is told or removed, and dates an encoder.

    Notes
    -----
    Beside the states it holds the ids of items that have vectors of older encoders: about 100
    bytes each, from a change of the encoder until those are removed. A start reads all states.

    Examples
    --------
    >>> from operators.shards import DictShard
    >>> states = DictShard("i00", encode=encode_state, decode=decode_state, new=new_state)
    >>> def shard(encoder, now_ms):
    ...     return ContentShard("i00", states, encoder, n_partitions=1, n_shards=1,
    ...                         retire_ms=0, now_ms=lambda: now_ms)
    >>> old, lamp = shard("e1", 5), Item(item_id="i1", title="Lamp")
    >>> batch = ItemBatch("i00", 0, [ItemChange("i1", lamp, 0)], is_end=True)
    >>> [c.texts for c in old.on_batch([batch, batch])]
    [['Lamp']]
    >>> [(row.encoder, row.n_items, row.since_ms) for row in old.on_timer()]
    [('e1', 1, 5)]
    >>> new = shard("e2", 9)  # after a restart
    >>> new.on_timer(), [c.texts for c in new.on_batch([batch])]
    ([], [['Lamp']])
    >>> row, *removed = new.on_timer()
    >>> row.encoder, [(r.encoder, r.item_id) for r in removed]
    ('e2', [('e1', 'i1'), ('e1', '')])
    """

    def __init__(
        self,
        shard: str,
        states: States,
        encoder: str,
        *,
        n_partitions: int,
        n_shards: int,
        retire_ms: int,
        now_ms: Callable[[], int],
        files_of: Callable[[Item], Sequence[str]] = lambda item: (),
    ) -> None:
        self._shard, self._states, self._encoder = shard, states, encoder
        self._n_partitions, self._n_shards = n_partitions, n_shards
        self._retire_ms, self._now_ms, self._files_of = retire_ms, now_ms, files_of
        self._progress = self._begin()
        self._ended: set[int] = set()
        self._n_items, self._stale = self._count()
        self._tell_ms: int | None = None
        self._retire_at_ms: int | None = None
        self._encoded = metrics.ITEM_CONTENTS.labels("encoded")
        self._unchanged = metrics.ITEM_CONTENTS.labels("unchanged")
        self._removed = metrics.ITEM_CONTENTS.labels("removed")
        if self._progress.is_whole:
            self._become_whole()

    def _begin(self) -> Progress:
        progress = _of(Progress, self._states.get(_PROGRESS))
        before = progress.encoder
        if before != self._encoder:
            kept = [name for name in (*progress.older, before) if name not in ("", self._encoder)]
            progress.encoder, progress.older = self._encoder, kept
            progress.since_ms, progress.is_whole = self._now_ms(), False
        return progress

    def _count(self) -> tuple[int, set[str]]:
        n_items, stale = 0, set()
        for item_id, state in self._states.scan():
            if isinstance(state, ItemState):
                n_items += state.encoder == self._encoder
                if state.older or state.encoder != self._encoder:
                    stale.add(item_id)
        return n_items, stale

    @property
    def due_ms(self) -> int | None:
        """When `on_timer` has something to do, None: not before the next batch."""
        return min((at for at in (self._tell_ms, self._retire_at_ms) if at), default=None)

    def on_batch(self, batches: list[ItemBatch]) -> list[Output]:
        """Take changes, and the ends of partitions; return what is to encode and to remove."""
        out: list[Output] = []
        for batch in batches:
            for change in batch.changes:
                out += self._change(change)
            if batch.is_end:
                self._end(batch.partition)
        return out

    def _end(self, partition: int) -> None:
        self._ended.add(partition)
        if len(self._ended) >= self._n_partitions and not self._progress.is_whole:
            self._states.get(_PROGRESS)  # to be written
            self._progress.is_whole = True
            self._become_whole()

    def _become_whole(self) -> None:
        self._tell()
        if self._stale or self._progress.older:
            self._retire_at_ms = self._now_ms() + self._retire_ms

    def _tell(self) -> None:
        if self._progress.is_whole and self._tell_ms is None:
            self._tell_ms = self._now_ms() + _TELL_MS

    def _change(self, change: ItemChange) -> list[Output]:
        item = change.item
        if item is None:
            return self._remove(change)
        texts = texts_of(item)
        made_of = (*texts, "", *self._files_of(item))
        key = content_key(made_of, item.image_vector, item.audio_vector)
        known = self._states.peek(change.item_id)
        if isinstance(known, ItemState) and (known.encoder, known.key) == (self._encoder, key):
            self._unchanged.inc()
            return []
        state = _of(ItemState, self._states.get(change.item_id))
        if state.encoder != self._encoder:
            self._n_items += 1
            self._tell()
            state.older = [
                name for name in (*state.older, state.encoder) if name not in ("", self._encoder)
            ]
            state.encoder = self._encoder
        state.key = key
        self._encoded.inc()
        return [Contents(change.item_id, change.version, key, texts, item)]

    def _remove(self, change: ItemChange) -> list[Output]:
        # Told also of an item that is not known: a state that was lost may have left its vector.
        encoders = [self._encoder]
        if (known := self._states.peek(change.item_id)) is not None:
            state = _of(ItemState, known)
            self._n_items -= state.encoder == self._encoder
            encoders += [name for name in (*state.older, state.encoder) if name != self._encoder]
            self._states.delete(change.item_id)
            self._stale.discard(change.item_id)
            self._removed.inc()
            self._tell()
        return [Removal(encoder, change.item_id, change.version) for encoder in encoders]

    def on_timer(self) -> list[Output]:
        """Return the row that says all is encoded, if due; and removals for older encoders."""
        out: list[Output] = []
        if self._tell_ms is not None:
            self._tell_ms = None
            out.append(self._row())
        if self._retire_at_ms is not None and self._now_ms() >= self._retire_at_ms:
            out += self._retire()
        return out

    def _row(self) -> ItemVector:
        return ItemVector(
            encoder=self._encoder,
            shard=self._shard,
            n_shards=self._n_shards,
            n_items=self._n_items,
            since_ms=self._progress.since_ms,
        )

    def _retire(self) -> list[Output]:
        out: list[Output] = []
        for item_id in sorted(self._stale)[:_RETIRE_AT_ONCE]:
            self._stale.discard(item_id)
            state = _of(ItemState, self._states.get(item_id))
            out += [Removal(encoder, item_id, 0) for encoder in state.older]
            state.older = []
            if state.encoder != self._encoder:  # its removal went by while nobody read
                out.append(Removal(state.encoder, item_id, 0))
                self._states.delete(item_id)
        if not self._stale:
            self._states.get(_PROGRESS)  # to be written
            out += [Removal(encoder, "", 0) for encoder in self._progress.older]
            self._progress.older = []
            self._retire_at_ms = None
        return out


S = TypeVar("S", ItemState, Progress)
"""One of the two kinds of state."""


def _of(kind: type[S], state: State) -> S:
    if not isinstance(state, kind):
        raise TypeError(f"a state of {type(state).__name__} in place of {kind.__name__}")
    return state
