"""How simulated users take a push: opened, bought from, dismissed, or one push too many.

Reads   `Decision` messages, as a gateway would: `send` alone, and no dry runs.
Emits   `Feedback` at its event time, and the events that an opened push brings about.
Owns    the ground truth `probability`, which policies try to learn from outcomes.

    logit = base + match of the item to the taste now + quality + freshness + the category the
            user dwells on + cart + hour of the day - fatigue - repeats - owned already

Fatigue is the number of pushes of late, each halving daily. What happens to one decision is
drawn from a generator seeded with its id, so that it does not hang on the order of arrival.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Final

import numpy as np
import xxhash

from flows.people import People
from flows.shop import Shop
from operators.messages import Decision, Event, EventType, Feedback, FeedbackType

_DAY_MS: Final = 86_400_000
_HOUR_MS: Final = 3_600_000
_PUSHES_KEPT: Final = 30  # a user; more than any sane cap allows in the fortnight of a repeat
_REPEAT_MS: Final = 14 * _DAY_MS
_MAX_DELAY_MS: Final = 4 * _HOUR_MS  # nobody opens a push after that

# Weights of the logit. Set so that a random arm of a student's top 20 is opened 8 to 12 times in
# 100 and the best one 30 or more times, before fatigue.
BASE: Final = -5.9
MATCH: Final = 4.6
QUALITY: Final = 0.7
FRESH: Final = 0.7
FOCUS: Final = 1.4
CART: Final = 1.3
HOUR: Final = 0.5  # times log(activity), which is 0 on average hours
FATIGUE: Final = 0.35
REPEAT: Final = 1.5
OWNED: Final = 1.5


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class Response:
    """What all users do with the pushes they get.

    Parameters
    ----------
    people, shop
        The latent state; read at the moment of a push, and moved by an open.
    seed
        Makes the outcomes of a decision.
    emit
        Takes the events that an opened push brings about: (arrival ms, event).

    Notes
    -----
    Memory: 30 pushes a user, and the feedback that lies ahead, at most 4 h of it.
    """

    def __init__(
        self, people: People, shop: Shop, seed: int, emit: Callable[[int, Event], None]
    ) -> None:
        self._people, self._shop, self._seed, self._emit = people, shop, seed, emit
        self.user = {user_id: u for u, user_id in enumerate(people.ids)}
        self.item = {item_id: i for i, item_id in enumerate(shop.ids)}
        self._pushes: dict[int, deque[tuple[int, int]]] = {}  # user -> (ms, item), oldest first
        self._opted_out: set[int] = set()
        self._ahead: list[tuple[int, str, Feedback]] = []  # heap by time, then feedback_id

    def probability(self, user: int, item: int, now_ms: int) -> float:
        """Return the chance that a push of `item` to `user` now is opened."""
        if user in self._opted_out:
            return 0.0
        people, shop = self._people, self._shop
        match = float(people.taste[user] @ shop.vectors[item])
        age_days = max(0.0, (now_ms - int(shop.created_ms[item])) / _DAY_MS)
        logit = BASE + MATCH * match + QUALITY * float(shop.quality[item])
        logit += FRESH * math.exp(-age_days / 7)
        if people.focus[user] == shop.category[item]:
            since_ms = max(0, now_ms - int(people.focus_ms[user]))
            logit += FOCUS * math.exp2(-since_ms / (6 * _HOUR_MS))
        if people.cart[user] == item:
            logit += CART
        if people.bought[user, item]:
            logit -= OWNED
        hour = people.local_hour(int(people.place[user]), now_ms)
        logit += HOUR * math.log(float(people.activity[user, hour]))
        logit -= FATIGUE * self.fatigue(user, now_ms)
        pushes = self._pushes.get(user, ())
        if any(pushed == item and now_ms - at < _REPEAT_MS for at, pushed in pushes):
            logit -= REPEAT
        return _sigmoid(logit)

    def fatigue(self, user: int, now_ms: int) -> float:
        """Return the pushes a user got of late, each halving daily."""
        pushes = self._pushes.get(user, ())
        return math.fsum(math.exp2(-max(0, now_ms - at) / _DAY_MS) for at, _ in pushes)

    def take(self, decision: Decision, now_ms: int) -> list[Feedback]:
        """Act on one decision; return the feedback that this schedules, delivery first."""
        content = decision.content
        user = self.user.get(decision.user_id)
        if decision.outcome != "send" or decision.delivery.dry_run or content is None:
            return []
        item = self.item.get(content.item_id)
        if user is None or item is None:
            return []
        at_ms = max(now_ms, decision.decided_at, decision.delivery.send_after)
        if at_ms > decision.delivery.expires_at:
            feedback = [self._feedback(decision, "expired", at_ms)]
        else:
            feedback = [self._feedback(decision, "delivered", at_ms)]
            feedback += self._outcomes(decision, user, item, at_ms)
        for one in feedback:
            heapq.heappush(self._ahead, (one.time_ms, one.feedback_id, one))
        return feedback

    def _outcomes(self, decision: Decision, user: int, item: int, at_ms: int) -> list[Feedback]:
        """Draw what becomes of a delivered push."""
        key = xxhash.xxh3_64_intdigest(decision.decision_id.encode())
        rng = np.random.default_rng([self._seed, key])
        u_open, u_next, u_buy = rng.random(3).tolist()
        delay_ms, pause_ms = (
            int(min(_MAX_DELAY_MS - 1, middle_ms * math.exp(1.2 * z)))
            for middle_ms, z in zip((480_000, 240_000), rng.standard_normal(2), strict=True)
        )
        probability = self.probability(user, item, at_ms)
        was_out = user in self._opted_out
        fatigue = self.fatigue(user, at_ms)
        pushes = self._pushes.setdefault(user, deque(maxlen=_PUSHES_KEPT))
        pushes.append((at_ms, item))
        if u_open < probability:
            feedback = self._opened(decision, user, item, at_ms + delay_ms)
            bought_ms = at_ms + delay_ms + pause_ms
            return feedback + self._bought(decision, user, item, bought_ms, u_buy)
        if was_out:
            return []
        # An unloved push makes a few leave; so does one too many.
        if u_next < _sigmoid(-5.4 + 0.55 * fatigue - 12 * probability):
            self._opted_out.add(user)
            return [self._feedback(decision, "opted_out", at_ms + delay_ms)]
        if u_next < 0.25:
            return [self._feedback(decision, "dismissed", at_ms + delay_ms)]
        return []

    def _opened(self, decision: Decision, user: int, item: int, at_ms: int) -> list[Feedback]:
        """Let a user open a push and look at the item."""
        people = self._people
        people.focus[user] = self._shop.category[item]
        people.focus_ms[user] = at_ms
        self._event(decision, item, "app_open", at_ms + 1_000)
        self._event(decision, item, "view", at_ms + 3_000)
        return [self._feedback(decision, "opened", at_ms)]

    def _bought(
        self, decision: Decision, user: int, item: int, at_ms: int, u_buy: float
    ) -> list[Feedback]:
        """Let a user who opened a push buy the item, or not."""
        people = self._people
        match = float(people.taste[user] @ self._shop.vectors[item])
        if people.bought[user, item] or u_buy >= _sigmoid(-3.2 + 2.5 * match):
            return []
        people.bought[user, item] = True
        if people.cart[user] == item:
            people.cart[user] = -1
        self._event(decision, item, "purchase", at_ms + 4_000)
        price = float(self._shop.price[item])
        return [self._feedback(decision, "converted", at_ms + 5_000, price)]

    def _event(self, decision: Decision, item: int, kind: EventType, time_ms: int) -> None:
        value = {"view": 20.0, "purchase": float(self._shop.price[item])}.get(kind)
        event = Event(
            event_id=f"{decision.decision_id[:96]}-{kind}",
            user_id=decision.user_id,
            type=kind,
            time_ms=time_ms,
            item_id=None if kind == "app_open" else self._shop.ids[item],
            value=value,
            context=self._people.contexts[self.user[decision.user_id]],
        )
        self._emit(time_ms, event)

    @staticmethod
    def _feedback(
        decision: Decision, kind: FeedbackType, time_ms: int, value: float | None = None
    ) -> Feedback:
        return Feedback(
            feedback_id=f"{decision.decision_id[:96]}-{kind}",
            decision_id=decision.decision_id,
            user_id=decision.user_id,
            type=kind,
            time_ms=time_ms,
            value=value,
        )

    def until(self, to_ms: int) -> list[Feedback]:
        """Return the feedback that happens up to `to_ms`, in time order, once."""
        out = []
        while self._ahead and self._ahead[0][0] <= to_ms:
            out.append(heapq.heappop(self._ahead)[2])
        return out
