"""Made-up people: tastes that drift, daily rhythms, places and devices.

Emits   `UserProfile` messages, and for the simulation alone the latent state behind them.
Owns    how tastes are made and how they change.

A taste is a direction in the shop's taste space: a mixture over few categories (which ones
leans on the country), a liking for some styles, and noise of one's own. It drifts as a slow
random walk, and now and then jumps to a new category.
"""

from datetime import datetime
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from flows.shop import DIM, Shop, unit
from operators.messages import Consent, EventContext, UserProfile


class Place(NamedTuple):
    """Where users live and how many of them."""

    zone: str
    country: str
    city: str
    locale: str
    share: float


PLACES: Final = (
    Place("Europe/London", "GB", "London", "en-GB", 0.28),
    Place("Asia/Shanghai", "CN", "Shanghai", "zh-CN", 0.34),
    Place("America/New_York", "US", "New York", "en-US", 0.22),
    Place("Asia/Tokyo", "JP", "Tokyo", "en", 0.10),
    Place("Europe/Berlin", "DE", "Berlin", "en", 0.06),
)
_ZONES: Final = tuple(ZoneInfo(place.zone) for place in PLACES)
_DEVICES: Final = (("mobile", "ios"), ("mobile", "android"), ("desktop", "web"), ("tablet", "ios"))
_DAY_MS: Final = 86_400_000
_CONSENT: Final = 0.92  # share of users who agreed to pushes
_JUMP_DAYS: Final = 20.0  # mean days between jumps of a taste
_DRIFT: Final = 0.10  # length of a day's step of the random walk, taste space


class People:
    """The users' latent state; U users.

    Parameters
    ----------
    n_users
        U, at least 1.
    shop
        Whose taste space they live in.
    rng
        Decides everything drawn here; later changes take the generator they are given.
    start_ms
        When the state is of, ms.

    Attributes
    ----------
    taste
        Shape (U, DIM), of length 1.
    sessions_per_day
        Mean of a user's sessions, shape (U,), about 1.6 on average and very uneven.
    activity
        A user's activity by local hour, shape (U, 24), mean 1.
    place
        Index into `PLACES`, shape (U,).
    focus, focus_ms
        The category a user last dwelt on (-1: none) and until when, shape (U,).
    cart
        The item left in the cart, -1 for none, shape (U,).
    bought
        What a user owns, bool, shape (U, N): one byte a pair, 25 MB for 50,000 users of 500.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> people = People(3, Shop(24, rng, 0), rng, start_ms=0)
    >>> people.taste.shape, bool(np.allclose(people.activity.mean(axis=1), 1))
    ((3, 16), True)
    >>> people.profile(0).user_id
    'user-000000'
    """

    def __init__(self, n_users: int, shop: Shop, rng: np.random.Generator, start_ms: int) -> None:
        if n_users < 1:
            raise ValueError(f"n_users must be at least 1, got {n_users}")
        self._shop = shop
        self.ids = [f"user-{u:06d}" for u in range(n_users)]
        self.place = rng.choice(len(PLACES), n_users, p=[place.share for place in PLACES])
        self.locale = [PLACES[p].locale for p in self.place.tolist()]
        device = rng.choice(len(_DEVICES), n_users, p=[0.38, 0.34, 0.20, 0.08])
        self.contexts = [
            self._context(p, d) for p, d in zip(self.place.tolist(), device.tolist(), strict=True)
        ]
        self._age = rng.choice(["18-24", "25-34", "35-49", "50+"], n_users)
        self.consents = rng.random(n_users) < _CONSENT
        self.taste = self._tastes(n_users, rng)
        self._taste_ms = np.full(n_users, start_ms, np.int64)
        self.sessions_per_day = np.clip(1.1 * np.exp(0.9 * rng.standard_normal(n_users)), 0.1, 6)
        self.activity = self._rhythms(n_users, rng)
        self.focus = np.full(n_users, -1, np.int64)
        self.focus_ms = np.zeros(n_users, np.int64)
        self.cart = np.full(n_users, -1, np.int64)
        self.bought = np.zeros((n_users, len(shop.ids)), np.bool_)

    @staticmethod
    def _context(place: int, device: int) -> EventContext:
        where, (kind, platform) = PLACES[place], _DEVICES[device]
        return EventContext(
            device=kind,
            platform=platform,
            app_version="7.3.1",
            locale=where.locale,
            timezone=where.zone,
            country=where.country,
            city=where.city,
        )

    def _tastes(self, n_users: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return shape (U, DIM): few categories, some styles, noise."""
        n_categories, n_styles = len(self._shop.centers), len(self._shop.styles)
        lean = rng.dirichlet(np.full(n_categories, 2.0), len(PLACES))  # (P, 12)
        # A Dirichlet by hand: gamma draws of a small shape leave each user few categories.
        mix = rng.standard_gamma(0.25 * n_categories * lean[self.place])  # (U, 12)
        mix /= np.maximum(mix.sum(axis=1, keepdims=True), 1e-12)
        likes = rng.standard_normal((n_users, n_styles)) / np.sqrt(n_styles)  # (U, 8)
        own = unit(rng.standard_normal((n_users, DIM)))  # (U, DIM)
        return unit(mix @ self._shop.centers + 0.5 * likes @ self._shop.styles + 0.25 * own)

    @staticmethod
    def _rhythms(n_users: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return shape (U, 24): one or two peaks a day, near breakfast and in the evening."""
        hour = np.arange(24)[None, :]  # (1, 24)
        early = rng.normal(9.5, 2.0, (n_users, 1))  # (U, 1)
        late = rng.normal(19.5, 2.0, (n_users, 1))  # (U, 1)
        is_early_bird = rng.random((n_users, 1))
        bump = [np.exp(5 * (np.cos(2 * np.pi * (hour - peak) / 24) - 1)) for peak in (early, late)]
        rhythm = 0.03 + is_early_bird * bump[0] + (1.1 - is_early_bird) * bump[1]  # (U, 24)
        return np.asarray(rhythm / rhythm.mean(axis=1, keepdims=True))

    def drift(self, users: NDArray[np.int64], now_ms: int, rng: np.random.Generator) -> None:
        """Move the tastes of distinct `users` on from when they were last looked at."""
        days = np.maximum(now_ms - self._taste_ms[users], 0) / _DAY_MS  # (S,)
        step = unit(rng.standard_normal((len(users), DIM)))
        taste = self.taste[users] + _DRIFT * np.sqrt(days)[:, None] * step
        is_jump = rng.random(len(users)) < 1 - np.exp(-days / _JUMP_DAYS)
        goal = self._shop.centers[rng.integers(0, len(self._shop.centers), len(users))]
        taste = np.where(is_jump[:, None], 0.5 * taste + 0.7 * goal, taste)
        self.taste[users] = unit(taste)
        self._taste_ms[users] = now_ms

    def local_hour(self, place: int, now_ms: int) -> int:
        """Return the hour of the day at a place, 0 to 23."""
        return (now_ms + self.offset_ms(place, now_ms)) // 3_600_000 % 24

    @staticmethod
    def offset_ms(place: int, now_ms: int) -> int:
        """Return how far local time at a place is ahead of UTC, ms."""
        at = datetime.fromtimestamp(now_ms / 1_000, _ZONES[place])
        offset = at.utcoffset()
        return 0 if offset is None else int(offset.total_seconds() * 1_000)

    def profile(self, user: int) -> UserProfile:
        """Return one user as they stand on `push.users.v1`."""
        where = PLACES[int(self.place[user])]
        return UserProfile(
            user_id=self.ids[user],
            timezone=where.zone,
            locale=where.locale,
            country=where.country,
            city=where.city,
            age_band=str(self._age[user]),
            consent=Consent(push=bool(self.consents[user]), version="2026-01"),
        )
