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
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.item_rows import ItemRows
from models.neighbours import best_rows

DAY_MS: Final = 86_400_000
WEEK_MS: Final = 7 * DAY_MS
_STEP: Final = 65_536  # steps of one doubling: popularities within 0.001% are ties
_NEW_STEP: Final = 64  # steps of a day for items without statistics: always below the others
_RRF: Final = 60


def trend_value(popularity: float, as_of_ms: int, half_life_ms: int = DAY_MS) -> int:
    """Return an integer in [0, 2^32) that orders items by popularity decayed to a common time.

    Parameters
    ----------
    popularity
        Decayed to `as_of_ms`; anything below 2^-60 counts as that.
    as_of_ms
        2000 to 2100.
    half_life_ms
        Of the popularity, one day to 30; values of another half-life do not compare.

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


def top_of(items: ItemRows, limit: int) -> NDArray[np.int64]:
    """Return the servable rows that are most popular everywhere, or newest."""
    rows = np.flatnonzero(items.is_servable[: items.n_rows])
    return best_rows(items.trend[rows], rows, items.id_rank, items.row_of_rank, limit)


def top_of_week(items: ItemRows, limit: int) -> NDArray[np.int64]:
    """Return the servable rows that are most popular by the counts of half-life 7 days."""
    rows = np.flatnonzero(items.is_servable[: items.n_rows])
    return best_rows(items.trend_week[rows], rows, items.id_rank, items.row_of_rank, limit)


def top_of_category(items: ItemRows, category: int, limit: int) -> NDArray[np.int64]:
    """Return the servable rows of a main category that are most popular, or newest."""
    in_category = items.category[: items.n_rows] == category
    rows = np.flatnonzero(in_category & items.is_servable[: items.n_rows])
    return best_rows(items.trend[rows], rows, items.id_rank, items.row_of_rank, limit)


def top_of_country(items: ItemRows, country: int, limit: int) -> NDArray[np.int64]:
    """Return the servable rows that are most popular in a country."""
    rows, slots = np.nonzero(items.country[: items.n_rows] == country)
    is_servable = items.is_servable[rows]
    rows, slots = rows[is_servable], slots[is_servable]
    values = items.country_trend[rows, slots]
    return best_rows(values, rows, items.id_rank, items.row_of_rank, limit)


def blend(items: ItemRows, lists: list[NDArray[np.int64]], limit: int) -> NDArray[np.int64]:
    """Return one list of several by reciprocal ranks, all lists weighing the same."""
    total = np.zeros(items.n_rows, np.int64)
    for rows in lists:
        total[rows] += (2**30 / (_RRF + 1 + np.arange(len(rows)))).astype(np.int64)
    rows = np.flatnonzero(total)
    return best_rows(total[rows], rows, items.id_rank, items.row_of_rank, limit)
