"""A load for whole-path benchmarks: made-up users and items with a known share of triggers.

Each user who may fire views two items of category 0 first; all others click once. Then every event
is either (with the share of triggers) a third such view by a user who has not fired yet, which
shows intent, or a click of any user that fires nothing. All campaigns' caps are open, so that every
trigger takes the whole path: 100 candidates, the student, 20 arms, the policy, content.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.dataset import build_histories
from models.text import item_text
from models.train import TrainConfig, train_student
from operators.messages import Campaign, Caps, Consent, Experiment, Item, ItemStats, Template
from operators.messages import UserProfile as Profile

N_ITEMS = 4_000
N_CATEGORIES = 16
_WORDS = ("red", "blue", "small", "large", "warm", "light", "old", "new")
START_MS = 1_767_571_200_000
_EXTRA = '"context":{"device":"mobile","platform":"ios","locale":"en-GB","country":"GB"}'


class Message(NamedTuple):
    """One event to send."""

    event_id: str
    user_id: str
    value: bytes
    is_trigger: bool


def item_id(number: int) -> str:
    """Return an item's id; its category is the number modulo the categories."""
    return f"item-{number:05d}"


def items() -> list[Item]:
    """Return the catalogue."""
    return [
        Item(
            item_id=item_id(n),
            title=f"{_WORDS[n % 8]} {_WORDS[n // 8 % 8]} thing {n}",
            categories=[f"category {n % N_CATEGORIES}"],
            price=float(n % 97 + 1),
            created_ms=START_MS - n * 1_000_000,
        )
        for n in range(N_ITEMS)
    ]


def item_stats(rng: np.random.Generator) -> list[ItemStats]:
    """Return statistics with 50 neighbours each."""
    rows = []
    for n in range(N_ITEMS):
        views, others = float(rng.integers(1, 500)), rng.choice(N_ITEMS, 50, replace=False)
        rows.append(
            ItemStats(
                item_id=item_id(n),
                as_of_ms=START_MS,
                views=views,
                clicks=views / 4,
                carts=views / 10,
                purchases=views / 30,
                favorites=views / 50,
                pushes=views / 5,
                opens=views / 40,
                rating_sum=0.0,
                rating_count=0.0,
                popularity_1d=views,
                first_seen_ms=START_MS - n * 1_000_000,
                by_country={"GB": views, "DE": views / 3},
                neighbours=[(item_id(int(m)), 1 / (k + 1)) for k, m in enumerate(others)],
            )
        )
    return rows


def campaign() -> Campaign:
    """Return a campaign that sends always."""
    return Campaign(
        campaign_id="bench",
        trigger="intent",
        templates={"en": Template(title="For you", body="{item_title} at {price}")},
        quiet_hours=None,
        caps=Caps(per_day=10_000, per_week=10_000, min_gap_seconds=0, same_item_days=0),
        experiment=Experiment(holdout=0.0, arms={}),
    )


def profile(user_id: str) -> Profile:
    """Return a user who may be sent to."""
    return Profile(user_id=user_id, timezone="Europe/London", consent=Consent(push=True))


def student(path: Path) -> None:
    """Train a student of the served size for a moment: its speed is what counts here."""
    rng = np.random.default_rng(0)
    n = 5_000
    histories = build_histories(
        [f"u{u}" for u in rng.integers(0, 200, n)],
        [item_id(int(i)) for i in rng.integers(0, N_ITEMS, n)],
        [1] * n,
        list(range(1_700_000_000, 1_700_000_000 + n)),
        item_ids=[item.item_id for item in items()],
    )
    texts = [item_text(i.title, i.description, i.categories, i.tags) for i in items()]
    ids = [item.item_id for item in items()]
    train_student(histories, ids, texts, path=path, config=TrainConfig(epochs=1), seed=0)


class Load:
    """Events for `n_users` active users, of which a share are triggers.

    Parameters
    ----------
    speed
        Milliseconds of event time between two events.
    n_firing
        Users who may fire, once each; None: all.
    """

    def __init__(
        self,
        n_users: int,
        share: float,
        *,
        speed: float,
        n_firing: int | None = None,
        seed: int = 1,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._n_users, self._share, self._speed = n_users, share, speed
        self._ready = self._rng.permutation(n_users)[:n_firing].tolist()
        self._clicks = np.zeros(n_users, np.int64)
        self._n = 0

    def _event(self, user: int, kind: str, item: int, *, is_trigger: bool = False) -> Message:
        self._n += 1
        event_id, user_id = f"e{self._n:08d}", _user_id(user)
        time_ms = START_MS + int(self._n * self._speed)
        value = (
            f'{{"event_id":"{event_id}","user_id":"{user_id}","type":"{kind}",'
            f'"time_ms":{time_ms},"item_id":"{item_id(item)}","value":{item % 97}.5,{_EXTRA}}}'
        ).encode()
        return Message(event_id, user_id, value, is_trigger)

    def who_may_fire(self) -> list[str]:
        """Return the users who have not fired yet: those who need a profile."""
        return [_user_id(user) for user in self._ready]

    def warm(self) -> Iterator[Message]:
        """Yield two views of category 0 for each user who may fire, then a click of the others.

        Nobody fires yet.
        """
        for _ in range(2):
            rounds = self._rng.integers(0, N_ITEMS // N_CATEGORIES, len(self._ready)).tolist()
            for user, number in zip(self._ready, rounds, strict=True):
                yield self._event(user, "view", number * N_CATEGORIES)
        firing = set(self._ready)
        for user in range(self._n_users):
            if user not in firing:
                yield self._event(user, "click", user % N_ITEMS // N_CATEGORIES * N_CATEGORIES + 1)

    def once_around(self, most: int) -> Iterator[Message]:
        """Yield a click, which fires nothing, of each user, and of `most` of them at most."""
        for user in range(min(self._n_users, most)):
            yield self._click(user, user % (N_ITEMS // N_CATEGORIES))

    def events(self, n: int) -> list[Message]:
        """Return the next n events."""
        is_trigger = (self._rng.random(n) < self._share).tolist()
        users = self._rng.integers(0, self._n_users, n).tolist()
        numbers = self._rng.integers(0, N_ITEMS // N_CATEGORIES, n).tolist()
        out = []
        for fires, user, number in zip(is_trigger, users, numbers, strict=True):
            if fires and self._ready:
                of = self._ready.pop()
                out.append(self._event(of, "view", number * N_CATEGORIES, is_trigger=True))
            else:
                out.append(self._click(user, number))
        return out

    def _click(self, user: int, number: int) -> Message:
        # Two clicks a category at most within 30 events, so that clicks show no intent.
        self._clicks[user] += 1
        category = int(self._clicks[user]) % (N_CATEGORIES - 1) + 1
        return self._event(user, "click", number * N_CATEGORIES + category)


def _user_id(number: int) -> str:
    return f"user-{number:06d}"
