"""What is popular now, in a segment, fair to items whose counts are of different times.

Reads   decayed popularity, each item's decayed to its own last interaction.
Emits   rows, most popular first.

With a half-life h, a count c as of time t is c * 2^-((T - t) / h) at a later T. Its logarithm is
log2(c) + t / h - T / h, and the last term is the same for all items: so log2(c) + t / h orders
them at any T, needs no refresh as time goes by, and an item that nobody touches sinks without
being written again (forward decay).

References
----------
Cormode et al., "Forward Decay: A Practical Time Decay Model for Streaming Systems", ICDE 2009.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.item_rows import ItemRows
from models.neighbours import best_rows
from models.retrieval_kernels import fused

DAY_MS: Final = 86_400_000
WEEK_MS: Final = 7 * DAY_MS
YEARS_MS: Final = 730 * DAY_MS  # as pairs are remembered, `models.item_counts`
_STEP: Final = 65_536  # steps of one doubling: popularities within 0.001% are ties
_NEW_STEP: Final = 64  # steps of a day for items without statistics: always below the others
_RRF: Final = 60
FULL_TRUST: Final = 16
_TRUSTED: Final = 1_000  # weighted interactions of which half is believed, as of 200 purchases

TOP: Final = 500  # rows of a list that are there whatever has changed: more cost a pass over all
_DEPTH: Final = 1_000  # rows of a new list, so that it lasts
_LISTS: Final = 4_096  # 8 kB each
_SHARES: Final = (2**30 / (_RRF + 1 + np.arange(_DEPTH))).astype(np.int64)
_NONE: Final = np.zeros(0, np.int64)


def trend_value(popularity: float, as_of_ms: int, half_life_ms: int = DAY_MS) -> int:
    """Return an integer in [0, 2^32) that orders items by popularity decayed to a common time.

    Parameters
    ----------
    popularity
        Decayed to `as_of_ms`; anything below 2^-60 counts as that.
    as_of_ms
        2000 to 2100.
    half_life_ms
        Of the popularity, a day or longer; values of another half-life do not compare.

    Examples
    --------
    >>> monday, tuesday = 18_000 * DAY_MS, 18_001 * DAY_MS
    >>> trend_value(8.0, monday) == trend_value(4.0, tuesday) > trend_value(3.9, tuesday)
    True
    """
    doublings = math.log2(max(popularity, 2.0**-60)) + as_of_ms / half_life_ms
    return min(max(int(doublings * _STEP), 0), 2**32 - 1)


def newness_value(created_ms: int) -> int:
    """Return the value of an item without statistics: newest first, behind all that have some.

    >>> newness_value(4_102_444_800_000) < trend_value(2.0**-60, 946_684_800_000, 7 * DAY_MS)
    True
    """
    return max(created_ms, 0) // DAY_MS * _NEW_STEP


class _TopList(NamedTuple):
    """The best rows of a segment as of a version of the items."""

    version: int
    rows: NDArray[np.int64]
    # All others of the segment come after this value and hash; None: there are no others.
    least: tuple[int, int] | None


def top_of(items: ItemRows, limit: int) -> NDArray[np.int64]:
    """Return the servable rows that are most popular everywhere, or newest."""
    return _top(items, "day", 0, limit)


def top_of_week(items: ItemRows, limit: int) -> NDArray[np.int64]:
    """Return the servable rows that are most popular by the counts of half-life 7 days."""
    return _top(items, "week", 0, limit)


def top_of_years(items: ItemRows, limit: int) -> NDArray[np.int64]:
    """Return the servable rows that are most popular by the counts of half-life 730 days."""
    return _top(items, "years", 0, limit)


def top_of_category(items: ItemRows, category: int, limit: int) -> NDArray[np.int64]:
    """Return the servable rows of a main category that are most popular, or newest."""
    return _top(items, "category", category, limit)


def top_of_country(items: ItemRows, country: int, limit: int) -> NDArray[np.int64]:
    """Return the servable rows that are most popular in a country."""
    return _top(items, "country", country, limit)


def top_of_hour(items: ItemRows, block: int, limit: int) -> NDArray[np.int64]:
    """Return the servable rows that are most popular in a block of the day."""
    return _top(items, "hour", block, limit)


def trust(items: ItemRows, day: NDArray[np.int64], week: NDArray[np.int64]) -> tuple[int, int]:
    """Return how far the lists of the day and of the week are to be believed, 0 to `FULL_TRUST`.

    A day on which three films were seen says little of what is popular. Counts are taken as of
    the newest of the rows, and rounded down to powers of two, so that their sum is exact.
    """
    newest_ms = int(items.stats_ms[np.concatenate([day, week])].max(initial=0))
    of_day = items.trend[day].astype(np.int64), newest_ms / DAY_MS
    of_week = items.trend_week[week].astype(np.int64), newest_ms / WEEK_MS
    believed = []
    for values, now in (of_day, of_week):
        doublings = (values - int(now * _STEP)) // _STEP
        told = int((1 << np.clip(doublings[doublings >= 0], 0, 40)).sum())
        believed.append(FULL_TRUST * told // (told + _TRUSTED))
    return believed[0], believed[1]


def blend(
    items: ItemRows,
    lists: list[NDArray[np.int64]],
    limit: int,
    weights: Sequence[int] | None = None,
) -> NDArray[np.int64]:
    """Return one list of several by reciprocal ranks.

    `weights` are of the lists, 0 to 2 `FULL_TRUST` each and at most 12 `FULL_TRUST` together;
    all weigh the same without them.
    """
    by_list = [1] * len(lists) if weights is None else weights
    weighed = [(rows, w) for rows, w in zip(lists, by_list, strict=True) if w]
    says = np.outer([w for _, w in weighed], _SHARES).astype(np.int64)
    ends = np.cumsum([len(rows) for rows, _ in weighed], dtype=np.int64)
    rows = np.concatenate([_NONE, *(rows for rows, _ in weighed)])
    blended: NDArray[np.int64] = fused(rows, ends, says, 0, items.id_hash, items.slots, limit)[0]
    return blended


def _top(items: ItemRows, segment: str, code: int, limit: int) -> NDArray[np.int64]:
    """Return the first rows of a segment.

    A list is made once, 1 ms at 1,000,000 rows, and then follows what has changed: the rows that
    were touched leave it, and come back where they now belong. What was not touched and not in
    the list stays behind `least`, so the list is exact down to there, and made anew when too
    little of it is left.
    """
    held = items.top_lists.get((segment, code))
    if held is None or held.version != items.version:
        changed = items.changed_since(held.version) if held is not None else None
        if held is not None and changed is not None:
            held = _followed(items, segment, code, held, changed)
        else:
            held = None
        if held is None or (held.least is not None and len(held.rows) < TOP):
            rows = _members(items, segment, code, np.arange(items.n_rows))
            held = _listed(items, segment, code, rows)
        if len(items.top_lists) >= _LISTS:
            items.top_lists.clear()
        items.top_lists[segment, code] = held
    if limit > len(held.rows) and held.least is not None:
        rows = _members(items, segment, code, np.arange(items.n_rows))
        return best_rows(_values(items, segment, code, rows), rows, items.id_hash, limit)
    return held.rows[:limit]


def _followed(
    items: ItemRows, segment: str, code: int, held: _TopList, changed: NDArray[np.int64]
) -> _TopList:
    kept = held.rows[~items.is_among(held.rows, changed)]
    rows = np.concatenate([kept, _members(items, segment, code, changed)])
    if held.least is None:
        return _listed(items, segment, code, rows)
    least, least_hash = held.least
    values, hashes = _values(items, segment, code, rows), items.id_hash[rows]
    is_known = (values > least) | ((values == least) & (hashes >= least_hash))
    known = _listed(items, segment, code, rows[is_known])
    return known if known.least is not None else known._replace(least=held.least)


def _listed(items: ItemRows, segment: str, code: int, rows: NDArray[np.int64]) -> _TopList:
    values = _values(items, segment, code, rows)
    best = best_rows(values, rows, items.id_hash, _DEPTH)
    if len(rows) <= _DEPTH:
        return _TopList(items.version, best, None)
    last = best[-1:]
    least = int(_values(items, segment, code, last)[0]), int(items.id_hash[last[0]])
    return _TopList(items.version, best, least)


def _members(
    items: ItemRows, segment: str, code: int, rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return which of `rows` belong to a segment."""
    is_member = items.is_servable[rows]
    if segment == "category":
        is_member &= items.category[rows] == code
    elif segment == "hour":
        is_member &= items.trend_hour[rows, code] > 0
    elif segment == "country":
        is_member &= (items.country[rows] == code).any(axis=1)
    members: NDArray[np.int64] = rows[is_member]
    return members


def _values(items: ItemRows, segment: str, code: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    values = {"week": items.trend_week, "years": items.trend_years}.get(segment, items.trend)[rows]
    if segment == "hour":
        values = items.trend_hour[rows, code]
    elif segment == "country":
        slots = np.argmax(items.country[rows] == code, axis=1)
        values = items.country_trend[rows, slots]
    return values.astype(np.int64)
