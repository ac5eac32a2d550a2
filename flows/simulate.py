"""A simulated population in closed loop: events out, decisions in, feedback out.

Reads   `Decision` messages through `respond`.
Emits   `Item`, `UserProfile`, `Event` and `Feedback` messages in event time.
Owns    when sessions start and what happens in one. Tastes are in `flows.people`, the shop in
        `flows.shop`, what a push does in `flows.respond`.

Time goes in slots of ten minutes. A slot draws who starts a session in it, walks all of these
sessions at once, and lays their events ahead; `advance` hands out what has arrived. Each slot has
a generator of its own, so events follow from the seed and the decisions alone, however often
`advance` is called. Nothing here reads a clock.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.people import PLACES, People
from flows.respond import Response
from flows.shop import Shop
from operators.messages import Decision, Event, EventType, Feedback, Item, UserProfile

START_MS: Final = 1_772_409_600_000  # Monday, 2 March 2026, 00:00 UTC
SLOT_MS: Final = 600_000
_DAY_MS: Final = 86_400_000
_STEPS: Final = 20  # of a session at most, without a purchase at its end
_LATE_SHARE: Final = 0.02
_LATE_MS: Final = 8_000  # at most: below the 10 s by which decide's watermark trails
_TWICE_SHARE: Final = 0.01

_KINDS: Final[tuple[EventType, ...]] = (
    "app_open", "view", "click", "search", "cart", "favorite", "rate", "share", "comment",
    "cart_remove", "purchase",
)  # fmt: skip
_APP_OPEN, _VIEW, _CLICK, _SEARCH, _CART, _FAVORITE, _RATE, _, _COMMENT, _REMOVE, _BUY = range(11)
# What a user means to do at a step; acts on an item only happen where the item is liked.
_MEANT: Final = np.cumsum([0.0, 0.50, 0.20, 0.06, 0.10, 0.06, 0.04, 0.02, 0.02])
_HOP: Final = 0.35  # share of views that go on from the item before to a neighbour of it


class Walk(NamedTuple):
    """S sessions, step by step; arrays of shape (S, L), -1 in `kinds` where a session is over."""

    users: NDArray[np.int64]  # (S,)
    kinds: NDArray[np.int64]
    items: NDArray[np.int64]
    times_ms: NDArray[np.int64]


class Population:
    """Users who look, buy, and answer pushes.

    Parameters
    ----------
    n_users, n_items
        How many, each at least 1.
    seed
        Same seed, same decisions: same events and feedback.
    start_ms
        Event time at which `advance` begins, ms.

    Notes
    -----
    About 12 events a user and day. Memory: one byte for each pair of user and item, 0.5 kB a
    user, and the events that lie ahead, those of one slot and of the sessions under way.

    Examples
    --------
    >>> world = Population(n_users=50, n_items=60, seed=1)
    >>> events = world.advance(START_MS + 86_400_000)
    >>> 200 < len(events) < 2_000, events[0].time_ms >= START_MS
    (True, True)
    >>> world.advance(START_MS + 86_400_000)  # nothing comes twice
    []
    """

    def __init__(
        self, n_users: int = 2_000, n_items: int = 500, seed: int = 1, start_ms: int = START_MS
    ) -> None:
        rng = np.random.default_rng(seed)
        self.start_ms = start_ms
        self.shop = Shop(n_items, rng, start_ms)
        self.people = People(n_users, self.shop, rng, start_ms)
        self._seed = seed
        self._response = Response(self.people, self.shop, seed, self._put)
        self._slot = start_ms // SLOT_MS  # the next to be walked
        self._busy_ms = np.zeros(n_users, np.int64)  # nobody has two sessions at once
        self._ahead: list[tuple[int, int, Event]] = []  # (arrival ms, running number, event)
        self._number = 0
        self._shown_ms = start_ms  # items that appeared until then were handed out

    def items(self) -> list[Item]:
        """Return the items there are at the start; `new_items` brings the others."""
        here = np.flatnonzero(self.shop.created_ms <= self.start_ms)
        return [self.shop.message(i) for i in here.tolist()]

    def new_items(self, to_ms: int) -> list[Item]:
        """Return the items that appeared since the last call, up to `to_ms`."""
        born = self.shop.created_ms
        new = np.flatnonzero((born > self._shown_ms) & (born <= to_ms))
        self._shown_ms = max(self._shown_ms, to_ms)
        return [self.shop.message(i) for i in new[np.argsort(born[new], kind="stable")].tolist()]

    def profiles(self) -> list[UserProfile]:
        """Return what is known of every user."""
        return [self.people.profile(u) for u in range(len(self.people.ids))]

    def history(self, days: int) -> list[Event]:
        """Return the `days` before the start, in time order, each event once, to train on.

        Call it first: it moves the users' state on to the start.
        """
        if self._ahead or self._slot != self.start_ms // SLOT_MS:
            raise RuntimeError("history comes before the first advance")
        end, self._slot = self._slot, self._slot - days * _DAY_MS // SLOT_MS
        while self._slot < end:
            self._walk_slot()
        past = {e.event_id: e for _, _, e in self._ahead if e.time_ms < self.start_ms}
        self._ahead = [row for row in self._ahead if row[2].time_ms >= self.start_ms]
        return sorted(past.values(), key=lambda event: (event.time_ms, event.event_id))

    def advance(self, to_ms: int) -> list[Event]:
        """Return the events that arrive up to `to_ms`, in the order of arrival.

        2% arrive some seconds after later ones, 1% arrive a second time within a minute.
        """
        while self._slot * SLOT_MS <= to_ms:
            self._walk_slot()
        self._ahead.sort()
        n_here = 0
        for arrival_ms, _, _ in self._ahead:
            if arrival_ms > to_ms:
                break
            n_here += 1
        here, self._ahead = self._ahead[:n_here], self._ahead[n_here:]
        return [event for _, _, event in here]

    def respond(self, decision: Decision, now_ms: int) -> list[Feedback]:
        """Let a user take one decision; return the feedback that lies ahead of it."""
        return self._response.take(decision, now_ms)

    def advance_feedback(self, to_ms: int) -> list[Feedback]:
        """Return the feedback that happens up to `to_ms`, in time order."""
        return self._response.until(to_ms)

    def open_probability(self, user_id: str, item_id: str, now_ms: int) -> float:
        """Return the ground truth: the chance that this push would be opened now."""
        response = self._response
        return response.probability(response.user[user_id], response.item[item_id], now_ms)

    def _put(self, arrival_ms: int, event: Event) -> None:
        self._ahead.append((arrival_ms, self._number, event))
        self._number += 1

    def _walk_slot(self) -> None:
        """Draw the sessions that start in one slot, and lay their events ahead."""
        slot = self._slot
        self._slot += 1
        rng = np.random.default_rng([self._seed, slot])
        users = self._starters(slot * SLOT_MS, rng)
        if not len(users):
            return
        self.people.drift(users, slot * SLOT_MS, rng)
        begin_ms = slot * SLOT_MS + rng.integers(0, SLOT_MS, len(users))
        self._lay_ahead(slot, self._walk(users, begin_ms, rng), rng)

    def _starters(self, now_ms: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the users whose session starts in this slot: Poisson by their local hour."""
        people = self.people
        hours = np.array([people.local_hour(p, now_ms) for p in range(len(PLACES))])
        active = people.activity[np.arange(len(people.ids)), hours[people.place]]
        rate = people.sessions_per_day * active * (SLOT_MS / _DAY_MS)
        starts = (rng.random(len(rate)) < 1 - np.exp(-rate)) & (self._busy_ms <= now_ms)
        return np.flatnonzero(starts)

    def _pull(
        self, users: NDArray[np.int64], focus: NDArray[np.int64], now_ms: int
    ) -> NDArray[np.float64]:
        """Return each session's chance of turning to each item, cumulated; shape (S, N)."""
        shop = self.shop
        want = 5 * self.people.taste[users] + 3 * shop.centers[focus]  # (S, DIM)
        fresh = shop.freshness(now_ms)  # (N,)
        utility = want @ shop.vectors.T + 0.5 * shop.quality + 0.8 * fresh  # (S, N)
        utility[:, shop.created_ms > now_ms] = -np.inf
        utility -= utility.max(axis=1, keepdims=True)
        chance: NDArray[np.float64] = np.exp(utility).cumsum(axis=1)
        return chance / chance[:, -1:]

    def _walk(
        self, users: NDArray[np.int64], begin_ms: NDArray[np.int64], rng: np.random.Generator
    ) -> Walk:
        """Walk S sessions, each dwelling on one category; a last column is kept for its end."""
        n, centers = len(users), self.shop.centers
        liking = 6 * self.people.taste[users] @ centers.T + rng.gumbel(size=(n, len(centers)))
        focus = liking.argmax(axis=1)  # (S,): softmax by Gumbel's trick
        meant = np.searchsorted(_MEANT, rng.random((n, _STEPS)), side="right")  # (S, L)
        meant[:, 0] = np.where(rng.random(n) < 0.5, _APP_OPEN, _VIEW)
        meant[:, 1] = _VIEW
        kinds, items = self._steps(users, focus, meant, int(begin_ms.max()), rng)
        length = np.minimum(2 + rng.negative_binomial(2, 0.25, n), _STEPS)  # mean about 8
        kinds[np.arange(_STEPS) >= length[:, None]] = -1
        pause = np.minimum(25_000 * np.exp(0.9 * rng.standard_normal((n, _STEPS + 1))), 600_000)
        times = begin_ms[:, None] + pause.astype(np.int64).cumsum(axis=1)  # (S, L + 1)
        times[:, -1] = times[np.arange(n), length]  # right after the session's own last step
        return self._close(Walk(users, kinds, items, times), focus, rng)

    def _steps(
        self,
        users: NDArray[np.int64],
        focus: NDArray[np.int64],
        meant: NDArray[np.int64],
        now_ms: int,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return what is done at each step and to which item (-1: none yet), both (S, L)."""
        shop, n = self.shop, len(users)
        pull = self._pull(users, focus, now_ms)
        match = self.people.taste[users] @ shop.vectors.T  # (S, N)
        u_item, u_hop, u_do = rng.random((3, n, _STEPS))
        hop = rng.integers(0, shop.neighbours.shape[1], (n, _STEPS))
        kinds, items = np.empty_like(meant), np.empty_like(meant)
        last, rows = np.full(n, -1), np.arange(n)
        for step in range(_STEPS):
            kind = meant[:, step]
            # An act stays on the last item if it is liked enough, else the user looks on.
            does = u_do[:, step] < 1 / (1 + np.exp(-6 * (match[rows, last] - 0.45)))
            is_act = (kind > _VIEW) & (kind != _SEARCH)
            kind = np.where(is_act & ~(does & (last >= 0)), _VIEW, kind)
            free = (pull < u_item[:, step, None]).sum(axis=1)  # (S,)
            near = shop.neighbours[last, hop[:, step]]
            hops = (u_hop[:, step] < _HOP) & (last >= 0) & (shop.created_ms[near] <= now_ms)
            last = np.where(kind == _VIEW, np.where(hops, near, free), last)
            kinds[:, step], items[:, step] = kind, last
        return kinds, items

    def _close(self, walk: Walk, focus: NDArray[np.int64], rng: np.random.Generator) -> Walk:
        """End sessions: buy what is in the cart, take it out, or leave it; move the state."""
        people, users = self.people, walk.users
        is_cart = walk.kinds == _CART
        newest = _STEPS - 1 - is_cart[:, ::-1].argmax(axis=1)
        fresh = np.where(is_cart.any(axis=1), walk.items[np.arange(len(users)), newest], -1)
        cart = np.where(fresh >= 0, fresh, people.cart[users])
        u = rng.random(len(users))
        buys = (cart >= 0) & (u < np.where(fresh >= 0, 0.45, 0.25))
        removes = (fresh >= 0) & (u > 0.93)
        people.bought[users[buys], cart[buys]] = True
        people.cart[users] = np.where(buys | removes, -1, cart)
        people.focus[users] = focus
        end_ms = walk.times_ms[:, -1]
        people.focus_ms[users] = self._busy_ms[users] = end_ms
        kind = np.where(buys, _BUY, np.where(removes, _REMOVE, -1))
        return walk._replace(
            kinds=np.column_stack([walk.kinds, kind]), items=np.column_stack([walk.items, cart])
        )

    def _lay_ahead(self, slot: int, walk: Walk, rng: np.random.Generator) -> None:
        """Turn walks into events with the time at which each arrives."""
        row, step = np.nonzero(walk.kinds >= 0)
        kinds, items = walk.kinds[row, step], walk.items[row, step]
        when = walk.times_ms[row, step]
        n = len(row)
        late = np.where(rng.random(n) < _LATE_SHARE, rng.integers(1_000, _LATE_MS, n), 0)
        again = np.where(rng.random(n) < _TWICE_SHARE, rng.integers(0, 60_000, n), -1)
        u = rng.random(n).tolist()
        columns = (walk.users[row], kinds, items, when, late, again)
        lists = (column.tolist() for column in columns)
        for i, (user, kind, item, time_ms, late_ms, twice_ms) in enumerate(
            zip(*lists, strict=True)
        ):
            event_id = f"{self._seed}-{slot}-{i}"
            event = self._event(event_id, user, (kind, item, time_ms), u[i])
            self._put(time_ms + late_ms, event)
            if twice_ms >= 0:
                self._put(time_ms + late_ms + twice_ms, event)

    def _event(self, event_id: str, user: int, act: tuple[int, int, int], u: float) -> Event:
        """Return one event of (kind, item, time in ms); `u` in [0, 1) decides its details."""
        kind, item, time_ms = act
        value: float | None = None
        text: str | None = None
        if kind == _VIEW:
            value = round(3 + 60 * u * u, 1)  # seconds
        elif kind in (_CART, _BUY):
            value = float(self.shop.price[item])
        elif kind == _RATE:
            value = float(min(5, 3 + int(3 * u)))
        elif kind in (_SEARCH, _COMMENT) and item >= 0:
            noun, category = self.shop.words(item, self.people.locale[user])
            text = noun if kind == _SEARCH else f"{category}: {noun} +1"
        return Event(
            event_id=event_id,
            user_id=self.people.ids[user],
            type=_KINDS[kind],
            time_ms=time_ms,
            item_id=None if kind in (_APP_OPEN, _SEARCH) else self.shop.ids[item],
            value=value,
            text=text,
            context=self.people.contexts[user],
        )
