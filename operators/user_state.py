"""A user's state: what is kept of each user, its bytes, and the totals and history in it.

Reads   one event at a time.
Owns    the fields and their order, the version of the bytes, and the bounds of every list.
"""

from array import array
from bisect import bisect_right
from sys import intern
from typing import TYPE_CHECKING, Any, Final

import msgspec

from models.features import EVENT_CODE, HISTORY
from operators.counters import Decayed, Sliding
from operators.messages import Event, EventContext, UserProfile
from operators.packed import HEAD_BYTES, Armed, Versions, armed_of, head
from operators.sessions import Session

if TYPE_CHECKING:
    Seconds = array[int]
else:
    Seconds = array  # Python 3.11 takes no [int] when it runs

# 1 had no head; 2 knew neither when an item was bought nor what a user wrote.
STATE_VERSION: Final = 3
MAX_CART: Final = 50
# What a customer bought says what goes with it for longer than a history of 50: on online-retail
# 200 find 7% more.
MAX_BOUGHT: Final = 200
ENGAGEMENT_MS: Final = 7 * 86_400_000 / 0.6931471805599453  # opens and dismissals: half-life 7 days

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
    """All that is kept of a user: at most about 7 KB packed, typically 0.3 to 1.5 KB.

    Fields are stored by position: append only, with a default. The first three stand in the head
    of the bytes too. Numbers that come in rows are kept in arrays: a user in memory is
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
    # Times of `bought`, 0 where version 2 did not keep them.
    bought_s: Seconds = msgspec.field(default_factory=lambda: array("I"))
    taste: bytes = b""  # sum of the texts' vectors, of `operators.written`, faded to `taste_ms`
    taste_weight: float = 0.0  # of the texts in it
    taste_ms: int = 0
    encoder: str = ""  # of the vectors in `taste` and `session.intent`


class _Version1Head(msgspec.Struct, array_like=True, gc=False):
    """The first fields of the body: all that a restart needs of a state without a head."""

    soon_ms: int
    later_ms: int
    partition: int


def _pack_array(value: Any) -> bytes:
    if isinstance(value, array):
        return value.typecode.encode() + value.tobytes()
    # What msgspec asks of a hook for a type that it does not know.
    raise NotImplementedError(f"no packing for {type(value)}")


def _unpack_array(_type: type, packed: bytes) -> Any:
    return array(chr(packed[0]), packed[1:])


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_pack_array)
_DECODER = msgspec.msgpack.Decoder(UserState, dec_hook=_unpack_array)
_VERSION_1_HEAD = msgspec.msgpack.Decoder(_Version1Head)


def _before_3(body: memoryview) -> UserState:
    state = _DECODER.decode(body)
    state.bought_s = array("I", [0]) * len(state.bought)
    return state


_VERSIONS = Versions(
    "user",
    {
        1: lambda packed: _before_3(memoryview(packed)[1:]),
        2: lambda packed: _before_3(memoryview(packed)[HEAD_BYTES:]),
        STATE_VERSION: lambda packed: _DECODER.decode(memoryview(packed)[HEAD_BYTES:]),
    },
)


def encode_state(state: UserState) -> bytes:
    """Return the state as bytes: a head that is read alone (`operators.packed`), then all of it."""
    armed = Armed(state.soon_ms, state.later_ms, state.partition)
    return head(STATE_VERSION, armed) + _ENCODER.encode(state)


def decode_state(packed: bytes) -> UserState:
    """Return the state of `encode_state`, of this release or an older one.

    Raises
    ------
    operators.packed.NewerStateError
        If a newer version wrote it.

    Examples
    --------
    >>> state = UserState(views=3, cart={"a": 9.5})
    >>> decode_state(encode_state(state)) == state
    True
    """
    return _VERSIONS.read(packed)


def older_timers(packed: bytes) -> Armed:
    """Return the timers of a state that is not of `STATE_VERSION`; raise as `decode_state` does."""
    if packed[0] == 1:
        found = _VERSION_1_HEAD.decode(memoryview(packed)[1:])
        return Armed(found.soon_ms, found.later_ms, found.partition)
    if packed[0] == 2:  # the first version with a head
        return armed_of(packed)
    state = decode_state(packed)
    return Armed(state.soon_ms, state.later_ms, state.partition)


def new_state(_user_id: str) -> UserState:
    """Return the state of a user never seen before."""
    return UserState()


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


def add_totals(state: UserState, event: Event) -> None:
    """Fold one event into the history, the cart and the totals."""
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
    bought, bought_s, time_s = state.bought, state.bought_s, time_ms // 1_000
    if item_id in bought:
        at = bought.index(item_id)
        time_s = max(time_s, bought_s[at])
        del bought[at], bought_s[at]
    bought.append(item_id)
    bought_s.append(time_s)
    if len(bought) > MAX_BOUGHT:
        del bought[0], bought_s[0]
