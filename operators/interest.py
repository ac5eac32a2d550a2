"""Interest: who is to be told that an item's price has dropped, or that it can be had again.

Reads   for each item its users' interest (events) and its new versions (items), and erasures.
Emits   a `UserSignal` for each user whom a change of an item concerns.
Owns    what counts as interest and for how long, and what counts as a change.

Events are keyed by user, changes by item. So this is an index of its own, keyed by item: the
newest users who looked at it, put it in the cart or kept it as a favorite. Who buys it or puts it
back is taken out. A signal's id follows from the change and the user, so that a replay makes the
same ones, and the sink writes each once.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

import msgspec
import xxhash

from operators.hops import Forget, Interest, ItemUpdate
from operators.messages import Event, Item, SignalType, UserSignal
from operators.packed import Versions

_SHOWS: Final = frozenset(("view", "cart", "favorite"))
_ENDS: Final = frozenset(("purchase", "cart_remove", "refund"))
_DAY_MS: Final = 86_400_000
_SLACK: Final = 1.25  # times the bound: the oldest are sorted out now and then, not each time
_VERSION: Final = 1


class ItemInterest(msgspec.Struct, array_like=True):
    """Who is interested in one item: at most 1,250 users, about 20 bytes each.

    Fields are stored by position: append only, with a default.
    """

    users: dict[str, int] = {}  # user_id -> time of the newest interest, ms
    price: float = 0.0  # the highest since a drop was last told; 0: not known
    is_there: bool | None = None  # could be had when last heard of; None: never heard of
    version: int = -1  # of the item's newest message, as is the next
    time_ms: int = 0


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(ItemInterest)
_VERSIONS = Versions("interest", {_VERSION: lambda packed: _DECODER.decode(memoryview(packed)[1:])})


def new_state(_item_id: str) -> ItemInterest:
    """Return the state of an item never seen before."""
    return ItemInterest()


def encode_state(state: ItemInterest) -> bytes:
    """Return the state as bytes, a version first."""
    return bytes((_VERSION,)) + _ENCODER.encode(state)


def decode_state(packed: bytes) -> ItemInterest:
    """Return the state that `encode_state` packed; NewerStateError for a newer release's."""
    return _VERSIONS.read(packed)


class Items(Protocol):
    """What is needed of `operators.shards.ShardView`."""

    def get(self, key: str) -> ItemInterest: ...  # noqa: D102
    def peek(self, key: str) -> ItemInterest | None: ...  # noqa: D102
    def delete(self, key: str) -> None: ...  # noqa: D102
    def scan(self) -> Iterator[tuple[str, ItemInterest]]: ...  # noqa: D102


def interest_of(event: Event) -> Interest | None:
    """Return what an event says of its user's interest in its item, None if nothing.

    >>> viewed = Event(event_id="e", user_id="u", type="view", time_ms=5, item_id="i")
    >>> interest_of(viewed)
    Interest(item_id='i', user_id='u', time_ms=5, is_over=False)
    """
    if event.item_id is None or (event.type not in _SHOWS and event.type not in _ENDS):
        return None
    return Interest(event.item_id, event.user_id, event.time_ms, event.type in _ENDS)


class InterestShard:
    """The interest in one shard's items.

    Parameters
    ----------
    items
        The shard's states by item_id.
    price_drop
        Least share by which a price must fall to be told, 0 to 1; 0 tells of none. It is taken of
        the highest price since the last drop that was told, so that many small steps count too.
    tells_of_stock
        Whether to tell of what can be had again.
    max_users
        Users kept of an item, the newest: the most that one change is told to.
    keep_ms
        Interest older than this at the time of the change is none, event time.

    Notes
    -----
    1 µs an interest, 0.4 ms for a change that 1,000 users are told of. An erasure, or many at
    once, reads all items of the shard, about 2 µs for one with 20 users; so does the sweep, once
    a day of event time, which drops what is too old and items that are gone. All by `python -m
    bench.written`, on states in memory.

    A price that is not above 0 is no price. What cannot be had now is told once it can be.

    Examples
    --------
    >>> from operators.shards import DictShard
    >>> items = DictShard("i00", encode=encode_state, decode=decode_state, new=new_state)
    >>> shard = InterestShard(items)
    >>> t, lamp = 1_700_000_000_000, Item(item_id="lamp", title="Lamp", price=20.0)
    >>> shard.on_batch([ItemUpdate("lamp", lamp, 0, t), Interest("lamp", "ann", t + 1, False)])
    []
    >>> cheaper = msgspec.structs.replace(lamp, price=18.0)
    >>> [told] = shard.on_batch([ItemUpdate("lamp", cheaper, 1, t + 2)])
    >>> told.user_id, told.type, told.old_price, told.price, told.time_ms - t
    ('ann', 'price_dropped', 20.0, 18.0, 2)
    """

    def __init__(
        self,
        items: Items,
        *,
        price_drop: float = 0.05,
        tells_of_stock: bool = True,
        max_users: int = 1_000,
        keep_ms: int = 30 * _DAY_MS,
    ) -> None:
        self._items = items
        self._price_drop = price_drop
        self._tells_of_stock = tells_of_stock
        self._max_users = max_users
        self._keep_ms = keep_ms
        self._newest_ms = self._swept_ms = 0

    def on_batch(self, entries: Iterable[Interest | ItemUpdate | Forget]) -> list[UserSignal]:
        """Take entries in order; return whom their changes concern, the newest interest first."""
        out: list[UserSignal] = []
        gone: set[str] = set()
        for entry in entries:
            if isinstance(entry, Forget):
                gone.add(entry.user_id)
                continue
            if gone and (isinstance(entry, ItemUpdate) or entry.user_id in gone):
                self._forget(gone)
                gone.clear()
            self._newest_ms = max(self._newest_ms, entry.time_ms)
            if isinstance(entry, Interest):
                self._note(entry)
            else:
                out += self._on_item(entry)
        if gone:
            self._forget(gone)
        if self._newest_ms - self._swept_ms >= _DAY_MS:
            self._swept_ms = self._newest_ms
            # A day longer: a change that comes late concerns the same users, sweep or not.
            self._sweep(self._newest_ms - self._keep_ms - _DAY_MS)
        return out

    def _note(self, entry: Interest) -> None:
        if entry.is_over:
            known = self._items.peek(entry.item_id)
            if (
                known is not None
                and known.users.get(entry.user_id, entry.time_ms + 1) <= entry.time_ms
            ):
                del self._items.get(entry.item_id).users[entry.user_id]
            return
        users = self._items.get(entry.item_id).users
        users[entry.user_id] = max(users.get(entry.user_id, 0), entry.time_ms)
        if len(users) > self._max_users * _SLACK:
            for user_id, _ in _newest_first(users)[self._max_users :]:
                del users[user_id]

    def _on_item(self, update: ItemUpdate) -> list[UserSignal]:
        state, item = self._items.get(update.item_id), update.item
        if update.version <= state.version and update.time_ms <= state.time_ms:
            return []  # the topic is read again, for another encoder
        state.version, state.time_ms = update.version, update.time_ms
        was_there = state.is_there
        if item is None or not _is_there(item, update.time_ms):
            state.is_there = False
            return []
        state.is_there = True
        old, price = state.price, max(item.price, 0.0)
        if was_there is False:
            state.price = price
            return self._told(update, state, "back_in_stock") if self._tells_of_stock else []
        if self._price_drop and 0 < price <= old * (1 - self._price_drop):
            state.price = price
            return self._told(update, state, "price_dropped", price=price, old_price=old)
        state.price = max(old, price)
        return []

    def _told(
        self, update: ItemUpdate, state: ItemInterest, kind: SignalType, **fields: float
    ) -> list[UserSignal]:
        time_ms = update.time_ms
        change = f"{kind}|{update.item_id}|{time_ms}|{fields}"
        concerned = [
            (user_id, since_ms)
            for user_id, since_ms in _newest_first(state.users)
            if time_ms - self._keep_ms <= since_ms <= time_ms
        ]
        return [
            UserSignal(
                signal_id=xxhash.xxh3_128_hexdigest(f"{change}|{user_id}".encode()),
                user_id=user_id,
                type=kind,
                time_ms=time_ms,
                item_id=update.item_id,
                since_ms=since_ms,
                price=fields.get("price"),
                old_price=fields.get("old_price"),
            )
            for user_id, since_ms in concerned[: self._max_users]
        ]

    def _forget(self, gone: set[str]) -> None:
        self._drop(lambda user_id, _since_ms: user_id in gone)

    def _sweep(self, older_than_ms: int) -> None:
        self._drop(lambda _user_id, since_ms: since_ms < older_than_ms)

    def _drop(self, is_over: Callable[[str, int], bool]) -> None:
        """Take users out of all items, and drop items that cannot be had and interest nobody."""
        for item_id, known in self._items.scan():
            over = [user for user, since_ms in known.users.items() if is_over(user, since_ms)]
            if len(over) == len(known.users) and not known.is_there:
                self._items.delete(item_id)
            elif over:
                users = self._items.get(item_id).users
                for user_id in over:
                    del users[user_id]


def _newest_first(users: dict[str, int]) -> list[tuple[str, int]]:
    """Return users by their newest interest, ties by name: a dict's order must not decide."""
    return sorted(users.items(), key=lambda pair: (-pair[1], pair[0]))


def _is_there(item: Item, time_ms: int) -> bool:
    starts_ms, ends_ms = item.available_from_ms, item.available_until_ms
    return (
        item.is_available
        and (starts_ms is None or starts_ms <= time_ms)
        and (ends_ms is None or time_ms < ends_ms)
    )
