"""Counters over time: exponentially decayed and sliding, both in event time.

Reads   times and types of one user's events, late ones included.
Owns    the decay and the buckets.

A decayed counter of window w loses a share 1/e of its value in w, needs one number, and weighs
the recent more; a sliding counter is the plain number of events within w, exact to a bucket.
Source of the decay: Cormode et al., "Forward decay", ICDE 2009, here kept at its newest time.
"""

from math import exp
from typing import Final

from msgspec import Struct, field

from models.features import DECAYED_TYPES

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
WINDOWS_MS: Final = (HOUR_MS, DAY_MS, 7 * DAY_MS)
N_TYPES: Final = len(DECAYED_TYPES)
TYPE_INDEX: Final = {name: i for i, name in enumerate(DECAYED_TYPES)}
OTHER: Final = TYPE_INDEX["other"]

# (bucket width, buckets that make the window): 1 h of 5 min, 1 d of 1 h, 7 d of 1 d.
_SLIDES: Final = ((300_000, 12), (HOUR_MS, 24), (DAY_MS, 7))


class Decayed(Struct, array_like=True):
    """Decayed counts by window and type, in the order of `models.features.DECAYED`.

    Examples
    --------
    >>> d = Decayed()
    >>> add_decayed(d, 0, TYPE_INDEX["view"])
    >>> add_decayed(d, HOUR_MS, TYPE_INDEX["view"])
    >>> [round(v, 3) for v in decayed_at(d, HOUR_MS)[:2]]  # 1/e + 1 views, no click, in 1 h
    [1.368, 0.0]
    """

    as_of_ms: int = 0
    values: list[float] = field(default_factory=lambda: [0.0] * (len(WINDOWS_MS) * N_TYPES))


def add_decayed(counts: Decayed, time_ms: int, index: int) -> None:
    """Count one event of type `index`; a late one weighs what it would weigh by now."""
    values = counts.values
    elapsed_ms = time_ms - counts.as_of_ms
    if elapsed_ms > 0:
        counts.values = values = decayed_at(counts, time_ms)
        counts.as_of_ms = time_ms
        values[index] += 1.0
        values[index + N_TYPES] += 1.0
        values[index + 2 * N_TYPES] += 1.0
    else:
        for window, window_ms in enumerate(WINDOWS_MS):
            values[index + window * N_TYPES] += exp(elapsed_ms / window_ms)


def decayed_at(counts: Decayed, time_ms: int) -> list[float]:
    """Return the counts as of `time_ms`, or as they are where that is earlier."""
    elapsed_ms = time_ms - counts.as_of_ms
    v = counts.values
    if elapsed_ms <= 0:
        return list(v)
    hour = exp(-elapsed_ms / HOUR_MS)
    day = exp(-elapsed_ms / DAY_MS)
    week = exp(-elapsed_ms / WINDOWS_MS[2])
    return [x * hour for x in v[:5]] + [x * day for x in v[5:10]] + [x * week for x in v[10:]]


class Sliding(Struct, array_like=True):
    """Events in the last hour, day and week; at most 12 + 24 + 7 buckets of two integers.

    Each list holds (bucket number, count) in turn, oldest first.

    Examples
    --------
    >>> s = Sliding()
    >>> for minute in (0, 1, 59, 61):
    ...     add_sliding(s, minute * 60_000)
    >>> sliding_at(s, 61 * 60_000)  # the first two have left the hour
    (2.0, 4.0, 4.0)
    """

    hour: list[int] = []
    day: list[int] = []
    week: list[int] = []


def add_sliding(counts: Sliding, time_ms: int) -> None:
    """Count one event."""
    _add_bucket(counts.hour, time_ms // 300_000, 12)
    _add_bucket(counts.day, time_ms // HOUR_MS, 24)
    _add_bucket(counts.week, time_ms // DAY_MS, 7)


def _add_bucket(buckets: list[int], number: int, n_buckets: int) -> None:
    if buckets and buckets[-2] == number:
        buckets[-1] += 1
    elif not buckets or number > buckets[-2]:
        buckets += (number, 1)
        while buckets[0] <= number - n_buckets:
            del buckets[:2]
    elif number > buckets[-2] - n_buckets:
        _add_late(buckets, number)


def _add_late(buckets: list[int], number: int) -> None:
    for i in range(0, len(buckets), 2):
        if buckets[i] == number:
            buckets[i + 1] += 1
            return
        if buckets[i] > number:
            buckets[i:i] = (number, 1)
            return


def sliding_at(counts: Sliding, time_ms: int) -> tuple[float, float, float]:
    """Return the number of events within the last hour, day and week before `time_ms`."""
    return (
        _sum_since(counts.hour, time_ms // 300_000 - 12),
        _sum_since(counts.day, time_ms // HOUR_MS - 24),
        _sum_since(counts.week, time_ms // DAY_MS - 7),
    )


def _sum_since(buckets: list[int], after: int) -> float:
    if not buckets or buckets[0] > after:
        return float(sum(buckets[1::2]))
    return float(sum(buckets[i + 1] for i in range(0, len(buckets), 2) if buckets[i] > after))
