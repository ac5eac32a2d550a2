"""Counts of one item that fade with event time, and the items found beside it.

Reads   one interaction at a time, in any order.
Owns    the half-lives, what an event type says, and the bounds on countries and pairs.

Counts use forward decay: an event at t adds 2^((t - base) / half-life), and reading divides. Late
events add less of themselves, nothing is decayed step by step, and the order of arrival changes
a count by rounding alone.

References
----------
Cormode et al., "Forward Decay: A Practical Time Decay Model for Streaming Systems", ICDE 2009.
"""

from math import exp, log
from typing import Final

import msgspec

TOGETHER: Final = "together"  # an interaction with another item, which had this one beside it
# What an event says of its item and of the pairs it makes.
INTEREST: Final = {
    "view": 1.0,
    "click": 1.0,
    "comment": 1.0,
    "rate": 1.0,
    "share": 2.0,
    "favorite": 2.0,
    "cart": 3.0,
    "purchase": 5.0,
}
COUNTED: Final = ("view", "click", "cart", "purchase", "favorite", "push", "open")

_DAY_MS: Final = 86_400_000
_COUNT_HALF_LIFE_MS: Final = 7 * _DAY_MS
_TREND_HALF_LIFE_MS: Final = _DAY_MS
# What goes together stays so: films that few rate need years, and what a shop sells this month
# the trend knows. Of 14 days to 8 years tuned on online-retail and MovieLens together.
_PAIR_HALF_LIFE_MS: Final = 730 * _DAY_MS
# In version 1.
_OLD_PAIR_HALF_LIFE_MS: Final = 14 * _DAY_MS
# An item is bought again after weeks or months, so what is known of that lasts.
_REPEAT_HALF_LIFE_MS: Final = 180 * _DAY_MS
# Bought again sooner, it is another line of the same order, or one that was meant to be.
_REPEAT_AFTER_MS: Final = _DAY_MS
# 2^64 of the shortest half-life: well inside a float64, and rebasing every two months is rare.
_REBASE_MS: Final = 64 * _TREND_HALF_LIFE_MS

HOUR_BLOCKS: Final = 6  # of a day: fewer items would be known of single hours
COUNTRIES: Final = 8  # of most popularity, told
NEIGHBOURS: Final = 100  # of most pairs, told
_COUNTRIES_HELD: Final = 16
_PAIRS_HELD: Final = 256  # pruned to 160 when full: newcomers have 96 places to prove themselves
_PAIRS_KEPT: Final = 160
# Of each item further back: what a user had at once goes together more than what came long before.
PLACE_FADE: Final = 0.9
# Strength is pairs / (interest + prior)^damping: between the raw count (0), which favours the
# popular, and the share (1), which favours flukes. Tuned as the half-life was.
_DAMPING: Final = 0.5
_PRIOR: Final = 5.0

VERSION: Final = 2  # 1 knew nothing of items bought again, nor of hours, and forgot pairs sooner
_PLACE: Final = {name: place for place, name in enumerate(COUNTED)}


def hour_block(time_ms: int) -> int:
    """Return in which block of 4 hours of the day, UTC, an instant lies.

    >>> hour_block(0), hour_block(86_399_999), hour_block(9 * 3_600_000)
    (0, 5, 2)
    """
    return time_ms % _DAY_MS * HOUR_BLOCKS // _DAY_MS


class ItemCounts(msgspec.Struct, array_like=True):
    """One item's counts, scaled to `base_ms`; read them through the methods.

    At most 256 pairs and 16 countries: about 6 KB packed, 25 KB in memory.

    Examples
    --------
    >>> day, counts = 86_400_000, ItemCounts()
    >>> counts.add("view", 20_000 * day, beside=("b",))
    >>> counts.add("view", 20_007 * day, country="GB")
    >>> counts.counted()[0], counts.neighbours()
    (1.5, [('b', 0.37...)])
    >>> ItemCounts.unpack(counts.pack()) == counts
    True
    """

    base_ms: int = 0  # 0: nothing yet
    newest_ms: int = 0
    first_ms: int = 0
    _counts: list[float] = msgspec.field(default_factory=lambda: [0.0] * len(COUNTED))
    _rating_sum: float = 0.0
    _rating_count: float = 0.0
    _popularity: float = 0.0
    _interest: float = 0.0  # with the pairs' half-life
    _countries: dict[str, float] = {}
    _pairs: dict[str, float] = {}
    _first_buys: float = 0.0
    _repeat_buys: float = 0.0
    _repeat_log_days: float = 0.0  # sum of the logarithms of the days between
    _hours: list[float] = msgspec.field(default_factory=lambda: [0.0] * HOUR_BLOCKS)

    def add(
        self,
        kind: str,
        time_ms: int,
        *,
        value: float = 0.0,
        country: str = "",
        beside: tuple[str, ...] = (),
        since_ms: int = 0,
    ) -> None:
        """Count one interaction.

        Parameters
        ----------
        kind
            A key of `INTEREST`, a name of `COUNTED`, "refund" or `TOGETHER`; others only move
            the time.
        time_ms
            Event time; late ones count for less.
        value
            The rating, for "rate"; the weight of the pairs, for `TOGETHER`.
        beside
            Items the user had beside this one, the newest first: each counts a tenth less than
            the one before.
        since_ms
            Of a purchase: since the user's last one of this item; 0: there was none.
        """
        self._move_to(time_ms)
        span_ms = time_ms - self.base_ms
        weight = value if kind == TOGETHER else INTEREST.get(kind, 0.0)
        if beside:
            self._add_pairs(beside, weight * 2.0 ** (span_ms / _PAIR_HALF_LIFE_MS))
        if kind == TOGETHER:
            return
        by_count = 2.0 ** (span_ms / _COUNT_HALF_LIFE_MS)
        by_trend = 2.0 ** (span_ms / _TREND_HALF_LIFE_MS)
        if kind in _PLACE:
            self._counts[_PLACE[kind]] += by_count
        if kind == "rate" and value > 0:
            self._rating_sum += value * by_count
            self._rating_count += by_count
        if kind == "purchase":
            self._add_purchase(since_ms, 2.0 ** (span_ms / _REPEAT_HALF_LIFE_MS))
        if kind == "refund":
            # As if made now; never below nothing, for most purchases were made long ago.
            place, undone = _PLACE["purchase"], INTEREST["purchase"] * by_trend
            self._counts[place] = max(self._counts[place] - by_count, 0.0)
            self._popularity = max(self._popularity - undone, 0.0)
        if weight:
            self._popularity += weight * by_trend
            self._interest += weight * 2.0 ** (span_ms / _PAIR_HALF_LIFE_MS)
            self._hours[hour_block(time_ms)] += weight * by_count
            if country:
                self._add_country(country, weight * by_trend)

    def counted(self) -> list[float]:
        """Return the counts of `COUNTED`, half-life 7 days, as of `newest_ms`."""
        scale = self._scale(_COUNT_HALF_LIFE_MS)
        return [count * scale for count in self._counts]

    def ratings(self) -> tuple[float, float]:
        """Return the sum and the count of ratings, half-life 7 days."""
        scale = self._scale(_COUNT_HALF_LIFE_MS)
        return self._rating_sum * scale, self._rating_count * scale

    def popularity(self) -> float:
        """Return weighted interactions, half-life 1 day."""
        return self._popularity * self._scale(_TREND_HALF_LIFE_MS)

    def countries(self) -> list[tuple[str, float]]:
        """Return the popularity in at most 8 countries, the largest first."""
        scale = self._scale(_TREND_HALF_LIFE_MS)
        return [(name, count * scale) for name, count in _largest(self._countries, COUNTRIES)]

    def hours(self) -> list[float]:
        """Return weighted interactions by block of the day, half-life 7 days, `hour_block`."""
        scale = self._scale(_COUNT_HALF_LIFE_MS)
        return [count * scale for count in self._hours]

    def interest(self) -> float:
        """Return weighted interactions with the half-life of the pairs, 730 days."""
        return self._interest * self._scale(_PAIR_HALF_LIFE_MS)

    def neighbours(self) -> list[tuple[str, float]]:
        """Return at most 100 items found beside this one, with strengths, the strongest first."""
        scale = self._scale(_PAIR_HALF_LIFE_MS)
        scale /= (self.interest() + _PRIOR) ** _DAMPING
        return [(other, count * scale) for other, count in _largest(self._pairs, NEIGHBOURS)]

    def repeats(self) -> tuple[float, float, float]:
        """Return purchases by new and by earlier buyers, half-life 180 days, and the days between.

        The days are the geometric mean, 0 before the first repeat: a few late ones should not
        move it as they would the plain mean.

        >>> counts = ItemCounts()
        >>> for since_days in 0, 10, 40:
        ...     counts.add("purchase", 20_000 * _DAY_MS, since_ms=since_days * _DAY_MS)
        >>> tuple(round(value, 6) for value in counts.repeats())
        (1.0, 2.0, 20.0)
        """
        scale = self._scale(_REPEAT_HALF_LIFE_MS)
        days = exp(self._repeat_log_days / self._repeat_buys) if self._repeat_buys else 0.0
        return self._first_buys * scale, self._repeat_buys * scale, days

    def pack(self) -> bytes:
        """Return the state as bytes, a version first."""
        return bytes((VERSION,)) + _ENCODER.encode(self)

    @staticmethod
    def unpack(data: bytes) -> "ItemCounts":
        """Return the state that `pack` packed, or version 1 did; ValueError for another version."""
        if data[:1] not in (b"\x01", bytes((VERSION,))):
            raise ValueError(f"item state of version {data[:1]!r}, expected up to {VERSION}")
        state = _DECODER.decode(data[1:])
        if data[:1] == b"\x01":
            now = state._scale(_OLD_PAIR_HALF_LIFE_MS) / state._scale(_PAIR_HALF_LIFE_MS)
            state._interest *= now
            state._pairs = {other: count * now for other, count in state._pairs.items()}
        return state

    def _scale(self, half_life_ms: int) -> float:
        """Return what brings a sum from the base to the newest event."""
        scale: float = 2.0 ** ((self.base_ms - self.newest_ms) / half_life_ms)
        return scale

    def _move_to(self, time_ms: int) -> None:
        """Begin, or bring the sums to a later base where the powers would grow too large."""
        if self.base_ms == 0:
            self.base_ms = self.newest_ms = self.first_ms = time_ms
        self.first_ms = min(self.first_ms, time_ms)
        self.newest_ms = max(self.newest_ms, time_ms)
        if time_ms - self.base_ms > _REBASE_MS:
            by_count = self._scale(_COUNT_HALF_LIFE_MS)
            by_trend = self._scale(_TREND_HALF_LIFE_MS)
            by_pair = self._scale(_PAIR_HALF_LIFE_MS)
            by_repeat = self._scale(_REPEAT_HALF_LIFE_MS)
            self.base_ms = time_ms  # the newest: an older one cannot be beyond the bound
            self._counts = [count * by_count for count in self._counts]
            self._rating_sum *= by_count
            self._rating_count *= by_count
            self._popularity *= by_trend
            self._interest *= by_pair
            self._countries = {name: c * by_trend for name, c in self._countries.items()}
            self._pairs = {other: c * by_pair for other, c in self._pairs.items()}
            self._first_buys *= by_repeat
            self._repeat_buys *= by_repeat
            self._repeat_log_days *= by_repeat
            self._hours = [count * by_count for count in self._hours]

    def _add_purchase(self, since_ms: int, weight: float) -> None:
        if not since_ms:
            self._first_buys += weight
        elif since_ms >= _REPEAT_AFTER_MS:
            self._repeat_buys += weight
            self._repeat_log_days += weight * log(since_ms / _DAY_MS)

    def _add_pairs(self, beside: tuple[str, ...], weight: float) -> None:
        pairs = self._pairs
        for other in beside:
            pairs[other] = pairs.get(other, 0.0) + weight
            weight *= PLACE_FADE
        if len(pairs) > _PAIRS_HELD:
            self._pairs = dict(_largest(pairs, _PAIRS_KEPT))

    def _add_country(self, country: str, weight: float) -> None:
        countries = self._countries
        countries[country] = countries.get(country, 0.0) + weight
        if len(countries) > _COUNTRIES_HELD:
            self._countries = dict(_largest(countries, COUNTRIES))


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(ItemCounts)


def _largest(counts: dict[str, float], limit: int) -> list[tuple[str, float]]:
    """Return the largest, ties by name: a dict's order must not decide."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]
