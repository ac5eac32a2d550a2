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
# Pairs are rarer than events, so they are remembered longer. Of 7, 14, 30 and 60 days the best
# on online-retail's July, by little.
_PAIR_HALF_LIFE_MS: Final = 14 * _DAY_MS
# 2^64 of the shortest half-life: well inside a float64, and rebasing every two months is rare.
_REBASE_MS: Final = 64 * _TREND_HALF_LIFE_MS

COUNTRIES: Final = 8  # of most popularity, told
NEIGHBOURS: Final = 50  # of most pairs, told
_COUNTRIES_HELD: Final = 16
_PAIRS_HELD: Final = 128  # pruned to 100 when full: newcomers have 28 places to prove themselves
_PAIRS_KEPT: Final = 100
# Strength is pairs / (interest + prior)^damping: between the raw count (0), which favours the
# popular, and the share (1), which favours flukes. Tuned as the half-life was.
_DAMPING: Final = 0.5
_PRIOR: Final = 5.0

_VERSION: Final = b"\x01"
_PLACE: Final = {name: place for place, name in enumerate(COUNTED)}


class ItemCounts(msgspec.Struct, array_like=True):
    """One item's counts, scaled to `base_ms`; read them through the methods.

    At most 128 pairs and 16 countries: about 4 KB packed, 15 KB in memory.

    Examples
    --------
    >>> day, counts = 86_400_000, ItemCounts()
    >>> counts.add("view", 20_000 * day, beside=("b",))
    >>> counts.add("view", 20_007 * day, country="GB")
    >>> counts.counted()[0], counts.neighbours()
    (1.5, [('b', 0.27...)])
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

    def add(
        self,
        kind: str,
        time_ms: int,
        *,
        value: float = 0.0,
        country: str = "",
        beside: tuple[str, ...] = (),
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
            Items the user had beside this one.
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
        if kind == "refund":
            # As if made now; never below nothing, for most purchases were made long ago.
            place, undone = _PLACE["purchase"], INTEREST["purchase"] * by_trend
            self._counts[place] = max(self._counts[place] - by_count, 0.0)
            self._popularity = max(self._popularity - undone, 0.0)
        if weight:
            self._popularity += weight * by_trend
            self._interest += weight * 2.0 ** (span_ms / _PAIR_HALF_LIFE_MS)
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

    def neighbours(self) -> list[tuple[str, float]]:
        """Return at most 50 items found beside this one, with strengths, the strongest first."""
        scale = self._scale(_PAIR_HALF_LIFE_MS)
        scale /= (self._interest * scale + _PRIOR) ** _DAMPING
        return [(other, count * scale) for other, count in _largest(self._pairs, NEIGHBOURS)]

    def pack(self) -> bytes:
        """Return the state as bytes, a version first."""
        return _VERSION + _ENCODER.encode(self)

    @staticmethod
    def unpack(data: bytes) -> "ItemCounts":
        """Return the state that `pack` packed; ValueError for another version."""
        if data[:1] != _VERSION:
            raise ValueError(f"item state of version {data[:1]!r}, expected {_VERSION!r}")
        return _DECODER.decode(data[1:])

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
            self.base_ms = time_ms  # the newest: an older one cannot be beyond the bound
            self._counts = [count * by_count for count in self._counts]
            self._rating_sum *= by_count
            self._rating_count *= by_count
            self._popularity *= by_trend
            self._interest *= by_pair
            self._countries = {name: c * by_trend for name, c in self._countries.items()}
            self._pairs = {other: c * by_pair for other, c in self._pairs.items()}

    def _add_pairs(self, beside: tuple[str, ...], weight: float) -> None:
        pairs = self._pairs
        for other in beside:
            pairs[other] = pairs.get(other, 0.0) + weight
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
