"""Cases to judge candidates by: a user's moment as `decide` would have seen it, and what followed.

Reads   events in time order, and items.
Emits   `Case`s, and the catalogue as it stood at a date.
Owns    what a case is, and that nothing after it is known in it.

The product's own code does the work: `operators.users` keeps the users' state,
`operators.item_stats` learns what goes with what, `operators.catalogue` holds it.

A case is a **basket** of a user who has a past: events that name one basket (`props.basket`),
else a stretch without a pause of half an hour, cut after 20 events, so that a long evening of
rating films is several. It is asked a millisecond before its first event. Statistics stand still
from the split on, as a fitted baseline does; users' states go on, for a past is no secret.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

from flows.learn import KEEP_ITEMS_MS
from models.item_counts import INTEREST
from operators import item_stats, user_state
from operators.catalogue import Catalogue
from operators.hops import Entry, ShardBatch, Trigger
from operators.item_stats import InteractionTracker, ItemStatsShard, fan_out, since_bought
from operators.messages import Event, Item, UserProfile
from operators.shards import DictShard
from operators.triggers import TriggerRules
from operators.users import UserShard

GAP_MS: Final = 1_800_000
BASKET_EVENTS: Final = 20  # where no basket is named
_DAY_MS: Final = 86_400_000
_EVER_MS: Final = 200 * 365 * _DAY_MS
# Nothing fires: the moments are ours. And nobody is forgotten, for the baselines forget nobody.
QUIET: Final = TriggerRules(GAP_MS, 0, 0, 0, 0, _EVER_MS)


class Case(NamedTuple):
    """A moment of a known user, and the items of what followed at once."""

    trigger: Trigger
    wanted: list[str]  # distinct, in the order they came
    n_before: int  # the user's interactions before


def is_interest(event: Event) -> bool:
    """Return whether an event says that the user wanted its item."""
    return event.item_id is not None and event.type in INTEREST


def cases_of(
    events: Iterable[Event], items: Sequence[Item], users: Sequence[UserProfile], from_ms: int
) -> list[Case]:
    """Return the cases that begin at a date or later, in time order."""
    reader = _CaseReader(items, users, from_ms)
    for event in events:
        reader.read(event)
    return reader.cases


class _CaseReader:
    """Follows users by the product's state, and takes down a case where a basket begins."""

    def __init__(self, items: Sequence[Item], users: Sequence[UserProfile], from_ms: int) -> None:
        categories = {item.item_id: (item.categories or [""])[0] for item in items}
        states = DictShard(
            "00",
            encode=user_state.encode_state,
            decode=user_state.decode_state,
            new=user_state.new_state,
        )
        self._shard = UserShard("00", states, QUIET, lambda id_: categories.get(id_, ""))
        self._from_ms = from_ms
        # Not in the states yet, with the watermark at each.
        self._waiting: list[tuple[int, Entry]] = [(0, user) for user in users]
        self._n_before: dict[str, int] = {}
        # User and basket -> what is being read; None where it is no case, for it stays none.
        self._open: dict[tuple[str, str], Case | None] = {}
        self._stretch: dict[str, tuple[int, int, int]] = {}  # user -> number, events, last time
        self.cases: list[Case] = []

    def read(self, event: Event) -> None:
        if event.item_id is not None and is_interest(event):
            key = event.user_id, self._basket_of(event)
            if key not in self._open:
                is_in_time = event.time_ms >= self._from_ms
                self._open[key] = self._begin(event) if is_in_time else None
            case = self._open[key]
            if case is not None and event.item_id not in case.wanted:
                case.wanted.append(event.item_id)
            self._n_before[event.user_id] = self._n_before.get(event.user_id, 0) + 1
        self._waiting.append((event.time_ms, event))

    def _basket_of(self, event: Event) -> str:
        named = (event.props or {}).get("basket")
        if named is not None:
            return f"basket {named}"
        number, n, last_ms = self._stretch.get(event.user_id, (0, 0, 0))
        if n >= BASKET_EVENTS or event.time_ms - last_ms > GAP_MS:
            number, n = number + 1, 0
        self._stretch[event.user_id] = number, n + 1, event.time_ms
        return f"stretch {number}"

    def _begin(self, event: Event) -> Case | None:
        self._settle()
        trigger = self._shard.moment(event.user_id, event.time_ms - 1)
        if trigger is None:
            return None
        case = Case(trigger, [], self._n_before.get(event.user_id, 0))
        self.cases.append(case)
        return case

    def _settle(self) -> None:
        if self._waiting:
            self._shard.on_batch([ShardBatch("00", 0, self._waiting[-1][0], self._waiting)])
            self._waiting = []


class Learner:
    """What the stream teaches, event by event, as `learn` does it.

    Parameters
    ----------
    items
        All that were ever sold: each is available within its own window.
    hidden
        Ids whose interactions are not shown.
    """

    def __init__(self, items: Sequence[Item], hidden: Collection[str] = ()) -> None:
        self._items, self._hidden = items, hidden
        self._tracker = InteractionTracker(GAP_MS)
        self._recent: dict[str, list[tuple[str, int]]] = {}
        self._bought: dict[str, dict[str, int]] = {}
        self._stats = ItemStatsShard(
            DictShard(
                "00",
                encode=item_stats.encode_state,
                decode=item_stats.decode_state,
                new=item_stats.new_state,
            )
        )

    def learn(self, events: Iterable[Event]) -> None:
        """Take in events, in time order."""
        for event in events:
            if event.item_id in self._hidden:
                continue
            recent = self._recent.setdefault(event.user_id, [])
            signal = self._tracker.observe(recent, event)
            if signal is None:
                continue
            since_ms = since_bought(self._bought.setdefault(event.user_id, {}), event)
            for each in fan_out(signal._replace(since_ms=since_ms)):
                self._stats.on_signal(each)

    def catalogue(self, time_ms: int) -> Catalogue:
        """Return all items with what was learned so far, as of a time."""
        self._stats.sweep(time_ms - KEEP_ITEMS_MS)
        catalogue = Catalogue()
        for item in self._items:
            catalogue.apply(item.item_id, item)
        self._stats.mark_all()
        for row in self._stats.dirty():
            catalogue.apply_stats(row)
        catalogue.refresh()
        return catalogue
