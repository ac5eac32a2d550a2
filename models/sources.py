"""Candidate sources: each proposes rows of items for a batch of queries, best first.

Reads   queries (rows and codes, no events) and the columns of `models.item_rows`.
Owns    what each source looks at, and its limits.

A source has a `name`, which decisions carry, and `propose`, which takes a batch so that an index
is searched once for all of it. A query's answer does not depend on who shares the batch. It never
holds a row twice, nor one that the query rules out. Values that are summed or compared are
integers: see `models.neighbours` for why.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.batches import are_closed, are_seen, firsts, padded
from models.features import EVENT_CODE, EVENT_TYPES
from models.item_counts import hour_block
from models.item_rows import ItemRows
from models.neighbours import best_of_each, mean_directions
from models.trend import (
    FULL_TRUST,
    TOP,
    blend,
    top_of,
    top_of_category,
    top_of_country,
    top_of_hour,
    top_of_week,
    top_of_years,
    trust,
)
from models.vector_index import Hits

Rows = NDArray[np.int64]

WEIGHT_UNIT: Final = 65_536  # a recency weight of 1
_LEAST_TRUST: Final = FULL_TRUST // 4  # in a segment: it tells of more than popularity
_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)
# Two standard deviations of the cosine of unrelated texts (`models.text`): less is noise.
LEAST_COSINE: Final = 0.25
_HOUR_S: Final = 3_600
_SAYS: Final = {"view": 1, "click": 2, "favorite": 3, "cart": 4, "cart_remove": -4}
_INTEREST: Final = np.array([_SAYS.get(name, 0) for name in EVENT_TYPES])  # by event code
_IN_CART: Final = 4 * WEIGHT_UNIT
_PURCHASE: Final = EVENT_CODE["purchase"]
_LATELY_S: Final = 14 * 24 * _HOUR_S
_DECAY: Final = np.array(
    [int(WEIGHT_UNIT * 2.0 ** (-hour / 24)) for hour in range(_LATELY_S // _HOUR_S)]
)


class Query(NamedTuple):
    """A user's moment as rows."""

    items: ItemRows
    time_ms: int
    recent: Rows  # distinct rows of the history, newest first, without what was put back
    weights: NDArray[np.int64]  # of `recent`, by recency, 0 to WEIGHT_UNIT
    history: Rows  # all rows of the history, newest first, 0 for ids without a row; C-contiguous
    types: NDArray[np.int64]  # of `history`, models.features.EVENT_TYPES; the same
    age_s: NDArray[np.int64]  # of `history`, seconds before the trigger, >= 0; the same
    cart: list[int]  # rows in the cart, newest first
    country: int  # code
    category: int  # code
    closed: Rows  # bought lately, distinct: proposed again only as due
    seen: Rows  # those, and what is in the history or in the cart; distinct
    intent: NDArray[np.float32] | None = None  # (TEXT_DIM,), on the grid of models.neighbours
    taste: NDArray[np.float32] | None = None  # the same; None: nothing written
    user_vector: NDArray[np.float32] | None = None  # (M,), the student's; None: no student
    about: Sequence[int] = ()  # rows that the trigger is about: changed items
    picks: Sequence[int] = ()  # rows that the campaign names, in its order
    pick_categories: Sequence[int] = ()  # codes of the categories that it names, in its order
    bought: Sequence[tuple[int, int]] = ()  # (row, age in seconds) of purchases, newest first
    blocked: Rows = _NO_ROWS  # rows that the user does not want to see, distinct
    blocked_categories: Rows = _NO_ROWS  # codes of main categories, the same
    lead: str = ""  # the source that is the trigger's own reason, "" where none is
    seed: int = 0  # of the trigger's draws, 64 bits

    def is_refused(self, rows: Rows) -> NDArray[np.bool_]:
        """Return which of `rows` are never proposed: not to be had now, or blocked by the user."""
        items = self.items
        refused = ~items.is_open(rows, self.time_ms)
        if len(self.blocked):
            refused |= items.is_among(rows, self.blocked)
        if len(self.blocked_categories):
            refused |= np.isin(items.category[rows], self.blocked_categories)
        return refused

    def is_closed(self, rows: Rows) -> NDArray[np.bool_]:
        """Return which of `rows` are refused, or bought lately."""
        return self.is_refused(rows) | self.items.is_among(rows, self.closed)

    def is_seen(self, rows: Rows) -> NDArray[np.bool_]:
        """Return which of `rows` are no discovery: refused, or in `seen`."""
        return self.is_refused(rows) | self.items.is_among(rows, self.seen)


class Source(Protocol):
    """One way to find candidates."""

    @property
    def name(self) -> str:
        """One of `models.arms.SOURCES`."""
        ...

    def propose(self, queries: Sequence[Query]) -> list[Rows]:
        """Return distinct rows, best first, for each query; all queries share `items`."""
        ...


class ContentSource:
    """Items whose content is like that of the user's recent items.

    Parameters
    ----------
    limit
        Rows proposed at most.
    n_recent
        Recent items whose mean direction is searched for.

    Notes
    -----
    One search of the index for the whole batch. It is asked for twice the limit, for the recent
    items themselves are near, and so are copies: words equal to those of a history item or of a
    better candidate are left out, the same thing under another id.
    """

    name: Final = "content"

    def __init__(self, limit: int = 50, n_recent: int = 20) -> None:
        self._limit = limit
        self._n_recent = n_recent

    def propose(self, queries: Sequence[Query]) -> list[Rows]:
        """Return the rows most alike, those above the noise."""
        content = queries[0].items.content
        recent = np.zeros((len(queries), self._n_recent), np.int64)  # (B, R), 0: padding
        weights = np.zeros_like(recent)
        for b, query in enumerate(queries):
            n = min(len(query.recent), self._n_recent)
            recent[b, :n], weights[b, :n] = query.recent[:n], query.weights[:n]
        wanted = mean_directions(content.vectors(recent), weights)  # (B, D)
        return self._unmet(queries, content.search(wanted, 2 * self._limit))

    def _unmet(self, queries: Sequence[Query], found: Sequence[Hits]) -> list[Rows]:
        rows, _ = padded([hits.rows for hits in found])  # (B, L)
        scores, _ = padded([hits.scores for hits in found])
        is_unmet = (scores >= LEAST_COSINE) & ~are_seen(queries, rows)
        recent, is_own = padded([query.recent for query in queries])  # (B, R)
        keys = queries[0].items.text_key.take(np.concatenate([recent, rows], axis=1))
        # What is left out is like nothing else.
        others = np.arange(keys.shape[1], dtype=np.uint64)
        compared = np.where(np.concatenate([is_own, is_unmet], axis=1), keys, others)
        compared.sort(axis=1)
        has_copies = (compared[:, 1:] == compared[:, :-1]).any(axis=1)
        unmet = firsts(rows, is_unmet, self._limit)
        for b in np.flatnonzero(has_copies).tolist():
            unmet[b] = self._without_copies(queries[b], rows[b][is_unmet[b]])
        return unmet

    def _without_copies(self, query: Query, rows: Rows) -> Rows:
        of_recent, of_rows = (query.items.text_key.take(own) for own in (query.recent, rows))
        known, kept = set(of_recent.tolist()), list[int]()
        for row, key in zip(rows.tolist(), of_rows.tolist(), strict=True):
            if key not in known:
                known.add(key)
                kept.append(row)
                if len(kept) == self._limit:
                    break
        return np.array(kept, np.int64)


class TrendSource:
    """What is popular today and this week, at this time of day, and in the user's segments.

    Segments are the user's country and the session's main category.

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
    _LISTED: Final = TOP  # more than a history, a cart and what was bought can rule out
    _KEPT: Final = 4_096

    def __init__(self, limit: int = 100) -> None:
        self._limit = limit
        self._lists: dict[tuple[int, int, int], Rows] = {}
        self._made_of: tuple[ItemRows | None, int] = (None, -1)

    def propose(self, queries: Sequence[Query]) -> list[Rows]:
        """Return the rows of the users' segments, blended."""
        lists, _ = padded([self._of_segment(query) for query in queries])
        return firsts(lists, ~are_seen(queries, lists), self._limit)

    def _of_segment(self, query: Query) -> Rows:
        items = query.items
        if self._made_of[0] is not items or self._made_of[1] != items.version:
            self._lists.clear()
            self._made_of = (items, items.version)
        segment = (query.country, query.category, hour_block(query.time_ms))
        rows = self._lists.get(segment)
        if rows is None:
            if len(self._lists) >= self._KEPT:
                self._lists.clear()
            rows = self._lists[segment] = self._blended(items, *segment)
        return rows

    def _blended(self, items: ItemRows, country: int, category: int, block: int) -> Rows:
        day, week = top_of(items, self._LISTED), top_of_week(items, self._LISTED)
        of_day, of_week = trust(items, day, week)
        lists = [day, week, top_of_years(items, self._LISTED)]
        # What the day and the week cannot tell the years do.
        weights = [of_day, of_week, max(2 * FULL_TRUST - of_day - of_week, 1)]
        lists.append(top_of_hour(items, block, self._LISTED))
        weights.append(max(of_week, _LEAST_TRUST))
        if country:
            lists.append(top_of_country(items, country, self._LISTED))
            weights.append(max(of_day, _LEAST_TRUST))
        if category:
            lists.append(top_of_category(items, category, self._LISTED))
            weights.append(max(of_day, _LEAST_TRUST))
        return blend(items, lists, self._LISTED, weights)


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

    def propose(self, queries: Sequence[Query]) -> list[Rows]:
        """Return rows of the history and the cart, most wanted first."""
        found = self._interest(queries)
        for b, query in enumerate(queries):
            if query.cart:
                found[b] = self._with_cart(query, *found[b])
        rows, _ = padded([rows for rows, _ in found])  # (B, L)
        if not rows.shape[1]:
            return [_NO_ROWS] * len(queries)
        values, _ = padded([values for _, values in found])
        values[(values <= 0) | are_closed(queries, rows)] = -1
        best = best_of_each(values, queries[0].items.id_hash.take(rows), self._limit)
        return [own[places] for own, places in zip(rows, best, strict=True)]

    def _with_cart(
        self, query: Query, rows: Rows, values: NDArray[np.int64]
    ) -> tuple[Rows, NDArray[np.int64]]:
        value = dict(zip(rows.tolist(), values.tolist(), strict=True))
        cart = query.cart[:200]
        for place, row in enumerate(cart):
            # At most 50 events of weight 4 and this: below 2^24, so the cart's order stands.
            first = (len(cart) - place) << 24 if query.lead == self.name else 0
            value[row] = max(value.get(row, 0), 0) + _IN_CART + first
        rows = np.fromiter(value.keys(), np.int64, len(value))
        return rows, np.fromiter(value.values(), np.int64, len(value))

    @staticmethod
    def _interest(queries: Sequence[Query]) -> list[tuple[Rows, NDArray[np.int64]]]:
        """Return the rows of each history and how much each is wanted."""
        sizes = [len(query.history) for query in queries]
        owners = np.repeat(np.arange(len(queries)), sizes)
        lists = zip(*((query.history, query.types, query.age_s) for query in queries), strict=True)
        rows, codes, age_s = (np.concatenate(own) for own in lists)
        at = np.flatnonzero((age_s < _LATELY_S) & (rows > 0))
        at = at[np.argsort(owners[at] * queries[0].items.n_rows + rows[at], kind="stable")]
        owners, rows, codes = owners[at], rows[at], codes[at]  # by query and row, newest first
        is_first = np.ones(len(at), np.bool_)
        is_first[1:] = (rows[1:] != rows[:-1]) | (owners[1:] != owners[:-1])
        starts = np.flatnonzero(is_first)
        # What came before a purchase is settled, a view after it counts.
        is_bought = codes == _PURCHASE
        n_bought = np.cumsum(is_bought)
        earlier = (n_bought - is_bought)[starts]
        is_settled = n_bought > np.repeat(earlier, np.diff(starts, append=len(at)))
        values = np.where(is_settled, 0, _INTEREST[codes] * _DECAY[age_s[at] // _HOUR_S])
        values = np.add.reduceat(values, starts) if len(at) else values
        rows = rows[starts]
        ends = np.searchsorted(owners[starts], np.arange(len(queries) + 1)).tolist()
        return [(rows[start:end], values[start:end]) for start, end in pairwise(ends)]
