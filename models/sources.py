"""Candidate sources: each proposes rows of items for one query, best first.

Reads   a query (rows and codes, no events) and the columns of `models.item_rows`.
Owns    what each source looks at, and its limits.

A source has a `name`, which decisions carry, and `propose`. It never proposes a row twice, nor
one that the query rules out. Values that are summed or compared are integers: see
`models.neighbours` for why.
"""

from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.features import EVENT_CODE, EVENT_TYPES
from models.item_rows import ItemRows
from models.neighbours import best_rows, dot, mean_direction
from models.trend import blend, top_of, top_of_category, top_of_country, top_of_week

Rows = NDArray[np.int64]

WEIGHT_UNIT: Final = 65_536  # a recency weight of 1
_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)
# Two standard deviations of the cosine of unrelated texts (`models.text`): less is noise.
_LEAST_COSINE: Final = 0.25
_HOUR_S: Final = 3_600
_INTEREST: Final = tuple(  # by event code: what an event says about wanting the item
    {"view": 1, "click": 2, "favorite": 3, "cart": 4, "cart_remove": -4}.get(name, 0)
    for name in EVENT_TYPES
)
_IN_CART: Final = 4 * WEIGHT_UNIT
_PURCHASE: Final = EVENT_CODE["purchase"]
_LATELY_S: Final = 14 * 24 * _HOUR_S
_DECAY: Final = tuple(
    int(WEIGHT_UNIT * 2.0 ** (-hour / 24)) for hour in range(_LATELY_S // _HOUR_S)
)


class Query(NamedTuple):
    """A user's moment as rows; n is `items.n_rows`.

    Masks have shape (n,) and are True at row 0.
    """

    items: ItemRows
    recent: Rows  # distinct rows of the history, newest first, without what was put back
    weights: NDArray[np.int64]  # of `recent`, by recency, 0 to WEIGHT_UNIT
    history: list[int]  # all rows of the history, newest first, 0 for ids without a row
    types: list[int]  # of `history`, models.features.EVENT_TYPES
    age_s: list[int]  # of `history`, seconds before the trigger, >= 0
    cart: list[int]  # rows in the cart, newest first
    is_cart_first: bool
    country: int  # code
    category: int  # code
    is_closed: NDArray[np.bool_]  # bought lately, or not to be had now
    is_seen: NDArray[np.bool_]  # those, and what is in the history or in the cart


class Source(Protocol):
    """One way to find candidates."""

    @property
    def name(self) -> str:
        """One of `models.arms.SOURCES`."""
        ...

    def propose(self, query: Query) -> Rows:
        """Return distinct rows, best first."""
        ...


class NeighbourSource:
    """Items that others had together with the user's recent ones, learned from the stream.

    Parameters
    ----------
    limit
        Rows proposed at most.

    Notes
    -----
    A row's value is the sum of strength x recency over the recent items it neighbours, in steps
    of 2^-24 of the strongest: 50 of them stay below 2^30. 30 µs (`python -m bench.candidates`).

    References
    ----------
    Linden et al., "Amazon.com Recommendations: Item-to-Item Collaborative Filtering", 2003.
    """

    name: Final = "neighbour"

    def __init__(self, limit: int = 100) -> None:
        self._limit = limit

    def propose(self, query: Query) -> Rows:
        """Return the rows that go best with the recent ones."""
        items, n = query.items, query.items.n_rows
        strength = items.neighbour_strength[query.recent]  # (R, 50)
        strongest = float(strength.max(initial=0.0))
        if strongest <= 0:
            return _NO_ROWS
        scale = 2.0**24 / (WEIGHT_UNIT * strongest)
        values = np.rint(strength * (query.weights[:, None] * scale))  # (R, 50)
        rows = items.neighbour_rows[query.recent].ravel()  # (R * 50,)
        # Whole numbers below 2^53: float64 adds them exactly, in any order.
        total = np.bincount(rows, weights=values.ravel(), minlength=n)  # (n,)
        total[query.is_seen] = 0.0
        found = np.flatnonzero(total > 0)  # twice as fast as of the floats
        return best_rows(
            total[found].astype(np.int64), found, items.id_rank, items.row_of_rank, self._limit
        )


class ContentSource:
    """Items whose words are like those of the user's recent items.

    Parameters
    ----------
    limit
        Rows proposed at most.
    n_recent
        Recent items whose mean direction is searched for.

    Notes
    -----
    Brute force over all rows: 256 n bytes read, 60 µs at 4,000 items. Words equal to those of a
    history item or of a better candidate are left out: the same thing under another id.
    """

    name: Final = "content"

    def __init__(self, limit: int = 50, n_recent: int = 20) -> None:
        self._limit = limit
        self._n_recent = n_recent

    def propose(self, query: Query) -> Rows:
        """Return the rows most alike, those above the noise."""
        items, n = query.items, query.items.n_rows
        recent = query.recent[: self._n_recent]
        wanted = mean_direction(items.text_vectors[recent], query.weights[: self._n_recent])
        if not wanted.any():
            return _NO_ROWS
        scores = dot(items.text_vectors[:n], wanted)  # (n,)
        scores[query.is_seen] = 0.0
        n_wanted = self._limit + self._limit // 2  # a third of them may be copies
        least = np.partition(scores, n - n_wanted)[n - n_wanted] if n > n_wanted else 0.0
        rows = np.flatnonzero(scores >= max(float(least), _LEAST_COSINE))
        values = (scores[rows] * 2.0**22).astype(np.int64)  # exact: multiples of 2^-22
        best = best_rows(values, rows, items.id_rank, items.row_of_rank, n_wanted)
        return self._without_copies(query, best)

    def _without_copies(self, query: Query, rows: Rows) -> Rows:
        keys = query.items.text_key
        known = set(keys[query.recent].tolist())
        kept: list[int] = []
        for row, key in zip(rows.tolist(), keys[rows].tolist(), strict=True):
            if key not in known:
                known.add(key)
                kept.append(row)
                if len(kept) == self._limit:
                    break
        return np.array(kept, np.int64)


class TrendSource:
    """What is popular today and this week, in the user's country and in the session's category.

    Parameters
    ----------
    limit
        Rows proposed at most.

    Notes
    -----
    Lists are made once a segment after each change of the tables (0.1 ms at 4,000 items), and
    shared by all triggers until the next; at most 4,096 are kept, of 4 kB each.
    """

    name: Final = "trend"
    _LISTED: Final = 500  # more than a history, a cart and what was bought can rule out
    _KEPT: Final = 4_096

    def __init__(self, limit: int = 100) -> None:
        self._limit = limit
        self._lists: dict[tuple[int, int], Rows] = {}
        self._made_of: tuple[ItemRows | None, int] = (None, -1)

    def propose(self, query: Query) -> Rows:
        """Return the rows of the user's segments, blended."""
        items = query.items
        if self._made_of[0] is not items or self._made_of[1] != items.version:
            self._lists.clear()
            self._made_of = (items, items.version)
        segment = (query.country, query.category)
        rows = self._lists.get(segment)
        if rows is None:
            if len(self._lists) >= self._KEPT:
                self._lists.clear()
            rows = self._lists[segment] = self._blended(items, *segment)
        return rows[~query.is_seen[rows]][: self._limit]

    def _blended(self, items: ItemRows, country: int, category: int) -> Rows:
        lists = [top_of(items, self._LISTED), top_of_week(items, self._LISTED)]
        if country:
            lists.append(top_of_country(items, country, self._LISTED))
        if category:
            lists.append(top_of_category(items, category, self._LISTED))
        return blend(items, lists, self._LISTED)


class UnfinishedSource:
    """What the user looked at or put in the cart lately and has not bought.

    Parameters
    ----------
    limit
        Rows proposed at most.

    Notes
    -----
    An item's value is the sum over its events of the last 14 days of weight x 2^-(age / 1 day);
    putting it back takes away. Where the cart itself is the reason, its items come first,
    the newest first.
    """

    name: Final = "unfinished"

    def __init__(self, limit: int = 20) -> None:
        self._limit = limit

    def propose(self, query: Query) -> Rows:
        """Return rows of the history and the cart, most wanted first."""
        value = self._interest(query)
        cart = query.cart[:200]
        for place, row in enumerate(cart):
            # At most 50 events of weight 4 and this: below 2^24, so the cart's order stands.
            first = (len(cart) - place) << 24 if query.is_cart_first else 0
            value[row] = max(value.get(row, 0), 0) + _IN_CART + first
        rows = np.fromiter(value.keys(), np.int64, len(value))
        values = np.fromiter(value.values(), np.int64, len(value))
        is_wanted = (values > 0) & ~query.is_closed[rows]
        rows, values, items = rows[is_wanted], values[is_wanted], query.items
        return best_rows(values, rows, items.id_rank, items.row_of_rank, self._limit)

    def _interest(self, query: Query) -> dict[int, int]:
        value: dict[int, int] = {}
        finished = {0}
        for row, code, age_s in zip(query.history, query.types, query.age_s, strict=True):
            if age_s >= _LATELY_S:
                break  # newest first: the rest is older still
            if code == _PURCHASE:
                finished.add(row)  # what came before is settled, a view after it counts
            elif row not in finished:
                weight = _INTEREST[code] * _DECAY[age_s // _HOUR_S]
                value[row] = value.get(row, 0) + weight
        return value
