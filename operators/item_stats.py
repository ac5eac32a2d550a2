"""Item statistics: what users did with each item, and what they had beside it.

Reads   events of one user (`InteractionTracker`), then signals of one item (`ItemStatsShard`).
Emits   `ItemSignal`, then `ItemStats` for `push.item-stats.v1`.
Owns    what goes together: the other items of a user's session.

Two hops, for they have different keys. By user: an event meets the user's other items of the
session. `fan_out` then gives one signal to the item itself and one to each item beside it, so
that both learn of the pair, in whichever shard they live. By item: signals become the fading
counts of `models.item_counts`.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, Protocol

from models.item_counts import INTEREST, PLACE_FADE, TOGETHER, VERSION, ItemCounts
from operators.hops import ItemSignal
from operators.messages import Event, ItemStats
from operators.packed import Versions

_SAYS_MORE: Final = frozenset(("cart", "purchase"))  # than the views before them
_VERSIONS = Versions("item", {1: ItemCounts.unpack, VERSION: ItemCounts.unpack})
MAX_BOUGHT: Final = 50  # items a user whose last purchase is remembered


class InteractionTracker:
    """Finds what a user had together, from their events one by one.

    Parameters
    ----------
    gap_ms
        Longest pause inside a session, milliseconds of event time, > 0.
    max_recent
        Items remembered of the session, >= 1: the bound on `recent` and on `together`. What is
        further back hardly counts, see `models.item_counts.PLACE_FADE`.

    Notes
    -----
    A basket's lines share their time, so they are one session. An item seen again in a session
    counts beside what came since, not beside the same items once more; put in the cart or
    bought, it counts beside all of them.

    Examples
    --------
    >>> tracker, recent = InteractionTracker(gap_ms=1_000), []
    >>> def see(item_id, time_ms):
    ...     event = Event(event_id="e", user_id="u", type="view", time_ms=time_ms, item_id=item_id)
    ...     return tracker.observe(recent, event).together
    >>> see("a", 0), see("b", 500), see("c", 900), see("b", 950)
    ((), ('a',), ('b', 'a'), ('c',))
    >>> see("d", 1_951)  # a pause of 1,001 ms
    ()
    >>> recent
    [('d', 1951)]
    """

    def __init__(self, gap_ms: int, max_recent: int = 20) -> None:
        if gap_ms <= 0 or max_recent < 1:
            raise ValueError(f"gap_ms and max_recent must be positive: {gap_ms}, {max_recent}")
        self._gap_ms = gap_ms
        self._max_recent = max_recent

    def observe(self, recent: list[tuple[str, int]], event: Event) -> ItemSignal | None:
        """Return what the event says of its item, None if nothing; update `recent` in place.

        `recent` holds (item_id, time_ms) of the session, oldest first, each item once.
        """
        if event.item_id is None or (event.type not in INTEREST and event.type != "refund"):
            return None
        together: tuple[str, ...] = ()
        if event.type in INTEREST:
            together = self._together(recent, event.item_id, event.time_ms, event.type)
        return ItemSignal(
            item_id=event.item_id,
            type=event.type,
            time_ms=event.time_ms,
            country=event.context.country if event.context else "",
            value=event.value or 0.0,
            together=together,
        )

    def _together(
        self, recent: list[tuple[str, int]], item_id: str, time_ms: int, kind: str
    ) -> tuple[str, ...]:
        if recent and time_ms - recent[-1][1] > self._gap_ms:
            recent.clear()
        if recent and recent[-1][1] - time_ms > self._gap_ms:
            return ()  # late, and of an earlier session, whose items are gone
        place = next((i for i, (other, _) in enumerate(recent) if other == item_id), None)
        since = recent if place is None or kind in _SAYS_MORE else recent[place + 1 :]
        together = tuple(other for other, _ in reversed(since) if other != item_id)
        if place is not None:
            time_ms = max(time_ms, recent.pop(place)[1])
        at = bisect_right(recent, time_ms, key=lambda pair: pair[1])
        recent.insert(at, (item_id, time_ms))
        del recent[: -self._max_recent]
        return together


def since_bought(bought: dict[str, int], event: Event) -> int:
    """Return how long before a purchase its user last bought the same item, in ms; 0: not known.

    `bought` holds when each item was last bought, ms, the newest purchase last; it is updated in
    place, to at most `MAX_BOUGHT`. A purchase that comes late counts as 1 ms after.

    >>> bought = {}
    >>> def buy(item_id, time_ms):
    ...     event = Event(event_id="e", user_id="u", type="purchase", time_ms=time_ms,
    ...                   item_id=item_id)
    ...     return since_bought(bought, event)
    >>> buy("a", 1_000), buy("b", 1_500), buy("a", 4_000), buy("b", 1_200), bought
    (0, 0, 3000, 1, {'a': 4000, 'b': 1500})
    """
    item_id, time_ms = event.item_id, event.time_ms
    if event.type != "purchase" or item_id is None:
        return 0
    last_ms = bought.pop(item_id, None)
    bought[item_id] = time_ms if last_ms is None else max(last_ms, time_ms)
    if len(bought) > MAX_BOUGHT:
        del bought[next(iter(bought))]
    return 0 if last_ms is None else max(time_ms - last_ms, 1)


def fan_out(signal: ItemSignal) -> list[ItemSignal]:
    """Return the signal and its mirror images: one for each item beside it, at most 20.

    Both sides of a pair give it the same weight.

    >>> for s in fan_out(ItemSignal("a", "cart", 5, "GB", 9.5, ("b", "c"))): print(s[:2], s[4:6])
    ('a', 'cart') (9.5, ('b', 'c'))
    ('b', 'together') (3.0, ('a',))
    ('c', 'together') (2.7, ('a',))
    """
    weight = INTEREST.get(signal.type, 0.0)
    signals = [signal]
    for other in signal.together:
        signals.append(ItemSignal(other, TOGETHER, signal.time_ms, "", weight, (signal.item_id,)))
        weight *= PLACE_FADE
    return signals


def new_state(_item_id: str) -> ItemCounts:
    """Return the state of an item never seen before."""
    return ItemCounts()


def encode_state(state: ItemCounts) -> bytes:
    """Return the state as bytes, a version first."""
    return state.pack()


def decode_state(data: bytes) -> ItemCounts:
    """Return the state that `encode_state` packed; NewerStateError for a newer release's."""
    return _VERSIONS.read(data)


class Items(Protocol):
    """What is needed of `operators.shards.ShardView`."""

    def get(self, key: str) -> ItemCounts:
        """Return a state to be changed in place, a new one if there is none."""
        ...

    def peek(self, key: str) -> ItemCounts | None:
        """Return a state to be read only."""
        ...

    def delete(self, key: str) -> None:
        """Drop a state."""
        ...

    def scan(self) -> Iterator[tuple[str, ItemCounts]]:
        """Yield all states."""
        ...


class ItemStatsShard:
    """The statistics of one shard's items.

    Parameters
    ----------
    items
        The shard's states by item_id.

    Notes
    -----
    4 µs a signal, and 70 µs a row of `dirty` (`python -m bench.candidates`). Beside the states
    it holds the ids changed since the last `dirty`. An item without signals stays until `sweep`
    drops it.

    Examples
    --------
    >>> from operators.shards import DictShard
    >>> items = DictShard("00", encode=encode_state, decode=decode_state, new=new_state)
    >>> shard = ItemStatsShard(items)
    >>> shard.on_signal(ItemSignal("a", "view", 1_700_000_000_000, "GB", 0.0, ("b",)))
    >>> shard.on_signal(ItemSignal("a", "view", 1_700_086_400_000, "GB", 0.0, ()))
    >>> [stats] = shard.dirty()
    >>> round(stats.views, 3), stats.popularity_1d, stats.by_country, stats.neighbours
    (1.906, 1.5, {'GB': 1.5}, [('b', 0.37763)])
    >>> shard.dirty()
    []
    """

    def __init__(self, items: Items) -> None:
        self._items = items
        self._dirty: set[str] = set()

    def on_signal(self, signal: ItemSignal) -> None:
        """Count one signal."""
        self._items.get(signal.item_id).add(
            signal.type,
            signal.time_ms,
            value=signal.value,
            country=signal.country,
            beside=signal.together,
            since_ms=signal.since_ms,
        )
        self._dirty.add(signal.item_id)

    def dirty(self) -> list[ItemStats]:
        """Return the statistics of all items changed since the last call, by item_id."""
        changed, self._dirty = sorted(self._dirty), set()
        states = ((item_id, self._items.peek(item_id)) for item_id in changed)
        return [to_stats(item_id, state) for item_id, state in states if state is not None]

    def mark_all(self) -> None:
        """Make the next `dirty` return every item: after a resume, some were never published."""
        self._dirty.update(item_id for item_id, _ in self._items.scan())

    def sweep(self, older_than_ms: int) -> list[str]:
        """Drop items without a signal since an event time; return their ids, for tombstones."""
        old = [key for key, state in self._items.scan() if state.newest_ms < older_than_ms]
        for item_id in old:
            self._items.delete(item_id)
            self._dirty.discard(item_id)
        return old


def to_stats(item_id: str, state: ItemCounts) -> ItemStats:
    """Return an item's statistics as of its newest signal, rounded for the wire."""
    views, clicks, carts, purchases, favorites, pushes, opens = (
        round(count, 4) for count in state.counted()
    )
    rating_sum, rating_count = state.ratings()
    first_buys, repeat_buys, repeat_days = state.repeats()
    return ItemStats(
        item_id=item_id,
        as_of_ms=state.newest_ms,
        views=views,
        clicks=clicks,
        carts=carts,
        purchases=purchases,
        favorites=favorites,
        pushes=pushes,
        opens=opens,
        rating_sum=round(rating_sum, 4),
        rating_count=round(rating_count, 4),
        popularity_1d=round(state.popularity(), 6),
        first_seen_ms=state.first_ms,
        by_country={country: round(count, 6) for country, count in state.countries()},
        neighbours=[(other, round(strength, 5)) for other, strength in state.neighbours()],
        first_buys=round(first_buys, 4),
        repeat_buys=round(repeat_buys, 4),
        repeat_days=round(repeat_days, 3),
        by_hour=[round(count, 4) for count in state.hours()],
        interest=round(state.interest(), 4),
    )
