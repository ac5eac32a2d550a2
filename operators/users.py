"""Users: the one keyed step that knows what each user has done, and when that is a reason to push.

Reads   events, feedback, profiles and erasures of one shard, in partition order.
Emits   a feature row for each user touched, and triggers; most events fire none.
Owns    a user's packed state, and the timers of a shard.

A timer is an entry in one heap for each source partition, in event time; at most two a user are
live (session or cart, idle or expiry), and entries that an event has overtaken are re-armed when
they come up, not searched for. The heaps are rebuilt from the first fields of the packed states.
"""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from math import exp
from sys import intern
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec
import xxhash

from models.features import EVENT_CODE, HISTORY
from operators import metrics
from operators.context import DAY_MS, hours_since, time_context, where
from operators.counters import (
    OTHER,
    TYPE_INDEX,
    Decayed,
    Sliding,
    add_decayed,
    add_sliding,
    decayed_at,
    sliding_at,
)
from operators.hops import (
    Engagement,
    FeatureRow,
    Forget,
    History,
    ShardBatch,
    Trigger,
)
from operators.messages import Event, EventContext, Feedback, TriggerType, UserProfile
from operators.sessions import Session, ends_before, main_category, observe
from operators.triggers import INTENT_FIRED, Due, TriggerRules, has_intent, next_later, next_soon

if TYPE_CHECKING:
    Seconds = array[int]
else:
    Seconds = array  # Python 3.11 takes no [int] when it runs

STATE_VERSION: Final = 1
SEEN: Final = 32  # event ids remembered of a user; a duplicate that comes later is not known
MAX_CART: Final = 50
MAX_BOUGHT: Final = 50
_ENGAGEMENT_MS: Final = 7 * DAY_MS / 0.6931471805599453  # half-life of 7 days

# Of two actions on one item in a row the stronger stays in the history.
_STRENGTH: Final = {
    EVENT_CODE[kind]: strength
    for strength, kind in enumerate(
        ("view", "click", "share", "comment", "rate", "favorite", "cart", "purchase"), start=1
    )
}
_HISTORY_KINDS: Final = frozenset(
    ("view", "click", "share", "comment", "rate", "favorite", "cart", "purchase")
)


class UserState(msgspec.Struct, array_like=True, gc=False):
    """All that is kept of a user: at most about 4 KB packed, typically 0.3 to 1.5 KB.

    Fields are stored by position: append only, with a default. The first three are read alone
    when timers are rebuilt. Numbers that come in rows are kept in arrays: a user in memory is
    then some 40 objects instead of 170, and each object is a cache miss in every event.
    """

    soon_ms: int = 0  # the armed timer of session or cart; 0: none
    later_ms: int = 0  # the armed timer of idle or expiry; 0: none
    partition: int = 0
    first_ms: int = 0
    last_ms: int = 0
    last_event_id: str = ""
    is_idle_fired: bool = False
    is_cart_fired: bool = False
    profile: UserProfile | None = None
    place: EventContext | None = None
    seen: bytearray = msgspec.field(default_factory=bytearray)  # 8 bytes an event id
    session: Session = msgspec.field(default_factory=Session)
    category: str = ""  # main category of the last session that had one
    cart: dict[str, float] = {}  # item -> value
    decayed: Decayed = msgspec.field(default_factory=Decayed)
    sliding: Sliding = msgspec.field(default_factory=Sliding)
    views: int = 0
    purchases: int = 0
    purchase_value: float = 0.0
    first_purchase_ms: int = 0
    last_purchase_ms: int = 0
    favorites: int = 0
    ratings: int = 0
    rating_sum: float = 0.0
    item_ids: list[str] = []  # history, oldest first, at most 50
    types: bytearray = msgspec.field(default_factory=bytearray)  # event codes
    times_s: Seconds = msgspec.field(default_factory=lambda: array("I"))
    bought: list[str] = []
    opens: float = 0.0  # decayed to engaged_ms, as dismissals are
    dismissals: float = 0.0
    engaged_ms: int = 0
    last_open_ms: int = 0
    opted_out_of: str | None = None  # version of the consent that the opt-out ended
    cart_fired_ms: int = 0  # `last_ms` when the cart last fired


class _Timers(msgspec.Struct, array_like=True, gc=False):
    soon_ms: int
    later_ms: int
    partition: int


def _pack_array(value: Any) -> bytes:
    if isinstance(value, array):
        return value.typecode.encode() + value.tobytes()
    raise NotImplementedError(f"no packing for {type(value)}")


def _unpack_array(_type: type, packed: bytes) -> Any:
    return array(chr(packed[0]), packed[1:])


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_pack_array)
_DECODER = msgspec.msgpack.Decoder(UserState, dec_hook=_unpack_array)
_TIMERS = msgspec.msgpack.Decoder(_Timers)
_VERSION: Final = bytes([STATE_VERSION])


def encode_state(state: UserState) -> bytes:
    """Return the state as bytes, a version byte first."""
    return _VERSION + _ENCODER.encode(state)


def decode_state(packed: bytes) -> UserState:
    """Return the state of `encode_state`.

    Raises
    ------
    ValueError
        If a newer version wrote it.

    Examples
    --------
    >>> state = UserState(views=3, cart={"a": 9.5})
    >>> decode_state(encode_state(state)) == state
    True
    """
    if packed[0] != STATE_VERSION:
        raise ValueError(f"user state of version {packed[0]}, this release reads {STATE_VERSION}")
    return _DECODER.decode(memoryview(packed)[1:])


def new_state(_user_id: str) -> UserState:
    """Return the state of a user never seen before."""
    return UserState()


class Users(Protocol):
    """The part of `operators.state.Shard` that is needed here."""

    def get(self, key: str) -> UserState: ...  # noqa: D102
    def peek(self, key: str) -> UserState | None: ...  # noqa: D102
    def delete(self, key: str) -> None: ...  # noqa: D102
    def scan_raw(self) -> Iterator[tuple[str, bytes]]: ...  # noqa: D102


class ShardOutput(NamedTuple):
    """What one call gave: the latest row of each user touched, and what follows in order.

    `Forget` says that a user was erased or expired, so that the steps behind drop theirs too.
    """

    rows: list[FeatureRow]
    triggers: list[Trigger | Forget]


def add_history(state: UserState, item_id: str, code: int, time_s: int) -> None:
    """Put one item into the history by time; of two in a row of one item the stronger stays.

    >>> s = UserState()
    >>> for item, kind, time_s in (("a", "view", 1), ("a", "cart", 2), ("b", "view", 4),
    ...                            ("c", "view", 3)):
    ...     add_history(s, item, EVENT_CODE[kind], time_s)
    >>> s.item_ids, s.times_s.tolist()
    (['a', 'c', 'b'], [2, 3, 4])
    """
    items, types, times = state.item_ids, state.types, state.times_s
    at = len(items) if not times or time_s >= times[-1] else bisect_right(times, time_s)
    if at and items[at - 1] == item_id:
        if _STRENGTH[code] > _STRENGTH[types[at - 1]]:
            types[at - 1] = code
        times[at - 1] = time_s
        return
    items.insert(at, item_id)
    types.insert(at, code)
    times.insert(at, time_s)
    if len(items) > HISTORY:
        del items[0], types[0], times[0]


def context_of(state: UserState, time_ms: int) -> list[float]:
    """Return the raw context of a user as of `time_ms`, in the order of `models.features.CONTEXT`.

    >>> from models.features import N_CONTEXT
    >>> len(context_of(UserState(), 1_700_000_000_000)) == N_CONTEXT
    True
    """
    session = state.session
    zone, place = where(state.profile, state.place)
    decay = exp(min(state.engaged_ms - time_ms, 0) / _ENGAGEMENT_MS)
    purchases, bought_ms = state.purchases, state.last_purchase_ms
    before_ms = session.before_ms or session.last_ms
    values = [
        float(session.events),
        (session.last_ms - session.start_ms) / 1_000,
        float(session.depth),
        session.dwell_ms / 1_000 / session.views if session.views else 0.0,
        float(len(session.items)),
        float(len(session.categories)),
        float(len(state.cart)),
        sum(state.cart.values()) if state.cart else 0.0,
        (session.last_ms - before_ms) / 1_000,
    ]
    values += decayed_at(state.decayed, time_ms)
    values += sliding_at(state.sliding, time_ms)
    values += (
        float(state.views),
        float(purchases),
        state.purchase_value,
        (bought_ms - state.first_purchase_ms) / DAY_MS / (purchases - 1) if purchases > 1 else 0.0,
        max(time_ms - bought_ms, 0) / DAY_MS if bought_ms else 0.0,
        float(state.favorites),
        float(state.ratings),
        state.rating_sum / state.ratings if state.ratings else 0.0,
        max(time_ms - state.first_ms, 0) / DAY_MS if state.first_ms else 0.0,
        state.opens * decay,
        state.dismissals * decay,
        hours_since(state.last_open_ms, time_ms),
    )
    values += time_context(time_ms, zone)
    values += place
    return values


class UserShard:
    """The users of one shard.

    Parameters
    ----------
    shard
        The shard's name, handed on with each trigger.
    users
        State by user_id.
    rules
        When to consider a push.
    category_of
        item_id -> its main category, "" where it is not known.

    Notes
    -----
    Memory: users are bounded by `users`; the heaps hold at most two live entries a user and those
    overtaken within the idle time, about 150 bytes each. Time: about 10 us an event, features
    included.

    Examples
    --------
    >>> from operators.shards import DictShard
    >>> users = DictShard("00", encode=encode_state, decode=decode_state, new=new_state)
    >>> shard = UserShard("00", users, TriggerRules(idle_ms=0), category_of=lambda item: "shoes")
    >>> t = 1_700_000_000_000
    >>> views = [Event(event_id=f"e{i}", user_id="u", type="view", item_id=f"i{i}", time_ms=t + i)
    ...          for i in range(3)]
    >>> [out] = shard.on_batch([ShardBatch("00", 0, t, [(t, view) for view in views])])
    >>> [(trigger.type, trigger.event_id) for trigger in out.triggers]
    [('intent', 'e2')]
    >>> [out] = shard.on_batch([ShardBatch("00", 0, t + 1_800_003, [])])  # half an hour of quiet
    >>> [(trigger.type, trigger.event_id, trigger.time_ms - t) for trigger in out.triggers]
    [('session_ended', 'e2', 1800003)]
    """

    def __init__(
        self,
        shard: str,
        users: Users,
        rules: TriggerRules,
        category_of: Callable[[str], str],
    ) -> None:
        self._shard = shard
        self._users = users
        self._rules = rules
        self._category_of = category_of
        self._heaps: dict[int, list[tuple[int, str]]] = {}
        self._triggers: list[Trigger | Forget] = []
        self._touched: dict[str, UserState] = {}
        self._duplicates = 0
        self._late = 0
        cart_ms, idle_ms = rules.cart_left_ms, rules.idle_ms
        self._soonest_ms = min(rules.session_gap_ms, cart_ms or rules.session_gap_ms)
        self._idle_ms = min(rules.expire_ms, idle_ms or rules.expire_ms)
        self._load_timers(users.scan_raw())

    def _load_timers(self, packed_states: Iterable[tuple[str, bytes]]) -> None:
        for user_id, packed in packed_states:
            timers = _TIMERS.decode(memoryview(packed)[1:])
            heap = self._heaps.setdefault(timers.partition, [])
            heap += [(due, user_id) for due in (timers.soon_ms, timers.later_ms) if due]
        for heap in self._heaps.values():
            heapify(heap)

    def on_batch(self, batches: Iterable[ShardBatch]) -> list[ShardOutput]:
        """Fold the batches in, time passing as it did for each partition; return one output."""
        for batch in batches:
            partition = batch.partition
            heap = self._heaps.setdefault(partition, [])
            for watermark_ms, entry in batch.entries:
                if heap and heap[0][0] <= watermark_ms:
                    self._fire_due(heap, partition, watermark_ms)
                if isinstance(entry, Event):
                    self._on_event(entry, partition, watermark_ms)
                elif isinstance(entry, Feedback):
                    self._on_feedback(entry)
                elif isinstance(entry, UserProfile):
                    self._users.get(entry.user_id).profile = entry
                elif isinstance(entry, Forget):
                    self._forget(entry.user_id)
            if heap and heap[0][0] <= batch.watermark_ms:
                self._fire_due(heap, partition, batch.watermark_ms)
        return [self._drain()]

    def _drain(self) -> ShardOutput:
        rows = [
            FeatureRow(user_id, state.last_ms, context_of(state, state.last_ms))
            for user_id, state in self._touched.items()
        ]
        triggers, self._triggers, self._touched = self._triggers, [], {}
        for trigger in triggers:
            if isinstance(trigger, Trigger):
                metrics.TRIGGERS.labels(trigger.type).inc()
        if self._duplicates:
            metrics.DUPLICATES.inc(self._duplicates)
        if self._late:
            metrics.LATE_EVENTS.inc(self._late)
        self._duplicates = self._late = 0
        return ShardOutput(rows, triggers)

    def _forget(self, user_id: str) -> None:
        self._users.delete(user_id)
        self._touched.pop(user_id, None)
        self._triggers.append(Forget(user_id, self._shard))

    def _is_duplicate(self, state: UserState, message_id: str) -> bool:
        digest = xxhash.xxh3_64_digest(message_id.encode())
        seen = state.seen
        if digest in seen:  # at any place, even or not: a false hit has one chance in 2^56
            self._duplicates += 1
            return True
        seen += digest
        if len(seen) > 8 * SEEN:
            del seen[:8]
        return False

    def _on_event(self, event: Event, partition: int, watermark_ms: int) -> None:
        user_id, time_ms, kind = event.user_id, event.time_ms, event.type
        state = self._users.get(user_id)
        if self._is_duplicate(state, event.event_id):
            return
        self._late += time_ms < watermark_ms
        if event.context is not None:
            state.place = event.context
        category = self._category_of(event.item_id) if event.item_id is not None else ""
        gap_ms = self._rules.session_gap_ms
        if ends_before(state.session, time_ms, gap_ms):
            soon = next_soon(state.session, state.last_ms, False, self._rules)
            if soon is not None:
                self._apply(state, user_id, soon)
        is_current = observe(
            state.session,
            time_ms,
            event.event_id,
            kind=kind,
            item_id=event.item_id,
            category=category,
            dwell_seconds=event.value if kind == "view" else None,
            gap_ms=gap_ms,
        )
        add_decayed(state.decayed, time_ms, TYPE_INDEX.get(kind, OTHER))
        add_sliding(state.sliding, time_ms)
        _add_totals(state, event)
        self._move_clock(state, event, partition)
        # Armed timers are at most as far as what this event could arm: the usual case.
        if not 0 < state.soon_ms <= time_ms + self._soonest_ms or not (
            0 < state.later_ms <= time_ms + self._idle_ms
        ):
            self._arm(state, user_id)
        self._touched[user_id] = state
        is_view = kind in ("view", "click")
        if is_view and is_current and has_intent(state.session, category, self._rules):
            state.session.fired |= INTENT_FIRED
            self._trigger(state, user_id, "intent", event.event_id, time_ms)

    def _move_clock(self, state: UserState, event: Event, partition: int) -> None:
        if event.time_ms >= state.last_ms:
            state.last_ms = event.time_ms
            state.last_event_id = event.event_id
            state.is_idle_fired = False
        if not state.first_ms or event.time_ms < state.first_ms:
            state.first_ms = event.time_ms
        if state.partition != partition:  # the topic has grown, and the user moved
            state.partition = partition
            state.soon_ms = state.later_ms = 0

    def _on_feedback(self, feedback: Feedback) -> None:
        kind, time_ms = feedback.type, feedback.time_ms
        if kind not in ("opened", "dismissed", "opted_out"):
            return
        state = self._users.get(feedback.user_id)
        if self._is_duplicate(state, feedback.feedback_id):
            return
        if time_ms > state.engaged_ms:
            decay = exp((state.engaged_ms - time_ms) / _ENGAGEMENT_MS)
            state.opens *= decay
            state.dismissals *= decay
            state.engaged_ms = time_ms
        if kind == "opened":
            state.opens += 1
            state.last_open_ms = max(state.last_open_ms, time_ms)
        elif kind == "dismissed":
            state.dismissals += 1
        else:
            state.opted_out_of = state.profile.consent.version if state.profile else ""

    def _next(self, state: UserState) -> Due:
        is_cart_left = bool(state.cart) and not state.is_cart_fired
        soon = next_soon(state.session, state.last_ms, is_cart_left, self._rules)
        later = next_later(state.last_ms, state.is_idle_fired, self._rules)
        return later if soon is None or later.time_ms < soon.time_ms else soon

    def _arm(self, state: UserState, user_id: str) -> None:
        heap = self._heaps.setdefault(state.partition, [])
        is_cart_left = bool(state.cart) and not state.is_cart_fired
        soon = next_soon(state.session, state.last_ms, is_cart_left, self._rules)
        if soon is not None and (not state.soon_ms or soon.time_ms < state.soon_ms):
            state.soon_ms = soon.time_ms
            heappush(heap, (soon.time_ms, user_id))
        later_ms = next_later(state.last_ms, state.is_idle_fired, self._rules).time_ms
        if not state.later_ms or later_ms < state.later_ms:
            state.later_ms = later_ms
            heappush(heap, (later_ms, user_id))

    def _fire_due(self, heap: list[tuple[int, str]], partition: int, watermark_ms: int) -> None:
        while heap and heap[0][0] <= watermark_ms:
            due_ms, user_id = heappop(heap)
            state = self._users.peek(user_id)
            if state is None or state.partition != partition:
                continue
            if due_ms not in (state.soon_ms, state.later_ms):
                continue  # overtaken by an earlier timer
            self._fire(self._users.get(user_id), user_id, due_ms)

    def _fire(self, state: UserState, user_id: str, due_ms: int) -> None:
        if due_ms == state.soon_ms:
            state.soon_ms = 0
        if due_ms == state.later_ms:
            state.later_ms = 0
        # Not up to the watermark: what is due later waits its turn in the heap among the other
        # users, so that the order of triggers does not depend on how far a watermark jumped.
        while (due := self._next(state)).time_ms <= due_ms:
            if due.expires:
                self._forget(user_id)
                return
            self._apply(state, user_id, due)
        self._arm(state, user_id)

    def _apply(self, state: UserState, user_id: str, due: Due) -> None:
        if due.type is not None:
            # A session of late events ends with one of its own, not with the user's newest.
            of = state.session if due.ends_session else state
            self._trigger(state, user_id, due.type, of.last_event_id, due.time_ms)
        if due.ends_session:
            state.category = main_category(state.session) or state.category
            state.session = Session()
        elif due.type == "cart_left":
            state.is_cart_fired = True
            state.cart_fired_ms = state.last_ms
        elif due.type == "idle":
            state.is_idle_fired = True

    def _trigger(
        self, state: UserState, user_id: str, kind: TriggerType, event_id: str, time_ms: int
    ) -> None:
        profile = state.profile
        is_opted_out = state.opted_out_of is not None and (
            profile is None or profile.consent.version == state.opted_out_of
        )
        decay = exp(min(state.engaged_ms - time_ms, 0) / _ENGAGEMENT_MS)
        self._triggers.append(
            Trigger(
                type=kind,
                event_id=event_id,
                user_id=user_id,
                shard=self._shard,
                time_ms=time_ms,
                context=context_of(state, time_ms),
                history=History(list(state.item_ids), list(state.types), state.times_s.tolist()),
                cart=list(state.cart),
                bought=list(state.bought),
                category=main_category(state.session) or state.category,
                platform=state.place.platform if state.place is not None else "",
                profile=profile,
                engagement=Engagement(
                    state.opens * decay,
                    state.dismissals * decay,
                    state.last_open_ms,
                    is_opted_out,
                ),
            )
        )


def _add_totals(state: UserState, event: Event) -> None:
    kind, item_id, value = event.type, event.item_id, event.value
    if item_id is not None and kind in _HISTORY_KINDS:
        # Interned: users share their items, and a copy for each would be most of their memory.
        add_history(state, intern(item_id), EVENT_CODE[kind], event.time_ms // 1_000)
    if kind == "view":
        state.views += 1
    elif kind == "cart" and item_id is not None:
        if len(state.cart) < MAX_CART:
            state.cart[item_id] = value or 0.0
            # A late event does not end a pause: one that has fired would fire again, as the
            # same trigger.
            if event.time_ms >= state.last_ms or state.cart_fired_ms != state.last_ms:
                state.is_cart_fired = False
    elif kind == "cart_remove" and item_id is not None:
        state.cart.pop(item_id, None)
    elif kind == "purchase" and item_id is not None:
        _add_purchase(state, item_id, value or 0.0, event.time_ms)
    elif kind == "favorite":
        state.favorites += 1
    elif kind == "rate" and value is not None:
        state.ratings += 1
        state.rating_sum += value


def _add_purchase(state: UserState, item_id: str, value: float, time_ms: int) -> None:
    state.purchases += 1
    state.purchase_value += value
    state.first_purchase_ms = min(state.first_purchase_ms or time_ms, time_ms)
    state.last_purchase_ms = max(state.last_purchase_ms, time_ms)
    state.cart.pop(item_id, None)
    bought = state.bought
    if item_id in bought:
        bought.remove(item_id)
    bought.append(item_id)
    if len(bought) > MAX_BOUGHT:
        del bought[0]
