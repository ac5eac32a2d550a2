"""A user's context vector: every number that models, Redis and the policy read of a user.

Reads   the parts of a user's state.
Emits   raw values in the order of `models.features.CONTEXT`.

It is computed as of one event time, so that the same history gives the same bytes in serving, in
a replay and in training.
"""

from functools import lru_cache
from math import cos, exp, pi, sin
from typing import Final

import xxhash

from models.clock import local_hour_weekday
from operators.counters import decayed_at, sliding_at
from operators.messages import EventContext, UserProfile
from operators.user_state import ENGAGEMENT_MS, UserState

DAY_MS: Final = 86_400_000
_NEVER_HOURS: Final = 24.0 * 30  # "hours since open" of a user who never opened
_DEVICES: Final = ("mobile", "desktop", "tablet")
_PLATFORMS: Final = ("ios", "android", "web")


def time_context(time_ms: int, zone: str) -> tuple[float, ...]:
    """Return `models.features.TIME`: hour and weekday on circles, in the user's zone, to a minute.

    >>> [round(v, 6) for v in time_context(1_704_067_200_000 + 6 * 3_600_000, "UTC")]  # Monday, 6 h
    [1.0, 0.0, 0.0, 1.0]
    """
    return _of_minute(time_ms // 60_000, zone)


@lru_cache(maxsize=16_384)  # most events of a moment share their minute; about 4 MB
def _of_minute(minute: int, zone: str) -> tuple[float, ...]:
    hour, weekday = local_hour_weekday(minute * 60_000, zone)
    of_day, of_week = hour * (pi / 12), weekday * (2 * pi / 7)
    return sin(of_day), cos(of_day), sin(of_week), cos(of_week)


@lru_cache(maxsize=4_096)
def place_context(device: str, platform: str, locale: str, country: str) -> tuple[float, ...]:
    """Return `models.features.PLACE`; the country is hashed into one of four buckets.

    >>> place_context("mobile", "ios", "zh-CN", "")[:9]
    (1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    """
    language = locale[:2].lower()
    bucket = xxhash.xxh3_64_intdigest(country.encode()) % 4 if country else -1
    return (
        *(float(device == name) for name in _DEVICES),
        *(float(platform == name) for name in _PLATFORMS),
        float(language == "en"),
        float(language == "zh"),
        float(language not in ("en", "zh", "")),
        *(float(bucket == i) for i in range(4)),
    )


def where(profile: UserProfile | None, place: EventContext | None) -> tuple[str, tuple[float, ...]]:
    """Return the user's zone and place columns; the profile wins over the last event's context."""
    device = platform = locale = country = zone = ""
    if place is not None:
        device, platform = place.device, place.platform
        locale, country, zone = place.locale, place.country, place.timezone
    if profile is not None:
        locale, country = profile.locale or locale, profile.country or country
        zone = profile.timezone or zone
    return zone or "UTC", place_context(device, platform, locale, country)


def hours_since(then_ms: int, time_ms: int) -> float:
    """Return hours from `then_ms` (0: never) to `time_ms`, at most 30 days."""
    if not then_ms:
        return _NEVER_HOURS
    return min(max(time_ms - then_ms, 0) / 3_600_000, _NEVER_HOURS)


def context_of(state: UserState, time_ms: int) -> list[float]:
    """Return the raw context of a user as of `time_ms`, in the order of `models.features.CONTEXT`.

    >>> from models.features import N_CONTEXT
    >>> len(context_of(UserState(), 1_700_000_000_000)) == N_CONTEXT
    True
    """
    session = state.session
    zone, place = where(state.profile, state.place)
    decay = exp(min(state.engaged_ms - time_ms, 0) / ENGAGEMENT_MS)
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
