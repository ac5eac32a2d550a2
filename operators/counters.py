"""Counters over time: exponentially decayed and sliding, both in event time.

Reads   times and types of one user's events, late ones included.
Owns    the decay and the buckets.

A decayed counter of window w loses a share 1/e of its value in w, needs one number, and weighs
the recent more; a sliding counter is the plain number of events within w, exact to a bucket.
Source of the decay: Cormode et al., "Forward Decay", ICDE 2009.
"""

from array import array
from math import exp
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from models.features import DECAYED_TYPES

if TYPE_CHECKING:
    Doubles = array[float]
else:
    Doubles = array  # Python 3.11 takes no [float] when it runs

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
_WEEK_MS: Final = 7 * DAY_MS
WINDOWS_MS: Final = (HOUR_MS, DAY_MS, _WEEK_MS)
N_TYPES: Final = len(DECAYED_TYPES)
TYPE_INDEX: Final = {name: i for i, name in enumerate(DECAYED_TYPES)}
OTHER: Final = TYPE_INDEX["other"]

_ZEROS: Final = bytes(8 * len(WINDOWS_MS) * N_TYPES)
_MAX_AHEAD_MS: Final = 200 * HOUR_MS  # exp(200) is far from overflow; then the landmark moves
_NOTHING_LEFT_MS: Final = 700 * HOUR_MS


class Decayed(Struct, array_like=True, gc=False):
    """Decayed counts by window and type, in the order of `models.features.DECAYED`.

    Each is kept as it would be at `landmark_ms` if decay ran backwards too: an event adds
    exp((time - landmark) / window), whenever it comes, and reading scales once.

    Examples
    --------
    >>> d = Decayed()
    >>> add_decayed(d, 0, TYPE_INDEX["view"])
    >>> add_decayed(d, HOUR_MS, TYPE_INDEX["view"])
    >>> [round(v, 3) for v in decayed_at(d, HOUR_MS)[:2]]  # 1/e + 1 views, no click, in 1 h
    [1.368, 0.0]
    """

    landmark_ms: int = 0
    values: Doubles = field(default_factory=lambda: array("d", _ZEROS))


def add_decayed(counts: Decayed, time_ms: int, index: int) -> None:
    """Count one event of type `index`; a late one weighs what it would weigh by now."""
    elapsed_ms = time_ms - counts.landmark_ms
    if elapsed_ms > _MAX_AHEAD_MS:
        counts.values = array("d", decayed_at(counts, time_ms))
        counts.landmark_ms = time_ms
        elapsed_ms = 0
    values = counts.values
    values[index] += exp(elapsed_ms / HOUR_MS)
    values[index + 5] += exp(elapsed_ms / DAY_MS)
    values[index + 10] += exp(elapsed_ms / _WEEK_MS)


def decayed_at(counts: Decayed, time_ms: int) -> list[float]:
    """Return the counts as of `time_ms`."""
    elapsed_ms = time_ms - counts.landmark_ms
    hour = exp(-elapsed_ms / HOUR_MS) if elapsed_ms < _NOTHING_LEFT_MS else 0.0
    day = exp(-elapsed_ms / DAY_MS)
    week = exp(-elapsed_ms / _WEEK_MS)
    a, b, c, d, e, f, g, h, i, j, k, m, n, o, p = counts.values
    return [
        *(a * hour, b * hour, c * hour, d * hour, e * hour),
        *(f * day, g * day, h * day, i * day, j * day),
        *(k * week, m * week, n * week, o * week, p * week),
    ]


class Sliding(Struct, array_like=True, gc=False):
    """Events in the last hour, day and week; at most 12 + 24 + 7 buckets of two integers.

    Each list holds (bucket number, count) in turn, oldest first; each total is of its list.

    Examples
    --------
    >>> s = Sliding()
    >>> for minute in (0, 1, 59, 61):
    ...     add_sliding(s, minute * 60_000)
    >>> sliding_at(s, 61 * 60_000)  # the first two have left the hour
    (2.0, 4.0, 4.0)
    """

    in_hour: int = 0
    hour: list[int] = []  # of 5 min
    in_day: int = 0
    day: list[int] = []  # of 1 h
    in_week: int = 0
    week: list[int] = []  # of 1 d


def add_sliding(counts: Sliding, time_ms: int) -> None:
    """Count one event."""
    counts.in_hour += _add_bucket(counts.hour, time_ms // 300_000, 12)
    counts.in_day += _add_bucket(counts.day, time_ms // HOUR_MS, 24)
    counts.in_week += _add_bucket(counts.week, time_ms // DAY_MS, 7)


def _add_bucket(buckets: list[int], number: int, n_buckets: int) -> int:
    """Count one event in its bucket; return by how much the list's total changes."""
    if not buckets:
        buckets += (number, 1)
        return 1
    newest = buckets[-2]
    if number == newest:
        buckets[-1] += 1
        return 1
    if number > newest:
        buckets += (number, 1)
        change = 1
        while buckets[0] <= number - n_buckets:
            change -= buckets[1]
            del buckets[:2]
        return change
    if number > newest - n_buckets:
        _add_late(buckets, number)
        return 1
    return 0


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
        _sum_since(counts.hour, counts.in_hour, time_ms // 300_000 - 12),
        _sum_since(counts.day, counts.in_day, time_ms // HOUR_MS - 24),
        _sum_since(counts.week, counts.in_week, time_ms // DAY_MS - 7),
    )


def _sum_since(buckets: list[int], total: int, after: int) -> float:
    if not buckets or buckets[0] > after:
        return float(total)
    return float(sum(buckets[i + 1] for i in range(0, len(buckets), 2) if buckets[i] > after))
