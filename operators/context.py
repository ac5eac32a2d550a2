"""A user's context vector: every number that models, Redis and the policy read of a user.

Reads   the parts of a user's state.
Emits   raw values in the order of `models.features.CONTEXT`.

It is computed as of one event time, so that the same history gives the same bytes in serving, in
a replay and in training.
"""

from functools import lru_cache
from math import cos, pi, sin
from typing import Final

import xxhash

from models.clock import local_hour_weekday
from operators.messages import EventContext, UserProfile

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
